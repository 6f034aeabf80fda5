//! Comparing HQ's tables on a real server with two shards: what its databases sum up is what the lake sums up of the same documents.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;

use lake_hq::postgres::PostgresHq;
use lake_hq::scan::ScanScope;
use lake_hq::scan::compared::{Compared, ComparedScope, ComparedStretch, DocumentState, HqComparison};
use lake_shared::comparison::{BucketSums, bucket};
use lake_shared::identity::Kind;
use lake_tests::two_shards::{RANGES, TwoShards, place_of, run};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

/// Cases and forms of the project.
const DOCUMENTS: usize = 300;
const BUCKETS: u32 = 64;

fn scope(kind: Kind) -> ComparedScope {
    ComparedScope::whole(ScanScope { domain: "demo".into(), kind, types: None, from_us: None, until_us: None })
}

/// Documents of the project in both shards, with times of all ages, odd names, and some that are not live; and others of another project.
async fn filled() -> TwoShards {
    let shards = TwoShards::start().await.unwrap();
    for (place, (database, ..)) in RANGES.into_iter().enumerate() {
        let url = shards.url(database);
        let ids = |prefix: &str, count: usize| -> Vec<String> {
            let all = (0..count).map(|number| format!("{prefix}{number}"));
            all.filter(|id| place_of(id) == place).collect()
        };
        shards.insert_cases(database, &ids("other", 500)).await.unwrap();
        run(&url, "update form_processor_commcarecasesql set domain = 'another'").await.unwrap();
        shards.insert_cases(database, &ids("é'", DOCUMENTS)).await.unwrap();
        shards.insert_forms(database, &ids("id", DOCUMENTS)).await.unwrap();
        run(
            &url,
            "update form_processor_commcarecasesql set type = 'ch''ild' where domain = 'demo' and case_id like '%1';
             update form_processor_commcarecasesql set deleted = true where domain = 'demo' and case_id like '%2';
             update form_processor_commcarecasesql set server_modified_on = '1969-12-31T23:59:59.999999Z' where case_id like '%3';
             update form_processor_commcarecasesql set modified_on = '9999-12-31T23:59:59.999999Z' where case_id like '%4';
             update form_processor_commcarecasesql set modified_on = '0001-01-01T00:00:00.000001Z' where case_id like '%5';
             update form_processor_commcarecasesql set modified_on = 'infinity' where case_id like '%6';
             update form_processor_commcarecasesql set type = '' where domain = 'demo' and case_id like '%7';
             update form_processor_xforminstancesql set state = 2 where form_id like '%2';
             update form_processor_xforminstancesql set deleted_on = now() where form_id like '%3';
             update form_processor_xforminstancesql set xmlns = 'Y' where form_id like '%1';
             update form_processor_xforminstancesql set server_modified_on = '2026-07-01T00:00:00.000001Z' where form_id like '%4'",
        )
        .await
        .unwrap();
        run(&url, "vacuum analyze").await.unwrap();
        // Instants do not depend on where the server is.
        run(&url, &format!("alter database {database} set timezone = 'Asia/Kolkata'")).await.unwrap();
    }
    shards
}

/// What the tables have, read in the plainest way.
async fn states(shards: &TwoShards, kind: Kind) -> BTreeMap<String, DocumentState> {
    let text = match kind {
        Kind::Case => {
            "select case_id, type, server_modified_on, modified_on from form_processor_commcarecasesql \
             where domain = 'demo' and not deleted"
        }
        _ => {
            "select form_id, replace(xmlns, 'http://openrosa.org/formdesigner/', ''), server_modified_on, received_on \
             from form_processor_xforminstancesql where domain = 'demo' and state = 1 and deleted_on is null"
        }
    };
    let text = format!(
        "select *, case when isfinite(saved) then (extract(epoch from saved)::numeric * 1000000)::bigint end as first_us, \
         case when isfinite(changed) then (extract(epoch from changed)::numeric * 1000000)::bigint end as second_us \
         from ({text}) as t (id, name, saved, changed)"
    );
    let mut states = BTreeMap::new();
    for (database, ..) in RANGES {
        let mut connection = PgConnection::connect(&shards.url(database)).await.unwrap();
        for row in sqlx::query(AssertSqlSafe(text.clone())).fetch_all(&mut connection).await.unwrap() {
            let (id, name): (String, String) = (row.get("id"), row.get("name"));
            let times_us = [row.get("first_us"), row.get("second_us")];
            states.insert(id.clone(), DocumentState { id, document_type: name.into(), times_us });
        }
    }
    states
}

/// What HQ's databases sum up, in stretches of so many documents, and the number of these.
async fn summed(hq: &PostgresHq, scope: &ComparedScope, documents_max: usize) -> (BucketSums, usize) {
    let (mut sums, mut stretches) = (BucketSums::new(BUCKETS), 0);
    for (shard, ..) in RANGES {
        let mut stretch = ComparedStretch { shard, after: 0, documents_max, bucket_count: BUCKETS };
        loop {
            let Compared { found, reached, finished } = hq.sum_stretch(scope, stretch).await.unwrap().unwrap();
            assert!(found.iter().map(|(_, sum)| sum.documents).sum::<u64>() <= documents_max as u64);
            found.into_iter().for_each(|(bucket, sum)| sums.include(bucket, sum));
            stretches += 1;
            if finished {
                break;
            }
            stretch.after = reached;
        }
    }
    (sums, stretches)
}

fn sums_of<'s>(states: impl IntoIterator<Item = &'s DocumentState>) -> BucketSums {
    let mut sums = BucketSums::new(BUCKETS);
    states.into_iter().for_each(|state| sums.add(&state.compared()));
    sums
}

#[tokio::test]
async fn databases_sum_up_what_the_lake_sums_up() {
    let shards = filled().await;
    let hq = PostgresHq::connect(&shards.config).await.unwrap();
    for kind in [Kind::Case, Kind::Form] {
        let states = states(&shards, kind).await;
        assert!((200..DOCUMENTS).contains(&states.len()), "{}", states.len());
        for documents_max in [7, 50_000] {
            let (sums, stretches) = summed(&hq, &scope(kind), documents_max).await;
            assert_eq!(sums, sums_of(states.values()), "{kind}s in stretches of {documents_max}");
            assert!(stretches >= states.len() / documents_max, "{stretches} stretches");
        }
        let name = if kind == Kind::Case { "ch'ild" } else { "Y" };
        let types = Some(vec![name.to_owned()]);
        let of_type = ComparedScope::whole(ScanScope { types, ..scope(kind).scan });
        let expected = sums_of(states.values().filter(|state| state.document_type.as_str() == name));
        assert_eq!(summed(&hq, &of_type, 50).await.0, expected);
        assert!(expected.documents() > 0);
        let middle = states.keys().nth(100).unwrap().clone();
        let range = ComparedScope { from_id: middle, ..scope(kind) };
        assert_eq!(summed(&hq, &range, 50).await.0, sums_of(states.values().skip(100)));
    }
    let stretch = ComparedStretch { shard: "main", after: 0, documents_max: 9, bucket_count: BUCKETS };
    let locations = hq.sum_stretch(&scope(Kind::Location), stretch).await.unwrap().unwrap();
    assert_eq!((locations.found.len(), locations.finished), (0, true));
    let stretch = ComparedStretch { shard: "p3", after: 0, documents_max: 9, bucket_count: BUCKETS };
    assert_eq!(hq.sum_stretch(&scope(Kind::Case), stretch).await.unwrap(), None, "there is no such database");
}

#[tokio::test]
async fn documents_of_buckets_and_with_ids_are_told_as_they_are() {
    let shards = filled().await;
    let hq = PostgresHq::connect(&shards.config).await.unwrap();
    for kind in [Kind::Case, Kind::Form] {
        let states = states(&shards, kind).await;
        let buckets: Vec<u32> = states.keys().take(5).map(|id| bucket(id, BUCKETS)).collect();
        let mut told = BTreeMap::new();
        for (shard, ..) in RANGES {
            let mut stretch = ComparedStretch { shard, after: 0, documents_max: 3, bucket_count: BUCKETS };
            loop {
                let found = hq.stretch_states(&scope(kind), stretch, &buckets).await.unwrap().unwrap();
                assert!(found.found.len() <= 3);
                for state in found.found {
                    let id = state.id.clone();
                    assert_eq!(told.insert(id.clone(), state), None, "{id} came twice");
                }
                if found.finished {
                    break;
                }
                stretch.after = found.reached;
            }
        }
        let meant = |id: &String| buckets.contains(&bucket(id, BUCKETS));
        let mut expected = states.clone();
        expected.retain(|id, _| meant(id));
        assert_eq!(told, expected, "{kind}");
        // Of every id that there ever was those are told that are live.
        let prefix = if kind == Kind::Case { "é'" } else { "id" };
        let ids: Vec<String> = (0..DOCUMENTS).map(|number| format!("{prefix}{number}")).collect();
        let odd = ["never was", "nul\0inside", "'; drop table form_processor_commcarecasesql; --"].map(str::to_owned);
        let ids = [ids.as_slice(), &odd].concat();
        let read = hq.read_states(&scope(kind).scan, &ids).await.unwrap();
        let read: BTreeMap<_, _> = read.into_iter().map(|state| (state.id.clone(), state)).collect();
        assert_eq!(read, states, "{kind}");
    }
}
