//! What can be asked of a running ingest: how much it holds, and to pause and resume.
//!
//! What is paused stays in the queue. Its messages that were taken already are given back, unacknowledged, and come again later: nothing is
//! lost, and nothing of it is committed. A pause ends with the process, and when the writer loses the lease.

use std::collections::BTreeSet;

use lake_shared::identity::{Space, TableKey};
use tokio::sync::oneshot;

/// What is to be paused or resumed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PauseScope {
    /// All spaces: nothing is taken from the queue.
    Everything,
    /// One space. Its messages are still handed out by the queue, and given back each time. The queue counts them as unacknowledged meanwhile
    /// (see [`super::IngestOptions::in_flight_max`], of which it allows eight times as many): a space with more messages than that holds up
    /// the others when it is paused for long.
    Space(Space),
}

impl PauseScope {
    /// Whether the space is part of it.
    pub(super) fn covers(&self, space: &Space) -> bool {
        match self {
            Self::Everything => true,
            Self::Space(paused) => paused == space,
        }
    }
}

/// What is paused now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paused {
    /// Whether all spaces are paused.
    pub everything: bool,
    /// The spaces that were paused one by one.
    pub spaces: BTreeSet<Space>,
}

impl Paused {
    /// Whether rows of the space must not be committed now.
    pub fn contains(&self, space: &Space) -> bool {
        self.everything || self.spaces.contains(space)
    }

    /// Whether all of a scope is paused.
    pub(super) fn covers(&self, scope: &PauseScope) -> bool {
        match scope {
            PauseScope::Everything => self.everything,
            PauseScope::Space(space) => self.contains(space),
        }
    }

    pub(crate) fn pause(&mut self, scope: &PauseScope) {
        match scope {
            PauseScope::Everything => self.everything = true,
            PauseScope::Space(space) => {
                self.spaces.insert(space.clone());
            }
        }
    }

    /// Resuming everything resumes also what was paused one by one. A space that is resumed while everything is paused goes on after that.
    pub(super) fn resume(&mut self, scope: &PauseScope) {
        match scope {
            PauseScope::Everything => *self = Self::default(),
            PauseScope::Space(space) => {
                self.spaces.remove(space);
            }
        }
    }
}

/// What ingest holds of all spaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IngestStatus {
    /// The spaces that are paused; of those nothing waits here.
    pub paused: Paused,
    /// Rows and tombstones that wait for their commit; those that are being committed are not counted.
    pub rows_waiting: usize,
    /// Bytes in memory of all messages that are not answered, those included that are being committed or quarantined.
    pub bytes_held: usize,
    /// The spaces whose last commit failed. They are tried again until they can be committed.
    pub failing: BTreeSet<Space>,
}

/// What ingest holds for one table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PendingRows {
    /// Rows of the table that wait for their commit.
    pub rows: usize,
    /// Tombstones of the table's space that wait for their commit; which table each concerns is found out by applying it.
    pub tombstones: usize,
    /// Whether rows of the table's space are being committed now; they are not in the two figures above.
    pub committing: bool,
    /// Whether the space is paused.
    pub paused: bool,
}

/// A request to a running ingest, with where the answer goes.
#[derive(Debug)]
pub enum IngestRequest {
    /// What is held of all spaces.
    Status(oneshot::Sender<IngestStatus>),
    /// What is held for one table.
    Pending(TableKey, oneshot::Sender<PendingRows>),
    /// Pauses. Answered when no commit of the scope runs any more, or when it was resumed meanwhile.
    Pause(PauseScope, oneshot::Sender<()>),
    /// Resumes. Answered at once; what was given back comes again within half a minute.
    Resume(PauseScope, oneshot::Sender<()>),
}
