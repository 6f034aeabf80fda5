#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

const OPTIONS: LimitOptions = LimitOptions { in_flight_max: 16, slow_down_factor: 1.5 };

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A source that is always asked as much as the limit allows, in rounds: all that is in flight is answered, then the next is asked.
struct Source {
    limit: AdaptiveLimit,
    now: Duration,
}

impl Source {
    fn new(options: LimitOptions) -> Self {
        Self { limit: AdaptiveLimit::new(options, Duration::ZERO), now: Duration::ZERO }
    }

    /// The limit after so many rounds, and the least and the most on the way.
    fn rounds(&mut self, count: usize, latency: Duration) -> (usize, usize, usize) {
        let (mut least, mut most) = (usize::MAX, 0);
        for _ in 0..count {
            self.now += latency;
            for _ in 0..self.limit.limit() {
                self.limit.answered(self.now, 1, latency);
            }
            least = least.min(self.limit.limit());
            most = most.max(self.limit.limit());
        }
        (self.limit.limit(), least, most)
    }
}

#[test]
fn it_falls_when_latency_doubles_and_recovers_when_it_falls_again() {
    let mut source = Source::new(OPTIONS);
    assert_eq!(source.rounds(100, ms(50)), (16, 16, 16));
    let (limit, _, _) = source.rounds(50, ms(100));
    assert!(limit <= 4, "{limit}");
    let (limit, _, _) = source.rounds(2_000, ms(50));
    assert_eq!(limit, 16);
}

#[test]
fn ten_times_the_latency_leads_to_one_at_a_time() {
    let mut source = Source::new(OPTIONS);
    source.rounds(100, ms(50));
    let (limit, least, _) = source.rounds(60, ms(500));
    assert_eq!((limit, least), (1, 1));
    assert_eq!(source.rounds(2_000, ms(50)).0, 16);
}

#[test]
fn what_varies_a_little_or_takes_next_to_nothing_changes_nothing() {
    let mut source = Source::new(OPTIONS);
    for _ in 0..50 {
        source.rounds(1, ms(45));
        assert_eq!(source.rounds(1, ms(55)).1, 16);
    }
    let mut quick = Source::new(OPTIONS);
    quick.rounds(1_000, ms(1));
    assert_eq!(quick.rounds(1_000, ms(3)).1, 16);
}

#[test]
fn a_large_answer_is_not_a_slow_one() {
    let mut limit = AdaptiveLimit::new(OPTIONS, Duration::ZERO);
    for round in 1..500 {
        // Small ones for a while, then large ones, which take twenty times as long.
        let (class, latency) = if round < 250 { (1, ms(20)) } else { (2, ms(400)) };
        for _ in 0..16 {
            limit.answered(ms(round * 400), class, latency);
        }
    }
    assert_eq!(limit.limit(), 16);
}

#[test]
fn one_slow_answer_among_many_is_not_trouble_and_a_slow_shard_is_usual_there() {
    let mut limit = AdaptiveLimit::new(OPTIONS, Duration::ZERO);
    for round in 1..300 {
        for number in 0..40 {
            let slow = number == 0 && round % 3 == 0;
            limit.answered(ms(round * 300), 1, if slow { ms(5_000) } else { ms(50) });
            limit.answered(ms(round * 300), 2, ms(150));
        }
    }
    assert_eq!(limit.limit(), 16);
}

#[test]
fn time_outs_halve_it_once_for_all_that_come_together() {
    let mut limit = AdaptiveLimit::new(OPTIONS, Duration::ZERO);
    assert_eq!(limit.overloaded(ms(30_000)), Decision::Lowered(0.0));
    assert_eq!(limit.limit(), 8);
    for _ in 0..7 {
        assert_eq!(limit.overloaded(ms(30_001)), Decision::None);
    }
    assert_eq!(limit.limit(), 8);
    for round in 2..20 {
        limit.overloaded(ms(round * 30_000));
    }
    assert_eq!(limit.limit(), 1);
}

#[test]
fn an_incident_of_minutes_does_not_become_usual_and_a_lasting_change_does() {
    let mut source = Source::new(OPTIONS);
    source.rounds(100, ms(100));
    // Ten minutes at four times the latency.
    let (limit, _, _) = source.rounds(1_500, ms(400));
    assert!(limit <= 2, "{limit}");
    let (limit, _, _) = source.rounds(4 * 3_600 * 10 / 4, ms(400));
    assert_eq!(limit, 16, "after hours that is how this database is");
}

#[test]
fn it_can_be_switched_off() {
    let mut source = Source::new(LimitOptions { slow_down_factor: 0.0, ..OPTIONS });
    source.rounds(100, ms(10));
    assert_eq!(source.rounds(100, ms(5_000)).1, 16);
    source.limit.overloaded(ms(10_000_000));
    assert_eq!(source.limit.limit(), 16);
}

#[test]
fn few_answers_recover_too() {
    let mut limit = AdaptiveLimit::new(OPTIONS, Duration::ZERO);
    for round in 1..20 {
        limit.overloaded(ms(round * 1_000));
    }
    assert_eq!(limit.limit(), 1);
    for minute in 1..=15 {
        limit.answered(ms(20_000 + minute * 60_000), 1, ms(20));
    }
    assert_eq!(limit.limit(), 16);
}

#[test]
fn classes_are_bounded() {
    let mut limit = AdaptiveLimit::new(OPTIONS, Duration::ZERO);
    for class in 0..3 * CLASSES_MAX as u64 {
        limit.answered(ms(class), class, ms(10));
    }
    assert_eq!(limit.usual.len(), CLASSES_MAX);
}

proptest! {
    #[test]
    fn whatever_happens_it_stays_within_its_bounds(
        most in 0_usize..100,
        factor in 0.0_f64..5.0,
        events in prop::collection::vec((0_u64..4_000, 0_u64..5, 0_u64..60_000, prop::bool::weighted(0.1)), 1..400),
    ) {
        let options = LimitOptions { in_flight_max: most, slow_down_factor: factor };
        let mut limit = AdaptiveLimit::new(options, Duration::ZERO);
        let mut now = 0;
        for (passed, class, latency, overloaded) in events {
            now += passed;
            let before = limit.limit();
            let decision = if overloaded {
                limit.overloaded(ms(now))
            } else {
                limit.answered(ms(now), class, ms(latency))
            };
            let after = limit.limit();
            prop_assert!((1..=most.max(1)).contains(&after));
            prop_assert!(limit.share() > 0.0 && limit.share() <= 1.0);
            prop_assert_eq!(matches!(decision, Decision::Lowered(_)), after < before);
            prop_assert_eq!(decision == Decision::Raised, after > before);
            prop_assert!(after >= before / 2 && after <= before + 1);
        }
    }

    #[test]
    fn from_wherever_it_is_it_falls_with_trouble_and_recovers_without(
        usual in 20_u64..300, worse in 25_u64..100, most in 4_usize..64,
    ) {
        let mut source = Source::new(LimitOptions { in_flight_max: most, slow_down_factor: 1.5 });
        source.rounds(100, ms(usual));
        prop_assert_eq!(source.limit.limit(), most);
        // At least two and a half times as long, and up to ten times.
        source.rounds(100, ms(usual * worse / 10));
        prop_assert!(source.limit.limit() <= most / 2);
        source.rounds(1_500, ms(usual));
        prop_assert_eq!(source.limit.limit(), most);
    }
}
