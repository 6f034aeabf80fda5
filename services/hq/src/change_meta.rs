//! The small JSON messages of HQ's change feed: something happened to an id.
//!
//! A message never carries the record and never decides anything ([`crate::document_rules`] does): only the id is needed, so
//! everything else is read tolerantly. Unknown keys are ignored, missing ones and ones of an unexpected type are defaulted.

use lake_shared::identity::Kind;
use lake_shared::quarantine::Reason;
use serde_json::{Map, Value};

use crate::timestamp;

/// One message of the change feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChangeMeta {
    /// Case id, form id, location id, or `_id` of a CouchDB document; never empty, never normalised.
    pub document_id: String,
    /// CouchDB's revision; `None` for SQL records.
    pub document_rev: Option<String>,
    /// `sql` or `couch`; before 2019 also `case-sql` and `form-sql`.
    pub data_source_type: Option<String>,
    /// `case-sql`, `form-sql`, `location`, a CouchDB database, …
    pub data_source_name: Option<String>,
    /// The record's doc_type when the message was made.
    pub document_type: Option<String>,
    /// Case type or xmlns; `None` in delete messages.
    pub document_subtype: Option<String>,
    /// Project space; a hint, the row has the truth.
    pub domain: Option<String>,
    /// Whether the publisher took the change for a deletion; a hint, the row decides.
    pub is_deletion: bool,
    /// When this message was made, UTC microseconds.
    pub published_at_us: Option<i64>,
    /// Failed attempts of HQ's own consumers before this re-publication.
    pub attempts: u64,
    /// When the change was first published, UTC microseconds; the same as `published_at_us` where the message does not say.
    pub first_published_at_us: Option<i64>,
    /// For cases: the form that caused the change.
    pub associated_document_id: Option<String>,
}

/// Why a message cannot be used. It will never be readable: quarantine it.
#[derive(Debug, thiserror::Error)]
pub enum ChangeMetaError {
    /// Not JSON, or not UTF-8.
    #[error("change message is not JSON; look at the producer of the topic")]
    MalformedJson(#[source] serde_json::Error),
    /// JSON, but a list, a text, a number.
    #[error("change message is JSON but not an object; look at the producer of the topic")]
    NotAnObject,
    /// No `document_id`, or one that is neither a non-empty text nor a number.
    #[error("change message has no document_id; look at the producer of the topic")]
    MissingDocumentId,
}

impl ChangeMetaError {
    /// Why the message goes to quarantine.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::MalformedJson(_) => Reason::ChangeMalformedJson,
            Self::NotAnObject => Reason::ChangeNotAnObject,
            Self::MissingDocumentId => Reason::ChangeMissingDocumentId,
        }
    }
}

impl ChangeMeta {
    /// Parses the value of a Kafka message.
    ///
    /// # Errors
    /// Where it is not a JSON object with a `document_id`.
    pub fn parse(bytes: &[u8]) -> Result<Self, ChangeMetaError> {
        let message = match serde_json::from_slice::<Value>(bytes).map_err(ChangeMetaError::MalformedJson)? {
            Value::Object(message) => message,
            _ => return Err(ChangeMetaError::NotAnObject),
        };
        let document_id = match message.get("document_id") {
            Some(Value::String(id)) if !id.is_empty() => id.clone(),
            Some(Value::Number(id)) => id.to_string(),
            _ => return Err(ChangeMetaError::MissingDocumentId),
        };
        let published_at_us = instant(&message, "publish_timestamp");
        Ok(Self {
            document_id,
            document_rev: text(&message, "document_rev"),
            data_source_type: text(&message, "data_source_type"),
            data_source_name: text(&message, "data_source_name"),
            document_type: text(&message, "document_type"),
            document_subtype: text(&message, "document_subtype"),
            domain: text(&message, "domain"),
            is_deletion: message.get("is_deletion").and_then(Value::as_bool).unwrap_or(false),
            published_at_us,
            attempts: message.get("attempts").and_then(Value::as_u64).unwrap_or(0),
            first_published_at_us: instant(&message, "original_publication_datetime").or(published_at_us),
            associated_document_id: text(&message, "associated_document_id"),
        })
    }

    /// The kind that the data source names, in its present field or in the one used before 2019; `None` for everything else that HQ
    /// publishes. The topic a message came from says the same and is always there.
    pub fn kind(&self) -> Option<Kind> {
        [&self.data_source_name, &self.data_source_type].into_iter().flatten().find_map(|source| Kind::of_topic(source))
    }
}

fn text(message: &Map<String, Value>, key: &str) -> Option<String> {
    message.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn instant(message: &Map<String, Value>, key: &str) -> Option<i64> {
    message.get(key).and_then(Value::as_str).and_then(timestamp::parse_us)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const SAVED: &str = r#"{"document_id": "6f1d2c4e8a0b4c5d9e7f001122334455", "document_rev": null,
        "data_source_type": "sql", "data_source_name": "case-sql",
        "document_type": "CommCareCase", "document_subtype": "household",
        "domain": "demo-space", "is_deletion": false,
        "publish_timestamp": "2026-01-05T10:11:12.345678Z", "attempts": 2,
        "original_publication_datetime": "2026-01-05T10:11:11.345678Z",
        "associated_document_id": "0c7b1f2a-6a55-4c1e-9d0e-3f4c5b6a7988"}"#;

    #[test]
    fn reads_every_field() {
        let change = ChangeMeta::parse(SAVED.as_bytes()).unwrap();
        assert_eq!(
            change,
            ChangeMeta {
                document_id: "6f1d2c4e8a0b4c5d9e7f001122334455".into(),
                document_rev: None,
                data_source_type: Some("sql".into()),
                data_source_name: Some("case-sql".into()),
                document_type: Some("CommCareCase".into()),
                document_subtype: Some("household".into()),
                domain: Some("demo-space".into()),
                is_deletion: false,
                published_at_us: Some(1_767_607_872_345_678),
                attempts: 2,
                first_published_at_us: Some(1_767_607_871_345_678),
                associated_document_id: Some("0c7b1f2a-6a55-4c1e-9d0e-3f4c5b6a7988".into()),
            }
        );
        assert_eq!(change.kind(), Some(Kind::Case));
    }

    #[test]
    fn missing_fields_are_defaulted_and_unknown_ones_ignored() {
        let change = ChangeMeta::parse(
            br#"{"document_id": " Odd Id ", "backend_id": "sql", "version": 3, "publish_timestamp": "2026-01-05T10:11:12Z"}"#,
        )
        .unwrap();
        assert_eq!(change.document_id, " Odd Id ");
        assert_eq!((change.attempts, change.is_deletion, change.domain.clone()), (0, false, None));
        assert_eq!(change.first_published_at_us, change.published_at_us);
        assert_eq!(change.published_at_us, Some(1_767_607_872_000_000));
        assert_eq!(change.kind(), None);
    }

    #[test]
    fn fields_of_unexpected_types_are_defaulted() {
        let change = ChangeMeta::parse(
            br#"{"document_id": "a", "document_type": 1, "is_deletion": "yes", "attempts": -1, "publish_timestamp": 5, "domain": []}"#,
        )
        .unwrap();
        assert_eq!(change, ChangeMeta { document_id: "a".into(), ..ChangeMeta::default() });
    }

    #[test]
    fn the_form_before_2019_names_the_source_in_the_type() {
        let change = ChangeMeta::parse(
            br#"{"document_id": "f", "data_source_type": "form-sql", "data_source_name": "commcarehq", "document_type": 1}"#,
        )
        .unwrap();
        assert_eq!(change.kind(), Some(Kind::Form));
        let change = ChangeMeta::parse(br#"{"document_id": 7, "data_source_name": "location"}"#).unwrap();
        assert_eq!((change.document_id.as_str(), change.kind()), ("7", Some(Kind::Location)));
    }

    #[test]
    fn unusable_messages_have_stable_codes() {
        for (bytes, code) in [
            (&b""[..], "change_malformed_json"),
            (b"{", "change_malformed_json"),
            (b"\xff\xfe", "change_malformed_json"),
            (b"{\"document_id\": \"\xff\"}", "change_malformed_json"),
            (b"null", "change_not_an_object"),
            (b"[{\"document_id\": \"a\"}]", "change_not_an_object"),
            (b"{}", "change_missing_document_id"),
            (b"{\"document_id\": null}", "change_missing_document_id"),
            (b"{\"document_id\": \"\"}", "change_missing_document_id"),
            (b"{\"document_id\": {}}", "change_missing_document_id"),
        ] {
            assert_eq!(
                ChangeMeta::parse(bytes).unwrap_err().reason().code(),
                code,
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
    }
}
