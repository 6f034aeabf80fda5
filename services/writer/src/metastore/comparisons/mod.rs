//! Comparisons of the lake with HQ as the metastore keeps them: operations with a runner of their own, and what they have found.

use async_trait::async_trait;

use super::MetastoreError;
use super::steering::OperationRecord;

pub(super) mod contract;
mod sql;

pub(super) use self::sql::comparisons_adapter;

/// How a document differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DifferenceClass {
    /// HQ has it, the lake does not.
    Missing,
    /// The lake shows another save of it.
    Stale,
    /// The lake has it, HQ does not, or not live.
    Extra,
    /// The lake has it in the table of another type.
    Moved,
}

impl DifferenceClass {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Missing, Self::Stale, Self::Extra, Self::Moved];

    /// The code by which it is stored and counted.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Stale => "stale",
            Self::Extra => "extra",
            Self::Moved => "moved",
        }
    }
}

/// A document in which HQ and the lake differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its id.
    pub id: String,
    /// How it differs.
    pub class: DifferenceClass,
    /// Its type in the lake; empty where the lake does not have it.
    pub lake_type: String,
    /// Its type in HQ; empty where HQ does not have it.
    pub hq_type: String,
    /// When HQ had saved what the lake has, microseconds.
    pub lake_saved_us: Option<i64>,
    /// When HQ has saved it, microseconds.
    pub hq_saved_us: Option<i64>,
}

/// The part of the metastore that is about comparisons. Every call is atomic and may be repeated.
///
/// # Errors
///
/// As for [`super::Metastore`].
#[async_trait]
pub trait Comparisons {
    /// Begins the oldest comparison that waits, or that a writer began which does not hold the lease any more. Fenced. `None`: there is none.
    async fn begin_reconcile(&self) -> Result<Option<OperationRecord>, MetastoreError>;

    /// Keeps what a comparison has found, in place of what was kept of it before. Fenced.
    async fn keep_differences(&self, id: &str, differences: &[Difference]) -> Result<(), MetastoreError>;

    /// What a comparison has found, by id: the first ones behind an id.
    async fn differences(&self, id: &str, behind: &str, limit: u32) -> Result<Vec<Difference>, MetastoreError>;
}
