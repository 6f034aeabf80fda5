//! One Postgres database: a bounded set of connections, and snapshots read through them.
//!
//! Invariants: everything is read in a read-only transaction with one snapshot; a connection is used again only after its
//! transaction ended well, so a cancelled or failed read closes its connection and leaves nothing behind; every wait has an end, except
//! that for a turn, which comes with the ends of those before it. Unless `prepared_statements` is on, no statement has a name on the server, and
//! nothing is set beyond the transaction: pgbouncer may give each transaction another connection.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use super::failure::{hindrance, is_broken_connection, is_of_other_tables, is_overload, reason, source_error};
use super::key::{Key, bound};
use crate::clock::{Asked, Clock};
use crate::metric_names;
use crate::pace::limit::Class;
use crate::pace::{Turn, Turns};
use crate::source::{Hindrance, SourceError};

/// A connection that was idle for longer is not trusted: firewalls forget, servers restart.
const IDLE_MAX: Duration = Duration::from_secs(300);
/// Time that the server has, beyond the limit at which it ends a statement itself, before it counts as not there.
const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// A database that answers a statement about nothing within this part of the time limit is not what holds up the same statement about something.
const ANSWER_ABOUT_NOTHING_SHARE: u32 = 2;
/// And it has at least so long for that, also where the limit is very short.
const ANSWER_ABOUT_NOTHING_LEAST: Duration = Duration::from_millis(500);
/// Smaller steps of a clock are not worth a line in the log, microseconds: time servers correct by as much.
const STEP_TOLD_US: i64 = 1_000_000;

/// Limits that hold for each database.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub connections_max: usize,
    pub statement_timeout: Duration,
    pub connect_timeout: Duration,
    pub prepared_statements: bool,
}

/// What a database is said to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It has the latest state. (If it is a standby all the same, it is as new as its newest transaction.)
    Primary,
    /// It follows a primary.
    Replica,
}

/// One database, with its idle connections and its limits.
pub(super) struct Database {
    name: String,
    role: Role,
    clock: Clock,
    /// Whether the operator was told that this replica cannot say how new it is.
    is_told: AtomicBool,
    options: PgConnectOptions,
    limits: Limits,
    begin: Arc<str>,
    connections: Semaphore,
    /// Shared by all databases of one HQ.
    turns: Arc<Turns>,
    idle: Mutex<Vec<(PgConnection, Instant)>>,
    /// What is wrong with the tables, by the readers that need them.
    table_trouble: Mutex<BTreeMap<&'static str, String>>,
}

/// A read-only transaction: all its statements see the same state.
pub(super) struct Snapshot<'d> {
    database: &'d Database,
    connection: PgConnection,
    _permit: SemaphorePermit<'d>,
    turn: Option<Turn>,
    action: String,
    /// The database's clock just before the snapshot was taken, microseconds, corrected where it stepped back; `None` for a replica that
    /// cannot tell how new it is.
    pub observed_us: Option<i64>,
    tables_are_others: bool,
}

impl Database {
    /// `name` is for messages: `main database`, `shard database p1`, `replica of …`. Connects to nothing.
    pub fn new(name: String, url: &str, role: Role, limits: Limits, turns: Arc<Turns>) -> Result<Self, SourceError> {
        let mut options = connect_options(&name, url)?;
        if !limits.prepared_statements {
            options = options.statement_cache_capacity(0);
        }
        Ok(Self {
            name,
            role,
            clock: Clock::default(),
            is_told: AtomicBool::new(false),
            options,
            limits,
            begin: begin_statement(limits.statement_timeout).into(),
            connections: Semaphore::new(limits.connections_max),
            turns,
            idle: Mutex::new(Vec::new()),
            table_trouble: Mutex::default(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Begins a read-only transaction when it is its turn. `action` goes into errors: `read 500 cases`.
    pub async fn snapshot(&self, action: &str) -> Result<Snapshot<'_>, SourceError> {
        let action = format!("{action} from {}", self.name);
        // First a connection, then a turn: a read that waits for a busy database must not keep others from a database that is not busy.
        let permit = self.connection_permit(&action).await?;
        let turn = self.turns.take().await;
        self.begin_at(action, permit, Some(turn)).await
    }

    /// Whether a transaction can be begun. Does not wait for a turn: a probe must answer while the source is slow.
    pub async fn check(&self) -> Result<(), SourceError> {
        let action = format!("read from {}", self.name);
        let permit = self.connection_permit(&action).await?;
        self.begin_at(action.clone(), permit, None).await?.finish().await;
        let trouble = self.table_trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble.values().next() {
            Some(reason) => Err(SourceError::Refused { action, reason: reason.clone() }),
            None => Ok(()),
        }
    }

    /// Takes note of what came of a reader's look at the tables, or of a read, for [`Database::check`].
    pub fn note_look<T>(&self, reader: &'static str, look: &Result<T, SourceError>) {
        let mut trouble = self.table_trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match look {
            Ok(_) => drop(trouble.remove(reader)),
            Err(SourceError::Refused { reason, .. }) => drop(trouble.insert(reader, reason.clone())),
            Err(SourceError::Unavailable { .. } | SourceError::AskLess { .. }) => {}
        }
    }

    async fn connection_permit(&self, action: &str) -> Result<SemaphorePermit<'_>, SourceError> {
        self.connections.acquire().await.map_err(|_| SourceError::Unavailable {
            action: action.to_owned(),
            reason: "the connections are being closed".into(),
        })
    }

    async fn begin_at<'d>(
        &'d self,
        action: String,
        permit: SemaphorePermit<'d>,
        turn: Option<Turn>,
    ) -> Result<Snapshot<'d>, SourceError> {
        while let Some(mut connection) = self.take_idle() {
            match self.begin(&mut connection, &action).await {
                Ok(observed_us) => {
                    return Ok(self.snapshot_on(connection, permit, turn, action, observed_us));
                }
                // It broke while idle, and so did probably the others: one of them after the other is given up.
                Err(Begin::Broken) => {}
                Err(Begin::Failed(error)) => return Err(error),
            }
        }
        let mut connection = self.open(&action, turn.as_ref()).await?;
        match self.begin(&mut connection, &action).await {
            Ok(observed_us) => Ok(self.snapshot_on(connection, permit, turn, action, observed_us)),
            Err(Begin::Failed(error)) => Err(error),
            Err(Begin::Broken) => {
                Err(SourceError::Unavailable { action, reason: "the server closed a new connection".into() })
            }
        }
    }

    fn snapshot_on<'d>(
        &'d self,
        connection: PgConnection,
        permit: SemaphorePermit<'d>,
        turn: Option<Turn>,
        action: String,
        observed_us: Option<i64>,
    ) -> Snapshot<'d> {
        Snapshot { database: self, connection, _permit: permit, turn, action, observed_us, tables_are_others: false }
    }

    async fn open(&self, action: &str, turn: Option<&Turn>) -> Result<PgConnection, SourceError> {
        let (host, port) = (self.options.get_host(), self.options.get_port());
        let action = &format!("{action} at {host}:{port}");
        let opened = timeout(self.limits.connect_timeout, self.options.connect()).await;
        if let (Some(turn), true) =
            (turn, opened.as_ref().map_or(true, |opened| opened.as_ref().is_err_and(is_overload)))
        {
            turn.overloaded();
        }
        match opened {
            Ok(opened) => opened.map_err(|error| source_error(action, &error)),
            Err(_) => Err(self.too_slow(action, "no connection", self.limits.connect_timeout)),
        }
    }

    async fn begin(&self, connection: &mut PgConnection, action: &str) -> Result<Option<i64>, Begin> {
        let limit = self.limits.statement_timeout + ANSWER_GRACE;
        let asked = self.clock.asked(self.clock.own_us());
        let begun = sqlx::raw_sql(AssertSqlSafe(self.begin.clone())).fetch_all(&mut *connection);
        match timeout(limit, begun).await {
            Ok(Ok(rows)) => {
                let Some(row) = rows.first() else { return Ok(None) };
                let clock = row.try_get("is_standby").and_then(|is_standby| Ok((is_standby, row.try_get("clock_us")?)));
                let (is_standby, clock_us) = clock.map_err(|error| Begin::Failed(source_error(action, &error)))?;
                Ok(self.observed_at(asked, is_standby, clock_us))
            }
            Ok(Err(error)) if is_broken_connection(&error) => Err(Begin::Broken),
            Ok(Err(error)) => Err(Begin::Failed(source_error(action, &error))),
            Err(_) => Err(Begin::Broken),
        }
    }

    /// When a snapshot was taken, microseconds since 1970; `None` where that cannot be told.
    fn observed_at(&self, asked: Asked<'_>, is_standby: bool, clock_us: Option<i64>) -> Option<i64> {
        // What a standby has may be older than what another one behind the same address had: its time is the true one.
        if is_standby {
            return clock_us;
        }
        if self.role == Role::Replica {
            if !self.is_told.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    database = self.name,
                    "it is no streaming replica (pg_is_in_recovery() is false; a logical replica?) and cannot tell how new it is: the primary is \
                     asked instead; give the address of a streaming replica as replica_url, or leave it out"
                );
            }
            return None;
        }
        let told = asked.answered(clock_us?, self.clock.own_us());
        if told.stepped_back_us > 0 {
            metrics::counter!(metric_names::CLOCK_STEPS_TOTAL).increment(1);
        }
        if told.stepped_back_us >= STEP_TOLD_US {
            let seconds = told.stepped_back_us as f64 / 1e6;
            tracing::warn!(
                database = self.name,
                seconds,
                "the clock of the database has stepped back (a failover?); what this process reads stays in order, but what it and others read may \
                 hide changes that another process reads, for twice as many seconds: have HQ publish the records of that time again then"
            );
        }
        Some(told.observed_us)
    }

    fn take_idle(&self) -> Option<PgConnection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(_, since)| since.elapsed() < IDLE_MAX);
        idle.pop().map(|(connection, _)| connection)
    }

    fn put_idle(&self, connection: PgConnection) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((connection, Instant::now()));
    }

    /// Answers that can be compared: of the same statement on the same database, with about as many ids and rows.
    fn class(&self, sql: &str, size: usize) -> Class {
        let mut hasher = DefaultHasher::new();
        (&self.name, sql, (size + 1).ilog2()).hash(&mut hasher);
        hasher.finish()
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
    /// Runs one statement and hands over its rows one by one. After an error the snapshot is of no more use.
    pub async fn read(
        &mut self,
        sql: &Arc<str>,
        key: Key<'_>,
        mut take: impl FnMut(&PgRow) -> Result<(), sqlx::Error> + Send,
    ) -> Result<(), SourceError> {
        let limits = self.database.limits;
        let query = bound(sql, key, limits.prepared_statements);
        let connection = &mut self.connection;
        let mut count = 0;
        let all = async {
            let mut rows = query.fetch(connection);
            while let Some(row) = rows.try_next().await? {
                count += 1;
                take(&row)?;
            }
            Ok::<(), sqlx::Error>(())
        };
        let limit = limits.statement_timeout + ANSWER_GRACE;
        let began = Instant::now();
        match timeout(limit, all).await {
            Ok(Ok(())) => {
                if let Some(turn) = &self.turn {
                    turn.answered(self.database.class(sql, key.len() + count), began.elapsed());
                }
                Ok(())
            }
            Ok(Err(error)) => Err(self.trouble(sql, key, &error).await),
            Err(_) => {
                self.note_overload();
                Err(self.database.too_slow(&self.action, "no answer", limit))
            }
        }
    }

    /// What a failed statement means. Fewer reads are in flight only where the database is the trouble, not what was asked of it.
    async fn trouble(&mut self, sql: &Arc<str>, key: Key<'_>, error: &sqlx::Error) -> SourceError {
        self.tables_are_others |= is_of_other_tables(error);
        let hindrance = hindrance(error);
        let is_fault_of_key = match hindrance {
            None => false,
            Some(Hindrance::TooLarge) => true,
            Some(Hindrance::TooSlow | Hindrance::Undecodable) => self.answers_about_nothing(sql, key).await,
        };
        if let (Some(hindrance), true) = (hindrance, is_fault_of_key) {
            return SourceError::AskLess { action: self.action.clone(), hindrance, reason: reason(error) };
        }
        if is_overload(error) {
            self.note_overload();
        }
        source_error(&*self.action, error)
    }

    /// Whether the same statement, which has failed, is answered quickly when it asks for nothing.
    async fn answers_about_nothing(&mut self, sql: &Arc<str>, key: Key<'_>) -> bool {
        let Some(nothing) = key.about_nothing() else { return false };
        let limits = self.database.limits;
        let limit = (limits.statement_timeout / ANSWER_ABOUT_NOTHING_SHARE).max(ANSWER_ABOUT_NOTHING_LEAST);
        let (begin, connection) = (Arc::clone(&self.database.begin), &mut self.connection);
        let asked = async {
            sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await?;
            sqlx::raw_sql(AssertSqlSafe(begin)).fetch_all(&mut *connection).await?;
            bound(sql, nothing, limits.prepared_statements).fetch_all(&mut *connection).await
        };
        matches!(timeout(limit, asked).await, Ok(Ok(_)))
    }

    fn note_overload(&self) {
        if let Some(turn) = &self.turn {
            turn.overloaded();
        }
    }

    /// Whether a statement named a table or column that is not there: the tables are to be looked at again.
    pub const fn tables_are_others(&self) -> bool {
        self.tables_are_others
    }

    /// The database's clock, as an error where there is none.
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
        self.connections.close();
    }
}

/// The options of an address, without connecting to it. The error does not show the address.
pub(super) fn connect_options(name: &str, url: &str) -> Result<PgConnectOptions, SourceError> {
    // sqlx takes any scheme. The parser's words would repeat parts of the address, so they are not shown.
    let is_postgres = url.starts_with("postgres://") || url.starts_with("postgresql://");
    let parsed = PgConnectOptions::from_str(url).ok().filter(|_| is_postgres);
    let options = parsed.ok_or_else(|| SourceError::Refused {
        action: format!("use the address of the {name}"),
        reason: "it is not of the form postgres://user:password@host:port/database".into(),
    })?;
    // pgbouncer refuses start-up parameters that it does not know; floats are read as text or by a cast.
    Ok(options.extra_float_digits(None).application_name("commcare-lake").disable_statement_logging())
}

/// One message, so that clock and snapshot are microseconds apart: `transaction_timestamp()` is when the server got it, and the
/// SELECT takes the snapshot of the whole transaction. (A clock asked for by a later statement would be later than the snapshot.)
/// A standby's clock is that of the newest transaction it has.
fn begin_statement(statement_timeout: Duration) -> String {
    format!(
        "BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; \
         SELECT set_config('statement_timeout', '{}', true) AS statement_timeout, \
         pg_is_in_recovery() AS is_standby, \
         (extract(epoch from CASE WHEN pg_is_in_recovery() THEN pg_last_xact_replay_timestamp() \
         ELSE transaction_timestamp() END) * 1000000)::bigint AS clock_us",
        statement_timeout.as_millis()
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_wrong_address_is_refused_without_being_shown() {
        for url in ["", "mysql://hq:secret@db/x", "postgres://hq:secret@db:port/x"] {
            let error = connect_options("main database", url).err();
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
