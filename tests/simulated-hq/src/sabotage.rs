//! What should never happen: messages that are none, forms that cannot be read, names made to break things.

use crate::element::Name;
use crate::life::Life;
use crate::turn::ChangeMessage;
use crate::vocabulary::HOSTILE_NAMES;
use crate::world::{Health, Purpose, Role};

/// Values that are no ChangeMeta.
const MALFORMED: &[&str] = &[
    "",
    "not json",
    "[]",
    "null",
    "{}",
    "{\"document_id\": null}",
    "{\"document_id\": 17, \"data_source_type\": \"sql\", \"data_source_name\": \"case-sql\", \"domain\": \"demo-space\"}",
    "{\"document_id\": \"\", \"domain\": \"\"}",
    "{\"document_id\": \"half",
    "{\"document_id\": {\"$ne\": 1}, \"domain\": \"demo-space\", \"is_deletion\": \"maybe\"}",
    "{\"document_id\": \"x\", \"domain\": \"demo-space\", \"is_deletion\": \"false\", \"publish_timestamp\": \"yesterday\", \"attempts\": -1.5}",
];

/// Ids that no row has; one of them holds a character that Postgres cannot take as text.
const NOBODY: &[&str] = &["nobody", "", "'; drop table lake; --", "nul\\u0000inside", "é", "\\ud83d\\ude42", " "];

impl Life {
    fn forge(&mut self, value: Vec<u8>) {
        let topic = *self.dice.pick(&["case-sql", "form-sql", "location", "commcare-user"]);
        let key = self.dice.chance(500).then(|| "forged".to_owned());
        self.forged.push(ChangeMessage { topic, key, value });
    }

    pub(crate) fn malformed_message(&mut self, _domain: usize) {
        let value = match self.dice.below(8) {
            0 => vec![0xff, 0xfe, 0x00, 0x80],
            1 => "x".repeat(200_000).into_bytes(),
            2 => format!("{}{}", "[".repeat(5_000), "]".repeat(5_000)).into_bytes(),
            _ => self.dice.pick(MALFORMED).as_bytes().to_vec(),
        };
        self.forge(value);
    }

    /// A well-formed message about an id that does not exist, or with the wrong domain.
    pub(crate) fn message_about_nothing(&mut self, domain: usize) {
        let case = self.find_case(domain, |_| true);
        let name = match self.dice.below(3) {
            0 => "\"of-nobody\"".to_owned(),
            1 => "null".to_owned(),
            _ => serde_json::Value::String(self.world.domains[domain].name.to_string()).to_string(),
        };
        let id = match case {
            Some(case) if self.dice.chance(300) => {
                serde_json::Value::String(self.world.cases[case as usize].id.to_string()).to_string()
            }
            _ => format!("\"{}\"", self.dice.pick(NOBODY)),
        };
        let value = format!(
            "{{\"document_id\": {id}, \"document_rev\": null, \"data_source_type\": \"sql\", \"data_source_name\": \"case-sql\", \
             \"document_type\": \"CommCareCase\", \"document_subtype\": \"person\", \"domain\": {name}, \"is_deletion\": true}}"
        );
        self.forge(value.into_bytes());
    }

    /// A form in order but for its XML.
    pub(crate) fn unreadable_form(&mut self, domain: usize) {
        let health = *self.dice.pick(&[Health::Broken, Health::Raises, Health::BlobMissing, Health::ReferenceMissing]);
        let submission = self.submission(domain, Purpose::Survey, Vec::new());
        self.submit(domain, submission, 1, health);
    }

    /// A case of a hostile type.
    pub(crate) fn hostile_case(&mut self, domain: usize) {
        let case_type = match self.dice.below(6) {
            0 => Name::Owned("t".repeat(255)),
            1 => Name::Owned("घ".repeat(80)),
            _ => Name::Borrowed(*self.dice.pick(HOSTILE_NAMES)),
        };
        let case = self.new_case(domain);
        let submission =
            self.submission(domain, Purpose::System, vec![(case, Role::Create { case_type, parent: None })]);
        self.submit(domain, submission, 1, Health::Fine);
        self.odd_property(domain);
    }

    /// A form with a hostile xmlns.
    pub(crate) fn hostile_form(&mut self, domain: usize) {
        let mut submission = self.submission(domain, Purpose::Survey, Vec::new());
        let hostile = self.world.domains[domain].designs.len() - 10;
        submission.design = 10 + self.dice.below(hostile as u64) as usize;
        self.submit(domain, submission, 1, Health::Fine);
    }
}
