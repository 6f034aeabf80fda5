//! A day: morning, lunch, a slow HQ, a bulk import, a writer that is down until the streams are full.

use std::sync::atomic::Ordering;

use super::Served;
use super::simulated_cluster::Deployment;
use super::simulated_pipeline::{PARTITIONS, Pipeline, Weather};

/// Time between two looks of the writer, and two rounds of KEDA, seconds.
const LOOK: u64 = 15;
const POLL: u64 = 30;

/// Most replicas of the ScaledObject: more than there are partitions.
const MAX_REPLICAS: u32 = 12;

const fn at(hour: u64, minute: u64) -> u64 {
    hour * 3_600 + minute * 60
}

const SLOW_HQ: (u64, u64) = (at(14, 0), at(15, 0));
const WRITER_DOWN: (u64, u64) = (at(20, 0), at(21, 30));

/// Nothing that was decided before is carried out later than this, seconds.
const CARRIED_OUT: u64 = 60;

fn weather(now: u64) -> Weather {
    let within = |(from, until): (u64, u64)| (from..until).contains(&now);
    let changes = match now / 3_600 {
        0..6 => 10.0,
        6 => 60.0,
        7..10 => 300.0,
        12 => 60.0,
        10..17 => 150.0,
        // The import.
        18 => 400.0,
        17..22 => 70.0,
        _ => 20.0,
    };
    // Small waves, so that no stage has a quiet time exactly at its limit.
    let wave = 1.0 + 0.1 * ((now as f64) / 97.0).sin();
    Weather {
        changes: changes * wave,
        hq_gives: if within(SLOW_HQ) { 90.0 } else { 2_000.0 },
        writer_commits: if within(WRITER_DOWN) { 0.0 } else { 900.0 },
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_day_is_worked_off_without_flapping_and_nothing_grows_against_a_slow_hq() {
    let mut served = Served::start().await;
    let mut pipeline = Pipeline::new();
    let mut stages = [Deployment::new(2, MAX_REPLICAS), Deployment::new(2, MAX_REPLICAS)];
    let mut most = [0; 2];
    for now in (0..at(24, 0)).step_by(LOOK as usize) {
        served.seconds.store(now, Ordering::SeqCst);
        let working = [stages[0].working(now), stages[1].working(now)];
        pipeline.pass(now, LOOK, weather(now), working, &served.scaler);
        if now % POLL == 0 {
            for (stage, name) in stages.iter_mut().zip(["fetcher", "enricher"]) {
                let metric = served.poll(name).await;
                stage.follow(now, metric);
            }
        }
        for (most, stage) in most.iter_mut().zip(&stages) {
            *most = stage.replicas().max(*most);
        }
        assert!(stages[0].replicas() <= PARTITIONS, "at {now} s: {} fetchers", stages[0].replicas());
        // Backlogs are gone well before the next trouble begins.
        if [at(9, 30), at(13, 45), at(17, 45), at(19, 45), at(23, 45)].contains(&now) {
            let waits = [&pipeline.feed, &pipeline.records, &pipeline.rows].map(|waiting| waiting.seconds(now));
            assert!(waits.iter().all(|seconds| *seconds <= 90), "at {now} s: behind by {waits:?} s");
        }
    }
    let [fetchers, enrichers] = &stages;
    let told = format!("fetchers {:?}, enrichers {:?}", fetchers.changes, enrichers.changes);
    for stage in &stages {
        assert!(!stage.grew_within(SLOW_HQ.0 + CARRIED_OUT, SLOW_HQ.1), "against a slow HQ: {told}");
        // The writer is told of as behind once rows have waited for a minute.
        assert!(!stage.grew_within(WRITER_DOWN.0 + 60 + CARRIED_OUT, WRITER_DOWN.1), "against a full stream: {told}");
        // Four loads come and go.
        assert!(stage.turns(2) <= 7, "flapping: {told}");
        assert!(stage.replicas() <= 2, "the night needs few: {told}");
    }
    assert!(most[0] >= 6 && most[1] >= 4, "the peaks need many: {told}");
}
