//! Keys of the documents of a project in one database, a stretch after the other by primary key.
//!
//! No index of HQ's holds project and primary key together. So a stretch is read in one of two ways, by what costs less over the whole scan. *By
//! project*: all rows that its indexes (project and type, or state, or the time of saving) lead to are sorted, for each stretch anew. *By primary key*: the
//! rows of all projects within a span of keys are looked at, once each. A project with few rows in a large table goes by the first, one that
//! is most of its table by the second. The cursor is the same, so the way may change from one stretch to the next.

use std::sync::Arc;

use lake_shared::identity::Kind;
use sqlx::Row;

use super::database::{Database, Snapshot};
use super::key::Key;
use crate::scan::{ScanScope, ScannedKeys};
use crate::source::{Hindrance, SourceError};

/// Least span of primary keys that is looked at.
const SPAN_LEAST: i64 = 1_000;
/// Most of them: about a second of a database that has them in memory.
const SPAN_MOST: i64 = 2_000_000;

/// A table with documents, by the kind.
pub(super) struct ScannedTable {
    pub(super) name: &'static str,
    pub(super) id: &'static str,
    /// Whether a row is live, as far as an index or a plain column says: the document rules have the last word.
    is_live: &'static str,
    time: &'static str,
    pub(super) document_type: Option<&'static str>,
}

pub(super) const fn table(kind: Kind) -> ScannedTable {
    match kind {
        Kind::Case => ScannedTable {
            name: "form_processor_commcarecasesql",
            id: "case_id",
            is_live: "not deleted",
            time: "server_modified_on",
            document_type: Some("type"),
        },
        Kind::Form => ScannedTable {
            name: "form_processor_xforminstancesql",
            id: "form_id",
            is_live: "state = 1",
            time: "received_on",
            document_type: Some("xmlns"),
        },
        Kind::Location => ScannedTable {
            name: "locations_sqllocation",
            id: "location_id",
            is_live: "true",
            time: "last_modified",
            document_type: None,
        },
    }
}

impl ScannedTable {
    /// The conditions of a scope, and the number of the next parameter. In the order of [`Key::Scope`].
    pub(super) fn conditions(&self, scope: &ScanScope) -> (String, usize) {
        let (mut conditions, mut next) = (format!("domain = $1 and {}", self.is_live), 2);
        let mut add = |condition: &dyn Fn(usize) -> String| {
            conditions.push_str(&condition(next));
            next += 1;
        };
        if scope.types.is_some() {
            // A scope with types is never of a kind without.
            let column = self.document_type.unwrap_or("type");
            add(&|number| format!(" and {column} = any(${number}::text[])"));
        }
        if scope.from_us.is_some() {
            add(&|number| format!(" and {} >= to_timestamp(${number}::bigint / 1000000.0)", self.time));
        }
        if scope.until_us.is_some() {
            add(&|number| format!(" and {} < to_timestamp(${number}::bigint / 1000000.0)", self.time));
        }
        (conditions, next)
    }

    fn stretch(&self, scope: &ScanScope, way: Way) -> Arc<str> {
        let (conditions, next) = self.conditions(scope);
        let order = way.order();
        let Self { name, id, .. } = self;
        let [after, up_to, limit] = [next, next + 1, next + 2];
        format!(
            "select id::bigint, {id}::text from {name} where {conditions} and id > ${after}::bigint and id <= ${up_to}::bigint \
             order by {order} limit ${limit}"
        )
        .into()
    }
}

/// How a stretch is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    ByProject,
    /// Within so many primary keys.
    ByKey {
        span: i64,
    },
}

impl Way {
    /// By what the rows of a stretch are sorted.
    pub(super) const fn order(self) -> &'static str {
        match self {
            // An expression that no index has keeps the planner from walking the primary key over the rows of everybody else.
            Self::ByProject => "(id + 0)",
            Self::ByKey { .. } => "id",
        }
    }

    /// The last primary key that is looked at.
    pub(super) const fn up_to(self, after: i64) -> i64 {
        match self {
            Self::ByProject => i64::MAX,
            Self::ByKey { span } => after.saturating_add(span),
        }
    }

    /// What is tried after a stretch took too long.
    pub(super) fn shorter(self) -> Self {
        match self {
            Self::ByProject => Self::ByKey { span: SPAN_MOST / 4 },
            Self::ByKey { span } => Self::ByKey { span: (span / 4).max(SPAN_LEAST) },
        }
    }
}

/// What a table is guessed to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Guess {
    /// Rows of the scope.
    of_scope: u64,
    /// All rows.
    all: u64,
}

/// The way that looks at fewer rows over a whole scan in stretches of so many.
fn cheaper_way(guess: Guess, keys_max: usize) -> Way {
    let stretches = guess.of_scope.div_ceil(keys_max.max(1) as u64);
    if guess.of_scope.saturating_mul(stretches) <= guess.all.max(1) {
        return Way::ByProject;
    }
    // As long as it has about as many rows of the scope as are wanted.
    let span = guess.all as f64 / guess.of_scope.max(1) as f64 * keys_max as f64;
    Way::ByKey { span: (span as i64).clamp(SPAN_LEAST, SPAN_MOST) }
}

/// How many live documents of a scope a database has, as its planner guesses.
pub(super) async fn estimate(database: &Database, scope: &ScanScope) -> Result<u64, SourceError> {
    Ok(guess(database, scope).await?.of_scope)
}

/// The way that costs least for stretches of so many documents.
pub(super) async fn way(database: &Database, scope: &ScanScope, documents_max: usize) -> Result<Way, SourceError> {
    Ok(cheaper_way(guess(database, scope).await?, documents_max))
}

async fn guess(database: &Database, scope: &ScanScope) -> Result<Guess, SourceError> {
    let scanned = table(scope.kind);
    let mut snapshot = database.snapshot(&format!("guess the number of {}s", scope.kind)).await?;
    let explain = format!("explain select id from {} where {}", scanned.name, scanned.conditions(scope).0).into();
    let (mut of_scope, mut all) = (None, 0);
    snapshot
        .read(&explain, Key::Scope(scope), |row| {
            of_scope = of_scope.or(planned_rows(row.try_get(0)?));
            Ok(())
        })
        .await?;
    let rows = "select greatest(reltuples, 0)::bigint from pg_class where oid = to_regclass($1)".into();
    snapshot
        .read(&rows, Key::Domain(scanned.name), |row| {
            all = u64::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0);
            Ok(())
        })
        .await?;
    snapshot.finish().await;
    Ok(Guess { of_scope: of_scope.unwrap_or(0), all })
}

/// The number of rows in a line of a plan; `None` where it has none.
fn planned_rows(line: &str) -> Option<u64> {
    line.split_once(" rows=")?.1.split(' ').next()?.parse().ok()
}

/// Keys of a stretch; see [`crate::source::HqDatabase::scan_keys`].
pub(super) async fn keys(
    database: &Database,
    scope: &ScanScope,
    after: i64,
    keys_max: usize,
) -> Result<ScannedKeys, SourceError> {
    let mut way = way(database, scope, keys_max).await?;
    loop {
        match stretch(database, scope, way, after, keys_max).await {
            Err(SourceError::AskLess { hindrance: Hindrance::TooSlow, action, .. }) if way != way.shorter() => {
                way = way.shorter();
                tracing::info!(action, ?way, "a shorter stretch is asked for");
            }
            outcome => return outcome,
        }
    }
}

async fn stretch(
    database: &Database,
    scope: &ScanScope,
    way: Way,
    after: i64,
    keys_max: usize,
) -> Result<ScannedKeys, SourceError> {
    let scanned = table(scope.kind);
    let mut snapshot = database.snapshot(&format!("read keys of {}s", scope.kind)).await?;
    let limit = i64::try_from(keys_max.max(1)).unwrap_or(i64::MAX);
    let up_to = way.up_to(after);
    let mut keys: Vec<(i64, String)> = Vec::new();
    let key = Key::Stretch { scope, after, up_to, limit };
    snapshot
        .read(&scanned.stretch(scope, way), key, |row| {
            keys.push((row.try_get(0)?, row.try_get(1)?));
            Ok(())
        })
        .await?;
    let last = last_key(&mut snapshot, scanned.name, after).await?;
    snapshot.finish().await;
    Ok(scanned_keys(keys, keys_max, after, up_to, last))
}

/// The greatest primary key of a table.
pub(super) async fn last_key(snapshot: &mut Snapshot<'_>, name: &str, after: i64) -> Result<i64, SourceError> {
    let (mut last, newest) = (after, format!("select coalesce(max(id), 0)::bigint from {name}").into());
    snapshot
        .read(&newest, Key::None, |row| {
            last = row.try_get(0)?;
            Ok(())
        })
        .await?;
    Ok(last)
}

/// How far a stretch comes with these keys, where `last` is the greatest key of the table.
fn scanned_keys(keys: Vec<(i64, String)>, keys_max: usize, after: i64, up_to: i64, last: i64) -> ScannedKeys {
    let last_found = keys.last().map_or(after, |(key, _)| *key);
    let is_full = keys.len() >= keys_max.max(1);
    let (reached, finished) = reached(is_full.then_some(last_found), after, up_to, last);
    ScannedKeys { keys, reached, finished }
}

/// Where the next stretch begins, and whether there is none. `full_at`: the last key that was found, where there may be more up to `up_to`.
pub(super) fn reached(full_at: Option<i64>, after: i64, up_to: i64, last: i64) -> (i64, bool) {
    match full_at {
        Some(last_found) => (last_found, false),
        // Keys beyond the last one are still to be given away: their documents have messages.
        None => (up_to.min(last).max(after), up_to >= last),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn scope(kind: Kind, types: Option<&[&str]>, from_us: Option<i64>, until_us: Option<i64>) -> ScanScope {
        let types = types.map(|types| types.iter().map(|&name| name.to_owned()).collect());
        ScanScope { domain: "d".into(), kind, types, from_us, until_us }
    }

    #[test]
    fn parameters_are_numbered_as_they_are_bound() {
        let whole = scope(Kind::Case, Some(&["t"]), Some(1), Some(2));
        let text = table(Kind::Case).stretch(&whole, Way::ByProject);
        for part in [
            "domain = $1 and not deleted and type = any($2::text[])",
            "server_modified_on >= to_timestamp($3::bigint",
            "server_modified_on < to_timestamp($4::bigint",
            "id > $5::bigint and id <= $6::bigint order by (id + 0) limit $7",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let until = scope(Kind::Form, None, None, Some(2));
        let text = table(Kind::Form).stretch(&until, Way::ByKey { span: 9 });
        assert!(text.contains("received_on < to_timestamp($2::bigint"), "{text}");
        assert!(text.ends_with("id > $3::bigint and id <= $4::bigint order by id limit $5"), "{text}");
        let (plain, next) = table(Kind::Location).conditions(&scope(Kind::Location, None, None, None));
        assert_eq!((plain.as_str(), next), ("domain = $1 and true", 2));
    }

    #[test]
    fn a_small_project_of_a_large_table_goes_by_its_index_and_the_others_by_key() {
        let way = |of_scope, all| cheaper_way(Guess { of_scope, all }, 10_000);
        assert_eq!(way(5_000, 100_000_000), Way::ByProject);
        assert_eq!(way(500_000, 100_000_000), Way::ByProject, "50 stretches of 500,000 rows");
        assert_eq!(way(50_000_000, 100_000_000), Way::ByKey { span: 20_000 });
        assert_eq!(way(2_000_000, 100_000_000), Way::ByKey { span: 500_000 });
        assert_eq!(way(0, 0), Way::ByProject, "nothing is known of a table that was never analyzed");
        assert_eq!(way(1_000_000, 1_000_000), Way::ByKey { span: 10_000 });
        let (mut slow, mut tries) = (Way::ByProject, 0);
        while slow != slow.shorter() {
            (slow, tries) = (slow.shorter(), tries + 1);
        }
        assert_eq!(slow, Way::ByKey { span: SPAN_LEAST });
        assert!(tries < 10);
    }

    #[test]
    fn a_stretch_without_documents_is_no_end() {
        let keys = |of: &[i64]| of.iter().map(|&key| (key, key.to_string())).collect::<Vec<_>>();
        let told = |found: &[i64], up_to, last| {
            let scanned = scanned_keys(keys(found), 2, 10, up_to, last);
            (scanned.reached, scanned.finished)
        };
        assert_eq!(told(&[], 20, 100), (20, false));
        assert_eq!(told(&[12], 20, 100), (20, false));
        assert_eq!(told(&[12, 15], 20, 100), (15, false), "there may be more up to 20");
        assert_eq!(told(&[12], 20, 18), (18, true));
        assert_eq!(told(&[12, 18], 20, 18), (18, false), "the next stretch finds out");
        assert_eq!(told(&[], i64::MAX, 18), (18, true));
        assert_eq!(told(&[], 20, 0), (10, true), "an empty table");
    }

    #[test]
    fn the_planner_says_how_many() {
        assert_eq!(planned_rows("Seq Scan on t  (cost=0.00..1.05 rows=17 width=4)"), Some(17));
        assert_eq!(planned_rows("  Filter: (domain = 'x rows=3 '::text)"), Some(3));
        assert_eq!(planned_rows("  Index Cond: (domain = 'd'::text)"), None);
    }
}
