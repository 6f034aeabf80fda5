//! Cases and forms over all shard databases and their replicas.
//!
//! Replicas are asked first. From the primaries comes what no replica has, what a replica has that is older than the change that is asked for
//! (it would be read once, and never again), and what is known to have been deleted. Every copy of a database is asked once per batch,
//! and where there is no replica its primary has all questions at once: so a batch costs at most four statements per copy, the second
//! try included. Whether a replica is new enough is told by HQ's time of publication and the time of the last transaction that it has; a
//! publisher whose clock is behind that of the database by more than the replica lags could be misled by so much.
//!
//! Which of several observations of an id counts: of one database the latest, which is that of the primary. Where every shard is asked, rows
//! win over no rows; of rows in two databases (one of them left over when shards were moved) the newer version. An id that none has was seen missing at the latest of their clocks, so that
//! this certainly comes after every observation of its rows that went before.

use std::collections::HashMap;
use std::sync::Arc;

use futures::future::{try_join, try_join_all};
use lake_shared::secret::Secret;

use super::database::{Database, Limits, Role};
use super::memory::AnswerRoom;
use super::records::{Extent, Records};
use super::routing::Routing;
use crate::document_rules::{self, Disposition};
use crate::pace::Turns;
use crate::source::{CaseRows, FormRows, Observation, ReadFrom, SourceError, Wanted, answer_bytes_max};

/// All databases with cases and forms, and how ids are routed to them.
pub(super) struct Shards {
    routing: Routing,
    shards: Vec<Shard>,
    record_bytes_max: usize,
}

/// One database with cases and forms.
pub(super) struct Shard {
    primary: Records,
    replica: Option<Records>,
}

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) enum Asked<'a> {
    /// From one kind of copy only.
    From(ReadFrom, &'a [String]),
    /// From whichever copy knows it.
    Latest(&'a [Wanted]),
}

impl Asked<'_> {
    /// Most bytes of memory that the answer may take, where a record that is asked for alone may take so many.
    fn bytes_max(&self, record_bytes_max: usize) -> usize {
        match self {
            Self::From(_, [_]) | Self::Latest([Wanted { alone: true, .. }]) => record_bytes_max,
            Self::From(_, ids) => answer_bytes_max(ids.len()),
            Self::Latest(wanted) => answer_bytes_max(wanted.len()),
        }
    }
}

impl Asked<'_> {
    /// Ids that replicas are asked for, and those that only primaries are asked for.
    fn ids(&self) -> (Vec<&String>, Vec<&String>) {
        match self {
            Self::From(ReadFrom::Replica, ids) => (ids.iter().collect(), Vec::new()),
            Self::From(ReadFrom::Primary, ids) => (Vec::new(), ids.iter().collect()),
            Self::Latest(wanted) => {
                let ids =
                    |deleted| wanted.iter().filter(move |one| one.deleted == deleted).map(|one| &one.id).collect();
                (ids(false), ids(true))
            }
        }
    }
}

/// A kind of record that shards hold: cases or forms.
pub(super) trait Document: Sized + Send {
    /// Reads them from one copy of one database.
    fn read(
        records: &Records,
        ids: &[String],
        room: &AnswerRoom,
    ) -> impl Future<Output = Result<Option<Vec<Observation<Self>>>, SourceError>> + Send;

    /// What the rows mean.
    fn disposition(&self) -> Disposition;
}

impl Document for CaseRows {
    async fn read(
        records: &Records,
        ids: &[String],
        room: &AnswerRoom,
    ) -> Result<Option<Vec<Observation<Self>>>, SourceError> {
        records.cases(ids, room).await
    }

    fn disposition(&self) -> Disposition {
        document_rules::of_case(Some(self))
    }
}

impl Document for FormRows {
    async fn read(
        records: &Records,
        ids: &[String],
        room: &AnswerRoom,
    ) -> Result<Option<Vec<Observation<Self>>>, SourceError> {
        records.forms(ids, room).await
    }

    fn disposition(&self) -> Disposition {
        document_rules::of_form(Some(self))
    }
}

impl Shard {
    pub async fn connect(
        primary: Arc<Database>,
        replica_url: Option<&Secret>,
        limits: Limits,
        extent: Extent,
        turns: &Arc<Turns>,
    ) -> Result<Self, SourceError> {
        let replica = match replica_url {
            Some(url) => {
                let name = format!("replica of {}", primary.name());
                let database = Database::new(name, url.expose(), Role::Replica, limits, Arc::clone(turns))?;
                Some(Records::connect(database.into(), extent).await?)
            }
            None => None,
        };
        Ok(Self { primary: Records::connect(primary, extent).await?, replica })
    }

    fn databases(&self) -> impl Iterator<Item = &Database> {
        [Some(&self.primary), self.replica.as_ref()].into_iter().flatten().map(Records::database)
    }
}

impl Shards {
    /// Checks a few rows of each database. One that is a replica of another shard is not used. `record_bytes_max`: most bytes of memory that the
    /// rows of a record may take which is asked for alone.
    pub async fn new(routing: Routing, mut shards: Vec<Shard>, record_bytes_max: usize) -> Result<Self, SourceError> {
        if routing.is_by_hash() {
            for (shard_index, shard) in shards.iter_mut().enumerate() {
                let (primary, replica) = try_join(shard.primary.some_ids(), async {
                    match &shard.replica {
                        Some(replica) => replica.some_ids().await,
                        None => Ok(Vec::new()),
                    }
                })
                .await?;
                // Where the primary is where it does not belong, so is its replica.
                if routing.check(shard_index, &primary) && !routing.fits(shard_index, &replica) {
                    let database = shard.replica.take().map(|replica| replica.database().name().to_owned());
                    tracing::warn!(database, "it holds rows of another shard and is not used; check its address");
                }
            }
        }
        Ok(Self { routing, shards, record_bytes_max })
    }

    /// The primary of each database, with its name in the configuration.
    pub fn primaries(&self) -> impl Iterator<Item = (&str, &Database)> {
        let primaries = self.shards.iter().map(|shard| shard.primary.database());
        self.routing.names().iter().map(String::as_str).zip(primaries)
    }

    /// The replica of a database with this name in the configuration, if it has one.
    pub fn replica_of(&self, name: &str) -> Option<&Database> {
        let place = self.routing.names().iter().position(|known| known == name)?;
        self.shards.get(place)?.replica.as_ref().map(Records::database)
    }

    /// Most bytes of memory that the rows of a record may take which is asked for alone.
    pub fn record_bytes_max(&self) -> usize {
        self.record_bytes_max
    }

    /// All copies of all databases.
    pub fn databases(&self) -> impl Iterator<Item = &Database> {
        self.shards.iter().flat_map(Shard::databases)
    }

    /// Reads documents: each different id is answered once.
    pub async fn read<T: Document>(&self, asked: Asked<'_>) -> Result<Vec<Observation<T>>, SourceError> {
        let was_by_hash = self.routing.is_by_hash();
        let observations = self.read_once(asked).await?;
        // Before an id is called missing, the map that led to this answer has to be proved.
        let missing = observations.iter().any(|observation| observation.rows.is_none());
        if was_by_hash && missing && !self.is_map_proved().await? {
            self.read_once(asked).await
        } else {
            Ok(observations)
        }
    }

    async fn is_map_proved(&self) -> Result<bool, SourceError> {
        let unchecked = self.routing.unchecked();
        let looks = unchecked
            .iter()
            .map(async |&shard_index| Ok((shard_index, self.shards[shard_index].primary.some_ids().await?)));
        let seen: Vec<(usize, Vec<String>)> = try_join_all(looks).await?;
        let proved = seen.iter().all(|(shard_index, ids)| ids.is_empty() || self.routing.check(*shard_index, ids));
        Ok(proved && self.routing.is_by_hash())
    }

    async fn read_once<T: Document>(&self, asked: Asked<'_>) -> Result<Vec<Observation<T>>, SourceError> {
        let bytes_max = asked.bytes_max(self.record_bytes_max);
        // What the second try brings takes the place of what the first one had.
        let (room, room_again) = (AnswerRoom::new(bytes_max), &AnswerRoom::new(bytes_max));
        let (of_replicas, of_primaries) = asked.ids();
        let mut later = self.routing.route(of_primaries.into_iter());
        let mut seen = self.read_first(self.routing.route(of_replicas.into_iter()), &mut later, &room).await?;
        if let Asked::Latest(wanted) = asked {
            let again = seen.take_outdated(wanted);
            for (shard_index, ids) in self.routing.route(again.iter()).into_iter().enumerate() {
                if self.shards[shard_index].replica.is_some() {
                    later[shard_index].extend(ids);
                }
            }
        }
        let reads = later.iter().enumerate().filter(|(_, ids)| !ids.is_empty()).map(async |(shard_index, ids)| {
            let shard = &self.shards[shard_index];
            let observations = T::read(&shard.primary, ids, room_again).await?.ok_or_else(|| shard.no_clock())?;
            Ok::<_, SourceError>((shard_index, observations))
        });
        for (shard_index, observations) in try_join_all(reads).await? {
            let answer = |observation| Answer { shard_index, on_replica: false, observation };
            observations.into_iter().map(answer).for_each(|answer| seen.add(answer));
        }
        Ok(seen.into_observations())
    }

    /// The first try: replicas. A database without one is asked for everything now, also for what is in `later`; a replica that cannot tell
    /// how new it is (a standby that has not replayed anything) leaves its ids there.
    async fn read_first<T: Document>(
        &self,
        ids: Vec<Vec<String>>,
        later: &mut [Vec<String>],
        room: &AnswerRoom,
    ) -> Result<Seen<T>, SourceError> {
        let mut reads = Vec::new();
        for (shard_index, mut ids) in ids.into_iter().enumerate().filter(|(_, ids)| !ids.is_empty()) {
            let shard = &self.shards[shard_index];
            if shard.replica.is_none() {
                ids.append(&mut later[shard_index]);
            }
            reads.push(async move {
                let observations = match T::read(shard.replica.as_ref().unwrap_or(&shard.primary), &ids, room).await {
                    // A replica gives up long reads that are in the way of its replay, and may be damaged: the primary has the last word.
                    Err(SourceError::AskLess { .. }) if ids.len() == 1 && shard.replica.is_some() => None,
                    other => other?,
                };
                Ok::<_, SourceError>((shard_index, ids, observations))
            });
        }
        let mut seen = Seen::default();
        for (shard_index, ids, observations) in try_join_all(reads).await? {
            let shard = &self.shards[shard_index];
            match observations {
                Some(observations) => {
                    let answer = |observation| Answer { shard_index, on_replica: shard.replica.is_some(), observation };
                    observations.into_iter().map(answer).for_each(|answer| seen.add(answer));
                }
                None if shard.replica.is_some() => later[shard_index].extend(ids),
                None => return Err(shard.no_clock()),
            }
        }
        Ok(seen)
    }
}

impl Shard {
    fn no_clock(&self) -> SourceError {
        SourceError::Unavailable {
            action: format!("read from {}", self.primary.database().name()),
            reason: "it is a standby that has not replayed any transaction yet".into(),
        }
    }
}

/// What one database said of an id.
struct Answer<T> {
    shard_index: usize,
    on_replica: bool,
    observation: Observation<T>,
}

/// What was seen of each id so far: at most one answer of each database.
struct Seen<T> {
    by_id: HashMap<String, Vec<Answer<T>>>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self { by_id: HashMap::new() }
    }
}

impl<T: Document> Seen<T> {
    /// Takes an answer. A primary is asked after its replica and knows more, whatever their clocks say.
    fn add(&mut self, answer: Answer<T>) {
        let answers = self.by_id.entry(answer.observation.id.clone()).or_default();
        match answers.iter_mut().find(|held| held.shard_index == answer.shard_index) {
            Some(held) if held.on_replica || !answer.on_replica => *held = answer,
            Some(_) => {}
            None => answers.push(answer),
        }
    }

    /// Ids that a primary has to be asked for: those that no database has, and those that a replica had from before their change. What
    /// replicas said of these does not count.
    fn take_outdated(&mut self, wanted: &[Wanted]) -> Vec<String> {
        let mut outdated = Vec::new();
        for Wanted { id, changed_us, .. } in wanted {
            let Some(answers) = self.by_id.get_mut(id) else { continue };
            let Some(best) = answers.iter().reduce(better) else { continue };
            if best.observation.rows.is_none() {
                outdated.push(id.clone());
            } else if best.on_replica && best.observation.observed_us < *changed_us {
                outdated.push(id.clone());
                answers.retain(|answer| !answer.on_replica);
            }
        }
        outdated
    }

    fn into_observations(self) -> Vec<Observation<T>> {
        let best = |answers: Vec<Answer<T>>| answers.into_iter().reduce(better_of);
        self.by_id.into_values().filter_map(best).map(|answer| answer.observation).collect()
    }
}

fn better_of<T: Document>(one: Answer<T>, other: Answer<T>) -> Answer<T> {
    if is_better(&other.observation, &one.observation) { other } else { one }
}

fn better<'a, T: Document>(one: &'a Answer<T>, other: &'a Answer<T>) -> &'a Answer<T> {
    if is_better(&other.observation, &one.observation) { other } else { one }
}

/// Which of the answers of two databases counts. Their clocks are two, and neither says which row was left over; its version does.
fn is_better<T: Document>(one: &Observation<T>, than: &Observation<T>) -> bool {
    match (&one.rows, &than.rows) {
        (Some(one_rows), Some(than_rows)) => {
            (version_us(one_rows), one.observed_us) > (version_us(than_rows), than.observed_us)
        }
        (one_rows, than_rows) if one_rows.is_some() == than_rows.is_some() => one.observed_us > than.observed_us,
        (one_rows, _) => one_rows.is_some(),
    }
}

fn version_us<T: Document>(rows: &T) -> Option<i64> {
    match rows.disposition() {
        Disposition::Upsert { version_us, .. } => Some(version_us),
        Disposition::Tombstone { version_us, .. } => version_us,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn observation(observed_us: i64, modified_on: Option<&str>) -> Observation<CaseRows> {
        let rows = modified_on.map(|at| CaseRows {
            case: json!({"case_id": "c", "domain": "d", "server_modified_on": at}).as_object().unwrap().clone(),
            ..CaseRows::default()
        });
        Observation { id: "c".into(), observed_us, rows }
    }

    fn answer(shard_index: usize, on_replica: bool, observation: Observation<CaseRows>) -> Answer<CaseRows> {
        Answer { shard_index, on_replica, observation }
    }

    fn seen(answers: impl IntoIterator<Item = Answer<CaseRows>>) -> Seen<CaseRows> {
        let mut seen = Seen::default();
        answers.into_iter().for_each(|answer| seen.add(answer));
        seen
    }

    const OLD: Option<&str> = Some("2026-01-01T00:00:00.000000Z");
    const NEW: Option<&str> = Some("2026-01-02T00:00:00.000000Z");

    #[test]
    fn of_several_databases_rows_win_over_none_and_the_newer_version_over_what_was_left_behind() {
        let all =
            [observation(5, None), observation(3, OLD), observation(2, NEW), observation(9, None), observation(7, OLD)];
        for turned in 0..all.len() {
            let mut order: Vec<_> = all.iter().cloned().enumerate().collect();
            order.rotate_left(turned);
            let answers = order.into_iter().map(|(shard_index, one)| answer(shard_index, false, one));
            assert_eq!(seen(answers).into_observations(), [observation(2, NEW)]);
        }
    }

    #[test]
    fn of_one_database_the_primary_counts_and_not_the_version() {
        // A later change of an earlier version, on a primary whose clock is behind that of the one that the replica follows.
        let (on_replica, on_primary) = (observation(9, NEW), observation(8, OLD));
        let both = [answer(0, true, on_replica.clone()), answer(0, false, on_primary.clone())];
        assert_eq!(seen(both).into_observations(), std::slice::from_ref(&on_primary));
        let turned = [answer(0, false, on_primary.clone()), answer(0, true, on_replica)];
        assert_eq!(seen(turned).into_observations(), [on_primary]);
    }

    #[test]
    fn a_replica_does_not_count_for_what_is_newer_than_it() {
        for (on_replica, changed_us, outdated) in
            [(true, 9, true), (true, 5, false), (true, 0, false), (false, 9, false)]
        {
            let mut seen = seen([answer(0, on_replica, observation(5, OLD))]);
            let wanted = [Wanted { id: "c".into(), changed_us, deleted: false, alone: false }];
            assert_eq!(!seen.take_outdated(&wanted).is_empty(), outdated, "{on_replica} {changed_us}");
            // The primary is asked only then; it does not have it any more.
            if outdated {
                seen.add(answer(0, false, observation(10, None)));
            }
            assert_eq!(seen.into_observations(), [if outdated { observation(10, None) } else { observation(5, OLD) }]);
        }
    }

    #[test]
    fn what_primaries_said_stays_when_a_replica_is_outdated() {
        let mut seen = seen([answer(0, true, observation(5, NEW)), answer(1, false, observation(6, OLD))]);
        let wanted = [Wanted { id: "c".into(), changed_us: 9, deleted: false, alone: false }];
        assert_eq!(seen.take_outdated(&wanted), ["c"]);
        seen.add(answer(0, false, observation(10, None)));
        assert_eq!(seen.into_observations(), [observation(6, OLD)]);
    }

    #[test]
    fn an_id_that_no_database_has_was_missing_at_the_latest_of_the_clocks() {
        for order in [[5, 9, 7], [9, 7, 5], [7, 5, 9]] {
            let answers = order.into_iter().enumerate().map(|(shard, at)| answer(shard, false, observation(at, None)));
            assert_eq!(seen(answers).into_observations(), [observation(9, None)]);
        }
    }
}
