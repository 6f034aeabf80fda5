//! Erasing a case and a form, on the running pipeline: every byte of the lake's folder and of the key index and every text of the metastore is
//! searched for their ids; HQ has them still, and touches them; they come back when they are allowed, and not before.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lake_simulated_hq::turn::{ChangeMessage, Mutation, Table, Turn};
use lake_tests::parts::wait_until;
use lake_tests::system::{LakeServices, RealParts};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use sqlx::{Connection, Row};

const WITHIN: Duration = Duration::from_secs(240);
const DOMAIN: &str = "clinic";
const XMLNS: &str = "http://openrosa.org/formdesigner/VISIT";
/// The least and the greatest of the ids, so that statistics name them.
const CASE: &str = "00a13e2a-77b0-4e79-81be-64bd76c43a11";
const FORM: &str = "ffb13e2a-77b0-4e79-81be-64bd76c43a12";

fn announced(topic: &'static str, id: &str, document_type: &str, subtype: &str) -> ChangeMessage {
    let change = json!({"document_id": id, "document_rev": null, "data_source_type": "sql", "data_source_name": topic,
        "document_type": document_type, "document_subtype": subtype, "domain": DOMAIN, "is_deletion": false,
        "publish_timestamp": "2026-03-01T10:00:00.000001Z", "attempts": 0, "associated_document_id": null,
        "original_publication_datetime": "2026-03-01T10:00:00.000001Z"});
    ChangeMessage { topic, key: Some(id.to_owned()), value: change.to_string().into_bytes() }
}

/// A case as HQ's table has it, with its message; `properties` is the text of its column.
fn case(id: &str, properties: &str) -> (Vec<Mutation>, ChangeMessage) {
    let now = "2026-03-01T11:00:00.000000Z";
    let row = json!({"case_id": id, "domain": DOMAIN, "type": "person", "name": "Asha", "owner_id": "worker-1", "modified_on": now,
        "server_modified_on": now, "modified_by": "worker-1", "closed": false, "deleted": false, "case_json": properties});
    (vec![Mutation::put(Table::Case, row)], announced("case-sql", id, "CommCareCase", "person"))
}

/// A form as HQ's tables and its blob store have it, with its message.
fn form(id: &str) -> (Vec<Mutation>, ChangeMessage) {
    let now = "2026-03-01T10:00:00.500000Z";
    let key = format!("{id}-blob");
    let xml = format!(
        r#"<?xml version="1.0"?><data xmlns="{XMLNS}" uiVersion="1" version="1" name="visit"><weight>7</weight><meta xmlns="http://openrosa.org/jr/xforms"><timeEnd>2026-03-01T00:00:00.000Z</timeEnd><userID>worker-1</userID><instanceID>{id}</instanceID></meta></data>"#
    );
    let row = json!({"form_id": id, "domain": DOMAIN, "xmlns": XMLNS, "user_id": "worker-1", "received_on": now, "server_modified_on": now,
        "auth_context": "{}", "openrosa_headers": "{}", "partial_submission": false, "state": 1, "initial_processing_complete": true});
    let blob = json!({"domain": DOMAIN, "parent_id": id, "name": "form.xml", "key": key, "type_code": 2, "content_length": xml.len(),
        "created_on": now});
    let content = Mutation::PutBlob { key, content: xml.into_bytes(), gzip: false };
    (
        vec![Mutation::put(Table::Form, row), Mutation::put(Table::BlobMeta, blob), content],
        announced("form-sql", id, "XFormInstance", XMLNS),
    )
}

fn turn(changes: impl IntoIterator<Item = (Vec<Mutation>, ChangeMessage)>) -> Turn {
    let (mutations, messages): (Vec<_>, Vec<_>) = changes.into_iter().unzip();
    Turn { mutations: mutations.concat(), messages }
}

struct Lake {
    parts: RealParts,
    services: LakeServices,
    root: PathBuf,
    index: PathBuf,
}

impl Lake {
    async fn start() -> anyhow::Result<Self> {
        let parts = RealParts::start().await?;
        let (root, index) = (parts.folder.path().join("lake"), parts.folder.path().join("index"));
        fs::create_dir(&root)?;
        let sections = format!(
            "[tables]\nindex_folder = \"{}\"\ndeletion_vectors = \"on\"\ntiny_file_bytes = 0\n[ingest]\nflush_age_ms = 50\n",
            index.display()
        );
        let place = root.to_str().context("a path of letters")?.to_owned();
        let services = LakeServices::start_with(&parts, 1, 1, &place, &sections).await?;
        Ok(Self { parts, services, root, index })
    }

    async fn follow(&self, turn: &Turn) -> anyhow::Result<()> {
        self.parts.hq.apply(turn).await?;
        self.parts.drained(WITHIN).await
    }

    fn trace(&self, id: &str) -> anyhow::Result<Value> {
        self.services.lakectl(&format!("record trace {id}"))
    }

    /// Everything that names an id: files by their paths, and tables of the metastore by their names.
    async fn naming(&self, id: &str) -> anyhow::Result<Vec<String>> {
        let mut found = Vec::new();
        for path in files_in(&self.root)?.into_iter().chain(files_in(&self.index)?) {
            if is_named_in(&path, id)? {
                found.push(path.display().to_string());
            }
        }
        let mut metastore = sqlx::PgConnection::connect(&self.parts.postgres.url("lake_metastore")).await?;
        let tables = sqlx::query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'");
        for table in tables.fetch_all(&mut metastore).await? {
            let table: String = table.get(0);
            let select = format!("SELECT t::text FROM \"{table}\" t");
            let rows = sqlx::query(sqlx::AssertSqlSafe(select)).fetch_all(&mut metastore).await?;
            // Bytes are shown as hexadecimal digits.
            let as_bytes: String = id.bytes().map(|byte| format!("{byte:02x}")).collect();
            let names = |text: String| text.contains(id) || text.contains(&as_bytes);
            if rows.iter().any(|row| names(row.get(0))) {
                found.push(table);
            }
        }
        Ok(found)
    }

    /// Rows of the tables by their names.
    fn rows(&self) -> anyhow::Result<BTreeMap<String, i64>> {
        let tables = self.services.lakectl("table list")?;
        let tables = tables.as_array().context("a list of tables")?;
        let row = |table: &Value| Some((table["name"].as_str()?.to_owned(), table["rows"].as_i64()?));
        Ok(tables.iter().filter_map(row).collect())
    }
}

fn files_in(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { found.extend(files_in(&path)?) } else { found.push(path) }
    }
    Ok(found)
}

/// Whether a file names an id in its name, its bytes, or any cell of it.
fn is_named_in(path: &Path, id: &str) -> anyhow::Result<bool> {
    let bytes = fs::read(path)?;
    if path.to_string_lossy().contains(id) || bytes.windows(id.len()).any(|window| window == id.as_bytes()) {
        return Ok(true);
    }
    if path.extension().is_none_or(|extension| extension != "parquet") {
        return Ok(false);
    }
    for batch in ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.build()? {
        let batch = batch?;
        for column in batch.columns() {
            let cells = ArrayFormatter::try_new(column, &FormatOptions::default())?;
            if (0..batch.num_rows()).any(|row| cells.value(row).to_string().contains(id)) {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// Some records around them, and their past: several versions, an entry in quarantine.
async fn past(lake: &Lake) -> anyhow::Result<()> {
    let others = (1..6).map(|number| format!("{number}0000000-0000-4000-8000-000000000000"));
    let others: Vec<String> = others.collect();
    lake.follow(&turn(others.iter().map(|id| case(id, "{}")).chain([case(CASE, r#"{"age": "7"}"#)]))).await?;
    lake.follow(&turn(others.iter().map(|id| form(id)).chain([form(FORM)]))).await?;
    for age in 8..11 {
        let changed =
            [case(CASE, &format!("{{\"age\": \"{age}\"}}")), case(&others[0], "{\"age\": \"1\"}"), form(FORM)];
        lake.follow(&turn(changed)).await?;
    }
    lake.follow(&turn([case(CASE, "[1]")])).await?;
    wait_until("the case is in quarantine", WITHIN, async || {
        let listed = lake.services.lakectl(&format!("quarantine list --id {CASE}"))?;
        Ok(listed.as_array().is_some_and(|entries| entries.len() == 1))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_case_and_form_are_nowhere_and_stay_away_until_they_are_allowed() -> anyhow::Result<()> {
    let mut lake = Lake::start().await?;
    past(&lake).await?;
    let before = lake.rows()?;
    ensure!(before["clinic_case_sql_person"] == 6, "{before:?}");
    // The metastore names it in more places than one: as something that was read again on request.
    lake.services.lakectl(&format!("backfill start {DOMAIN} --kind case --id {CASE}"))?;
    lake.parts.drained(WITHIN).await?;
    for (id, kind) in [(CASE, "case"), (FORM, "form")] {
        ensure!(!lake.naming(id).await?.is_empty());
        let planned = lake.services.lakectl(&format!("record erase {DOMAIN} {id} --kind {kind} --dry-run"))?;
        ensure!(planned["result"]["rows"].as_i64() >= Some(2) && planned["result"]["done"] == 0, "{planned}");
        let plan = planned["plan_id"].as_str().context("the id of a plan")?;
        let erased = lake.services.lakectl(&format!("record erase {DOMAIN} {id} --kind {kind} --plan {plan}"))?;
        println!("{kind}: {}", erased["result"]);
        ensure!(erased["state"] == "succeeded" && erased["result"]["done"] == 1, "{erased}");
        ensure!(erased["result"]["log_files_left"] == 0 && erased["result"]["files_deleted"] != 0, "{erased}");
        let left = lake.naming(id).await?;
        ensure!(left.is_empty(), "{id} is still in {left:?}");
        let traced = lake.trace(id)?;
        ensure!(traced["state"] == "erased" && traced["erasures"][0]["kept_out"] == true, "{traced}");
        ensure!(traced["erasures"][0]["erased_at"].is_string(), "{traced}");
    }
    let one_less: BTreeMap<String, i64> = before.iter().map(|(name, rows)| (name.clone(), rows - 1)).collect();
    assert_eq!(lake.rows()?, one_less);

    // HQ has them still: it cannot be read, it changes, it is deleted and made anew.
    for changed in [case(CASE, "[1]"), case(CASE, "{}"), form(FORM)] {
        lake.follow(&turn([changed])).await?;
    }
    lake.services.get("writer-1")?.kill_and_restart().await?;
    lake.follow(&turn([case(CASE, r#"{"age": "12"}"#), form(FORM)])).await?;
    let gone = Mutation::remove(Table::Case, json!({"case_id": CASE}));
    let message = announced("case-sql", CASE, "CommCareCase", "person");
    lake.follow(&Turn { mutations: vec![gone], messages: vec![message] }).await?;
    assert_eq!(lake.rows()?, one_less);
    for id in [CASE, FORM] {
        let left = lake.naming(id).await?;
        ensure!(left.is_empty(), "{id} has come back to {left:?}");
    }

    let listed = lake.services.lakectl(&format!("record erased --domain {DOMAIN}"))?;
    ensure!(listed.as_array().is_some_and(|records| records.len() == 2), "{listed}");
    let allowed = lake.services.lakectl(&format!("record allow {DOMAIN} {CASE} --kind case"))?;
    ensure!(allowed["result"]["allowed"] == 1, "{allowed}");
    lake.follow(&turn([case(CASE, r#"{"age": "13"}"#), form(FORM)])).await?;
    let case_back = lake.trace(CASE)?;
    ensure!(case_back["state"] == "in_lake" && case_back["erasures"][0]["kept_out"] == false, "{case_back}");
    assert_eq!(lake.trace(FORM)?["state"], "erased");
    lake.services.end()
}
