//! The whole path on real parts: Postgres (main and two shards), Apache Kafka, NATS JetStream, an S3 server, the three services as processes;
//! at the end the lake, read by DuckDB and by Polars, equals what HQ's life says, cell by cell.

use std::time::{Duration, Instant};

use lake_simulated_hq::life::{Life, LifeOptions};
use lake_test_kit::dice::seed_or;
use lake_tests::parts::wait_until;
use lake_tests::system::{LakeServices, RealParts, Running};
use serde_json::Value;

/// Changes of one life; `LAKE_TEST_CHANGES` sets another number, 100,000 by hand.
const CHANGES: u64 = 8_000;
/// A row's place columns may be any that its worker had in this life: played as fast as possible, messages of different topics overtake one
/// another by any time. Workers who never moved leave no choice.
const PLACE_SLACK_TURNS: u64 = u64::MAX;
/// What a life with sabotage puts aside.
const BAD_INPUT: [&str; 6] = [
    "change_malformed_json",
    "change_missing_document_id",
    "change_not_an_object",
    "form_xml_missing",
    "form_xml_not_well_formed",
    "form_xml_raises",
];
/// Streams on which nothing has to be, where all goes well and the lake asks for nothing by itself.
const MAY_BE_UNUSED: [&str; 3] = ["LAKE_QUARANTINE", "LAKE_CHANGES", "LAKE_REPORTS"];
/// How long the lake may take to catch up.
const DRAIN_WITHIN: Duration = Duration::from_secs(600);

fn changes() -> u64 {
    std::env::var("LAKE_TEST_CHANGES").map_or(CHANGES, |told| told.parse().expect("LAKE_TEST_CHANGES is a number"))
}

/// A life; `LAKE_TEST_SEED` makes it another one, to look for trouble by hand.
fn life(seed: u64, sabotage: bool) -> Life {
    let seed = seed_or(seed);
    println!("seed {seed}");
    Life::new(LifeOptions { seed, domains: 3, sabotage, ..LifeOptions::default() })
}

/// Opening, so many changes, and all that was held back.
async fn live(parts: &RealParts, life: &mut Life, changes: u64, report: impl FnMut(u64)) -> anyhow::Result<()> {
    let opening = life.opening();
    parts.hq.apply(&opening).await?;
    parts.play(life, changes, report).await?;
    let settled = life.settle();
    parts.hq.apply(&settled).await
}

/// Whether lakectl tells of one process of each service, and of nothing that waits where messages have passed.
fn is_at_rest(told: &Value) -> bool {
    let list = |name: &str| told[name].as_array().cloned().unwrap_or_default();
    let services: Vec<Value> = list("replicas").iter().map(|replica| replica["service"].clone()).collect();
    let is_empty = |stream: &Value| {
        ["messages", "undelivered", "in_flight"].iter().all(|figure| stream[figure] == 0)
            && (stream["published_total"] != 0 || MAY_BE_UNUSED.iter().any(|name| stream["name"] == *name))
    };
    services == ["enricher", "fetcher", "writer"]
        && told["lag"] == 0
        && list("partitions")
            .iter()
            .all(|partition| partition["reader"].as_str().unwrap_or_default().starts_with("fetcher"))
        && list("streams").len() == 5
        && list("streams").iter().all(is_empty)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lake_equals_hq() -> anyhow::Result<()> {
    let parts = RealParts::start().await?;
    let mut services = LakeServices::start(&parts, 1, 1, "s3://lake/tables").await?;
    let mut life = life(11, false);
    let started = Instant::now();
    live(&parts, &mut life, changes(), |_| {}).await?;
    println!("{} changes played in {:.1} s", life.changes(), started.elapsed().as_secs_f64());
    parts.drained(DRAIN_WITHIN).await?;
    println!("drained after {:.1} s", started.elapsed().as_secs_f64());
    let told = wait_until("the pipeline is told as it is", DRAIN_WITHIN, async || {
        let told = services.lakectl("lake pipeline")?;
        if is_at_rest(&told) { Ok(true) } else { anyhow::bail!("{told}") }
    });
    told.await?;
    println!("{}", parts.compare(&life, PLACE_SLACK_TURNS, "s3://lake/tables")?);
    services.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_services_lose_and_duplicate_nothing() -> anyhow::Result<()> {
    let parts = RealParts::start().await?;
    let mut services = LakeServices::start(&parts, 2, 2, "s3://lake/tables").await?;
    let mut life = life(12, true);
    let opening = life.opening();
    parts.hq.apply(&opening).await?;
    for (share, victim) in [(1, "fetcher-1"), (2, "enricher-2"), (3, "writer-1"), (4, "fetcher-2")] {
        let played = std::pin::pin!(parts.play(&mut life, changes() * share / 4, |_| {}));
        // Killed while changes are being played, not between.
        let (played, killed) = tokio::join!(played, async { services.get(victim)?.kill_and_restart().await });
        played?;
        killed?;
    }
    let settled = life.settle();
    parts.hq.apply(&settled).await?;
    parts.drained(DRAIN_WITHIN).await?;
    println!("{}", parts.compare(&life, PLACE_SLACK_TURNS, "s3://lake/tables")?);
    // The bad input of this life is there, with its reasons; everything else went on.
    let quarantined = parts.quarantined().await?;
    println!("quarantined: {quarantined:?}");
    for reason in BAD_INPUT {
        anyhow::ensure!(quarantined.contains_key(reason), "nothing was put aside as {reason}: {quarantined:?}");
    }
    services.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_does_the_same() -> anyhow::Result<()> {
    let parts = RealParts::start().await?;
    let root = parts.folder.path().join("tables");
    let mut lake = Running::start("lake", "lake", &lake_config(&parts, &root), Vec::new(), parts.folder.path()).await?;
    let mut life = life(13, false);
    live(&parts, &mut life, changes(), |_| {}).await?;
    parts.committed(DRAIN_WITHIN).await?;
    println!("{}", parts.compare(&life, PLACE_SLACK_TURNS, &root.display().to_string())?);
    lake.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_survives_being_killed() -> anyhow::Result<()> {
    let parts = RealParts::start().await?;
    let root = parts.folder.path().join("tables");
    let mut lake = Running::start("lake", "lake", &lake_config(&parts, &root), Vec::new(), parts.folder.path()).await?;
    let mut life = life(14, true);
    let opening = life.opening();
    parts.hq.apply(&opening).await?;
    for share in 1..=2 {
        let played = std::pin::pin!(parts.play(&mut life, changes() * share / 4, |_| {}));
        let (played, killed) = tokio::join!(played, lake.kill_and_restart());
        played?;
        killed?;
    }
    let settled = life.settle();
    parts.hq.apply(&settled).await?;
    parts.committed(DRAIN_WITHIN).await?;
    println!("{}", parts.compare(&life, PLACE_SLACK_TURNS, &root.display().to_string())?);
    lake.end()
}

fn lake_config(parts: &RealParts, root: &std::path::Path) -> String {
    let metastore = root.with_file_name("metastore.sqlite");
    let rest = format!(
        "[take]\ndomains = \"everything\"\n[store]\nroot = \"{}\"\n[metastore]\nurl = \"sqlite:{}\"\n[lease]\nseconds = 12\n",
        root.display(),
        metastore.display()
    );
    [parts.kafka_section(), parts.hq_section(), rest].concat()
}
