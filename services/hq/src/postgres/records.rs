//! Cases and forms of one database: at most four statements per batch, all on one snapshot.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::database::{Database, Snapshot};
use super::key::Key;
use super::memory::{AnswerRoom, Memory};
use super::tables::{Table, TableNeed, columns_of, find_tables};
use crate::source::{BlobReference, CaseRows, Columns, FormRows, Hindrance, Observation, SourceError};

const CASE: &str = "form_processor_commcarecasesql";
const INDEX: &str = "form_processor_commcarecaseindexsql";
const TRANSACTION: &str = "form_processor_casetransaction";
const ATTACHMENT: &str = "form_processor_caseattachmentsql";
const LEDGER_VALUE: &str = "form_processor_ledgervalue";
const FORM: &str = "form_processor_xforminstancesql";
const OPERATION: &str = "form_processor_xformoperationsql";
const BLOB: &str = "blobs_blobmeta";

/// `type_code` of the XML of a form in [`BLOB`].
const TYPE_CODE_FORM_XML: i64 = 2;

/// Rows that are looked at when a database is checked against its shards.
const SELF_CHECK_ROWS: usize = 20;

/// Transactions of a case that is read alone come in pages of so many; of fewer, where a page of more takes too long.
const PAGE_ROWS: i64 = 5_000;
const SMALL_PAGE_ROWS: i64 = 100;

const NEEDS: &[TableNeed] = &[
    need(CASE, &["case_id", "domain", "type", "modified_by", "server_modified_on", "deleted", "case_json"]),
    need(INDEX, &["id", "case_id", "identifier", "referenced_id", "referenced_type", "relationship_id"]),
    need(TRANSACTION, &["id", "case_id", "form_id", "server_date", "type", "revoked"]),
    TableNeed { name: ATTACHMENT, columns: &["id", "case_id", "name"], optional: true },
    need(LEDGER_VALUE, &["id", "case_id", "entry_id", "section_id", "balance", "last_modified"]),
    need(FORM, &["form_id", "domain", "xmlns", "received_on", "state"]),
    need(OPERATION, &["id", "form_id", "operation", "date"]),
    need(BLOB, &["id", "parent_id", "type_code", "name", "key", "content_length"]),
];

const fn need(name: &'static str, columns: &'static [&'static str]) -> TableNeed {
    TableNeed { name, columns, optional: false }
}

/// What is read besides what every document needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extent {
    /// Transactions of cases, which become `actions` and `xform_ids`.
    pub transactions: bool,
    /// Ledger values of cases.
    pub ledger_values: bool,
    /// All blobs of forms, not only their XML.
    pub form_attachments: bool,
}

impl Extent {
    fn needs(self, table: &str) -> bool {
        match table {
            TRANSACTION => self.transactions,
            LEDGER_VALUE => self.ledger_values,
            _ => true,
        }
    }
}

/// Puts a row of a statement where it belongs in its case.
type IntoCase = fn(&mut CaseRows, Columns);

/// Name of the reader of cases and forms, for what it says of the tables.
const READER: &str = "records";

/// A statement for what belongs to cases.
struct OfCase {
    sql: Arc<str>,
    /// The same in pages, where there can be very many rows.
    page: Option<Arc<str>>,
    put: IntoCase,
}

/// Cases and forms of one copy of one database.
pub(super) struct Records {
    database: Arc<Database>,
    statements: Mutex<Arc<Statements>>,
    extent: Extent,
}

/// The statements' texts, for the tables as they are.
struct Statements {
    case: Arc<str>,
    of_case: Vec<OfCase>,
    form: Arc<str>,
    operation: Arc<str>,
    blob: Arc<str>,
}

impl Statements {
    /// Looks at the tables of the database and prepares the statements' texts.
    async fn look(database: &Database, extent: Extent) -> Result<Self, SourceError> {
        let mut snapshot = database.snapshot("read HQ's tables").await?;
        let needs: Vec<TableNeed> =
            NEEDS.iter().filter(|need| extent.needs(need.name)).map(|need| TableNeed { ..*need }).collect();
        let tables = find_tables(&mut snapshot, database.name(), &needs).await;
        database.note_look(READER, &tables);
        let tables = tables?;
        snapshot.finish().await;
        let select = |name: &str| tables.get(name).map(|table| table.select());
        let with = |selected: Option<String>, rest: &str| -> Arc<str> {
            format!("{} {rest}", selected.unwrap_or_default()).into()
        };
        let index = with(select(INDEX), "where case_id = any($1) order by case_id, id");
        let mut of_case = vec![OfCase { sql: index, page: None, put: |rows, row| rows.indices.push(row) }];
        of_case.extend(tables.get(TRANSACTION).map(of_transactions));
        let attached = attached_statement(tables.get(ATTACHMENT), tables.get(LEDGER_VALUE));
        of_case.extend(attached.map(|sql| OfCase { sql: sql.into(), page: None, put: put_attached }));
        let blob_columns =
            ["parent_id", "name", "key", "type_code", "content_type", "content_length", "compressed_length"];
        let blob = tables.get(BLOB).map(|table| table.select_only(&blob_columns));
        // Were there ever two, the first one counts.
        let blob_rows = match extent.form_attachments {
            true => "where parent_id = any($1) order by parent_id, id",
            false => "where parent_id = any($1) and type_code = 2 and name = 'form.xml' order by parent_id, id",
        };
        Ok(Self {
            case: with(select(CASE), "where case_id = any($1)"),
            of_case,
            form: with(select(FORM), "where form_id = any($1)"),
            operation: with(select(OPERATION), "where form_id = any($1) order by form_id, date, id"),
            blob: with(blob, blob_rows),
        })
    }
}

impl Records {
    /// Looks at the tables of the database.
    pub async fn connect(database: Arc<Database>, extent: Extent) -> Result<Self, SourceError> {
        let statements = Statements::look(&database, extent).await?;
        Ok(Self { database, statements: Mutex::new(Arc::new(statements)), extent })
    }

    pub fn database(&self) -> &Database {
        &self.database
    }

    fn statements(&self) -> Arc<Statements> {
        Arc::clone(&self.statements.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the tables again where a read failed because they are others than before: HQ was brought to another version meanwhile. Any
    /// other failure stays what it is.
    async fn look_again(&self, snapshot: Snapshot<'_>, failure: SourceError) -> Result<Arc<Statements>, SourceError> {
        if !snapshot.tables_are_others() {
            return Err(failure);
        }
        // Its connection goes with it, and what waits for one is not this.
        drop(snapshot);
        tracing::warn!(error = %failure, "HQ's tables have changed; they are looked at again");
        let statements = Arc::new(Statements::look(&self.database, self.extent).await?);
        *self.statements.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&statements);
        Ok(statements)
    }

    /// Reads cases; `None` where the database is a replica that cannot tell how new it is. The transactions of a single case come in pages,
    /// so that it can be read however many there are.
    pub async fn cases(
        &self,
        ids: &[String],
        room: &AnswerRoom,
    ) -> Result<Option<Vec<Observation<CaseRows>>>, SourceError> {
        if ids.len() != 1 {
            return self.read_cases(ids, None, room).await;
        }
        match self.read_cases(ids, Some(PAGE_ROWS), room).await {
            Err(SourceError::AskLess { hindrance: Hindrance::TooSlow, .. }) => {
                self.read_cases(ids, Some(SMALL_PAGE_ROWS), room).await
            }
            other => other,
        }
    }

    async fn read_cases(
        &self,
        ids: &[String],
        page_rows: Option<i64>,
        room: &AnswerRoom,
    ) -> Result<Option<Vec<Observation<CaseRows>>>, SourceError> {
        let action = format!("read {} cases", ids.len());
        let (mut statements, mut looked_again) = (self.statements(), false);
        loop {
            let mut snapshot = self.database.snapshot(&action).await?;
            let Some(observed_us) = snapshot.observed_us else {
                snapshot.finish().await;
                return Ok(None);
            };
            let mut memory = room.reading();
            match self.find_cases(&mut snapshot, &statements, ids, page_rows, &mut memory).await {
                Ok(found) => {
                    memory.keep();
                    snapshot.finish().await;
                    self.database.note_look(READER, &Ok(()));
                    return Ok(Some(observations(ids, observed_us, found)));
                }
                Err(failure) if looked_again => return Err(failure),
                Err(failure) => statements = self.look_again(snapshot, failure).await?,
            }
            looked_again = true;
        }
    }

    async fn find_cases(
        &self,
        snapshot: &mut Snapshot<'_>,
        statements: &Statements,
        ids: &[String],
        page_rows: Option<i64>,
        memory: &mut Memory<'_>,
    ) -> Result<HashMap<String, CaseRows>, SourceError> {
        let asked = storable(ids);
        let mut found: HashMap<String, CaseRows> = HashMap::with_capacity(asked.len());
        read_by(snapshot, &statements.case, &asked, "case_id", memory, |id, case| {
            let ledger_values = self.extent.ledger_values.then(Vec::new);
            found.insert(id, CaseRows { case, ledger_values, ..CaseRows::default() });
        })
        .await?;
        // Only of cases that are there; often none is, after a deletion.
        let there: Vec<String> = found.keys().cloned().collect();
        for OfCase { sql, page, put } in statements.of_case.iter().filter(|_| !there.is_empty()) {
            let take = |id: String, row| {
                if let Some(rows) = found.get_mut(&id) {
                    put(rows, row);
                }
            };
            match (page, page_rows) {
                (Some(page), Some(rows)) => {
                    read_pages(snapshot, page, &there[0], rows, memory, take).await?;
                }
                _ => read_by(snapshot, sql, &there, "case_id", memory, take).await?,
            }
        }
        Ok(found)
    }

    /// Reads forms; `None` where the database is a replica that cannot tell how new it is.
    pub async fn forms(
        &self,
        ids: &[String],
        room: &AnswerRoom,
    ) -> Result<Option<Vec<Observation<FormRows>>>, SourceError> {
        let action = format!("read {} forms", ids.len());
        let (mut statements, mut looked_again) = (self.statements(), false);
        loop {
            let mut snapshot = self.database.snapshot(&action).await?;
            let Some(observed_us) = snapshot.observed_us else {
                snapshot.finish().await;
                return Ok(None);
            };
            let mut memory = room.reading();
            match self.find_forms(&mut snapshot, &statements, ids, &mut memory).await {
                Ok(found) => {
                    memory.keep();
                    snapshot.finish().await;
                    self.database.note_look(READER, &Ok(()));
                    return Ok(Some(observations(ids, observed_us, found)));
                }
                Err(failure) if looked_again => return Err(failure),
                Err(failure) => statements = self.look_again(snapshot, failure).await?,
            }
            looked_again = true;
        }
    }

    async fn find_forms(
        &self,
        snapshot: &mut Snapshot<'_>,
        statements: &Statements,
        ids: &[String],
        memory: &mut Memory<'_>,
    ) -> Result<HashMap<String, FormRows>, SourceError> {
        let asked = storable(ids);
        let mut found: HashMap<String, FormRows> = HashMap::with_capacity(asked.len());
        read_by(snapshot, &statements.form, &asked, "form_id", memory, |id, form| {
            let blobs = self.extent.form_attachments.then(Vec::new);
            found.insert(id, FormRows { form, blobs, ..FormRows::default() });
        })
        .await?;
        let there: Vec<String> = found.keys().cloned().collect();
        if there.is_empty() {
            return Ok(found);
        }
        read_by(snapshot, &statements.operation, &there, "form_id", memory, |id, operation| {
            if let Some(rows) = found.get_mut(&id) {
                rows.operations.push(operation);
            }
        })
        .await?;
        read_by(snapshot, &statements.blob, &there, "parent_id", memory, |id, blob| {
            if let Some(rows) = found.get_mut(&id) {
                put_blob(rows, blob);
            }
        })
        .await?;
        Ok(found)
    }

    /// A few ids of cases and forms that are there, to check them against the shards that the database should have.
    pub async fn some_ids(&self) -> Result<Vec<String>, SourceError> {
        let mut snapshot = self.database.snapshot("look at a few rows").await?;
        let mut ids = Vec::new();
        for (table, column) in [(CASE, "case_id"), (FORM, "form_id")] {
            let sql = format!("select {column}::text as id from {table} limit {SELF_CHECK_ROWS}").into();
            snapshot
                .read(&sql, Key::None, |row| {
                    ids.extend(columns_of(row)?.get("id").and_then(Value::as_str).map(str::to_owned));
                    Ok(())
                })
                .await?;
        }
        snapshot.finish().await;
        Ok(ids)
    }
}

/// Which table a row of [`attached_statement`] comes from.
const PART: &str = "part";
/// Value of [`PART`] in rows of [`LEDGER_VALUE`].
const PART_LEDGER: i64 = 1;

/// Attachments are rare, ledger values an option: both come in one statement, so that a batch never costs more than four.
fn attached_statement(attachments: Option<&Table>, ledger_values: Option<&Table>) -> Option<String> {
    const OF_BOTH: [(&str, &str); 1] = [("case_id", "text")];
    const OF_ATTACHMENT: [(&str, &str); 3] = [("name", "text"), ("content_type", "text"), ("content_length", "bigint")];
    const OF_LEDGER_VALUE: [(&str, &str); 7] = [
        ("domain", "text"),
        ("section_id", "text"),
        ("entry_id", "text"),
        ("balance", "bigint"),
        ("last_modified", "timestamptz"),
        ("last_modified_form_id", "text"),
        ("daily_consumption", "text"),
    ];
    let columns = || OF_BOTH.into_iter().chain(OF_ATTACHMENT).chain(OF_LEDGER_VALUE);
    let part = |number: i64, table: &Table, own: &[(&str, &str)]| {
        let shown = columns().map(|(name, type_name)| {
            let there = table.has(name) && (own.contains(&(name, type_name)) || OF_BOTH.contains(&(name, type_name)));
            format!("{}::{type_name} as {name}", if there { name } else { "null" })
        });
        let shown: Vec<String> = shown.collect();
        let table = table.name();
        format!("select {number} as {PART}, id, {} from {table} where case_id = any($1)", shown.join(", "))
    };
    let parts: Vec<String> = [
        attachments.map(|table| part(0, table, &OF_ATTACHMENT)),
        ledger_values.map(|table| part(PART_LEDGER, table, &OF_LEDGER_VALUE)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let order = format!("order by case_id, {PART}, section_id, entry_id, id");
    (!parts.is_empty()).then(|| format!("{} {order}", parts.join(" union all ")))
}

fn put_attached(rows: &mut CaseRows, row: Columns) {
    match row.get(PART).and_then(Value::as_i64) {
        Some(PART_LEDGER) => rows.ledger_values.get_or_insert_default().push(row),
        _ => rows.attachments.push(row),
    }
}

fn put_blob(rows: &mut FormRows, blob: Columns) {
    let is_xml = blob.get("type_code").and_then(Value::as_i64) == Some(TYPE_CODE_FORM_XML)
        && blob.get("name").and_then(Value::as_str) == Some("form.xml");
    if is_xml {
        rows.xml.get_or_insert_with(|| blob_reference(&blob));
    }
    if let Some(blobs) = &mut rows.blobs {
        blobs.push(blob);
    }
}

/// The transactions of cases. What is known without them is left out, as there are so many.
fn of_transactions(table: &Table) -> OfCase {
    const WANTED: [&str; 7] = ["id", "case_id", "form_id", "sync_log_id", "server_date", "client_date", "type"];
    let select = table.select_only(&WANTED);
    // In an index there are the dates of a case, which is why pages go by date.
    let page = "where case_id = $1 and not revoked and (server_date, id) > ($2::timestamptz, $3) order by server_date, id limit $4";
    OfCase {
        sql: format!("{select} where case_id = any($1) and not revoked order by case_id, server_date, id").into(),
        page: Some(format!("{select} {page}").into()),
        put: |rows, mut row| {
            row.remove("id");
            row.remove("case_id");
            rows.transactions.push(row);
        },
    }
}

async fn read_by(
    snapshot: &mut Snapshot<'_>,
    sql: &Arc<str>,
    ids: &[String],
    column: &'static str,
    memory: &mut Memory<'_>,
    mut take: impl FnMut(String, Columns) + Send,
) -> Result<(), SourceError> {
    snapshot
        .read(sql, Key::Ids(ids), |row| {
            let columns = columns_of(row)?;
            memory.add(&columns)?;
            if let Some(id) = columns.get(column).and_then(Value::as_str).map(str::to_owned) {
                take(id, columns);
            }
            Ok(())
        })
        .await
}

/// Reads the transactions of a case, a page after the other. HQ always gives them a date.
async fn read_pages(
    snapshot: &mut Snapshot<'_>,
    sql: &Arc<str>,
    case_id: &str,
    page_rows: i64,
    memory: &mut Memory<'_>,
    mut take: impl FnMut(String, Columns) + Send,
) -> Result<(), SourceError> {
    let mut after = ("-infinity".to_owned(), 0);
    loop {
        let (mut count, mut last) = (0, None);
        let key = Key::Page { id: case_id, after: (&after.0, after.1), limit: page_rows };
        snapshot
            .read(sql, key, |row| {
                let columns = columns_of(row)?;
                memory.add(&columns)?;
                count += 1;
                let text = |column: &str| columns.get(column).and_then(Value::as_str).map(str::to_owned);
                last = text("server_date").zip(columns.get("id").and_then(Value::as_i64));
                if let Some(id) = text("case_id") {
                    take(id, columns);
                }
                Ok(())
            })
            .await?;
        match last {
            Some(last) if count == page_rows => after = last,
            _ => return Ok(()),
        }
    }
}

/// Postgres cannot hold U+0000 and would refuse the whole batch; such an id is certainly not there.
pub(super) fn storable(ids: &[String]) -> Vec<String> {
    ids.iter().filter(|id| !id.contains('\0')).cloned().collect()
}

/// Every id with what was found of it.
pub(super) fn observations<T>(ids: &[String], observed_us: i64, mut found: HashMap<String, T>) -> Vec<Observation<T>> {
    ids.iter().map(|id| Observation { id: id.clone(), observed_us, rows: found.remove(id) }).collect()
}

fn blob_reference(blob: &Columns) -> BlobReference {
    BlobReference {
        key: blob.get("key").and_then(Value::as_str).unwrap_or_default().to_owned(),
        compressed: blob.get("compressed_length").is_some_and(|length| !length.is_null()),
        content_length: blob.get("content_length").and_then(Value::as_i64).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn attachments_and_ledger_values_cost_one_statement() {
        let attachments = Table::of(ATTACHMENT, &["id", "case_id", "name", "domain"]);
        let ledger = Table::of(LEDGER_VALUE, &["id", "case_id", "entry_id", "section_id", "balance", "last_modified"]);
        assert_eq!(attached_statement(None, None), None);
        let alone = attached_statement(Some(&attachments), None).unwrap();
        assert!(alone.contains(" from form_processor_caseattachmentsql ") && !alone.contains("union"), "{alone}");
        assert!(alone.contains("null::text as content_type") && alone.contains("null::text as domain"), "{alone}");
        let both = attached_statement(Some(&attachments), Some(&ledger)).unwrap();
        assert_eq!((both.matches("case_id = any($1)").count(), both.matches(" union all ").count()), (2, 1));
        assert!(
            both.contains("balance::bigint as balance") && both.contains("null::text as daily_consumption"),
            "{both}"
        );
    }
}
