//! Going over HQ's tables on a real server with two shards: every live document of a scope once, in either way, with indexes that HQ has.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeSet;

use lake_hq::postgres::PostgresHq;
use lake_hq::scan::ScanScope;
use lake_hq::source::HqDatabase;
use lake_shared::identity::Kind;
use lake_tests::two_shards::{RANGES, TwoShards, place_of, run};

/// Cases and forms of the project.
const DOCUMENTS: usize = 400;

fn scope(kind: Kind) -> ScanScope {
    ScanScope { domain: "demo".into(), kind, types: None, from_us: None, until_us: None }
}

/// Documents of the project in both shards, between those of another one that has many more.
async fn filled(others: usize) -> TwoShards {
    let shards = TwoShards::start().await.unwrap();
    for (place, (database, ..)) in RANGES.into_iter().enumerate() {
        let url = shards.url(database);
        let ids = |prefix: &str, count: usize| -> Vec<String> {
            let all = (0..count).map(|number| format!("{prefix}{number}"));
            all.filter(|id| place_of(id) == place).collect()
        };
        shards.insert_cases(database, &ids("other", others)).await.unwrap();
        run(&url, "update form_processor_commcarecasesql set domain = 'another'").await.unwrap();
        shards.insert_cases(database, &ids("id", DOCUMENTS)).await.unwrap();
        shards.insert_forms(database, &ids("id", DOCUMENTS)).await.unwrap();
        // Some are of another type, some were deleted or archived, some are older.
        run(
            &url,
            "update form_processor_commcarecasesql set type = 'child' where domain = 'demo' and case_id like '%1';
             update form_processor_commcarecasesql set deleted = true where domain = 'demo' and case_id like '%2';
             update form_processor_commcarecasesql set server_modified_on = '2025-01-01' where domain = 'demo' and case_id like '%3';
             update form_processor_xforminstancesql set state = 2 where form_id like '%2';
             update form_processor_xforminstancesql set xmlns = 'Y' where form_id like '%1'",
        )
        .await
        .unwrap();
        run(&url, "vacuum analyze").await.unwrap();
    }
    shards
}

/// All ids of a scope, in stretches of so many; each must come once. And the number of stretches.
async fn scanned(hq: &PostgresHq, scope: &ScanScope, keys_max: usize) -> (BTreeSet<String>, usize) {
    let (mut ids, mut stretches) = (BTreeSet::new(), 0);
    for estimate in hq.scan_estimates(scope).await.unwrap() {
        let mut after = 0;
        loop {
            let read = hq.scan_keys(scope, &estimate.shard, after, keys_max).await.unwrap().unwrap();
            assert!(read.keys.len() <= keys_max && read.keys.is_sorted() && read.reached >= after);
            assert!(read.keys.iter().all(|(key, _)| *key > after && *key <= read.reached));
            stretches += 1;
            after = read.reached;
            for (_, id) in read.keys {
                assert!(ids.insert(id.clone()), "{id} came twice");
            }
            if read.finished {
                break;
            }
        }
    }
    (ids, stretches)
}

fn without(endings: &[u8]) -> BTreeSet<String> {
    let all = (0..DOCUMENTS).map(|number| format!("id{number}"));
    all.filter(|id| !endings.contains(&(id.as_bytes().last().unwrap() - b'0'))).collect()
}

fn only(ending: u8) -> BTreeSet<String> {
    without(&(0..10).filter(|other| *other != ending).collect::<Vec<_>>())
}

#[tokio::test]
async fn every_live_document_of_a_scope_comes_once() {
    // So few others that the project is most of its table, which is read by its primary key; and so many that its index is used.
    for (others, keys_max) in [(40, 7), (4_000, 7), (4_000, 50_000)] {
        let shards = filled(others).await;
        let hq = PostgresHq::connect(&shards.config).await.unwrap();
        let (cases, stretches) = scanned(&hq, &scope(Kind::Case), keys_max).await;
        assert_eq!(cases, without(&[2]), "{others} others");
        assert!(stretches >= 360 / keys_max, "{stretches} stretches");
        let of_type = |name: &str| Some(vec![name.to_owned()]);
        let children = ScanScope { types: of_type("child"), ..scope(Kind::Case) };
        assert_eq!(scanned(&hq, &children, keys_max).await.0, only(1));
        let early = chrono::DateTime::parse_from_rfc3339("2025-06-01T00:00:00Z").unwrap().timestamp_micros();
        let old = ScanScope { until_us: Some(early), ..scope(Kind::Case) };
        assert_eq!(scanned(&hq, &old, keys_max).await.0, only(3));
        let new = ScanScope { from_us: Some(early), types: of_type("person"), ..scope(Kind::Case) };
        assert_eq!(scanned(&hq, &new, keys_max).await.0, without(&[1, 2, 3]));
        assert_eq!(scanned(&hq, &scope(Kind::Form), keys_max).await.0, without(&[2]));
        let forms = ScanScope { types: of_type("Y"), ..scope(Kind::Form) };
        assert_eq!(scanned(&hq, &forms, keys_max).await.0, only(1));
    }
}

#[tokio::test]
async fn what_there_is_is_guessed_without_counting_and_odd_names_are_nobody() {
    let mut shards = filled(4_000).await;
    let hq = PostgresHq::connect(&shards.config).await.unwrap();
    let begin = shards.log_end();
    let estimates = hq.scan_estimates(&scope(Kind::Case)).await.unwrap();
    assert_eq!(estimates.iter().map(|of| of.shard.as_str()).collect::<Vec<_>>(), ["p1", "p2"]);
    let all: u64 = estimates.iter().map(|of| of.documents).sum();
    assert!((180..=720).contains(&all), "{all} of 360");
    let log = shards.log_since(begin);
    assert!(log.contains("explain select id from form_processor_commcarecasesql"), "{log}");
    assert!(!log.contains("count("), "{log}");
    let locations = hq.scan_estimates(&scope(Kind::Location)).await.unwrap();
    assert_eq!(locations.iter().map(|of| of.shard.as_str()).collect::<Vec<_>>(), ["main"]);
    assert_eq!(scanned(&hq, &scope(Kind::Location), 10).await.0, BTreeSet::new());
    for domain in ["nobody", "de\0mo", "'; drop table form_processor_commcarecasesql; --"] {
        let odd = ScanScope { domain: domain.into(), types: Some(vec!["a\0".into()]), ..scope(Kind::Case) };
        assert_eq!(scanned(&hq, &odd, 10).await.0, BTreeSet::new());
    }
    assert_eq!(hq.scan_keys(&scope(Kind::Case), "p3", 0, 10).await.unwrap(), None, "there is no such database");
}
