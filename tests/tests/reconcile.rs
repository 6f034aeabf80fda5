//! A lake that is falsified on real parts is found out and healed: rows that another program removed, changed, added and moved, a tombstone too many,
//! and a time of HQ's life that nobody announced, with its purges, types and times that went back. At the end the lake, read by DuckDB and by Polars,
//! equals HQ, and another comparison finds nothing.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lake_proto::queue::v1::{RowBatch, Tombstone};
use lake_shared::identity::{Kind, Space, TableKey};
use lake_shared::queue::jetstream::{JetStreamConfig, JetStreamQueue};
use lake_shared::queue::{Message, Queue};
use lake_shared::{escaped_names, wire};
use lake_simulated_hq::life::{Life, LifeOptions};
use lake_simulated_hq::play::{Pace, TurnSource};
use lake_simulated_hq::turn::Turn;
use lake_test_kit::dice::seed_or;
use lake_tests::package_file;
use lake_tests::parts::{parts_dir, wait_until};
use lake_tests::system::{LakeServices, RealParts};
use serde_json::{Value, json};

/// Changes that are announced, and then as many more of which nothing is said as are a fifth of them.
const CHANGES: u64 = 3_000;
/// A row's place columns may be any that its worker had in this life.
const PLACE_SLACK_TURNS: u64 = u64::MAX;
const PATIENCE: Duration = Duration::from_secs(300);
const ROOT: &str = "s3://lake/tables";
/// What is on its way arrives soon: nothing else goes on.
const SETTLE: &str = "[reconcile]\nsettle_seconds = 2\n";

/// A life of which HQ says nothing.
struct Silent<'l>(&'l mut Life);

impl TurnSource for Silent<'_> {
    fn turn(&mut self) -> Turn {
        Turn { messages: Vec::new(), ..self.0.turn() }
    }

    fn changes(&self) -> u64 {
        self.0.changes()
    }
}

/// HQ lives on, and Kafka loses all of it.
async fn live_in_silence(parts: &RealParts, life: &mut Life) -> anyhow::Result<()> {
    let changes = life.changes() + CHANGES / 5;
    let pace = Pace { changes, rate_per_second: None, turns_per_group_max: 40, account: None };
    parts.hq.play(&mut Silent(life), &pace, |_| std::ops::ControlFlow::Continue(())).await?;
    parts.hq.apply(&Turn { messages: Vec::new(), ..life.settle() }).await
}

fn table(domain: &str, document_type: &str) -> TableKey {
    TableKey { space: Space { domain: domain.into(), kind: Kind::Case }, document_type: document_type.into() }
}

/// Another program changes tables: the ids that it took, none of `leave`, by what it did to them.
fn falsify(
    parts: &RealParts,
    domain: &str,
    leave: &BTreeMap<String, String>,
) -> anyhow::Result<BTreeMap<String, String>> {
    let options: BTreeMap<_, _> = parts.store.environment().into_iter().collect();
    let uri = |name: &str| format!("{ROOT}/{}", escaped_names::table_path(&table(domain, name)));
    let leave: Vec<&String> = leave.keys().collect();
    let order =
        json!({"storage_options": options, "person": uri("person"), "household": uri("household"), "leave": leave});
    let mut other = Command::new(parts_dir()?.join("python/bin/python"))
        .arg(package_file("readers/falsify.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .context("run tests/set-up first")?;
    other.stdin.take().context("standard input")?.write_all(order.to_string().as_bytes())?;
    let output = other.wait_with_output()?;
    ensure!(output.status.success(), "falsify.py failed");
    serde_json::from_slice(&output.stdout).context("what falsify.py has done")
}

/// A tombstone of a case that HQ has, as if it had been read and not found.
async fn bury(parts: &RealParts, domain: &str, id: &str) -> anyhow::Result<()> {
    // With streams as the services have them.
    let config = JetStreamConfig {
        servers: vec![parts.nats.url()],
        stream_size_bytes_max: 268_435_456,
        quarantine_size_bytes_max: 67_108_864,
        ..JetStreamConfig::default()
    };
    let queue = JetStreamQueue::connect(config).await?;
    let observed_us = chrono::Utc::now().timestamp_micros();
    let tombstone =
        Tombstone { id: id.to_owned(), version_us: None, observed_us, reason: "missing".into(), lineage: None };
    let batch = RowBatch {
        domain: domain.into(),
        kind: Kind::Case.to_proto().into(),
        r#type: None,
        arrow_ipc: Default::default(),
        tombstones: vec![tombstone],
    };
    let subject = escaped_names::rows_subject(&domain.into(), Kind::Case, None);
    queue.publish(Message { subject, payload: wire::encode(&batch), dedupe_id: "a tombstone too many".into() }).await?;
    Ok(())
}

/// A comparison at its end, with what differs.
async fn ended(services: &LakeServices, id: &str) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    let what = format!("comparison {id} has ended");
    let waited = wait_until(&what, PATIENCE, async || {
        last = services.lakectl(&format!("reconcile get {id} --limit 100000")).unwrap_or_default();
        Ok(["succeeded", "failed", "cancelled"].iter().any(|state| last["state"] == *state))
    });
    let outcome = waited.await;
    outcome.with_context(|| format!("{last}"))?;
    ensure!(last["state"] == "succeeded", "{last}");
    println!("{} {}: {}", last["target"], last["heal"], last["result"]);
    Ok(last)
}

/// Compares all projects of a life; what differs, by id.
async fn compare(services: &LakeServices, life: &Life, more: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let began = Instant::now();
    let mut ids = Vec::new();
    for domain in life.domains() {
        let begun = services.lakectl(&format!("reconcile start {domain} --no-wait{more}"))?;
        let begun = begun.as_array().context("a list of operations")?.clone();
        ensure!(begun.len() == 3, "one for each kind: {begun:?}");
        ids.extend(begun.iter().filter_map(|operation| operation["id"].as_str()).map(str::to_owned));
    }
    let mut differences = BTreeMap::new();
    for id in &ids {
        let found = ended(services, id).await?;
        for of in found["differences"].as_array().context("a list of differences")? {
            let (id, class) = (of["id"].as_str().context("an id")?, of["class"].as_str().context("a class")?);
            differences.insert(id.to_owned(), class.to_owned());
        }
    }
    println!("{} documents differ, found in {:.1} s", differences.len(), began.elapsed().as_secs_f64());
    Ok(differences)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_falsified_lake_is_found_out_and_healed() -> anyhow::Result<()> {
    let parts = RealParts::start().await?;
    let seed = seed_or(33);
    println!("seed {seed}");
    let mut life = Life::new(LifeOptions { seed, domains: 2, ..LifeOptions::default() });
    let mut services = LakeServices::start_with(&parts, 2, 1, ROOT, SETTLE).await?;
    parts.hq.apply(&life.opening()).await?;
    parts.play(&mut life, CHANGES, |_| {}).await?;
    let settled = life.settle();
    parts.hq.apply(&settled).await?;
    parts.drained(PATIENCE).await?;
    // Purges are silent in HQ, so the lake has rows of them.
    let before = compare(&services, &life, "").await?;
    ensure!(before.values().all(|class| class == "extra"), "{before:?}");

    let domain = life.domains().remove(0);
    let falsified = falsify(&parts, &domain, &before)?;
    println!("{falsified:?}");
    bury(&parts, &domain, &falsified["buried"]).await?;
    parts.drained(PATIENCE).await?;
    let found = compare(&services, &life, "").await?;
    for (what, class) in [
        ("removed", "missing"),
        ("stale", "stale"),
        ("back", "stale"),
        ("moved", "moved"),
        ("buried", "missing"),
        ("extra", "extra"),
    ] {
        let id = &falsified[what];
        ensure!(found.get(id).is_some_and(|of| of == class), "{what} {id} is {:?}", found.get(id));
    }
    ensure!(found.len() == before.len() + falsified.len(), "nothing else differs: {found:?}");

    live_in_silence(&parts, &mut life).await?;
    let found = compare(&services, &life, " --heal").await?;
    for class in ["missing", "stale", "extra", "moved"] {
        ensure!(found.values().any(|of| of == class), "nothing is {class} after a time of silence");
    }
    parts.drained(PATIENCE).await?;
    let left = compare(&services, &life, "").await?;
    ensure!(left.is_empty(), "all is healed but {left:?}");
    println!("{}", parts.compare(&life, PLACE_SLACK_TURNS, ROOT)?);
    ensure!(parts.quarantined().await?.is_empty(), "nothing is put aside: {:?}", parts.quarantined().await?);
    services.end()
}
