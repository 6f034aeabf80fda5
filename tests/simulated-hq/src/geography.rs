//! Places that move, are renamed, archived, deleted; people who change their place.

use std::collections::HashSet;

use crate::life::Life;
use crate::vocabulary::PLACE_NAMES;

impl Life {
    /// Something happens to a place.
    pub(crate) fn change_place(&mut self, domain: usize) {
        let standing: Vec<u32> = self.standing(domain);
        let Some(at) = self.dice.index(standing.len()) else { return };
        let index = standing[at];
        match self.dice.below(10) {
            0..=2 => self.move_place(domain, index),
            3..=4 => self.rename_place(index),
            5 => self.archive_place(domain, index),
            6 => self.unarchive_place(domain),
            7 => self.delete_place(domain, index),
            _ => self.add_place(domain, index),
        }
        self.world.note_tree(domain, self.turn);
    }

    fn standing(&self, domain: usize) -> Vec<u32> {
        self.world.domains[domain]
            .places
            .iter()
            .copied()
            .filter(|place| !self.world.places[*place as usize].gone)
            .collect()
    }

    /// A place and all below it, those above first.
    fn with_descendants(&self, domain: usize, root: u32) -> Vec<u32> {
        let mut found = vec![root];
        let mut held: HashSet<u32> = found.iter().copied().collect();
        let standing = self.standing(domain);
        loop {
            let before = found.len();
            for place in &standing {
                let below = self.world.places[*place as usize].parent.is_some_and(|parent| held.contains(&parent));
                if below && held.insert(*place) {
                    found.push(*place);
                }
            }
            if found.len() == before {
                return found;
            }
        }
    }

    fn save_place(&mut self, index: u32) {
        let now = self.tick();
        self.world.places[index as usize].last_modified = now;
        self.put_place(index);
        self.announce_place(index, false);
    }

    /// To another parent of the same level. HQ announces only the place that moved.
    fn move_place(&mut self, domain: usize, index: u32) {
        let Some(parent) = self.world.places[index as usize].parent else { return self.rename_place(index) };
        let level = self.world.places[parent as usize].level;
        let below = self.with_descendants(domain, index);
        let mut candidates = self.standing(domain);
        candidates.retain(|place| {
            self.world.places[*place as usize].level == level && *place != parent && !below.contains(place)
        });
        if let Some(at) = self.dice.index(candidates.len()) {
            self.world.places[index as usize].parent = Some(candidates[at]);
            self.save_place(index);
        }
    }

    fn rename_place(&mut self, index: u32) {
        let name = format!("{} {} (new)", self.dice.pick(PLACE_NAMES), self.dice.below(100));
        let moved = self.dice.chance(300);
        let place = &mut self.world.places[index as usize];
        place.name = Some(name);
        if moved {
            place.position = place.position.map(|(latitude, longitude)| (latitude / 2 + 1, longitude / 2 - 1));
            place.site_code.push('n');
        }
        self.save_place(index);
    }

    fn archive_place(&mut self, domain: usize, index: u32) {
        let affected = self.with_descendants(domain, index);
        if affected.len() > 12 {
            return self.rename_place(index);
        }
        for place in affected {
            let now = self.tick();
            // Older HQ did not note when.
            let noted = !self.dice.chance(200);
            self.world.places[place as usize].archived = Some(noted.then_some(now));
            self.save_place(place);
        }
    }

    /// Comes back with all below and above it.
    fn unarchive_place(&mut self, domain: usize) {
        let mut archived = self.standing(domain);
        archived.retain(|place| self.world.places[*place as usize].archived.is_some());
        let Some(at) = self.dice.index(archived.len()) else { return };
        let mut affected = self.with_descendants(domain, archived[at]);
        let mut above = self.world.places[archived[at] as usize].parent;
        while let Some(place) = above {
            affected.push(place);
            above = self.world.places[place as usize].parent;
        }
        for place in affected {
            self.world.places[place as usize].archived = None;
            self.save_place(place);
        }
    }

    /// Rows of the place and all below it go; people keep pointing there.
    fn delete_place(&mut self, domain: usize, index: u32) {
        let affected = self.with_descendants(domain, index);
        if affected.len() > 4 || self.world.places[index as usize].parent.is_none() {
            return self.rename_place(index);
        }
        for place in affected.into_iter().rev() {
            let held = &mut self.world.places[place as usize];
            held.gone = true;
            let matching = [("id".to_owned(), held.id.into())].into_iter().collect();
            self.mutations.push(crate::turn::Mutation::Remove { table: crate::turn::Table::Location, matching });
            self.announce_place(place, true);
        }
    }

    /// A new place beside this one, or below it, seldom of the same type as its parent.
    fn add_place(&mut self, domain: usize, index: u32) {
        let (level, parent) = (self.world.places[index as usize].level, self.world.places[index as usize].parent);
        let same_type_below = level > 1 && self.dice.chance(300);
        let parent = if same_type_below { Some(index) } else { parent };
        self.found_place(domain, level, parent);
    }

    /// A user is assigned to another location from now on, or to none, or leaves.
    pub(crate) fn assign_person(&mut self, domain: usize) {
        let people = &self.world.domains[domain].people;
        let Some(index) = self.dice.index(people.len()).map(|at| people[at]) else { return };
        let standing = self.standing(domain);
        let place = self.dice.index(standing.len()).map(|at| standing[at]);
        let (away, retires) = (self.dice.chance(120), self.dice.chance(60));
        let person = &mut self.world.people[index as usize];
        person.place = if away { None } else { place };
        person.retired |= retires;
        person.revision += 1;
        self.world.note_assignment(index, self.turn);
        self.put_person(index);
        self.announce_person(index);
    }

    /// HQ saves a user's document for its own reasons.
    pub(crate) fn chat_about_person(&mut self, domain: usize) {
        let people = &self.world.domains[domain].people;
        let Some(index) = self.dice.index(people.len()).map(|at| people[at]) else { return };
        self.world.people[index as usize].revision += 1;
        self.put_person(index);
        self.announce_person(index);
    }
}
