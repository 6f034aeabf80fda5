//! Records of a real database that cannot be read in time, or not at all: their neighbours are read all the same, and no less is asked at once.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use lake_fetcher::allow_list::TakeConfig;
use lake_fetcher::change_feed::memory::MemoryFeed;
use lake_fetcher::options::FetchOptions;
use lake_fetcher::pipeline::Fetcher;
use lake_hq::documents::case::CaseOptions;
use lake_hq::postgres::{HqPostgresConfig, PostgresHq};
use lake_hq::source::{CaseRows, Hindrance, Hq, HqDatabase, ReadFrom, SourceError, Wanted};
use lake_proto::queue::v1::{Quarantined, RecordBatch};
use lake_shared::wire;
use lake_simulated_hq::memory_hq::MemoryHq;
use lake_simulated_hq::schema;
use lake_test_kit::recording_queue::RecordingQueue;
use lake_tests::parts::{Postgres, wait_until};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// Transactions of `heavy` take 4 ms each, those of `hopeless` longer than any statement may. The order of the index is kept, as in a large table.
const SLOW_TRANSACTIONS: &str = "
    alter database commcarehq set enable_sort = off;
    alter database commcarehq set enable_bitmapscan = off;
    alter database commcarehq set enable_seqscan = off;
    create function is_awake(case_id text) returns boolean language plpgsql volatile cost 100000 as $$ begin
      if case_id = 'heavy' then perform pg_sleep(0.004); end if;
      if case_id = 'hopeless' then perform pg_sleep(60); end if;
      return true;
    end $$;
    alter table form_processor_casetransaction rename to transactions_behind_the_view;
    create view form_processor_casetransaction as select * from transactions_behind_the_view where is_awake(case_id);";

/// The server cannot show the properties of `damaged`.
const DAMAGED_CASE: &str = "
    alter table form_processor_commcarecasesql rename to cases_behind_the_view;
    alter table cases_behind_the_view rename column case_json to case_json_behind_the_view;
    create view form_processor_commcarecasesql as select *,
      case when case_id = 'damaged' then convert_from('\\xff', 'UTF8') else '{}' end as case_json from cases_behind_the_view;";

struct Installation {
    _server: Postgres,
    url: String,
    admin: PgConnection,
}

impl Installation {
    /// An HQ with these cases, which have so many transactions each.
    async fn with_cases(ids: &[String], transactions: usize) -> Self {
        let server = Postgres::start().unwrap();
        let url = server.create_database("commcarehq").unwrap();
        let admin = PgConnection::connect(&url).await.unwrap();
        let mut installation = Self { _server: server, url, admin };
        installation.run(schema::MAIN).await;
        installation.run(schema::SHARD).await;
        let list = ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ");
        let cases = format!(
            "insert into form_processor_commcarecasesql (case_id, case_json, domain, type, name, owner_id, opened_on, opened_by, modified_on,
               server_modified_on, modified_by, closed, deleted, external_id, location_id)
             select id, '{{}}', 'demo', 'person', 'Asha', '', now(), 'u1', now(), now(), 'u1', false, false, '', ''
             from unnest(array[{list}]) id;
             insert into form_processor_casetransaction (case_id, form_id, server_date, type, revoked)
             select id, 'f' || n, timestamptz '2026-01-01' + (n / 2) * interval '1 second', 1, n % 10 = 0
             from unnest(array[{list}]) id, generate_series(1, {transactions}) n;
             analyze;"
        );
        installation.run(&cases).await;
        installation
    }

    async fn run(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.admin).await.unwrap();
    }

    async fn hq(&self, statement_timeout_ms: u64) -> PostgresHq {
        let mut config = HqPostgresConfig::of_url(self.url.as_str());
        config.statement_timeout_ms = statement_timeout_ms;
        // On a busy machine the look at the tables may take longer than the short time that is tried here.
        let mut connected = None;
        let connecting = wait_until("HQ's tables are looked at", PATIENCE, async || {
            connected = Some(PostgresHq::connect(&config).await?);
            Ok(true)
        });
        connecting.await.unwrap();
        connected.unwrap()
    }
}

fn ids(of: &[&str]) -> Vec<String> {
    of.iter().map(|id| (*id).to_owned()).collect()
}

async fn hindrance(hq: &PostgresHq, of: &[&str]) -> Option<Hindrance> {
    match hq.cases(&ids(of), ReadFrom::Primary).await {
        Ok(_) => None,
        Err(SourceError::AskLess { hindrance, .. }) => Some(hindrance),
        Err(other) => panic!("{other}"),
    }
}

async fn case(hq: &PostgresHq, id: &str) -> CaseRows {
    hq.cases(&ids(&[id]), ReadFrom::Primary).await.unwrap().remove(0).rows.unwrap()
}

#[tokio::test]
async fn a_heavy_case_is_read_in_pages_and_a_hopeless_one_slows_nothing_down() {
    let mut installation = Installation::with_cases(&ids(&["a", "b", "heavy", "hopeless"]), 1_000).await;
    let before = case(&installation.hq(30_000).await, "heavy").await;
    assert_eq!(before.transactions.len(), 900, "those that are not revoked");
    installation.run(SLOW_TRANSACTIONS).await;
    let hq = installation.hq(2_000).await;
    let limit = hq.turns().limit();
    assert_eq!(hindrance(&hq, &["a", "heavy", "b"]).await, Some(Hindrance::TooSlow));
    assert_eq!(hindrance(&hq, &["a", "b"]).await, None);
    // Its transactions take twice as long as a statement may.
    assert_eq!(case(&hq, "heavy").await, before);
    assert_eq!(hindrance(&hq, &["hopeless"]).await, Some(Hindrance::TooSlow));
    assert_eq!(hq.turns().limit(), limit, "the database is not asked less at once");
    assert_eq!(hq.turns().in_flight(), 0);
}

#[tokio::test]
async fn a_row_that_the_server_cannot_show_is_the_trouble_of_its_case_alone() {
    let mut installation = Installation::with_cases(&ids(&["a", "damaged"]), 1).await;
    installation.run(DAMAGED_CASE).await;
    let hq = installation.hq(30_000).await;
    assert_eq!(hindrance(&hq, &["a", "damaged"]).await, Some(Hindrance::Undecodable));
    assert_eq!(hindrance(&hq, &["damaged"]).await, Some(Hindrance::Undecodable));
    assert_eq!(hindrance(&hq, &["a"]).await, None);
}

#[tokio::test]
async fn a_column_that_has_got_another_type_is_no_fault_of_a_case() {
    let mut installation = Installation::with_cases(&ids(&["a"]), 1).await;
    let hq = installation.hq(30_000).await;
    installation
        .run("alter table form_processor_commcarecasesql alter column case_json type jsonb using case_json::jsonb")
        .await;
    let refused = hq.cases(&ids(&["a"]), ReadFrom::Primary).await.unwrap_err();
    assert!(matches!(refused, SourceError::Refused { .. }), "{refused}");
}

#[tokio::test]
async fn rows_are_not_held_beyond_their_limits() {
    let many: Vec<String> = (0..100).map(|number| format!("c{number}")).collect();
    let installation = Installation::with_cases(&many, 100).await;
    let hq = installation.hq(30_000).await;
    let trouble = hq.cases(&many, ReadFrom::Primary).await.unwrap_err();
    assert!(matches!(trouble, SourceError::AskLess { hindrance: Hindrance::TooLarge, .. }), "{trouble}");
    for part in many.chunks(25) {
        assert_eq!(hq.cases(part, ReadFrom::Primary).await.unwrap().len(), 25);
    }
    let mut config = HqPostgresConfig::of_url(installation.url.as_str());
    config.record_bytes_max = 10_000;
    let hq = PostgresHq::connect(&config).await.unwrap();
    assert_eq!(hindrance(&hq, &["c1"]).await, Some(Hindrance::TooLarge));
}

#[tokio::test]
async fn a_case_with_very_many_transactions_is_read_only_when_it_is_asked_for_alone() {
    let installation = Installation::with_cases(&ids(&["heavy"]), 10_000).await;
    let hq = installation.hq(30_000).await;
    let wanted = |alone| Wanted { id: "heavy".into(), alone, ..Wanted::default() };
    let trouble = hq.latest_cases(&[wanted(false)]).await.unwrap_err();
    assert!(matches!(trouble, SourceError::AskLess { hindrance: Hindrance::TooLarge, .. }), "{trouble}");
    let read = hq.latest_cases(&[wanted(true)]).await.unwrap().remove(0).rows.unwrap();
    assert_eq!(read.transactions.len(), 9_000);
}

/// A batch of sixty cases, one of which cannot be read in time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_goes_on_without_the_case_that_cannot_be_read() {
    let names = (0..59).map(|number| format!("c{number}")).chain(["hopeless".to_owned()]);
    let all: Vec<String> = names.collect();
    let mut installation = Installation::with_cases(&all, 1).await;
    installation.run(SLOW_TRANSACTIONS).await;
    let (feed, queue) = (Arc::new(MemoryFeed::default()), Arc::<RecordingQueue>::default());
    let database = Arc::new(installation.hq(1_500).await);
    let hq = Hq { database, ..MemoryHq::new().hq() };
    let (to, take) = (Arc::<RecordingQueue>::clone(&queue), TakeConfig::EVERYTHING);
    let fetcher = Fetcher::new(hq, to, take, CaseOptions::default(), FetchOptions::default());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(lake_fetcher::pipeline::run(feed.clone(), Arc::new(fetcher), shutdown.clone()));
    for id in &all {
        feed.publish("case-sql", json!({"document_id": id, "domain": "demo"}).to_string());
    }
    wait_until("all messages are done", PATIENCE, async || Ok(feed.unfinished() == 0)).await.unwrap();
    let batches = queue.payloads("lake.records.");
    let records = batches.iter().flat_map(|payload| wire::decode::<RecordBatch>(payload).unwrap().records);
    let records: BTreeSet<String> = records.map(|record| record.id).collect();
    assert_eq!(records, all.iter().filter(|id| *id != "hopeless").cloned().collect());
    let entries = queue.payloads("lake.quarantine.");
    let entries: Vec<Quarantined> = entries.iter().map(|payload| wire::decode(payload).unwrap()).collect();
    let told: Vec<_> = entries.iter().map(|entry| (entry.id.as_str(), entry.reason.as_str())).collect();
    assert_eq!(told, [("hopeless", "record_too_slow")]);
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
