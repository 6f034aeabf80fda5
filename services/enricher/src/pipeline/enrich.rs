//! One message of records into messages of rows. Pure: everything that has to be asked for is handed in.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::sync::Arc;

use arrow::error::ArrowError;
use chrono::NaiveDate;
use lake_proto::queue::v1::{Record, RecordBatch};
use lake_shared::error_chain::Chain;
use lake_shared::identity::{DocumentType, Domain, Kind};
use lake_shared::names;
use lake_shared::quarantine::{DocumentIdentity, QuarantineEntry, Reason, Stage};
use lake_shared::queue::Message;
use serde_json::{Map, Value};

use crate::caches::user_entries::UserLocation;
use crate::document;
use crate::flatten::{self, CaseJson};
use crate::month;
use crate::options::EnricherOptions;
use crate::place::DomainPlaces;
use crate::rows::message::{self, Header, Oversized};
use crate::rows::{Row, RowsBuilder, Table};
use crate::transform::Transforms;

/// A message of records, its documents parsed.
pub struct Opened {
    batch: Arc<RecordBatch>,
    kind: Kind,
    /// Project space.
    pub domain: Domain,
    document_type: Option<DocumentType>,
    records: Vec<OpenedRecord>,
    refused: Vec<QuarantineEntry>,
}

struct OpenedRecord {
    /// Which record of the batch it is.
    place: usize,
    document: Map<String, Value>,
    month: Option<NaiveDate>,
    user_id: Option<String>,
    /// Of a case: its owner, who may be a location.
    owner_id: Option<String>,
}

/// What comes of a message.
#[derive(Debug, Default)]
pub struct Made {
    /// To be queued.
    pub messages: Vec<Message>,
    /// To be put aside.
    pub refused: Vec<QuarantineEntry>,
    /// Rows in the messages.
    pub rows: usize,
}

/// What HQ says about the place of the rows.
pub struct Surroundings {
    /// The domain's locations.
    pub places: Arc<DomainPlaces>,
    /// Location of each user.
    pub user_locations: HashMap<String, UserLocation>,
}

/// Parses the documents of a batch, as far as these options show them. Those that cannot be used are put aside, the others go on.
pub fn open(batch: Arc<RecordBatch>, kind: Kind, options: &EnricherOptions) -> Opened {
    // A rule may copy or rename anything, so it gets the whole document.
    let without_copies = kind == Kind::Case && options.case_json != CaseJson::All && options.transforms.is_empty();
    let parse = if without_copies { document::parse_case_without_copies } else { document::parse };
    let document_type = match (&batch.r#type, kind) {
        (Some(name), _) => Some(DocumentType::from(name.as_str())),
        (None, Kind::Location) if !batch.records.is_empty() => Some(DocumentType::location()),
        (None, _) => None,
    };
    let (mut records, mut refused) = (Vec::with_capacity(batch.records.len()), Vec::new());
    for (place, record) in batch.records.iter().enumerate() {
        if document_type.is_none() {
            let detail = "record has no type, so it has no table; fetch it again".to_owned();
            refused.push(quarantined(&batch, record, Reason::RecordTypeMissing, detail));
            continue;
        }
        match parse(&record.document) {
            Ok(document) => records.push(OpenedRecord {
                place,
                month: month::month(kind, &document),
                user_id: month::user_id(kind, &document).map(str::to_owned),
                owner_id: month::owner_id(kind, &document).map(str::to_owned),
                document,
            }),
            Err(error) => {
                refused.push(quarantined(&batch, record, Reason::DocumentMalformed, Chain(&error).to_string()));
            }
        }
    }
    Opened { domain: batch.domain.as_str().into(), batch, kind, document_type, records, refused }
}

impl Opened {
    /// Whether HQ has to be asked at all.
    pub fn has_rows(&self) -> bool {
        !self.records.is_empty()
    }

    /// The users whose locations are wanted, each with the time at which the newest change of their records was published, microseconds;
    /// 0 where no message says.
    pub fn users(&self) -> BTreeMap<&str, i64> {
        let mut users = BTreeMap::new();
        for record in &self.records {
            if let Some(user_id) = record.user_id.as_deref() {
                let lineage = self.batch.records[record.place].lineage.as_ref();
                let published_us = lineage.map_or(0, |lineage| lineage.published_us);
                let newest = users.entry(user_id).or_insert(published_us);
                *newest = published_us.max(*newest);
            }
        }
        users
    }

    /// How new the location tree must be, in microseconds of the database's clock: rows of locations show it as it was when they were read.
    pub fn tree_observed_us_min(&self) -> i64 {
        if self.kind != Kind::Location {
            return i64::MIN;
        }
        self.records.iter().map(|record| self.batch.records[record.place].observed_us).max().unwrap_or(i64::MIN)
    }

    /// Makes the rows and their messages. `delivery_id` makes the messages recognisable when they are queued twice.
    pub fn make(
        mut self,
        surroundings: Option<&Surroundings>,
        options: &EnricherOptions,
        delivery_id: &str,
        size_max: usize,
    ) -> Result<Made, ArrowError> {
        let mut maker = Maker {
            subject: names::rows_subject(&self.domain, self.kind, self.document_type.as_ref()),
            header: Header {
                domain: self.batch.domain.clone(),
                kind: self.batch.kind,
                document_type: self.document_type.as_ref().map(|name| name.as_str().to_owned()),
            },
            delivery_id,
            size_max,
            made: Made { refused: std::mem::take(&mut self.refused), ..Made::default() },
        };
        if let (Some(document_type), Some(surroundings)) = (self.document_type.clone(), surroundings) {
            let table = Table {
                domain: self.domain.clone(),
                kind: self.kind,
                document_type,
                places: Arc::clone(&surroundings.places),
                case_json: options.case_json,
            };
            self.make_rows(&table, surroundings, options, &mut maker)?;
        }
        maker.add_tombstones(&self.batch)?;
        Ok(maker.made)
    }

    fn make_rows(
        &mut self,
        table: &Table,
        surroundings: &Surroundings,
        options: &EnricherOptions,
        maker: &mut Maker<'_>,
    ) -> Result<(), ArrowError> {
        let transforms = Transforms::of_table(&options.transforms, &table.domain, table.kind, &table.document_type);
        let mut builder = RowsBuilder::new(table);
        let mut places = Vec::new();
        // Taken one by one, so that a document is gone when its row is there.
        for mut opened in self.records.drain(..) {
            let record = &self.batch.records[opened.place];
            transforms.apply(&mut opened.document);
            let cells = flatten::cells_max(&opened.document);
            if cells > options.columns_max {
                let detail = format!(
                    "{cells} cells are more than columns_max = {}; raise it, or drop fields by a transform",
                    options.columns_max
                );
                maker.made.refused.push(quarantined(&self.batch, record, Reason::RecordTooWide, detail));
                continue;
            }
            if builder.is_full(options.columns_max) {
                let full = std::mem::replace(&mut builder, RowsBuilder::new(table));
                maker.add_rows(&self.batch, full, &std::mem::take(&mut places))?;
            }
            let location_id = match table.kind {
                Kind::Location => Some(record.id.as_str()),
                Kind::Case | Kind::Form => {
                    let of_user = opened.user_id.and_then(|user| surroundings.user_locations.get(&user)?.as_deref());
                    surroundings.places.first_known([of_user, opened.owner_id.as_deref()])
                }
            };
            builder.push(&Row {
                id: &record.id,
                version_us: record.version_us,
                observed_us: record.observed_us,
                lineage: record.lineage.as_ref(),
                month: opened.month,
                location_id,
                document: &opened.document,
            });
            places.push(opened.place);
        }
        maker.add_rows(&self.batch, builder, &places)
    }
}

/// Gathers the messages.
struct Maker<'a> {
    subject: String,
    header: Header,
    delivery_id: &'a str,
    size_max: usize,
    made: Made,
}

impl Maker<'_> {
    /// `places`: which record of the batch each row is.
    fn add_rows(&mut self, batch: &RecordBatch, builder: RowsBuilder<'_>, places: &[usize]) -> Result<(), ArrowError> {
        if builder.rows() == 0 {
            return Ok(());
        }
        let rows = builder.finish()?;
        let (parts, oversized) = message::split(&self.header, Some(&rows), &[], self.size_max)?;
        for part in parts {
            self.made.rows += part.rows.len();
            self.add_message(part.payload);
        }
        for Oversized { place, size, .. } in oversized {
            let detail = format!("row needs a message of {size} bytes, the queue takes {}", self.size_max);
            let record = &batch.records[places[place]];
            self.made.refused.push(quarantined(batch, record, Reason::RecordTooLarge, detail));
        }
        Ok(())
    }

    /// Tombstones pass through, apart from the rows: they hold nothing up and nothing holds them up.
    fn add_tombstones(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let (parts, oversized) = message::split(&self.header, None, &batch.tombstones, self.size_max)?;
        parts.into_iter().for_each(|part| self.add_message(part.payload));
        for Oversized { place, size, .. } in oversized {
            let tombstone = &batch.tombstones[place];
            let detail = format!("tombstone needs a message of {size} bytes, the queue takes {}", self.size_max);
            let entry = QuarantineEntry::new(Stage::Enricher, Reason::TombstoneTooLarge, detail)
                .document(identity(batch, &tombstone.id))
                .lineage(tombstone.lineage.clone());
            self.made.refused.push(entry);
        }
        Ok(())
    }

    fn add_message(&mut self, payload: bytes::Bytes) {
        // The content is part of the name: a message that is dropped as a repetition has the same rows, whatever changed
        // (configuration, locations, size limit) between two tries.
        let mut hasher = DefaultHasher::new();
        hasher.write(&payload);
        let part = self.made.messages.len();
        let dedupe_id = format!("rows-{}-{part}-{:016x}", self.delivery_id, hasher.finish());
        self.made.messages.push(Message { subject: self.subject.clone(), payload, dedupe_id });
    }
}

/// Puts every record of a batch aside and lets its tombstones go on: for a batch that makes the enricher itself fail.
pub fn refuse_all(
    batch: &Arc<RecordBatch>,
    kind: Kind,
    detail: &str,
    delivery_id: &str,
    size_max: usize,
) -> Result<Made, ArrowError> {
    let tombstones = RecordBatch { records: Vec::new(), ..RecordBatch::clone(batch) };
    let options = EnricherOptions::default();
    let mut made = open(Arc::new(tombstones), kind, &options).make(None, &options, delivery_id, size_max)?;
    let refused =
        batch.records.iter().map(|record| quarantined(batch, record, Reason::EnricherFailed, detail.to_owned()));
    made.refused.extend(refused);
    Ok(made)
}

fn quarantined(batch: &RecordBatch, record: &Record, reason: Reason, detail: String) -> QuarantineEntry {
    QuarantineEntry::new(Stage::Enricher, reason, detail)
        .document(identity(batch, &record.id))
        .lineage(record.lineage.clone())
        .payload(record.document.clone())
}

fn identity(batch: &RecordBatch, id: &str) -> DocumentIdentity {
    DocumentIdentity {
        domain: batch.domain.clone(),
        kind: Kind::from_proto(batch.kind),
        document_type: batch.r#type.clone().unwrap_or_default(),
        id: id.to_owned(),
    }
}
