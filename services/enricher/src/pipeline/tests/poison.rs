//! Records that make the enricher fail, and domains about which HQ does not answer: they hold up nothing else.

use super::*;

#[tokio::test]
async fn a_record_that_makes_the_enricher_panic_goes_to_quarantine_and_the_others_go_on() {
    let mut lake = Lake::start().await;
    let user = |number: usize| match number {
        5 | 17 => format!("panic {number}"),
        _ => "u".to_owned(),
    };
    let records = (0..20).map(|number| record(&format!("c{number:02}"), json!({ "user_id": user(number) }))).collect();
    let tombstones = vec![Tombstone { id: "t".into(), ..Tombstone::default() }];
    let batch = RecordBatch { tombstones, ..cases(records) };
    safe(lake.publish(wire::encode(&batch))).await;
    let (mut rows, mut tombstones) = (Vec::new(), Vec::new());
    while let Ok((_, message)) = lake.rows.try_recv() {
        rows.extend(column(&message, "+district_id"));
        tombstones.extend(message.tombstones);
    }
    rows.sort();
    let expected: Vec<_> =
        (0..20).filter(|number| ![5, 17].contains(number)).map(|number| some(&format!("c{number:02}"), "d")).collect();
    assert_eq!((rows, tombstones.len()), (expected, 1));
    let mut quarantined = Vec::new();
    for _ in 0..2 {
        let (_, entry) = lake.quarantined().await;
        assert!(entry.detail.contains("no such user can be"), "{}", entry.detail);
        quarantined.push((entry.id, entry.reason));
    }
    quarantined.sort();
    let failed = |id: &str| (id.to_owned(), Reason::EnricherFailed.code().to_owned());
    assert_eq!(quarantined, [failed("c05"), failed("c17")]);
}

#[tokio::test]
async fn a_domain_whose_locations_cannot_be_read_holds_up_no_other() {
    // One place, and room for two messages that wait.
    let of_domain = |domain: &str, id: &str| {
        let batch = cases(vec![record(id, json!({"user_id": "u"}))]);
        wire::encode(&RecordBatch { domain: domain.into(), ..batch })
    };
    let held_bytes_max = 4 * of_domain("stuck", "c").len();
    let options = EnricherOptions { workers: 1, held_bytes_max, ..EnricherOptions::default() };
    let mut lake = Lake::start_with(options, |queue| queue).await;
    lake.hq.script.is_stuck.store(true, Ordering::SeqCst);
    let stuck: Vec<_> = (0..10).map(|number| lake.publish(of_domain("stuck", &format!("s{number}")))).collect();
    let waiting = async {
        while lake.hq.times_asked() == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap();
    for number in 0..10 {
        safe(lake.publish(of_domain("demo", &format!("c{number}")))).await;
        assert_eq!(column(&lake.row_batch().await.1, "+district_id"), [some(&format!("c{number}"), "d")]);
    }
    assert!(stuck.iter().all(|publishing| !publishing.is_finished()));
    lake.hq.script.is_stuck.store(false, Ordering::SeqCst);
    for publishing in stuck {
        safe(publishing).await;
    }
}
