//! Waiting between tries: exponential, with jitter, bounded.

use std::time::Duration;

use uuid::Uuid;

/// How long to wait before the next try; grows with each.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Default for Backoff {
    /// 100 ms, doubling up to 10 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(10))
    }
}

impl Backoff {
    /// Begins with `first`, never waits longer than `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { next: first, longest }
    }

    /// The time to wait now: between half and all of the current step, so that many clients do not come back at once.
    pub fn next_wait(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.longest);
        // A random UUID is the random number that is at hand; 16 bits are plenty for jitter.
        let random = Uuid::new_v4().as_u128() & 0xffff;
        let share = 0.5 + 0.5 * (u32::try_from(random).map_or(0.0, f64::from) / 65_536.0);
        step.mul_f64(share)
    }
}

/// A duration as a field of a log line: a number, where `as_millis` would become a text in JSON.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_stay_bounded() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(400));
        for step in [100, 200, 400, 400, 400] {
            let wait = backoff.next_wait().as_millis();
            assert!((step / 2..=step).contains(&wait), "{wait} of {step}");
        }
    }
}
