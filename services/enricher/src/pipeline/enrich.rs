//! One message of records into messages of rows. Pure: everything that has to be asked for is handed in.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::ops::Range;
use std::sync::Arc;

use arrow::error::ArrowError;
use bytes::Bytes;
use chrono::NaiveDate;
use lake_hq::documents::own_fields;
use lake_proto::queue::v1::{Record, RecordBatch};
use lake_shared::error_chain::Chain;
use lake_shared::escaped_names;
use lake_shared::identity::{DocumentType, Domain, Kind};
use lake_shared::quarantine::{DocumentIdentity, QuarantineEntry, Reason, Stage};
use lake_shared::queue::Message;
use serde_json::{Map, Value};

use crate::caches::user_entries::UserLocation;
use crate::document;
use crate::flatten::{self, CaseJson};
use crate::location_columns::DomainLocations;
use crate::month;
use crate::options::EnricherOptions;
use crate::rows::message::{self, Header, Oversized, PayloadSizes};
use crate::rows::{Row, RowsBuilder, Table};
use crate::transform::Transforms;

/// A message of records whose documents are parsed.
pub struct ParsedBatch {
    batch: Arc<RecordBatch>,
    kind: Kind,
    /// Project space of all its records.
    pub domain: Domain,
    document_type: Option<DocumentType>,
    records: Vec<ParsedRecord>,
    quarantined: Vec<QuarantineEntry>,
}

struct ParsedRecord {
    /// Index of the record in the batch.
    index: usize,
    document: Map<String, Value>,
    month: Option<NaiveDate>,
    user_id: Option<String>,
    /// Of a case: its owner, who may be a location.
    owner_id: Option<String>,
}

/// What is published for one message of records.
#[derive(Debug, Default)]
pub struct RowMessages {
    /// Messages of rows and tombstones, for the stream of rows.
    pub messages: Vec<Message>,
    /// Records and tombstones that cannot be passed on, for the stream of quarantine.
    pub quarantined: Vec<QuarantineEntry>,
    /// Number of rows in the messages.
    pub rows: usize,
}

impl RowMessages {
    /// Adds what was made of another part of the message.
    pub fn extend(&mut self, other: Self) {
        self.messages.extend(other.messages);
        self.quarantined.extend(other.quarantined);
        self.rows += other.rows;
    }
}

/// What has to be known of HQ to make rows.
pub struct Question {
    /// Project space of all records.
    pub domain: Domain,
    /// See [`ParsedBatch::users`].
    pub users: BTreeMap<String, i64>,
    /// See [`ParsedBatch::tree_observed_us_min`].
    pub tree_observed_us_min: i64,
}

/// Leaves only these records in a batch; tombstones stay with the first of them.
pub fn restrict(batch: &mut RecordBatch, part: &Range<usize>) {
    batch.records.truncate(part.end);
    batch.records.drain(..part.start.min(batch.records.len()));
    if part.start > 0 {
        batch.tombstones.clear();
    }
}

/// The halves of a part of a batch that has so many records.
pub fn halves(part: &Range<usize>, records: usize) -> [Range<usize>; 2] {
    let middle = part.start + records / 2;
    [part.start..middle, middle..part.start + records]
}

/// What HQ says about the locations of the rows.
pub struct EnrichmentContext {
    /// Location tree of the project space.
    pub locations: Arc<DomainLocations>,
    /// Location of each user who is named by a record.
    pub user_locations: HashMap<String, UserLocation>,
}

/// Parses the documents of a batch, as far as these options show them. Those that cannot be parsed go to quarantine, the others go on.
pub fn parse(batch: Arc<RecordBatch>, kind: Kind, options: &EnricherOptions) -> ParsedBatch {
    // A rule may copy or rename anything, so it gets the whole document.
    let without_copies = match kind {
        Kind::Case => options.case_json != CaseJson::All && options.transforms.is_empty(),
        Kind::Form | Kind::Location => false,
    };
    let parse_document = if without_copies { document::parse_case_without_copies } else { document::parse };
    let document_type = match (&batch.r#type, kind) {
        (Some(name), _) => Some(DocumentType::from(name.as_str())),
        (None, Kind::Location) if !batch.records.is_empty() => Some(DocumentType::location()),
        (None, _) => None,
    };
    let (mut records, mut quarantined) = (Vec::with_capacity(batch.records.len()), Vec::new());
    for (index, record) in batch.records.iter().enumerate() {
        if document_type.is_none() {
            let detail = "record has no type, so it has no table; fetch it again".to_owned();
            quarantined.push(quarantine_entry(&batch, record, Reason::RecordTypeMissing, detail));
            continue;
        }
        match parse_document(&record.document) {
            Ok(document) => records.push(ParsedRecord::new(kind, index, document)),
            Err(error) => {
                quarantined.push(quarantine_entry(
                    &batch,
                    record,
                    Reason::DocumentMalformed,
                    Chain(&error).to_string(),
                ));
            }
        }
    }
    ParsedBatch { domain: batch.domain.as_str().into(), batch, kind, document_type, records, quarantined }
}

impl ParsedBatch {
    /// Whether HQ has to be asked at all.
    pub fn has_rows(&self) -> bool {
        !self.records.is_empty()
    }

    /// What HQ has to be asked; without the documents.
    pub fn question(&self) -> Question {
        Question {
            domain: self.domain.clone(),
            users: self.users().into_iter().map(|(user_id, published_us)| (user_id.to_owned(), published_us)).collect(),
            tree_observed_us_min: self.tree_observed_us_min(),
        }
    }

    /// The users whose locations are wanted, each with the time at which the newest change of their records was published, microseconds;
    /// 0 where no message says.
    pub fn users(&self) -> BTreeMap<&str, i64> {
        let mut users = BTreeMap::new();
        for record in &self.records {
            if let Some(user_id) = record.user_id.as_deref() {
                let lineage = self.batch.records[record.index].lineage.as_ref();
                let published_us = lineage.map_or(0, |lineage| lineage.published_us);
                let newest = users.entry(user_id).or_insert(published_us);
                *newest = published_us.max(*newest);
            }
        }
        users
    }

    /// How new the location tree must be, in microseconds of the database's clock: rows of locations show it as it was when they were read.
    pub fn tree_observed_us_min(&self) -> i64 {
        let observed_us = self.records.iter().map(|record| self.batch.records[record.index].observed_us);
        match self.kind {
            Kind::Location => observed_us.max().unwrap_or(i64::MIN),
            Kind::Case | Kind::Form => i64::MIN,
        }
    }

    /// Makes the rows and their messages, none larger than `sizes` say. `delivery_id` makes the messages recognisable when they are
    /// queued twice. Without a context, only the tombstones are passed on.
    ///
    /// # Errors
    /// Where Arrow refuses to build or to encode a batch, which is a bug.
    pub fn into_row_messages(
        mut self,
        context: Option<&EnrichmentContext>,
        options: &EnricherOptions,
        delivery_id: &str,
        sizes: PayloadSizes,
    ) -> Result<RowMessages, ArrowError> {
        let mut messages = MessageBuilder {
            subject: escaped_names::rows_subject(&self.domain, self.kind, self.document_type.as_ref()),
            header: Header {
                domain: self.batch.domain.clone(),
                kind: self.batch.kind,
                document_type: self.document_type.as_ref().map(|name| name.as_str().to_owned()),
            },
            delivery_id,
            sizes,
            finished: RowMessages { quarantined: std::mem::take(&mut self.quarantined), ..RowMessages::default() },
        };
        if let (Some(document_type), Some(context)) = (self.document_type.clone(), context) {
            let table = Table {
                domain: self.domain.clone(),
                kind: self.kind,
                document_type,
                locations: Arc::clone(&context.locations),
                case_json: options.case_json,
            };
            self.add_records(&table, context, options, &mut messages)?;
        }
        messages.add_tombstones(&self.batch)?;
        Ok(messages.finished)
    }

    fn add_records(
        &mut self,
        table: &Table,
        context: &EnrichmentContext,
        options: &EnricherOptions,
        messages: &mut MessageBuilder<'_>,
    ) -> Result<(), ArrowError> {
        let transforms = Transforms::of_table(&options.transforms, &table.domain, table.kind, &table.document_type);
        let batch = Arc::clone(&self.batch);
        let mut rows =
            RowsByReason { batch: &batch, table, context, options, messages, open: BTreeMap::new(), cut: Vec::new() };
        // Taken one by one, so that a document is gone when its row is there.
        for mut parsed in self.records.drain(..) {
            transforms.apply(&mut parsed.document);
            let record = &batch.records[parsed.index];
            let cells = flatten::cells_max(&parsed.document);
            if cells > options.columns_max {
                let detail = format!(
                    "{cells} cells are more than columns_max = {}; raise it, or drop fields by a transform",
                    options.columns_max
                );
                rows.messages.finished.quarantined.push(quarantine_entry(
                    &batch,
                    record,
                    Reason::RecordTooWide,
                    detail,
                ));
                rows.cut.push((parsed.index, Reason::RecordTooWide));
                continue;
            }
            rows.add(&parsed, record.incomplete.as_deref())?;
        }
        rows.flush_all()?;
        for (index, reason) in std::mem::take(&mut rows.cut) {
            let mut parsed = ParsedRecord::cut(table.kind, &batch, index);
            transforms.apply(&mut parsed.document);
            rows.add(&parsed, Some(reason.code()))?;
        }
        rows.flush_all()
    }
}

/// Rows under construction. Those that lack a part have batches of their own, one for each reason: the writer takes the columns of such a
/// batch for what HQ has now, and leaves all others as they were.
struct RowsByReason<'a, 'm> {
    batch: &'a RecordBatch,
    table: &'a Table,
    context: &'a EnrichmentContext,
    options: &'a EnricherOptions,
    messages: &'a mut MessageBuilder<'m>,
    /// For each reason the rows, and the indexes of their records in the batch; without a reason, those of whole documents.
    open: BTreeMap<Option<String>, (RowsBuilder<'a>, Vec<usize>)>,
    /// Indexes of records that are too large or too wide, and are to be shown without what makes them so.
    cut: Vec<(usize, Reason)>,
}

impl RowsByReason<'_, '_> {
    fn add(&mut self, parsed: &ParsedRecord, incomplete: Option<&str>) -> Result<(), ArrowError> {
        let table = self.table;
        let reason = incomplete.map(str::to_owned);
        let (builder, _) = self.open.entry(reason.clone()).or_insert_with(|| (RowsBuilder::new(table), Vec::new()));
        if builder.is_full(self.options.columns_max) {
            self.flush(&reason)?;
        }
        let (builder, record_indexes) =
            self.open.entry(reason).or_insert_with(|| (RowsBuilder::new(table), Vec::new()));
        let record = &self.batch.records[parsed.index];
        let location_id = match table.kind {
            Kind::Location => Some(record.id.as_str()),
            Kind::Case | Kind::Form => {
                let of_user =
                    parsed.user_id.as_ref().and_then(|user| self.context.user_locations.get(user)?.as_deref());
                self.context.locations.first_known([of_user, parsed.owner_id.as_deref()])
            }
        };
        builder.push(&Row {
            id: &record.id,
            version_us: record.version_us,
            observed_us: record.observed_us,
            lineage: record.lineage.as_ref(),
            month: parsed.month,
            location_id,
            incomplete,
            document: &parsed.document,
        });
        record_indexes.push(parsed.index);
        Ok(())
    }

    /// Makes messages of the rows with this reason.
    fn flush(&mut self, reason: &Option<String>) -> Result<(), ArrowError> {
        let Some((builder, record_indexes)) = self.open.remove(reason) else { return Ok(()) };
        for (row, detail) in self.messages.add_rows(builder)? {
            let index = record_indexes[row];
            // One that was cut is in quarantine already, and nothing more can be left out of it.
            let is_cut = [Reason::RecordTooLarge, Reason::RecordTooWide].map(Reason::code);
            if reason.as_deref().is_some_and(|reason| is_cut.contains(&reason)) {
                continue;
            }
            let record = &self.batch.records[index];
            let entry = quarantine_entry(self.batch, record, Reason::RecordTooLarge, detail);
            self.messages.finished.quarantined.push(entry);
            self.cut.push((index, Reason::RecordTooLarge));
        }
        Ok(())
    }

    fn flush_all(&mut self) -> Result<(), ArrowError> {
        let reasons: Vec<Option<String>> = self.open.keys().cloned().collect();
        reasons.iter().try_for_each(|reason| self.flush(reason))
    }
}

impl ParsedRecord {
    fn new(kind: Kind, index: usize, document: Map<String, Value>) -> Self {
        Self {
            index,
            month: month::month(kind, &document),
            user_id: month::user_id(kind, &document).map(str::to_owned),
            owner_id: month::owner_id(kind, &document).map(str::to_owned),
            document,
        }
    }

    /// A record without everything that may be large.
    fn cut(kind: Kind, batch: &RecordBatch, index: usize) -> Self {
        Self::new(kind, index, own_fields::of(kind, &batch.records[index].document))
    }
}

/// Gathers the messages that come of one batch.
struct MessageBuilder<'a> {
    subject: String,
    header: Header,
    delivery_id: &'a str,
    sizes: PayloadSizes,
    finished: RowMessages,
}

impl MessageBuilder<'_> {
    /// Adds messages of these rows. Answers the rows that fit into none, each with a text that says so.
    fn add_rows(&mut self, builder: RowsBuilder<'_>) -> Result<Vec<(usize, String)>, ArrowError> {
        let rows = builder.finish()?;
        let (parts, oversized) = message::split(&self.header, Some(&rows), &[], self.sizes)?;
        for part in parts {
            self.finished.rows += part.rows.len();
            self.add_message(part.payload);
        }
        let detail = |size| format!("row needs a message of {size} bytes, the queue takes {}", self.sizes.of_one);
        Ok(oversized.into_iter().map(|Oversized { index, size, .. }| (index, detail(size))).collect())
    }

    /// Tombstones pass through, apart from the rows: they hold nothing up and nothing holds them up.
    fn add_tombstones(&mut self, batch: &RecordBatch) -> Result<(), ArrowError> {
        let (parts, oversized) = message::split(&self.header, None, &batch.tombstones, self.sizes)?;
        parts.into_iter().for_each(|part| self.add_message(part.payload));
        for Oversized { index, size, .. } in oversized {
            let tombstone = &batch.tombstones[index];
            let detail = format!("tombstone needs a message of {size} bytes, the queue takes {}", self.sizes.of_one);
            let entry = QuarantineEntry::new(Stage::Enricher, Reason::TombstoneTooLarge, detail)
                .document(identity(batch, &tombstone.id))
                .lineage(tombstone.lineage.clone());
            self.finished.quarantined.push(entry);
        }
        Ok(())
    }

    fn add_message(&mut self, payload: Bytes) {
        // The content is part of the name: a message that is dropped as a repetition has the same rows, whatever changed
        // (configuration, locations, size limit) between two tries.
        let mut hasher = DefaultHasher::new();
        hasher.write(&payload);
        let part = self.finished.messages.len();
        let dedupe_id = format!("rows-{}-{part}-{:016x}", self.delivery_id, hasher.finish());
        self.finished.messages.push(Message { subject: self.subject.clone(), payload, dedupe_id });
    }
}

/// Quarantines every record of a batch and lets its tombstones go on: for a batch that makes the enricher itself fail.
///
/// # Errors
/// Where Arrow refuses to encode the tombstones' messages, which is a bug.
pub fn quarantine_all_records(
    batch: &Arc<RecordBatch>,
    kind: Kind,
    detail: &str,
    delivery_id: &str,
    sizes: PayloadSizes,
) -> Result<RowMessages, ArrowError> {
    let tombstones = RecordBatch { records: Vec::new(), ..RecordBatch::clone(batch) };
    let options = EnricherOptions::default();
    let mut row_messages =
        parse(Arc::new(tombstones), kind, &options).into_row_messages(None, &options, delivery_id, sizes)?;
    let entries =
        batch.records.iter().map(|record| quarantine_entry(batch, record, Reason::EnricherFailed, detail.to_owned()));
    row_messages.quarantined.extend(entries);
    Ok(row_messages)
}

fn quarantine_entry(batch: &RecordBatch, record: &Record, reason: Reason, detail: String) -> QuarantineEntry {
    QuarantineEntry::new(Stage::Enricher, reason, detail)
        .document(identity(batch, &record.id))
        .lineage(record.lineage.clone())
        // A copy: what the whole message has decompressed would be held as long as one of its documents.
        .payload(Bytes::copy_from_slice(&record.document))
}

fn identity(batch: &RecordBatch, id: &str) -> DocumentIdentity {
    DocumentIdentity {
        domain: batch.domain.clone(),
        kind: Kind::from_proto(batch.kind),
        document_type: batch.r#type.clone().unwrap_or_default(),
        id: id.to_owned(),
    }
}
