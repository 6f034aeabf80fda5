//! What waits for its commit, per space, and which space is due.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use arrow::record_batch::RecordBatch;
pub(super) use lake_shared::identity::Space;
use lake_shared::queue::Receipt;
use tokio::time::Instant;

use super::IngestOptions;
use crate::table_store::SpaceBatch;

/// Rows of one space and the receipts of the messages they came in.
pub(super) struct Waiting {
    pub(super) batch: SpaceBatch,
    pub(super) receipts: Vec<Box<dyn Receipt>>,
    /// Rows and tombstones.
    pub(super) rows: usize,
    /// Bytes in memory.
    pub(super) bytes: usize,
    since: Instant,
}

/// Everything that waits or is being committed.
#[derive(Default)]
pub(super) struct Held {
    waiting: HashMap<Space, Waiting>,
    committing: HashSet<Space>,
    bytes: usize,
}

impl Held {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Bytes waiting and being committed.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Rows and tombstones waiting.
    pub(super) fn rows(&self) -> usize {
        self.waiting.values().map(|waiting| waiting.rows).sum()
    }

    /// Adds a message's rows.
    pub(super) fn add(&mut self, batch: SpaceBatch, receipt: Box<dyn Receipt>, now: Instant) {
        let (rows, bytes) = (batch.len(), bytes_of(&batch));
        self.bytes += bytes;
        let waiting = self.waiting.entry(batch.space.clone()).or_insert_with(|| Waiting {
            batch: SpaceBatch { space: batch.space.clone(), upserts: Vec::new(), tombstones: Vec::new() },
            receipts: Vec::new(),
            rows: 0,
            bytes: 0,
            since: now,
        });
        for arrived in batch.upserts {
            let upserts = &mut waiting.batch.upserts;
            match upserts.iter_mut().find(|table| table.document_type == arrived.document_type) {
                Some(table) => table.rows.extend(arrived.rows),
                None => upserts.push(arrived),
            }
        }
        waiting.batch.tombstones.extend(batch.tombstones);
        waiting.receipts.push(receipt);
        waiting.rows += rows;
        waiting.bytes += bytes;
    }

    /// The space to commit now and why. When memory is short it is the largest one; when everything must go, any.
    pub(super) fn due(&self, now: Instant, options: &IngestOptions, everything: bool) -> Option<(Space, &'static str)> {
        let free = || self.waiting.iter().filter(|(space, _)| !self.committing.contains(space));
        let age = Duration::from_millis(options.flush_age_ms);
        let oldest_first = |cause: &dyn Fn(&Waiting) -> Option<&'static str>| {
            let due = free().filter_map(|(space, waiting)| Some((waiting.since, space, cause(waiting)?)));
            due.min_by_key(|(since, _, _)| *since).map(|(_, space, cause)| (space.clone(), cause))
        };
        let due = oldest_first(&|waiting| match waiting {
            _ if everything => Some("shutdown"),
            waiting if waiting.rows >= options.flush_rows_max => Some("rows"),
            waiting if waiting.bytes >= options.flush_bytes_max => Some("bytes"),
            waiting if now.saturating_duration_since(waiting.since) >= age => Some("age"),
            _ => None,
        });
        if due.is_some() || self.bytes < options.held_bytes_max {
            return due;
        }
        free().max_by_key(|(_, waiting)| waiting.bytes).map(|(space, _)| (space.clone(), "memory"))
    }

    /// Since when the row has waited that has waited longest, of the spaces that are not being committed.
    pub(super) fn oldest(&self) -> Option<Instant> {
        let free = self.waiting.iter().filter(|(space, _)| !self.committing.contains(space));
        free.map(|(_, waiting)| waiting.since).min()
    }

    /// Takes a space out to be committed. It must be waiting.
    pub(super) fn take(&mut self, space: &Space) -> Waiting {
        self.committing.insert(space.clone());
        self.waiting.remove(space).unwrap_or_else(|| Waiting {
            batch: SpaceBatch { space: space.clone(), upserts: Vec::new(), tombstones: Vec::new() },
            receipts: Vec::new(),
            rows: 0,
            bytes: 0,
            since: Instant::now(),
        })
    }

    /// A commit has ended, one way or the other.
    pub(super) fn committed(&mut self, space: &Space, bytes: usize) {
        self.committing.remove(space);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Tells the queue that the waiting messages are being worked on.
    pub(super) async fn in_progress(&self) {
        for receipt in self.waiting.values().flat_map(|waiting| &waiting.receipts) {
            if let Err(error) = receipt.in_progress().await {
                tracing::debug!(%error, "queue cannot be told of progress; the message may come twice");
                return;
            }
        }
    }
}

/// Bytes that a batch takes in memory. A message with nothing in it counts a little, so that such messages are bounded too.
fn bytes_of(batch: &SpaceBatch) -> usize {
    let rows = batch.upserts.iter().flat_map(|table| &table.rows).map(rows_bytes).sum::<usize>();
    let tombstones =
        batch.tombstones.iter().map(|tombstone| 128 + tombstone.id.len() + tombstone.reason.len()).sum::<usize>();
    256 + rows + tombstones
}

/// Bytes of the values. The columns of a decoded message share one buffer, which `get_array_memory_size` would count for each of them.
fn rows_bytes(rows: &RecordBatch) -> usize {
    let column = |column: &arrow::array::ArrayRef| {
        let data = column.to_data();
        data.get_slice_memory_size().unwrap_or_else(|_| data.get_array_memory_size())
    };
    rows.columns().iter().map(column).sum()
}
