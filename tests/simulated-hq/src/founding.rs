//! How HQ begins: project spaces with their apps, levels of places, places and people.

use crate::dice::Dice;
use crate::element::Name;
use crate::life::Life;
use crate::moment::DAY;
use crate::rows;
use crate::vocabulary::{HOSTILE_NAMES, PLACE_NAMES};
use crate::world::{Design, Domain, Person, Place, PlaceType, Purpose};

/// Name, levels of the location tree, types of cases.
type Foundation = (&'static str, &'static [&'static str], &'static [&'static str]);

const FOUNDATIONS: &[Foundation] = &[
    ("demo-space", &["state", "district", "block", "supervisor", "awc"], &["household", "person", "child", "Person"]),
    ("asha-trial", &["State Office", "District", "Village"], &["household", "member", "pregnancy"]),
    ("sante-2024", &["state", "supervisor", "Centre de santé"], &["ménage", "person", "महिला"]),
];

const HOSTILE_FOUNDATIONS: &[Foundation] = &[
    (
        "..",
        &["District", "district", "*>/..", "'; drop table x; --", "month"],
        &["..", "_delta_log", "_change_data", "ÉTÉ"],
    ),
    ("Demo-Space", &["supervisor", "SUPERVISOR", "a.b\"c"], &["Household", "HOUSEHOLD", "household"]),
];

const PURPOSES: &[(Purpose, &str)] = &[
    (Purpose::Registration, "Register household"),
    (Purpose::Visit, "Antenatal visit"),
    (Purpose::Visit, "Child visit"),
    (Purpose::Visit, "École & santé <visite>"),
    (Purpose::Survey, "Survey"),
    (Purpose::Closing, "Close"),
    (Purpose::Promotion, "Change of group"),
    (Purpose::Legacy, "Old registration"),
    (Purpose::System, "System form"),
    (Purpose::Survey, "Handwritten survey"),
];

impl Life {
    pub(crate) fn found_domains(&mut self) {
        for number in 0..self.options.domains {
            let (name, levels, case_types) = FOUNDATIONS[number % FOUNDATIONS.len()];
            let name = if number < FOUNDATIONS.len() { name.to_owned() } else { format!("space-{number}") };
            self.found_domain(&name, levels, case_types);
        }
        if self.options.sabotage {
            for (name, levels, case_types) in HOSTILE_FOUNDATIONS {
                self.found_domain(name, levels, case_types);
            }
        }
    }

    fn found_domain(&mut self, name: &str, levels: &[&'static str], case_types: &[&'static str]) {
        let designs = designs(name, self.options.sabotage, &mut self.dice);
        let domain = Domain {
            name: name.into(),
            app_id: self.dice.hex_id(),
            build_id: self.dice.hex_id(),
            designs,
            case_types: case_types.iter().map(|name| Name::Borrowed(name)).collect(),
            place_types: self.place_types(levels),
            trees: Vec::new(),
            places: Vec::new(),
            people: Vec::new(),
            cases: Vec::new(),
            forms: Vec::new(),
            attic_forms: Vec::new(),
            attic_cases: Vec::new(),
        };
        let number = self.world.domains.len();
        self.world.domains.push(domain);
        let created = self.tick() - 300 * DAY;
        for level in 0..levels.len() {
            let mutation = rows::place_type(&self.world.domains[number], level, created);
            self.mutations.push(mutation);
        }
        self.found_places(number);
        self.world.note_tree(number, self.turn);
        for _ in 0..self.options.workers_per_domain.max(4) {
            self.hire(number);
        }
        self.open_office(number);
    }

    fn place_types(&mut self, levels: &[&'static str]) -> Vec<PlaceType> {
        let mut parent = None;
        let mut types = Vec::with_capacity(levels.len());
        for (number, name) in levels.iter().enumerate() {
            let id = self.next_row_id;
            self.next_row_id += 1;
            // HQ makes the code of the name; old ones have none.
            let code = (number != 2)
                .then(|| name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-") + &number.to_string());
            types.push(PlaceType { id, name: Name::Borrowed(name), code, parent });
            parent = Some(id);
        }
        types
    }

    /// Two places below each place, more at the bottom.
    fn found_places(&mut self, domain: usize) {
        let levels = self.world.domains[domain].place_types.len();
        let mut above: Vec<Option<u32>> = vec![None];
        for level in 0..levels {
            let mut row = Vec::new();
            for parent in above {
                let children = if level + 1 == levels { 3 } else { 2 };
                for _ in 0..children {
                    row.push(Some(self.found_place(domain, level, parent)));
                }
            }
            above = row;
        }
    }

    /// A new place, announced.
    pub(crate) fn found_place(&mut self, domain: usize, level: usize, parent: Option<u32>) -> u32 {
        let created_at = self.tick();
        let dice = &mut self.dice;
        let index = self.world.places.len() as u32;
        let name = format!("{} {}", dice.pick(PLACE_NAMES), dice.below(100));
        let mut metadata = vec![(Name::Borrowed("population"), dice.below(9000).to_string())];
        if dice.chance(300) {
            metadata.push((Name::Borrowed("Road Access"), (*dice.pick(&["all year", "", "dry season"])).to_owned()));
        }
        if self.options.sabotage && dice.chance(100) {
            metadata.push((Name::Borrowed(*dice.pick(HOSTILE_NAMES)), "x".into()));
        }
        let position = match dice.below(10) {
            0 => None,
            1 => Some((0, 0)),
            _ => Some((dice.between(-34_000_000, 34_000_000) as i32, dice.between(-97_000_000, 97_000_000) as i32)),
        };
        let place = Place {
            id: self.next_row_id,
            location_id: dice.hex_id().into(),
            domain,
            level,
            site_code: format!("{}_{index}", name.to_lowercase().replace(' ', "_")),
            name: (!dice.chance(10)).then_some(name),
            external_id: dice.chance(500).then(|| if dice.chance(500) { String::new() } else { format!("X{index}") }),
            metadata,
            position,
            created_at,
            last_modified: created_at,
            archived: None,
            parent,
            gone: false,
        };
        self.next_row_id += 1;
        self.world.places.push(place);
        self.world.domains[domain].places.push(index);
        self.put_place(index);
        self.announce_place(index, false);
        index
    }

    /// A new user, with HQ's case about them.
    pub(crate) fn hire(&mut self, domain: usize) {
        let number = self.world.people.len();
        let dice = &mut self.dice;
        let web = number % 9 == 8;
        let bottom = self.world.domains[domain].place_types.len().saturating_sub(2);
        let candidates: Vec<u32> = self.world.domains[domain]
            .places
            .iter()
            .copied()
            .filter(|place| {
                self.world.places[*place as usize].level >= bottom && !self.world.places[*place as usize].gone
            })
            .collect();
        let place = if number % 8 == 5 { None } else { dice.index(candidates.len()).map(|at| candidates[at]) };
        let person = Person {
            id: dice.hex_id().into(),
            domain,
            username: format!("worker{number}"),
            web,
            place,
            retired: false,
            revision: 1,
            assignments: Vec::new(),
        };
        let index = number as u32;
        self.world.people.push(person);
        self.world.domains[domain].people.push(index);
        self.world.note_assignment(index, self.turn);
        self.put_person(index);
        self.announce_person(index);
        if !web {
            self.user_case(domain, index);
        }
    }

    /// One retired worker, whose forms still come in.
    fn open_office(&mut self, domain: usize) {
        if let Some(index) = self.world.domains[domain].people.get(2).copied() {
            self.world.people[index as usize].retired = true;
            self.put_person(index);
            self.announce_person(index);
        }
    }
}

fn designs(domain: &str, sabotage: bool, dice: &mut Dice) -> Vec<Design> {
    let mut designs: Vec<Design> = PURPOSES
        .iter()
        .map(|(purpose, title)| {
            let id = dice.dashed_id();
            let xmlns = match purpose {
                Purpose::System => "http://commcarehq.org/case".to_owned(),
                Purpose::Legacy => "http://dev.commcarehq.org/pact/progress_note".to_owned(),
                _ if title.starts_with("Handwritten") => format!("http://example.org/{domain}/enquête-ménage"),
                _ if dice.chance(500) => format!("http://openrosa.org/formdesigner/{}", id.to_uppercase()),
                _ => format!("http://openrosa.org/formdesigner/{id}"),
            };
            design(&xmlns, *purpose, title)
        })
        .collect();
    if sabotage {
        let long = format!("http://openrosa.org/formdesigner/{}", "é".repeat(200));
        let names = HOSTILE_NAMES.iter().map(|name| (*name).to_owned()).chain([
            long,
            String::new(),
            "http://openrosa.org/formdesigner/".into(),
        ]);
        designs.extend(names.map(|xmlns| design(&xmlns, Purpose::Survey, "Hostile")));
    }
    designs
}

fn design(xmlns: &str, purpose: Purpose, title: &'static str) -> Design {
    let mut namespace = String::with_capacity(xmlns.len());
    for byte in xmlns.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/*".contains(&byte) || (byte == b':' && xmlns.starts_with("http://")) {
            namespace.push(char::from(byte));
        } else {
            namespace.push_str(&format!("%{byte:02X}"));
        }
    }
    Design { xmlns: xmlns.into(), namespace: namespace.into(), purpose, title }
}
