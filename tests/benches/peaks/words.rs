//! Text that compresses about as answers do, made from numbers.

/// Text of so many bytes at least; another one for each seed.
pub fn text(seed: u64, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    while text.len() < bytes {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = mixed ^ (mixed >> 27);
        text.push_str(
            ["visit", "household", "fever", "since", "morning", "referred", "tablets", "harvest"][(mixed & 7) as usize],
        );
        text.push_str(&format!(" {} ", (mixed >> 3) % 1_000));
    }
    text
}
