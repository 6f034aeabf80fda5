//! Backfills on real parts: HQ has a past of which Kafka knows nothing. It is filled while HQ lives on and services are killed; at the end the lake,
//! read by DuckDB and by Polars, equals HQ.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lake_simulated_hq::life::{Life, LifeOptions};
use lake_simulated_hq::play::{Pace, TurnSource};
use lake_simulated_hq::turn::Turn;
use lake_test_kit::dice::seed_or;
use lake_tests::parts::wait_until;
use lake_tests::system::{LakeServices, RealParts};
use serde_json::Value;

/// Changes of the past, and as many while it is filled; `LAKE_TEST_BACKFILL_CHANGES` makes them others.
const CHANGES: u64 = 5_000;
/// A row's place columns may be any that its worker had in this life.
const PLACE_SLACK_TURNS: u64 = u64::MAX;
const PATIENCE: Duration = Duration::from_secs(900);
/// Short stretches, so that there are many between which something can die.
const SHORT_STRETCHES: &str = "[backfill]\nstretch_documents = 300\n";

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

fn changes() -> u64 {
    std::env::var("LAKE_TEST_BACKFILL_CHANGES").ok().and_then(|text| text.parse().ok()).unwrap_or(CHANGES)
}

/// A past that only HQ's tables know.
async fn past(parts: &RealParts, life: &mut Life) -> anyhow::Result<()> {
    let opening = Turn { messages: Vec::new(), ..life.opening() };
    parts.hq.apply(&opening).await?;
    let pace = Pace { changes: changes(), rate_per_second: None, turns_per_group_max: 40, account: None };
    parts.hq.play(&mut Silent(life), &pace, |_| std::ops::ControlFlow::Continue(())).await.map(drop)
}

/// Begins to fill all projects of a life; ids of the operations.
fn begin(services: &LakeServices, life: &Life) -> anyhow::Result<Vec<String>> {
    let mut ids = Vec::new();
    for domain in life.domains() {
        let begun = services.lakectl(&format!("backfill start {domain} --no-wait"))?;
        let begun = begun.as_array().context("a list of operations")?.clone();
        ensure!(begun.len() == 3, "one for each kind: {begun:?}");
        ids.extend(begun.iter().filter_map(|operation| operation["id"].as_str()).map(str::to_owned));
    }
    Ok(ids)
}

/// An operation; `None` while the writer does not answer.
fn operation(services: &LakeServices, id: &str) -> Option<Value> {
    services.lakectl(&format!("backfill get {id}")).ok()
}

async fn until_state(services: &LakeServices, id: &str, states: &[&str]) -> anyhow::Result<Value> {
    let mut last = Value::Null;
    let what = format!("backfill {id} is {states:?}");
    let waited = wait_until(&what, PATIENCE, async || {
        last = operation(services, id).unwrap_or_default();
        Ok(states.iter().any(|state| last["state"] == *state))
    });
    let outcome = waited.await;
    outcome.with_context(|| format!("{last}"))?;
    Ok(last)
}

/// Kills a service after the other while the backfills run, lets one of them rest meanwhile, and waits for their ends.
async fn kill_on_the_way(services: &mut LakeServices, ids: &[String]) -> anyhow::Result<i64> {
    let rested = &ids[0];
    for victim in ["fetcher-1", "enricher-1", "writer-1", "fetcher-2", "enricher-2", "writer-1"] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        services.get(victim)?.kill_and_restart().await?;
        if victim == "enricher-1" && operation(services, rested).is_some_and(|now| now["state"] == "running") {
            services.lakectl(&format!("backfill pause {rested}"))?;
            let paused = until_state(services, rested, &["paused", "succeeded"]).await?;
            println!("paused: {} of about {}", paused["done"], paused["total"]);
            services.lakectl(&format!("backfill resume {rested}"))?;
        }
    }
    let mut documents = 0;
    for id in ids {
        let ended = until_state(services, id, &["succeeded", "failed", "cancelled"]).await?;
        ensure!(ended["state"] == "succeeded", "{ended}");
        println!("{}: {} documents, begun {} times", ended["target"], ended["done"], ended["attempts"]);
        documents += ended["done"].as_i64().unwrap_or_default();
    }
    Ok(documents)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_past_that_kafka_does_not_know_is_filled_while_hq_lives_and_services_die() -> anyhow::Result<()> {
    let parts = RealParts::start().await?;
    let seed = seed_or(21);
    println!("seed {seed}");
    let mut life = Life::new(LifeOptions { seed, domains: 3, ..LifeOptions::default() });
    past(&parts, &mut life).await?;
    let root = "s3://lake/tables";
    let mut services = LakeServices::start_with(&parts, 2, 2, root, SHORT_STRETCHES).await?;
    let domain = life.domains().remove(0);
    let planned = services.lakectl(&format!("backfill start {domain} --kind case --dry-run"))?;
    ensure!(planned["result"]["documents"].as_i64().unwrap_or_default() > 0, "HQ's planner guesses: {planned}");
    let tables = services.lakectl("table list")?;
    ensure!(tables == Value::Array(Vec::new()), "a plan fills nothing: {tables}");
    let started = Instant::now();
    let ids = begin(&services, &life)?;
    // HQ lives on while it is filled.
    let (played, documents) = {
        let playing = parts.play(&mut life, 2 * changes(), |_| {});
        tokio::join!(playing, kill_on_the_way(&mut services, &ids))
    };
    played?;
    let documents = documents?;
    println!("{documents} documents filled in {:.1} s, with six kills", started.elapsed().as_secs_f64());
    ensure!(documents > 0, "there was a past to fill");
    let settled = life.settle();
    parts.hq.apply(&settled).await?;
    parts.drained(PATIENCE).await?;
    println!("{}", parts.compare(&life, PLACE_SLACK_TURNS, root)?);
    ensure!(parts.quarantined().await?.is_empty(), "nothing is put aside: {:?}", parts.quarantined().await?);
    // All of it a second time changes nothing.
    for id in begin(&services, &life)? {
        let ended = until_state(&services, &id, &["succeeded", "failed", "cancelled"]).await?;
        ensure!(ended["state"] == "succeeded", "{ended}");
    }
    // And an id that HQ does not know leaves nothing behind.
    let odd = services.lakectl(&format!("backfill start {domain} --kind case --id never-was"))?;
    ensure!(odd["state"] == "succeeded", "{odd}");
    parts.drained(PATIENCE).await?;
    println!("{}", parts.compare(&life, PLACE_SLACK_TURNS, root)?);
    services.end()
}
