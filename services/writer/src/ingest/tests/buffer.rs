//! What is due and what goes back, decided on values.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array};
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use lake_shared::identity::{Kind, Space};
use lake_shared::queue::{QueueError, Receipt};
use tokio::time::Instant;

use crate::ingest::IngestOptions;
use crate::ingest::buffer::{IngestBuffer, RETRY, SLOW_AFTER};
use crate::ingest::message::{BufferedMessage, bytes_of, merged};
use crate::table_store::{SpaceBatch, TableRows};

const SECOND: Duration = Duration::from_secs(1);
const KILOBYTE: usize = 1_000;

pub(super) struct NoReceipt;

#[async_trait]
impl Receipt for NoReceipt {
    async fn acknowledge(self: Box<Self>) -> Result<(), QueueError> {
        Ok(())
    }
    async fn retry(self: Box<Self>, _: Duration) -> Result<(), QueueError> {
        Ok(())
    }
    async fn in_progress(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

fn space(domain: &str) -> Space {
    Space { domain: domain.into(), kind: Kind::Case }
}

fn held_message(domain: &str, bytes: usize) -> BufferedMessage {
    let batch = SpaceBatch { space: space(domain), upserts: Vec::new(), tombstones: Vec::new() };
    BufferedMessage::new(batch, bytes, Box::new(NoReceipt))
}

/// Room for 1,000 kB and 1,000 messages.
fn options() -> IngestOptions {
    IngestOptions {
        held_bytes_max: 1_000 * KILOBYTE,
        in_flight_max: 1_000,
        commits_parallel_max: 2,
        ..IngestOptions::default()
    }
}

fn add(buffer: &mut IngestBuffer, domain: &str, messages: usize, bytes: usize, now: Instant) {
    for _ in 0..messages {
        buffer.add(held_message(domain, bytes), now);
    }
}

/// Lets a commit of the space fail.
fn fail(buffer: &mut IngestBuffer, domain: &str, now: Instant) -> bool {
    let messages = buffer.take(&space(domain), now);
    buffer.failed(&space(domain), messages, now)
}

/// The same; whether it had any messages.
fn fail_some(buffer: &mut IngestBuffer, domain: &str, now: Instant) -> bool {
    let messages = buffer.take(&space(domain), now);
    let any = !messages.is_empty();
    buffer.failed(&space(domain), messages, now);
    any
}

fn given_back(buffer: &mut IngestBuffer, now: Instant) -> Vec<(String, usize, Duration)> {
    let given_back = buffer.excess(now, &options());
    given_back.into_iter().map(|back| (back.space.domain.to_string(), back.messages.len(), back.after)).collect()
}

#[test]
fn a_space_in_trouble_keeps_everything_while_there_is_room() {
    let (mut buffer, now) = (IngestBuffer::default(), Instant::now());
    add(&mut buffer, "stuck", 400, KILOBYTE, now);
    assert!(fail(&mut buffer, "stuck", now), "trouble is new");
    assert!(!fail(&mut buffer, "stuck", now), "and then it is not");
    assert!(given_back(&mut buffer, now).is_empty());
    assert_eq!(buffer.bytes(), 400 * KILOBYTE);
}

#[test]
fn a_space_in_trouble_keeps_little_when_memory_is_short() {
    let (mut buffer, now) = (IngestBuffer::default(), Instant::now());
    add(&mut buffer, "fine", 300, KILOBYTE, now);
    add(&mut buffer, "stuck", 400, KILOBYTE, now);
    assert!(given_back(&mut buffer, now).is_empty(), "no space is failing");
    fail(&mut buffer, "stuck", now);
    // 15 messages are the 64th part of the room.
    assert_eq!(given_back(&mut buffer, now + 60 * SECOND), [("stuck".to_owned(), 385, 60 * SECOND)]);
    assert_eq!(buffer.bytes(), 315 * KILOBYTE);
    // Small messages are bounded by number, and the time has bounds too.
    add(&mut buffer, "fine", 300, KILOBYTE, now);
    add(&mut buffer, "small", 50, 300, now);
    fail(&mut buffer, "small", now);
    assert_eq!(given_back(&mut buffer, now), [("small".to_owned(), 34, 2 * SECOND)]);
    add(&mut buffer, "small", 1, 300, now);
    assert_eq!(given_back(&mut buffer, now + 3_600 * SECOND), [("small".to_owned(), 1, 300 * SECOND)]);
    // After a commit it may have as much as the others.
    buffer.take(&space("small"), now);
    assert!(buffer.committed(&space("small")));
    add(&mut buffer, "small", 100, KILOBYTE, now);
    assert!(given_back(&mut buffer, now).is_empty());
}

#[test]
fn spaces_in_trouble_keep_a_quarter_of_the_room_together() {
    let (mut buffer, now) = (IngestBuffer::default(), Instant::now());
    // One large message each; all of them would fill the room.
    let domains: Vec<String> = (0..20).map(|n| format!("stuck{n:02}")).collect();
    for domain in &domains {
        add(&mut buffer, domain, 1, 50 * KILOBYTE, now);
    }
    assert!(buffer.is_full(&options()));
    for domain in &domains {
        fail(&mut buffer, domain, now);
    }
    assert_eq!(given_back(&mut buffer, now).len(), 15);
    assert_eq!(buffer.bytes(), 250 * KILOBYTE);
    // One that has given back everything has its turn when something of it comes again: the others were tried after it.
    let late = now + 60 * SECOND;
    let (kept, gone): (Vec<&String>, Vec<&String>) =
        domains.iter().partition(|domain| fail_some(&mut buffer, domain, now));
    assert_eq!((kept.len(), gone.len()), (5, 15));
    for domain in kept {
        fail(&mut buffer, domain, late);
    }
    add(&mut buffer, gone[0], 1, 50 * KILOBYTE, late);
    add(&mut buffer, "fine", 1, 400 * KILOBYTE, late);
    let back = given_back(&mut buffer, late);
    assert!(back.len() == 1 && back[0].0 != *gone[0], "{back:?}");
}

#[test]
fn a_space_in_trouble_is_tried_again_after_a_while_and_beside_others() {
    let (mut buffer, now) = (IngestBuffer::default(), Instant::now());
    let options = options();
    for domain in ["stuck", "stuck too"] {
        add(&mut buffer, domain, 1, KILOBYTE, now);
        fail(&mut buffer, domain, now);
    }
    assert!(buffer.due(now, &options, false).is_none());
    let next = buffer.next_due(&options).unwrap();
    assert!(next > now && next <= now + SECOND);
    let later = now + 2 * SECOND;
    let (first, cause) = buffer.due(later, &options, false).unwrap();
    assert_eq!(cause, RETRY);
    let messages = buffer.take(&first, later);
    assert_eq!(messages.len(), 1);
    // The second slot is left to those that did not fail, and ingest is not woken up in vain.
    assert!(buffer.due(later, &options, false).is_none());
    assert!(buffer.next_due(&options).is_none());
    add(&mut buffer, "fine", 1, KILOBYTE, now);
    assert_eq!(buffer.due(later, &options, false).unwrap(), (space("fine"), "age"));
    buffer.take(&space("fine"), later);
    assert!(buffer.due(later, &options, true).is_none(), "no slot is free");
    assert!(!buffer.committed(&space("fine")));
    // At the end no space waits for its next try.
    buffer.failed(&first, messages, later);
    assert_eq!(buffer.due(later, &options, true).unwrap().1, "shutdown");
}

#[test]
fn a_slow_space_holds_no_more_than_a_quarter_of_the_room() {
    let (mut buffer, now) = (IngestBuffer::default(), Instant::now());
    add(&mut buffer, "slow", 100, KILOBYTE, now);
    let messages = buffer.take(&space("slow"), now);
    add(&mut buffer, "slow", 500, KILOBYTE, now);
    assert!(given_back(&mut buffer, now).is_empty());
    let late = now + SLOW_AFTER;
    assert_eq!(given_back(&mut buffer, late), [("slow".to_owned(), 350, SLOW_AFTER)]);
    assert_eq!(buffer.bytes(), 250 * KILOBYTE);
    drop(messages);
    buffer.committed(&space("slow"));
    assert_eq!(buffer.bytes(), 150 * KILOBYTE);
}

#[test]
fn malformed_messages_are_counted_and_take_no_more_than_a_quarter_of_a_room_that_is_short() {
    let (mut buffer, now) = (IngestBuffer::default(), Instant::now());
    let options = options();
    assert!((0..5).all(|_| buffer.start_quarantine(100 * KILOBYTE, &options)));
    assert_eq!(buffer.bytes(), 500 * KILOBYTE);
    assert!(!buffer.start_quarantine(100 * KILOBYTE, &options));
    assert_eq!(buffer.bytes(), 500 * KILOBYTE);
    for _ in 0..3 {
        buffer.end_quarantine(100 * KILOBYTE);
    }
    add(&mut buffer, "d", 500, KILOBYTE, now);
    assert!(buffer.start_quarantine(100 * KILOBYTE, &options));
    assert!(!buffer.start_quarantine(100 * KILOBYTE, &options));
}

fn wide(columns: usize) -> SpaceBatch {
    let column = || Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    let columns = (0..columns).map(|n| (format!("/form/group/question_{n:04}"), column()));
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let upserts = vec![TableRows { document_type: "t".into(), rows: vec![rows] }];
    SpaceBatch { space: space("d"), upserts, tombstones: Vec::new() }
}

#[test]
fn the_columns_of_a_message_count_beside_its_values() {
    let bytes = bytes_of(&wide(1_000));
    assert!((400_000..500_000).contains(&bytes), "{bytes}");
}

#[test]
fn messages_are_merged_by_type() {
    let other = SpaceBatch {
        upserts: wide(2).upserts.into_iter().map(|table| TableRows { document_type: "u".into(), ..table }).collect(),
        ..wide(1)
    };
    let messages = [wide(1), other, wide(3)].map(|batch| BufferedMessage::new(batch, 1, Box::new(NoReceipt)));
    let merged = merged(&space("d"), &messages);
    let tables: Vec<(&str, usize)> =
        merged.upserts.iter().map(|table| (table.document_type.as_str(), table.rows.len())).collect();
    assert_eq!((tables, merged.len()), (vec![("t", 2), ("u", 1)], 3));
}

#[test]
fn what_may_have_killed_the_process_before_is_committed_alone_and_last() {
    let now = Instant::now();
    let mut buffer = IngestBuffer::of_new_process(now);
    for attempts in [1, 9, 2, 4, 3, 7] {
        buffer.add(held_message("d", 1).with_attempts(attempts), now);
    }
    let mut commits = Vec::new();
    while !buffer.is_empty() {
        let messages = buffer.take(&space("d"), now);
        commits.push(messages.iter().map(|message| message.attempts).collect::<Vec<_>>());
        buffer.committed(&space("d"));
    }
    assert_eq!(commits, [vec![1, 2, 3], vec![4], vec![7], vec![9]]);
    assert_eq!(buffer.bytes(), 0);
    // A process that has lived for a while has given such messages back itself.
    let later = now + 200 * SECOND;
    for attempts in [1, 9] {
        buffer.add(held_message("d", 1).with_attempts(attempts), later);
    }
    assert_eq!(buffer.take(&space("d"), later).len(), 2);
}
