//! What HQ says on Kafka (reference §1), and what the network makes of it: copies, delays, another order, old notations.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::dice::Dice;
use crate::moment;
use crate::turn::ChangeMessage;

/// Longest time that a message is held back, in turns. Messages about users and locations are never held back.
pub const LATE_TURNS_MAX: u64 = 40;

/// One thing that HQ publishes.
#[derive(Clone, Debug)]
pub struct Announcement {
    /// Kafka topic.
    pub topic: &'static str,
    /// Id of the changed document or row.
    pub document_id: Arc<str>,
    /// Type as HQ says it.
    pub document_type: &'static str,
    /// Case type or xmlns.
    pub subtype: Option<String>,
    /// Name of its project space.
    pub domain: Arc<str>,
    /// Whether HQ calls it a deletion.
    pub is_deletion: bool,
    /// Form that changed the case.
    pub associated: Option<Arc<str>>,
    /// CouchDB revision of the document, where it is in CouchDB.
    pub revision: Option<String>,
    /// When HQ published it, in microseconds since 1970.
    pub published: i64,
}

/// Ways in which HQ versions write a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Notation {
    /// As of now.
    Current,
    /// Without the fields that came last.
    Old,
    /// Without type and subtype.
    Typeless,
    /// With fields that HQ does not have today, as a later version might.
    Wordy,
    /// Sent again after failures.
    Retried,
}

impl Announcement {
    fn encode(&self, notation: Notation) -> Vec<u8> {
        let (source, name) = match self.topic {
            "commcare-user" | "web-user" => ("couch", "commcarehq__users"),
            topic => ("sql", topic),
        };
        let published = moment::text(self.published);
        let text = |value: &str| Value::String(value.to_owned());
        let mut members = Map::with_capacity(14);
        let mut add = |key: &str, value: Value| members.insert(key.to_owned(), value);
        add("document_id", text(&self.document_id));
        add("document_rev", json!(self.revision));
        add("data_source_type", text(source));
        add("data_source_name", text(name));
        if notation != Notation::Typeless {
            add("document_type", text(self.document_type));
            add("document_subtype", json!(self.subtype));
        }
        add("domain", text(&self.domain));
        add("is_deletion", Value::Bool(self.is_deletion));
        if notation != Notation::Old {
            let attempts = if notation == Notation::Retried { 3 } else { 0 };
            add("publish_timestamp", text(&published));
            add("attempts", json!(attempts));
            let first = moment::text(self.published - attempts * moment::MINUTE);
            add("original_publication_datetime", text(&first));
            add("associated_document_id", self.associated.as_ref().map_or(Value::Null, |id| text(id)));
        }
        if notation == Notation::Wordy {
            add("backend_id", text("sql"));
            add("version", json!({"of": ["nobody", 2]}));
        }
        Value::Object(members).to_string().into_bytes()
    }

    fn message(&self, mischief: bool, dice: &mut Dice) -> ChangeMessage {
        let notation = match dice.below(if mischief { 100 } else { 1 }) {
            1..=4 => Notation::Old,
            5..=7 => Notation::Typeless,
            8..=9 => Notation::Wordy,
            10..=11 => Notation::Retried,
            _ => Notation::Current,
        };
        let keyless = mischief && dice.chance(30);
        let key = (!keyless).then(|| self.document_id.to_string());
        ChangeMessage { topic: self.topic, key, value: self.encode(notation) }
    }
}

/// Messages on their way.
#[derive(Debug, Default)]
pub struct Network {
    held: BTreeMap<u64, Vec<ChangeMessage>>,
}

impl Network {
    /// What arrives in this turn: of what is announced now, and of what was held back earlier.
    pub fn deliver(
        &mut self,
        announced: &[Announcement],
        turn: u64,
        mischief: bool,
        dice: &mut Dice,
    ) -> Vec<ChangeMessage> {
        let mut delivered = Vec::with_capacity(announced.len() + 2);
        for announcement in announced {
            let message = announcement.message(mischief, dice);
            if !mischief {
                delivered.push(message);
                continue;
            }
            let may_be_late = matches!(announcement.topic, "case-sql" | "form-sql");
            let later = turn + 1 + dice.below(LATE_TURNS_MAX);
            match dice.below(100) {
                0..=2 => delivered.extend([message.clone(), message]),
                3..=4 => {
                    self.held.entry(later).or_default().push(message.clone());
                    delivered.push(message);
                }
                5..=9 if may_be_late => self.held.entry(later).or_default().push(message),
                _ => delivered.push(message),
            }
        }
        if mischief && dice.chance(100) {
            dice.shuffle(&mut delivered);
        }
        while let Some(due) = self.held.first_entry().filter(|first| *first.key() <= turn) {
            delivered.extend(due.remove());
        }
        delivered
    }

    /// All that was held back.
    pub fn release(&mut self) -> Vec<ChangeMessage> {
        std::mem::take(&mut self.held).into_values().flatten().collect()
    }
}
