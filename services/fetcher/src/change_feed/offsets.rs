//! Which offset may be committed: the first one of a partition that is not done yet. Pure.
//!
//! Invariant: everything below the committed offset is durable downstream, in whatever order the work was finished.

use std::collections::{BTreeSet, HashMap};

use super::Position;

/// In-flight offsets of one partition.
#[derive(Debug)]
struct Partition {
    generation: u64,
    in_flight: BTreeSet<i64>,
    /// One above the greatest offset that was handed out.
    next: i64,
    /// What the broker has been told; at first the offset that the partition began with.
    committed: i64,
}

/// In-flight offsets of all assigned partitions.
#[derive(Debug, Default)]
pub struct Offsets {
    partitions: HashMap<(String, i32), Partition>,
    generation: u64,
}

impl Offsets {
    /// Notes that a partition belongs to this process from now on.
    pub fn assign(&mut self, topic: &str, partition: i32) {
        self.generation += 1;
        let generation = self.generation;
        let state = Partition { generation, in_flight: BTreeSet::new(), next: i64::MIN, committed: i64::MIN };
        self.partitions.insert((topic.to_owned(), partition), state);
    }

    /// Notes that a message is handed out; gives the generation to put into its position. `None` where the partition is not ours
    /// (any more): its owner will see the message.
    pub fn handed_out(&mut self, topic: &str, partition: i32, offset: i64) -> Option<u64> {
        let state = self.partitions.get_mut(&(topic.to_owned(), partition))?;
        if state.next == i64::MIN {
            state.committed = offset;
        }
        state.in_flight.insert(offset);
        state.next = state.next.max(offset + 1);
        Some(state.generation)
    }

    /// Notes that a message is durable downstream. Ignored when the partition has been revoked since.
    pub fn done(&mut self, position: &Position) {
        if let Some(partition) = self.partitions.get_mut(&(position.topic.to_string(), position.partition))
            && partition.generation == position.generation
        {
            partition.in_flight.remove(&position.offset);
        }
    }

    /// The partitions whose committed offset should move, with the new one.
    pub fn to_commit(&self) -> Vec<(String, i32, i64)> {
        self.partitions
            .iter()
            .filter_map(|((topic, partition), state)| {
                let offset = state.in_flight.first().copied().unwrap_or(state.next);
                (offset > state.committed).then(|| (topic.clone(), *partition, offset))
            })
            .collect()
    }

    /// Notes what the broker has been told.
    pub fn committed(&mut self, commits: &[(String, i32, i64)]) {
        for (topic, partition, offset) in commits {
            if let Some(state) = self.partitions.get_mut(&(topic.clone(), *partition)) {
                state.committed = *offset;
            }
        }
    }

    /// Notes that the broker did not take what it was told, after all: it is told again.
    pub fn commit_failed(&mut self, topic: &str, partition: i32) {
        if let Some(state) = self.partitions.get_mut(&(topic.to_owned(), partition)) {
            state.committed = i64::MIN;
        }
    }

    /// Forgets a partition that was taken away: another group member owns it now.
    pub fn revoke(&mut self, topic: &str, partition: i32) {
        self.partitions.remove(&(topic.to_owned(), partition));
    }

    /// Messages handed out and not done.
    pub fn in_flight(&self) -> usize {
        self.partitions.values().map(|partition| partition.in_flight.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(offset: i64, generation: u64) -> Position {
        Position { topic: "case-sql".into(), partition: 0, offset, generation }
    }

    fn commits(offsets: &Offsets) -> Vec<i64> {
        offsets.to_commit().into_iter().map(|(_, _, offset)| offset).collect()
    }

    #[test]
    fn only_what_lies_below_the_first_unfinished_message_is_committed() {
        let mut offsets = Offsets::default();
        offsets.assign("case-sql", 0);
        let generation = offsets.handed_out("case-sql", 0, 10).expect("assigned");
        offsets.handed_out("case-sql", 0, 11);
        offsets.handed_out("case-sql", 0, 14);
        assert!(commits(&offsets).is_empty());
        offsets.done(&position(11, generation));
        assert!(commits(&offsets).is_empty(), "10 is unfinished");
        offsets.done(&position(10, generation));
        assert_eq!(commits(&offsets), [14]);
        offsets.committed(&offsets.to_commit());
        assert!(commits(&offsets).is_empty());
        offsets.done(&position(14, generation));
        assert_eq!(commits(&offsets), [15]);
        offsets.committed(&offsets.to_commit());
        offsets.commit_failed("case-sql", 0);
        assert_eq!(commits(&offsets), [15], "the broker did not take it");
        assert_eq!(offsets.in_flight(), 0);
    }

    #[test]
    fn reports_of_an_earlier_assignment_are_void() {
        let mut offsets = Offsets::default();
        offsets.assign("case-sql", 0);
        let earlier = offsets.handed_out("case-sql", 0, 10).expect("assigned");
        offsets.revoke("case-sql", 0);
        assert_eq!(offsets.handed_out("case-sql", 0, 10), None);
        offsets.assign("case-sql", 0);
        let later = offsets.handed_out("case-sql", 0, 10).expect("assigned");
        assert_ne!(earlier, later);
        offsets.done(&position(10, earlier));
        assert!(commits(&offsets).is_empty());
        offsets.done(&position(10, later));
        assert_eq!(commits(&offsets), [11]);
    }
}
