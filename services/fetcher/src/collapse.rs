//! Many change messages into what has to be read: one entry per id, in however many messages it was named. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lake_hq::change_meta::ChangeMeta;
use lake_proto::queue::v1::{Lineage, Quarantined};
use lake_shared::identity::{DocumentType, Kind};

use crate::allow_list::TakeConfig;
use crate::change_feed::FeedMessage;

/// Topics of users: they only make caches forget.
pub const USER_TOPICS: [&str; 2] = ["commcare-user", "web-user"];

/// What the messages say of one id. The record decides what that means.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Project space, where the message names one.
    pub domain: Option<String>,
    /// Whether a message spoke of a deletion: then a replica is not asked, it might still have the row.
    pub deletion: bool,
    /// The latest message.
    pub lineage: Lineage,
}

/// What a batch of messages asks for.
#[derive(Debug, Default)]
pub struct Work {
    /// Ids to read, by kind.
    pub changes: BTreeMap<Kind, HashMap<String, Change>>,
    /// Users that changed, by domain (empty where the message names none).
    pub users: BTreeMap<String, BTreeSet<String>>,
    /// Messages that cannot be understood.
    pub quarantined: Vec<Quarantined>,
    /// Messages left out: reason and count.
    pub skipped: BTreeMap<&'static str, u64>,
}

/// Sorts a batch of messages.
pub fn collapse(messages: &[FeedMessage], take: &TakeConfig, now_us: i64) -> Work {
    let mut work = Work::default();
    for message in messages {
        let payload = message.payload.as_deref().unwrap_or_default();
        let lineage = Lineage {
            topic: message.position.topic.to_string(),
            partition: message.position.partition,
            offset: message.position.offset,
            ..Lineage::default()
        };
        match ChangeMeta::parse(payload) {
            Ok(meta) => work.add(&message.position.topic, meta, lineage, take),
            Err(error) => work.quarantined.push(Quarantined {
                reason: error.code().into(),
                detail: format!("message at {}[{}]@{}: {error}", lineage.topic, lineage.partition, lineage.offset),
                kind: Kind::of_topic(&lineage.topic).map_or(0, |kind| kind.to_proto().into()),
                payload: bytes::Bytes::copy_from_slice(payload),
                lineage: Some(lineage),
                quarantined_us: now_us,
                ..Quarantined::default()
            }),
        }
    }
    work
}

impl Work {
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
        let Some(kind) = Kind::of_topic(topic) else { return self.skip("topic") };
        // The xmlns of a form never changes (HQ gives such a submission a new id), so the message can be trusted on it.
        // A case's type can change, and its row must then leave the table that it is in: the record has to be asked.
        let xmlns = meta.document_subtype.as_deref().filter(|_| kind == Kind::Form);
        if xmlns.is_some_and(|xmlns| !take.document_type(kind, &DocumentType::of_form(xmlns))) {
            return self.skip("form_xmlns");
        }
        let change = Change { domain: meta.domain, deletion: meta.is_deletion, lineage };
        self.changes
            .entry(kind)
            .or_default()
            .entry(meta.document_id)
            .and_modify(|known| known.merge(&change))
            .or_insert(change);
    }

    fn skip(&mut self, reason: &'static str) {
        *self.skipped.entry(reason).or_default() += 1;
    }
}

impl Change {
    fn merge(&mut self, other: &Self) {
        self.deletion |= other.deletion;
        if self.domain.is_none() {
            self.domain.clone_from(&other.domain);
        }
        if (other.lineage.published_us, other.lineage.offset) >= (self.lineage.published_us, self.lineage.offset) {
            self.lineage = other.lineage.clone();
        }
    }
}
