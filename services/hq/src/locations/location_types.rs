//! Names of a domain's location types, those without any location included.

use std::collections::HashMap;
use std::sync::Arc;

/// Number of no type: a domain with more types than that shows no column for those beyond.
const NO_TYPE: u16 = u16::MAX;

#[derive(Clone, Debug)]
struct LocationType {
    name: Arc<str>,
    /// HQ lists it among the types of the domain.
    listed: bool,
    /// HQ does not list it, but a location has it: a fault in HQ in spite of which the locations are kept.
    foreign: bool,
    /// It was not known before this refresh.
    new: bool,
}

/// Types by number. A location holds the number, so that a renamed type needs no change of its locations.
#[derive(Clone, Debug, Default)]
pub(super) struct Types {
    numbers: HashMap<i64, u16>,
    types: Vec<LocationType>,
    /// Names of the types, each once, sorted.
    names: Vec<Arc<str>>,
    /// For each number, the index of its type's name in `names`.
    name_indexes: Vec<Option<u16>>,
}

impl Types {
    /// Begins a refresh: all types of the domain are listed again.
    pub fn begin(&mut self) {
        self.types.iter_mut().for_each(|location_type| location_type.listed = false);
    }

    /// Takes over a type of the domain.
    pub fn list(&mut self, id: i64, name: &str) {
        let number = self.number(id, name);
        if let Some(location_type) = self.types.get_mut(usize::from(number)) {
            location_type.listed = true;
            if *location_type.name != *name {
                location_type.name = name.into();
            }
        }
    }

    /// The number of a location's type.
    pub fn number(&mut self, id: i64, name: &str) -> u16 {
        if let Some(number) = self.numbers.get(&id) {
            return *number;
        }
        let Some(number) = u16::try_from(self.types.len()).ok().filter(|number| *number != NO_TYPE) else {
            return NO_TYPE;
        };
        self.numbers.insert(id, number);
        self.types.push(LocationType { name: name.into(), listed: false, foreign: false, new: true });
        number
    }

    /// Ends a refresh: types that were not listed again are dropped, unless a location has one.
    pub fn finish(&mut self) {
        for location_type in &mut self.types {
            location_type.foreign = !location_type.listed && (location_type.foreign || location_type.new);
            location_type.new = false;
        }
        let there = |location_type: &&LocationType| location_type.listed || location_type.foreign;
        self.names = self.types.iter().filter(there).map(|location_type| Arc::clone(&location_type.name)).collect();
        self.names.sort_unstable();
        self.names.dedup();
        self.names.shrink_to_fit();
        let name_index = |location_type: &LocationType| {
            let name_index = Some(location_type)
                .filter(there)
                .and_then(|location_type| self.names.binary_search(&location_type.name).ok());
            name_index.and_then(|name_index| u16::try_from(name_index).ok())
        };
        self.name_indexes = self.types.iter().map(name_index).collect();
    }

    /// All names, each once, sorted.
    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Index of a type's name among [`Types::names`]; `None` where the type is gone.
    pub fn name_index(&self, number: u16) -> Option<usize> {
        self.name_indexes.get(usize::from(number)).copied().flatten().map(usize::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(types: &Types) -> Vec<&str> {
        types.names().iter().map(|name| &**name).collect()
    }

    #[test]
    fn types_are_listed_used_renamed_and_dropped() {
        let mut types = Types::default();
        let village = types.number(7, "village");
        let foreign = types.number(9, "of another domain");
        types.list(8, "State");
        types.list(7, "village");
        types.finish();
        assert_eq!(names(&types), ["State", "of another domain", "village"]);
        assert_eq!(
            (types.name_index(village), types.name_index(foreign), types.name_index(99)),
            (Some(2), Some(1), None)
        );

        types.begin();
        types.list(7, "Ward");
        types.finish();
        assert_eq!(names(&types), ["Ward", "of another domain"], "State was deleted");
        assert_eq!((types.name_index(village), types.name_index(foreign)), (Some(0), Some(1)));
    }

    #[test]
    fn two_types_of_one_name_are_one_column() {
        let mut types = Types::default();
        types.list(1, "village");
        let other = types.number(2, "village");
        types.finish();
        assert_eq!((names(&types), types.name_index(other)), (vec!["village"], Some(0)));
    }
}
