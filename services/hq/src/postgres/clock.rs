//! The clock of a database orders what is read from it, so it must not go back. It does: when a failover makes another machine the primary,
//! when a time server corrects it by a jump, when a virtual machine is restored. Plain values, no I/O.
//!
//! What holds: readings of one process are ordered as they were made, whatever the clock does. A reading that was asked for after another one
//! had been answered, and that comes with an earlier time, shows the step; from then on the readings are said to be so much later, and
//! what is added shrinks by half of the time that passes, until the clock itself is right again. Readings that are in flight together when it steps
//! keep their order, or count as made at once.
//!
//! What does not hold: another process, and this one before its start, may have read an id at a time that is still to come on the new clock. Such
//! an id keeps what was read then until it changes after the clock has passed that time, at most as long after the step as the step is wide. The log
//! tells the step, and a reconciliation finds such ids.

use std::sync::{Mutex, PoisonError};

/// How much later than readings before a step those after it begin, at most and no more than the step is wide, microseconds: room for readings
/// that were in flight when it was noticed.
const ROOM_US: i64 = 1_000_000;

/// A clock, and how it was corrected.
#[derive(Debug, Default)]
pub(super) struct Clock {
    state: Mutex<State>,
}

/// A time that was answered before another reading was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked(i64);

/// When a reading was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Microseconds since 1970; orders the reading.
    pub observed_us: i64,
    /// By how much the clock has stepped back since the reading before, microseconds; 0: it has not.
    pub stepped_back_us: i64,
}

#[derive(Debug, Default)]
struct State {
    latest_us: Option<i64>,
    step: Option<Step>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    /// What the clock said when the step was noticed.
    noticed_us: i64,
    /// What was added then.
    added_us: i64,
    /// What the reading that showed it was ordered by.
    observed_us: i64,
}

impl Step {
    fn corrected(self, clock_us: i64) -> i64 {
        let shrunk_us = clock_us.saturating_sub(self.noticed_us).div_euclid(2);
        clock_us.saturating_add(self.added_us.saturating_sub(shrunk_us).max(0))
    }
}

impl Clock {
    /// To be called just before a reading is asked for.
    pub fn asked(&self) -> Asked {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Asked(state.latest_us.unwrap_or(i64::MIN))
    }

    /// When a reading was made, as it is ordered. `clock_us`: what the clock said, microseconds since 1970.
    pub fn answered(&self, asked: Asked, clock_us: i64) -> Told {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let corrected_us = state.step.map_or(clock_us, |step| step.corrected(clock_us));
        let behind_us = asked.0.saturating_sub(corrected_us).max(0);
        if behind_us == 0 {
            return state.told(corrected_us, 0);
        }
        let earliest_us = asked.0.saturating_add(1);
        if state.step.is_some_and(|step| asked.0 < step.observed_us) {
            // It was in flight when the step was noticed: it shows the same step.
            return state.told(earliest_us, 0);
        }
        let observed_us = earliest_us.saturating_add(behind_us.min(ROOM_US));
        let added_us = observed_us.saturating_sub(clock_us);
        state.step = Some(Step { noticed_us: clock_us, added_us, observed_us });
        state.told(observed_us, behind_us)
    }
}

impl State {
    fn told(&mut self, observed_us: i64, stepped_back_us: i64) -> Told {
        self.latest_us = self.latest_us.max(Some(observed_us));
        Told { observed_us, stepped_back_us }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000;

    #[test]
    fn a_clock_that_goes_on_is_believed() {
        let clock = Clock::default();
        for now in [5, 5, 7, 1_000 * SECOND] {
            assert_eq!(clock.answered(clock.asked(), now), Told { observed_us: now, stepped_back_us: 0 });
        }
        // Two readings in flight: the one that was asked for first is answered last.
        let (first, second) = (clock.asked(), clock.asked());
        assert_eq!(clock.answered(second, 1_002 * SECOND).observed_us, 1_002 * SECOND);
        let late = Told { observed_us: 1_001 * SECOND, stepped_back_us: 0 };
        assert_eq!(clock.answered(first, 1_001 * SECOND), late);
    }

    #[test]
    fn a_step_back_is_told_once_and_made_up_for_until_the_clock_is_right_again() {
        let clock = Clock::default();
        clock.answered(clock.asked(), 1_000 * SECOND);
        let told = clock.answered(clock.asked(), 960 * SECOND);
        assert_eq!(told, Told { observed_us: 1_001 * SECOND + 1, stepped_back_us: 40 * SECOND });
        let told = clock.answered(clock.asked(), 970 * SECOND);
        assert_eq!(told, Told { observed_us: 1_006 * SECOND + 1, stepped_back_us: 0 });
        // 82 s after the step: as much as was added twice over.
        for now in [1_042 * SECOND + 2, 2_000 * SECOND] {
            assert_eq!(clock.answered(clock.asked(), now), Told { observed_us: now, stepped_back_us: 0 });
        }
    }

    #[test]
    fn readings_in_flight_together_keep_their_order_over_a_step() {
        let clock = Clock::default();
        clock.answered(clock.asked(), 1_000 * SECOND);
        let asked = [clock.asked(), clock.asked(), clock.asked()];
        let answers = [962, 960, 930].map(|now| now * SECOND);
        let told: Vec<Told> = asked.into_iter().zip(answers).map(|(asked, now)| clock.answered(asked, now)).collect();
        assert!(told[1].observed_us < told[0].observed_us && told[2].observed_us < told[0].observed_us, "{told:?}");
        assert_eq!(told.iter().filter(|told| told.stepped_back_us > 0).count(), 1, "one step: {told:?}");
        // A second one, which is noticed by who asks after that.
        let told = clock.answered(clock.asked(), 900 * SECOND);
        assert!(told.observed_us > 1_001 * SECOND && told.stepped_back_us > 30 * SECOND, "{told:?}");
    }

    proptest! {
        /// Whatever the clock does, a reading that was asked for after another was answered is ordered no earlier.
        #[test]
        fn readings_one_after_the_other_are_in_order(steps in prop::collection::vec(-100 * SECOND..100 * SECOND, 1..50)) {
            let clock = Clock::default();
            let (mut now, mut last) = (1_000_000 * SECOND, i64::MIN);
            for step in steps {
                now += step;
                let told = clock.answered(clock.asked(), now);
                prop_assert!(told.observed_us >= last && told.observed_us >= now);
                last = told.observed_us;
            }
        }
    }
}
