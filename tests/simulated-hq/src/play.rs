//! The simulated life on real parts: databases, blobs, users and Kafka together.
//!
//! Invariant, as in HQ: a message is published only after everything that its turn (and all before it) changes is durable. With several
//! turns in one group, all mutations of the group come before all its messages. A group that failed is repeated as a whole, so messages may
//! come twice, as HQ's may.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::blobs::BlobSink;
use crate::kafka::KafkaSink;
use crate::life::Life;
use crate::patience::persist;
use crate::postgres::PostgresSink;
use crate::turn::Turn;
use crate::users::UserDocuments;

/// At a rate, turns that fall due within this time make one group.
const GROUP_SPAN_SECONDS: f64 = 0.1;

/// Something that lives by turns.
pub trait TurnSource {
    /// What happens next.
    fn turn(&mut self) -> Turn;

    /// How many changes have happened so far.
    fn changes(&self) -> u64;
}

impl TurnSource for Life {
    fn turn(&mut self) -> Turn {
        Life::turn(self)
    }

    fn changes(&self) -> u64 {
        Life::changes(self)
    }
}

/// How fast and how long to play.
#[derive(Clone, Debug)]
pub struct Pace {
    /// Ends when the life has had so many changes; `u64::MAX` never ends.
    pub changes: u64,
    /// Changes per second; `None` plays as fast as the parts allow.
    pub rate_per_second: Option<f64>,
    /// At most so many turns in one group, that is in one transaction of each database. At least 1.
    pub turns_per_group_max: usize,
    /// Where to keep account of the turns in the main database, so that the life can be resumed; a name of the life.
    pub account: Option<String>,
}

/// What has been played by one call.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Turns that were played.
    pub turns: u64,
    /// Changes as the life counts them.
    pub changes: u64,
    /// Changes of HQ's stores.
    pub mutations: u64,
    /// Messages on Kafka.
    pub messages: u64,
    /// Since the call began.
    pub elapsed: Duration,
}

impl Progress {
    /// Changes per second so far.
    pub fn rate(&self) -> f64 {
        self.changes as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// A real HQ, as far as a lake sees one.
#[derive(Clone, Debug)]
pub struct RealHq {
    /// Takes the rows.
    pub postgres: PostgresSink,
    /// Takes the XML of forms.
    pub blobs: BlobSink,
    /// Users; a [`crate::users::UserServer`] serves them.
    pub users: UserDocuments,
    /// Takes the messages.
    pub kafka: KafkaSink,
    /// How long to try again when a part does not answer; zero fails at once.
    pub patience: Duration,
}

impl RealHq {
    /// Does all mutations, then publishes all messages.
    ///
    /// # Errors
    ///
    /// When a part fails for longer than the patience.
    pub async fn apply(&self, turn: &Turn) -> Result<()> {
        // HQ writes a blob before the row that refers to it, and removes it after that row.
        persist("write blobs", self.patience, async || self.blobs.put(&turn.mutations).await).await?;
        persist("write rows", self.patience, async || self.postgres.apply(&turn.mutations).await).await?;
        persist("remove blobs", self.patience, async || self.blobs.remove(&turn.mutations).await).await?;
        self.users.apply(&turn.mutations);
        persist("publish", self.patience, async || self.kafka.publish(&turn.messages).await).await
    }

    /// Plays on until the life has had as many changes as asked for, or `report`, which is called after each group, breaks.
    ///
    /// # Errors
    ///
    /// As [`RealHq::apply`].
    pub async fn play(
        &self,
        life: &mut impl TurnSource,
        pace: &Pace,
        mut report: impl FnMut(&Progress) -> ControlFlow<()>,
    ) -> Result<Progress> {
        let began = Instant::now();
        let first = life.changes();
        let mut progress = Progress::default();
        while life.changes() < pace.changes {
            let (group, turns) = next_group(life, pace);
            if let Some(rate) = pace.rate_per_second {
                let due = Duration::try_from_secs_f64((life.changes() - first) as f64 / rate).unwrap_or(Duration::MAX);
                tokio::time::sleep(due.saturating_sub(began.elapsed())).await;
            }
            self.apply(&group).await?;
            progress.turns += turns;
            progress.changes = life.changes() - first;
            progress.mutations += group.mutations.len() as u64;
            progress.messages += group.messages.len() as u64;
            progress.elapsed = began.elapsed();
            if let Some(account) = &pace.account {
                let note = async || self.postgres.add_turns(account, turns).await;
                persist("keep account of the life", self.patience, note).await?;
            }
            if report(&progress).is_break() {
                break;
            }
        }
        Ok(progress)
    }

    /// Goes through turns that were played before: nothing is written but users, who are only in memory.
    pub fn resume(&self, life: &mut impl TurnSource, turns: u64) {
        for _ in 0..turns {
            self.users.apply(&life.turn().mutations);
        }
    }
}

/// The next turns as one, and how many they are.
fn next_group(life: &mut impl TurnSource, pace: &Pace) -> (Turn, u64) {
    let span = pace.rate_per_second.map_or(u64::MAX, |rate| (rate * GROUP_SPAN_SECONDS) as u64);
    let end = life.changes().saturating_add(span.max(1)).min(pace.changes);
    let mut group = life.turn();
    let mut turns = 1;
    while life.changes() < end && turns < pace.turns_per_group_max as u64 {
        let next = life.turn();
        group.mutations.extend(next.mutations);
        group.messages.extend(next.messages);
        turns += 1;
    }
    (group, turns)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three changes in each turn.
    struct Clockwork(u64);

    impl TurnSource for Clockwork {
        fn turn(&mut self) -> Turn {
            self.0 += 3;
            Turn::default()
        }

        fn changes(&self) -> u64 {
            self.0
        }
    }

    fn turns(changes: u64, rate_per_second: Option<f64>, turns_per_group_max: usize) -> u64 {
        next_group(&mut Clockwork(0), &Pace { changes, rate_per_second, turns_per_group_max, account: None }).1
    }

    #[test]
    fn groups_end_with_the_changes_the_rate_or_the_limit() {
        assert_eq!(turns(10, None, 100), 4);
        assert_eq!(turns(1_000, None, 100), 100);
        assert_eq!(turns(1_000, None, 1), 1);
        assert_eq!(turns(1_000, Some(2.0), 100), 1);
        assert_eq!(turns(1_000, Some(120.0), 100), 4);
    }
}
