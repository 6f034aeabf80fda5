//! One Postgres database: a bounded set of connections, and snapshots read through them.
//!
//! Invariants: everything is read in a read-only transaction with one snapshot; a connection is used again only after its
//! transaction ended well, so a cancelled or failed read closes its connection and leaves nothing behind; every wait has an end.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::config::Limits;
use super::failure::{is_broken_connection, source_error};
use crate::source::SourceError;

/// A connection that was idle for longer is not trusted: firewalls forget, servers restart.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// The server ends a statement in time; this is what it gets on top before we believe that it is not there.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// One database.
pub(super) struct Database {
    name: String,
    options: PgConnectOptions,
    limits: Limits,
    begin: Arc<str>,
    turns: Semaphore,
    idle: Mutex<Vec<(PgConnection, Instant)>>,
}

/// What a statement's `$1` is.
#[derive(Clone, Copy)]
pub(super) enum Key<'k> {
    None,
    Ids(&'k [String]),
    Domain(&'k str),
}

/// A read-only transaction: all its statements see the same state.
pub(super) struct Snapshot<'d> {
    database: &'d Database,
    connection: PgConnection,
    _turn: SemaphorePermit<'d>,
    action: String,
    /// The database's clock just before the snapshot was taken, microseconds; `None` for a standby that cannot tell yet.
    pub observed_us: Option<i64>,
}

impl Database {
    /// `name` is for messages: `main database`, `shard database p1`, `replica of …`. Connects to nothing.
    pub fn new(name: String, url: &str, limits: Limits) -> Result<Self, SourceError> {
        // sqlx takes any scheme. The parser's words would repeat parts of the address, so they are not shown.
        let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
        let parsed = PgConnectOptions::from_str(url).ok().filter(|_| is_postgres);
        let options = parsed.ok_or_else(|| SourceError::Refused {
            action: format!("use the address of the {name}"),
            reason: "it is not of the form postgres://user:password@host:port/database".into(),
        })?;
        // pgbouncer refuses start-up parameters that it does not know; floats are read as text or by a cast.
        let mut options =
            options.extra_float_digits(None).application_name("commcare-lake").disable_statement_logging();
        if !limits.prepared_statements {
            options = options.statement_cache_capacity(0);
        }
        Ok(Self {
            name,
            options,
            limits,
            begin: begin_statement(limits.statement_timeout).into(),
            turns: Semaphore::new(limits.connections_max),
            idle: Mutex::new(Vec::new()),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Begins a read-only transaction. `action` goes into errors: `read 500 cases`.
    pub async fn snapshot(&self, action: &str) -> Result<Snapshot<'_>, SourceError> {
        let action = format!("{action} from {}", self.name);
        let turn = self.turns.acquire().await.map_err(|_| SourceError::Unavailable {
            action: action.clone(),
            reason: "the connections are being closed".into(),
        })?;
        while let Some(mut connection) = self.take_idle() {
            match self.begin(&mut connection, &action).await {
                Ok(observed_us) => {
                    return Ok(Snapshot { database: self, connection, _turn: turn, action, observed_us });
                }
                // It broke while idle, and so did probably the others: one of them after the other is given up.
                Err(Begin::Broken) => {}
                Err(Begin::Failed(error)) => return Err(error),
            }
        }
        let mut connection = self.open(&action).await?;
        match self.begin(&mut connection, &action).await {
            Ok(observed_us) => Ok(Snapshot { database: self, connection, _turn: turn, action, observed_us }),
            Err(Begin::Failed(error)) => Err(error),
            Err(Begin::Broken) => {
                Err(SourceError::Unavailable { action, reason: "the server closed a new connection".into() })
            }
        }
    }

    async fn open(&self, action: &str) -> Result<PgConnection, SourceError> {
        let (host, port) = (self.options.get_host(), self.options.get_port());
        let action = &format!("{action} at {host}:{port}");
        match timeout(self.limits.connect_timeout, self.options.connect()).await {
            Ok(opened) => opened.map_err(|error| source_error(action, &error)),
            Err(_) => Err(self.too_slow(action, "no connection", self.limits.connect_timeout)),
        }
    }

    async fn begin(&self, connection: &mut PgConnection, action: &str) -> Result<Option<i64>, Begin> {
        let limit = self.limits.statement_timeout + ANSWER_GRACE;
        let begun = sqlx::raw_sql(AssertSqlSafe(self.begin.clone())).fetch_all(&mut *connection);
        match timeout(limit, begun).await {
            Ok(Ok(rows)) => {
                let clock = rows.first().map(|row| row.try_get::<Option<i64>, _>("observed_us")).transpose();
                clock.map(Option::flatten).map_err(|error| Begin::Failed(source_error(action, &error)))
            }
            Ok(Err(error)) if is_broken_connection(&error) => Err(Begin::Broken),
            Ok(Err(error)) => Err(Begin::Failed(source_error(action, &error))),
            Err(_) => Err(Begin::Broken),
        }
    }

    fn take_idle(&self) -> Option<PgConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, since)| since.elapsed() < IDLE_MAX);
        idle.pop().map(|(connection, _)| connection)
    }

    fn put_idle(&self, connection: PgConnection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((connection, Instant::now()));
    }

    fn too_slow(&self, action: &str, what: &str, limit: Duration) -> SourceError {
        let reason = format!("{what} within {} ms", limit.as_millis());
        SourceError::Unavailable { action: action.to_owned(), reason }
    }
}

/// Why a transaction did not begin.
enum Begin {
    Broken,
    Failed(SourceError),
}

impl Snapshot<'_> {
    /// Runs one statement and hands over its rows one by one.
    pub async fn read(
        &mut self,
        sql: &Arc<str>,
        key: Key<'_>,
        mut take: impl FnMut(&PgRow) -> Result<(), sqlx::Error> + Send,
    ) -> Result<(), SourceError> {
        let limits = self.database.limits;
        let query = sqlx::query(AssertSqlSafe(sql.clone())).persistent(limits.prepared_statements);
        let query = match key {
            Key::None => query,
            Key::Ids(ids) => query.bind(ids),
            Key::Domain(domain) => query.bind(domain),
        };
        let connection = &mut self.connection;
        let all = async {
            let mut rows = query.fetch(connection);
            while let Some(row) = rows.try_next().await? {
                take(&row)?;
            }
            Ok::<(), sqlx::Error>(())
        };
        let limit = limits.statement_timeout + ANSWER_GRACE;
        match timeout(limit, all).await {
            Ok(read) => read.map_err(|error| source_error(&*self.action, &error)),
            Err(_) => Err(self.database.too_slow(&self.action, "no answer", limit)),
        }
    }

    /// The clock, for those who cannot do without.
    pub fn observed_us(&self) -> Result<i64, SourceError> {
        self.observed_us.ok_or_else(|| SourceError::Unavailable {
            action: self.action.clone(),
            reason: "the server is a standby that has not replayed any transaction yet".into(),
        })
    }

    /// Ends the transaction and keeps the connection for the next one. All has been read: trouble here only costs the connection.
    pub async fn finish(self) {
        let Self { database, mut connection, .. } = self;
        let commit = sqlx::raw_sql("COMMIT").execute(&mut connection);
        if let Ok(Ok(_)) = timeout(ANSWER_GRACE, commit).await {
            database.put_idle(connection);
        } else {
            tracing::debug!(database = database.name, "connection given up after a read");
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Closing politely needs the runtime; a socket that closes does the same.
        self.turns.close();
    }
}

/// One message, so that clock and snapshot are microseconds apart: `transaction_timestamp()` is when the server got it, and the
/// SELECT takes the snapshot of the whole transaction. (A clock asked for by a later statement would be later than the snapshot.)
/// A standby's clock is that of the newest transaction it has.
fn begin_statement(statement_timeout: Duration) -> String {
    format!(
        "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; \
         SELECT set_config('statement_timeout', '{}', true) AS statement_timeout, \
         (extract(epoch from CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() \
         ELSE transaction_timestamp() END) * 1000000)::bigint AS observed_us",
        statement_timeout.as_millis()
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::postgres::HqPostgresConfig;

    #[test]
    fn a_wrong_address_is_refused_without_being_shown() {
        let limits = HqPostgresConfig::of_url("").limits();
        for url in ["", "mysql://hq:secret@db/x", "postgres://hq:secret@db:port/x"] {
            let error = Database::new("main database".into(), url, limits).err();
            let Some(error @ SourceError::Refused { .. }) = error else { panic!("{url} was taken") };
            assert!(!error.to_string().contains("secret") && error.to_string().contains("main database"));
        }
    }

    #[test]
    fn the_clock_comes_with_the_snapshot() {
        let begin = begin_statement(Duration::from_secs(30));
        assert!(begin.contains("'30000'") && begin.matches(';').count() == 1);
    }
}
