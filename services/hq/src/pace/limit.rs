//! Adapts how many requests to a source are in flight to how long its answers take. Pure: time is passed in, as the time since any fixed moment.
//!
//! Answers are compared with what answers of the same class (the same statement on the same database, about as large) usually take.
//! Over a window of answers the limit falls in proportion when they took clearly longer than usual, by half at most, and at once by half
//! after a time-out; it rises by one when they did not. What is usual follows improvements within seconds and becomes worse only over
//! half an hour: an incident does not become normal, a database that has grown does.
//!
//! Invariants: the limit is never below 1 and never above the configured most; memory is bounded by [`CLASSES_MAX`].

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::Duration;

/// A window ends no sooner, so that one moment of bad luck does not count.
const WINDOW_SHORTEST: Duration = Duration::from_millis(200);
/// A window ends by then, with however few answers: so that an old decision does not hold down a source that is hardly asked.
const WINDOW_LONGEST: Duration = Duration::from_secs(3);
/// A window needs so many answers, and two for each that may be in flight, unless it is long.
const WINDOW_ANSWERS: usize = 4;
/// Milliseconds that are added to both sides of the comparison: an answer in five milliseconds instead of one is no sign of load.
const SLACK_MS: f64 = 5.0;
/// One answer counts for no more than so many times what is usual.
const OUTLIER: f64 = 10.0;
/// Share of an improvement that becomes usual with each window.
const BETTER: f64 = 0.25;
/// How long it takes until most of a worsening is usual.
const WORSE: Duration = Duration::from_secs(1800);
/// The limit does not fall to less than this part of itself at once.
const FALL: f64 = 0.5;
/// Time-outs within so long of one that counted are the same trouble.
const OVERLOAD_IS_ONE: Duration = Duration::from_secs(1);
/// Classes that are told apart; answers of further ones are not judged.
const CLASSES_MAX: usize = 4_096;

/// Class of answers whose times can be compared: a number that the caller makes from the source, the statement and the size of the answer.
pub type Class = u64;

/// How much may be asked at once, and how careful to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LimitOptions {
    /// Most at once, when all is well; at least 1.
    pub in_flight_max: usize,
    /// Answers that take so many times the usual make the limit fall; over 1. `0`: the limit never falls.
    pub slow_down_factor: f64,
}

/// What an answer, or the window that it ended, led to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// The window goes on.
    None,
    /// The limit is as it was.
    Same,
    /// The limit has risen.
    Raised,
    /// The limit has fallen, because the answers took so many times the usual (0 where none came in time).
    Lowered(f64),
}

/// The limit, and the answers by which it is decided.
#[derive(Clone, Debug)]
pub struct AdaptiveLimit {
    options: LimitOptions,
    limit: f64,
    usual: HashMap<Class, Usual>,
    window: Window,
    overloaded_at: Option<Duration>,
}

/// Answers of one class.
#[derive(Clone, Debug)]
struct Usual {
    ms: f64,
    since: Duration,
    /// Sum and number in the window.
    window: (f64, usize),
}

#[derive(Clone, Debug, Default)]
struct Window {
    began: Duration,
    answers: usize,
    /// Milliseconds that they took, and would usually take.
    took: f64,
    expected: f64,
}

impl AdaptiveLimit {
    /// A limit that begins at `in_flight_max`.
    pub fn new(options: LimitOptions, now: Duration) -> Self {
        let limit = options.in_flight_max.max(1) as f64;
        let window = Window { began: now, ..Window::default() };
        Self { options, limit, usual: HashMap::new(), window, overloaded_at: None }
    }

    /// The limit now: 1 to `in_flight_max`.
    pub fn limit(&self) -> usize {
        // Within 1 and the most, which is a usize.
        self.limit as usize
    }

    /// The limit when all is well.
    pub fn most(&self) -> usize {
        self.options.in_flight_max.max(1)
    }

    /// The limit as a part of the most, over 0 and at most 1.
    pub fn share(&self) -> f64 {
        self.limit / self.options.in_flight_max.max(1) as f64
    }

    /// Counts an answer, and decides when its window ends.
    pub fn answered(&mut self, now: Duration, class: Class, latency: Duration) -> Decision {
        let ms = latency.as_secs_f64() * 1e3;
        if self.usual.len() < CLASSES_MAX || self.usual.contains_key(&class) {
            let usual = self.usual.entry(class).or_insert(Usual { ms, since: now, window: (0.0, 0) });
            let expected = usual.ms + SLACK_MS;
            let took = (ms + SLACK_MS).min(OUTLIER * expected);
            usual.window = (usual.window.0 + took - SLACK_MS, usual.window.1 + 1);
            self.window.answers += 1;
            self.window.took += took;
            self.window.expected += expected;
        }
        self.decide(now)
    }

    /// No answer came in time, or the source said that it has too much to do.
    pub fn overloaded(&mut self, now: Duration) -> Decision {
        // Many time-outs come together; they are one reason, not many.
        if self.overloaded_at.is_some_and(|at| now.saturating_sub(at) < OVERLOAD_IS_ONE) {
            return Decision::None;
        }
        self.overloaded_at = Some(now);
        self.window = Window { began: now, ..Window::default() };
        self.learn(now);
        self.change(self.limit * FALL, 0.0)
    }

    fn decide(&mut self, now: Duration) -> Decision {
        let age = now.saturating_sub(self.window.began);
        let enough = self.window.answers >= WINDOW_ANSWERS.max(2 * self.limit());
        if !(enough && age >= WINDOW_SHORTEST || age >= WINDOW_LONGEST) {
            return Decision::None;
        }
        let window = std::mem::replace(&mut self.window, Window { began: now, ..Window::default() });
        self.learn(now);
        let ratio = if window.answers == 0 { 0.0 } else { window.took / window.expected };
        if ratio > self.options.slow_down_factor {
            self.change(self.limit * (self.options.slow_down_factor / ratio).max(FALL), ratio)
        } else {
            self.change(self.limit + 1.0, ratio)
        }
    }

    fn change(&mut self, to: f64, ratio: f64) -> Decision {
        let before = self.limit();
        if self.options.slow_down_factor > 0.0 {
            self.limit = to.clamp(1.0, self.options.in_flight_max.max(1) as f64);
        }
        match self.limit().cmp(&before) {
            Ordering::Less => Decision::Lowered(ratio),
            Ordering::Equal => Decision::Same,
            Ordering::Greater => Decision::Raised,
        }
    }

    fn learn(&mut self, now: Duration) {
        for usual in self.usual.values_mut().filter(|usual| usual.window.1 > 0) {
            let (sum, count) = std::mem::take(&mut usual.window);
            let lately = sum / count as f64;
            let passed = now.saturating_sub(usual.since).as_secs_f64();
            let share = if lately < usual.ms { BETTER } else { 1.0 - (-passed / WORSE.as_secs_f64()).exp() };
            usual.ms += (lately - usual.ms) * share;
            usual.since = now;
        }
    }
}

#[cfg(test)]
mod tests;
