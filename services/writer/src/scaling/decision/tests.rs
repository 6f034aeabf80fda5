#![allow(clippy::unwrap_used, reason = "tests")]

use proptest::prelude::*;

use super::*;

const TARGET: f64 = 60.0;

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn seen(replicas: u32, seconds_behind: f64) -> Observation {
    Observation {
        at: Duration::ZERO,
        replicas,
        seconds_behind: Some(seconds_behind),
        rate: Some(100.0 * f64::from(replicas)),
        partitions: Some(64),
        messages: None,
        push_back: None,
    }
}

/// A stage that is observed again and again.
#[derive(Default)]
struct Observed {
    history: StageHistory,
    now: Duration,
}

impl Observed {
    /// Sees the same for so long, and says what is wanted in the end.
    fn during(&mut self, seconds: u64, of: Observation) -> Option<u32> {
        let until = self.now + secs(seconds);
        let mut wanted = None;
        while self.now < until {
            self.now += EVERY;
            self.history.observe(Observation { at: self.now, ..of });
            wanted = self.history.wanted(self.now, TARGET);
        }
        wanted
    }
}

#[test]
fn who_has_seen_nothing_says_nothing() {
    let mut history = StageHistory::default();
    assert_eq!(history.wanted(secs(9), TARGET), None);
    history.observe(seen(0, 500.0));
    assert_eq!(history.wanted(secs(9), TARGET), None, "nobody is there, or the writer has just begun");
    history.observe(Observation { at: secs(10), ..seen(3, 500.0) });
    assert_eq!(history.wanted(secs(10), TARGET), Some(3), "one look changes nothing");
    assert_eq!(history.wanted(secs(200), TARGET), Some(3), "what was seen long ago says nothing of now");
    assert_eq!(history.wanted(secs(9_000), TARGET), None, "nor what was decided then");
}

#[test]
fn who_was_not_asked_for_long_begins_with_what_there_is() {
    let mut stage = Observed::default();
    assert_eq!(stage.during(300, seen(2, 1.0)), Some(2));
    // Another writer was asked, and had more of them made.
    stage.now += secs(3_600);
    assert_eq!(stage.during(15, seen(6, 1.0)), Some(6));
}

#[test]
fn a_stage_that_stays_behind_gets_at_most_twice_as_many() {
    let mut stage = Observed::default();
    assert_eq!(stage.during(45, seen(3, 1e6)), Some(3));
    assert_eq!(stage.during(30, seen(3, 1e6)), Some(6));
    assert_eq!(stage.during(600, seen(3, 1e6)), Some(6), "no more before those are there");
    assert_eq!(stage.during(30, seen(6, 1e6)), Some(12));
    let mut little = Observed::default();
    assert_eq!(little.during(90, seen(4, 66.0)), Some(5));
    let mut many = Observed::default();
    assert_eq!(many.during(90, seen(20, 61.0)), Some(23), "Kubernetes does not follow a tenth");
}

#[test]
fn who_catches_up_alone_gets_no_help() {
    let mut stage = Observed::default();
    for behind in (0..40).map(|round| 400.0 - 22.0 * f64::from(round)) {
        stage.during(15, seen(3, behind.max(0.0)));
    }
    assert_eq!(stage.history.wanted, Some(3));
}

#[test]
fn nothing_grows_against_what_pushes_back() {
    use PushBack::{AllHandedOut, EnrichersBehind, QueueUnknown, SlowHq, StreamFull, WriterBehind};
    for push_back in [SlowHq, StreamFull, EnrichersBehind, WriterBehind, AllHandedOut, QueueUnknown] {
        let mut stage = Observed::default();
        let held = Observation { push_back: Some(push_back), ..seen(3, 1e6) };
        assert_eq!(stage.during(7_200, held), Some(3), "{push_back:?}");
        assert_eq!(stage.during(45, seen(3, 1e6)), Some(3), "it has to be gone for a while");
        assert_eq!(stage.during(30, seen(3, 1e6)), Some(6));
    }
}

#[test]
fn there_are_no_more_than_have_something_to_do() {
    let mut fetchers = Observed::default();
    assert_eq!(fetchers.during(90, Observation { partitions: Some(4), ..seen(3, 1e6) }), Some(4));
    assert_eq!(fetchers.during(900, Observation { partitions: Some(4), ..seen(4, 1e6) }), Some(4));
    let mut too_many = Observed::default();
    assert_eq!(too_many.during(15, Observation { partitions: Some(4), ..seen(9, 0.0) }), Some(4));
    let mut enrichers = Observed::default();
    let few = Observation { partitions: None, messages: Some(5), ..seen(3, 1e6) };
    assert_eq!(enrichers.during(90, few), Some(5));
    let mut enough = Observed::default();
    assert_eq!(enough.during(900, Observation { partitions: None, messages: Some(2), ..seen(3, 1e6) }), Some(3));
}

#[test]
fn fewer_are_enough_when_the_load_has_gone() {
    let mut stage = Observed::default();
    assert_eq!(stage.during(3_000, seen(4, 1.0)), Some(4), "three would have to pass on what four do");
    let quiet = |replicas| Observation { rate: Some(50.0), ..seen(replicas, 1.0) };
    assert_eq!(stage.during(1_200, quiet(4)), Some(4));
    assert_eq!(stage.during(300, quiet(4)), Some(3));
    assert_eq!(stage.during(900, quiet(4)), Some(3), "no fewer before that one is gone");
    assert_eq!(stage.during(15, quiet(3)), Some(2));
    assert_eq!(stage.during(3_600, quiet(2)), Some(1));
    assert_eq!(stage.during(9_000, quiet(1)), Some(1), "one is always left");
}

#[test]
fn what_is_not_known_leaves_things_as_they_are() {
    let mut stage = Observed::default();
    assert_eq!(stage.during(7_200, Observation { seconds_behind: None, ..seen(3, 0.0) }), Some(3));
    let mut stage = Observed::default();
    assert_eq!(stage.during(7_200, Observation { rate: None, ..seen(3, 0.0) }), Some(3));
}

#[test]
fn a_number_that_somebody_else_set_is_taken_over() {
    let mut stage = Observed::default();
    stage.during(600, seen(3, 1.0));
    assert_eq!(stage.during(900, seen(5, 1.0)), Some(3), "a rollout has more of them for a while");
    assert_eq!(stage.during(600, seen(5, 1.0)), Some(5));
}

fn any_observation() -> impl Strategy<Value = Observation> {
    let push_back = prop::option::weighted(0.3, prop_oneof![Just(PushBack::SlowHq), Just(PushBack::StreamFull)]);
    let (behind, rate) = (prop::option::weighted(0.9, 0.0..400.0), prop::option::weighted(0.9, 0.0..900.0));
    (1_u32..40, behind, rate, prop::option::weighted(0.8, 1_u32..40), push_back).prop_map(
        |(replicas, seconds_behind, rate, partitions, push_back)| Observation {
            at: Duration::ZERO,
            replicas,
            seconds_behind,
            rate,
            partitions,
            messages: None,
            push_back,
        },
    )
}

proptest! {
    #[test]
    fn whatever_is_seen(phases in prop::collection::vec((any_observation(), 1_u64..100), 1..30)) {
        let mut stage = Observed::default();
        let mut before = None;
        let mut changed_at: Option<Duration> = None;
        for (of, rounds) in phases {
            for _ in 0..rounds {
                let wanted = stage.during(15, of).unwrap();
                prop_assert!(wanted >= 1);
                if let Some(partitions) = stage.history.partitions() {
                    prop_assert!(wanted <= partitions);
                }
                if let Some(before) = before.filter(|before| *before != wanted) {
                    // Somebody else's number, or partitions that are gone, are no decision.
                    let forced = wanted == of.replicas || Some(wanted) == stage.history.partitions();
                    if !forced {
                        prop_assert!(changed_at.is_none_or(|at| stage.now - at >= SETTLE));
                        prop_assert!(f64::from(wanted) <= 2.0 * f64::from(before) + f64::from(step(before)));
                    }
                    if !forced && wanted > before {
                        prop_assert!(of.push_back.is_none() && of.seconds_behind > Some(TARGET));
                    }
                    changed_at = Some(stage.now);
                }
                before = Some(wanted);
            }
        }
    }
}
