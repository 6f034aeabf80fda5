//! What is in quarantine as messages of the interface. Pure.

use lake_proto::admin::v1 as proto;
use lake_proto::queue::v1::Lineage;
use lake_shared::identity::Kind;
use lake_shared::quarantine::{Reason, Stage};
use prost_types::Timestamp;

use crate::admin::convert::{kind, timestamp};
use crate::admin::problem::Problem;
use crate::admin::services;
use crate::metastore::{QuarantineBounds, QuarantineFilter, QuarantineGroup, QuarantineRecord};
use crate::quarantine::evidence::has_failed_again;
use crate::quarantine::subjects;

const DAY_US: i64 = 86_400_000_000;

/// Longest text of a filter, bytes.
const TEXT_BYTES_MAX: usize = 4_096;

/// A filter as it is asked for.
///
/// # Errors
/// A field that cannot be used.
pub(in crate::admin) fn filter(asked: proto::QuarantineFilter) -> Result<QuarantineFilter, Problem> {
    let stages = [Stage::Fetcher, Stage::Enricher, Stage::Writer];
    if !asked.stage.is_empty() && stages.iter().all(|stage| stage.name() != asked.stage) {
        return Err(Problem::Field { field: "stage", reason: "it is fetcher, enricher or writer".into() });
    }
    Ok(QuarantineFilter {
        reason: text("reason", asked.reason)?,
        domain: text("domain", asked.domain)?,
        kind: services::kind(asked.kind)?,
        document_type: text("type", asked.r#type)?,
        document_id: text("document_id", asked.document_id)?,
        stage: text("stage", asked.stage)?,
        fingerprint: text("entry_id", asked.entry_id)?,
        from_us: asked.from.map(|at| instant("from", &at)).transpose()?,
        until_us: asked.until.map(|at| instant("until", &at)).transpose()?,
        domains: None,
        is_replayed: false,
    })
}

fn text(field: &'static str, asked: String) -> Result<Option<String>, Problem> {
    if asked.len() > TEXT_BYTES_MAX {
        return Err(Problem::Field { field, reason: format!("it is longer than {TEXT_BYTES_MAX} bytes") });
    }
    Ok(Some(asked).filter(|asked| !asked.is_empty()))
}

/// Microseconds since 1970 of an instant.
fn instant(field: &'static str, at: &Timestamp) -> Result<i64, Problem> {
    let micros = at.seconds.checked_mul(1_000_000).and_then(|micros| micros.checked_add(i64::from(at.nanos) / 1_000));
    micros.ok_or_else(|| Problem::Field { field, reason: "it is no instant that a calendar has".into() })
}

pub(super) fn group(of: QuarantineGroup) -> proto::QuarantineGroup {
    let reason = Reason::from_code(&of.reason);
    proto::QuarantineGroup {
        stage: of.stage,
        domain: of.domain,
        entries: of.entries,
        payload_bytes: of.payload_bytes,
        oldest_at: Some(timestamp(of.oldest_us)),
        newest_at: Some(timestamp(of.newest_us)),
        replayed: of.replayed,
        meaning: reason.map(|reason| reason.meaning().to_owned()).unwrap_or_default(),
        next_action: reason.map(|reason| reason.next_step().to_owned()).unwrap_or_default(),
        reason: of.reason,
    }
}

pub(super) const fn bounds(of: &QuarantineBounds) -> proto::QuarantineBounds {
    proto::QuarantineBounds {
        days: of.age_max_us / DAY_US,
        entries_max: of.entries_max,
        payload_bytes_max: of.payload_bytes_max,
    }
}

/// An entry without what may quote people's data.
pub(in crate::admin) fn entry(record: &QuarantineRecord) -> proto::QuarantineEntry {
    let of = &record.entry;
    let Lineage { topic, partition, offset, fetched_us, .. } = of.lineage.clone().unwrap_or_default();
    proto::QuarantineEntry {
        id: record.fingerprint.clone(),
        reason: of.reason.clone(),
        stage: record.stage.clone(),
        domain: of.domain.clone(),
        kind: Kind::from_proto(of.kind).map_or(proto::Kind::Unspecified, kind).into(),
        r#type: of.r#type.clone(),
        document_id: of.id.clone(),
        attempts: record.attempts,
        first_at: Some(timestamp(record.first_us)),
        last_at: Some(timestamp(of.quarantined_us)),
        topic,
        partition,
        offset,
        fetched_at: (fetched_us > 0).then(|| timestamp(fetched_us)),
        payload_bytes: record.payload_bytes,
        replayed_at: record.replayed.as_ref().map(|replayed| timestamp(replayed.at_us)),
        replay: replay(record),
        next_action: Reason::from_code(&of.reason).map(|reason| reason.next_step().to_owned()).unwrap_or_default(),
    }
}

/// What came of reading it again, or why it cannot be. Of an entry that names no record only its bytes tell.
fn replay(record: &QuarantineRecord) -> String {
    match &record.replayed {
        Some(replayed) if !replayed.refused.is_empty() => replayed.refused.clone(),
        Some(replayed) if has_failed_again(record, replayed) => "it failed again after that".into(),
        Some(_) => "it is being read again".into(),
        None if subjects::names_its_record(record) => subjects::way(record).err().unwrap_or_default(),
        None => String::new(),
    }
}

/// An entry with its detail and at most so many bytes of what could not be handled.
pub(super) fn whole_entry(record: &QuarantineRecord, bytes_max: u32) -> proto::GetQuarantineEntryResponse {
    let (payload, meaning) = (&record.entry.payload, Reason::from_code(&record.entry.reason).map(Reason::meaning));
    let shown = payload.len().min(bytes_max as usize);
    let mut entry = entry(record);
    if record.replayed.is_none() {
        entry.replay = subjects::way(record).err().unwrap_or_default();
    }
    proto::GetQuarantineEntryResponse {
        entry: Some(entry),
        detail: record.entry.detail.clone(),
        payload: payload[..shown].to_vec(),
        payload_cut: shown < payload.len(),
        meaning: meaning.unwrap_or_default().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use lake_proto::queue::v1::Quarantined;

    use super::*;
    use crate::metastore::Replayed;

    fn record(replayed: Option<Replayed>) -> QuarantineRecord {
        QuarantineRecord {
            fingerprint: "f".into(),
            stage: "fetcher".into(),
            entry: Quarantined {
                reason: "change_malformed_json".into(),
                payload: vec![b'{'; 9].into(),
                ..Quarantined::default()
            },
            attempts: 2,
            payload_bytes: 9,
            first_us: 1,
            replayed,
        }
    }

    #[test]
    fn an_entry_says_what_came_of_its_replay() {
        let replayed =
            |attempts, refused: &str| Some(Replayed { at_us: 1, attempts, observed_us: None, refused: refused.into() });
        assert_eq!(entry(&record(replayed(2, ""))).replay, "it is being read again");
        assert_eq!(entry(&record(replayed(1, ""))).replay, "it failed again after that");
        assert_eq!(entry(&record(replayed(1, "no"))).replay, "no");
        assert_eq!(entry(&record(None)).replay, "");
        let whole = whole_entry(&record(None), 4);
        assert!(whole.entry.unwrap().replay.contains("still cannot be understood"));
        assert_eq!((whole.payload.len(), whole.payload_cut), (4, true));
        assert!(!whole_entry(&record(None), 9).payload_cut && whole.meaning.contains("not JSON"));
    }

    #[test]
    fn filters_are_checked() {
        let asked = proto::QuarantineFilter { stage: "kitchen".into(), ..Default::default() };
        assert!(matches!(filter(asked), Err(Problem::Field { field: "stage", .. })));
        let asked = proto::QuarantineFilter { reason: "x".repeat(5_000), ..Default::default() };
        assert!(matches!(filter(asked), Err(Problem::Field { field: "reason", .. })));
        let far = Some(Timestamp { seconds: i64::MAX, nanos: 0 });
        assert!(filter(proto::QuarantineFilter { until: far, ..Default::default() }).is_err());
        let at = Some(Timestamp { seconds: 2, nanos: 5_000 });
        let found = filter(proto::QuarantineFilter { from: at, kind: 2, ..Default::default() }).unwrap();
        assert_eq!((found.from_us, found.kind, found.domain), (Some(2_000_005), Some(Kind::Form), None));
    }
}
