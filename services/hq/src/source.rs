//! Ports to HQ: its database, its blob store, its users. Adapters: [`crate::postgres`], [`crate::blobs`], [`crate::users`], and
//! the simulated HQ of the tests and the demo.
//!
//! Ports give rows, not documents: what HQ's `to_json` makes of rows is one pure piece of code ([`crate::documents`]) for all adapters.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::pace::Pace;
use crate::scan::compared::HqComparison;
use crate::scan::{ScanScope, ScannedKeys, ShardEstimate};

pub use crate::source_error::{Hindrance, SourceError};

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

/// An id to be read in its latest state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The id as the message has it.
    pub id: String,
    /// When HQ said that it changed, microseconds; 0 where that is not known. A replica that has no transaction as new as that may not
    /// know of the change, and does not count.
    pub changed_us: i64,
    /// Whether HQ said that it was deleted: a replica is not asked, it might still have the row.
    pub deleted: bool,
    /// Whether its rows may take as much memory as [`HqDatabase::record_bytes_max`] says. For an id that is asked for alone.
    pub alone: bool,
}

/// The state of one id at the moment of a reading.
#[derive(Clone, Debug, PartialEq)]
pub struct Observation<T> {
    /// The id that was asked for, untouched.
    pub id: String,
    /// The database's own clock when it was asked (for a replica: of the newest transaction it has), in microseconds.
    /// For one id, a greater value means a later state: this is what orders. (A clock that steps back is corrected as far as one process can.)
    pub observed_us: i64,
    /// The rows; `None` where HQ has no such id.
    pub rows: Option<T>,
}

/// The rows that `CommCareCase.to_json()` needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CaseRows {
    /// The row of `form_processor_commcarecasesql`.
    pub case: Columns,
    /// Rows of `form_processor_commcarecaseindexsql`, by `id`.
    pub indices: Vec<Columns>,
    /// Rows of `form_processor_casetransaction` that are not revoked, by `server_date`, `id`. Empty where not asked for.
    pub transactions: Vec<Columns>,
    /// Rows of `form_processor_caseattachmentsql`, by `id`.
    pub attachments: Vec<Columns>,
    /// Rows of `form_processor_ledgervalue`, by `section_id`, `entry_id`; `None` where not asked for.
    pub ledger_values: Option<Vec<Columns>>,
}

/// The rows that `XFormInstance.to_json()` needs besides the XML itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FormRows {
    /// The row of `form_processor_xforminstancesql`.
    pub form: Columns,
    /// Rows of `form_processor_xformoperationsql`, by `date`, `id`.
    pub operations: Vec<Columns>,
    /// Where the XML is, from `blobs_blobmeta`; `None` where HQ has no such row.
    pub xml: Option<BlobReference>,
    /// All rows of `blobs_blobmeta` that belong to the form, its XML included, by `id`; `None` where not asked for.
    pub blobs: Option<Vec<Columns>>,
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
    /// Project space of the location.
    pub domain: String,
    /// Name, may be null.
    pub name: Option<String>,
    /// Name of its type, `locations_locationtype.name`.
    pub type_name: String,
    /// Code of its type, `locations_locationtype.code`.
    pub type_code: Option<String>,
    /// Unique within the domain.
    pub site_code: String,
    /// Id in some other system.
    pub external_id: Option<String>,
    /// Custom fields: text of a JSON object.
    pub metadata: String,
    /// Latitude in degrees; HQ shows 0 as null.
    pub latitude: Option<f64>,
    /// Longitude in degrees; HQ shows 0 as null.
    pub longitude: Option<f64>,
    /// Whether it is archived: hidden in HQ, still an ancestor.
    pub is_archived: bool,
    /// When it was archived, in microseconds since 1970.
    pub archived_on_us: Option<i64>,
    /// When it was last saved, in microseconds since 1970.
    pub last_modified_us: i64,
    /// `id` of the parent; `None` at the top.
    pub parent_id: Option<i64>,
}

impl CaseRows {
    /// About how many bytes of memory they take.
    pub fn memory(&self) -> usize {
        let ledger_values = self.ledger_values.as_deref().unwrap_or_default();
        let belonging = [&*self.indices, &*self.transactions, &*self.attachments, ledger_values];
        memory_of(&self.case) + belonging.into_iter().flatten().map(memory_of).sum::<usize>()
    }
}

impl FormRows {
    /// About how many bytes of memory they take.
    pub fn memory(&self) -> usize {
        let blobs = self.blobs.as_deref().unwrap_or_default();
        memory_of(&self.form) + self.operations.iter().chain(blobs).map(memory_of).sum::<usize>()
    }
}

/// What a location type is known by. Its code, which HQ makes of the first name and keeps when the type is renamed, or is deleted and made
/// again; a type without a code by its name. The type that is named `supervisor` is known by that, as its column is promised.
pub fn location_type_key<'t>(name: &'t str, code: Option<&'t str>) -> &'t str {
    const SUPERVISOR: &str = "supervisor";
    match code.filter(|code| !code.is_empty() && name != SUPERVISOR) {
        Some(code) => code,
        None => name,
    }
}

impl LocationRow {
    /// What its type is known by.
    pub fn type_key(&self) -> &str {
        location_type_key(&self.type_name, self.type_code.as_deref())
    }

    /// What a tree in memory holds of it.
    pub fn node(&self, type_id: i64) -> LocationNode<'_> {
        LocationNode {
            id: self.id,
            location_id: &self.location_id,
            name: self.name.as_deref(),
            type_id,
            type_key: self.type_key(),
            site_code: &self.site_code,
            latitude: self.latitude,
            longitude: self.longitude,
            is_archived: self.is_archived,
            last_modified_us: self.last_modified_us,
            parent_id: self.parent_id,
        }
    }
}

/// The answer to [`HqDatabase::location_rows`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LocationRows {
    /// The database's clock when it was asked, in microseconds.
    pub observed_us: i64,
    /// In no particular order, archived ones included.
    pub rows: Vec<LocationRow>,
}

/// A row of `locations_locationtype`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocationTypeRow {
    /// Primary key.
    pub id: i64,
    /// Project space of the type.
    pub domain: String,
    /// Its name, which HQ's users change.
    pub name: String,
    /// Its code; old types have none.
    pub code: Option<String>,
    /// When it was last saved, in microseconds since 1970; 0 in an HQ that does not note it.
    pub last_modified_us: i64,
}

/// Most locations of a type that are told at a time.
pub const LOCATIONS_OF_TYPE_MAX: usize = 1_000;

/// Which locations to read.
#[derive(Clone, Copy, Debug)]
pub enum LocationKeys<'k> {
    /// Those with these `location_id`s.
    LocationIds(&'k [String]),
    /// Those with these primary keys.
    Ids(&'k [i64]),
}

/// One location on the path from a location up to the root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocationStep {
    /// Primary key in HQ's database.
    pub id: i64,
    /// Identity outside the database.
    pub location_id: String,
    /// Project space of the location.
    pub domain: String,
    /// `id` of the parent; `None` at the top.
    pub parent_id: Option<i64>,
}

/// What a tree in memory needs of a location: no custom fields, nothing of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LocationNode<'r> {
    /// Primary key, the target of `parent_id`.
    pub id: i64,
    /// Identity outside the database.
    pub location_id: &'r str,
    /// Name, may be null.
    pub name: Option<&'r str>,
    /// Primary key of its type, `locations_locationtype.id`.
    pub type_id: i64,
    /// What its type is known by, see [`location_type_key`].
    pub type_key: &'r str,
    /// Unique within the domain.
    pub site_code: &'r str,
    /// Latitude in degrees; HQ shows 0 as null.
    pub latitude: Option<f64>,
    /// Longitude in degrees; HQ shows 0 as null.
    pub longitude: Option<f64>,
    /// Whether it is archived: hidden in HQ, still an ancestor.
    pub is_archived: bool,
    /// When it was last saved, in microseconds since 1970.
    pub last_modified_us: i64,
    /// `id` of the parent; `None` at the top.
    pub parent_id: Option<i64>,
}

/// One row of the answer to [`HqDatabase::location_tree`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TreeRow<'r> {
    /// A location type of the domain, whether a location has it or not.
    Type {
        /// Its primary key, `locations_locationtype.id`.
        id: i64,
        /// What it is known by, see [`location_type_key`].
        key: &'r str,
    },
    /// A location of the domain.
    Location(LocationNode<'r>),
    /// How many locations the domain has.
    Count(i64),
}

/// Takes the rows of a tree one by one.
pub type TakeTreeRow<'t> = dyn for<'r> FnMut(TreeRow<'r>) + Send + 't;

/// How much of a domain's tree to read.
#[derive(Clone, Copy, Debug)]
pub enum TreeExtent<'e> {
    /// All locations of the domain.
    Whole,
    /// The locations that changed.
    Changed {
        /// Those with `last_modified` at this time or later, microseconds.
        since_us: i64,
        /// And those with these `location_id`s.
        location_ids: &'e [String],
        /// Most rows to read.
        rows_max: usize,
        /// Whether to count all locations of the domain too.
        count: bool,
    },
}

/// What [`HqDatabase::record_bytes_max`] is where nothing else is configured.
pub const RECORD_BYTES_MAX: usize = 48 << 20;

/// Most bytes of memory that the rows of so many cases or forms take, when they are asked for together. Where there are more, the answer is
/// [`SourceError::AskLess`]; so a caller can set memory aside before it asks.
pub fn answer_bytes_max(ids: usize) -> usize {
    const OF_ONE: usize = 24 << 10;
    const LEAST: usize = 4 << 20;
    const MOST: usize = 24 << 20;
    ids.saturating_mul(OF_ONE).clamp(LEAST, MOST)
}

/// About how many bytes of memory a row takes.
pub fn memory_of(row: &Columns) -> usize {
    /// Of an entry: what the map and the allocator need beside the texts.
    const ENTRY: usize = size_of::<(String, Value)>() + 32;
    let text = |value: &Value| value.as_str().map_or(0, str::len);
    row.iter().map(|(name, value)| ENTRY + name.len() + text(value)).sum()
}

/// HQ's databases, shards and main together. Each method fails with [`SourceError::Unavailable`] where trying again later helps, with
/// [`SourceError::AskLess`] where asking for fewer ids helps, and with [`SourceError::Refused`] where only an operator helps.
#[async_trait]
pub trait HqDatabase: HqComparison + Send + Sync + 'static {
    /// Most bytes of memory that the rows of a record take which is asked for alone.
    fn record_bytes_max(&self) -> usize {
        RECORD_BYTES_MAX
    }

    /// How much it is asked at once. `None`: that is not limited.
    fn pace(&self) -> Option<Pace> {
        None
    }

    /// Reads cases. Answers each different id once, in any order; soft-deleted cases are found; domains are not checked. A single id is
    /// asked for alone.
    async fn cases(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Observation<CaseRows>>, SourceError>;

    /// Reads forms of every state, by the rules of [`HqDatabase::cases`].
    async fn forms(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Observation<FormRows>>, SourceError>;

    /// Reads cases as they are now, or later. Replicas are preferred; what they do not have (yet) is read from the primary. Answers each
    /// different id once. An adapter without replicas has nothing to choose.
    async fn latest_cases(&self, wanted: &[Wanted]) -> Result<Vec<Observation<CaseRows>>, SourceError> {
        let ids: Vec<String> = wanted.iter().map(|wanted| wanted.id.clone()).collect();
        self.cases(&ids, ReadFrom::Primary).await
    }

    /// Reads forms as they are now, or later, by the rules of [`HqDatabase::latest_cases`].
    async fn latest_forms(&self, wanted: &[Wanted]) -> Result<Vec<Observation<FormRows>>, SourceError> {
        let ids: Vec<String> = wanted.iter().map(|wanted| wanted.id.clone()).collect();
        self.forms(&ids, ReadFrom::Primary).await
    }

    /// Reads locations of whatever domain, in one statement. Those that HQ does not have are missing in the answer.
    async fn location_rows(&self, keys: LocationKeys<'_>) -> Result<LocationRows, SourceError>;

    /// These locations and everything above them within their domains, each once, in one statement; ends at circles.
    async fn location_ancestors(&self, ids: &[i64]) -> Result<Vec<LocationStep>, SourceError>;

    /// `(id, parent_id)` of the locations directly below these, within their domains, in one statement.
    async fn location_children(&self, parent_ids: &[i64]) -> Result<Vec<(i64, i64)>, SourceError>;

    /// Reads the location tree of a domain, or what changed of it, and all its location types, in one statement, and hands over the
    /// rows as they come, in any order. The database's clock when it was asked, in microseconds. After an error some rows have been handed over.
    async fn location_tree(
        &self,
        domain: &str,
        extent: TreeExtent<'_>,
        take: &mut TakeTreeRow<'_>,
    ) -> Result<i64, SourceError>;

    /// The location types of all domains that were saved at this time or later, microseconds of `last_modified`, in one statement; all of them
    /// in an HQ that does not note it.
    async fn location_types(&self, since_us: i64) -> Result<Vec<LocationTypeRow>, SourceError>;

    /// Primary keys of the locations of a type, ascending from those greater than `after`, at most [`LOCATIONS_OF_TYPE_MAX`], in one statement.
    async fn locations_of_type(&self, type_id: i64, after: i64) -> Result<Vec<i64>, SourceError>;

    /// How many documents each database has of a scope, as its planner guesses.
    async fn scan_estimates(&self, scope: &ScanScope) -> Result<Vec<ShardEstimate>, SourceError>;

    /// Keys of at most so many documents of a database, ascending from those greater than `after`; perhaps none, although it is not finished. `None`:
    /// there is no database of that name.
    async fn scan_keys(
        &self,
        scope: &ScanScope,
        shard: &str,
        after: i64,
        keys_max: usize,
    ) -> Result<Option<ScannedKeys>, SourceError>;

    /// Whether it can be read now; for `/ready`.
    async fn check(&self) -> Result<(), SourceError>;
}

/// What the blob stores have under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blob {
    /// The bytes, uncompressed.
    Found(Bytes),
    /// No store has it.
    Missing,
    /// It has more bytes, uncompressed, than may be read.
    TooLarge {
        /// So many bytes may be read.
        size_max: u64,
    },
}

impl Blob {
    /// The bytes, where they were read.
    pub fn bytes(self) -> Option<Bytes> {
        match self {
            Self::Found(bytes) => Some(bytes),
            Self::Missing | Self::TooLarge { .. } => None,
        }
    }
}

/// HQ's blob store, or several in the order in which HQ asks them.
#[async_trait]
pub trait BlobStore: Send + Sync + 'static {
    /// How much they are asked at once. `None`: that is not limited.
    fn pace(&self) -> Option<Pace> {
        None
    }

    /// What is under a key.
    async fn get(&self, blob: &BlobReference) -> Result<Blob, SourceError>;

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
    /// Cases, forms and locations.
    pub database: Arc<dyn HqDatabase>,
    /// Stores of form XML.
    pub blobs: Arc<dyn BlobStore>,
    /// Directory of users and their locations.
    pub users: Arc<dyn UserDirectory>,
}
