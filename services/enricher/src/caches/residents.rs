//! Which location trees stay in memory. Pure.
//!
//! The largest tree is held beside the bound, so that a small one beside it does not drive it out, nor the other way round. Of those that have not been
//! used for a while the least recently used goes first. Where all are in use, one of them goes by chance: the least recently used would just be the one that
//! is needed next, when domains take turns, and no tree would ever be found.

/// A tree in memory.
#[derive(Clone, Debug)]
pub(super) struct Resident {
    /// The domain, as a token.
    pub(super) token: String,
    /// Its size.
    pub(super) nodes: usize,
    /// Grows with each use.
    pub(super) used: u64,
    /// Whether it has not been used for a while.
    pub(super) is_cold: bool,
}

/// The trees that have to go, so that all but the largest have at most `nodes_max` nodes together; never the one that was used last. `chance` is another
/// number at each call.
pub(super) fn surplus(mut residents: Vec<Resident>, nodes_max: usize, chance: u64) -> Vec<String> {
    residents.sort_unstable_by_key(|resident| resident.used);
    let mut gone = Vec::new();
    while beside_the_largest(&residents) > nodes_max && residents.len() > 1 {
        let victim = match residents.first() {
            Some(oldest) if oldest.is_cold => 0,
            _ => place_of(chance.wrapping_add(gone.len() as u64), residents.len() - 1),
        };
        gone.push(residents.remove(victim).token);
    }
    gone
}

fn beside_the_largest(residents: &[Resident]) -> usize {
    let sum: usize = residents.iter().map(|resident| resident.nodes).sum();
    sum - residents.iter().map(|resident| resident.nodes).max().unwrap_or_default()
}

/// A place below `places`, spread evenly over consecutive numbers.
fn place_of(number: u64, places: usize) -> usize {
    let mut mixed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    usize::try_from((mixed >> 33) % (places.max(1) as u64)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn resident(token: &str, nodes: usize, used: u64, is_cold: bool) -> Resident {
        Resident { token: token.to_owned(), nodes, used, is_cold }
    }

    #[test]
    fn the_largest_is_held_beside_the_bound_whoever_was_used_last() {
        for big_used in [1, 3] {
            let two = vec![resident("big", 1_000_000, big_used, false), resident("small", 20, 2, false)];
            assert_eq!(surplus(two, 800_000, 7), Vec::<String>::new());
        }
        let equal = vec![resident("a", 450_000, 1, false), resident("b", 450_000, 2, false)];
        assert_eq!(surplus(equal, 800_000, 7), Vec::<String>::new());
        assert_eq!(surplus(vec![resident("alone", 9, 1, true)], 0, 7), Vec::<String>::new());
    }

    #[test]
    fn trees_that_are_not_in_use_go_first_and_in_order() {
        let residents = vec![
            resident("hot", 4, 9, false),
            resident("old", 4, 1, true),
            resident("older", 4, 0, true),
            resident("last", 4, 10, false),
        ];
        assert_eq!(surplus(residents.clone(), 9, 7), ["older"]);
        assert_eq!(surplus(residents, 4, 7), ["older", "old"]);
    }

    /// Domains that take turns, one more than there is place for.
    #[test]
    fn trees_in_use_are_mostly_found_although_not_all_fit() {
        let (mut held, mut missed): (HashMap<usize, u64>, u64) = (HashMap::new(), 0);
        for call in 0..1_000 {
            missed += u64::from(held.insert(call % 8, call as u64).is_none());
            let residents = held.iter().map(|(domain, used)| resident(&domain.to_string(), 10, *used, false));
            for gone in surplus(residents.collect(), 60, call as u64) {
                held.retain(|domain, _| domain.to_string() != gone);
            }
            assert!(held.len() <= 7 && held.contains_key(&(call % 8)));
        }
        assert!(missed < 600, "{missed} of 1,000");
    }
}
