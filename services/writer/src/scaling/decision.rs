//! How many replicas a stage should have. Pure: time is passed in, as the time since any fixed moment.
//!
//! More: when it has been behind for a minute, nothing behind it pushes back, and it does not catch up by itself; at most twice as many, and
//! no further step before the last one could show. Fewer: one after the other, when it has kept up for ten minutes and those that
//! remain have been seen to pass on clearly more than there is. What is not known leaves things as they are.

use std::collections::VecDeque;
use std::time::Duration;

/// Time between two observations.
pub(crate) const EVERY: Duration = Duration::from_secs(15);

/// A stage gets more replicas when it has been behind for so long.
const UP_AFTER: Duration = Duration::from_secs(60);

/// It gets fewer when it has kept up for so long.
const DOWN_AFTER: Duration = Duration::from_secs(600);

/// No change within so long of one: its pods have to start, and share the work.
const SETTLE: Duration = Duration::from_secs(180);

/// Where there have been other replicas than wanted for so long, somebody else decides: that number is taken over.
const FOLLOW_AFTER: Duration = Duration::from_secs(1_200);

/// Who has not been asked for so long does not know what was decided meanwhile, by another writer: it begins with what there is.
const FORGET_AFTER: Duration = Duration::from_secs(300);

/// Observations are kept for so long.
const KEPT: Duration = Duration::from_secs(1_260);

/// An observation that is older says nothing of now.
const FRESH_FOR: Duration = Duration::from_secs(60);

/// A stage that will be within its target after so long by itself gets no further replicas.
const CATCHES_UP_WITHIN: f64 = 300.0;

/// Part of the target within which a stage keeps up.
const KEEPS_UP: f64 = 0.25;

/// Part of what replicas can pass on that may be asked of those that remain.
const LOAD_OF_FEWER: f64 = 0.7;

/// How much of the difference a replica's capacity follows when it is seen at its limit.
const LEARN: f64 = 0.2;

/// Why more replicas would not help, or would do harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PushBack {
    /// HQ answers slowly: it is asked less.
    SlowHq,
    /// A stream behind the stage takes hardly any more.
    StreamFull,
    /// The enrichers do not keep up.
    EnrichersBehind,
    /// The writer does not keep up, or is paused.
    WriterBehind,
    /// As many messages are handed out as may be at once.
    AllHandedOut,
    /// The queue does not tell.
    QueueUnknown,
}

/// What is known of a stage at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Observation {
    pub(crate) at: Duration,
    /// Replicas that are alive.
    pub(crate) replicas: u32,
    /// How old the oldest message that waits can be, seconds.
    pub(crate) seconds_behind: Option<f64>,
    /// Records that all of them pass on in a second.
    pub(crate) rate: Option<f64>,
    /// Partitions of the feed: further fetchers have nothing to do. `None`: they do not count for this stage.
    pub(crate) partitions: Option<u32>,
    /// Messages there are, of which each replica has to have one. `None`: as for `partitions`.
    pub(crate) messages: Option<u64>,
    pub(crate) push_back: Option<PushBack>,
}

/// What was observed of a stage lately, and what was decided.
#[derive(Clone, Debug, Default)]
pub(crate) struct StageHistory {
    observations: VecDeque<Observation>,
    /// Records a second that one replica has been seen to pass on.
    capacity: Option<f64>,
    wanted: Option<u32>,
    changed_at: Option<Duration>,
    asked_at: Option<Duration>,
}

impl StageHistory {
    /// Adds what is seen now.
    pub(crate) fn observe(&mut self, seen: Observation) {
        while self.observations.front().is_some_and(|first| seen.at.saturating_sub(first.at) > KEPT) {
            self.observations.pop_front();
        }
        self.observations.push_back(seen);
    }

    /// How many replicas there should be. `None`: nothing is known yet.
    pub(crate) fn wanted(&mut self, now: Duration, target_seconds: f64) -> Option<u32> {
        if self.asked_at.replace(now).is_some_and(|asked_at| now.saturating_sub(asked_at) > FORGET_AFTER) {
            (self.wanted, self.changed_at) = (None, None);
        }
        let Some(last) = self.last(now) else { return self.wanted };
        self.learn(&last, target_seconds);
        let held = *self.wanted.get_or_insert(last.replicas);
        let next = self.next(now, held, &last, target_seconds);
        if next != held {
            self.wanted = Some(next);
            self.changed_at = Some(now);
        }
        Some(next)
    }

    /// What holds a stage back that is behind; for the log.
    pub(crate) fn push_back(&self) -> Option<PushBack> {
        self.observations.back().and_then(|last| last.push_back)
    }

    fn next(&self, now: Duration, held: u32, last: &Observation, target_seconds: f64) -> u32 {
        if let Some(partitions) = self.partitions().filter(|partitions| held > *partitions) {
            return partitions;
        }
        if self.changed_at.is_some_and(|at| now.saturating_sub(at) < SETTLE) {
            return held;
        }
        if let Some(others) = self.others(now, held) {
            return others;
        }
        if self.is_behind(now, target_seconds) && last.replicas >= held {
            return self.more(held, last, target_seconds).max(held);
        }
        let fewer = held.saturating_sub(step(held)).max(1);
        if last.replicas <= held && self.keeps_up(now, target_seconds) && self.would_do(fewer) { fewer } else { held }
    }

    /// The last observation, if it is one of now.
    fn last(&self, now: Duration) -> Option<Observation> {
        self.observations.back().filter(|last| now.saturating_sub(last.at) <= FRESH_FOR && last.replicas > 0).copied()
    }

    /// Observations of the time until now, if they cover it.
    fn lately(&self, now: Duration, span: Duration) -> Option<impl Iterator<Item = &Observation> + Clone> {
        let from = now.saturating_sub(span);
        let within = self.observations.iter().filter(move |seen| seen.at >= from);
        let first = within.clone().next()?;
        let covered = now.saturating_sub(first.at) + 2 * EVERY >= span && now >= span;
        (covered && within.clone().count() >= 3).then_some(within)
    }

    /// As many as have been there for long, other than wanted.
    fn others(&self, now: Duration, held: u32) -> Option<u32> {
        if self.changed_at.is_some_and(|at| now.saturating_sub(at) < FOLLOW_AFTER) {
            return None;
        }
        let mut lately = self.lately(now, FOLLOW_AFTER)?;
        let replicas = lately.next()?.replicas;
        let lasts = replicas > 0 && lately.all(|seen| seen.replicas == replicas);
        let others = replicas.min(self.partitions().unwrap_or(u32::MAX));
        (lasts && others != held).then_some(others)
    }

    fn is_behind(&self, now: Duration, target_seconds: f64) -> bool {
        let Some(mut lately) = self.lately(now, UP_AFTER) else { return false };
        let ends = lately.clone().next().zip(lately.clone().last());
        let is_behind = |seen: &Observation| {
            seen.push_back.is_none() && seen.seconds_behind.is_some_and(|seconds| seconds > target_seconds)
        };
        lately.all(is_behind) && !ends.is_some_and(|(first, last)| catches_up(first, last, target_seconds))
    }

    fn more(&self, held: u32, last: &Observation, target_seconds: f64) -> u32 {
        let times = (last.seconds_behind.unwrap_or_default() / target_seconds).clamp(1.0, 2.0);
        // At most twice a u32, and saturating.
        let more = (f64::from(held) * times).ceil() as u32;
        let messages = last.messages.map(|messages| u32::try_from(messages).unwrap_or(u32::MAX));
        let most = self.partitions().unwrap_or(u32::MAX).min(messages.unwrap_or(u32::MAX));
        let more = more.max(held.saturating_add(step(held))).min(most);
        // Kubernetes would not follow a smaller step.
        if more >= held.saturating_add(step(held)) { more } else { held }
    }

    fn keeps_up(&self, now: Duration, target_seconds: f64) -> bool {
        let within = |seen: &Observation| seen.seconds_behind.is_some_and(|of| of <= target_seconds * KEEPS_UP);
        self.lately(now, DOWN_AFTER).is_some_and(|mut lately| lately.all(within))
    }

    /// Whether so few could have passed on what there was lately.
    fn would_do(&self, fewer: u32) -> bool {
        let rates = self.observations.iter().map(|seen| seen.rate);
        let most = rates.reduce(|most, rate| Some(most?.max(rate?))).flatten();
        most.zip(self.capacity).is_some_and(|(most, capacity)| most <= LOAD_OF_FEWER * capacity * f64::from(fewer))
    }

    /// Partitions; in the middle of a rebalance some are nobody's for a moment.
    fn partitions(&self) -> Option<u32> {
        self.observations.iter().filter_map(|seen| seen.partitions).max().filter(|partitions| *partitions > 0)
    }

    fn learn(&mut self, last: &Observation, target_seconds: f64) {
        let Some(each) = last.rate.map(|rate| rate / f64::from(last.replicas)) else { return };
        let capacity = self.capacity.get_or_insert(each);
        let at_its_limit = last.push_back.is_none() && last.seconds_behind.is_some_and(|of| of > target_seconds);
        *capacity = if at_its_limit { *capacity + LEARN * (each - *capacity) } else { capacity.max(each) };
    }
}

/// Whether it will be within its target soon by itself.
fn catches_up(first: &Observation, last: &Observation, target_seconds: f64) -> bool {
    let Some((before, now)) = first.seconds_behind.zip(last.seconds_behind) else { return false };
    let passed = last.at.saturating_sub(first.at).as_secs_f64();
    passed > 0.0 && now - (before - now) / passed * CATCHES_UP_WITHIN <= target_seconds
}

/// The smallest change that Kubernetes follows: it takes a difference of a tenth for none.
fn step(replicas: u32) -> u32 {
    replicas / 10 + 1
}

#[cfg(test)]
mod tests;
