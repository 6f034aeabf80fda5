//! What people do in HQ's office: edits, archives, deletions and what brings things back, repairs, republications.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::case_blocks::set;
use crate::element::Name;
use crate::life::Life;
use crate::questionnaire::{fill_in, written};
use crate::rows;
use crate::turn::{Mutation, Table};
use crate::vocabulary::{CLASHING_PROPERTIES, HOSTILE_NAMES};
use crate::world::{Form, Health, Presence};

/// HQ's bit of a rebuild that a user asked for, of one after archiving, of one after an edit.
const REQUESTED: i64 = 4;
const ARCHIVED: i64 = 16;
const EDITED: i64 = 32;

impl Life {
    /// A normal form; `None` where luck does not find one.
    fn find_form(&mut self, domain: usize, like: impl Fn(&Form) -> bool) -> Option<u32> {
        for _ in 0..12 {
            let forms = &self.world.domains[domain].forms;
            let index = forms[self.dice.index(forms.len())?];
            let form = &self.world.forms[index as usize];
            if form.state == 1 && form.presence.is_live() && form.health == Health::Fine && like(form) {
                return Some(index);
            }
        }
        None
    }

    fn clerk(&mut self, domain: usize) -> Arc<str> {
        let people = &self.world.domains[domain].people;
        self.dice
            .index(people.len())
            .map_or_else(|| "system".into(), |at| Arc::clone(&self.world.people[people[at] as usize].id))
    }

    fn rebuild_subjects(&mut self, form: u32, bit: i64) {
        let subjects = self.world.forms[form as usize].submission.subjects.clone();
        for (case, _) in subjects {
            self.rebuild(case, (Some(form), bit));
        }
    }

    /// The same form id with other answers; the old version goes on under another id, which HQ does not announce.
    pub(crate) fn edit_form(&mut self, domain: usize) {
        let Some(index) = self.find_form(domain, |_| true) else { return self.survey(domain) };
        let (edited_on, clerk, seed) = (self.tick(), self.clerk(domain), self.dice.bits());
        let (old_id, key) = (Arc::<str>::from(self.dice.dashed_id()), self.blob_key());
        let old = self.archive_version(index, old_id, edited_on);
        let form = &mut self.world.forms[index as usize];
        form.deprecated_form_id = Some(Arc::clone(&old.id));
        form.submission.seed = seed;
        form.edited_on = Some(edited_on);
        form.server_modified_on = edited_on;
        form.changed = self.turn;
        form.history.push(("edit", edited_on, clerk));
        let form = &self.world.forms[index as usize];
        let filled = fill_in(&self.world, &self.world.domains[domain], &form.submission);
        let content = written(&filled, seed).into_bytes();
        // The row that says where the XML is moves to the old version.
        self.mutations.push(rows::remove(Table::BlobMeta, [("parent_id", &form.id), ("key", &old.blob.0)]));
        let old_index = self.world.forms.len() as u32;
        self.world.forms.push(old);
        self.put_form(old_index);
        self.put_blob_meta(old_index);
        self.world.forms[index as usize].blob = (key, content.len());
        self.put_form(index);
        self.put_operation(index);
        self.put_blob(index, content);
        self.put_blob_meta(index);
        self.announce_form(index);
        self.rebuild_subjects(index, EDITED);
    }

    /// What becomes of a form's old version.
    fn archive_version(&self, index: u32, id: Arc<str>, now: i64) -> Form {
        let form = &self.world.forms[index as usize];
        Form {
            id,
            domain: form.domain,
            submission: form.submission.clone(),
            state: 4,
            received_on: form.received_on,
            edited_on: None,
            server_modified_on: now,
            date_header: form.date_header,
            problem: None,
            orig_id: Some(Arc::clone(&form.id)),
            deprecated_form_id: form.deprecated_form_id.clone(),
            user_id: form.user_id.clone(),
            history: Vec::new(),
            blob: form.blob.clone(),
            health: form.health,
            presence: Presence::Live,
            changed: self.turn,
        }
    }

    fn set_state(&mut self, index: u32, state: i64, operation: Option<&'static str>) {
        let now = self.tick();
        let clerk = self.clerk(self.world.forms[index as usize].domain);
        // HQ's SQL functions of old left the time of the last change as it was.
        let noted = !self.dice.chance(250);
        let form = &mut self.world.forms[index as usize];
        form.state = state;
        form.changed = self.turn;
        if noted {
            form.server_modified_on = now;
        }
        form.history.extend(operation.map(|operation| (operation, now, clerk)));
        self.put_form(index);
        if operation.is_some() {
            self.put_operation(index);
        }
        self.announce_form(index);
    }

    pub(crate) fn archive_form(&mut self, domain: usize) {
        let Some(index) = self.find_form(domain, |_| true) else { return self.survey(domain) };
        self.set_state(index, 2, Some("archive"));
        self.rebuild_subjects(index, ARCHIVED);
        self.world.domains[domain].attic_forms.push(index);
    }

    pub(crate) fn soft_delete_form(&mut self, domain: usize) {
        let Some(index) = self.find_form(domain, |_| true) else { return self.survey(domain) };
        let (on, deletion_id, noted, saved_too) =
            (self.tick(), self.dice.hex_id(), !self.dice.chance(300), self.dice.chance(200));
        let form = &mut self.world.forms[index as usize];
        form.presence = Presence::SoftDeleted { on, deletion_id };
        form.changed = self.turn;
        if noted {
            form.server_modified_on = on;
        }
        self.put_form(index);
        self.announce_form_deleted(index);
        if saved_too {
            self.announce_form(index);
        }
        self.world.domains[domain].attic_forms.push(index);
    }

    pub(crate) fn soft_delete_case(&mut self, domain: usize) {
        let Some(index) = self.find_case(domain, |_| true) else { return self.survey(domain) };
        let (on, deletion_id, noted, how) =
            (self.tick(), self.dice.hex_id(), !self.dice.chance(300), self.dice.below(10));
        let case = &mut self.world.cases[index as usize];
        case.presence = Presence::SoftDeleted { on, deletion_id };
        case.changed = self.turn;
        if noted {
            case.server_modified_on = on;
        }
        self.put_case(index);
        if how > 0 {
            self.announce_case_deleted(index);
        }
        if how < 3 {
            self.announce_case(index, None);
        }
        self.world.domains[domain].attic_cases.push(index);
    }

    /// What was archived, deleted or in error comes back, or is purged.
    pub(crate) fn bring_back_form(&mut self, domain: usize) {
        let attic = &mut self.world.domains[domain].attic_forms;
        let Some(at) = self.dice.index(attic.len()) else { return self.survey(domain) };
        let index = attic.swap_remove(at);
        let form = &self.world.forms[index as usize];
        match (&form.presence, form.state) {
            (Presence::SoftDeleted { .. }, _) if self.dice.chance(200) => self.remove_form(index, true),
            (Presence::SoftDeleted { .. }, _) => {
                let (now, noted) = (self.tick(), !self.dice.chance(300));
                let form = &mut self.world.forms[index as usize];
                form.presence = Presence::Live;
                form.problem = Some("Restored on 2025-05-05");
                form.changed = self.turn;
                if noted {
                    form.server_modified_on = now;
                }
                self.put_form(index);
                self.announce_form(index);
            }
            (Presence::Live, 2) => {
                self.set_state(index, 1, Some("unarchive"));
                self.rebuild_subjects(index, ARCHIVED);
            }
            (Presence::Live, 16) => {
                self.world.forms[index as usize].problem = None;
                self.set_state(index, 1, None);
                let form = &self.world.forms[index as usize];
                let filled = fill_in(&self.world, &self.world.domains[domain], &form.submission);
                let server_date = self.tick();
                self.apply(index, &filled.blocks, server_date);
            }
            _ => {}
        }
    }

    pub(crate) fn bring_back_case(&mut self, domain: usize) {
        let attic = &mut self.world.domains[domain].attic_cases;
        let Some(at) = self.dice.index(attic.len()) else { return self.survey(domain) };
        let index = attic.swap_remove(at);
        if !matches!(self.world.cases[index as usize].presence, Presence::SoftDeleted { .. }) {
            return;
        }
        if self.dice.chance(200) {
            return self.remove_case(index, true);
        }
        let (now, noted) = (self.tick(), !self.dice.chance(300));
        let case = &mut self.world.cases[index as usize];
        case.presence = Presence::Live;
        case.changed = self.turn;
        if noted {
            case.server_modified_on = now;
        }
        self.put_case(index);
        self.announce_case(index, None);
    }

    /// Rows go for good; seldom without a message.
    pub(crate) fn hard_delete(&mut self, domain: usize) {
        let silently = self.dice.chance(150);
        if self.dice.chance(500) {
            let Some(index) = self.find_case(domain, |_| true) else { return self.survey(domain) };
            self.remove_case(index, silently);
        } else {
            let Some(index) = self.find_form(domain, |_| true) else { return self.survey(domain) };
            self.remove_form(index, silently);
        }
    }

    fn remove_case(&mut self, index: u32, silently: bool) {
        let case = &mut self.world.cases[index as usize];
        case.presence = Presence::Gone { silently, live_before: case.presence.is_live() };
        let id = Arc::clone(&case.id);
        for table in [Table::CaseTransaction, Table::CaseIndex, Table::Case] {
            self.mutations.push(rows::remove(table, [("case_id", &id)]));
        }
        if !silently {
            self.announce_case_deleted(index);
        }
    }

    fn remove_form(&mut self, index: u32, silently: bool) {
        let form = &mut self.world.forms[index as usize];
        form.presence = Presence::Gone { silently, live_before: form.presence.is_live() && form.state == 1 };
        let (id, key) = (Arc::clone(&form.id), form.blob.0.clone());
        self.mutations.push(rows::remove(Table::FormOperation, [("form_id", &id)]));
        self.mutations.push(rows::remove(Table::BlobMeta, [("parent_id", &id)]));
        self.mutations.push(rows::remove(Table::Form, [("form_id", &id)]));
        self.mutations.push(Mutation::RemoveBlob { key });
        if !silently {
            self.announce_form_deleted(index);
        }
    }

    pub(crate) fn rebuild_on_request(&mut self, domain: usize) {
        // Only once for each case: a second row of this kind could not be told from the first.
        let never_before = |case: &crate::world::Case| case.transactions.iter().all(|held| held.bits != REQUESTED);
        match self.find_case(domain, never_before) {
            Some(index) => self.rebuild(index, (None, REQUESTED)),
            None => self.survey(domain),
        }
    }

    /// An API or a repair tool writes a property that no form could.
    pub(crate) fn odd_property(&mut self, domain: usize) {
        let Some(index) = self.find_case(domain, |case| case.oddities.len() < 4) else { return self.survey(domain) };
        let (name, value) = self.oddity();
        let now = self.tick();
        let case = &mut self.world.cases[index as usize];
        set(&mut case.oddities, &name, value);
        case.server_modified_on = now;
        case.changed = self.turn;
        self.put_case(index);
        self.announce_case(index, None);
    }

    fn oddity(&mut self) -> (Name, Value) {
        match self.dice.below(if self.options.sabotage { 10 } else { 5 }) {
            0 => ("nul_text".into(), json!("before\u{0}after")),
            1 => ("a".into(), json!({"b": {"c": "deep", "@k": "v"}, "empty": {}})),
            2 => ("closed".into(), json!({"@by": "hand", "#text": "yes"})),
            3 => ("tilde~and/slash".into(), json!("escaped")),
            4 => {
                let (name, value) = *self.dice.pick(CLASHING_PROPERTIES);
                (name.into(), json!(value))
            }
            5 => (format!("long_{}", "x".repeat(10_000)).into(), json!("long")),
            6 => ("+type".into(), json!("not the lake's")),
            _ => ((*self.dice.pick(HOSTILE_NAMES)).into(), json!("hostile")),
        }
    }

    /// A phone sends a form again; HQ keeps the copy under another id.
    pub(crate) fn duplicate_form(&mut self, domain: usize) {
        let Some(index) = self.find_form(domain, |_| true) else { return self.survey(domain) };
        let form = &self.world.forms[index as usize];
        let (submission, original) = (form.submission.clone(), Arc::clone(&form.id));
        let copy = self.submit(domain, submission, 8, Health::Fine);
        self.world.forms[copy as usize].orig_id = Some(original);
        self.world.forms[copy as usize].problem = Some("Form is a duplicate of another!");
        self.put_form(copy);
    }

    /// A command of HQ's operators announces things again.
    pub(crate) fn republish(&mut self, domain: usize) {
        for _ in 0..self.dice.between(1, 3) {
            let held = &self.world.domains[domain];
            if self.dice.chance(500) {
                let Some(at) = self.dice.index(held.cases.len()) else { continue };
                let index = held.cases[at];
                let case = &mut self.world.cases[index as usize];
                if !matches!(case.presence, Presence::Unborn | Presence::Gone { .. }) {
                    case.changed = self.turn;
                    self.announce_case(index, None);
                }
            } else {
                let Some(at) = self.dice.index(held.forms.len()) else { continue };
                let index = held.forms[at];
                let form = &mut self.world.forms[index as usize];
                if !matches!(form.presence, Presence::Gone { .. }) {
                    form.changed = self.turn;
                    self.announce_form(index);
                }
            }
        }
    }
}
