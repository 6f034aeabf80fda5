//! Numbers that look random and are the same in every run: a mixing function, and the seeds that a person can choose.

/// Runs other histories than the usual ones: a number of them, or a range such as `100..5000`.
const HISTORIES: &str = "LAKE_MODEL_SEEDS";
/// Makes one long history another one.
const SEED: &str = "LAKE_TEST_SEED";

/// A well mixed number, different for every input: the output function of SplitMix64.
pub fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// Seeds of random histories: those that `failed` once, then 0 to `count`. `LAKE_MODEL_SEEDS` sets another count, or exactly a range.
///
/// # Panics
/// When the variable is neither a number nor a range of numbers.
pub fn history_seeds(failed: &[u64], count: u64) -> Vec<u64> {
    let asked = std::env::var(HISTORIES).unwrap_or_else(|_| count.to_string());
    let number = |text: &str| text.parse().unwrap_or_else(|_| panic!("{HISTORIES} is {asked:?}: not a number"));
    match asked.split_once("..") {
        Some((first, end)) => (number(first)..number(end)).collect(),
        None => failed.iter().copied().chain(0..number(&asked)).collect(),
    }
}

/// The seed of a history that a test has only one of: `LAKE_TEST_SEED`, or the usual one.
///
/// # Panics
/// When the variable is not a number.
pub fn seed_or(usual: u64) -> u64 {
    let Ok(asked) = std::env::var(SEED) else { return usual };
    asked.parse().unwrap_or_else(|_| panic!("{SEED} is {asked:?}: not a number"))
}
