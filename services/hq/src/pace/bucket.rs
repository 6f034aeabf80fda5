//! Token buckets, which limit a rate: so many per second on average, so many at once. Pure: time is passed in, as the time since any fixed
//! moment.

use std::collections::HashMap;
use std::time::Duration;

/// Above so many domains the ones whose buckets are full are forgotten; a full bucket is what an unknown domain has.
const DOMAINS_REMEMBERED: usize = 1_000;
/// Longest wait that is given, however low the rate is.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// One bucket. A caller that cannot be served at once gets in line: the bucket goes into debt, so that later callers wait for longer.
#[derive(Clone, Debug)]
pub struct TokenBucket {
    per_second: f64,
    burst: f64,
    tokens: f64,
    filled_at: Duration,
}

impl TokenBucket {
    /// A full bucket. `per_second` and `burst` are at least one millionth and 1.
    pub fn new(per_second: f64, burst: f64, now: Duration) -> Self {
        let burst = burst.max(1.0);
        Self { per_second: per_second.max(1e-6), burst, tokens: burst, filled_at: now }
    }

    /// Takes what is there, at most `wanted`; tells how many were taken. Takes nothing while the bucket is in debt.
    pub fn take(&mut self, now: Duration, wanted: usize) -> usize {
        self.fill(now);
        // Not negative, and at most the configured `burst`: the conversion loses nothing.
        let taken = (self.tokens.max(0.0) as usize).min(wanted);
        self.tokens -= taken as f64;
        taken
    }

    /// Takes what is there beyond half of the burst, at most `wanted`; tells how many were taken. For whoever is served behind others.
    pub fn take_spare(&mut self, now: Duration, wanted: usize) -> usize {
        self.fill(now);
        let taken = ((self.tokens - (self.burst / 2.0).floor()).max(0.0) as usize).min(wanted);
        self.tokens -= taken as f64;
        taken
    }

    /// Takes `wanted` for certain, and tells how long to wait before using them.
    pub fn reserve(&mut self, now: Duration, wanted: usize) -> Duration {
        self.fill(now);
        self.tokens -= wanted as f64;
        let wait = (-self.tokens).max(0.0) / self.per_second;
        Duration::try_from_secs_f64(wait).map_or(WAIT_MAX, |wait| wait.min(WAIT_MAX))
    }

    /// Changes the rate from now on.
    pub fn set_rate(&mut self, now: Duration, per_second: f64) {
        self.fill(now);
        self.per_second = per_second.max(1e-6);
    }

    /// Whether nothing was taken lately.
    pub fn is_full(&mut self, now: Duration) -> bool {
        self.fill(now);
        self.tokens >= self.burst
    }

    fn fill(&mut self, now: Duration) {
        // A clock that goes backwards gives nothing and takes nothing.
        let passed = now.saturating_sub(self.filled_at);
        self.filled_at = self.filled_at.max(now);
        self.tokens = (self.tokens + passed.as_secs_f64() * self.per_second).min(self.burst);
    }
}

/// A bucket for each domain, all with the same rate. What one domain takes or owes never counts against another.
#[derive(Clone, Debug)]
pub struct DomainBuckets {
    per_second: f64,
    burst: usize,
    by_domain: HashMap<String, TokenBucket>,
}

impl DomainBuckets {
    /// No domain has taken anything yet. `burst` is at least 1.
    pub fn new(per_second: f64, burst: usize) -> Self {
        Self { per_second, burst: burst.max(1), by_domain: HashMap::new() }
    }

    /// The most that can be had at once, and the size of the portions in which a domain that waits is served.
    pub fn burst(&self) -> usize {
        self.burst
    }

    /// [`TokenBucket::take`] for a domain.
    pub fn take(&mut self, now: Duration, domain: &str, wanted: usize) -> usize {
        self.bucket(now, domain).take(now, wanted)
    }

    /// [`TokenBucket::take_spare`] for a domain.
    pub fn take_spare(&mut self, now: Duration, domain: &str, wanted: usize) -> usize {
        self.bucket(now, domain).take_spare(now, wanted)
    }

    /// [`TokenBucket::reserve`] for a domain.
    pub fn reserve(&mut self, now: Duration, domain: &str, wanted: usize) -> Duration {
        self.bucket(now, domain).reserve(now, wanted)
    }

    fn bucket(&mut self, now: Duration, domain: &str) -> &mut TokenBucket {
        if self.by_domain.len() >= DOMAINS_REMEMBERED && !self.by_domain.contains_key(domain) {
            self.by_domain.retain(|_, bucket| !bucket.is_full(now));
        }
        let full = || TokenBucket::new(self.per_second, self.burst as f64, now);
        self.by_domain.entry(domain.to_owned()).or_insert_with(full)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_burst_then_the_rate() {
        let mut bucket = TokenBucket::new(10.0, 20.0, ms(0));
        assert_eq!((bucket.take(ms(0), 15), bucket.take(ms(0), 15), bucket.take(ms(0), 15)), (15, 5, 0));
        assert_eq!(bucket.take(ms(1_000), 15), 10);
        assert_eq!(bucket.take(ms(60_000), 100), 20, "never more than the burst");
        assert_eq!(bucket.take(ms(30_000), 1), 0, "a clock that goes backwards gives nothing");
    }

    #[test]
    fn who_is_served_behind_others_leaves_them_half_of_the_burst() {
        let mut bucket = TokenBucket::new(10.0, 20.0, ms(0));
        assert_eq!((bucket.take_spare(ms(0), 15), bucket.take_spare(ms(0), 15)), (10, 0));
        assert_eq!(bucket.take(ms(0), 15), 10, "the others are served at once");
        assert_eq!((bucket.take_spare(ms(1_000), 15), bucket.take_spare(ms(1_500), 15)), (0, 5));
        let mut single = TokenBucket::new(1.0, 1.0, ms(0));
        assert_eq!((single.take_spare(ms(0), 9), single.take_spare(ms(1_000), 9)), (1, 1), "it gets on all the same");
    }

    #[test]
    fn who_waits_is_served_in_order() {
        let mut bucket = TokenBucket::new(10.0, 10.0, ms(0));
        assert_eq!(bucket.reserve(ms(0), 10), ms(0));
        assert_eq!(bucket.reserve(ms(0), 10), ms(1_000));
        assert_eq!(bucket.reserve(ms(500), 10), ms(1_500), "the second in line, half a second later");
        assert_eq!(bucket.take(ms(1_500), 1), 0, "nobody overtakes those in line");
        assert_eq!(bucket.take(ms(3_000), 99), 10);
    }

    #[test]
    fn a_changed_rate_counts_from_then_on() {
        let mut bucket = TokenBucket::new(10.0, 1.0, ms(0));
        assert_eq!(bucket.reserve(ms(0), 1), ms(0));
        bucket.set_rate(ms(0), 1.0);
        assert_eq!(bucket.reserve(ms(0), 1), ms(1_000));
        assert_eq!(TokenBucket::new(0.0, 0.0, ms(0)).reserve(ms(0), usize::MAX), WAIT_MAX);
    }

    #[test]
    fn an_empty_bucket_of_one_domain_does_not_concern_another() {
        let mut buckets = DomainBuckets::new(1.0, 100);
        assert_eq!(buckets.reserve(ms(0), "flood", 100_000), ms(99_900_000).min(WAIT_MAX));
        assert_eq!(buckets.take(ms(1), "flood", 1), 0);
        assert_eq!(buckets.take(ms(1), "quiet", 60), 60);
        assert_eq!(buckets.reserve(ms(1), "quiet", 40), ms(0));
    }

    #[test]
    fn domains_that_are_quiet_again_are_forgotten_and_those_in_debt_are_not() {
        let mut buckets = DomainBuckets::new(1.0, 10);
        buckets.reserve(ms(0), "debtor", 1_000);
        for number in 0..3 * DOMAINS_REMEMBERED {
            buckets.take(ms(100_000), &format!("domain {number}"), 0);
        }
        assert!(buckets.by_domain.len() <= DOMAINS_REMEMBERED);
        assert_eq!(buckets.take(ms(100_000), "debtor", 1), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_the_burst_and_the_rate(steps in prop::collection::vec((0_u64..5_000, 0_usize..200), 1..100)) {
            let (mut now, mut taken) = (0, 0);
            let mut bucket = TokenBucket::new(7.0, 50.0, ms(0));
            for (passed, wanted) in steps {
                now += passed;
                taken += bucket.take(ms(now), wanted);
                prop_assert!(taken as f64 <= 50.0 + 7.0 * now as f64 / 1e3 + 1e-6);
            }
        }

        #[test]
        fn what_is_reserved_is_used_at_the_rate(steps in prop::collection::vec((0_u64..5_000, 1_usize..200), 1..100)) {
            let (mut now, mut used) = (0, 0);
            let mut bucket = TokenBucket::new(7.0, 50.0, ms(0));
            for (passed, wanted) in steps {
                now += passed;
                let at = ms(now) + bucket.reserve(ms(now), wanted);
                used += wanted;
                prop_assert!(used as f64 <= 50.0 + 7.0 * at.as_secs_f64() + 1e-3);
            }
        }

        #[test]
        fn a_domain_gets_what_it_would_get_alone(
            steps in prop::collection::vec((0_u64..2_000, 0_usize..4, 0_usize..300), 1..200)
        ) {
            let mut alone = DomainBuckets::new(20.0, 100);
            let mut together = DomainBuckets::new(20.0, 100);
            let mut now = 0;
            for (passed, domain, wanted) in steps {
                now += passed;
                if domain == 0 {
                    prop_assert_eq!(alone.take(ms(now), "mine", wanted), together.take(ms(now), "mine", wanted));
                } else {
                    together.reserve(ms(now), &format!("other {domain}"), wanted);
                }
            }
        }
    }
}
