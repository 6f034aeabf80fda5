//! The clock of a database orders what is read from it, so it must not go back. It does: when a failover makes another machine the primary,
//! when a time server corrects it by a jump, when a virtual machine is restored. Plain values, no I/O.
//!
//! A process compares it with a clock of its own that never goes back. A snapshot is taken after it was asked for and before it was answered, so each
//! reading says between which two numbers the difference of the two clocks lies; it stays what it is, but for a drift of at most one part in a
//! thousand. A reading that is earlier than that allows shows a step, also after hours without any reading. From then on the readings are said
//! to be so much later that they follow all that was read before the step, and what is added shrinks by half of the time that passes, until the clock itself
//! is right again. A reading from before the step that is answered after it is recognised by its time, and is ordered as if nothing had happened.
//!
//! What holds, whatever the clock does:
//! * A reading that was asked for after another one of the process was answered is ordered after it.
//! * Readings of a process that are in flight together over a step are ordered as their snapshots were taken, unless one of them is in flight for
//!   longer than the step is wide.
//!
//! What does not hold is the order between processes, for twice as long after the step as it is wide (and a second or so): so long one of them may add more
//! than another. One that began to read after the step adds nothing; those that noticed it differ by no more than half of the time between two of
//! their readings. An id that was read by one, and after a change by the other, keeps in that time what was read first, until it is read once more.
//! The log tells the step, and a reconciliation finds such ids.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Clocks drift apart by no more than one part in so many: time servers correct by half of that at most.
const DRIFT_PART: i64 = 1_000;

/// A clock, and how it was corrected.
#[derive(Debug)]
pub struct Clock {
    began: Instant,
    state: Mutex<State>,
}

/// A reading that was asked for. Dropped without an answer, it counts as given up.
#[derive(Debug)]
pub struct Asked<'c> {
    clock: &'c Clock,
    number: u64,
    /// By the process's own clock, microseconds.
    at_us: i64,
    /// The earliest that the database's clock can say by what was answered before.
    earliest_us: i64,
    /// The latest time by which a reading is ordered that was answered before.
    latest_us: i64,
    /// Steps that were known.
    steps: u64,
}

/// When a reading was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Microseconds since 1970; orders the reading.
    pub observed_us: i64,
    /// By how much the clock has stepped back, at least, since the reading before, microseconds; 0: it has not.
    pub stepped_back_us: i64,
}

#[derive(Debug)]
struct State {
    latest_us: i64,
    /// When the last reading was answered, by the process's own clock.
    answered_us: i64,
    /// When the readings were asked for that are neither answered nor given up, by the process's own clock; by their numbers.
    in_flight: BTreeMap<u64, i64>,
    /// Readings asked for so far.
    asked: u64,
    /// Steps back so far.
    steps: u64,
    /// The clock since the last step; `None` before the first reading.
    now: Option<Course>,
    /// The clock before that.
    before: Option<Course>,
    /// By how much less the last step was made up for, because it may have been noticed late; microseconds.
    noticed_late_us: i64,
}

/// The clock between two steps back. It may step forward in that time.
#[derive(Clone, Copy, Debug)]
struct Course {
    /// The least that the clock can be ahead of the process's own, microseconds, and when that was known.
    ahead_least_us: i64,
    least_known_us: i64,
    /// The most that it can be ahead, and when that was known.
    ahead_most_us: i64,
    most_known_us: i64,
    step: Option<Step>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    /// What the clock said when the step was noticed.
    noticed_us: i64,
    /// What was added then.
    added_us: i64,
}

/// By how much clocks may have drifted apart between two times of the process's own clock, in either order.
fn drift(one_us: i64, other_us: i64) -> i64 {
    one_us.saturating_sub(other_us).saturating_abs() / DRIFT_PART
}

impl Course {
    /// What one reading says.
    fn of(asked_us: i64, clock_us: i64, answered_us: i64, step: Option<Step>) -> Self {
        Self {
            ahead_least_us: clock_us.saturating_sub(answered_us),
            least_known_us: answered_us,
            ahead_most_us: clock_us.saturating_sub(asked_us),
            most_known_us: answered_us,
            step,
        }
    }

    /// The earliest that the clock can have said at a time of the process's own.
    fn earliest(&self, at_us: i64) -> i64 {
        at_us.saturating_add(self.ahead_least_us).saturating_sub(drift(at_us, self.least_known_us))
    }

    /// The latest that the clock can have said at a time of the process's own, if it has not stepped forward.
    fn latest(&self, at_us: i64) -> i64 {
        at_us.saturating_add(self.ahead_most_us).saturating_add(drift(at_us, self.most_known_us))
    }

    fn learn(&mut self, asked_us: i64, clock_us: i64, answered_us: i64) {
        if clock_us < self.earliest(asked_us) {
            // Its snapshot is from before a step forward that others have shown already.
            return;
        }
        if clock_us >= self.earliest(answered_us) {
            (self.ahead_least_us, self.least_known_us) = (clock_us.saturating_sub(answered_us), answered_us);
        }
        // The second: it has stepped forward.
        if clock_us <= self.latest(asked_us) || self.latest(answered_us) < clock_us {
            (self.ahead_most_us, self.most_known_us) = (clock_us.saturating_sub(asked_us), answered_us);
        }
    }

    fn corrected(&self, clock_us: i64) -> i64 {
        let added_us = self.step.map_or(0, |step| {
            let passed_us = clock_us.saturating_sub(step.noticed_us);
            step.added_us.saturating_sub(passed_us.div_euclid(2)).max(0)
        });
        clock_us.saturating_add(added_us)
    }
}

impl Default for Clock {
    fn default() -> Self {
        let state = State {
            latest_us: i64::MIN,
            answered_us: 0,
            in_flight: BTreeMap::new(),
            asked: 0,
            steps: 0,
            now: None,
            before: None,
            noticed_late_us: 0,
        };
        Self { began: Instant::now(), state: Mutex::new(state) }
    }
}

impl Clock {
    /// The process's own clock: microseconds since this one was made, for [`Clock::asked`] and [`Clock::answered`].
    pub fn own_us(&self) -> i64 {
        i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX)
    }

    /// To be called just before a reading is asked for. `own_us`: the process's own clock, microseconds since any moment; it never goes back.
    pub fn asked(&self, own_us: i64) -> Asked<'_> {
        let mut state = self.lock();
        state.asked += 1;
        let number = state.asked;
        state.in_flight.insert(number, own_us);
        let earliest_us = state.now.map_or(i64::MIN, |now| now.earliest(own_us));
        Asked { clock: self, number, at_us: own_us, earliest_us, latest_us: state.latest_us, steps: state.steps }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked<'_> {
    /// When the reading was made, as it is ordered. `clock_us`: what the database's clock said, microseconds since 1970. `own_us`: the process's own.
    pub fn answered(self, clock_us: i64, own_us: i64) -> Told {
        self.clock.lock().answered(&self, clock_us, own_us)
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        self.clock.lock().in_flight.remove(&self.number);
    }
}

impl State {
    fn answered(&mut self, asked: &Asked<'_>, clock_us: i64, own_us: i64) -> Told {
        let answered_before_us = std::mem::replace(&mut self.answered_us, own_us);
        let Some(now) = &mut self.now else {
            self.now = Some(Course::of(asked.at_us, clock_us, own_us, None));
            return self.told(clock_us, 0);
        };
        let steps_unknown = asked.steps < self.steps;
        if let Some(before) = self.before.filter(|_| steps_unknown)
            && clock_us > now.latest(own_us)
        {
            // Its snapshot is from before the step.
            let observed_us = before.corrected(clock_us).saturating_sub(self.noticed_late_us);
            return self.told(observed_us.max(asked.latest_us), 0);
        }
        let earliest_us = if steps_unknown { now.earliest(asked.at_us) } else { asked.earliest_us };
        let behind_us = earliest_us.saturating_sub(clock_us);
        if behind_us <= 0 {
            now.learn(asked.at_us, clock_us, own_us);
            let observed_us = now.corrected(clock_us).max(asked.latest_us.saturating_add(1));
            return self.told(observed_us, 0);
        }
        // Others may have noticed the step as long ago as nothing was read here, and add less by now.
        let oldest_us = self.in_flight.values().copied().min().unwrap_or(asked.at_us);
        self.noticed_late_us = oldest_us.saturating_sub(answered_before_us).max(0) / 2;
        // What was asked for before the step and is not answered yet is no later than this.
        let as_if_none_us = now.corrected(now.latest(own_us)).saturating_sub(self.noticed_late_us);
        let observed_us = self.latest_us.max(as_if_none_us).saturating_add(1).max(clock_us);
        let step = Step { noticed_us: clock_us, added_us: observed_us.saturating_sub(clock_us) };
        self.before = self.now.replace(Course::of(asked.at_us, clock_us, own_us, Some(step)));
        self.steps += 1;
        self.told(observed_us, behind_us)
    }

    fn told(&mut self, observed_us: i64, stepped_back_us: i64) -> Told {
        self.latest_us = self.latest_us.max(observed_us);
        Told { observed_us, stepped_back_us }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: i64 = 1_000_000;
    /// How long a reading takes, half of it before its snapshot.
    const TAKES: i64 = 2_000;

    /// A reading at this time of the process's own clock, and what the database's says then.
    fn read(clock: &Clock, own_us: i64, clock_us: i64) -> Told {
        clock.asked(own_us - TAKES / 2).answered(clock_us, own_us + TAKES / 2)
    }

    fn at(observed_us: i64) -> Told {
        Told { observed_us, stepped_back_us: 0 }
    }

    #[test]
    fn a_clock_that_goes_on_is_believed() {
        let clock = Clock::default();
        for now in [5, 7, 1_000, 1_060] {
            assert_eq!(read(&clock, now * SECOND, (1_000 + now) * SECOND), at((1_000 + now) * SECOND));
        }
        // It drifts, and steps forward.
        for hour in 1..100 {
            let now = (1_060 + 3_600 * hour) * SECOND;
            let drifted = (2_060 + 3_600 * hour) * SECOND - hour * 3 * SECOND;
            assert_eq!(read(&clock, now, drifted), at(drifted));
        }
        let now = (1_060 + 3_600 * 100) * SECOND;
        assert_eq!(read(&clock, now, 900_000 * SECOND), at(900_000 * SECOND));
        // Two readings in flight: the one that was asked for first is answered last.
        let (first, second) = (clock.asked(now + SECOND), clock.asked(now + SECOND));
        assert_eq!(second.answered(900_001 * SECOND + 900, now + SECOND + 1_000), at(900_001 * SECOND + 900));
        assert_eq!(first.answered(900_001 * SECOND + 500, now + SECOND + 2_000), at(900_001 * SECOND + 500));
    }

    #[test]
    fn a_step_back_is_told_once_and_made_up_for_until_the_clock_is_right_again() {
        let clock = Clock::default();
        read(&clock, 0, 1_000 * SECOND);
        let told = read(&clock, SECOND, 961 * SECOND);
        assert!((40 * SECOND - 2 * TAKES..=40 * SECOND).contains(&told.stepped_back_us), "{told:?}");
        let added = told.observed_us - 961 * SECOND;
        let late = SECOND / 2;
        assert!(
            (40 * SECOND - late..40 * SECOND - late + 3 * TAKES).contains(&added),
            "noticed up to a second late: {told:?}"
        );
        assert_eq!(read(&clock, 11 * SECOND, 971 * SECOND), at(971 * SECOND + added - 5 * SECOND));
        // 81 s after it was noticed: as much as was added twice over.
        for now in [82, 1_000] {
            assert_eq!(read(&clock, now * SECOND, (960 + now) * SECOND), at((960 + now) * SECOND));
        }
    }

    #[test]
    fn a_step_shows_after_a_long_time_without_a_reading() {
        let clock = Clock::default();
        read(&clock, 0, 1_000 * SECOND);
        let told = read(&clock, 3_600 * SECOND, 4_560 * SECOND);
        assert!((36 * SECOND..=40 * SECOND).contains(&told.stepped_back_us), "less the drift there may be: {told:?}");
        // Another process may have noticed it just after the last reading here, and adds nothing any more.
        assert_eq!(told.observed_us, 4_560 * SECOND);
        let drifted = Clock::default();
        read(&drifted, 0, 1_000 * SECOND);
        assert_eq!(read(&drifted, 3_600 * SECOND, 4_598 * SECOND), at(4_598 * SECOND));
    }

    #[test]
    fn readings_in_flight_together_keep_their_order_over_a_step() {
        let clock = Clock::default();
        read(&clock, 0, 1_000 * SECOND);
        // Asked for within one second before the step, of which three are answered after it.
        let own = |tenths: i64| tenths * SECOND / 10;
        let [first, second, third, fourth] = [3, 4, 5, 6].map(|tenths| clock.asked(own(tenths)));
        let early = first.answered(1_000 * SECOND + own(6), own(7));
        let shown = second.answered(960 * SECOND + own(10), own(11));
        let late = third.answered(1_000 * SECOND + own(8), own(12));
        let after = fourth.answered(960 * SECOND + own(9), own(13));
        assert_eq!(
            (early, late),
            (at(1_000 * SECOND + own(6)), at(1_000 * SECOND + own(8))),
            "as if nothing had happened"
        );
        assert!(late.observed_us < after.observed_us && after.observed_us < shown.observed_us, "{after:?} {shown:?}");
        assert_eq!([early, shown, late, after].iter().filter(|told| told.stepped_back_us > 0).count(), 1, "one step");
        // A second one.
        let told = read(&clock, 2 * SECOND, 930 * SECOND);
        assert!(told.observed_us > shown.observed_us && told.stepped_back_us > 30 * SECOND, "{told:?}");
    }

    proptest! {
        /// Whatever the clock does, a reading that was asked for after another was answered is ordered after it.
        #[test]
        fn readings_one_after_the_other_are_in_order(steps in prop::collection::vec((-100 * SECOND..100 * SECOND, 0..100 * SECOND), 1..50)) {
            let clock = Clock::default();
            let (mut own, mut now, mut last) = (0, 1_000_000 * SECOND, i64::MIN);
            for (step, passed) in steps {
                own += passed + TAKES;
                now += step + passed;
                let told = read(&clock, own, now);
                prop_assert!(told.observed_us > last && told.observed_us >= now);
                last = told.observed_us;
            }
        }
    }
}
