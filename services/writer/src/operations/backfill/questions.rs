//! Asks fetchers which databases HQ has, and how much there is in them of what is to be filled.

use std::time::Duration;

use futures::StreamExt;
use lake_proto::queue::v1::{ScopeAnswer, ScopeQuestion};
use lake_shared::identity::Space;
use lake_shared::queue::{Broadcast, Queue};
use lake_shared::wire;
use uuid::Uuid;

use super::scope::BackfillScope;
use crate::metastore::backfills::BackfillPart;

/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// A question that nobody was there to hear is asked again after this time.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// The parts of a scope; `None`: nobody answers now.
///
/// # Errors
/// Why there is nothing to fill, for people.
pub(in crate::operations) async fn parts(
    queue: &dyn Queue,
    space: &Space,
    scope: &BackfillScope,
) -> Result<Option<Vec<BackfillPart>>, String> {
    let answered = match tokio::time::timeout(ANSWER_WITHIN, answer(queue, space, scope)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(reason)) => {
            tracing::warn!(reason, "fetchers cannot be asked now");
            tokio::time::sleep(Duration::from_secs(1)).await;
            None
        }
        Err(_) => None,
    };
    let Some(ScopeAnswer { shards, refused }) = answered else { return Ok(None) };
    if !refused.is_empty() {
        return Err(refused);
    }
    let part = |(number, shard): (i64, lake_proto::queue::v1::ShardEstimate)| BackfillPart {
        part: shard.shard,
        number,
        estimate: i64::try_from(shard.documents).unwrap_or(i64::MAX),
        ..BackfillPart::default()
    };
    Ok(Some((0..).zip(shards).map(part).collect()))
}

/// The first answer; `None`: the queue is closed.
async fn answer(queue: &dyn Queue, space: &Space, scope: &BackfillScope) -> Result<Option<ScopeAnswer>, String> {
    let question_id = Uuid::new_v4().simple().to_string();
    let listening = queue.listen(&format!("lake.answer.{question_id}")).await;
    let mut answers = listening.map_err(|error| error.to_string())?;
    let question = wire::encode(&ScopeQuestion {
        question_id,
        domain: space.domain.to_string(),
        kind: space.kind.to_proto().into(),
        scope: Some(scope.to_scan()),
    });
    loop {
        queue.broadcast("lake.ask.scope", question.clone()).await.map_err(|error| error.to_string())?;
        let heard = tokio::time::timeout(ASK_AGAIN_AFTER, async {
            loop {
                match answers.next().await {
                    None => return None,
                    Some(Broadcast::MaybeMissed) => {}
                    Some(Broadcast::Message { payload, .. }) => match wire::decode::<ScopeAnswer>(&payload) {
                        Ok(answer) => return Some(answer),
                        Err(error) => tracing::debug!(%error, "an answer cannot be understood"),
                    },
                }
            }
        });
        if let Ok(answer) = heard.await {
            return Ok(answer);
        }
    }
}
