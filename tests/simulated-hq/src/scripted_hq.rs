//! The HQ in memory, with a script: it notes what it is asked, and a test decides what happens before and after each answer (it waits, HQ
//! changes in between, HQ is down). The fake of all tests of a service that reads HQ.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use lake_hq::scan::compared::{Compared, ComparedScope, ComparedStretch, DocumentState, HqComparison, NumberedSum};
use lake_hq::scan::{ScanScope, ScannedKeys, ShardEstimate};
use lake_hq::source::{
    Blob, BlobReference, BlobStore, CaseRows, FormRows, Hq, HqDatabase, LocationKeys, LocationRows, LocationStep,
    LocationTypeRow, Observation, ReadFrom, SourceError, TakeTreeRow, TreeExtent, UserDirectory, Wanted,
};

use crate::memory_hq::MemoryHq;

/// What HQ is asked. Checks of readiness do not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// Cases, by their ids.
    Cases(Vec<String>, ReadFrom),
    /// Forms, by their ids.
    Forms(Vec<String>, ReadFrom),
    /// Cases in their latest state.
    LatestCases(Vec<Wanted>),
    /// Forms in their latest state.
    LatestForms(Vec<Wanted>),
    /// Rows of locations.
    LocationRows,
    /// Locations above others.
    LocationAncestors,
    /// Locations below others.
    LocationChildren,
    /// The whole location tree of a domain.
    WholeTree {
        /// Name of the domain.
        domain: String,
    },
    /// What changed in the location tree of a domain.
    ChangedTree {
        /// Name of the domain.
        domain: String,
        /// Locations that are asked for whether they changed or not.
        location_ids: Vec<String>,
        /// Whether all locations are to be counted.
        count: bool,
    },
    /// Keys of documents of a domain, after one.
    Keys {
        /// Name of the domain.
        domain: String,
        /// The key.
        after: i64,
    },
    /// Sums over documents of a domain, after a key.
    Sums {
        /// Name of the domain.
        domain: String,
        /// The key.
        after: i64,
    },
    /// Documents of a domain in buckets, after a key.
    States {
        /// Name of the domain.
        domain: String,
        /// The key.
        after: i64,
    },
    /// Documents that are compared, by their ids.
    StatesOf(Vec<String>),
    /// The blob of a key.
    Blob(String),
    /// Locations of users, by the users' ids.
    UserLocations(Vec<String>),
}

impl Question {
    fn of_tree(domain: &str, extent: TreeExtent<'_>) -> Self {
        let domain = domain.to_owned();
        match extent {
            TreeExtent::Whole => Self::WholeTree { domain },
            TreeExtent::Changed { location_ids, count, .. } => {
                Self::ChangedTree { domain, location_ids: location_ids.to_vec(), count }
            }
        }
    }
}

/// What happens around answers. By default nothing does.
#[async_trait]
pub trait Script: Send + Sync + 'static {
    /// Called before an answer is made; it may wait, or change HQ. An error is the answer.
    async fn before(&self, _question: &Question, _hq: &MemoryHq) -> Result<(), SourceError> {
        Ok(())
    }

    /// Called when an answer is made. An error is the answer instead; rows of a tree have been handed over then.
    fn after(&self, _question: &Question) -> Result<(), SourceError> {
        Ok(())
    }
}

/// No script: HQ answers at once.
impl Script for () {}

/// An HQ with a script.
pub struct ScriptedHq<S> {
    /// What is in it.
    pub memory: Arc<MemoryHq>,
    /// What happens around its answers.
    pub script: S,
    asked: Mutex<Vec<Question>>,
}

impl<S: Script> ScriptedHq<S> {
    /// An HQ without anything in it, whose clock is a simulated one: see [`MemoryHq::set_clock`].
    pub fn new(script: S) -> Arc<Self> {
        let memory = MemoryHq::new();
        memory.set_clock(1);
        Arc::new(Self { memory, script, asked: Mutex::default() })
    }

    /// The ports to it.
    pub fn hq(self: &Arc<Self>) -> Hq {
        Hq { database: Arc::<Self>::clone(self), blobs: Arc::<Self>::clone(self), users: Arc::<Self>::clone(self) }
    }

    /// What it was asked since it was made, or since [`ScriptedHq::forget_questions`].
    pub fn asked(&self) -> Vec<Question> {
        self.questions().clone()
    }

    /// How often it was asked in that time.
    pub fn times_asked(&self) -> usize {
        self.questions().len()
    }

    /// Forgets what it was asked.
    pub fn forget_questions(&self) {
        self.questions().clear();
    }

    fn questions(&self) -> MutexGuard<'_, Vec<Question>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer<T>(
        &self,
        question: Question,
        answer: impl Future<Output = Result<T, SourceError>> + Send,
    ) -> Result<T, SourceError> {
        self.questions().push(question.clone());
        self.script.before(&question, &self.memory).await?;
        let answer = answer.await?;
        self.script.after(&question)?;
        Ok(answer)
    }
}

#[async_trait]
impl<S: Script> HqComparison for ScriptedHq<S> {
    async fn sum_stretch(
        &self,
        scope: &ComparedScope,
        stretch: ComparedStretch<'_>,
    ) -> Result<Option<Compared<NumberedSum>>, SourceError> {
        let question = Question::Sums { domain: scope.scan.domain.to_string(), after: stretch.after };
        self.answer(question, self.memory.sum_stretch(scope, stretch)).await
    }

    async fn stretch_states(
        &self,
        scope: &ComparedScope,
        stretch: ComparedStretch<'_>,
        buckets: &[u32],
    ) -> Result<Option<Compared<DocumentState>>, SourceError> {
        let question = Question::States { domain: scope.scan.domain.to_string(), after: stretch.after };
        self.answer(question, self.memory.stretch_states(scope, stretch, buckets)).await
    }

    async fn read_states(&self, scope: &ScanScope, ids: &[String]) -> Result<Vec<DocumentState>, SourceError> {
        self.answer(Question::StatesOf(ids.to_vec()), self.memory.read_states(scope, ids)).await
    }
}

#[async_trait]
impl<S: Script> HqDatabase for ScriptedHq<S> {
    async fn cases(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Observation<CaseRows>>, SourceError> {
        self.answer(Question::Cases(ids.to_vec(), from), self.memory.cases(ids, from)).await
    }

    async fn forms(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Observation<FormRows>>, SourceError> {
        self.answer(Question::Forms(ids.to_vec(), from), self.memory.forms(ids, from)).await
    }

    async fn latest_cases(&self, wanted: &[Wanted]) -> Result<Vec<Observation<CaseRows>>, SourceError> {
        self.answer(Question::LatestCases(wanted.to_vec()), self.memory.latest_cases(wanted)).await
    }

    async fn latest_forms(&self, wanted: &[Wanted]) -> Result<Vec<Observation<FormRows>>, SourceError> {
        self.answer(Question::LatestForms(wanted.to_vec()), self.memory.latest_forms(wanted)).await
    }

    async fn location_rows(&self, keys: LocationKeys<'_>) -> Result<LocationRows, SourceError> {
        self.answer(Question::LocationRows, self.memory.location_rows(keys)).await
    }

    async fn location_ancestors(&self, ids: &[i64]) -> Result<Vec<LocationStep>, SourceError> {
        self.answer(Question::LocationAncestors, self.memory.location_ancestors(ids)).await
    }

    async fn location_children(&self, parent_ids: &[i64]) -> Result<Vec<(i64, i64)>, SourceError> {
        self.answer(Question::LocationChildren, self.memory.location_children(parent_ids)).await
    }

    async fn location_tree(
        &self,
        domain: &str,
        extent: TreeExtent<'_>,
        take: &mut TakeTreeRow<'_>,
    ) -> Result<i64, SourceError> {
        self.answer(Question::of_tree(domain, extent), self.memory.location_tree(domain, extent, take)).await
    }

    /// Asked in the background, at any time: not noted.
    async fn location_types(&self, since_us: i64) -> Result<Vec<LocationTypeRow>, SourceError> {
        self.memory.location_types(since_us).await
    }

    async fn locations_of_type(&self, type_id: i64, after: i64) -> Result<Vec<i64>, SourceError> {
        self.memory.locations_of_type(type_id, after).await
    }

    /// Asked by an operator, at any time: not noted.
    async fn scan_estimates(&self, scope: &ScanScope) -> Result<Vec<ShardEstimate>, SourceError> {
        self.memory.scan_estimates(scope).await
    }

    async fn scan_keys(
        &self,
        scope: &ScanScope,
        shard: &str,
        after: i64,
        keys_max: usize,
    ) -> Result<Option<ScannedKeys>, SourceError> {
        let question = Question::Keys { domain: scope.domain.to_string(), after };
        self.answer(question, self.memory.scan_keys(scope, shard, after, keys_max)).await
    }

    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[async_trait]
impl<S: Script> BlobStore for ScriptedHq<S> {
    async fn get(&self, blob: &BlobReference) -> Result<Blob, SourceError> {
        self.answer(Question::Blob(blob.key.clone()), self.memory.get(blob)).await
    }

    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[async_trait]
impl<S: Script> UserDirectory for ScriptedHq<S> {
    async fn locations(
        &self,
        domain: &str,
        user_ids: &[String],
    ) -> Result<HashMap<String, Option<String>>, SourceError> {
        self.answer(Question::UserLocations(user_ids.to_vec()), self.memory.locations(domain, user_ids)).await
    }

    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}
