//! Backfills as the metastore keeps them: operations that may rest, the parts that each of them reads, and what fetchers were heard to take.

use async_trait::async_trait;

use super::MetastoreError;
use super::steering::OperationRecord;

pub(super) mod contract;
mod sql;

pub(super) use self::sql::backfills_adapter;

/// What a backfill reads by itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackfillPart {
    /// Its name: that of one of HQ's databases, or `ids 1` and so on.
    pub part: String,
    /// Its place among the parts.
    pub number: i64,
    /// How many documents it may have.
    pub estimate: i64,
    /// Up to which primary key HQ's table was read; of ids, how many were asked for.
    pub reached: i64,
    /// Documents that were read.
    pub documents: i64,
    /// Whether there is no more.
    pub finished: bool,
    /// Why it cannot be read and never will be; empty where it can.
    pub refused: String,
}

/// A stretch of a part that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StretchRead {
    /// The operation.
    pub operation_id: String,
    /// Name of the part.
    pub part: String,
    /// Where the stretch began.
    pub after: i64,
    /// Where the next one begins.
    pub reached: i64,
    /// Documents of the stretch.
    pub documents: i64,
    /// Whether there is no more.
    pub finished: bool,
    /// Why it cannot be read; empty where it was.
    pub refused: String,
}

/// How far a backfill is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BackfillProgress {
    /// Documents that were read.
    pub done: i64,
    /// Documents in all; `None` while that is not known.
    pub total: Option<i64>,
    /// Documents a second lately; `None` while that is not known.
    pub per_second: Option<f64>,
}

/// What operators want of a backfill that runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// That it goes on.
    GoOn,
    /// That it rests.
    Rest,
    /// That it ends early.
    End,
}

/// An entry of an allow-list of the fetchers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TakenEntry {
    /// The list: `domains`, `case_types` or `form_xmlns`.
    pub list: String,
    /// The entry.
    pub entry: String,
    /// Since when it was heard of, microseconds, by the database's clock.
    pub since_us: i64,
}

/// The part of the metastore that is about backfills. Every call is atomic and may be repeated.
///
/// # Errors
///
/// As for [`super::Metastore`].
#[async_trait]
pub trait Backfills {
    /// Begins the oldest backfill that waits, or that a writer began which does not hold the lease any more. Fenced. `None`: there is none.
    async fn begin_backfill(&self) -> Result<Option<OperationRecord>, MetastoreError>;

    /// Says how far a backfill is that this writer works on. Fenced. Answers what operators want.
    async fn backfill_goes_on(&self, id: &str, progress: &BackfillProgress) -> Result<Wish, MetastoreError>;

    /// Asks a backfill to rest; one that has not begun rests at once, of one that has ended nothing changes. Answers the operation then; `None`:
    /// there is no such backfill.
    async fn pause_backfill(&self, id: &str) -> Result<Option<OperationRecord>, MetastoreError>;

    /// Lets a backfill go on that rests or was asked to. Answers the operation then; `None`: there is no such backfill.
    async fn resume_backfill(&self, id: &str) -> Result<Option<OperationRecord>, MetastoreError>;

    /// Lets a backfill rest that this writer works on, if that is still wanted. Fenced. Answers whether it rests.
    async fn rest_backfill(&self, id: &str) -> Result<bool, MetastoreError>;

    /// Keeps the parts of a backfill; those that are there already stay as they are. Fenced.
    async fn keep_backfill_parts(&self, id: &str, parts: &[BackfillPart]) -> Result<(), MetastoreError>;

    /// The parts of a backfill, in their order.
    async fn backfill_parts(&self, id: &str) -> Result<Vec<BackfillPart>, MetastoreError>;

    /// Keeps that a stretch was read. Answers whether the part was where the stretch begins; otherwise nothing changes, it is known already.
    async fn stretch_was_read(&self, stretch: &StretchRead) -> Result<bool, MetastoreError>;

    /// Keeps what fetchers take, as pairs of list and entry: new entries since now, and none that they do not take any more. Fenced. Answers the new
    /// ones.
    async fn note_taken(
        &self,
        entries: &[(&'static str, String)],
    ) -> Result<Vec<(&'static str, String)>, MetastoreError>;

    /// What fetchers take, by list and entry.
    async fn taken(&self) -> Result<Vec<TakenEntry>, MetastoreError>;

    /// The backfills that were asked for and have neither failed nor been cancelled, newest first, without those that only plan.
    async fn backfills_asked(&self) -> Result<Vec<OperationRecord>, MetastoreError>;
}
