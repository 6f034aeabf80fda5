//! Says how much there is of what somebody would like to scan. A question and its answers are broadcasts: whoever asks does so again where nobody
//! answers.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use lake_proto::queue::v1::{ChangeCause, ScopeAnswer, ScopeQuestion, ShardEstimate};
use lake_shared::identity::{Domain, Kind};
use lake_shared::queue::Broadcast;
use lake_shared::retry::Backoff;
use lake_shared::{escaped_names, wire};

use super::scan::scope_of;
use super::{Asker, RequestReader};
use crate::fetcher::NotFetched;

/// Subject of the questions.
const SUBJECT: &str = "lake.ask.scope";

/// Longest time for an answer: nobody waits for longer.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Answers questions, one after the other, until the process stops.
pub(super) async fn answer(reader: Arc<RequestReader>) {
    let mut backoff = Backoff::default();
    while !reader.shutdown.is_cancelled() {
        match reader.fetcher.queue.listen(SUBJECT).await {
            Ok(mut questions) => {
                while let Some(Some(heard)) = reader.shutdown.run_until_cancelled(questions.next()).await {
                    backoff = Backoff::default();
                    let Broadcast::Message { payload, .. } = heard else { continue };
                    match wire::decode::<ScopeQuestion>(&payload) {
                        Ok(question) => reader.answer(question).await,
                        Err(error) => tracing::debug!(%error, "a question cannot be understood"),
                    }
                }
            }
            Err(error) => tracing::debug!(%error, "questions cannot be listened to now"),
        }
        reader.shutdown.run_until_cancelled(tokio::time::sleep(backoff.next_wait())).await;
    }
}

/// Why a question has no answer in figures.
enum Unanswered {
    /// For this reason.
    Refused(String),
    Stopping,
}

impl From<String> for Unanswered {
    fn from(refused: String) -> Self {
        Self::Refused(refused)
    }
}

impl From<NotFetched> for Unanswered {
    fn from(not_fetched: NotFetched) -> Self {
        match not_fetched {
            NotFetched::Stopping => Self::Stopping,
            NotFetched::AskLess(why) => Self::Refused(why.detail),
        }
    }
}

impl RequestReader {
    async fn answer(&self, question: ScopeQuestion) {
        let answer = match tokio::time::timeout(ANSWER_WITHIN, self.estimates(&question)).await {
            Ok(Ok(shards)) => ScopeAnswer { shards, refused: String::new() },
            Ok(Err(Unanswered::Refused(refused))) => ScopeAnswer { shards: Vec::new(), refused },
            Ok(Err(Unanswered::Stopping)) => return,
            Err(_) => {
                tracing::warn!(domain = question.domain, "HQ does not say in time how many documents it has");
                return;
            }
        };
        let subject = format!("lake.answer.{}", escaped_names::token(&question.question_id));
        if let Err(error) = self.fetcher.queue.broadcast(&subject, wire::encode(&answer)).await {
            tracing::warn!(%error, "a question cannot be answered now");
        }
    }

    async fn estimates(&self, question: &ScopeQuestion) -> Result<Vec<ShardEstimate>, Unanswered> {
        let kind = Kind::from_proto(question.kind).ok_or_else(|| "the kind is not known to the fetcher".to_owned())?;
        let domain = Domain::from(question.domain.as_str());
        let asker = Asker { domain, kind, cause: ChangeCause::Backfill };
        let scope = scope_of(&self.fetcher.take, &asker, &question.scope.clone().unwrap_or_default())?;
        let database = &self.fetcher.hq.database;
        let estimates = self.fetcher.until_answered(&self.shutdown, || database.scan_estimates(&scope)).await?;
        let estimate = |of: lake_hq::scan::ShardEstimate| ShardEstimate { shard: of.shard, documents: of.documents };
        Ok(estimates.into_iter().map(estimate).collect())
    }
}
