//! Which records an entry is about, so that they can be read again. Pure.
//!
//! Most entries name their record. Messages that could not be understood are read once more, as this version understands them: what was damaged stays
//! unreadable, what another version wrote may be readable now.

use lake_proto::queue::v1::change_request::What;
use lake_proto::queue::v1::{ChangeRequest, Quarantined, RecordBatch};
use lake_shared::error_chain::Chain;
use lake_shared::identity::{Kind, Space};
use lake_shared::quarantine::Reason;
use lake_shared::wire::{self, WireError};
use serde_json::Value;

use crate::ingest;
use crate::metastore::QuarantineRecord;

/// A record of HQ.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Subject {
    /// Where it belongs, or should.
    pub(crate) space: Space,
    /// Its id.
    pub(crate) id: String,
}

/// How an entry is handled again.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Way {
    /// These records are read again.
    Records(Vec<Subject>),
    /// It is a message about another entry, which can be understood now and takes its place.
    Entry(Box<Quarantined>),
}

/// Whether the entry itself says which record it is about: then its bytes are not needed.
pub(crate) fn names_its_record(record: &QuarantineRecord) -> bool {
    !record.entry.id.is_empty()
}

/// How an entry is handled again; `record` has all bytes that are kept, unless it [names its record](names_its_record). The error says for people why it
/// cannot be.
pub(crate) fn way(record: &QuarantineRecord) -> Result<Way, String> {
    let entry = &record.entry;
    if names_its_record(record) {
        return subject(&entry.domain, kind_of(entry), &entry.id).map(|subject| Way::Records(vec![subject]));
    }
    let subjects = match Reason::from_code(&entry.reason) {
        Some(Reason::ChangeMalformedJson | Reason::ChangeNotAnObject | Reason::ChangeMissingDocumentId) => {
            of_change_message(entry)
        }
        Some(Reason::ChangeRequestMalformed) => of_change_request(entry),
        Some(Reason::RecordBatchMalformed) => of_records(entry),
        Some(Reason::RowBatchMalformed) => of_rows(entry),
        Some(Reason::QuarantineEntryMalformed) => {
            return decoded(wire::decode(&entry.payload)).map(|entry| Way::Entry(Box::new(entry)));
        }
        _ => Err("it names no record; have HQ publish the records of that time again".into()),
    };
    subjects.map(|mut subjects| {
        subjects.sort_unstable();
        subjects.dedup();
        Way::Records(subjects)
    })
}

fn kind_of(entry: &Quarantined) -> Option<Kind> {
    let topic = entry.lineage.as_ref().map_or("", |lineage| lineage.topic.as_str());
    Kind::from_proto(entry.kind).or_else(|| Kind::of_topic(topic))
}

fn subject(domain: &str, kind: Option<Kind>, id: &str) -> Result<Subject, String> {
    let kind = kind.ok_or("whether it is a case, a form or a location is not known; save the record in HQ again")?;
    if domain.is_empty() {
        return Err("the project of the record is not known; save the record in HQ again".into());
    }
    Ok(Subject { space: Space { domain: domain.into(), kind }, id: id.to_owned() })
}

/// The rule of the fetchers: an object with a `document_id` that is a text or a number.
fn of_change_message(entry: &Quarantined) -> Result<Vec<Subject>, String> {
    let unreadable = "its message still cannot be understood: ";
    let message: Value =
        serde_json::from_slice(&entry.payload).map_err(|error| format!("{unreadable}it is no JSON ({error})"))?;
    let id = match message.get("document_id") {
        Some(Value::String(id)) if !id.is_empty() => id.clone(),
        Some(Value::Number(id)) => id.to_string(),
        _ => return Err(format!("{unreadable}it names no document_id")),
    };
    let text = |key: &str| message.get(key).and_then(Value::as_str).unwrap_or_default();
    let kind = kind_of(entry).or_else(|| Kind::of_topic(text("data_source_name")));
    subject(text("domain"), kind, &id).map(|subject| vec![subject])
}

fn of_change_request(entry: &Quarantined) -> Result<Vec<Subject>, String> {
    let request: ChangeRequest = decoded(wire::decode(&entry.payload))?;
    let Some(What::Ids(ids)) = request.what else {
        return Err("it asked for a stretch of records; start the operation anew that asked for it".into());
    };
    let kind = Kind::from_proto(request.kind);
    ids.ids.iter().map(|id| subject(&request.domain, kind, id)).collect()
}

fn of_records(entry: &Quarantined) -> Result<Vec<Subject>, String> {
    let batch: RecordBatch = decoded(wire::decode(&entry.payload))?;
    let records = batch.records.iter().map(|record| &record.id);
    let ids = records.chain(batch.tombstones.iter().map(|tombstone| &tombstone.id));
    ids.map(|id| subject(&batch.domain, Kind::from_proto(batch.kind), id)).collect()
}

fn of_rows(entry: &Quarantined) -> Result<Vec<Subject>, String> {
    let (space, ids) = ingest::ids_of(&entry.payload).map_err(|error| not_understood(&error))?;
    Ok(ids.into_iter().map(|id| Subject { space: space.clone(), id }).collect())
}

fn decoded<M>(message: Result<M, WireError>) -> Result<M, String> {
    message.map_err(|error| not_understood(&Chain(&error).to_string()))
}

/// Why a message of the queue cannot be read again.
fn not_understood(error: &str) -> String {
    format!(
        "its message still cannot be understood ({error}): it is damaged, or was cut when it was kept; have HQ publish the records of that time again"
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use lake_proto::queue::v1::{Lineage, Record, RequestedIds, RowBatch, Scan, Tombstone};

    use super::*;
    use crate::handle::test_writer;

    fn record(reason: Reason, payload: &[u8]) -> QuarantineRecord {
        QuarantineRecord {
            fingerprint: "f".into(),
            stage: "fetcher".into(),
            entry: Quarantined {
                reason: reason.code().into(),
                payload: payload.to_vec().into(),
                ..Quarantined::default()
            },
            attempts: 1,
            payload_bytes: payload.len() as i64,
            first_us: 1,
            replayed: None,
        }
    }

    fn ids(way: Result<Way, String>) -> Vec<String> {
        match way {
            Ok(Way::Records(subjects)) => {
                subjects.into_iter().map(|subject| format!("{}/{}", subject.space, subject.id)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_entry_that_names_its_record_needs_project_and_kind() {
        let mut named = record(Reason::FetcherFailed, b"");
        (named.entry.id, named.entry.domain) = ("1".into(), "demo".into());
        assert!(way(&named).unwrap_err().contains("save the record in HQ again"), "no kind");
        named.entry.lineage = Some(Lineage { topic: "form-sql".into(), ..Lineage::default() });
        assert_eq!(ids(way(&named)), ["demo/form-sql/1"]);
        named.entry.kind = Kind::Case.to_proto().into();
        assert_eq!(ids(way(&named)), ["demo/case-sql/1"]);
        named.entry.domain = String::new();
        assert!(way(&named).unwrap_err().contains("project"));
    }

    #[test]
    fn change_messages_are_read_as_fetchers_read_them() {
        let readable = br#"{"document_id": 7, "domain": "demo", "data_source_name": "location"}"#;
        assert_eq!(ids(way(&record(Reason::ChangeNotAnObject, readable))), ["demo/location/7"]);
        for unreadable in
            ["{", "[]", "{}", r#"{"document_id": ""}"#, r#"{"document_id": "1", "data_source_name": "location"}"#]
        {
            let told = way(&record(Reason::ChangeMalformedJson, unreadable.as_bytes())).unwrap_err();
            assert!(told.contains("still cannot be understood") || told.contains("project"), "{unreadable}: {told}");
        }
    }

    #[test]
    fn messages_of_the_queue_that_can_be_read_now_name_their_records() {
        let (domain, kind) = ("demo".to_owned(), Kind::Case.to_proto().into());
        let records = lake_proto::queue::v1::RecordBatch {
            domain: domain.clone(),
            kind,
            records: vec![Record { id: "b".into(), ..Record::default() }],
            tombstones: vec![Tombstone { id: "a".into(), ..Tombstone::default() }],
            ..Default::default()
        };
        let payload = wire::encode(&records);
        assert_eq!(ids(way(&record(Reason::RecordBatchMalformed, &payload))), ["demo/case-sql/a", "demo/case-sql/b"]);
        let rows = RowBatch {
            domain: domain.clone(),
            kind,
            r#type: Some("person".into()),
            arrow_ipc: test_writer::rows(&["x", "x"], 1).into(),
            tombstones: Vec::new(),
        };
        let payload = wire::encode(&rows);
        assert_eq!(ids(way(&record(Reason::RowBatchMalformed, &payload))), ["demo/case-sql/x"]);
        let cut = way(&record(Reason::RowBatchMalformed, &payload[..payload.len() / 2])).unwrap_err();
        assert!(cut.contains("was cut") && cut.contains("HQ publish"), "{cut}");
        let request =
            |what| wire::encode(&ChangeRequest { domain: domain.clone(), kind, what, ..ChangeRequest::default() });
        let asked = request(Some(What::Ids(RequestedIds { ids: vec!["i".into()], in_lake: false })));
        assert_eq!(ids(way(&record(Reason::ChangeRequestMalformed, &asked))), ["demo/case-sql/i"]);
        let scan = request(Some(What::Scan(Scan::default())));
        assert!(way(&record(Reason::ChangeRequestMalformed, &scan)).unwrap_err().contains("start the operation anew"));
        let entry = Quarantined { id: "e".into(), ..Quarantined::default() };
        let found = way(&record(Reason::QuarantineEntryMalformed, &wire::encode(&entry)));
        assert_eq!(found, Ok(Way::Entry(Box::new(entry))));
        assert!(way(&record(Reason::QuarantineEntryMalformed, b"x")).is_err());
        assert!(way(&record(Reason::EnricherFailed, b"x")).unwrap_err().contains("names no record"));
    }
}
