//! Cases and forms over several databases, on a real server: shards, replicas, what is asked where, and how many statements that takes.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeMap, HashMap};
use std::time::{SystemTime, UNIX_EPOCH};

use lake_hq::postgres::{HqPostgresConfig, PostgresHq, Sharding};
use lake_hq::source::{CaseRows, HqDatabase, Observation, ReadFrom, SourceError, Wanted};
use lake_tests::two_shards::{TwoShards, place_of, run};
use sqlx::{Connection, PgConnection};

fn ids(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}{number}")).collect()
}

/// The ids that belong into `p1` and `p2`.
fn by_place(ids: &[String]) -> [Vec<String>; 2] {
    let (second, first) = ids.iter().cloned().partition(|id| place_of(id) == 1);
    [first, second]
}

/// 500 cases and 500 forms, each where it belongs.
async fn filled() -> TwoShards {
    let shards = TwoShards::start().await.unwrap();
    for (database, ids) in ["p1", "p2"].into_iter().zip(by_place(&ids("id", 500))) {
        shards.insert_cases(database, &ids).await.unwrap();
        shards.insert_forms(database, &ids).await.unwrap();
    }
    shards
}

async fn connect(config: &HqPostgresConfig) -> PostgresHq {
    PostgresHq::connect(config).await.unwrap()
}

fn swapped(config: &HqPostgresConfig) -> HqPostgresConfig {
    let mut swapped = config.clone();
    swapped.shards[0].url = config.shards[1].url.clone();
    swapped.shards[1].url = config.shards[0].url.clone();
    swapped
}

fn wanted(ids: &[String], changed_us: i64, deleted: bool) -> Vec<Wanted> {
    ids.iter().map(|id| Wanted { id: id.clone(), changed_us, deleted, alone: false }).collect()
}

/// How many were found; every id must be answered once.
fn found<T>(asked: usize, observations: &[Observation<T>]) -> usize {
    let by_id: HashMap<&str, bool> =
        observations.iter().map(|observation| (observation.id.as_str(), observation.rows.is_some())).collect();
    assert_eq!((by_id.len(), observations.len()), (asked, asked));
    by_id.values().filter(|found| **found).count()
}

fn counts<const N: usize>(of: [(&str, usize); N]) -> BTreeMap<String, usize> {
    of.into_iter().map(|(database, count)| (database.to_owned(), count)).collect()
}

#[tokio::test]
async fn a_batch_costs_four_statements_and_three_on_each_shard() {
    let mut shards = filled().await;
    // The list may be in any order.
    shards.config.shards.reverse();
    let hq = connect(&shards.config).await;
    let asked = ids("id", 501);
    let begin = shards.log_end();
    assert_eq!(found(501, &hq.latest_cases(&wanted(&asked, 0, false)).await.unwrap()), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 4), ("p2", 4)]));
    let begin = shards.log_end();
    assert_eq!(found(501, &hq.latest_forms(&wanted(&asked, 0, false)).await.unwrap()), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 3), ("p2", 3)]));

    // Without a replica a second try would find nothing new, and announced deletions go with the others.
    let mut mixed = wanted(&ids("id", 250), i64::MAX, false);
    mixed.extend(wanted(&ids("id", 500)[250..], 0, true));
    mixed.extend(wanted(&ids("gone", 100), 0, false));
    let begin = shards.log_end();
    assert_eq!(found(600, &hq.latest_cases(&mixed).await.unwrap()), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 4), ("p2", 4)]));
    assert!(hq.forms(&[], ReadFrom::Primary).await.unwrap().is_empty());
    hq.check().await.unwrap();
}

#[tokio::test]
async fn shards_in_the_wrong_order_are_noticed_and_every_id_is_asked_everywhere() {
    let mut shards = filled().await;
    let hq = connect(&swapped(&shards.config)).await;
    let mut asked = ids("id", 500);
    asked.extend(ids("gone", 3));
    let begin = shards.log_end();
    assert_eq!(found(503, &hq.latest_cases(&wanted(&asked, 0, false)).await.unwrap()), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 4), ("p2", 4)]));
    let begin = shards.log_end();
    assert_eq!(found(503, &hq.latest_forms(&wanted(&asked, 0, true)).await.unwrap()), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 3), ("p2", 3)]));
    // One that is nowhere costs one statement on each.
    let begin = shards.log_end();
    assert_eq!(found(1, &hq.latest_cases(&wanted(&ids("gone", 1), 0, false)).await.unwrap()), 0);
    assert_eq!(shards.statements_since(begin), counts([("p1", 1), ("p2", 1)]));
}

#[tokio::test]
async fn the_wrong_order_is_noticed_too_when_the_first_rows_come_later() {
    let mut shards = TwoShards::start().await.unwrap();
    let hq = connect(&swapped(&shards.config)).await;
    assert_eq!(found(5, &hq.latest_cases(&wanted(&ids("id", 5), 0, false)).await.unwrap()), 0);
    for (database, ids) in ["p1", "p2"].into_iter().zip(by_place(&ids("id", 40))) {
        shards.insert_cases(database, &ids).await.unwrap();
    }
    assert_eq!(found(40, &hq.latest_cases(&wanted(&ids("id", 40), 0, false)).await.unwrap()), 40);
    let begin = shards.log_end();
    assert_eq!(found(40, &hq.latest_cases(&wanted(&ids("id", 40), 0, false)).await.unwrap()), 40);
    assert_eq!(shards.statements_since(begin), counts([("p1", 4), ("p2", 4)]));
}

#[tokio::test]
async fn all_shards_are_asked_where_that_is_configured_and_rows_left_behind_do_not_win() {
    let shards = filled().await;
    let mut config = shards.config.clone();
    config.sharding = Sharding::All;
    for shard in &mut config.shards {
        (shard.first, shard.last) = (0, 0);
    }
    // As after a move of shards: the old place still has an old copy.
    let [first, _] = by_place(&ids("id", 500));
    let left_behind = &first[..1];
    shards.insert_cases("p2", left_behind).await.unwrap();
    let older = "update form_processor_commcarecasesql set name = 'old', server_modified_on = '2020-01-01T00:00:00Z' where case_id = '";
    run(&shards.url("p2"), &format!("{older}{}'", left_behind[0])).await.unwrap();
    let hq = connect(&config).await;
    let observations = hq.latest_cases(&wanted(&ids("id", 500), 0, false)).await.unwrap();
    assert_eq!(found(500, &observations), 500);
    let moved = observations.iter().find(|observation| observation.id == left_behind[0]).unwrap();
    assert_eq!(moved.rows.as_ref().unwrap().case["name"], "Asha");
    assert_eq!(moved.rows.as_ref().unwrap().transactions.len(), 4);
}

#[tokio::test]
async fn ranges_that_cannot_be_are_refused() {
    let shards = TwoShards::start().await.unwrap();
    for (change, words) in [
        (
            (|config| config.shards[1].first = 600) as fn(&mut HqPostgresConfig),
            "shards 512 to 599 belong to no database",
        ),
        (|config| config.shards[1].first = 500, "shard 500 belongs to both p1 and p2"),
        (|config| config.shard_count = 1000, "power of two"),
    ] {
        let mut config = shards.config.clone();
        change(&mut config);
        match PostgresHq::connect(&config).await {
            Err(error @ SourceError::Refused { .. }) => assert!(error.to_string().contains(words), "{error}"),
            _ => panic!("it was accepted: {words}"),
        }
    }
}

/// Two shards with "replicas": databases of their own, so that it is known what comes from where. They lack the last of the ids.
async fn replicated(missing: usize) -> (TwoShards, Vec<String>) {
    let mut shards = filled().await;
    let all = ids("id", 500);
    for (place, there) in by_place(&all[..500 - missing]).into_iter().enumerate() {
        let name = ["r1", "r2"][place];
        shards.config.shards[place].replica_url = Some(shards.add_database(name).await.unwrap().into());
        shards.insert_cases(name, &there).await.unwrap();
        shards.insert_forms(name, &there).await.unwrap();
    }
    (shards, all)
}

#[tokio::test]
async fn replicas_are_preferred_and_primaries_are_asked_for_what_they_lack() {
    let (mut shards, all) = replicated(20).await;
    let hq = connect(&shards.config).await;
    let begin = shards.log_end();
    assert_eq!(found(480, &hq.latest_cases(&wanted(&all[..480], 0, false)).await.unwrap()), 480);
    assert_eq!(shards.statements_since(begin), counts([("r1", 4), ("r2", 4)]), "the primaries are left alone");
    // 20 are missing on the replicas only, one everywhere.
    let mut asked = all.clone();
    asked.push("gone".into());
    let begin = shards.log_end();
    assert_eq!(found(501, &hq.latest_cases(&wanted(&asked, 0, false)).await.unwrap()), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 4), ("p2", 4), ("r1", 4), ("r2", 4)]));
    let begin = shards.log_end();
    assert_eq!(found(501, &hq.latest_forms(&wanted(&asked, 0, false)).await.unwrap()), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 3), ("p2", 3), ("r1", 3), ("r2", 3)]));
    // Announced deletions are a matter of the primaries, and go with what the replicas lack.
    let mut mixed = wanted(&all[..250], 0, true);
    mixed.extend(wanted(&all[250..], 0, false));
    let begin = shards.log_end();
    assert_eq!(found(500, &hq.latest_cases(&mixed).await.unwrap()), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 4), ("p2", 4), ("r1", 4), ("r2", 4)]));
    // Where only one kind of copy is asked for, there is no second try.
    assert_eq!(found(501, &hq.cases(&asked, ReadFrom::Replica).await.unwrap()), 480);
}

#[tokio::test]
async fn a_replica_that_is_older_than_the_change_does_not_count() {
    let (mut shards, all) = replicated(0).await;
    let hq = connect(&shards.config).await;
    for (database, name) in [("p1", "new"), ("p2", "new"), ("r1", "old"), ("r2", "old")] {
        run(&shards.url(database), &format!("update form_processor_commcarecasesql set name = '{name}'"))
            .await
            .unwrap();
    }
    let named = |observations: &[Observation<CaseRows>], name: &str| {
        observations.iter().filter(|one| one.rows.as_ref().is_some_and(|rows| rows.case["name"] == name)).count()
    };
    let now_us = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros()).unwrap();
    let begin = shards.log_end();
    let observations = hq.latest_cases(&wanted(&all, now_us - 60_000_000, false)).await.unwrap();
    assert_eq!(named(&observations, "old"), 500);
    assert_eq!(shards.statements_since(begin), counts([("r1", 4), ("r2", 4)]));
    let begin = shards.log_end();
    let observations = hq.latest_cases(&wanted(&all, now_us + 3_600_000_000, false)).await.unwrap();
    assert_eq!((named(&observations, "new"), found(500, &observations)), (500, 500));
    assert_eq!(shards.statements_since(begin), counts([("p1", 4), ("p2", 4), ("r1", 4), ("r2", 4)]));
    // What is gone from the primary is gone, even if the old replica has it.
    run(&shards.url("p1"), "truncate form_processor_commcarecasesql cascade").await.unwrap();
    let observations = hq.latest_cases(&wanted(&all, now_us + 3_600_000_000, false)).await.unwrap();
    assert_eq!(found(500, &observations), by_place(&all)[1].len());
}

/// A failover to a machine whose clock is behind, and a change of a case just after it.
#[tokio::test]
async fn a_clock_that_steps_back_puts_no_later_reading_before_an_earlier_one() {
    let shards = filled().await;
    let all = ids("id", 500);
    shards.set_clock_behind("p1", "0 s").await.unwrap();
    let hq = connect(&shards.config).await;
    let observed = |observations: Vec<Observation<CaseRows>>| -> BTreeMap<String, i64> {
        observations.into_iter().map(|one| (one.id, one.observed_us)).collect()
    };
    let before = observed(hq.latest_cases(&wanted(&all, 0, false)).await.unwrap());
    shards.set_clock_behind("p1", "40 s").await.unwrap();
    let mut last = before;
    for _ in 0..3 {
        let next = observed(hq.latest_cases(&wanted(&all, 0, false)).await.unwrap());
        assert!(last.iter().all(|(id, at)| next[id] > *at), "{last:?} {next:?}");
        last = next;
    }
}

/// A logical replica is an ordinary server with a clock of its own, which says nothing about how new its rows are.
#[tokio::test]
async fn a_replica_that_cannot_tell_how_new_it_is_is_not_read() {
    let (mut shards, all) = replicated(0).await;
    for name in ["r1", "r2"] {
        run(&shards.url(name), "drop function clock.pg_is_in_recovery()").await.unwrap();
        run(&shards.url(name), "update form_processor_commcarecasesql set name = 'old'").await.unwrap();
    }
    let hq = connect(&shards.config).await;
    let begin = shards.log_end();
    let observations = hq.latest_cases(&wanted(&all, 0, false)).await.unwrap();
    assert!(observations.iter().all(|one| one.rows.as_ref().unwrap().case["name"] != "old"));
    assert_eq!(found(500, &observations), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 4), ("p2", 4)]));
}

#[tokio::test]
async fn with_the_wrong_order_replicas_and_primaries_are_all_asked_once() {
    let (mut shards, all) = replicated(20).await;
    let mut config = swapped(&shards.config);
    for place in 0..2 {
        config.shards[place].replica_url = shards.config.shards[1 - place].replica_url.clone();
    }
    let hq = connect(&config).await;
    let begin = shards.log_end();
    assert_eq!(found(500, &hq.latest_cases(&wanted(&all, 0, false)).await.unwrap()), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 4), ("p2", 4), ("r1", 4), ("r2", 4)]));
}

#[tokio::test]
async fn a_replica_of_another_shard_is_not_used() {
    let (mut shards, all) = replicated(0).await;
    let mut config = shards.config.clone();
    config.shards[0].replica_url = shards.config.shards[1].replica_url.clone();
    let hq = connect(&config).await;
    let begin = shards.log_end();
    assert_eq!(found(500, &hq.latest_cases(&wanted(&all, 0, false)).await.unwrap()), 500);
    assert_eq!(shards.statements_since(begin), counts([("p1", 4), ("r2", 4)]));
}

#[tokio::test]
async fn no_statement_has_a_name_on_the_server_unless_that_is_allowed() {
    let mut shards = filled().await;
    for (prepared, named) in [(false, 0), (true, 1)] {
        let mut config = shards.config.clone();
        (config.prepared_statements, config.connections_max) = (prepared, 1);
        let begin = shards.log_end();
        let hq = connect(&config).await;
        for _ in 0..3 {
            hq.latest_cases(&wanted(&ids("id", 500), 0, false)).await.unwrap();
            hq.latest_forms(&wanted(&ids("id", 500), 0, false)).await.unwrap();
        }
        let log = shards.log_since(begin);
        let executed: Vec<&str> = log.lines().filter_map(|line| line.split_once(" execute ").map(|it| it.1)).collect();
        let with_name = executed.iter().filter(|statement| !statement.starts_with("<unnamed>: ")).count();
        assert!(executed.len() >= 2 * 3 * 7, "{log}");
        assert_eq!(usize::from(with_name > 0), named, "{log}");
        // Nothing outlives its transaction: pgbouncer may give the connection to somebody else.
        let set: Vec<&str> = log.lines().filter(|line| line.to_lowercase().contains("statement: set ")).collect();
        assert!(set.is_empty(), "{set:?}");
    }
}

#[tokio::test]
async fn no_more_connections_are_opened_than_allowed_and_statements_have_a_time_limit() {
    let shards = filled().await;
    let mut config = shards.config.clone();
    (config.connections_max, config.statement_timeout_ms) = (2, 12_345);
    let hq = connect(&config).await;
    let asked = wanted(&ids("id", 500), 0, false);
    let many = (0..20).map(|_| hq.latest_cases(&asked));
    for observations in futures::future::join_all(many).await {
        assert_eq!(found(500, &observations.unwrap()), 500);
    }
    let mut admin = PgConnection::connect(&shards.url("main")).await.unwrap();
    let sql =
        "select datname::text, count(*) from pg_stat_activity where application_name = 'commcare-lake' group by 1";
    let open: Vec<(String, i64)> = sqlx::query_as(sql).fetch_all(&mut admin).await.unwrap();
    assert!(!open.is_empty() && open.iter().all(|(_, count)| *count <= 2), "{open:?}");
    let mut shards = shards;
    assert!(shards.log_since(0).contains("set_config('statement_timeout', '12345', true)"));
}
