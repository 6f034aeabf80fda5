//! Asks fetchers what HQ has. A question goes the way of all that the lake asks for, so that one fetcher answers, behind HQ's own messages; the answer
//! is a broadcast, for which this writer alone listens.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use lake_proto::queue::v1::compare::What;
use lake_proto::queue::v1::{ChangeCause, ChangeRequest, Compare, CompareAnswer, ComparedScope, change_request};
use lake_shared::identity::Space;
use lake_shared::queue::{Broadcast, Message, publish_until_safe};
use lake_shared::{escaped_names, wire};
use uuid::Uuid;

use super::ReconcileTools;

/// A question that nothing was heard of for so long is asked again: its answer may have been lost.
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// One that could not be asked is tried again after this time.
const AGAIN_SOON_AFTER: Duration = Duration::from_secs(2);

/// Asks for one comparison.
pub(super) struct Questioner<'q> {
    tools: &'q ReconcileTools,
    operation_id: &'q str,
    space: &'q Space,
    scope: ComparedScope,
}

impl<'q> Questioner<'q> {
    pub(super) const fn new(
        tools: &'q ReconcileTools,
        operation_id: &'q str,
        space: &'q Space,
        scope: ComparedScope,
    ) -> Self {
        Self { tools, operation_id, space, scope }
    }

    /// What a fetcher answers; waits until one does.
    ///
    /// # Errors
    /// Why there is no answer and never will be, for people.
    pub(super) async fn ask(&self, what: What) -> Result<CompareAnswer, String> {
        loop {
            match tokio::time::timeout(AGAIN_AFTER, self.try_to_ask(what.clone())).await {
                Ok(Ok(Some(answer))) if answer.refused.is_empty() => return Ok(answer),
                Ok(Ok(Some(answer))) => return Err(answer.refused),
                Ok(Ok(None)) | Err(_) => {
                    tracing::info!(
                        operation = self.operation_id,
                        "an answer of a fetcher may be lost; it is asked again"
                    );
                }
                Ok(Err(reason)) => {
                    tracing::warn!(
                        operation = self.operation_id,
                        reason,
                        "fetchers cannot be asked now; it is tried again"
                    );
                }
            }
            tokio::time::sleep(AGAIN_SOON_AFTER).await;
        }
    }

    /// `None`: the answer may have been lost.
    async fn try_to_ask(&self, what: What) -> Result<Option<CompareAnswer>, String> {
        let question_id = Uuid::new_v4().simple().to_string();
        let queue = &*self.tools.queue;
        let listening = queue.listen(&format!("lake.answer.{question_id}")).await;
        let answers = listening.map_err(|error| error.to_string())?;
        let mut answering = std::pin::pin!(first(answers));
        let mut asked = false;
        let message = self.message(question_id, what);
        // In one process that ends only when the question was answered.
        let mut asking = std::pin::pin!(publish_until_safe(queue, message, &self.tools.shutdown));
        loop {
            tokio::select! {
                outcome = &mut asking, if !asked => {
                    outcome.map_err(|error| error.to_string())?;
                    asked = true;
                }
                answer = &mut answering => {
                    if !asked {
                        asking.await.map_err(|error| error.to_string())?;
                    }
                    return Ok(answer);
                }
            }
        }
    }

    fn message(&self, question_id: String, what: What) -> Message {
        let dedupe_id = format!("compare-{question_id}");
        let request = ChangeRequest {
            domain: self.space.domain.to_string(),
            kind: self.space.kind.to_proto().into(),
            cause: ChangeCause::Reconcile.into(),
            operation_id: self.operation_id.to_owned(),
            what: Some(change_request::What::Compare(Compare {
                question_id,
                scope: Some(self.scope.clone()),
                what: Some(what),
            })),
        };
        let subject = escaped_names::changes_subject(&self.space.domain, self.space.kind);
        Message { subject, payload: wire::encode(&request), dedupe_id }
    }
}

/// The first answer; `None`: it may have been missed.
async fn first(mut answers: BoxStream<'static, Broadcast>) -> Option<CompareAnswer> {
    loop {
        match answers.next().await? {
            Broadcast::MaybeMissed => return None,
            Broadcast::Message { payload, .. } => match wire::decode::<CompareAnswer>(&payload) {
                Ok(answer) => return Some(answer),
                Err(error) => tracing::warn!(%error, "an answer of a fetcher cannot be understood"),
            },
        }
    }
}
