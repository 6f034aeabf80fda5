//! Erased records as the metastore keeps them: that they were erased, and whether they are kept out. Their ids are not kept, only hashes of them.

use async_trait::async_trait;
use lake_shared::identity::Space;

use super::MetastoreError;
use super::steering::Behind;

pub(super) mod contract;
pub(super) mod masked;
pub mod record_ids;
pub(super) mod rows;
mod sql;

pub(super) use self::sql::erasures_adapter;

/// A record that was erased. Times are microseconds since 1970, by the database's clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErasureRecord {
    /// Where it was.
    pub space: Space,
    /// Hash of its id; see [`record_ids::erasure_hash`].
    pub id_hash: String,
    /// Since when it is kept out.
    pub since_us: i64,
    /// Who asked for it.
    pub asked_by: String,
    /// The operation that erases it, or has done so last.
    pub operation_id: String,
    /// When nothing of it was left; `None`: not yet.
    pub erased_us: Option<i64>,
    /// What the operation did, of all its records together, as a JSON object of whole numbers.
    pub report: String,
    /// Since when it may come back; `None`: it is kept out.
    pub allowed_us: Option<i64>,
    /// Who let it; empty: nobody has.
    pub allowed_by: String,
}

/// The part of the metastore that is about erased records. Every call is atomic and may be repeated.
///
/// # Errors
///
/// As for [`super::Metastore`].
#[async_trait]
pub trait Erasures {
    /// Keeps records out from now on, each given by the hash of its id: no entry about one comes into quarantine any more, and no row of one
    /// into its table. Fenced. One that is kept out already stays so since then, and belongs to this operation.
    async fn keep_out(
        &self,
        space: &Space,
        hashes: &[String],
        asked_by: &str,
        operation_id: &str,
    ) -> Result<(), MetastoreError>;

    /// Removes the ids of records from what operations and the audit say, and from what comparisons have found. Fenced. Answers in how many rows that
    /// was.
    async fn mask_ids(&self, space: &Space, ids: &[String]) -> Result<u64, MetastoreError>;

    /// Keeps that nothing is left of the records of an operation, and what it did. Fenced.
    async fn records_erased(&self, operation_id: &str, report: &str) -> Result<(), MetastoreError>;

    /// Lets records in again that are kept out. Fenced. Answers how many those were.
    async fn let_in(&self, space: &Space, hashes: &[String], allowed_by: &str) -> Result<u64, MetastoreError>;

    /// The hashes of the records of a space that are kept out.
    async fn kept_out(&self, space: &Space) -> Result<Vec<String>, MetastoreError>;

    /// What is known of records with these hashes, in any order.
    async fn erasures_of(&self, hashes: &[String]) -> Result<Vec<ErasureRecord>, MetastoreError>;

    /// Erased records, those that were kept out last first; of these domains, or of all.
    async fn erasures(
        &self,
        domains: Option<&[String]>,
        behind: Option<&Behind>,
        limit: u32,
    ) -> Result<Vec<ErasureRecord>, MetastoreError>;
}
