//! What the clock of the simulated HQ's database says, and how it steps back when another machine becomes the primary.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// The clock of a database: real time, or a simulated one.
#[derive(Debug)]
pub struct DatabaseClock(Mutex<State>);

#[derive(Debug)]
struct State {
    began: Instant,
    /// Time that has passed, where it is a simulated one, microseconds.
    simulated_us: Option<i64>,
    /// What the clock is ahead of the time that has passed, where it is a simulated one; else of real time; microseconds.
    ahead_us: i64,
    /// What it said last.
    said_us: i64,
}

impl Default for DatabaseClock {
    fn default() -> Self {
        let state = State { began: Instant::now(), simulated_us: None, ahead_us: 0, said_us: i64::MIN };
        Self(Mutex::new(state))
    }
}

impl DatabaseClock {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the clock is a simulated one, which goes on with each look at it only: the next look is at this time, microseconds.
    pub fn set(&self, next_us: i64) {
        let passed_us = self.own_us();
        let mut state = self.lock();
        state.simulated_us = Some(passed_us);
        state.ahead_us = next_us.saturating_sub(passed_us + 1);
        state.said_us = i64::MIN;
    }

    /// Lets so many microseconds pass, where it is a simulated one.
    pub fn pass(&self, microseconds: i64) {
        let mut state = self.lock();
        state.simulated_us = state.simulated_us.map(|passed_us| passed_us + microseconds);
    }

    /// From now on another machine is the primary, whose clock is behind that of the one before, microseconds; or ahead, where it is negative.
    pub fn fail_over(&self, behind_us: i64) {
        let mut state = self.lock();
        state.ahead_us -= behind_us;
        state.said_us = i64::MIN;
    }

    /// A look at it, microseconds since 1970; no two say the same unless there is a failover between them.
    pub fn look(&self) -> i64 {
        let mut state = self.lock();
        let passed_us = match &mut state.simulated_us {
            Some(passed_us) => {
                *passed_us += 1;
                *passed_us
            }
            None => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64),
        };
        state.said_us = (passed_us + state.ahead_us).max(state.said_us.saturating_add(1));
        state.said_us
    }

    /// What a process that has a clock of its own, which never goes back, sees there: microseconds since any moment.
    pub fn own_us(&self) -> i64 {
        let state = self.lock();
        state.simulated_us.unwrap_or_else(|| i64::try_from(state.began.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}
