//! One comparison, step by step.

use std::collections::{BTreeSet, HashSet};

use futures::{StreamExt, TryStreamExt, stream};
use lake_proto::queue::v1::compare::What;
use lake_proto::queue::v1::{ChangeCause, CompareAnswer, ComparedIds, ComparedState, ComparedStretch};
use lake_shared::comparison::{self, BucketSum, BucketSums};
use lake_shared::error_chain::Chain;
use lake_shared::identity::{DocumentType, Space};
use lake_shared::queue::PublishError;
use lake_shared::retry::Backoff;

use super::beats::Beats;
use super::differences::{FirstLook, differences, to_heal};
use super::portions::{differing, portions};
use super::questions::Questioner;
use super::scope::ReconcileScope;
use super::{End, Found, ReconcileTools};
use crate::change_requests::{RequestedDocuments, Requester, request_changes};
use crate::handle_error::HandleError;
use crate::metastore::backfills::BackfillPart;
use crate::metastore::comparisons::Difference;
use crate::metastore::erasures::record_ids::erasure_hash;
use crate::metastore::steering::OperationRecord;
use crate::operations::backfill::{insist, questions as estimates};
use crate::operations::runner::is_passing;
use crate::table_store::compared_rows::{ComparedScope, RowState, WantedRows};

/// Databases of HQ that are asked at the same time.
const PARTS_AT_ONCE: usize = 4;
/// Documents that are compared one by one at once, about 100 bytes of memory each.
const PORTION_DOCUMENTS: u64 = 250_000;
/// When so many have been found to differ, no further buckets are looked at.
const DIFFERENCES_MAX: usize = 100_000;
/// Ids of a question of the second look.
const IDS_OF_QUESTION: usize = 1_000;
/// How often a step is tried again after passing trouble, before the comparison fails.
const TRIES: u32 = 5;

/// A comparison at work.
pub(super) struct Comparing<'c> {
    tools: &'c ReconcileTools,
    operation_id: &'c str,
    space: &'c Space,
    scope: &'c ReconcileScope,
    questioner: Questioner<'c>,
    beats: Beats<'c>,
}

/// What HQ's databases say together.
struct HqSums {
    sums: BucketSums,
    /// The types that are compared; `None`: all.
    types: Option<BTreeSet<DocumentType>>,
}

impl<'c> Comparing<'c> {
    pub(super) fn new(tools: &'c ReconcileTools, begun: &'c OperationRecord, scope: &'c ReconcileScope) -> Self {
        let (operation_id, space) = (begun.id.as_str(), &begun.asked.target.space);
        let questioner = Questioner::new(tools, operation_id, space, scope.to_proto());
        Self { tools, operation_id, space, scope, questioner, beats: Beats::new(&*tools.metastore, operation_id) }
    }

    /// Compares, and heals where that is asked for. The error is an early end.
    pub(super) async fn compare(&self) -> Result<End, End> {
        let parts = self.parts().await?;
        let documents: u64 = parts.iter().map(|part| part.estimate.unsigned_abs()).sum();
        self.beats.set_total(documents);
        // HQ's planner knows nothing of a table that was never analyzed.
        let tables = self.of_lake(|| self.tools.operations.tables(Some(self.space))).await?;
        let rows = tables.iter().map(|table| table.state.rows.unsigned_abs()).sum();
        let bucket_count = comparison::bucket_count(documents.max(rows));
        let HqSums { sums: in_hq, types } = self.sums_of_hq(&parts, bucket_count).await?;
        let Self { space, scope: asked, .. } = self;
        let (from_id, until_id) = (asked.from_id.clone(), asked.until_id.clone());
        let scope = ComparedScope { space: (*space).clone(), types, from_id, until_id };
        self.of_lake(|| self.tools.operations.follow_tables(space)).await?;
        let in_lake = self.of_lake(|| self.tools.operations.bucket_sums(&scope, bucket_count)).await?;
        let buckets = differing(&in_hq, &in_lake);
        let mut found = Found {
            documents_in_hq: in_hq.documents(),
            documents_in_lake: in_lake.documents(),
            buckets: bucket_count.into(),
            buckets_differing: buckets.len() as u64,
            ..Found::default()
        };
        let mut left = buckets.len();
        let mut ids = BTreeSet::new();
        for buckets in portions(&buckets, PORTION_DOCUMENTS) {
            if ids.len() >= DIFFERENCES_MAX {
                break;
            }
            left -= buckets.len();
            ids.append(&mut self.first_look(&parts, &scope, bucket_count, &buckets).await?);
        }
        found.buckets_left = left as u64;
        found.differences = self.second_look(&ids).await?;
        self.leave_out_erased(&mut found.differences).await?;
        let kept = insist(|| self.tools.metastore.keep_differences(self.operation_id, &found.differences));
        self.beats.beside(kept).await?.ok_or(End::Left)?;
        if self.scope.heal {
            found.healed = self.heal(&found.differences).await?;
        }
        self.beats.tell().await?;
        Ok(End::Succeeded(found))
    }

    /// Erased records are missing on purpose, and their ids are not to be kept.
    async fn leave_out_erased(&self, differences: &mut Vec<Difference>) -> Result<(), End> {
        let known = insist(|| self.tools.metastore.kept_out(self.space));
        let kept_out: BTreeSet<String> = self.beats.beside(known).await?.ok_or(End::Left)?.into_iter().collect();
        if !kept_out.is_empty() {
            differences.retain(|of| !kept_out.contains(&erasure_hash(self.space, &of.id)));
        }
        Ok(())
    }

    /// HQ's databases, with about how much is in each.
    async fn parts(&self) -> Result<Vec<BackfillPart>, End> {
        let scope = self.scope.to_estimate();
        loop {
            let asking = estimates::parts(&*self.tools.queue, self.space, &scope);
            match self.beats.beside(asking).await?.map_err(End::Failed)? {
                Some(parts) => return Ok(parts),
                None => {
                    tracing::info!(
                        operation = self.operation_id,
                        "no fetcher says how much there is to be compared; it is asked again"
                    );
                }
            }
        }
    }

    async fn ask(&self, what: What) -> Result<CompareAnswer, End> {
        self.beats.beside(self.questioner.ask(what)).await?.map_err(End::Failed)
    }

    async fn sums_of_hq(&self, parts: &[BackfillPart], bucket_count: u32) -> Result<HqSums, End> {
        let asking: Vec<_> = parts.iter().map(|part| self.sums_of_part(&part.part, bucket_count)).collect();
        let mut all = HqSums { sums: BucketSums::new(bucket_count), types: None };
        let mut answers = stream::iter(asking).buffer_unordered(PARTS_AT_ONCE);
        while let Some(HqSums { sums, types }) = answers.try_next().await? {
            for (bucket, sum) in sums.iter() {
                all.sums.include(bucket, sum);
            }
            all.types = types;
        }
        Ok(all)
    }

    /// One stretch of a database after the other.
    async fn sums_of_part(&self, shard: &str, bucket_count: u32) -> Result<HqSums, End> {
        let (mut sums, mut after) = (BucketSums::new(bucket_count), 0);
        loop {
            let stretch = ComparedStretch { shard: shard.to_owned(), after, bucket_count, buckets: Vec::new() };
            let answer = self.ask(What::Stretch(stretch)).await?;
            let mut documents = 0;
            for of in answer.sums {
                documents += of.documents;
                sums.include(of.bucket, BucketSum { documents: of.documents, sum: of.sum });
            }
            self.beats.add(documents);
            after = answer.reached;
            if answer.finished {
                let types = answer.types.map(|types| types.names.into_iter().map(DocumentType::from).collect());
                return Ok(HqSums { sums, types });
            }
        }
    }

    /// The ids of some buckets that differ now.
    async fn first_look(
        &self,
        parts: &[BackfillPart],
        scope: &ComparedScope,
        bucket_count: u32,
        buckets: &BTreeSet<u32>,
    ) -> Result<BTreeSet<String>, End> {
        let wanted = WantedRows::Buckets { bucket_count, buckets };
        let rows = self.of_lake(|| self.tools.operations.row_states(scope, wanted)).await?;
        let mut look = FirstLook::of_rows(rows);
        for part in parts {
            let mut after = 0;
            loop {
                let (shard, buckets) = (part.part.clone(), buckets.iter().copied().collect());
                let stretch = ComparedStretch { shard, after, bucket_count, buckets };
                let answer = self.ask(What::Stretch(stretch)).await?;
                answer.states.into_iter().for_each(|state| look.hear(state));
                after = answer.reached;
                if answer.finished {
                    break;
                }
            }
        }
        Ok(look.end())
    }

    /// What differs of ids that did, after what was on its way has arrived.
    async fn second_look(&self, ids: &BTreeSet<String>) -> Result<Vec<Difference>, End> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        tracing::info!(
            operation = self.operation_id,
            ids = ids.len(),
            "documents differ; they are looked at again soon"
        );
        self.beats.beside(tokio::time::sleep(self.tools.options.settle())).await?;
        let mut states: Vec<ComparedState> = Vec::new();
        let all: Vec<String> = ids.iter().cloned().collect();
        for ids in all.chunks(IDS_OF_QUESTION) {
            states.extend(self.ask(What::Ids(ComparedIds { ids: ids.to_vec() })).await?.states);
        }
        self.of_lake(|| self.tools.operations.follow_tables(self.space)).await?;
        // Whatever table a row is in, also of a type that is not compared.
        let (whole, wanted): (_, HashSet<String>) =
            (ComparedScope::whole(self.space.clone()), all.into_iter().collect());
        let rows: Vec<RowState> =
            self.of_lake(|| self.tools.operations.row_states(&whole, WantedRows::Ids(&wanted))).await?;
        Ok(differences(ids, rows, states))
    }

    /// Has documents read from HQ again. Answers how many; all of them have been asked for safely then.
    async fn heal(&self, differences: &[Difference]) -> Result<u64, End> {
        let requester = Requester { cause: ChangeCause::Reconcile, operation_id: self.operation_id.to_owned() };
        let mut healed = 0;
        for (in_lake, ids) in to_heal(differences) {
            let documents = RequestedDocuments { space: self.space.clone(), ids, in_lake };
            let asking = request_changes(&*self.tools.queue, &requester, documents, &self.tools.shutdown);
            let asked = self.beats.beside(asking).await?;
            healed += asked.map_err(|error| match error {
                PublishError::Closed => End::Left,
                error => End::Failed(format!("documents cannot be asked for: {error}")),
            })? as u64;
        }
        Ok(healed)
    }

    /// Does a step with the lake. Passing trouble is waited out for a while.
    async fn of_lake<T, Step>(&self, mut step: impl FnMut() -> Step) -> Result<T, End>
    where
        Step: Future<Output = Result<T, HandleError>>,
    {
        let mut backoff = Backoff::default();
        for tried in 1.. {
            match self.beats.beside(step()).await? {
                Ok(outcome) => return Ok(outcome),
                Err(HandleError::Stopping | HandleError::NotLeaseHolder { .. }) => break,
                Err(error) if is_passing(&error) && tried < TRIES => {
                    tracing::warn!(operation = self.operation_id, error = %Chain(&error), "a comparison waits for the tables");
                    self.beats.beside(tokio::time::sleep(backoff.next_wait())).await?;
                }
                Err(error) => return Err(End::Failed(Chain(&error).to_string())),
            }
        }
        Err(End::Left)
    }
}
