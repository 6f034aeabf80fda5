//! What one turn of the simulated life changes in HQ, and what HQ says of it on Kafka.

use lake_hq::source::Columns;
use serde_json::Value;

/// A table of HQ; decides which database a row goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// `form_processor_commcarecasesql`, sharded by `case_id`.
    Case,
    /// `form_processor_commcarecaseindexsql`, sharded by `case_id`.
    CaseIndex,
    /// `form_processor_casetransaction`, sharded by `case_id`.
    CaseTransaction,
    /// `form_processor_xforminstancesql`, sharded by `form_id`.
    Form,
    /// `form_processor_xformoperationsql`, sharded by `form_id`.
    FormOperation,
    /// `blobs_blobmeta`, sharded by `parent_id`.
    BlobMeta,
    /// `locations_locationtype`, main database.
    LocationType,
    /// `locations_sqllocation`, main database.
    Location,
}

impl Table {
    /// All tables, in the order of their numbers.
    pub const ALL: [Self; 8] = [
        Self::Case,
        Self::CaseIndex,
        Self::CaseTransaction,
        Self::Form,
        Self::FormOperation,
        Self::BlobMeta,
        Self::LocationType,
        Self::Location,
    ];

    /// HQ's name of it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Case => "form_processor_commcarecasesql",
            Self::CaseIndex => "form_processor_commcarecaseindexsql",
            Self::CaseTransaction => "form_processor_casetransaction",
            Self::Form => "form_processor_xforminstancesql",
            Self::FormOperation => "form_processor_xformoperationsql",
            Self::BlobMeta => "blobs_blobmeta",
            Self::LocationType => "locations_locationtype",
            Self::Location => "locations_sqllocation",
        }
    }

    /// The column whose value decides the shard; `None` for tables of the main database.
    pub const fn shard_column(self) -> Option<&'static str> {
        match self {
            Self::Case | Self::CaseIndex | Self::CaseTransaction => Some("case_id"),
            Self::Form | Self::FormOperation => Some("form_id"),
            Self::BlobMeta => Some("parent_id"),
            Self::LocationType | Self::Location => None,
        }
    }

    /// The columns that identify a row. (`id` is a serial of each shard database; for the main database's tables the life gives it.)
    pub const fn key_columns(self) -> &'static [&'static str] {
        match self {
            Self::Case => &["case_id"],
            Self::CaseIndex => &["case_id", "identifier"],
            Self::CaseTransaction => &["case_id", "form_id", "type"],
            Self::Form => &["form_id"],
            Self::FormOperation => &["form_id", "operation", "date"],
            Self::BlobMeta => &["key"],
            Self::LocationType | Self::Location => &["id"],
        }
    }
}

/// One change of HQ's stores.
#[derive(Clone, Debug, PartialEq)]
pub enum Mutation {
    /// Inserts the row, or replaces the one with the same key columns. Complete rows (without the serial `id` of sharded tables);
    /// datetimes are text `YYYY-MM-DDTHH:MM:SS.ffffffZ`, JSON columns their text.
    Put {
        /// The table of the row.
        table: Table,
        /// Column to value.
        row: Columns,
    },
    /// Removes all rows whose columns equal these (a subset of columns; includes the shard column where the table has one).
    Remove {
        /// The table of the rows.
        table: Table,
        /// Column to value; all must be equal.
        matching: Columns,
    },
    /// Writes a blob.
    PutBlob {
        /// Key in the blob store.
        key: String,
        /// What to store, uncompressed.
        content: Vec<u8>,
        /// Whether to store it gzip-compressed.
        gzip: bool,
    },
    /// Removes a blob.
    RemoveBlob {
        /// Key in the blob store.
        key: String,
    },
    /// Writes a user's CouchDB document (`_id` inside), `CommCareUser` or `WebUser` (reference §7.1).
    PutUser {
        /// The document as CouchDB has it.
        document: Value,
    },
    /// Removes a user's document.
    RemoveUser {
        /// `_id`.
        id: String,
    },
}

impl Mutation {
    /// Puts a row, given as JSON.
    ///
    /// # Panics
    /// When it is not an object.
    pub fn put(table: Table, row: Value) -> Self {
        Self::Put { table, row: columns(row) }
    }

    /// Removes rows with these values, given as JSON.
    ///
    /// # Panics
    /// When it is not an object.
    pub fn remove(table: Table, matching: Value) -> Self {
        Self::Remove { table, matching: columns(matching) }
    }
}

fn columns(row: Value) -> Columns {
    let Value::Object(columns) = row else { panic!("a row is an object, not {row}") };
    columns
}

/// One message on Kafka.
#[derive(Clone, Debug, PartialEq)]
pub struct ChangeMessage {
    /// Name of the topic.
    pub topic: &'static str,
    /// Key of the message; old HQ versions wrote none.
    pub key: Option<String>,
    /// ChangeMeta JSON; or, from a saboteur, anything.
    pub value: Vec<u8>,
}

/// One turn of life: first all mutations (one HQ transaction per database), then the messages, in this order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Turn {
    /// What changes in HQ.
    pub mutations: Vec<Mutation>,
    /// What HQ (or the network's mischief with earlier messages) puts on Kafka after that.
    pub messages: Vec<ChangeMessage>,
}
