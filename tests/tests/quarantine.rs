//! Records that cannot be handled, on the running pipeline: each reason that HQ and the configuration can bring about, its cause mended, replayed,
//! released by a later reading; what nobody can read, given up; and the bounds of what is kept.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::jetstream;
use lake_hq::source::answer_bytes_max;
use lake_simulated_hq::turn::{ChangeMessage, Mutation, Table, Turn};
use lake_tests::parts::wait_until;
use lake_tests::system::{LakeServices, RealParts};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(240);
const DOMAIN: &str = "clinic";
const XMLNS: &str = "http://openrosa.org/formdesigner/VISIT";

/// Narrow limits of the services, and what they are widened to.
const FEW_TYPES: (&str, &str) = ("types_max = 1\n", "types_max = 10\n");
const FEW_COLUMNS: &str = "[enricher]\ncolumns_max = 200\n";
const FEW_BYTES: &str = "record_bytes_max = 20000\n";

/// The cases that cannot be handled, with why. The purged one leaves HQ before it is read again.
const CASES: [(&str, &str); 5] = [
    ("unreadable", "document_unreadable"),
    ("purged", "document_unreadable"),
    ("wide", "record_too_wide"),
    ("large", "rows_too_large"),
    ("late", "too_many_types"),
];
const FORMS: [(&str, &str); 2] = [("no-xml", "form_xml_missing"), ("bad-xml", "form_xml_not_well_formed")];
/// Reasons of messages that nobody can read, also later.
const UNREADABLE: [&str; 2] = ["change_malformed_json", "row_batch_malformed"];

fn announced(topic: &'static str, id: &str, document_type: &str, subtype: &str) -> ChangeMessage {
    let change = json!({"document_id": id, "document_rev": null, "data_source_type": "sql", "data_source_name": topic,
        "document_type": document_type, "document_subtype": subtype, "domain": DOMAIN, "is_deletion": false,
        "publish_timestamp": "2026-03-01T10:00:00.000001Z", "attempts": 0, "associated_document_id": null,
        "original_publication_datetime": "2026-03-01T10:00:00.000001Z"});
    ChangeMessage { topic, key: Some(id.to_owned()), value: change.to_string().into_bytes() }
}

/// A case as HQ's table has it; `properties` is the text of its column.
fn case(id: &str, case_type: &str, properties: &str) -> Mutation {
    let now = "2026-03-01T11:00:00.000000Z";
    let row = json!({"case_id": id, "domain": DOMAIN, "type": case_type, "name": "Asha", "owner_id": "worker-1", "modified_on": now,
        "server_modified_on": now, "modified_by": "worker-1", "closed": false, "deleted": false, "case_json": properties});
    Mutation::put(Table::Case, row)
}

/// A form as HQ's tables have it, without its XML.
fn form(id: &str) -> Vec<Mutation> {
    let now = "2026-03-01T10:00:00.500000Z";
    let row = json!({"form_id": id, "domain": DOMAIN, "xmlns": XMLNS, "user_id": "worker-1", "received_on": now, "server_modified_on": now,
        "auth_context": "{}", "openrosa_headers": "{}", "partial_submission": false, "state": 1, "initial_processing_complete": true});
    let blob = json!({"domain": DOMAIN, "parent_id": id, "name": "form.xml", "key": key(id), "type_code": 2, "content_length": 9, "created_on": now});
    vec![Mutation::put(Table::Form, row), Mutation::put(Table::BlobMeta, blob)]
}

fn key(form: &str) -> String {
    format!("{form}-blob")
}

fn xml(form: &str, content: &str) -> Mutation {
    Mutation::PutBlob { key: key(form), content: content.as_bytes().to_vec(), gzip: false }
}

fn well_formed(form: &str) -> String {
    format!(
        r#"<?xml version="1.0"?><data xmlns="{XMLNS}" uiVersion="1" version="1" name="visit"><weight>7</weight><meta xmlns="http://openrosa.org/jr/xforms"><timeEnd>2026-03-01T00:00:00.000Z</timeEnd><userID>worker-1</userID><instanceID>{form}</instanceID></meta></data>"#
    )
}

fn wide() -> String {
    let properties: BTreeMap<String, String> = (0..400).map(|number| (format!("p{number}"), "x".to_owned())).collect();
    json!(properties).to_string()
}

/// What nobody can handle, in one turn of HQ.
fn bad_turn() -> Turn {
    // More than an answer about several records may take, so it is asked for alone, and the limit of one record counts.
    let large = json!({"photo": "x".repeat(answer_bytes_max(1) + 1)}).to_string();
    let mut mutations = vec![
        case("unreadable", "person", "[1]"),
        case("purged", "person", "[1]"),
        case("wide", "person", &wide()),
        case("large", "person", &large),
        case("late", "household", "{}"),
        xml("bad-xml", "<data><open></data>"),
    ];
    mutations.extend(FORMS.iter().flat_map(|(id, _)| form(id)));
    let mut messages: Vec<ChangeMessage> = Vec::new();
    for (id, _) in CASES {
        let case_type = if id == "late" { "household" } else { "person" };
        messages.push(announced("case-sql", id, "CommCareCase", case_type));
    }
    messages.extend(FORMS.map(|(id, _)| announced("form-sql", id, "XFormInstance", XMLNS)));
    messages.push(no_message(0));
    Turn { mutations, messages }
}

/// Something on HQ's topic that is no message of HQ.
fn no_message(number: usize) -> ChangeMessage {
    ChangeMessage { topic: "case-sql", key: Some("x".into()), value: format!("{{ {number}").into_bytes() }
}

/// HQ as it should be; nothing announces it.
fn mended_turn() -> Turn {
    let mutations = vec![
        case("unreadable", "person", r#"{"age": "7"}"#),
        Mutation::remove(Table::Case, json!({"case_id": "purged"})),
        xml("no-xml", &well_formed("no-xml")),
        xml("bad-xml", &well_formed("bad-xml")),
    ];
    Turn { mutations, messages: Vec::new() }
}

struct Lake {
    parts: RealParts,
    services: LakeServices,
}

impl Lake {
    /// A lake with narrow limits, and one case in it.
    async fn start() -> anyhow::Result<Self> {
        let parts = RealParts::start().await?;
        let sections = format!("[tables]\n{}", FEW_TYPES.0);
        let mut services = LakeServices::start_with(&parts, 1, 1, "s3://lake/tables", &sections).await?;
        services.get("enricher-1")?.reconfigure(|config| format!("{config}{FEW_COLUMNS}")).await?;
        let fetcher = services.get("fetcher-1")?;
        fetcher.reconfigure(|config| config.replace("[hq.database]\n", &format!("[hq.database]\n{FEW_BYTES}"))).await?;
        let lake = Self { parts, services };
        let messages = vec![announced("case-sql", "well", "CommCareCase", "person")];
        lake.follow(&Turn { mutations: vec![case("well", "person", "{}")], messages }).await?;
        Ok(lake)
    }

    async fn follow(&self, turn: &Turn) -> anyhow::Result<()> {
        self.parts.hq.apply(turn).await?;
        self.parts.drained(WITHIN).await
    }

    /// The limits are widened.
    async fn widen(&mut self) -> anyhow::Result<()> {
        let writer = self.services.get("writer-1")?;
        writer.reconfigure(|config| config.replace(FEW_TYPES.0, FEW_TYPES.1)).await?;
        self.services.get("enricher-1")?.reconfigure(|config| config.replace(FEW_COLUMNS, "")).await?;
        self.services.get("fetcher-1")?.reconfigure(|config| config.replace(FEW_BYTES, "")).await
    }

    fn entries(&self) -> anyhow::Result<Vec<Value>> {
        let listed = self.services.lakectl("quarantine list")?;
        listed.as_array().cloned().context("a list of entries")
    }

    /// Numbers of entries by reason, as the summary has them.
    fn reasons(&self) -> anyhow::Result<BTreeMap<String, i64>> {
        let summary = self.services.lakectl("quarantine summary")?;
        let mut reasons = BTreeMap::new();
        for group in summary.as_array().context("a list of groups")? {
            let next_action = group["next_action"].as_str().unwrap_or_default();
            ensure!(next_action.contains("lakectl quarantine"), "what to do is a command: {group}");
            *reasons.entry(group["reason"].to_string()).or_default() += group["entries"].as_i64().unwrap_or_default();
        }
        Ok(reasons)
    }

    /// Replays all there is; the figures of what came of it.
    fn replay(&self, what: &str) -> anyhow::Result<BTreeMap<String, i64>> {
        let ended = self.services.lakectl(&format!("quarantine replay {what}"))?;
        ensure!(ended["state"] == "succeeded", "{ended}");
        println!("replay {what}: {} {}", ended["result"], ended["reason"]);
        Ok(serde_json::from_value(ended["result"].clone())?)
    }

    fn trace(&self, id: &str) -> anyhow::Result<Value> {
        self.services.lakectl(&format!("record trace {id}"))
    }
}

fn figures(of: &BTreeMap<String, i64>, names: [&str; 4]) -> [i64; 4] {
    names.map(|name| of.get(name).copied().unwrap_or(-1))
}

const OUTCOMES: [&str; 4] = ["released", "failed_again", "waiting", "refused"];

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_handled_is_mended_replayed_and_released_or_given_up() -> anyhow::Result<()> {
    let mut lake = Lake::start().await?;
    lake.parts.hq.apply(&bad_turn()).await?;
    let context = jetstream::new(async_nats::connect(lake.parts.nats.url()).await?);
    context.publish(format!("lake.rows.{DOMAIN}.case.person"), "no rows".into()).await?.await?;
    lake.parts.drained(WITHIN).await?;

    let mut expected = BTreeMap::new();
    for reason in CASES.iter().chain(&FORMS).map(|(_, reason)| *reason).chain(UNREADABLE) {
        *expected.entry(json!(reason).to_string()).or_insert(0) += 1;
    }
    // What the fetcher put aside is on its way to the metastore for a moment longer.
    let stored = wait_until("everything is in quarantine", WITHIN, async || Ok(lake.reasons()? == expected)).await;
    stored.with_context(|| format!("{:?} instead of {expected:?}", lake.reasons()))?;
    let records = (CASES.len() + FORMS.len()) as i64;
    let unreadable = UNREADABLE.len() as i64;

    // Nothing is mended yet: each record fails again, and stays one entry.
    let planned = lake.services.lakectl("quarantine replay --all --dry-run")?;
    assert_eq!((&planned["result"]["records"], &planned["result"]["done"]), (&json!(records), &json!(0)), "{planned}");
    assert_eq!(figures(&lake.replay("--all")?, OUTCOMES), [0, records, 0, unreadable]);
    assert_eq!(lake.reasons()?, expected);
    for entry in lake.entries()?.iter().filter(|entry| entry["document_id"] != "") {
        ensure!(entry["attempts"] == 2 && entry["replay"] == "it failed again after that", "{entry}");
        ensure!(entry["last_at"].as_str() > entry["first_at"].as_str(), "{entry}");
    }

    lake.parts.hq.apply(&mended_turn()).await?;
    lake.widen().await?;
    // One at first, then by reason, then the rest.
    assert_eq!(figures(&lake.replay("--id unreadable --domain clinic")?, OUTCOMES), [1, 0, 0, 0]);
    assert_eq!(figures(&lake.replay("--reason form_xml_missing --kind form")?, OUTCOMES), [1, 0, 0, 0]);
    assert_eq!(figures(&lake.replay("--all")?, OUTCOMES), [records - 2, 0, 0, unreadable]);
    let left: BTreeSet<String> = lake.entries()?.iter().map(|entry| entry["reason"].to_string()).collect();
    assert_eq!(left, UNREADABLE.map(|reason| json!(reason).to_string()).into());
    for (id, state) in [
        ("unreadable", "in_lake"),
        ("wide", "in_lake"),
        ("late", "in_lake"),
        ("bad-xml", "in_lake"),
        ("purged", "deleted"),
    ] {
        let traced = lake.trace(id)?;
        assert_eq!(traced["state"], state, "{traced}");
    }
    let row = lake.trace("late")?["rows"][0].clone();
    assert_eq!((&row["table"], &row["incomplete"]), (&json!("clinic_case_sql_household"), &json!("")), "{row}");
    ensure!(row["committed_at"].as_str() > row["fetched_at"].as_str() && row["topic"].is_null(), "{row}");
    let deletion = lake.trace("purged")?["deletions"][0].clone();
    assert_eq!((&deletion["reason"], &deletion["is_left_out"]), (&json!("missing"), &json!(false)), "{deletion}");

    // Twice is as good as once: no table has another version.
    let versions = || -> anyhow::Result<Vec<Value>> {
        let tables = lake.services.lakectl("table list")?;
        Ok(tables.as_array().context("a list of tables")?.iter().map(|table| table["version"].clone()).collect())
    };
    let before = versions()?;
    assert_eq!(figures(&lake.replay("--all")?, OUTCOMES), [0, 0, 0, unreadable]);
    assert_eq!(versions()?, before);

    let why = lake.entries()?;
    ensure!(why.iter().all(|entry| entry["replay"].to_string().contains("still cannot be understood")), "{why:?}");
    let discarded = lake.services.lakectl("quarantine discard --all --yes")?;
    assert_eq!((&discarded["result"]["entries"], &discarded["result"]["done"]), (&json!(unreadable), &json!(1)));
    assert_eq!(lake.entries()?, Vec::<Value>::new());
    the_oldest_leave(&mut lake).await?;
    lake.services.end()
}

/// What is kept has bounds: the oldest go, and are counted.
async fn the_oldest_leave(lake: &mut Lake) -> anyhow::Result<()> {
    for number in 1..4 {
        lake.follow(&Turn { mutations: Vec::new(), messages: vec![no_message(number)] }).await?;
    }
    let newest = lake.entries()?[0]["id"].clone();
    let writer = lake.services.get("writer-1")?;
    writer.reconfigure(|config| format!("[maintenance]\nquarantine_entries_max = 1\n{config}")).await?;
    let url = format!("{}/metrics", writer.url());
    wait_until("the oldest entries are dropped and counted", WITHIN, async || {
        let metrics = reqwest::get(&url).await?.text().await?;
        Ok(metrics.lines().any(|line| line == "lake_writer_quarantine_dropped_total 2"))
    })
    .await?;
    let left = lake.entries()?;
    ensure!(left.len() == 1 && left[0]["id"] == newest, "{left:?}");
    Ok(())
}
