#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use lake_proto::queue::v1::{Invalidation, Record, RecordBatch, Tombstone};
use lake_shared::quarantine::Reason;
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_shared::wire;
use serde_json::{Value, json};

use self::lake::{Lake, PATIENCE, StrictQueue, assign_user, column, district, fake_hq, safe};
use super::enrich;
use super::*;
use crate::rows::message::PayloadSizes;

mod lake;
mod poison;

fn record(id: &str, document: impl Into<Value>) -> Record {
    let document: Value = document.into();
    Record { id: id.into(), document: document.to_string().into(), ..Record::default() }
}

fn cases(records: Vec<Record>) -> RecordBatch {
    RecordBatch { domain: "demo".into(), kind: 1, r#type: Some("person".into()), records, tombstones: Vec::new() }
}

/// No message larger than this, be it of one row or of several.
fn sizes(size_max: usize) -> PayloadSizes {
    PayloadSizes { of_several: size_max, of_one: size_max }
}

fn some(id: &str, cell: &str) -> (String, Option<String>) {
    (id.to_owned(), Some(cell.to_owned()))
}

#[tokio::test]
async fn records_become_rows_with_the_places_of_their_users() {
    let mut lake = Lake::start().await;
    let batch = cases(vec![
        record("c1", json!({"user_id": "u"})),
        record("c2", json!({"user_id": "system"})),
        record("c3", json!({})),
    ]);
    let publishing = lake.publish(wire::encode(&batch));
    let (subject, rows) = lake.row_batch().await;
    safe(publishing).await;
    assert_eq!(subject, "lake.rows.demo.case.person");
    assert_eq!((rows.domain.as_str(), rows.kind, rows.r#type.as_deref()), ("demo", 1, Some("person")));
    let none = |id: &str| (id.to_owned(), None);
    assert_eq!(column(&rows, "+district_id"), [some("c1", "d"), none("c2"), none("c3")]);
    assert_eq!(column(&rows, "+supervisor_id"), [some("c1", "s"), none("c2"), none("c3")]);
    lake.shutdown.cancel();
    lake.enricher.await.unwrap().unwrap();
}

/// The predecessor crashed here.
#[tokio::test]
async fn a_user_whose_location_is_gone_has_no_place() {
    let mut lake = Lake::start().await;
    assign_user(&lake.hq, "gone");
    let batch = cases(vec![record("c1", json!({"user_id": "u"}))]);
    assert_eq!(lake.column(&batch, "+district_id").await, [("c1".to_owned(), None)]);
}

#[tokio::test]
async fn a_case_whose_user_is_nowhere_belongs_to_the_location_that_owns_it() {
    let mut lake = Lake::start().await;
    let batch = cases(vec![
        record("c1", json!({"user_id": "u", "owner_id": "e"})),
        record("c2", json!({"user_id": "web", "owner_id": "e"})),
        record("c3", json!({"user_id": "web", "owner_id": "some user or group"})),
        record("c4", json!({"owner_id": "e"})),
    ]);
    let expected = [some("c1", "d"), some("c2", "e"), ("c3".to_owned(), None), some("c4", "e")];
    assert_eq!(lake.column(&batch, "+district_id").await, expected);
    let mut lake = Lake::start().await;
    assign_user(&lake.hq, "gone");
    let batch = cases(vec![record("c1", json!({"user_id": "u", "owner_id": "e"}))]);
    assert_eq!(lake.column(&batch, "+district_id").await, [some("c1", "e")]);
}

/// The most of four messages that are worked on at the same time, each of which has a hundred times as much decompressed as in the queue.
async fn most_at_once(work_bytes_max: impl Fn(usize) -> usize) -> usize {
    // Users of one domain are asked for one after the other.
    let of_domain = |number: usize, document: Value| {
        let records = vec![record(&format!("c{number}"), document)];
        wire::encode(&RecordBatch { domain: format!("d{number}"), ..cases(records) })
    };
    let large =
        |number: usize| of_domain(number, json!({"user_id": format!("slow {number}"), "note": "x".repeat(100_000)}));
    let decoded = wire::decoded_size(&large(0));
    assert!(decoded > 100_000 && large(0).len() < 1_000);
    let options = EnricherOptions { workers: 4, work_bytes_max: work_bytes_max(decoded), ..EnricherOptions::default() };
    let mut lake = Lake::start_with(options, |queue| queue).await;
    // The trees of the domains are at hand then.
    for number in 0..4 {
        safe(lake.publish(of_domain(number, json!({"user_id": "u"})))).await;
    }
    let sent: Vec<_> = (0..4).map(|number| lake.publish(large(number))).collect();
    for publishing in sent {
        safe(publishing).await;
    }
    lake.hq.script.slow_most.load(Ordering::SeqCst)
}

#[tokio::test]
async fn no_more_is_decompressed_at_once_than_there_is_memory_for() {
    assert_eq!(most_at_once(|decoded| 13 * decoded).await, 2, "each takes six times its size");
    assert_eq!(most_at_once(|_| 1).await, 1, "one that is larger than all the memory is handled alone");
    assert!(most_at_once(|_| 64 << 20).await > 2);
}

#[tokio::test]
async fn tombstones_pass_unchanged_even_without_a_type() {
    let mut lake = Lake::start().await;
    let tombstones = vec![Tombstone {
        id: "t".into(),
        version_us: Some(3),
        observed_us: 4,
        reason: "deleted".into(),
        lineage: None,
    }];
    let batch = RecordBatch { r#type: None, tombstones: tombstones.clone(), ..cases(Vec::new()) };
    let publishing = lake.publish(wire::encode(&batch));
    let (subject, rows) = lake.row_batch().await;
    safe(publishing).await;
    assert_eq!(subject, "lake.rows.demo.case._");
    assert_eq!((rows.r#type, rows.tombstones, rows.arrow_ipc.len()), (None, tombstones, 0));
    assert_eq!(lake.hq.times_asked(), 0);
}

#[tokio::test]
async fn nothing_is_lost_while_hq_is_down_or_refuses() {
    for refuses in [false, true] {
        let mut lake = Lake::start().await;
        lake.hq.script.refuses.store(refuses, Ordering::SeqCst);
        lake.hq.script.failures_left.store(4, Ordering::SeqCst);
        let sent: Vec<_> = (0..3)
            .map(|n| lake.publish(wire::encode(&cases(vec![record(&format!("c{n}"), json!({"user_id": "u"}))]))))
            .collect();
        for publishing in sent {
            safe(publishing).await;
        }
        let mut found = Vec::new();
        while let Ok((_, rows)) = lake.rows.try_recv() {
            found.extend(column(&rows, "+district_id"));
        }
        found.sort();
        assert_eq!(found, [some("c0", "d"), some("c1", "d"), some("c2", "d")]);
        assert_eq!(lake.hq.script.failures_left.load(Ordering::SeqCst), 0);
        assert!(lake.quarantine.try_recv().is_err());
    }
}

#[tokio::test]
async fn garbage_goes_to_quarantine_and_the_rest_goes_on() {
    let mut lake = Lake::start().await;
    safe(lake.publish(Bytes::from_static(b"garbage"))).await;
    let (subject, entry) = lake.quarantined().await;
    assert_eq!(subject, "lake.quarantine.enricher");
    assert_eq!((entry.reason.as_str(), &entry.payload[..]), (Reason::RecordBatchMalformed.code(), &b"garbage"[..]));
    safe(lake.publish(wire::encode(&RecordBatch { kind: 77, ..cases(Vec::new()) }))).await;
    assert!(lake.quarantined().await.1.detail.contains("77"));

    let broken =
        |id: &str, document: &'static [u8]| Record { id: id.into(), document: document.into(), ..Record::default() };
    let records =
        vec![broken("bad1", b"{\"a\":"), record("good", json!({"a": "x"})), broken("bad2", b"[]"), broken("bad3", b"")];
    assert_eq!(lake.column(&cases(records), "/a").await, [some("good", "x")]);
    let mut quarantined_ids = Vec::new();
    for _ in 0..3 {
        let (_, entry) = lake.quarantined().await;
        assert_eq!((entry.domain.as_str(), entry.r#type.as_str()), ("demo", "person"));
        assert_eq!(entry.reason, Reason::DocumentMalformed.code());
        quarantined_ids.push(entry.id);
    }
    quarantined_ids.sort();
    assert_eq!(quarantined_ids, ["bad1", "bad2", "bad3"]);
    let untyped = RecordBatch { r#type: None, ..cases(vec![record("c", json!({}))]) };
    safe(lake.publish(wire::encode(&untyped))).await;
    assert_eq!(lake.quarantined().await.1.reason, Reason::RecordTypeMissing.code());
}

/// Text that cannot be compressed.
fn noise(length: usize) -> String {
    (0..)
        .flat_map(|n: usize| lake_shared::escaped_names::fingerprint(&n.to_string()).into_bytes())
        .map(char::from)
        .take(length)
        .collect()
}

#[tokio::test]
async fn records_that_are_too_large_or_too_wide_go_to_quarantine_with_their_size() {
    let options =
        EnricherOptions { columns_max: 100, case_json: crate::flatten::CaseJson::All, ..EnricherOptions::default() };
    let mut lake = Lake::start_with(options, |queue| queue).await;
    // It comes in below the limit, and goes out above: its properties are there twice.
    let text = noise(70_000);
    let scrambled: String = text.chars().rev().collect();
    let large = json!({"text": text, "case_json": {"text": scrambled}});
    let wide: serde_json::Map<_, _> = (0..101).map(|n| (format!("p{n}"), json!("x"))).collect();
    let mut batch = cases(vec![record("wide", wide), record("c", json!({"text": "x"}))]);
    let mut marks = lake.column(&batch, "+_lake_incomplete").await;
    marks.sort();
    assert_eq!(marks, [("c".to_owned(), None), some("wide", "record_too_wide")]);
    let (_, entry) = lake.quarantined().await;
    assert_eq!((entry.reason.as_str(), entry.id.as_str()), (Reason::RecordTooWide.code(), "wide"));
    assert!(entry.detail.contains("101"));
    // The queue itself would not take the record; ask the code that comes after it.
    batch.records = vec![record("large", large)];
    let kind = lake_shared::identity::Kind::Case;
    let locations = crate::location_columns::DomainLocations::new(lake_hq::locations::LocationTree::default(), 200);
    let context = enrich::EnrichmentContext { locations, user_locations: HashMap::new() };
    let made = enrich::parse(Arc::new(batch), kind, &EnricherOptions::default())
        .into_row_messages(Some(&context), &EnricherOptions::default(), "7", sizes(20_000))
        .unwrap();
    assert_eq!((made.messages.len(), made.rows, made.quarantined.len()), (1, 1, 1), "one row, without the text");
    assert_eq!(
        (made.quarantined[0].reason, made.quarantined[0].document.id.as_str()),
        (Reason::RecordTooLarge, "large")
    );
    assert!(made.quarantined[0].detail.contains("20000"), "{}", made.quarantined[0].detail);
}

#[tokio::test]
async fn a_queue_that_takes_less_than_it_says_gets_smaller_messages() {
    let strict = |inner| -> Arc<dyn Queue> { Arc::new(StrictQueue { inner, rows_size_max: 6_000 }) };
    let mut lake = Lake::start_with(EnricherOptions::default(), strict).await;
    let text = noise(20_000);
    let parts: Vec<_> =
        (0..10).map(|n| record(&format!("c{n}"), json!({"text": &text[n * 2_000..(n + 1) * 2_000]}))).collect();
    let found = lake.column(&cases(parts), "/text").await;
    assert_eq!(found.len(), 10);
    assert!(
        found.iter().enumerate().all(|(n, cell)| *cell == some(&format!("c{n}"), &text[n * 2_000..(n + 1) * 2_000]))
    );
    assert!(lake.quarantine.try_recv().is_err());
}

#[tokio::test]
async fn users_and_locations_that_change_are_seen_after_the_broadcast() {
    let mut lake = Lake::start().await;
    let batch = cases(vec![record("c", json!({"user_id": "u"}))]);
    assert_eq!(lake.column(&batch, "+district_id").await, [some("c", "d")]);
    let asked = lake.hq.times_asked();
    assign_user(&lake.hq, "e");
    assert_eq!(lake.column(&batch, "+district_id").await, [some("c", "d")]);
    assert_eq!(lake.hq.times_asked(), asked);
    let payload = wire::encode(&Invalidation { ids: vec!["u".into()] });
    lake.queue.broadcast("lake.invalidate.user._", payload).await.unwrap();
    let moved = async {
        while lake.column(&batch, "+district_id").await != [some("c", "e")] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, moved).await.unwrap();
}

#[tokio::test]
async fn rows_of_locations_show_a_tree_as_new_as_themselves() {
    let mut lake = Lake::start().await;
    let location = |observed_us: i64| RecordBatch {
        kind: 3,
        r#type: Some("Location".into()),
        ..cases(vec![Record { observed_us, ..record("d", json!({"name": "d"})) }])
    };
    lake.hq.memory.set_clock(10);
    assert_eq!(lake.column(&location(10), "+district_name").await, [some("d", "North")]);
    // No broadcast was heard, yet the record knows more than the tree that is held.
    lake.hq.memory.change(&[district(2, "d", "Upper North")]);
    lake.hq.memory.set_clock(20);
    assert_eq!(lake.column(&location(10), "+district_name").await, [some("d", "North")]);
    assert_eq!(lake.column(&location(15), "+district_name").await, [some("d", "Upper North")]);
    // A database whose clock went back must not stop the lake.
    let asked = lake.hq.times_asked();
    assert_eq!(lake.column(&location(99), "+district_name").await, [some("d", "Upper North")]);
    assert!(lake.hq.times_asked() > asked + 1);
}

#[tokio::test]
async fn at_shutdown_what_cannot_be_finished_is_handed_back() {
    let mut lake = Lake::start().await;
    lake.hq.script.failures_left.store(usize::MAX, Ordering::SeqCst);
    let publishing = lake.publish(wire::encode(&cases(vec![record("c", json!({"user_id": "u"}))])));
    let waiting = async {
        while lake.hq.times_asked() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    lake.shutdown.cancel();
    tokio::time::timeout(PATIENCE, &mut lake.enricher).await.unwrap().unwrap().unwrap();
    assert!(lake.rows.try_recv().is_err() && !publishing.is_finished());
    // The next enricher gets it.
    lake.hq.script.failures_left.store(0, Ordering::SeqCst);
    let (queue, options) = (Arc::clone(&lake.queue), EnricherOptions::default());
    let next = run(queue, lake.hq.hq(), options, Arc::default(), CancellationToken::new());
    let next = AbortOnDropHandle::new(tokio::spawn(next));
    safe(publishing).await;
    assert_eq!(column(&lake.row_batch().await.1, "+district_id"), [some("c", "d")]);
    drop(next);
}

#[tokio::test]
async fn transforms_apply_before_rows_are_made() {
    let transforms = serde_json::from_value(json!([
        {"kind": "case", "actions": [{"drop": "/user_id"}, {"rename": {"path": "/a", "to": "b"}}, {"hash": {"path": "/phone"}}]}
    ]));
    let options = EnricherOptions { transforms: transforms.unwrap(), ..EnricherOptions::default() };
    let mut lake = Lake::start_with(options, |queue| queue).await;
    let batch = cases(vec![record("c", json!({"user_id": "u", "a": "1", "phone": "5", "case_json": {"phone": "5"}}))]);
    let publishing = lake.publish(wire::encode(&batch));
    let (_, rows) = lake.row_batch().await;
    safe(publishing).await;
    assert_eq!(column(&rows, "/user_id"), [("c".to_owned(), None)]);
    assert_eq!(column(&rows, "+district_id"), [some("c", "d")]);
    assert_eq!(column(&rows, "/b"), [some("c", "1")]);
    assert_eq!(column(&rows, "/phone")[0].1.as_ref().unwrap().len(), 64);
}

#[tokio::test]
async fn a_closed_queue_ends_the_run() {
    let memory = MemoryQueue::new(MemoryQueueOptions::default());
    let hq = fake_hq();
    let (options, shutdown) = (EnricherOptions::default(), CancellationToken::new());
    let run = tokio::spawn(run(memory.clone(), hq.hq(), options, Arc::default(), shutdown));
    memory.close();
    // Whether the enricher reads already or not: it must neither hang nor fail.
    tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap().unwrap();
}

#[test]
fn a_batch_that_makes_the_enricher_fail_is_refused_but_its_tombstones_go_on() {
    let mut batch = cases(vec![record("c", json!({}))]);
    batch.tombstones = vec![Tombstone { id: "t".into(), ..Tombstone::default() }];
    let made = enrich::quarantine_all_records(
        &Arc::new(batch),
        lake_shared::identity::Kind::Case,
        "panicked",
        "7",
        sizes(10_000),
    )
    .unwrap();
    assert_eq!((made.messages.len(), made.quarantined.len()), (1, 1));
    assert_eq!((made.quarantined[0].reason, made.quarantined[0].payload.len()), (Reason::EnricherFailed, 2));
}

#[test]
fn a_message_made_again_has_the_same_name_and_another_content_another() {
    let made = |district: &str| {
        let batch = Arc::new(cases(vec![record("c", json!({ "district": district }))]));
        let locations = crate::location_columns::DomainLocations::new(lake_hq::locations::LocationTree::default(), 200);
        let context = enrich::EnrichmentContext { locations, user_locations: HashMap::new() };
        let parsed = enrich::parse(batch, lake_shared::identity::Kind::Case, &EnricherOptions::default());
        let made = parsed.into_row_messages(Some(&context), &EnricherOptions::default(), "7", sizes(10_000)).unwrap();
        made.messages[0].dedupe_id.clone()
    };
    assert!(made("a").starts_with("rows-7-0-"));
    assert_eq!(made("a"), made("a"));
    assert_ne!(made("a"), made("b"));
}
