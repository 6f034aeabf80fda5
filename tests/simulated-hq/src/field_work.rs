//! What workers do in the field: registrations, visits, surveys, closings.

use std::sync::Arc;

use crate::dice::Dice;
use crate::element::Name;
use crate::life::{Life, LifeOptions};
use crate::moment::{DAY, MINUTE, SECOND};
use crate::world::{Case, Ending, Health, Link, Presence, Purpose, Role, Sender, Submission};

/// Ids that no user document has.
const STRANGERS: &[&str] =
    &["demo_user", "system", "commtrack-system", "", "5e0f4b7a1c2d4e5f8899aabbccddeeff", "user of the past"];

/// How often a case is looked for before something else is done.
const LOOKS: usize = 12;

impl Life {
    /// A form of this purpose, sent now by somebody of the domain.
    pub(crate) fn submission(&mut self, domain: usize, purpose: Purpose, subjects: Vec<(u32, Role)>) -> Submission {
        let held = &self.world.domains[domain];
        // The first ten are ordinary; hostile ones are taken on purpose only.
        let fitting: Vec<usize> = (0..10).filter(|at| held.designs[*at].purpose == purpose).collect();
        let design = *self.dice.pick(&fitting);
        let sender = match self.dice.index(held.people.len()) {
            Some(at) if !self.dice.chance(30) => Sender::Person(held.people[at]),
            _ => Sender::Named(self.dice.pick::<&str>(STRANGERS)),
        };
        let place = match sender {
            Sender::Person(person) => self.world.people[person as usize].place,
            Sender::Named(_) => None,
        };
        let owner = match (place, self.dice.below(20)) {
            (Some(place), 0..=11) => Arc::clone(&self.world.places[place as usize].location_id),
            (_, 12) => "-".into(),
            (_, 13) => "".into(),
            _ => self.world.sender_id(sender),
        };
        let (started, ended) = phone_times(self.clock, &self.options, &mut self.dice);
        let ending = match self.dice.below(100) {
            0 => Ending::Missing,
            1 => Ending::Empty,
            2 => Ending::Unparsable,
            3 => Ending::Impossible,
            4 => Ending::DateOnly,
            5 => Ending::Object,
            _ => Ending::Ordinary,
        };
        Submission {
            design,
            seed: self.dice.bits(),
            sender,
            instance: self.dice.id().into(),
            started,
            ended,
            ending,
            owner,
            subjects,
        }
    }

    fn send(&mut self, domain: usize, purpose: Purpose, subjects: Vec<(u32, Role)>) -> u32 {
        let submission = self.submission(domain, purpose, subjects);
        self.submit(domain, submission, 1, Health::Fine)
    }

    /// A case that is like this; `None` where luck does not find one.
    pub(crate) fn find_case(&mut self, domain: usize, like: impl Fn(&Case) -> bool) -> Option<u32> {
        for _ in 0..LOOKS {
            let cases = &self.world.domains[domain].cases;
            let index = cases[self.dice.index(cases.len())?];
            let case = &self.world.cases[index as usize];
            if case.presence == Presence::Live && like(case) {
                return Some(index);
            }
        }
        None
    }

    /// A case that workers visit.
    fn find_visited(&mut self, domain: usize) -> Option<u32> {
        self.find_case(domain, |case| case.closed.is_none() && case.case_type != crate::questionnaire::USER_CASE)
    }

    fn member_type(&mut self, domain: usize) -> Name {
        let types = &self.world.domains[domain].case_types;
        self.dice.pick(&types[1..]).clone()
    }

    /// The new cases of a registration: a household and its members.
    pub(crate) fn new_household(&mut self, domain: usize) -> Vec<(u32, Role)> {
        let household = self.new_case(domain);
        let household_type = self.world.domains[domain].case_types[0].clone();
        let mut subjects = vec![(household, Role::Create { case_type: household_type.clone(), parent: None })];
        for _ in 0..self.dice.below(5) {
            let member = self.new_case(domain);
            let parent = Some((household, household_type.clone(), self.dice.chance(250)));
            subjects.push((member, Role::Create { case_type: self.member_type(domain), parent }));
        }
        subjects
    }

    pub(crate) fn register_household(&mut self, domain: usize) {
        let subjects = self.new_household(domain);
        self.send(domain, Purpose::Registration, subjects);
    }

    pub(crate) fn visit(&mut self, domain: usize) {
        let mut subjects: Vec<(u32, Role)> = Vec::new();
        for _ in 0..self.dice.between(1, 4) {
            if let Some(case) = self.find_visited(domain).filter(|case| subjects.iter().all(|(held, _)| held != case)) {
                subjects.push((case, Role::Update));
            }
        }
        if subjects.is_empty() {
            return self.register_household(domain);
        }
        self.send(domain, Purpose::Visit, subjects);
    }

    pub(crate) fn survey(&mut self, domain: usize) {
        self.send(domain, Purpose::Survey, Vec::new());
    }

    pub(crate) fn close_case(&mut self, domain: usize) {
        let Some(case) = self.find_visited(domain) else { return self.register_household(domain) };
        self.send(domain, Purpose::Closing, vec![(case, Role::Close)]);
    }

    pub(crate) fn legacy_form(&mut self, domain: usize) {
        let case = self.new_case(domain);
        let case_type = self.member_type(domain);
        self.send(domain, Purpose::Legacy, vec![(case, Role::Create { case_type, parent: None })]);
    }

    /// An import: many cases in one form without questions.
    pub(crate) fn import_cases(&mut self, domain: usize) {
        let mut subjects: Vec<(u32, Role)> = Vec::new();
        for _ in 0..self.dice.between(1, 6) {
            match self.find_visited(domain) {
                Some(case) if subjects.iter().all(|(held, _)| *held != case) => subjects.push((case, Role::Update)),
                _ => {
                    let case_type = self.member_type(domain);
                    subjects.push((self.new_case(domain), Role::Create { case_type, parent: None }));
                }
            }
        }
        self.send(domain, Purpose::System, subjects);
    }

    pub(crate) fn change_case_type(&mut self, domain: usize) {
        let case_type = self.member_type(domain);
        let linked =
            |case: &Case| case.closed.is_none() && case.links.iter().any(|link| !link.referenced_id.is_empty());
        let Some(case) = self.find_case(domain, linked) else { return self.register_household(domain) };
        self.send(domain, Purpose::Promotion, vec![(case, Role::Retype(case_type))]);
    }

    /// A member leaves the household: the link stays, without a case.
    pub(crate) fn unlink_case(&mut self, domain: usize) {
        let Some(case) = self.find_case(domain, |case| case.links.iter().any(|link| !link.referenced_id.is_empty()))
        else {
            return self.register_household(domain);
        };
        let link = self.world.cases[case as usize].links.first().cloned();
        if let Some(link) = link {
            let link = Link { referenced_id: "".into(), ..link };
            self.send(domain, Purpose::Visit, vec![(case, Role::Unlink(link))]);
        }
    }

    /// A form updates a case that HQ never saw created: no type, no date of opening.
    pub(crate) fn update_unknown_case(&mut self, domain: usize) {
        let case = self.new_case(domain);
        self.send(domain, Purpose::Visit, vec![(case, Role::Update)]);
    }

    /// A form that HQ stores but does not apply; it may be processed again later.
    pub(crate) fn error_form(&mut self, domain: usize) {
        let subjects = self.new_household(domain);
        let submission = self.submission(domain, Purpose::Registration, subjects);
        let form = self.submit(domain, submission, 16, Health::Fine);
        self.world.forms[form as usize].problem = Some("IllegalCaseId: case id must not be empty");
        self.put_form(form);
        self.world.domains[domain].attic_forms.push(form);
    }

    /// Something arrives that is no form.
    pub(crate) fn submission_error(&mut self, domain: usize) {
        let submission = self.submission(domain, Purpose::Survey, Vec::new());
        let form = self.submit(domain, submission, 32, Health::Broken);
        self.world.forms[form as usize].problem = Some("unparsable: Premature end of data in tag data");
        self.put_form(form);
    }
}

/// When a form was begun and ended, by the phone's clock.
fn phone_times(now: i64, options: &LifeOptions, dice: &mut Dice) -> (i64, i64) {
    // Some phones are offline for days, some clocks are years off.
    let offline = if dice.chance(100) { dice.between(0, 12 * DAY) } else { dice.between(0, 4 * MINUTE) };
    let mut ended = now - offline;
    if options.mischief && dice.chance(25) {
        ended = *dice.pick(&[DAY, 10_957 * DAY, 47_482 * DAY, ended - 3_650 * DAY, ended + 365 * DAY])
            + dice.between(0, DAY);
    }
    if options.sabotage && dice.chance(5) {
        // The years 1849 and 2298: no month of any use.
        ended = *dice.pick(&[-44_000 * DAY, 120_000 * DAY]) + dice.between(0, DAY);
    }
    (ended - dice.between(MINUTE, 40 * MINUTE) - SECOND, ended.div_euclid(1000) * 1000)
}
