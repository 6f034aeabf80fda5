//! The part of the metastore's contract that is about the quarantine. Panics where an adapter breaks it: for tests only.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use lake_proto::queue::v1::{Lineage, Quarantined};
use lake_shared::identity::Kind;

use super::steering::Behind;
use super::{Metastore, QuarantineBounds, QuarantineFilter, QuarantineGroup, ReplayMark};

const SECOND: i64 = 1_000_000;

/// Runs the suite on a metastore whose quarantine is empty.
pub(super) async fn holds(metastore: &dyn Metastore) {
    the_quarantine_counts_repetitions(metastore).await;
    the_quarantine_has_bounds(metastore).await;
    entries_without_an_id_are_told_apart_by_their_content(metastore).await;
    the_quarantine_is_shown_in_pages_and_groups(metastore).await;
    what_is_read_again_is_known(metastore).await;
}

async fn remove_all(metastore: &dyn Metastore) {
    let bounds = QuarantineBounds { age_max_us: i64::MAX / 2, entries_max: 0, payload_bytes_max: 0 };
    metastore.limit_quarantine(&bounds).await.unwrap();
    assert_eq!(metastore.quarantined_count(&QuarantineFilter::default()).await.unwrap(), 0);
}

async fn the_quarantine_counts_repetitions(metastore: &dyn Metastore) {
    let entry = Quarantined {
        reason: "row_impossible".into(),
        detail: "a\u{0}b".into(),
        domain: "demo".into(),
        kind: Kind::Case.to_proto() as i32,
        r#type: "person".into(),
        id: "1".into(),
        payload: vec![0, 255].into(),
        lineage: Some(Lineage { topic: "case-sql".into(), partition: 3, offset: 9, published_us: 1, fetched_us: 2 }),
        quarantined_us: 5,
    };
    // Another message about the same document leads to the same entry; what comes late changes nothing.
    let before = Lineage { offset: 8, ..entry.lineage.clone().unwrap() };
    let before = Quarantined { lineage: Some(before), payload: vec![1].into(), ..entry.clone() };
    metastore.quarantine("writer", &before).await.unwrap();
    for _ in 0..2 {
        metastore.quarantine("writer", &Quarantined { quarantined_us: 6, ..entry.clone() }).await.unwrap();
        metastore.quarantine("writer", &before).await.unwrap();
    }
    metastore.quarantine("enricher", &Quarantined { lineage: None, quarantined_us: 9, ..entry.clone() }).await.unwrap();
    let everything = QuarantineFilter::default();
    assert_eq!(metastore.quarantined_count(&everything).await.unwrap(), 2);
    let listed = metastore.quarantined(&everything, 10, 0).await.unwrap();
    assert_eq!((listed[0].stage.as_str(), listed[0].attempts, &listed[0].entry.lineage), ("enricher", 1, &None));
    assert_eq!((listed[1].stage.as_str(), listed[1].attempts), ("writer", 2));
    let stored = Quarantined { detail: "a\u{fffd}b".into(), quarantined_us: 6, ..entry };
    assert_eq!(listed[1].entry, stored);
    assert_eq!((listed[1].first_us, listed[1].payload_bytes, &listed[1].replayed), (5, 2, &None));
    assert_eq!(metastore.quarantined(&everything, 1, 1).await.unwrap(), listed[1..]);
    let filter = QuarantineFilter {
        stage: Some("writer".into()),
        reason: Some("row_impossible".into()),
        domain: Some("demo".into()),
        kind: Some(Kind::Case),
        document_type: Some("person".into()),
        document_id: Some("1".into()),
        fingerprint: Some(listed[1].fingerprint.clone()),
        from_us: Some(6),
        until_us: Some(7),
        domains: Some(vec!["demo".into(), "other".into()]),
        is_replayed: false,
    };
    for narrower in [
        QuarantineFilter { from_us: Some(7), ..filter.clone() },
        QuarantineFilter { until_us: Some(6), ..filter.clone() },
        QuarantineFilter { kind: Some(Kind::Form), ..filter.clone() },
        QuarantineFilter { domains: Some(Vec::new()), ..filter.clone() },
        QuarantineFilter { is_replayed: true, ..filter.clone() },
    ] {
        assert_eq!(metastore.quarantined_count(&narrower).await.unwrap(), 0, "{narrower:?}");
    }
    let of_another = QuarantineFilter { document_id: Some("2".into()), ..filter.clone() };
    assert_eq!(metastore.quarantined_count(&of_another).await.unwrap(), 0);
    assert_eq!(metastore.quarantined(&filter, 10, 0).await.unwrap(), listed[1..]);
    let nothing = QuarantineFilter { domain: Some("' OR 1 = 1 --".into()), ..QuarantineFilter::default() };
    assert_eq!(metastore.quarantined_count(&nothing).await.unwrap(), 0);
    let of_an_earlier_time = (listed[0].fingerprint.clone(), 8);
    assert_eq!(metastore.release(&[of_an_earlier_time]).await.unwrap(), 0, "it has come again since");
    let entries = [(listed[0].fingerprint.clone(), 9), ("none".to_owned(), 9)];
    assert_eq!(metastore.release(&entries).await.unwrap(), 1);
    assert_eq!(metastore.release(&entries).await.unwrap(), 0);
    assert_eq!(metastore.quarantined_count(&everything).await.unwrap(), 1);
}

/// Before this the quarantine holds an entry of another test, which is old.
async fn the_quarantine_has_bounds(metastore: &dyn Metastore) {
    let bounds = |entries_max, payload_bytes_max| QuarantineBounds {
        age_max_us: 3_600 * SECOND,
        entries_max,
        payload_bytes_max,
    };
    let ids = async || {
        let entries = metastore.quarantined(&QuarantineFilter::default(), 1_000, 0).await.unwrap();
        let mut ids: Vec<String> = entries.into_iter().map(|entry| entry.entry.id).collect();
        ids.sort();
        ids
    };
    assert_eq!(metastore.limit_quarantine(&bounds(100, 1_000)).await.unwrap(), 1, "what is older than an hour goes");
    assert_eq!(ids().await, Vec::<String>::new());
    let now_us = chrono::Utc::now().timestamp_micros();
    let entry = |domain: &str, n: i64| Quarantined {
        reason: "row_impossible".into(),
        domain: domain.into(),
        id: format!("{domain} {n:02}"),
        payload: vec![0; 10].into(),
        quarantined_us: now_us + n,
        ..Quarantined::default()
    };
    // A flood of one project comes after the three entries of another.
    for n in 0..3 {
        metastore.quarantine("writer", &entry("calm", n)).await.unwrap();
    }
    for n in 10..40 {
        metastore.quarantine("writer", &entry("flood", n)).await.unwrap();
    }
    assert_eq!(metastore.limit_quarantine(&bounds(100, 1_000)).await.unwrap(), 0);
    assert_eq!(metastore.limit_quarantine(&bounds(8, 1_000)).await.unwrap(), 25);
    let calm = ["calm 00", "calm 01", "calm 02"];
    assert_eq!(ids().await, [&calm[..], &["flood 35", "flood 36", "flood 37", "flood 38", "flood 39"]].concat());
    assert_eq!(metastore.limit_quarantine(&bounds(8, 59)).await.unwrap(), 3);
    assert_eq!(ids().await, ["calm 01", "calm 02", "flood 37", "flood 38", "flood 39"]);
    assert_eq!(metastore.limit_quarantine(&bounds(0, 59)).await.unwrap(), 5);
}

async fn entries_without_an_id_are_told_apart_by_their_content(metastore: &dyn Metastore) {
    for (offset, payload) in [(1, "a"), (2, "a"), (2, "b"), (2, "b")] {
        let lineage = Some(Lineage { offset, ..Lineage::default() });
        let payload = payload.as_bytes().to_vec().into();
        let entry = Quarantined { reason: "change_malformed_json".into(), payload, lineage, ..Quarantined::default() };
        metastore.quarantine("fetcher", &entry).await.unwrap();
    }
    assert_eq!(metastore.quarantined_count(&QuarantineFilter::default()).await.unwrap(), 3);
    remove_all(metastore).await;
}

fn numbered(domain: &str, number: i64) -> Quarantined {
    Quarantined {
        reason: "row_fails".into(),
        domain: domain.into(),
        id: number.to_string(),
        payload: vec![7; 3].into(),
        // Two at each instant.
        quarantined_us: 1 + number / 2,
        ..Quarantined::default()
    }
}

async fn the_quarantine_is_shown_in_pages_and_groups(metastore: &dyn Metastore) {
    for number in 0..5 {
        metastore.quarantine("writer", &numbered("demo", number)).await.unwrap();
    }
    metastore.quarantine("writer", &numbered("other", 9)).await.unwrap();
    let filter = QuarantineFilter { domain: Some("demo".into()), ..QuarantineFilter::default() };
    let (mut behind, mut ids) = (None, Vec::new());
    loop {
        let page = metastore.quarantine_page(&filter, behind.as_ref(), 2).await.unwrap();
        let Some(last) = page.last() else { break };
        behind = Some(Behind { at_us: last.entry.quarantined_us, id: last.fingerprint.clone() });
        assert!(page.iter().all(|record| record.entry.payload.is_empty() && record.payload_bytes == 3));
        ids.extend(page.into_iter().map(|record| record.entry.id));
    }
    assert_eq!(ids[0], "4", "what came last stands first");
    ids.sort();
    assert_eq!(ids, ["0", "1", "2", "3", "4"]);
    let group = |domain: &str, entries, oldest_us, newest_us| QuarantineGroup {
        reason: "row_fails".into(),
        stage: "writer".into(),
        domain: domain.into(),
        entries,
        payload_bytes: 3 * entries,
        oldest_us,
        newest_us,
        replayed: 0,
    };
    let groups = metastore.quarantine_groups(&QuarantineFilter::default(), 10).await.unwrap();
    assert_eq!(groups, [group("demo", 5, 1, 3), group("other", 1, 5, 5)]);
    assert_eq!(metastore.quarantine_groups(&QuarantineFilter::default(), 1).await.unwrap().len(), 1);
    assert_eq!(metastore.quarantine_groups(&filter, 10).await.unwrap(), groups[..1]);
    let entry = &metastore.quarantine_page(&filter, None, 1).await.unwrap()[0];
    for (bytes_max, bytes) in [(0, 0), (2, 2), (u32::MAX, 3)] {
        let found = metastore.quarantine_entry(&entry.fingerprint, bytes_max).await.unwrap().unwrap();
        assert_eq!((found.entry.payload.len(), found.payload_bytes), (bytes, 3));
    }
    assert_eq!(metastore.quarantine_entry("none", 1).await.unwrap(), None);
    remove_all(metastore).await;
}

async fn what_is_read_again_is_known(metastore: &dyn Metastore) {
    for number in 0..3 {
        metastore.quarantine("writer", &numbered("demo", number)).await.unwrap();
    }
    let of = async |id: &str| {
        let filter = QuarantineFilter { document_id: Some(id.into()), ..QuarantineFilter::default() };
        metastore.quarantine_page(&filter, None, 10).await.unwrap().remove(0)
    };
    let (first, second) = (of("0").await, of("1").await);
    let mark = |fingerprint: &str, observed_us, refused: &str| ReplayMark {
        fingerprint: fingerprint.into(),
        observed_us,
        refused: refused.into(),
    };
    let marks =
        [mark(&first.fingerprint, Some(7), ""), mark(&second.fingerprint, None, "why\u{0}"), mark("none", None, "")];
    metastore.mark_replayed(&marks).await.unwrap();
    let replayed = of("0").await.replayed.unwrap();
    assert!(replayed.at_us > 1_600_000_000 * SECOND);
    assert_eq!((replayed.attempts, replayed.observed_us, replayed.refused.as_str()), (1, Some(7), ""));
    assert_eq!(of("1").await.replayed.unwrap().refused, "why\u{fffd}");
    assert_eq!(of("2").await.replayed, None);
    let waiting = QuarantineFilter { is_replayed: true, ..QuarantineFilter::default() };
    let waits = async || {
        let page = metastore.quarantine_page(&waiting, None, 10).await.unwrap();
        page.into_iter().map(|record| record.entry.id).collect::<Vec<_>>()
    };
    assert_eq!(waits().await, ["0"]);
    let replayed = async || metastore.quarantine_groups(&QuarantineFilter::default(), 10).await.unwrap()[0].replayed;
    assert_eq!(replayed().await, 1);
    // It fails again: it still can be healed, and nothing of it is under way.
    metastore.quarantine("writer", &Quarantined { quarantined_us: 50, ..numbered("demo", 0) }).await.unwrap();
    assert_eq!((of("0").await.attempts, replayed().await), (2, 0));
    assert_eq!(waits().await, ["0"]);
    remove_all(metastore).await;
}
