//! HQ's database fails over to machines whose clocks are behind, while its records change and are read. What one process reads ends right whatever
//! the clocks do; where several read, or one ends and another begins, a change may be hidden for as long as the guide says, and no longer.
//!
//! `LAKE_MODEL_SEEDS` sets the number of histories, or a range of them.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod fetchers;
mod readings;

use lake_test_kit::dice::history_seeds;

use self::readings::{History, Kind, SECOND};

/// Histories of each kind.
const HISTORIES: u64 = 150;

#[test]
fn what_one_process_reads_is_right_whatever_the_clocks_do() {
    let mut steps = 0;
    for seed in history_seeds(&[], HISTORIES) {
        for steady in [false, true] {
            let outcome = History::new(seed, Kind { processes: 1, restarts: false, steady }).play();
            assert!(outcome.wrong.is_empty(), "seed {seed}: {:?}", outcome.wrong);
            steps += outcome.steps;
        }
    }
    println!("{steps} steps back");
    assert!(steps > 0);
}

#[test]
fn what_several_processes_read_is_hidden_no_longer_than_the_guide_says() {
    let (mut hidden, mut steps) = (0, 0);
    for seed in history_seeds(&[], HISTORIES) {
        for (processes, restarts) in [(1, true), (2, false), (3, true)] {
            let outcome = History::new(seed, Kind { processes, restarts, steady: false }).play();
            for wrong in &outcome.wrong {
                assert!(!wrong.by_one && wrong.last_at <= wrong.allowed_until, "seed {seed}: {wrong:?}");
            }
            assert!(outcome.is_healed, "seed {seed}: reading the ids once more does not mend them");
            (hidden, steps) = (hidden + outcome.wrong.len(), steps + outcome.steps);
        }
    }
    println!("{hidden} ids hidden by {steps} steps back");
    assert!(steps > 0);
}

#[test]
fn processes_that_read_all_the_time_agree_within_a_second() {
    for seed in history_seeds(&[], HISTORIES / 3) {
        let outcome = History::new(seed, Kind { processes: 3, restarts: false, steady: true }).play();
        for wrong in &outcome.wrong {
            assert!(wrong.last_at - wrong.hiding_at <= SECOND, "seed {seed}: {wrong:?}");
        }
    }
}
