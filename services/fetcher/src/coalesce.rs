//! Coalesces change messages: one change per id, in however many messages the id was named. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use lake_hq::change_meta::ChangeMeta;
use lake_proto::queue::v1::Lineage;
use lake_shared::identity::{DocumentType, Kind};
use lake_shared::quarantine::{DocumentIdentity, QuarantineEntry, Stage};

use crate::allow_list::TakeConfig;
use crate::change_feed::FeedMessage;

/// Topics of users. Their messages publish no records: the enrichers' caches are told to look the users up again.
pub const USER_TOPICS: [&str; 2] = ["commcare-user", "web-user"];

/// Topic of ledger values. Each belongs to a case, whose document holds it where `hq.database.ledger_values` is set.
pub const LEDGER_TOPIC: &str = "ledger";

/// Who asks for an id to be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// HQ, by messages of its feed.
    #[default]
    Feed,
    /// The lake itself.
    Lake {
        /// Whether the lake may have a row of it.
        in_lake: bool,
    },
}

/// What the messages say of one id. The record that is read decides what that means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Project space, where the message names one.
    pub domain: Option<String>,
    /// Project spaces that other messages of the same id name; by error, as an id belongs to one.
    pub other_domains: Vec<String>,
    /// Whether a message spoke of a deletion: then a replica is not asked, it might still have the row.
    pub deletion: bool,
    /// Position of the latest message: by time of publication, then by offset.
    pub lineage: Lineage,
    /// Who asks.
    pub origin: Origin,
}

/// What a batch of messages asks for, each id once.
#[derive(Debug, Default)]
pub struct CoalescedChanges {
    /// Ids to read, by kind.
    pub changes: BTreeMap<Kind, HashMap<String, Change>>,
    /// Users that changed, by domain (empty where the message names none).
    pub users: BTreeMap<String, BTreeSet<String>>,
    /// Messages that cannot be parsed; those of one topic with the same bytes once.
    pub quarantined: Vec<QuarantineEntry>,
    /// Number of messages that were left out, by reason (`no_value`, `repeated_malformed`, `domain`, `topic`, `form_xmlns`).
    pub skipped: BTreeMap<&'static str, u64>,
}

/// Parses a batch of messages, leaves out those that are not taken, and merges those of one id.
pub fn coalesce(messages: &[FeedMessage], take: &TakeConfig) -> CoalescedChanges {
    let mut coalesced = CoalescedChanges::default();
    let mut malformed: HashSet<(&str, &[u8])> = HashSet::new();
    for message in messages {
        // HQ publishes none without a value. Tools that delete from a compacted topic do, perhaps for each key that there ever was.
        let Some(payload) = message.payload.as_deref().filter(|payload| !payload.is_empty()) else {
            coalesced.skip("no_value");
            continue;
        };
        let lineage = Lineage {
            topic: message.position.topic.to_string(),
            partition: message.position.partition,
            offset: message.position.offset,
            ..Lineage::default()
        };
        match ChangeMeta::parse(payload) {
            Ok(meta) => coalesced.add(&message.position.topic, meta, lineage, take),
            Err(_) if !malformed.insert((&message.position.topic, payload)) => coalesced.skip("repeated_malformed"),
            Err(error) => {
                let detail = format!("message at {}[{}]@{}: {error}", lineage.topic, lineage.partition, lineage.offset);
                let kind = Kind::of_topic(&lineage.topic);
                let entry = QuarantineEntry::new(Stage::Fetcher, error.reason(), detail)
                    .document(DocumentIdentity { kind, ..DocumentIdentity::default() })
                    .payload(bytes::Bytes::copy_from_slice(payload))
                    .lineage(Some(lineage));
                coalesced.quarantined.push(entry);
            }
        }
    }
    coalesced
}

impl CoalescedChanges {
    fn add(&mut self, topic: &str, meta: ChangeMeta, mut lineage: Lineage, take: &TakeConfig) {
        lineage.published_us = meta.published_at_us.unwrap_or_default();
        let domain = meta.domain.as_deref();
        if domain.is_some_and(|domain| !take.domain(domain)) {
            return self.skip("domain");
        }
        if USER_TOPICS.contains(&topic) {
            self.users.entry(meta.domain.unwrap_or_default()).or_default().insert(meta.document_id);
            return;
        }
        let Some((kind, document_id)) = subject_of(topic, meta.document_id) else { return self.skip("topic") };
        // The xmlns of a form never changes (HQ gives such a submission a new id), so the message can be trusted on it.
        // A case's type can change, and its row must then leave the table that it is in: the record has to be asked.
        let xmlns = match kind {
            Kind::Form => meta.document_subtype.as_deref(),
            Kind::Case | Kind::Location => None,
        };
        if xmlns.is_some_and(|xmlns| !take.document_type(kind, &DocumentType::of_form(xmlns))) {
            return self.skip("form_xmlns");
        }
        // A ledger value that is gone says nothing about its case.
        let deletion = meta.is_deletion && topic != LEDGER_TOPIC;
        let change = Change { domain: meta.domain, deletion, lineage, ..Change::default() };
        self.changes
            .entry(kind)
            .or_default()
            .entry(document_id)
            .and_modify(|known| known.merge(&change))
            .or_insert(change);
    }

    fn skip(&mut self, reason: &'static str) {
        *self.skipped.entry(reason).or_default() += 1;
    }
}

/// Kind and id of the record that a message of this topic is about; `None` where the topic is not one of records.
fn subject_of(topic: &str, document_id: String) -> Option<(Kind, String)> {
    if topic != LEDGER_TOPIC {
        return Kind::of_topic(topic).map(|kind| (kind, document_id));
    }
    // case/section/entry; an id of a case may hold anything.
    let case_id = document_id.rsplitn(3, '/').nth(2).filter(|id| !id.is_empty())?;
    Some((Kind::Case, case_id.to_owned()))
}

impl Change {
    /// Adds another project space that the id may belong to.
    pub fn add_domain(&mut self, domain: Option<&str>) {
        if let Some(domain) = domain.filter(|domain| !self.domains().any(|known| known == *domain)) {
            self.other_domains.push(domain.to_owned());
        }
    }

    /// What the lake itself asks for. It is read from the primary, as no message says how new a replica would have to be.
    pub fn of_lake(domain: &str, in_lake: bool) -> Self {
        Self { domain: Some(domain.to_owned()), deletion: true, origin: Origin::Lake { in_lake }, ..Self::default() }
    }

    /// Whether the id may be in the lake, so that a tombstone has a meaning. HQ tells only of what it has or had.
    pub fn may_be_in_lake(&self) -> bool {
        self.origin != Origin::Lake { in_lake: false }
    }

    /// All project spaces that messages of this id name.
    pub fn domains(&self) -> impl Iterator<Item = &str> {
        self.domain.iter().chain(&self.other_domains).map(String::as_str)
    }

    fn merge(&mut self, other: &Self) {
        self.deletion |= other.deletion;
        match (&self.domain, &other.domain) {
            (None, _) => self.domain.clone_from(&other.domain),
            (Some(one), Some(another)) if one != another && !self.other_domains.contains(another) => {
                self.other_domains.push(another.clone());
            }
            _ => {}
        }
        if (other.lineage.published_us, other.lineage.offset) >= (self.lineage.published_us, self.lineage.offset) {
            self.lineage = other.lineage.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::{Value, json};

    use super::*;
    use crate::allow_list::AllowList;
    use crate::change_feed::Position;

    fn message(topic: &str, offset: i64, value: &Value) -> FeedMessage {
        let position = Position { topic: topic.into(), partition: 0, offset, generation: 1 };
        FeedMessage { position, payload: Some(value.to_string().into()) }
    }

    fn changes(messages: &[FeedMessage], take: &TakeConfig) -> CoalescedChanges {
        coalesce(messages, take)
    }

    #[test]
    fn duplicates_of_an_id_coalesce_and_a_deletion_is_remembered() {
        let messages = [
            message("case-sql", 1, &json!({"document_id": "c", "domain": "d", "is_deletion": true, "unknown": [1]})),
            message("case-sql", 2, &json!({"document_id": "c", "domain": "d", "document_subtype": "person"})),
            message("case-sql", 3, &json!({"document_id": "e", "domain": "d"})),
        ];
        let coalesced = changes(&messages, &TakeConfig::EVERYTHING);
        let cases = &coalesced.changes[&Kind::Case];
        assert_eq!(cases.len(), 2);
        assert!(cases["c"].deletion);
        assert_eq!(cases["c"].domains().collect::<Vec<_>>(), ["d"]);
        assert_eq!(cases["c"].lineage.offset, 2);
        assert!(coalesced.quarantined.is_empty());
    }

    #[test]
    fn messages_that_do_not_agree_on_the_domain_are_all_remembered() {
        let messages = [
            message("case-sql", 1, &json!({"document_id": "c"})),
            message("case-sql", 2, &json!({"document_id": "c", "domain": "d"})),
            message("case-sql", 3, &json!({"document_id": "c", "domain": "e", "is_deletion": true})),
            message("case-sql", 4, &json!({"document_id": "c", "domain": "e"})),
            message("case-sql", 5, &json!({"document_id": "c", "domain": "d"})),
        ];
        let coalesced = changes(&messages, &TakeConfig::EVERYTHING);
        assert_eq!(coalesced.changes[&Kind::Case]["c"].domains().collect::<Vec<_>>(), ["d", "e"]);
    }

    fn raw(topic: &str, offset: i64, payload: Option<&'static str>) -> FeedMessage {
        let position = Position { topic: topic.into(), partition: 3, offset, generation: 1 };
        FeedMessage { position, payload: payload.map(Into::into) }
    }

    #[test]
    fn what_cannot_be_parsed_is_quarantined_with_its_payload() {
        let messages = [raw("form-sql", 9, Some("{")), message("form-sql", 1, &json!([]))];
        let coalesced = changes(&messages, &TakeConfig::EVERYTHING);
        assert_eq!(coalesced.quarantined.len(), 2);
        assert_eq!(&coalesced.quarantined[0].payload[..], b"{");
        assert!(coalesced.quarantined[0].detail.contains("form-sql[3]@9"));
        assert!(coalesced.changes.is_empty());
    }

    #[test]
    fn messages_without_a_value_are_counted_and_quarantine_nothing() {
        let messages = [
            raw("case-sql", 1, None),
            raw("location", 2, Some("")),
            raw("commcare-user", 3, None),
            raw("form-sql", 4, Some("{}")),
            message("case-sql", 5, &json!({"document_id": "c", "domain": "d"})),
        ];
        let coalesced = changes(&messages, &TakeConfig::EVERYTHING);
        assert_eq!(coalesced.skipped, BTreeMap::from([("no_value", 3)]));
        assert_eq!(coalesced.quarantined.len(), 1);
        assert!(coalesced.users.is_empty());
        assert!(coalesced.changes[&Kind::Case].contains_key("c"), "the others go on");
    }

    #[test]
    fn a_flood_of_one_malformed_message_is_one_entry_of_a_batch() {
        let mut messages: Vec<_> = (0..1_000).map(|offset| raw("form-sql", offset, Some("{}"))).collect();
        messages.push(raw("case-sql", 7, Some("{}")));
        let coalesced = changes(&messages, &TakeConfig::EVERYTHING);
        assert_eq!(coalesced.quarantined.len(), 2, "one for each topic");
        assert!(coalesced.quarantined[0].detail.contains("form-sql[3]@0"));
        assert_eq!(coalesced.skipped, BTreeMap::from([("repeated_malformed", 999)]));
    }

    #[test]
    fn allow_lists_leave_out_domains_and_forms_but_never_a_case_by_its_type() {
        let only = |names: &[&str]| AllowList::Only(names.iter().map(|&name| name.to_owned()).collect());
        let take = TakeConfig { domains: only(&["d"]), case_types: only(&["person"]), form_xmlns: only(&["X"]) };
        let messages = [
            message("case-sql", 1, &json!({"document_id": "1", "domain": "other"})),
            message("case-sql", 2, &json!({"document_id": "2", "domain": "d", "document_subtype": "household"})),
            message("form-sql", 3, &json!({"document_id": "3", "domain": "d", "document_subtype": "Y"})),
            message("form-sql", 4, &json!({"document_id": "4", "domain": "d"})),
            message("ledger", 5, &json!({"document_id": "5", "domain": "d"})),
        ];
        let coalesced = changes(&messages, &take);
        assert!(coalesced.changes[&Kind::Case].contains_key("2"), "its row may have to leave a table that is taken");
        assert_eq!(coalesced.changes[&Kind::Form].keys().collect::<Vec<_>>(), ["4"]);
        assert_eq!(coalesced.skipped, BTreeMap::from([("domain", 1), ("form_xmlns", 1), ("topic", 1)]));
    }

    #[test]
    fn a_ledger_value_is_a_change_of_its_case() {
        let messages = [
            message("ledger", 1, &json!({"document_id": "c/1/stock/p1", "domain": "d", "is_deletion": true})),
            message("ledger", 2, &json!({"document_id": "c/1/stock/p2", "domain": "d"})),
            message("ledger", 3, &json!({"document_id": "stock/p2", "domain": "d"})),
        ];
        let coalesced = changes(&messages, &TakeConfig::EVERYTHING);
        let cases = &coalesced.changes[&Kind::Case];
        assert_eq!((cases.len(), cases["c/1"].deletion, cases["c/1"].lineage.offset), (1, false, 2));
        assert_eq!(coalesced.skipped, BTreeMap::from([("topic", 1)]));
    }

    #[test]
    fn user_messages_only_make_caches_forget() {
        let messages = [
            message("commcare-user", 1, &json!({"document_id": "u", "domain": "d"})),
            message("web-user", 2, &json!({"document_id": "w"})),
        ];
        let coalesced = changes(&messages, &TakeConfig::EVERYTHING);
        assert!(coalesced.changes.is_empty());
        assert!(coalesced.users["d"].contains("u") && coalesced.users[""].contains("w"));
    }
}
