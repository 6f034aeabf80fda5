//! How HQ takes in a form, applies it to cases, and rebuilds cases (reference §1.4, 2.5).

use std::sync::Arc;

use crate::case_blocks::{self, CaseBlock};
use crate::life::Life;
use crate::moment::{DAY, MINUTE, SECOND};
use crate::questionnaire::{fill_in, written};
use crate::rows;
use crate::turn::Table;
use crate::world::{Case, Form, Health, Presence, Sender, Submission, Transaction};

impl Life {
    /// A case that no form has written yet.
    pub(crate) fn new_case(&mut self, domain: usize) -> u32 {
        let index = self.world.cases.len() as u32;
        let mut id = self.dice.id();
        if self.options.sabotage && self.dice.chance(20) {
            id = format!(
                "{}{index}",
                self.dice.pick(&["a/../b'\"", "id with blank ", "घर", "*.>", "; drop table x --"])
            );
        }
        self.world.cases.push(Case {
            id: id.into(),
            domain,
            case_type: "".into(),
            name: None,
            owner_id: "".into(),
            opened_on: None,
            opened_by: None,
            modified_on: 0,
            server_modified_on: 0,
            modified_by: "".into(),
            closed: None,
            presence: Presence::Unborn,
            external_id: Some(String::new()),
            properties: Vec::new(),
            oddities: Vec::new(),
            links: Vec::new(),
            transactions: Vec::new(),
            changed: 0,
        });
        self.world.domains[domain].cases.push(index);
        index
    }

    /// Takes in a form with this state; a normal one changes its cases. Everything is announced.
    pub(crate) fn submit(&mut self, domain: usize, submission: Submission, state: i64, health: Health) -> u32 {
        let received_on = self.received_on();
        let server_modified_on = self.tick();
        let filled = fill_in(&self.world, &self.world.domains[domain], &submission);
        let content = rows::blob_content(written(&filled, submission.seed), health);
        let index = self.world.forms.len() as u32;
        let sender = self.world.sender_id(submission.sender);
        let leaves_user_to_meta = health == Health::Fine && self.dice.chance(15);
        let form = Form {
            id: if state == 1 || state == 16 { Arc::clone(&submission.instance) } else { self.dice.dashed_id().into() },
            domain,
            state,
            received_on,
            edited_on: None,
            server_modified_on,
            date_header: self.dice.chance(300).then_some(submission.ended),
            problem: None,
            orig_id: None,
            deprecated_form_id: None,
            user_id: if leaves_user_to_meta || state == 32 {
                self.dice.chance(500).then(|| "".into())
            } else {
                Some(sender)
            },
            history: Vec::new(),
            blob: (self.blob_key(), content.len()),
            health,
            presence: Presence::Live,
            changed: self.turn,
            submission,
        };
        self.world.forms.push(form);
        self.world.domains[domain].forms.push(index);
        self.put_form(index);
        if health != Health::BlobMissing {
            self.put_blob(index, content);
        }
        self.put_blob_meta(index);
        self.announce_form(index);
        if state == 1 {
            self.apply(index, &filled.blocks, received_on);
        }
        index
    }

    /// When HQ says that it received what it takes in now. That is before it waited for the locks of the form and its cases, while others were
    /// taken in; and now and then what the sender says (header `X-Submit-Time`). So the times of a case go back.
    fn received_on(&mut self) -> i64 {
        let now = self.tick();
        if !self.options.mischief {
            return now;
        }
        match self.dice.below(100) {
            0..=9 => now - self.dice.between(SECOND, 10 * MINUTE),
            10..=12 => now - self.dice.between(MINUTE, 30 * DAY),
            _ => now,
        }
    }

    /// Newer keys are plain, older ones have a bucket.
    pub(crate) fn blob_key(&mut self) -> String {
        if self.dice.chance(50) {
            format!("form/{}/form.xml.{}", self.dice.hex_id(), self.dice.below(1_000_000))
        } else {
            self.dice.hex_id()
        }
    }

    /// Applies a form to its cases and announces them.
    pub(crate) fn apply(&mut self, form: u32, blocks: &[CaseBlock], server_date: i64) {
        let form_id = Arc::clone(&self.world.forms[form as usize].id);
        for block in blocks {
            let case = &mut self.world.cases[block.case as usize];
            block.apply(case);
            case.server_modified_on = server_date;
            case.changed = self.turn;
            case.transactions.push(Transaction {
                form: Some(form),
                form_id: Some(Arc::clone(&form_id)),
                server_date,
                client_date: Some(block.at),
                bits: block.bits(),
                revoked: false,
            });
            let last = case.transactions.len() - 1;
            self.put_case(block.case);
            if !block.links.is_empty() {
                self.put_links(block.case);
            }
            self.put_transaction(block.case, last);
            self.announce_case(block.case, Some(Arc::clone(&form_id)));
        }
    }

    /// Replays what remains of a case's forms; `cause` is the form and HQ's bit that made it necessary. Cases that are deleted by
    /// somebody are left alone. Announces the case.
    pub(crate) fn rebuild(&mut self, index: u32, cause: (Option<u32>, i64)) {
        let case = &self.world.cases[index as usize];
        if !matches!(case.presence, Presence::Live | Presence::Emptied) {
            return;
        }
        let mut changed = self.review_transactions(index);
        let held_links = std::mem::take(&mut self.world.cases[index as usize].links);
        let replayed = self.replay(index);
        let server_date = self.tick();
        let form_id = cause.0.map(|form| Arc::clone(&self.world.forms[form as usize].id));
        let rebuilt =
            Transaction { form: cause.0, form_id, server_date, client_date: None, bits: cause.1, revoked: false };
        let case = &mut self.world.cases[index as usize];
        case.presence = if replayed { Presence::Live } else { Presence::Emptied };
        case.server_modified_on = server_date;
        case.changed = self.turn;
        let number = note(&mut case.transactions, rebuilt);
        if !changed.contains(&number) {
            changed.push(number);
        }
        // Rows that survive keep their place in the database.
        let place =
            |identifier: &str| held_links.iter().position(|held| held.identifier == identifier).unwrap_or(usize::MAX);
        case.links.sort_by_key(|link| place(link.identifier));
        let case = &self.world.cases[index as usize];
        for gone in held_links.iter().filter(|held| !case.links.iter().any(|link| link.identifier == held.identifier)) {
            let cells = [("case_id", &*case.id), ("identifier", gone.identifier)];
            self.mutations.push(rows::remove(Table::CaseIndex, cells));
        }
        self.put_case(index);
        self.put_links(index);
        for number in changed {
            self.put_transaction(index, number);
        }
        self.announce_case(index, None);
    }

    /// Revokes the transactions of forms that do not count (any more); returns those that changed.
    fn review_transactions(&mut self, index: u32) -> Vec<usize> {
        let mut changed = Vec::new();
        let transactions = &mut self.world.cases[index as usize].transactions;
        for (number, transaction) in transactions.iter_mut().enumerate().filter(|(_, held)| held.bits & 1 == 1) {
            let Some(form) = transaction.form.map(|form| &self.world.forms[form as usize]) else { continue };
            let revoked = !(form.state == 1 && form.presence.is_live());
            let server_date = form.edited_on.unwrap_or(form.received_on);
            if transaction.revoked != revoked || transaction.server_date < server_date {
                transaction.revoked = revoked;
                transaction.server_date = transaction.server_date.max(server_date);
                changed.push(number);
            }
        }
        changed
    }

    /// Resets a case and applies the forms that count; whether there were any.
    fn replay(&mut self, index: u32) -> bool {
        let mut forms: Vec<(i64, u32)> = self.world.cases[index as usize]
            .transactions
            .iter()
            .filter(|transaction| transaction.bits & 1 == 1 && !transaction.revoked)
            .filter_map(|transaction| Some((transaction.server_date, transaction.form?)))
            .collect();
        forms.sort_unstable();
        case_blocks::reset(&mut self.world.cases[index as usize]);
        for (_, form) in &forms {
            let form = &self.world.forms[*form as usize];
            let filled = fill_in(&self.world, &self.world.domains[form.domain], &form.submission);
            for block in filled.blocks.iter().filter(|block| block.case == index) {
                block.apply(&mut self.world.cases[index as usize]);
            }
        }
        !forms.is_empty()
    }

    /// HQ's case about a worker.
    pub(crate) fn user_case(&mut self, domain: usize, person: u32) {
        let case = self.new_case(domain);
        let role = crate::world::Role::Create { case_type: crate::questionnaire::USER_CASE.into(), parent: None };
        let mut submission = self.submission(domain, crate::world::Purpose::System, vec![(case, role)]);
        submission.sender = Sender::Named("system");
        submission.owner = Arc::clone(&self.world.people[person as usize].id);
        self.submit(domain, submission, 1, Health::Fine);
    }
}

/// Adds a transaction, or replaces the one of the same form and kind; returns its number.
fn note(transactions: &mut Vec<Transaction>, new: Transaction) -> usize {
    let same = |held: &Transaction| held.form_id == new.form_id && held.bits == new.bits;
    match transactions.iter().position(same) {
        Some(number) => {
            transactions[number] = new;
            number
        }
        None => {
            transactions.push(new);
            transactions.len() - 1
        }
    }
}
