//! Records that make the enricher fail, and domains about which HQ does not answer: they hold up nothing else.

use lake_simulated_hq::scripted_hq::Question;

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

#[tokio::test]
async fn users_about_whom_hq_answers_slowly_hold_up_no_other_domain() {
    let options = EnricherOptions { workers: 1, ..EnricherOptions::default() };
    let mut lake = Lake::start_with(options, |queue| queue).await;
    // Its tree is at hand, and its users are asked for from a worker's place.
    lake.column(&cases(vec![record("c", json!({"user_id": "u"}))]), "+district_id").await;
    lake.hq.script.is_stuck.store(true, Ordering::SeqCst);
    let slow: Vec<_> = (0..10)
        .map(|number| {
            lake.publish(wire::encode(&cases(vec![record(&format!("s{number}"), json!({"user_id": "slow"}))])))
        })
        .collect();
    for number in 0..10 {
        let batch = cases(vec![record(&format!("c{number}"), json!({"user_id": "u"}))]);
        safe(lake.publish(wire::encode(&RecordBatch { domain: "other".into(), ..batch }))).await;
        assert_eq!(lake.row_batch().await.1.domain, "other");
    }
    assert!(slow.iter().all(|publishing| !publishing.is_finished()));
    lake.hq.script.is_stuck.store(false, Ordering::SeqCst);
    for publishing in slow {
        safe(publishing).await;
    }
    let asked = lake.hq.asked();
    let of_slow = asked.iter().filter(|question| matches!(question, Question::UserLocations(ids) if ids == &["slow"]));
    assert_eq!(of_slow.count(), 1, "{asked:?}");
}
