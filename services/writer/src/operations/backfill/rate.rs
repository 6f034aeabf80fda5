//! How fast something goes lately. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How far back is looked.
const WINDOW: Duration = Duration::from_secs(60);
/// Time between two remembered figures.
const STEP: Duration = Duration::from_secs(1);
/// Before that nothing is said.
const LEAST: Duration = Duration::from_secs(2);

/// Figures of the last minute.
#[derive(Debug, Default)]
pub(in crate::operations) struct Rate(VecDeque<(Instant, i64)>);

impl Rate {
    /// The rate, a second, now that so many are done; `None` while it is not known.
    pub(in crate::operations) fn at(&mut self, now: Instant, done: i64) -> Option<f64> {
        if self.0.back().is_none_or(|(at, _)| now.saturating_duration_since(*at) >= STEP) {
            self.0.push_back((now, done));
        }
        while self.0.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > WINDOW) {
            self.0.pop_front();
        }
        let (at, before) = self.0.front()?;
        let passed = now.saturating_duration_since(*at);
        (passed >= LEAST).then(|| (done - before) as f64 / passed.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_minute_counts() {
        let (mut rate, start) = (Rate::default(), Instant::now());
        assert_eq!((rate.at(start, 100), rate.at(start + STEP, 110)), (None, None), "too soon");
        assert_eq!(rate.at(start + 2 * STEP, 120), Some(10.0));
        for second in 3..200 {
            rate.at(start + second * STEP, 120);
        }
        assert_eq!(rate.at(start + 200 * STEP, 120), Some(0.0));
        assert!(rate.0.len() <= 62);
    }
}
