//! Asks fetchers for the next stretch of a part, or for ids.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lake_proto::queue::v1::change_request::What;
use lake_proto::queue::v1::{ChangeCause, ChangeRequest, Scan};
use lake_shared::error_chain::Chain;
use lake_shared::identity::Space;
use lake_shared::queue::{Message, publish_until_safe};
use lake_shared::{escaped_names, wire};

use super::BackfillTools;
use super::scope::BackfillScope;
use crate::change_requests::{RequestedDocuments, Requester, request_changes};
use crate::metastore::backfills::{BackfillPart, StretchRead};
use crate::metastore::steering::OperationRecord;

/// A stretch that nothing was heard of for so long is asked for again: its message may have been lost with the queue's server.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// One that could not be asked for is tried again after this time.
const AGAIN_SOON_AFTER: Duration = Duration::from_secs(2);

/// What was asked for of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AskedPart {
    after: i64,
    again_at: Instant,
}

impl AskedPart {
    /// A part is asked for from where it stands.
    pub(super) fn of(part: &BackfillPart, now: Instant) -> Self {
        Self { after: part.reached, again_at: now + AGAIN_AFTER }
    }

    /// Whether the next stretch of a part is to be asked for.
    pub(super) fn is_to_be_asked(asked: Option<&Self>, part: &BackfillPart, now: Instant) -> bool {
        asked.is_none_or(|asked| asked.after != part.reached || now >= asked.again_at)
    }

    /// The asking has failed.
    pub(super) fn again_soon(&mut self, now: Instant) {
        self.again_at = now + AGAIN_SOON_AFTER;
    }
}

/// Asks for parts of one backfill.
#[derive(Clone)]
pub(super) struct Asker {
    tools: BackfillTools,
    operation_id: String,
    space: Space,
    scope: Arc<BackfillScope>,
}

impl Asker {
    pub(super) fn new(tools: &BackfillTools, begun: &OperationRecord, scope: Arc<BackfillScope>) -> Self {
        let space = begun.asked.target.space.clone();
        Self { tools: tools.clone(), operation_id: begun.id.clone(), space, scope }
    }

    /// Asks for the next stretch of a part. The error is the name of the part, of which nothing was asked.
    pub(super) async fn ask(self, part: BackfillPart) -> Result<(), String> {
        let asked = match self.scope.ids.is_empty() {
            true => self.ask_stretch(&part).await,
            false => self.ask_ids(&part).await,
        };
        asked.map_err(|reason| {
            tracing::warn!(
                operation = self.operation_id,
                part = part.part,
                reason,
                "a backfill cannot go on now; it is tried again"
            );
            part.part
        })
    }

    async fn ask_stretch(&self, part: &BackfillPart) -> Result<(), String> {
        let BackfillPart { part: shard, reached, .. } = part;
        let request = ChangeRequest {
            domain: self.space.domain.to_string(),
            kind: self.space.kind.to_proto().into(),
            cause: ChangeCause::Backfill.into(),
            operation_id: self.operation_id.clone(),
            what: Some(What::Scan(Scan {
                scope: Some(self.scope.to_scan()),
                shard: shard.clone(),
                after: *reached,
                documents_max: self.tools.options.stretch_documents,
            })),
        };
        let identity = format!("{}\0{shard}\0{reached}", self.operation_id);
        let message = Message {
            subject: escaped_names::changes_subject(&self.space.domain, self.space.kind),
            payload: wire::encode(&request),
            dedupe_id: format!("scan-{}", escaped_names::fingerprint(&identity)),
        };
        let published = publish_until_safe(&*self.tools.queue, message, &self.tools.shutdown).await;
        published.map_err(|error| error.to_string())
    }

    /// Ids that have no row are asked for apart: where HQ does not know them either, nothing is to come of it.
    async fn ask_ids(&self, part: &BackfillPart) -> Result<(), String> {
        let ids = self.scope.ids_of(part);
        let present: HashSet<String> =
            self.tools.operations.present(&self.space, ids).await.map_err(|error| Chain(&error).to_string())?;
        let requester = Requester { cause: ChangeCause::Backfill, operation_id: self.operation_id.clone() };
        let (there, absent): (Vec<String>, Vec<String>) = ids.iter().cloned().partition(|id| present.contains(id));
        for (ids, in_lake) in [(there, true), (absent, false)] {
            let documents = RequestedDocuments { space: self.space.clone(), ids, in_lake };
            let asked = request_changes(&*self.tools.queue, &requester, documents, &self.tools.shutdown).await;
            asked.map_err(|error| error.to_string())?;
        }
        let count = ids.len() as i64;
        let stretch = StretchRead {
            operation_id: self.operation_id.clone(),
            part: part.part.clone(),
            after: part.reached,
            reached: count,
            documents: count,
            finished: true,
            refused: String::new(),
        };
        self.tools.metastore.stretch_was_read(&stretch).await.map(drop).map_err(|error| Chain(&error).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_asked_for_once_at_each_place() {
        let now = Instant::now();
        let at = |reached| BackfillPart { reached, ..BackfillPart::default() };
        assert!(AskedPart::is_to_be_asked(None, &at(0), now));
        let mut asked = AskedPart::of(&at(0), now);
        assert!(!AskedPart::is_to_be_asked(Some(&asked), &at(0), now));
        assert!(AskedPart::is_to_be_asked(Some(&asked), &at(7), now), "it has come further");
        assert!(AskedPart::is_to_be_asked(Some(&asked), &at(0), now + AGAIN_AFTER), "nothing was heard for long");
        asked.again_soon(now);
        assert!(!AskedPart::is_to_be_asked(Some(&asked), &at(0), now));
        assert!(AskedPart::is_to_be_asked(Some(&asked), &at(0), now + AGAIN_SOON_AFTER));
    }
}
