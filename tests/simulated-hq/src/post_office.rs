//! What HQ writes down and says about one thing: rows and announcements of cases, forms, places and people.

use std::sync::Arc;

use crate::announcement::Announcement;
use crate::life::Life;
use crate::rows;
use crate::turn::Mutation;
use crate::world::Presence;

impl Life {
    fn announce(
        &mut self,
        topic: &'static str,
        document_id: Arc<str>,
        document_type: &'static str,
        domain: usize,
    ) -> &mut Announcement {
        let published = self.clock + 200;
        let at = self.announced.len();
        self.announced.push(Announcement {
            topic,
            document_id,
            document_type,
            subtype: None,
            domain: Arc::clone(&self.world.domains[domain].name),
            is_deletion: false,
            associated: None,
            revision: None,
            published,
        });
        &mut self.announced[at]
    }

    /// Announces that a case was saved.
    pub(crate) fn announce_case(&mut self, index: u32, associated: Option<Arc<str>>) {
        let case = &self.world.cases[index as usize];
        let (id, domain, deleted) = (Arc::clone(&case.id), case.domain, case.presence != Presence::Live);
        let subtype = Some(case.case_type.to_string());
        let announcement = self.announce("case-sql", id, "CommCareCase", domain);
        announcement.subtype = subtype;
        announcement.is_deletion = deleted;
        announcement.associated = associated;
    }

    /// Announces that a case was deleted.
    pub(crate) fn announce_case_deleted(&mut self, index: u32) {
        let case = &self.world.cases[index as usize];
        let (id, domain) = (Arc::clone(&case.id), case.domain);
        self.announce("case-sql", id, "CommCareCase-Deleted", domain).is_deletion = true;
    }

    /// Announces that a form was saved.
    pub(crate) fn announce_form(&mut self, index: u32) {
        let form = &self.world.forms[index as usize];
        let deleted = matches!(form.presence, Presence::SoftDeleted { .. });
        let doc_type = match form.state {
            _ if deleted => "XFormInstance-Deleted",
            2 => "XFormArchived",
            4 => "XFormDeprecated",
            8 => "XFormDuplicate",
            16 => "XFormError",
            32 => "SubmissionErrorLog",
            _ => "XFormInstance",
        };
        let xmlns = rows::form_xmlns(&self.world.domains[form.domain], form).to_owned();
        let (id, domain) = (Arc::clone(&form.id), form.domain);
        let announcement = self.announce("form-sql", id, doc_type, domain);
        announcement.subtype = Some(xmlns);
        announcement.is_deletion = deleted;
    }

    /// Announces that a form was deleted.
    pub(crate) fn announce_form_deleted(&mut self, index: u32) {
        let form = &self.world.forms[index as usize];
        let (id, domain) = (Arc::clone(&form.id), form.domain);
        self.announce("form-sql", id, "XFormInstance-Deleted", domain).is_deletion = true;
    }

    /// Location saved or deleted.
    pub(crate) fn announce_place(&mut self, index: u32, deleted: bool) {
        let place = &self.world.places[index as usize];
        let (id, domain) = (Arc::clone(&place.location_id), place.domain);
        self.announce("location", id, "Location", domain).is_deletion = deleted;
    }

    /// Announces that a user was saved.
    pub(crate) fn announce_person(&mut self, index: u32) {
        let person = &self.world.people[index as usize];
        let (id, domain, revision) = (Arc::clone(&person.id), person.domain, person.revision);
        let (topic, doc_type) = if person.web { ("web-user", "WebUser") } else { ("commcare-user", "CommCareUser") };
        self.announce(topic, id, doc_type, domain).revision = Some(format!("{revision}-0c6c5e"));
    }

    pub(crate) fn put_place(&mut self, index: u32) {
        let place = &self.world.places[index as usize];
        let mutation = rows::place(&self.world, &self.world.domains[place.domain], place);
        self.mutations.push(mutation);
    }

    pub(crate) fn put_person(&mut self, index: u32) {
        let mutation = rows::person(&self.world, &self.world.people[index as usize]);
        self.mutations.push(mutation);
    }

    pub(crate) fn put_case(&mut self, index: u32) {
        let case = &self.world.cases[index as usize];
        let mutation = rows::case(&self.world.domains[case.domain], case);
        self.mutations.push(mutation);
    }

    /// All links in the database's order: a store that replaces rows keeps the order, too.
    pub(crate) fn put_links(&mut self, index: u32) {
        let case = &self.world.cases[index as usize];
        let domain = &self.world.domains[case.domain];
        self.mutations.extend(case.links.iter().map(|link| rows::case_index(domain, case, link)));
    }

    pub(crate) fn put_transaction(&mut self, index: u32, number: usize) {
        let case = &self.world.cases[index as usize];
        self.mutations.push(rows::case_transaction(case, &case.transactions[number]));
    }

    pub(crate) fn put_form(&mut self, index: u32) {
        let form = &self.world.forms[index as usize];
        let mutation = rows::form(&self.world, &self.world.domains[form.domain], form);
        self.mutations.push(mutation);
    }

    /// Writes down the form's latest operation.
    pub(crate) fn put_operation(&mut self, index: u32) {
        let form = &self.world.forms[index as usize];
        self.mutations.extend(form.history.last().map(|operation| rows::form_operation(form, operation)));
    }

    pub(crate) fn put_blob_meta(&mut self, index: u32) {
        let form = &self.world.forms[index as usize];
        let mutation = rows::blob_meta(&self.world.domains[form.domain], form);
        self.mutations.extend(mutation);
    }

    pub(crate) fn put_blob(&mut self, index: u32, content: Vec<u8>) {
        let form = &self.world.forms[index as usize];
        let mutation = Mutation::PutBlob { key: form.blob.0.clone(), content, gzip: rows::is_compressed(form) };
        self.mutations.push(mutation);
    }
}
