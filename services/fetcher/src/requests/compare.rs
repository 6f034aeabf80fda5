//! Tells what HQ has, for a comparison with the lake: sums over a stretch, the documents of some buckets, or single ones. Nothing is read into the
//! lake. The answer is a broadcast: who asks does so again where it is lost.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lake_hq::scan::ScanScope;
use lake_hq::scan::compared::{Compared, ComparedScope, ComparedStretch, DocumentState};
use lake_proto::queue::v1::compare::What;
use lake_proto::queue::v1::{self as proto, Compare, CompareAnswer};
use lake_shared::comparison::{BucketSums, valid_bucket_count};
use lake_shared::{escaped_names, wire};

use super::scan::{scope_of, type_of};
use super::{Asker, RequestReader, behind_live};
use crate::fetcher::{NotFetched, Stopping};
use crate::metric_names;

/// Documents that a statement sums up: less than a second of a database that has them in memory.
const SUMMED_AT_ONCE: usize = 200_000;
/// Documents of a statement that are told one by one, and of an answer: about 200 kB.
const TOLD_AT_ONCE: usize = 2_000;
/// Most ids of a question.
const IDS_MAX: usize = 2_000;
/// An answer about a stretch comes after this time at the latest, and where it ends says how long the stretch was.
const ANSWER_AFTER: Duration = Duration::from_secs(5);

/// Why there is no answer.
enum Unanswered {
    /// For this reason, and there will be none.
    Refused(String),
    Stopping,
}

impl From<Stopping> for Unanswered {
    fn from(_: Stopping) -> Self {
        Self::Stopping
    }
}

impl From<NotFetched> for Unanswered {
    fn from(not_fetched: NotFetched) -> Self {
        match not_fetched {
            NotFetched::Stopping => Self::Stopping,
            NotFetched::AskLess(why) => {
                Self::Refused(format!("{}; raise hq.database.statement_timeout_ms, then compare again", why.detail))
            }
        }
    }
}

impl RequestReader {
    /// Answers a question of a comparison.
    pub(super) async fn compare(&self, asker: &Asker, asked: Compare) -> Result<(), Stopping> {
        let subject = format!("lake.answer.{}", escaped_names::token(&asked.question_id));
        let answer = match self.compared(asker, asked).await {
            Ok(answer) => answer,
            Err(Unanswered::Refused(refused)) => CompareAnswer { refused, ..CompareAnswer::default() },
            Err(Unanswered::Stopping) => return Err(Stopping),
        };
        if let Err(error) = self.fetcher.queue.broadcast(&subject, wire::encode(&answer)).await {
            tracing::warn!(%error, "a comparison cannot be answered now; it is asked again");
        }
        Ok(())
    }

    async fn compared(&self, asker: &Asker, asked: Compare) -> Result<CompareAnswer, Unanswered> {
        let proto::ComparedScope { types, from_id, until_id } = asked.scope.unwrap_or_default();
        // A document may have another type by now.
        let types = if matches!(asked.what, Some(What::Ids(_))) { Vec::new() } else { types };
        let asked_types = proto::ScanScope { types, ..proto::ScanScope::default() };
        let scan = scope_of(&self.fetcher.take, asker, &asked_types).map_err(Unanswered::Refused)?;
        let compared = scan.types.as_ref().map(|names| types_of(asker, names));
        let answer = match asked.what {
            Some(What::Ids(proto::ComparedIds { ids })) => self.states_of(&scan, ids).await?,
            Some(What::Stretch(stretch)) => {
                let scope = ComparedScope { scan, from_id, until_id };
                match stretch.buckets.is_empty() {
                    true => self.sums(asker, &scope, &stretch).await?,
                    false => self.states(asker, &scope, &stretch).await?,
                }
            }
            None => return Err(Unanswered::Refused("the fetcher does not know what is asked".into())),
        };
        Ok(CompareAnswer { types: compared, ..answer })
    }

    async fn states_of(&self, scan: &ScanScope, mut ids: Vec<String>) -> Result<CompareAnswer, Unanswered> {
        ids.truncate(IDS_MAX);
        let database = &self.fetcher.hq.database;
        let states = self.fetcher.until_answered(&self.shutdown, || database.read_states(scan, &ids)).await?;
        let states = states.into_iter().map(told).collect();
        Ok(CompareAnswer { states, finished: true, ..CompareAnswer::default() })
    }

    /// Sums over stretch after stretch, for some seconds.
    async fn sums(
        &self,
        asker: &Asker,
        scope: &ComparedScope,
        asked: &proto::ComparedStretch,
    ) -> Result<CompareAnswer, Unanswered> {
        let (began, mut sums) = (Instant::now(), BucketSums::new(asked.bucket_count));
        let mut stretch = stretch_of(asked, SUMMED_AT_ONCE);
        let finished = loop {
            behind_live::idle(&self.pace, &self.shutdown).await?;
            let database = &self.fetcher.hq.database;
            let summing = || database.sum_stretch(scope, stretch);
            let summed = self.fetcher.until_answered(&self.shutdown, summing).await?;
            let Compared { found, reached, finished } = summed.ok_or_else(|| no_database(asked))?;
            let documents = found.iter().map(|(_, sum)| sum.documents).sum();
            metrics::counter!(metric_names::COMPARED_TOTAL, "kind" => asker.kind.name()).increment(documents);
            for (bucket, sum) in found {
                sums.include(bucket, sum);
            }
            stretch.after = reached;
            if finished || began.elapsed() >= ANSWER_AFTER {
                break finished;
            }
        };
        Ok(CompareAnswer { sums: sums.to_proto(), reached: stretch.after, finished, ..CompareAnswer::default() })
    }

    /// The documents of some buckets, as many as fit into an answer, or as are found within some seconds.
    async fn states(
        &self,
        asker: &Asker,
        scope: &ComparedScope,
        asked: &proto::ComparedStretch,
    ) -> Result<CompareAnswer, Unanswered> {
        let (began, mut states) = (Instant::now(), Vec::new());
        let mut stretch = stretch_of(asked, TOLD_AT_ONCE);
        let finished = loop {
            behind_live::idle(&self.pace, &self.shutdown).await?;
            let database = &self.fetcher.hq.database;
            let telling = || database.stretch_states(scope, stretch, &asked.buckets);
            let answered = self.fetcher.until_answered(&self.shutdown, telling).await?;
            let Compared { found, reached, finished } = answered.ok_or_else(|| no_database(asked))?;
            let counted = metrics::counter!(metric_names::COMPARED_TOTAL, "kind" => asker.kind.name());
            counted.increment(found.len() as u64);
            states.extend(found.into_iter().map(told));
            (stretch.after, stretch.documents_max) = (reached, TOLD_AT_ONCE.saturating_sub(states.len()));
            if finished || stretch.documents_max == 0 || began.elapsed() >= ANSWER_AFTER {
                break finished;
            }
        };
        Ok(CompareAnswer { states, reached: stretch.after, finished, ..CompareAnswer::default() })
    }
}

fn stretch_of(asked: &proto::ComparedStretch, documents_max: usize) -> ComparedStretch<'_> {
    let bucket_count = valid_bucket_count(asked.bucket_count);
    ComparedStretch { shard: &asked.shard, after: asked.after, documents_max, bucket_count }
}

fn no_database(asked: &proto::ComparedStretch) -> Unanswered {
    Unanswered::Refused(format!("HQ has no database {} any more; compare again", asked.shard))
}

/// Types as HQ's tables have them, as the lake names them.
fn types_of(asker: &Asker, names: &[String]) -> proto::ComparedTypes {
    let names: BTreeSet<String> = names.iter().map(|name| type_of(asker.kind, name).to_string()).collect();
    proto::ComparedTypes { names: names.into_iter().collect() }
}

fn told(state: DocumentState) -> proto::ComparedState {
    let fingerprint = state.compared().fingerprint();
    let DocumentState { id, document_type, times_us: [saved_us, _] } = state;
    proto::ComparedState { id, r#type: document_type.to_string(), fingerprint, saved_us }
}

#[cfg(test)]
mod tests;
