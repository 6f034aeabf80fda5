use super::*;

const TOPIC: &str = "case-sql";

fn position(offset: i64, generation: u64) -> Position {
    Position { topic: TOPIC.into(), partition: 0, offset, generation }
}

fn commits(offsets: &Offsets) -> Vec<i64> {
    offsets.to_commit().into_iter().map(|(_, _, offset)| offset).collect()
}

fn commit(offsets: &mut Offsets) -> Vec<i64> {
    let told = offsets.to_commit();
    offsets.committed(&told);
    told.into_iter().map(|(_, _, offset)| offset).collect()
}

fn assigned(start: Start) -> Offsets {
    let mut offsets = Offsets::default();
    offsets.assign(TOPIC, 0, start);
    offsets
}

fn hand_out(offsets: &mut Offsets, offset: i64) -> u64 {
    offsets.handed_out(TOPIC, 0, offset).expect("assigned").generation
}

/// Hands out these offsets and reports all of them as done.
fn consume(offsets: &mut Offsets, range: std::ops::Range<i64>) {
    for offset in range {
        let generation = hand_out(offsets, offset);
        offsets.done(&position(offset, generation));
    }
}

/// The lag, and what is found gone when the broker is asked.
fn observe(offsets: &mut Offsets, log: Log) -> (Option<i64>, Option<Gone>) {
    let Observed { lag, doubtful } = offsets.observe(TOPIC, 0, log);
    (lag, doubtful.then(|| offsets.settle(TOPIC, 0, log)).flatten())
}

fn log(low: i64, high: i64) -> Log {
    Log { low, high, drained: true }
}

#[test]
fn only_what_lies_below_the_first_unfinished_message_is_committed() {
    let mut offsets = assigned(Start::Committed(10));
    let generation = hand_out(&mut offsets, 10);
    hand_out(&mut offsets, 11);
    hand_out(&mut offsets, 14);
    assert!(commits(&offsets).is_empty());
    offsets.done(&position(11, generation));
    assert!(commits(&offsets).is_empty(), "10 is unfinished");
    offsets.done(&position(10, generation));
    assert_eq!(commit(&mut offsets), [14]);
    assert!(commits(&offsets).is_empty());
    offsets.done(&position(14, generation));
    assert_eq!(commit(&mut offsets), [15]);
    offsets.commit_failed(TOPIC, 0);
    assert_eq!(commits(&offsets), [15], "the broker did not take it");
    assert_eq!(offsets.in_flight(), 0);
}

#[test]
fn reports_of_an_earlier_assignment_are_void() {
    let mut offsets = assigned(Start::Committed(10));
    let earlier = hand_out(&mut offsets, 10);
    offsets.revoke(TOPIC, 0);
    assert_eq!(offsets.handed_out(TOPIC, 0, 10), None);
    offsets.assign(TOPIC, 0, Start::Committed(10));
    let later = hand_out(&mut offsets, 10);
    assert_ne!(earlier, later);
    offsets.done(&position(10, earlier));
    assert!(commits(&offsets).is_empty());
    offsets.done(&position(10, later));
    assert_eq!(commits(&offsets), [11]);
}

#[test]
fn where_nothing_was_committed_the_position_is_committed_before_a_message_comes() {
    let mut offsets = assigned(Start::Beginning);
    assert!(commits(&offsets).is_empty(), "the beginning is not known yet");
    assert_eq!(observe(&mut offsets, log(7, 7)), (Some(0), None));
    assert_eq!(commit(&mut offsets), [7]);

    let mut offsets = assigned(Start::Unknown);
    assert_eq!(observe(&mut offsets, log(7, 9)), (None, None), "it may be anywhere");
    assert!(commits(&offsets).is_empty());
}

#[test]
fn lag_is_told_where_nothing_was_committed() {
    let mut offsets = assigned(Start::Beginning);
    assert_eq!(observe(&mut offsets, log(0, 40)).0, Some(40));
    hand_out(&mut offsets, 0);
    assert_eq!(observe(&mut offsets, log(0, 40)).0, Some(39));
    assert_eq!(offsets.observe(TOPIC, 1, log(0, 40)).lag, None, "it belongs to another fetcher");
}

#[test]
fn progress_is_told_of_each_partition_that_is_assigned() {
    let mut offsets = Offsets::default();
    for (partition, start) in [(1, Start::Beginning), (0, Start::Committed(5)), (2, Start::Unknown)] {
        offsets.assign(TOPIC, partition, start);
    }
    for partition in 0..3 {
        offsets.observe(TOPIC, partition, log(3, 10));
    }
    hand_out(&mut offsets, 5);
    offsets.published(TOPIC, 0, Some(7));
    offsets.published(TOPIC, 0, None);
    let told: Vec<_> = offsets.progress().into_iter().map(|of| (of.partition, of.lag, of.last_published_us)).collect();
    assert_eq!(told, [(0, Some(4), Some(7_000)), (1, Some(7), None), (2, None, None)]);
    offsets.revoke(TOPIC, 0);
    assert_eq!(offsets.progress().len(), 2);
}

/// The topic was deleted and made again, or its log cut; the client goes back to the beginning without a rebalance.
#[test]
fn offsets_follow_a_log_that_goes_backwards() {
    let mut offsets = assigned(Start::Committed(0));
    consume(&mut offsets, 0..1_000);
    assert_eq!(commit(&mut offsets), [1_000]);
    let first = offsets.handed_out(TOPIC, 0, 0).expect("assigned");
    assert_eq!(first.back_from, Some(1_000));
    let second = offsets.handed_out(TOPIC, 0, 1).expect("assigned");
    assert_eq!(second.back_from, None);
    assert_eq!(commit(&mut offsets), [0], "after a crash the new log is read from its beginning");
    offsets.done(&position(0, first.generation));
    offsets.done(&position(1, second.generation));
    assert_eq!(commit(&mut offsets), [2]);
    offsets.commit_failed(TOPIC, 0);
    assert_eq!(commits(&offsets), [2], "1000 is an offset of the old log");
}

#[test]
fn work_on_the_old_log_says_nothing_of_the_new_one() {
    let mut offsets = assigned(Start::Committed(0));
    consume(&mut offsets, 0..5);
    let old = hand_out(&mut offsets, 5);
    hand_out(&mut offsets, 6);
    consume(&mut offsets, 0..5);
    let new = hand_out(&mut offsets, 5);
    offsets.done(&position(5, old));
    assert_eq!(commits(&offsets), [5], "the new message 5 is in flight");
    offsets.done(&position(5, new));
    assert_eq!(commits(&offsets), [6], "the old message 6 does not hold it up");
}

#[test]
fn a_message_below_the_cut_still_counts() {
    let mut offsets = assigned(Start::Committed(980));
    let below = hand_out(&mut offsets, 985);
    consume(&mut offsets, 986..1_000);
    consume(&mut offsets, 990..992);
    assert_eq!(commits(&offsets), [985]);
    offsets.done(&position(985, below));
    assert_eq!(commits(&offsets), [992]);
}

#[test]
fn a_log_that_is_shorter_than_the_position_is_told_once_and_begun_anew() {
    let mut offsets = assigned(Start::Committed(0));
    consume(&mut offsets, 0..1_000);
    commit(&mut offsets);
    assert_eq!(observe(&mut offsets, log(0, 20)).1, Some(Gone { wanted: 1_000, low: 0, high: 20 }));
    assert_eq!(commit(&mut offsets), [0]);
    assert_eq!(observe(&mut offsets, log(0, 20)), (Some(20), None));
    assert_eq!(offsets.handed_out(TOPIC, 0, 0).and_then(|first| first.back_from), None, "told already");
}

#[test]
fn a_position_that_retention_has_passed_is_told() {
    let wanted_50 = Gone { wanted: 50, low: 80, high: 120 };
    let mut offsets = assigned(Start::Committed(50));
    hand_out(&mut offsets, 80);
    assert_eq!(observe(&mut offsets, log(80, 120)).1, Some(wanted_50), "80 came instead of 50");
    assert_eq!(observe(&mut offsets, log(80, 120)).1, None);

    let mut offsets = assigned(Start::Committed(50));
    let on_their_way = Log { drained: false, ..log(80, 120) };
    assert_eq!(observe(&mut offsets, on_their_way).1, None, "50 may have been read before it was deleted");
    assert_eq!(observe(&mut offsets, log(80, 120)).1, Some(wanted_50));
    assert_eq!(commits(&offsets), [80]);
}

/// After a rebalance the client still knows what it knew of the log when it had the partition before.
#[test]
fn what_the_client_knew_long_ago_is_only_a_reason_to_ask() {
    let mut offsets = assigned(Start::Committed(500));
    assert_eq!(offsets.observe(TOPIC, 0, log(0, 100)), Observed { lag: Some(0), doubtful: true });
    assert_eq!(offsets.settle(TOPIC, 0, log(0, 600)), None);
    assert!(commits(&offsets).is_empty(), "it stays at 500");
    assert_eq!(offsets.observe(TOPIC, 0, log(0, 600)), Observed { lag: Some(100), doubtful: false });
}

#[test]
fn offsets_that_a_compacted_topic_leaves_out_are_no_loss() {
    let mut offsets = assigned(Start::Committed(50));
    consume(&mut offsets, 60..61);
    assert_eq!(observe(&mut offsets, log(0, 61)), (Some(0), None));
    assert_eq!(commits(&offsets), [61]);
}

#[test]
fn a_topic_that_is_gone_is_given_no_offset_until_a_message_comes() {
    let mut offsets = assigned(Start::Committed(0));
    consume(&mut offsets, 0..1_000);
    commit(&mut offsets);
    offsets.topic_gone(TOPIC, 0);
    assert!(commits(&offsets).is_empty(), "a new topic of that name must not begin with 1000");
    consume(&mut offsets, 0..3);
    assert_eq!(commits(&offsets), [3]);
}

/// The broker deletes the offsets of a topic together with the topic.
#[test]
fn a_partition_that_comes_back_without_its_offset_is_seen() {
    let mut offsets = assigned(Start::Committed(0));
    consume(&mut offsets, 0..1_000);
    commit(&mut offsets);
    offsets.revoke(TOPIC, 0);
    assert_eq!(offsets.assign(TOPIC, 0, Start::Beginning), Some(1_000));
    offsets.revoke(TOPIC, 0);
    assert_eq!(offsets.assign(TOPIC, 0, Start::Beginning), None, "it was told");
    offsets.observe(TOPIC, 0, log(0, 0));
    offsets.settle(TOPIC, 0, log(0, 0));
    offsets.revoke(TOPIC, 0);
    assert_eq!(offsets.assign(TOPIC, 0, Start::Committed(0)), None);
}
