//! What a statement is asked for: its parameters, and the same question about nothing.

use std::sync::{Arc, LazyLock};

use sqlx::postgres::PgArguments;
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres};

use crate::scan::ScanScope;
use crate::scan::compared::ComparedScope;

/// An id, and a domain, that HQ does not have.
static NOBODY: LazyLock<[String; 1]> = LazyLock::new(|| ["commcare-lake asks for nobody".to_owned()]);

/// What a statement's `$1` is.
#[derive(Clone, Copy)]
pub(super) enum Key<'k> {
    None,
    Ids(&'k [String]),
    Domain(&'k str),
    /// `$1` is microseconds; all that is stamped then or later is wanted.
    Since(i64),
    Numbers(&'k [i64]),
    /// `$1` is a domain, `$2` microseconds, `$3` ids, `$4` a limit.
    Changes {
        domain: &'k str,
        since_us: i64,
        ids: &'k [String],
        limit: i64,
    },
    /// What a scope asks for, in the order in which [`crate::postgres::scan`] numbers it.
    Scope(&'k ScanScope),
    /// The same, then the primary key after which, the one up to which, and a limit.
    Stretch {
        scope: &'k ScanScope,
        after: i64,
        up_to: i64,
        limit: i64,
    },
    /// What a scope asks for, in the order in which [`crate::postgres::compare`] numbers it: as above, then the first and the last id, a limit, and
    /// buckets where some are wanted.
    Compared {
        scope: &'k ComparedScope,
        after: i64,
        up_to: i64,
        limit: i64,
        buckets: Option<&'k [i32]>,
    },
    /// What a scope asks for, then ids.
    IdsOf(&'k ScanScope, &'k [String]),
    /// `$1` is an id; of its rows those after date `$2` and number `$3` are wanted, at most `$4`.
    Page {
        id: &'k str,
        after: (&'k str, i64),
        limit: i64,
    },
}

impl Key<'_> {
    /// Number of ids.
    pub fn len(self) -> usize {
        match self {
            Self::None | Self::Domain(_) | Self::Since(_) => 0,
            Self::Scope(_) | Self::Stretch { .. } | Self::Compared { .. } => 0,
            Self::Page { .. } => 1,
            Self::Ids(ids) | Self::Changes { ids, .. } | Self::IdsOf(_, ids) => ids.len(),
            Self::Numbers(numbers) => numbers.len(),
        }
    }

    /// The same question about what is not there; `None` for one that is not about ids.
    pub fn about_nothing(self) -> Option<Self> {
        let ids = NOBODY.as_slice();
        match self {
            Self::None | Self::Since(_) | Self::Scope(_) => None,
            // Nothing is between these keys.
            Self::Stretch { scope, .. } => Some(Key::Stretch { scope, after: 0, up_to: 0, limit: 1 }),
            Self::Compared { scope, buckets, .. } => {
                Some(Key::Compared { scope, after: 0, up_to: 0, limit: 1, buckets })
            }
            Self::Ids(_) => Some(Key::Ids(ids)),
            Self::IdsOf(scope, _) => Some(Key::IdsOf(scope, ids)),
            Self::Domain(_) => Some(Key::Domain(&NOBODY[0])),
            Self::Numbers(_) => Some(Key::Numbers(&[-1])),
            Self::Changes { since_us, limit, .. } => Some(Key::Changes { domain: &NOBODY[0], since_us, ids, limit }),
            Self::Page { limit, .. } => Some(Key::Page { id: &NOBODY[0], after: ("-infinity", 0), limit }),
        }
    }
}

/// The statement with its parameters.
pub(super) fn bound<'q>(sql: &Arc<str>, key: Key<'q>, is_prepared: bool) -> Query<'q, Postgres, PgArguments> {
    let query = sqlx::query(AssertSqlSafe(sql.clone())).persistent(is_prepared);
    match key {
        Key::None => query,
        Key::Ids(ids) => query.bind(ids),
        Key::Domain(domain) => query.bind(domain),
        Key::Since(since_us) => query.bind(since_us),
        Key::Numbers(numbers) => query.bind(numbers),
        Key::Changes { domain, since_us, ids, limit } => query.bind(domain).bind(since_us).bind(ids).bind(limit),
        Key::Scope(scope) => scope_bound(query, scope),
        Key::Stretch { scope, after, up_to, limit } => scope_bound(query, scope).bind(after).bind(up_to).bind(limit),
        Key::Compared { scope, after, up_to, limit, buckets } => {
            let query = scope_bound(query, &scope.scan).bind(after).bind(up_to);
            let query = query.bind(&scope.from_id).bind(&scope.until_id).bind(limit);
            match buckets {
                Some(buckets) => query.bind(buckets),
                None => query,
            }
        }
        Key::IdsOf(scope, ids) => scope_bound(query, scope).bind(ids),
        Key::Page { id, after: (date, number), limit } => query.bind(id).bind(date).bind(number).bind(limit),
    }
}

fn scope_bound<'q>(query: Query<'q, Postgres, PgArguments>, scope: &'q ScanScope) -> Query<'q, Postgres, PgArguments> {
    let mut query = query.bind(scope.domain.as_str());
    if let Some(types) = &scope.types {
        query = query.bind(types.as_slice());
    }
    for time_us in [scope.from_us, scope.until_us].into_iter().flatten() {
        query = query.bind(time_us);
    }
    query
}
