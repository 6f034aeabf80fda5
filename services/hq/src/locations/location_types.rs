//! What a domain's location types are known by ([`crate::source::location_type_key`]), those without any location included.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Number of no type: a domain with more types than that shows no column for those beyond.
const NO_TYPE: u16 = u16::MAX;

#[derive(Clone, Debug)]
struct LocationType {
    key: Arc<str>,
    /// HQ lists it among the types of the domain.
    listed: bool,
    /// HQ does not list it, but a location has it: a fault in HQ in spite of which the locations are kept.
    foreign: bool,
    /// It was not known before this refresh.
    new: bool,
}

/// Types by number. A location holds the number, so that a type that is known by another key needs no change of its locations.
#[derive(Clone, Debug, Default)]
pub(super) struct Types {
    numbers: HashMap<i64, u16>,
    types: Vec<LocationType>,
    /// Keys of the types, each once, sorted.
    keys: Vec<Arc<str>>,
    /// For each number, the index of its type's key in `keys`.
    key_indexes: Vec<Option<u16>>,
}

impl Types {
    /// Begins a refresh: all types of the domain are listed again.
    pub fn begin(&mut self) {
        self.types.iter_mut().for_each(|location_type| location_type.listed = false);
    }

    /// Takes over a type of the domain.
    pub fn list(&mut self, id: i64, key: &str) {
        let number = self.number(id, key);
        if let Some(location_type) = self.types.get_mut(usize::from(number)) {
            location_type.listed = true;
            if *location_type.key != *key {
                location_type.key = key.into();
            }
        }
    }

    /// The number of a location's type.
    pub fn number(&mut self, id: i64, key: &str) -> u16 {
        if let Some(number) = self.numbers.get(&id) {
            return *number;
        }
        let Some(number) = u16::try_from(self.types.len()).ok().filter(|number| *number != NO_TYPE) else {
            return NO_TYPE;
        };
        self.numbers.insert(id, number);
        self.types.push(LocationType { key: key.into(), listed: false, foreign: false, new: true });
        number
    }

    /// Ends a refresh: types that were not listed again are dropped, unless a location has one.
    pub fn finish(&mut self) {
        for location_type in &mut self.types {
            location_type.foreign = !location_type.listed && (location_type.foreign || location_type.new);
            location_type.new = false;
        }
        let there = |location_type: &&LocationType| location_type.listed || location_type.foreign;
        self.keys = self.types.iter().filter(there).map(|location_type| Arc::clone(&location_type.key)).collect();
        self.keys.sort_unstable();
        self.keys.dedup();
        self.keys.shrink_to_fit();
        let key_index = |location_type: &LocationType| {
            let key_index = Some(location_type)
                .filter(there)
                .and_then(|location_type| self.keys.binary_search(&location_type.key).ok());
            key_index.and_then(|key_index| u16::try_from(key_index).ok())
        };
        self.key_indexes = self.types.iter().map(key_index).collect();
    }

    /// All keys, each once, sorted.
    pub fn keys(&self) -> &[Arc<str>] {
        &self.keys
    }

    /// Indexes among [`Types::keys`] of at most `most` keys, in the order of the keys: those of the types that were made first.
    pub fn oldest_key_indexes(&self, most: usize) -> Vec<usize> {
        let mut by_id: Vec<(i64, u16)> = self.numbers.iter().map(|(id, number)| (*id, *number)).collect();
        by_id.sort_unstable();
        let mut oldest = BTreeSet::new();
        for key_index in by_id.into_iter().filter_map(|(_, number)| self.key_index(number)) {
            if oldest.len() >= most {
                break;
            }
            oldest.insert(key_index);
        }
        oldest.into_iter().collect()
    }

    /// Index of a type's key among [`Types::keys`]; `None` where the type is gone.
    pub fn key_index(&self, number: u16) -> Option<usize> {
        self.key_indexes.get(usize::from(number)).copied().flatten().map(usize::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(types: &Types) -> Vec<&str> {
        types.keys().iter().map(|key| &**key).collect()
    }

    #[test]
    fn types_are_listed_used_changed_and_dropped() {
        let mut types = Types::default();
        let village = types.number(7, "village");
        let foreign = types.number(9, "of another domain");
        types.list(8, "State");
        types.list(7, "village");
        types.finish();
        assert_eq!(keys(&types), ["State", "of another domain", "village"]);
        assert_eq!((types.key_index(village), types.key_index(foreign), types.key_index(99)), (Some(2), Some(1), None));

        types.begin();
        types.list(7, "Ward");
        types.finish();
        assert_eq!(keys(&types), ["Ward", "of another domain"], "State was deleted");
        assert_eq!((types.key_index(village), types.key_index(foreign)), (Some(0), Some(1)));
    }

    #[test]
    fn the_types_that_were_made_first_stay_the_same_when_others_come() {
        let mut types = Types::default();
        for (id, key) in [(30, "c"), (10, "d"), (20, "d"), (40, "b")] {
            types.list(id, key);
        }
        types.finish();
        let oldest = |types: &Types| -> Vec<String> {
            types.oldest_key_indexes(2).into_iter().map(|index| types.keys()[index].to_string()).collect()
        };
        assert_eq!(oldest(&types), ["c", "d"], "two types of one key count once");
        types.begin();
        for (id, key) in [(30, "c"), (10, "d"), (20, "d"), (40, "b"), (50, "a")] {
            types.list(id, key);
        }
        types.finish();
        assert_eq!(oldest(&types), ["c", "d"]);
        types.begin();
        for (id, key) in [(20, "d"), (40, "b"), (50, "a")] {
            types.list(id, key);
        }
        types.finish();
        assert_eq!(oldest(&types), ["b", "d"], "one that was deleted gives its place to the next");
        assert_eq!(types.oldest_key_indexes(9), [0, 1, 2]);
    }

    #[test]
    fn two_types_of_one_key_are_one_column() {
        let mut types = Types::default();
        types.list(1, "village");
        let other = types.number(2, "village");
        types.finish();
        assert_eq!((keys(&types), types.key_index(other)), (vec!["village"], Some(0)));
    }
}
