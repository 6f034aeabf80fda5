//! How long changes take from HQ to a row that readers see, table by table, over the last minutes.

use sketches_ddsketch::{Config, DDSketch};

use crate::metastore::RecordedDelays;

/// A figure is of the commits of this time before the last one, up to twice as much, microseconds.
const WINDOW_US: i64 = 10 * 60 * 1_000_000;

/// Largest error of a percentile, as a share of it. A sketch takes about a kilobyte.
const ERROR_MAX: f64 = 0.02;

/// Most bins of a sketch; they reach from a millisecond to ten days.
const BINS_MAX: u32 = 512;

/// Seconds below which delays are not told apart.
const SHORTEST_SECONDS: f64 = 0.001;

/// The delays of one table. Nothing is kept of them when its space leaves memory.
#[derive(Clone, Default)]
pub(crate) struct Delays(Option<Box<Windows>>);

#[derive(Clone)]
struct Windows {
    began_us: i64,
    now: DDSketch,
    before: Option<DDSketch>,
}

impl Windows {
    fn new(began_us: i64) -> Self {
        Self { began_us, now: empty(), before: None }
    }

    /// Begins a window where the present one is full.
    fn turn(&mut self, now_us: i64) {
        let age_us = now_us.saturating_sub(self.began_us);
        // A clock that was set back begins anew as well.
        if (0..WINDOW_US).contains(&age_us) {
            return;
        }
        let ended = std::mem::replace(&mut self.now, empty());
        self.before = (WINDOW_US..2 * WINDOW_US).contains(&age_us).then_some(ended);
        self.began_us = now_us;
    }
}

impl Delays {
    /// Rows whose changes HQ had published then are readable now.
    pub(crate) fn add(&mut self, published_us: &[i64], now_us: i64) {
        if published_us.is_empty() {
            return;
        }
        let windows = self.0.get_or_insert_with(|| Box::new(Windows::new(now_us)));
        windows.turn(now_us);
        for published_us in published_us {
            // Clocks of machines differ: what seems to come from the future took no time.
            windows.now.add(now_us.saturating_sub(*published_us).max(0) as f64 / 1e6);
        }
    }

    /// The delays so far; `None` before the first row.
    pub(crate) fn recorded(&self) -> Option<RecordedDelays> {
        let Windows { now, before, .. } = self.0.as_deref()?;
        let mut all = now.clone();
        if let Some(before) = before {
            all.merge(before).ok()?;
        }
        let percentile_us = |share: f64| Some((all.quantile(share).ok()?? * 1e6) as i64);
        Some(RecordedDelays {
            p50_us: percentile_us(0.5)?,
            p95_us: percentile_us(0.95)?,
            p99_us: percentile_us(0.99)?,
            rows: i64::try_from(all.count()).unwrap_or(i64::MAX),
        })
    }
}

impl std::fmt::Debug for Delays {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("Delays").field(&self.recorded()).finish()
    }
}

fn empty() -> DDSketch {
    DDSketch::new(Config::new(ERROR_MAX, BINS_MAX, SHORTEST_SECONDS))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const SECOND_US: i64 = 1_000_000;

    fn is_about(us: i64, seconds: f64) -> bool {
        (us as f64 / 1e6 - seconds).abs() <= seconds * 0.03
    }

    #[test]
    fn percentiles_are_those_of_the_rows() {
        let mut delays = Delays::default();
        assert_eq!(delays.recorded(), None);
        delays.add(&[], SECOND_US);
        assert_eq!(delays.recorded(), None);
        let now_us = 5_000 * SECOND_US;
        // 1 to 1,000 seconds.
        let published: Vec<i64> = (1..=1_000).map(|seconds| now_us - seconds * SECOND_US).collect();
        delays.add(&published, now_us);
        let found = delays.recorded().unwrap();
        assert!(is_about(found.p50_us, 500.0), "{found:?}");
        assert!(is_about(found.p95_us, 950.0), "{found:?}");
        assert!(is_about(found.p99_us, 990.0), "{found:?}");
        assert_eq!(found.rows, 1_000);
    }

    #[test]
    fn what_is_long_ago_does_not_count() {
        let mut delays = Delays::default();
        let at = |minutes: i64| minutes * 60 * SECOND_US;
        let slow = |now_us: i64| [now_us - 100 * SECOND_US];
        let quick = |now_us: i64| [now_us - SECOND_US; 9];
        delays.add(&slow(at(100)), at(100));
        delays.add(&quick(at(109)), at(109));
        assert_eq!(delays.recorded().unwrap().rows, 10);
        // The window before still counts, the one before that does not.
        delays.add(&quick(at(111)), at(111));
        assert_eq!(delays.recorded().unwrap().rows, 19);
        delays.add(&quick(at(122)), at(122));
        let found = delays.recorded().unwrap();
        assert!(found.rows == 18 && is_about(found.p99_us, 1.0), "{found:?}");
        // After a long rest nothing is left of before.
        delays.add(&quick(at(500)), at(500));
        assert_eq!(delays.recorded().unwrap().rows, 9);
    }

    #[test]
    fn clocks_that_differ_give_no_nonsense() {
        let mut delays = Delays::default();
        delays.add(&[10 * SECOND_US], 5 * SECOND_US);
        assert_eq!(delays.recorded().unwrap().p50_us, 0);
        // Set back by a day: the delays begin anew.
        delays.add(&[-86_401 * SECOND_US], -86_400 * SECOND_US);
        let found = delays.recorded().unwrap();
        assert!(found.rows == 1 && is_about(found.p50_us, 1.0), "{found:?}");
    }
}
