//! Cases and forms of one database: at most four statements per batch, all on one snapshot.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::database::{Database, Key, Snapshot};
use super::tables::{TableNeed, columns_of, find_tables};
use crate::source::{BlobReference, CaseRows, Columns, FormRows, Sighting, SourceError};

const CASE: &str = "form_processor_commcarecasesql";
const INDEX: &str = "form_processor_commcarecaseindexsql";
const TRANSACTION: &str = "form_processor_casetransaction";
const ATTACHMENT: &str = "form_processor_caseattachmentsql";
const FORM: &str = "form_processor_xforminstancesql";
const OPERATION: &str = "form_processor_xformoperationsql";
const BLOB: &str = "blobs_blobmeta";

/// Rows that are looked at when a database is checked against its shards.
const SELF_CHECK_ROWS: usize = 20;

const NEEDS: &[TableNeed] = &[
    need(CASE, &["case_id", "domain", "type", "modified_by", "server_modified_on", "deleted", "case_json"]),
    need(INDEX, &["id", "case_id", "identifier", "referenced_id", "referenced_type", "relationship_id"]),
    need(TRANSACTION, &["id", "case_id", "form_id", "server_date", "type", "revoked"]),
    TableNeed { name: ATTACHMENT, columns: &["id", "case_id", "name"], optional: true },
    need(FORM, &["form_id", "domain", "xmlns", "received_on", "state"]),
    need(OPERATION, &["id", "form_id", "operation", "date"]),
    need(BLOB, &["id", "parent_id", "type_code", "name", "key", "content_length"]),
];

const fn need(name: &'static str, columns: &'static [&'static str]) -> TableNeed {
    TableNeed { name, columns, optional: false }
}

/// Where the rows of a statement go in a case.
type PlaceInCase = fn(&mut CaseRows) -> &mut Vec<Columns>;

/// Cases and forms of one copy of one database.
pub(super) struct Records {
    database: Arc<Database>,
    case: Arc<str>,
    /// Statements for what belongs to a case, and where their rows go.
    of_case: Vec<(Arc<str>, PlaceInCase)>,
    form: Arc<str>,
    operation: Arc<str>,
    blob: Arc<str>,
}

impl Records {
    /// Looks at the tables of the database and prepares the statements' texts.
    pub async fn connect(database: Arc<Database>, transactions: bool) -> Result<Self, SourceError> {
        let mut snapshot = database.snapshot("read HQ's tables").await?;
        let needs: Vec<TableNeed> = NEEDS
            .iter()
            .filter(|need| transactions || need.name != TRANSACTION)
            .map(|need| TableNeed { ..*need })
            .collect();
        let tables = find_tables(&mut snapshot, database.name(), &needs).await?;
        snapshot.finish().await;
        let select = |name: &str| tables.get(name).map(|table| table.select());
        let with = |selected: Option<String>, rest: &str| -> Arc<str> {
            format!("{} {rest}", selected.unwrap_or_default()).into()
        };
        let mut of_case: Vec<(Arc<str>, PlaceInCase)> =
            vec![(with(select(INDEX), "where case_id = any($1) order by case_id, id"), |rows| &mut rows.indices)];
        if let Some(table) = tables.get(TRANSACTION) {
            let wanted = ["case_id", "form_id", "sync_log_id", "server_date", "client_date", "type", "revoked"];
            let rest = "where case_id = any($1) and not revoked order by case_id, server_date, id";
            of_case.push((with(Some(table.select_only(&wanted)), rest), |rows| &mut rows.transactions));
        }
        if let Some(table) = tables.get(ATTACHMENT) {
            let rest = "where case_id = any($1) order by case_id, id";
            of_case.push((with(Some(table.select()), rest), |rows| &mut rows.attachments));
        }
        let blob_columns = ["parent_id", "key", "content_length", "compressed_length"];
        let blob = tables.get(BLOB).map(|table| table.select_only(&blob_columns));
        Ok(Self {
            case: with(select(CASE), "where case_id = any($1)"),
            of_case,
            form: with(select(FORM), "where form_id = any($1)"),
            operation: with(select(OPERATION), "where form_id = any($1) order by form_id, date, id"),
            // Were there ever two, the first one counts.
            blob: with(
                blob,
                "where parent_id = any($1) and type_code = 2 and name = 'form.xml' order by parent_id, id",
            ),
            database,
        })
    }

    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Reads cases; `None` where the database is a standby that cannot tell how new it is.
    pub async fn cases(&self, ids: &[String]) -> Result<Option<Vec<Sighting<CaseRows>>>, SourceError> {
        let mut snapshot = self.database.snapshot(&format!("read {} cases", ids.len())).await?;
        let Some(observed_us) = snapshot.observed_us else { return Ok(None) };
        let asked = storable(ids);
        let mut found: HashMap<String, CaseRows> = HashMap::with_capacity(asked.len());
        read_by(&mut snapshot, &self.case, &asked, "case_id", |id, case| {
            found.insert(id, CaseRows { case, ..CaseRows::default() });
        })
        .await?;
        // Only of cases that are there; often none is, after a deletion.
        let there: Vec<String> = found.keys().cloned().collect();
        for (sql, place) in self.of_case.iter().filter(|_| !there.is_empty()) {
            read_by(&mut snapshot, sql, &there, "case_id", |id, row| {
                if let Some(rows) = found.get_mut(&id) {
                    place(rows).push(row);
                }
            })
            .await?;
        }
        snapshot.finish().await;
        Ok(Some(sightings(ids, observed_us, found)))
    }

    /// Reads forms; `None` where the database is a standby that cannot tell how new it is.
    pub async fn forms(&self, ids: &[String]) -> Result<Option<Vec<Sighting<FormRows>>>, SourceError> {
        let mut snapshot = self.database.snapshot(&format!("read {} forms", ids.len())).await?;
        let Some(observed_us) = snapshot.observed_us else { return Ok(None) };
        let asked = storable(ids);
        let mut found: HashMap<String, FormRows> = HashMap::with_capacity(asked.len());
        read_by(&mut snapshot, &self.form, &asked, "form_id", |id, form| {
            found.insert(id, FormRows { form, ..FormRows::default() });
        })
        .await?;
        let there: Vec<String> = found.keys().cloned().collect();
        if !there.is_empty() {
            read_by(&mut snapshot, &self.operation, &there, "form_id", |id, operation| {
                if let Some(rows) = found.get_mut(&id) {
                    rows.operations.push(operation);
                }
            })
            .await?;
            read_by(&mut snapshot, &self.blob, &there, "parent_id", |id, blob| {
                if let Some(rows) = found.get_mut(&id) {
                    rows.xml.get_or_insert_with(|| blob_reference(&blob));
                }
            })
            .await?;
        }
        snapshot.finish().await;
        Ok(Some(sightings(ids, observed_us, found)))
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

async fn read_by(
    snapshot: &mut Snapshot<'_>,
    sql: &Arc<str>,
    ids: &[String],
    column: &'static str,
    mut take: impl FnMut(String, Columns) + Send,
) -> Result<(), SourceError> {
    snapshot
        .read(sql, Key::Ids(ids), |row| {
            let columns = columns_of(row)?;
            if let Some(id) = columns.get(column).and_then(Value::as_str).map(str::to_owned) {
                take(id, columns);
            }
            Ok(())
        })
        .await
}

/// Postgres cannot hold U+0000 and would refuse the whole batch; such an id is certainly not there.
pub(super) fn storable(ids: &[String]) -> Vec<String> {
    ids.iter().filter(|id| !id.contains('\0')).cloned().collect()
}

/// Every id with what was found of it.
pub(super) fn sightings<T>(ids: &[String], observed_us: i64, mut found: HashMap<String, T>) -> Vec<Sighting<T>> {
    ids.iter().map(|id| Sighting { id: id.clone(), observed_us, rows: found.remove(id) }).collect()
}

fn blob_reference(blob: &Columns) -> BlobReference {
    BlobReference {
        key: blob.get("key").and_then(Value::as_str).unwrap_or_default().to_owned(),
        compressed: blob.get("compressed_length").is_some_and(|length| !length.is_null()),
        content_length: blob.get("content_length").and_then(Value::as_i64).unwrap_or(0),
    }
}
