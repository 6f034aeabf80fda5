//! Names of a domain's location types, those without any location included.

use std::collections::HashMap;
use std::sync::Arc;

/// Number of no type: a domain with more types than that shows no column for those beyond.
const NO_TYPE: u16 = u16::MAX;

#[derive(Clone, Debug)]
struct Entry {
    name: Arc<str>,
    /// It is among the types of the domain.
    listed: bool,
    /// It is not, but a location has it: a fault in HQ, with which locations are to survive.
    foreign: bool,
    /// Nothing was said of it before.
    new: bool,
}

/// Types by number. A location holds the number, so that a renamed type needs no change of its locations.
#[derive(Clone, Debug, Default)]
pub(super) struct Types {
    numbers: HashMap<i64, u16>,
    entries: Vec<Entry>,
    /// Different names, sorted.
    names: Vec<Arc<str>>,
    /// Where the name of each number is among them.
    places: Vec<Option<u16>>,
}

impl Types {
    /// From here on all types of the domain are told again.
    pub fn begin(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.listed = false);
    }

    /// A type of the domain.
    pub fn list(&mut self, id: i64, name: &str) {
        let number = self.number(id, name);
        if let Some(entry) = self.entries.get_mut(usize::from(number)) {
            entry.listed = true;
            if *entry.name != *name {
                entry.name = name.into();
            }
        }
    }

    /// The number of a location's type.
    pub fn number(&mut self, id: i64, name: &str) -> u16 {
        if let Some(number) = self.numbers.get(&id) {
            return *number;
        }
        let Some(number) = u16::try_from(self.entries.len()).ok().filter(|number| *number != NO_TYPE) else {
            return NO_TYPE;
        };
        self.numbers.insert(id, number);
        self.entries.push(Entry { name: name.into(), listed: false, foreign: false, new: true });
        number
    }

    /// All was told.
    pub fn finish(&mut self) {
        for entry in &mut self.entries {
            entry.foreign = !entry.listed && (entry.foreign || entry.new);
            entry.new = false;
        }
        let there = |entry: &&Entry| entry.listed || entry.foreign;
        self.names = self.entries.iter().filter(there).map(|entry| Arc::clone(&entry.name)).collect();
        self.names.sort_unstable();
        self.names.dedup();
        self.names.shrink_to_fit();
        let place = |entry: &Entry| {
            let place = Some(entry).filter(there).and_then(|entry| self.names.binary_search(&entry.name).ok());
            place.and_then(|place| u16::try_from(place).ok())
        };
        self.places = self.entries.iter().map(place).collect();
    }

    /// All names, each once, sorted.
    pub fn names(&self) -> &[Arc<str>] {
        &self.names
    }

    /// Where the name of a type is among all names; `None` where the type is gone.
    pub fn place(&self, number: u16) -> Option<usize> {
        self.places.get(usize::from(number)).copied().flatten().map(usize::from)
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
        assert_eq!((types.place(village), types.place(foreign), types.place(99)), (Some(2), Some(1), None));

        types.begin();
        types.list(7, "Ward");
        types.finish();
        assert_eq!(names(&types), ["Ward", "of another domain"], "State was deleted");
        assert_eq!((types.place(village), types.place(foreign)), (Some(0), Some(1)));
    }

    #[test]
    fn two_types_of_one_name_are_one_column() {
        let mut types = Types::default();
        types.list(1, "village");
        let other = types.number(2, "village");
        types.finish();
        assert_eq!((names(&types), types.place(other)), (vec!["village"], Some(0)));
    }
}
