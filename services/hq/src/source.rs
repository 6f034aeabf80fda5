//! Ports to HQ: its database, its blob store, its users. Adapters: [`crate::postgres`], [`crate::blobs`], [`crate::users`], and
//! the simulated HQ of the tests and the demo.
//!
//! Ports give rows, not documents: what HQ's `to_json` makes of rows is one pure piece of code ([`crate::documents`]) for all adapters.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, Value};

/// One row: column name → value. Datetimes are text `YYYY-MM-DDTHH:MM:SS.ffffffZ`, JSON columns are their text as stored,
/// numerics are text, everything else as JSON has it.
pub type Columns = Map<String, Value>;

/// Which copy of the database to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadFrom {
    /// A replica where there is one.
    Replica,
    /// The primary: for rows that a replica does not have (yet), and for what is known to have been deleted.
    Primary,
}

/// What was seen of one id.
#[derive(Clone, Debug, PartialEq)]
pub struct Sighting<T> {
    /// The id that was asked for, untouched.
    pub id: String,
    /// The database's own clock when it was asked (for a replica: of the newest transaction it has), in microseconds.
    /// For one id, a greater value means a later state; this is what orders a deletion against an upsert.
    pub observed_us: i64,
    /// The rows; `None` where HQ has no such id.
    pub rows: Option<T>,
}

/// Everything `CommCareCase.to_json()` needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CaseRows {
    /// `form_processor_commcarecasesql`.
    pub case: Columns,
    /// `form_processor_commcarecaseindexsql`, by `id`.
    pub indices: Vec<Columns>,
    /// `form_processor_casetransaction`, not revoked ones, by `server_date`, `id`. Empty where not asked for.
    pub transactions: Vec<Columns>,
    /// `form_processor_caseattachmentsql`.
    pub attachments: Vec<Columns>,
}

/// Everything `XFormInstance.to_json()` needs besides the XML itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FormRows {
    /// `form_processor_xforminstancesql`.
    pub form: Columns,
    /// `form_processor_xformoperationsql`, by `date`, `id`.
    pub operations: Vec<Columns>,
    /// Where the XML is, from `blobs_blobmeta`; `None` where HQ has no such row.
    pub xml: Option<BlobReference>,
}

/// A row of `blobs_blobmeta`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobReference {
    /// Key in the blob store.
    pub key: String,
    /// Whether it is stored gzip-compressed (`compressed_length` is not null).
    pub compressed: bool,
    /// Uncompressed size in bytes.
    pub content_length: i64,
}

/// A row of `locations_sqllocation` with its type.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocationRow {
    /// Primary key, the target of `parent_id`.
    pub id: i64,
    /// Identity outside the database.
    pub location_id: String,
    /// Project space.
    pub domain: String,
    /// Name, may be null.
    pub name: Option<String>,
    /// `locations_locationtype.name`.
    pub type_name: String,
    /// `locations_locationtype.code`.
    pub type_code: Option<String>,
    /// Unique within the domain.
    pub site_code: String,
    /// Id in some other system.
    pub external_id: Option<String>,
    /// Custom fields: text of a JSON object.
    pub metadata: String,
    /// Degrees.
    pub latitude: Option<f64>,
    /// Degrees.
    pub longitude: Option<f64>,
    /// Hidden in HQ, still an ancestor.
    pub is_archived: bool,
    /// Microseconds.
    pub archived_on_us: Option<i64>,
    /// Microseconds.
    pub last_modified_us: i64,
    /// `id` of the parent; `None` at the top.
    pub parent_id: Option<i64>,
}

/// All locations of one domain, archived ones included.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocationRows {
    /// The database's clock when it was asked, in microseconds.
    pub observed_us: i64,
    /// In no particular order.
    pub rows: Vec<LocationRow>,
}

/// Trouble with HQ or its stores.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Passing: not reachable, time-out, overloaded. Try again later.
    #[error("cannot {action} now ({reason}); will be tried again")]
    Unavailable {
        /// What was tried, for example `read 500 cases from shard database p1`.
        action: String,
        /// What the other side says, without secrets.
        reason: String,
    },
    /// Lasting: missing table or column, no permission, wrong password. Somebody has to act.
    #[error("cannot {action}: {reason}")]
    Refused {
        /// What was tried.
        action: String,
        /// What the other side says and what to do, without secrets.
        reason: String,
    },
}

/// HQ's database: shards and main together.
#[async_trait]
pub trait HqDatabase: Send + Sync + 'static {
    /// Reads cases. Answers each different id once, in any order; soft-deleted cases are found; domains are not checked.
    async fn cases(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Sighting<CaseRows>>, SourceError>;

    /// Reads forms of every state. Same rules.
    async fn forms(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Sighting<FormRows>>, SourceError>;

    /// Finds the domain of each location. Same rules.
    async fn location_domains(&self, ids: &[String]) -> Result<Vec<Sighting<String>>, SourceError>;

    /// The whole location tree of a domain, in one statement.
    async fn locations(&self, domain: &str) -> Result<LocationRows, SourceError>;

    /// Whether it can be read now; for `/ready`.
    async fn check(&self) -> Result<(), SourceError>;
}

/// HQ's blob store, or several in the order in which HQ asks them.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// The bytes under a key, uncompressed; `None` where no store has it.
    async fn get(&self, blob: &BlobReference) -> Result<Option<Bytes>, SourceError>;

    /// Whether it can be read now; for `/ready`.
    async fn check(&self) -> Result<(), SourceError>;
}

/// Where HQ's users are assigned.
#[async_trait]
pub trait UserDirectory: Send + Sync + 'static {
    /// The primary location of each user in this domain. Every id that was asked for is answered; `None` where there is no such user
    /// or no location.
    async fn locations(
        &self,
        domain: &str,
        user_ids: &[String],
    ) -> Result<HashMap<String, Option<String>>, SourceError>;

    /// Whether it can be asked now; for `/ready`.
    async fn check(&self) -> Result<(), SourceError>;
}

/// The ports of one HQ, as the services hold them.
#[derive(Clone)]
pub struct Hq {
    /// Rows.
    pub database: Arc<dyn HqDatabase>,
    /// Form XML.
    pub blobs: Arc<dyn BlobStore>,
    /// Users.
    pub users: Arc<dyn UserDirectory>,
}
