//! Turns at a source: handed out in the order in which they were asked for, at most as many at once as the limit says.
//!
//! Invariants: a limit that falls takes effect as turns are given back, so nothing that was begun is broken off; a turn that is dropped
//! is given back, whatever became of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::bucket::TokenBucket;
use super::limit::{AdaptiveLimit, Class, Decision, LimitOptions};
use crate::metric_names;

/// Limits for the requests to one source.
#[derive(Clone, Copy, Debug)]
pub struct TurnOptions {
    /// For metrics and logs: `database`, `blobs`.
    pub source: &'static str,
    /// Most turns at once, and how careful to be.
    pub limit: LimitOptions,
    /// Turns that begin in a second when all is well; fewer when the limit has fallen. 0: any number.
    pub per_second_max: u32,
}

/// A clock: the time since a fixed moment.
type Clock = Box<dyn Fn() -> Duration + Send + Sync>;

/// Hands out turns at one source.
pub struct Turns {
    source: &'static str,
    per_second_max: u32,
    clock: Clock,
    permits: Arc<Semaphore>,
    state: Mutex<State>,
}

struct State {
    limit: AdaptiveLimit,
    bucket: Option<TokenBucket>,
    /// Turns that are allowed or, after the limit has fallen, still out.
    permits: usize,
    in_flight: usize,
    /// When the limit fell below the most.
    held_back_since: Option<Duration>,
}

/// How much a source is asked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// `database` or `blobs`.
    pub source: &'static str,
    /// Turns that may be out at once now.
    pub at_once: usize,
    /// The same when all is well.
    pub at_once_max: usize,
    /// Turns that are out.
    pub in_flight: usize,
    /// For how long it has been asked less than when all is well; `None`: it is not.
    pub held_back_for: Option<Duration>,
}

/// Permission for one request, given back when it is dropped.
pub struct Turn {
    turns: Arc<Turns>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// A source of which no turn is out.
    pub fn new(options: TurnOptions) -> Arc<Self> {
        let began = Instant::now();
        Self::with_clock(options, Box::new(move || began.elapsed()))
    }

    fn with_clock(options: TurnOptions, clock: Clock) -> Arc<Self> {
        let now = clock();
        let limit = AdaptiveLimit::new(options.limit, now);
        let rate = f64::from(options.per_second_max);
        let bucket = (options.per_second_max > 0).then(|| TokenBucket::new(rate, rate, now));
        let permits = limit.limit();
        metrics::gauge!(metric_names::IN_FLIGHT_LIMIT, "source" => options.source).set(permits as f64);
        metrics::counter!(metric_names::SLOWED_DOWN_TOTAL, "source" => options.source).increment(0);
        Arc::new(Self {
            source: options.source,
            per_second_max: options.per_second_max,
            clock,
            permits: Arc::new(Semaphore::new(permits)),
            state: Mutex::new(State { limit, bucket, permits, in_flight: 0, held_back_since: None }),
        })
    }

    /// Waits for a turn. Safe to cancel.
    pub async fn take(self: &Arc<Self>) -> Turn {
        let asked = Instant::now();
        // The semaphore is never closed.
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok();
        let wait = {
            let mut state = self.lock();
            state.in_flight += 1;
            self.show_in_flight(&state);
            state.bucket.as_mut().map_or(Duration::ZERO, |bucket| bucket.reserve((self.clock)(), 1))
        };
        let turn = Turn { turns: Arc::clone(self), permit };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        metrics::histogram!(metric_names::TURN_WAIT_SECONDS, "source" => self.source).record(asked.elapsed());
        turn
    }

    /// How many may be out at once now.
    pub fn limit(&self) -> usize {
        self.lock().limit.limit()
    }

    /// How many are out now; for a moment more than the limit after it has fallen.
    pub fn in_flight(&self) -> usize {
        self.lock().in_flight
    }

    /// How much the source is asked at once now.
    pub fn pace(&self) -> Pace {
        let now = (self.clock)();
        let state = self.lock();
        Pace {
            source: self.source,
            at_once: state.limit.limit(),
            at_once_max: state.limit.most(),
            in_flight: state.in_flight,
            held_back_for: state.held_back_since.map(|since| now.saturating_sub(since)),
        }
    }

    fn decided(&self, state: &mut State, decision: Decision, now: Duration) {
        let limit = state.limit.limit();
        match decision {
            Decision::None | Decision::Same => return,
            Decision::Raised => {
                let more = limit.saturating_sub(state.permits);
                state.permits += more;
                self.permits.add_permits(more);
            }
            Decision::Lowered(times_usual) => {
                // Those that are out are taken away when they come back.
                state.permits -= self.permits.forget_permits(state.permits.saturating_sub(limit));
                metrics::counter!(metric_names::SLOWED_DOWN_TOTAL, "source" => self.source).increment(1);
                tracing::info!(source = self.source, limit, times_usual, "hq answers slowly; asking less at once");
            }
        }
        state.held_back_since = (limit < state.limit.most()).then(|| state.held_back_since.unwrap_or(now));
        let rate = f64::from(self.per_second_max) * state.limit.share();
        if let Some(bucket) = &mut state.bucket {
            bucket.set_rate(now, rate);
        }
        metrics::gauge!(metric_names::IN_FLIGHT_LIMIT, "source" => self.source).set(limit as f64);
    }

    fn show_in_flight(&self, state: &State) {
        metrics::gauge!(metric_names::IN_FLIGHT, "source" => self.source).set(state.in_flight as f64);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn {
    /// An answer came; one turn may have several, one after the other.
    pub fn answered(&self, class: Class, latency: Duration) {
        let turns = &self.turns;
        metrics::histogram!(metric_names::ANSWER_SECONDS, "source" => turns.source).record(latency);
        let now = (turns.clock)();
        let mut state = turns.lock();
        let decision = state.limit.answered(now, class, latency);
        turns.decided(&mut state, decision, now);
    }

    /// No answer came in time, or the source said that it has too much to do.
    pub fn overloaded(&self) {
        let now = (self.turns.clock)();
        let mut state = self.turns.lock();
        let decision = state.limit.overloaded(now);
        self.turns.decided(&mut state, decision, now);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        state.in_flight -= 1;
        self.turns.show_in_flight(&state);
        if state.permits > state.limit.limit() {
            state.permits -= 1;
            if let Some(permit) = self.permit.take() {
                permit.forget();
            }
        }
        // Otherwise the permit goes back by itself; under the lock, so that counts and permits agree.
        drop(self.permit.take());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicU64, Ordering};

    use futures::FutureExt;

    use super::*;

    /// Turns with a clock that is set by hand, in milliseconds.
    fn turns(in_flight_max: usize, per_second_max: u32) -> (Arc<Turns>, Arc<AtomicU64>) {
        let now = Arc::new(AtomicU64::new(0));
        let clock = Arc::clone(&now);
        let limit = LimitOptions { in_flight_max, slow_down_factor: 1.5 };
        let options = TurnOptions { source: "test", limit, per_second_max };
        (Turns::with_clock(options, Box::new(move || Duration::from_millis(clock.load(Ordering::SeqCst)))), now)
    }

    fn free(turns: &Arc<Turns>) -> Vec<Turn> {
        std::iter::from_fn(|| turns.take().now_or_never()).collect()
    }

    /// How many could be had now; they are given back.
    fn free_count(turns: &Arc<Turns>) -> usize {
        free(turns).len()
    }

    #[test]
    fn as_many_as_the_limit_are_out_at_once() {
        let (turns, _) = turns(3, 0);
        let mut out = free(&turns);
        assert_eq!((out.len(), turns.in_flight(), turns.limit()), (3, 3, 3));
        out.pop();
        assert_eq!(free_count(&turns), 1);
        drop(out);
        assert_eq!((free_count(&turns), turns.in_flight()), (3, 0));
    }

    #[test]
    fn a_fall_takes_effect_as_turns_come_back_and_a_rise_at_once() {
        let (turns, now) = turns(8, 0);
        let mut out = free(&turns);
        assert_eq!(out.len(), 8);
        now.store(1_000, Ordering::SeqCst);
        out[0].overloaded();
        assert_eq!((turns.limit(), turns.in_flight()), (4, 8));
        now.store(1_500, Ordering::SeqCst);
        let held_back_for = Some(Duration::from_millis(500));
        assert_eq!(turns.pace(), Pace { source: "test", at_once: 4, at_once_max: 8, in_flight: 8, held_back_for });
        // Four come back and are not handed out again.
        for left in (4..8).rev() {
            out.pop();
            assert_eq!((turns.in_flight(), free_count(&turns)), (left, 0));
        }
        out.pop();
        assert_eq!(free_count(&turns), 1);
        now.store(5_000, Ordering::SeqCst);
        out[0].answered(1, Duration::from_millis(10));
        assert_eq!((turns.limit(), free_count(&turns)), (5, 2));
        drop(out);
        assert_eq!(free_count(&turns), 5);
    }

    #[test]
    fn free_turns_are_taken_away_at_once_and_one_is_always_left() {
        let (turns, now) = turns(8, 0);
        for second in 1..10 {
            now.store(second * 1_000, Ordering::SeqCst);
            turns.take().now_or_never().unwrap().overloaded();
        }
        assert_eq!((turns.limit(), free_count(&turns)), (1, 1));
        for second in 10..60 {
            now.store(second * 5_000, Ordering::SeqCst);
            turns.take().now_or_never().unwrap().answered(1, Duration::from_millis(10));
        }
        assert_eq!((turns.limit(), free_count(&turns), turns.pace().held_back_for), (8, 8, None));
    }

    #[tokio::test]
    async fn those_who_wait_are_served_in_order_and_giving_up_loses_no_turn() {
        let (turns, _) = turns(1, 0);
        let first = turns.take().await;
        let mut second = Box::pin(turns.take());
        let mut third = Box::pin(turns.take());
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        drop(first);
        assert!((&mut third).now_or_never().is_none());
        drop(second);
        drop((&mut third).now_or_never().unwrap());
        assert_eq!((free_count(&turns), turns.in_flight()), (1, 0));
    }

    #[tokio::test]
    async fn the_rate_holds_back_what_the_limit_would_let_go() {
        let (turns, now) = turns(100, 5);
        assert_eq!(free_count(&turns), 5);
        assert_eq!(turns.in_flight(), 0, "who gave up waiting has given back the turn");
        now.store(3_600_000, Ordering::SeqCst);
        assert_eq!(free_count(&turns), 5, "nothing is saved up for longer than a second");
    }
}
