//! A clock that goes on while the machine is suspended; that of [`std::time::Instant`] stands still meanwhile on Linux. What other machines
//! count on by their own clocks, such as the end of a lease, is measured by it.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The clock of this system that counts the time in which it is suspended. That of macOS by this name does.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;
/// The clock of this system that counts the time in which it is suspended.
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;

/// An instant of that clock. It means nothing to other machines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BootInstant(Duration);

impl BootInstant {
    /// Now.
    pub fn now() -> Self {
        let Timespec { tv_sec, tv_nsec } = clock_gettime(CLOCK);
        Self(Duration::new(tv_sec.unsigned_abs(), u32::try_from(tv_nsec).unwrap_or_default()))
    }

    /// So much later.
    #[must_use]
    pub fn plus(self, time: Duration) -> Self {
        Self(self.0.saturating_add(time))
    }

    /// How long ago it was; zero when it is still to come.
    pub fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }

    /// How long it is until then; zero when it has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_sub(Self::now().0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// What the kernel tells as the time since the machine was started is counted by this clock, suspended times included.
    #[cfg(target_os = "linux")]
    #[test]
    fn it_is_the_time_since_the_machine_was_started() {
        let told = || {
            let text = std::fs::read_to_string("/proc/uptime").unwrap();
            Duration::from_secs_f64(text.split(' ').next().unwrap().parse().unwrap())
        };
        // The kernel tells hundredths of a second.
        let hundredth = Duration::from_millis(10);
        let (before, now, after) = (told(), BootInstant::now(), told());
        assert!(before <= now.0 && now.0 <= after + hundredth, "{before:?} {now:?} {after:?}");
    }

    #[test]
    fn what_is_past_and_what_is_to_come() {
        let now = BootInstant::now();
        let hour = Duration::from_secs(3_600);
        let later = now.plus(hour);
        assert!(later > now && later.left() <= hour && later.left() > hour / 2 && later.elapsed().is_zero());
        assert!(now.left().is_zero());
    }
}
