//! A real database that becomes slow is asked less at once, and as much as before when it has recovered.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use lake_hq::postgres::PostgresHq;
use lake_hq::source::{HqDatabase, ReadFrom};
use lake_tests::parts::wait_until;
use lake_tests::two_shards::{TwoShards, place_of, run};
use sqlx::{Connection, PgConnection};

const PATIENCE: Duration = Duration::from_secs(120);

/// Puts a view before the cases of `p1` that takes as long as a table says.
const SLOW_CASES: &str = "
    create table slowness (seconds float8 not null);
    insert into slowness values (0.05);
    alter table form_processor_commcarecasesql rename to cases_behind_the_view;
    create view form_processor_commcarecasesql as
      select cases.* from cases_behind_the_view cases, (select pg_sleep(seconds) from slowness offset 0) sleep;";

/// Reads of ours that the server is at.
async fn active(admin: &mut PgConnection) -> usize {
    let sql = "select count(*) from pg_stat_activity
               where application_name = 'commcare-lake' and state = 'active' and query like '%form_processor_commcarecasesql%'";
    usize::try_from(sqlx::query_scalar::<_, i64>(sql).fetch_one(admin).await.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_database_is_asked_less_at_once_until_it_has_recovered() {
    let shards = TwoShards::start().await.unwrap();
    let asked: Vec<String> = (0..100).map(|n| format!("id{n}")).filter(|id| place_of(id) == 0).take(1).collect();
    shards.insert_cases("p1", &asked).await.unwrap();
    run(&shards.url("p1"), SLOW_CASES).await.unwrap();
    let mut config = shards.config.clone();
    // A wide margin, as the machine may be busy with other things: answers may take ten times as long and still count as usual.
    (config.connections_max, config.in_flight_max, config.slow_down_factor) = (12, 8, 3.0);
    let hq = Arc::new(PostgresHq::connect(&config).await.unwrap());
    let (reads, over) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let readers: Vec<_> = (0..12)
        .map(|_| {
            let (hq, asked, reads, over) = (hq.clone(), asked.clone(), reads.clone(), over.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    assert!(hq.cases(&asked, ReadFrom::Primary).await.unwrap()[0].rows.is_some());
                    reads.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let mut admin = PgConnection::connect(&shards.url("p1")).await.unwrap();

    wait_until("all are at work", PATIENCE, async || {
        let is_at_work = reads.load(Ordering::SeqCst) > 200 && hq.turns().limit() == 8 && hq.turns().in_flight() == 8;
        // The server has more to do than it may have later.
        Ok(is_at_work && active(&mut admin).await > 2)
    })
    .await
    .unwrap();

    run(&shards.url("p1"), "update slowness set seconds = 2").await.unwrap();
    wait_until("the limit has fallen", PATIENCE, async || Ok(hq.turns().limit() <= 2)).await.unwrap();
    // What was asked before is given back only when its answer has arrived here, a moment after the server is done with it.
    wait_until("it is asked less", PATIENCE, async || Ok(hq.turns().in_flight() <= 2)).await.unwrap();
    let before = reads.load(Ordering::SeqCst);
    wait_until("it goes on, slowly", PATIENCE, async || {
        // Looked at in this order, a read that ends in between cannot make it look like too many.
        let (at_work, in_flight) = (active(&mut admin).await, hq.turns().in_flight());
        assert!(at_work <= 2 && in_flight <= 2, "{at_work} {in_flight}");
        Ok(reads.load(Ordering::SeqCst) > before + 3)
    })
    .await
    .unwrap();
    // A probe does not wait in that line.
    hq.check().await.unwrap();

    run(&shards.url("p1"), "update slowness set seconds = 0.05").await.unwrap();
    wait_until("it has recovered", PATIENCE, async || Ok(hq.turns().limit() == 8 && hq.turns().in_flight() == 8))
        .await
        .unwrap();
    over.store(true, Ordering::SeqCst);
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(hq.turns().in_flight(), 0);
}

#[tokio::test]
async fn statements_that_run_out_of_time_make_the_limit_fall_at_once() {
    let shards = TwoShards::start().await.unwrap();
    let asked: Vec<String> = (0..100).map(|n| format!("id{n}")).filter(|id| place_of(id) == 0).collect();
    shards.insert_cases("p1", &asked).await.unwrap();
    let mut config = shards.config.clone();
    (config.in_flight_max, config.statement_timeout_ms) = (8, 1_000);
    let hq = PostgresHq::connect(&config).await.unwrap();
    let mut other = PgConnection::connect(&shards.url("p1")).await.unwrap();
    sqlx::raw_sql("begin; lock table form_processor_commcarecasesql in access exclusive mode")
        .execute(&mut other)
        .await
        .unwrap();
    let many = (0..8).map(|_| hq.cases(&asked, ReadFrom::Primary));
    assert!(futures::future::join_all(many).await.iter().all(Result::is_err));
    assert!(hq.turns().limit() <= 4, "{}", hq.turns().limit());
    sqlx::raw_sql("rollback").execute(&mut other).await.unwrap();
    assert_eq!(hq.cases(&asked, ReadFrom::Primary).await.unwrap().len(), asked.len());
    assert_eq!(hq.turns().in_flight(), 0);
}
