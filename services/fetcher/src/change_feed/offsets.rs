//! Which offset may be committed: the first one of a partition that is not done yet. Also whether a partition's log still has what was
//! wanted of it. Pure.
//!
//! Invariant: everything below the committed offset is durable downstream, in whatever order the work was finished. A log can be cut or made
//! anew under a running consumer; offsets then go backwards, and so does what is committed.

use std::collections::{BTreeMap, HashMap};

use lake_proto::queue::v1::FeedPartition;

use super::Position;

/// Where a partition begins when it is assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the offset that the group has committed.
    Committed(i64),
    /// At the beginning of its log, as the group has committed nothing for it.
    Beginning,
    /// At what the client finds out by itself, as the group's offsets could not be asked for.
    Unknown,
}

/// What the broker says of a partition's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Offset of the first message that is there.
    pub low: i64,
    /// One above the last message that is there.
    pub high: i64,
    /// Whether no message waits in the client, so that the next one to be handed out is not on its way.
    pub drained: bool,
}

/// A position that a log does not have any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The offset that was to be read next.
    pub wanted: i64,
    /// First offset that is there; reading goes on from there or from a later one of the same log that was not read yet.
    pub low: i64,
    /// One above the last offset that is there.
    pub high: i64,
}

/// What a look at a partition has shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Messages that were not handed out yet; `None` while the position is not known.
    pub lag: Option<i64>,
    /// Whether the broker is to be asked what the log holds, for [`Offsets::settle`].
    pub doubtful: bool,
}

/// A message that may be handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HandedOut {
    /// The generation to put into its position.
    pub generation: u64,
    /// The offset that was to come next, where the log has gone backwards.
    pub back_from: Option<i64>,
}

/// In-flight offsets of one partition.
#[derive(Debug)]
struct Partition {
    generation: u64,
    /// Each offset that is not done, with the generation that it was handed out in.
    in_flight: BTreeMap<i64, u64>,
    /// One above the last offset that was handed out; before the first one, the offset to begin with. `None`: not known.
    next: Option<i64>,
    /// Whether `next`, while it is not known, is the beginning of the log.
    begins_at_low: bool,
    /// What the broker has been told; `None`: nothing, or not known.
    committed: Option<i64>,
    /// Whether the topic was found gone: another one of that name must not be given this one's offsets.
    topic_gone: bool,
    /// The offset that was to come when a later one came.
    passed_over: Option<i64>,
    /// What was told of the partition last, for operators.
    told: Told,
}

/// What is told of a partition.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// The log, when it was looked at last.
    log: Option<Log>,
    /// Time of the last message that was handed out, milliseconds since 1970, by the feed's clock.
    published_ms: Option<i64>,
}

impl Partition {
    /// Messages that were not handed out yet; `None` while the position is not known.
    fn lag(&self, log: Log) -> Option<i64> {
        match self.next {
            Some(next) => Some((log.high - next).max(0)),
            None => self.begins_at_low.then_some(log.high - log.low),
        }
    }

    /// Whether the log ends before the wanted position, or begins after it.
    fn is_cut_off(&self, Log { low, high, drained }: Log) -> bool {
        self.next.is_some_and(|next| high < next || (low > next && drained))
    }
}

/// In-flight offsets of all assigned partitions.
#[derive(Debug, Default)]
pub struct Offsets {
    partitions: HashMap<(String, i32), Partition>,
    /// Where the group stood in partitions that were taken away.
    before: HashMap<(String, i32), i64>,
    generation: u64,
}

impl Offsets {
    /// Notes that a partition belongs to this process from now on. Gives the offset where the group stood in it when this process had it
    /// before, if nothing is committed for it any more.
    pub fn assign(&mut self, topic: &str, partition: i32, start: Start) -> Option<i64> {
        let before = self.before.remove(&(topic.to_owned(), partition));
        self.generation += 1;
        let position = match start {
            Start::Committed(offset) => Some(offset),
            Start::Beginning | Start::Unknown => None,
        };
        let state = Partition {
            generation: self.generation,
            in_flight: BTreeMap::new(),
            next: position,
            begins_at_low: start == Start::Beginning,
            committed: position,
            topic_gone: false,
            passed_over: None,
            told: Told::default(),
        };
        self.partitions.insert((topic.to_owned(), partition), state);
        before.filter(|_| start == Start::Beginning)
    }

    /// Notes that a message is handed out. `None` where the partition is not ours (any more): its owner will see the message.
    pub fn handed_out(&mut self, topic: &str, partition: i32, offset: i64) -> Option<HandedOut> {
        let state = self.partitions.get_mut(&(topic.to_owned(), partition))?;
        let back_from = state.next.filter(|next| offset < *next);
        if back_from.is_some() {
            // From here on it is another log. Work on the old one's messages may still end, but says nothing of the new one's.
            self.generation += 1;
            state.generation = self.generation;
            state.in_flight.split_off(&offset);
            state.passed_over = None;
        } else if let Some(next) = state.next.filter(|next| offset > *next) {
            state.passed_over.get_or_insert(next);
        }
        state.in_flight.insert(offset, state.generation);
        state.next = Some(offset + 1);
        state.topic_gone = false;
        Some(HandedOut { generation: state.generation, back_from })
    }

    /// Notes when a message that is handed out came to the feed, milliseconds since 1970.
    pub fn published(&mut self, topic: &str, partition: i32, published_ms: Option<i64>) {
        if let Some(state) = self.partitions.get_mut(&(topic.to_owned(), partition)) {
            state.told.published_ms = published_ms.or(state.told.published_ms);
        }
    }

    /// How far the assigned partitions are read, by topic and number.
    pub fn progress(&self) -> Vec<FeedPartition> {
        let progress = |((topic, partition), state): (&(String, i32), &Partition)| FeedPartition {
            topic: topic.clone(),
            partition: *partition,
            lag: state.told.log.and_then(|log| state.lag(log)),
            last_published_us: state.told.published_ms.map(|published_ms| published_ms.saturating_mul(1_000)),
        };
        let mut all: Vec<FeedPartition> = self.partitions.iter().map(progress).collect();
        all.sort_by(|one, other| (&one.topic, one.partition).cmp(&(&other.topic, other.partition)));
        all
    }

    /// Notes that a message is durable downstream. Ignored when the partition has been revoked, or its log cut, since.
    pub fn done(&mut self, position: &Position) {
        if let Some(partition) = self.partitions.get_mut(&(position.topic.to_string(), position.partition))
            && partition.in_flight.get(&position.offset) == Some(&position.generation)
        {
            partition.in_flight.remove(&position.offset);
        }
    }

    /// The partitions whose committed offset should move, with the new one.
    pub fn to_commit(&self) -> Vec<(String, i32, i64)> {
        self.partitions
            .iter()
            .filter(|(_, state)| !state.topic_gone)
            .filter_map(|((topic, partition), state)| {
                let next = state.next?;
                let offset = state.in_flight.first_key_value().map_or(next, |(first, _)| next.min(*first));
                (Some(offset) != state.committed).then(|| (topic.clone(), *partition, offset))
            })
            .collect()
    }

    /// Notes what the broker has been told.
    pub fn committed(&mut self, commits: &[(String, i32, i64)]) {
        for (topic, partition, offset) in commits {
            if let Some(state) = self.partitions.get_mut(&(topic.clone(), *partition)) {
                state.committed = Some(*offset);
            }
        }
    }

    /// Notes that the broker did not take what it was told, after all: it is told again.
    pub fn commit_failed(&mut self, topic: &str, partition: i32) {
        if let Some(state) = self.partitions.get_mut(&(topic.to_owned(), partition)) {
            state.committed = None;
        }
    }

    /// Notes that the broker has no such topic. Nothing is committed until a message comes: if the topic is made anew, its log begins anew.
    pub fn topic_gone(&mut self, topic: &str, partition: i32) {
        if let Some(state) = self.partitions.get_mut(&(topic.to_owned(), partition)) {
            state.committed = None;
            state.topic_gone = true;
        }
    }

    /// Compares a partition with what the client knows of its log, which may be older than the partition's assignment.
    pub fn observe(&mut self, topic: &str, partition: i32, log: Log) -> Observed {
        let Some(state) = self.partitions.get_mut(&(topic.to_owned(), partition)) else { return Observed::default() };
        // Offsets are left out without any loss, too: where a topic is compacted, and where transactions end.
        state.passed_over = state.passed_over.filter(|wanted| log.low > *wanted);
        let begins = state.next.is_none() && state.begins_at_low && log.drained;
        let doubtful = begins || state.passed_over.is_some() || state.is_cut_off(log);
        state.told.log = Some(log);
        Observed { lag: state.lag(log), doubtful }
    }

    /// Compares a partition with what its log holds. One that does not have the wanted position is begun with the first one it has.
    pub fn settle(&mut self, topic: &str, partition: i32, log: Log) -> Option<Gone> {
        let state = self.partitions.get_mut(&(topic.to_owned(), partition))?;
        let Log { low, high, drained } = log;
        if state.next.is_none() && state.begins_at_low && drained {
            state.next = Some(low);
        }
        let passed_over = state.passed_over.take().filter(|wanted| low > *wanted);
        let cut_off = state.next.filter(|_| state.is_cut_off(log));
        if let Some(next) = cut_off {
            if high < next {
                self.generation += 1;
                state.generation = self.generation;
                state.in_flight.split_off(&high);
            }
            state.next = Some(low);
        }
        passed_over.or(cut_off).map(|wanted| Gone { wanted, low, high })
    }

    /// Forgets a partition that was taken away: another group member owns it now.
    pub fn revoke(&mut self, topic: &str, partition: i32) {
        let key = (topic.to_owned(), partition);
        let state = self.partitions.remove(&key);
        if let Some(stood) = state.and_then(|state| state.committed.or(state.next.filter(|_| state.topic_gone))) {
            self.before.insert(key, stood);
        }
    }

    /// Messages handed out and not done.
    pub fn in_flight(&self) -> usize {
        self.partitions.values().map(|partition| partition.in_flight.len()).sum()
    }
}

#[cfg(test)]
mod tests;
