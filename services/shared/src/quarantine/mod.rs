//! Where a record goes that cannot be handled: `lake.quarantine.<stage>`, from there into the metastore, where it is
//! listed with its [`Reason`] until an operator releases it. One bad record stops nothing.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lake_proto::queue::v1::{Lineage, Quarantined};
use tokio_util::sync::CancellationToken;

pub use self::reason::Reason;
use crate::escaped_names;
use crate::identity::Kind;
use crate::queue::{Message, PublishError, Queue, publish_until_safe};
use crate::wire;

mod reason;

/// Counter: entries published, labels `stage` and `reason`.
pub const QUARANTINED_TOTAL: &str = "lake_quarantined_total";

/// Longest detail that is kept, in bytes; a longer one is cut.
const DETAIL_SIZE_MAX: usize = 4_096;

/// The service that quarantined an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The fetcher: the record could not be read from HQ's messages, rows or files.
    Fetcher,
    /// The enricher: no row could be made of the document.
    Enricher,
    /// The writer: the row could not be committed to its table.
    Writer,
}

impl Stage {
    /// Last token of the subject and value of the metric's label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetcher => "fetcher",
            Self::Enricher => "enricher",
            Self::Writer => "writer",
        }
    }
}

/// As much as is known of the document that an entry is about; a text is empty where it is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DocumentIdentity {
    /// Project space of the document.
    pub domain: String,
    /// What the document is; `None` where the message does not say, or names a kind that is not known.
    pub kind: Option<Kind>,
    /// Case type, form xmlns without the form designer's prefix, or `Location`.
    pub document_type: String,
    /// Case id, form id or location id.
    pub id: String,
}

/// Something that cannot be handled, with what is needed to understand and to repeat it.
#[derive(Clone, Debug, PartialEq)]
pub struct QuarantineEntry {
    /// The service that cannot handle it.
    pub stage: Stage,
    /// Why it cannot be handled.
    pub reason: Reason,
    /// For people: what failed, on which document. Cut at 4,096 bytes when it is published.
    pub detail: String,
    /// The document that the entry is about.
    pub document: DocumentIdentity,
    /// The change message that led to it, where one is known.
    pub lineage: Option<Lineage>,
    /// The message, document or row as it came. Cut to half of the largest payload that travels in one piece when it is published.
    pub payload: Bytes,
}

impl QuarantineEntry {
    /// An entry of which neither document, lineage nor payload is known yet.
    pub fn new(stage: Stage, reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            stage,
            reason,
            detail: detail.into(),
            document: DocumentIdentity::default(),
            lineage: None,
            payload: Bytes::new(),
        }
    }

    /// Says which document the entry is about.
    #[must_use]
    pub fn document(self, document: DocumentIdentity) -> Self {
        Self { document, ..self }
    }

    /// Says which change message led to the entry.
    #[must_use]
    pub fn lineage(self, lineage: Option<Lineage>) -> Self {
        Self { lineage, ..self }
    }

    /// Keeps what came, so that it can be looked at.
    #[must_use]
    pub fn payload(self, payload: Bytes) -> Self {
        Self { payload, ..self }
    }

    /// The queue message of this entry, quarantined at this moment.
    pub fn into_message(self) -> Quarantined {
        Quarantined {
            reason: self.reason.code().into(),
            detail: self.detail,
            domain: self.document.domain,
            kind: self.document.kind.map_or(0, |kind| kind.to_proto().into()),
            r#type: self.document.document_type,
            id: self.document.id,
            payload: self.payload,
            lineage: self.lineage,
            quarantined_us: now_us(),
        }
    }

    /// Cuts payload and detail to what fits: the rest of the message is small beside half of the largest payload that travels in one piece.
    fn cut(&mut self, message_size_max: usize) {
        self.payload.truncate(message_size_max / 2);
        let end = self.detail.floor_char_boundary(DETAIL_SIZE_MAX);
        self.detail.truncate(end);
    }
}

/// Microseconds since 1970; 0 on a machine whose clock stands before that.
fn now_us() -> i64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

/// Puts an entry into quarantine and waits, with back-off, until it is safe there. A payload that is too large for the queue is cut.
///
/// # Errors
/// [`PublishError::Closed`] when `shutdown` comes first or the queue is closed; [`PublishError::TooLarge`] when even the cut entry does
/// not fit, because the server's limit was lowered meanwhile.
pub async fn publish(
    queue: &dyn Queue,
    mut entry: QuarantineEntry,
    shutdown: &CancellationToken,
) -> Result<(), PublishError> {
    entry.cut(queue.message_size_max());
    let (stage, reason) = (entry.stage.name(), entry.reason.code());
    let message = entry.into_message();
    tracing::warn!(stage, reason, domain = message.domain, id = message.id, detail = message.detail, "quarantined");
    metrics::counter!(QUARANTINED_TOTAL, "stage" => stage, "reason" => reason).increment(1);
    let payload = wire::encode(&message);
    let dedupe_id = format!("quarantine-{}", uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, &payload));
    let message = Message { subject: format!("lake.quarantine.{}", escaped_names::token(stage)), payload, dedupe_id };
    publish_until_safe(queue, message, shutdown).await
}

/// Lets the counters of a service begin at zero. An alert on growth would not see the first entry of a counter that appears with it.
pub fn count_from_zero(stage: Stage) {
    for reason in Reason::ALL {
        metrics::counter!(QUARANTINED_TOTAL, "stage" => stage.name(), "reason" => reason.code()).increment(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_says_all_that_the_entry_knows() {
        let lineage = Lineage { topic: "case-sql".into(), partition: 3, offset: 9, ..Lineage::default() };
        let document = DocumentIdentity {
            domain: "demo".into(),
            kind: Some(Kind::Case),
            document_type: "person".into(),
            id: "1".into(),
        };
        let entry = QuarantineEntry::new(Stage::Writer, Reason::RowImpossible, "bad id")
            .document(document)
            .lineage(Some(lineage.clone()))
            .payload(Bytes::from_static(b"{}"));
        let message = entry.into_message();
        assert!(message.quarantined_us > 0);
        let expected = Quarantined {
            reason: "row_impossible".into(),
            detail: "bad id".into(),
            domain: "demo".into(),
            kind: 1,
            r#type: "person".into(),
            id: "1".into(),
            payload: Bytes::from_static(b"{}"),
            lineage: Some(lineage),
            quarantined_us: message.quarantined_us,
        };
        assert_eq!(message, expected);
    }

    #[test]
    fn what_does_not_fit_is_cut_between_characters() {
        let mut entry = QuarantineEntry::new(Stage::Fetcher, Reason::RecordTooLarge, "é".repeat(DETAIL_SIZE_MAX) + "x")
            .payload(Bytes::from_static(b"0123456789"));
        entry.detail.insert(0, 'a');
        entry.cut(10);
        assert_eq!((entry.payload.len(), entry.detail.len()), (5, DETAIL_SIZE_MAX - 1));
    }
}
