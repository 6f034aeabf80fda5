//! The location of each user, looked up in bulk.
//!
//! A worker may be assigned to a location at the moment of a submission. The change of the record and that of the user come by different
//! ways, in any order, and Elasticsearch shows a changed user only seconds later. Therefore, for `user_settle_seconds`:
//!
//! * A record that was published just now is not given what was remembered before: HQ is asked again, one question in bulk for each batch. (Records
//!   of a backlog take what is remembered.) Workers send many records in a row, so the location of a user is given to records of the next
//!   `user_reuse_seconds` as well, as long as no change of the user is heard; that a user has none to those of the next
//!   `user_without_location_reuse_seconds`.
//! * What HQ answers so soon after a record's publication, or after a change of the user was heard, is remembered no longer than that time.
//!
//! With CouchDB that is exact. With Elasticsearch a row that was made while HQ's own consumer of users was behind shows the older place until its
//! record changes again; rows of the user's later records are right.
//!
//! However many batches come at once, a user is asked for once in those times: a domain has one question under way, the next one asks for all users
//! that were wanted meanwhile, and whoever waited finds the answers in the cache. See [`super::user_questions`].

use std::collections::{BTreeMap, HashMap};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use futures::FutureExt;
use lake_hq::source::{SourceError, UserDirectory};
use lake_shared::escaped_names;
use lake_shared::identity::Domain;
use tokio::time::Instant;

use super::user_entries::{LookUp, UserEntries, UserLocation};
use super::user_questions::{MissingUser, UserQuestions};
use crate::metric_names;
use crate::options::CacheOptions;

/// Most users in one question.
const ASKED_MAX: usize = 1_000;

/// The cache of users' locations, in front of HQ's user directory. A clone is the same cache.
#[derive(Clone)]
pub struct Users(Arc<CachedUsers>);

struct CachedUsers {
    directory: Arc<dyn UserDirectory>,
    max_age: Duration,
    max_age_without_location: Duration,
    settle: Duration,
    entries: Mutex<UserEntries>,
    questions: UserQuestions,
}

impl Users {
    /// A cache without any user, in front of HQ's user directory.
    pub fn new(directory: Arc<dyn UserDirectory>, options: &CacheOptions) -> Self {
        Self(Arc::new(CachedUsers {
            directory,
            settle: Duration::from_secs(options.user_settle_seconds),
            max_age: Duration::from_secs(options.user_max_age_seconds),
            max_age_without_location: Duration::from_secs(options.user_without_location_max_age_seconds),
            entries: Mutex::new(UserEntries::new(options)),
            questions: UserQuestions::new(options.user_look_ups_max),
        }))
    }

    /// The location of each of these users; every one of them gets an answer. HQ is asked only for those that are not remembered. `wanted` has,
    /// for each user, the time at which the newest of the records that need the location was published, in microseconds since 1970.
    ///
    /// A look-up goes on where its caller does not wait for it any more: the next caller finds the answer.
    ///
    /// # Errors
    /// What asking HQ's user directory fails with.
    pub async fn locations(
        &self,
        domain: &Domain,
        wanted: &BTreeMap<&str, i64>,
    ) -> Result<HashMap<String, UserLocation>, SourceError> {
        let key: Arc<str> = escaped_names::token(domain.as_str()).into();
        let (now, now_us) = (Instant::now(), Utc::now().timestamp_micros());
        let mut missing = Vec::with_capacity(wanted.len());
        for (user_id, published_us) in wanted {
            let age = recent_age(*published_us, now_us, self.0.settle);
            let published = age.and_then(|age| now.checked_sub(age));
            missing.push(MissingUser { user_id: (*user_id).to_owned(), published });
        }
        let mut locations = HashMap::with_capacity(wanted.len());
        self.0.take_remembered(&key, &mut missing, &mut locations);
        metrics::counter!(metric_names::CACHE_HITS_TOTAL, "cache" => "users").increment(locations.len() as u64);
        metrics::counter!(metric_names::CACHE_MISSES_TOTAL, "cache" => "users").increment(missing.len() as u64);
        if missing.is_empty() {
            return Ok(locations);
        }
        let (users, domain) = (Arc::clone(&self.0), domain.clone());
        let asked = tokio::spawn(async move { users.ask(&domain, &key, missing).await });
        match asked.await {
            Ok(found) => {
                locations.extend(found?.into_iter().filter(|(user_id, _)| wanted.contains_key(user_id.as_str())))
            }
            Err(ended) => match ended.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => {
                    let action = "ask for the locations of users".into();
                    return Err(SourceError::Unavailable { action, reason: error.to_string() });
                }
            },
        }
        Ok(locations)
    }

    /// Takes note that these users changed (in whatever domain); without ids, every user of the domain; without a domain too, every user.
    pub fn forget(&self, domain_token: Option<&str>, user_ids: &[String]) {
        let (now, mut entries) = (Instant::now(), self.0.lock());
        match (domain_token, user_ids) {
            (None, []) => entries.forget_all(now),
            (Some(domain), []) => entries.forget_domain(domain, now),
            (_, user_ids) => user_ids.iter().for_each(|user_id| entries.forget_user(user_id, now)),
        }
    }
}

impl CachedUsers {
    fn lock(&self) -> MutexGuard<'_, UserEntries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Moves those users that are remembered from `missing` to `locations`.
    fn take_remembered(
        &self,
        key: &Arc<str>,
        missing: &mut Vec<MissingUser>,
        locations: &mut HashMap<String, UserLocation>,
    ) {
        let (now, mut entries) = (Instant::now(), self.lock());
        missing.retain_mut(|user| match entries.find(key, &user.user_id, now, user.published) {
            Some(location) => {
                locations.insert(std::mem::take(&mut user.user_id), location);
                false
            }
            None => true,
        });
    }

    /// Waits for the domain's turn, and asks HQ for those users that nobody has asked for meanwhile, together with those that others wait for.
    /// Answers these and perhaps others.
    async fn ask(
        &self,
        domain: &Domain,
        key: &Arc<str>,
        mut missing: Vec<MissingUser>,
    ) -> Result<HashMap<String, UserLocation>, SourceError> {
        let came = Instant::now();
        let questions = self.questions.of_domain(key);
        questions.want(&missing);
        let mut turn = questions.turn().await;
        let mut locations = HashMap::with_capacity(missing.len());
        self.take_remembered(key, &mut missing, &mut locations);
        if missing.is_empty() {
            return Ok(locations);
        }
        if let Some(error) = turn.failed_since(came, &missing) {
            return Err(error);
        }
        let mut together = questions.wanted_besides(&missing, ASKED_MAX);
        self.take_remembered(key, &mut together, &mut HashMap::new());
        let _permit = self.questions.permit().await?;
        if !together.is_empty() {
            together.extend(missing.iter().cloned());
            let asked = AssertUnwindSafe(self.look_up(domain, key, &together, &mut locations)).catch_unwind();
            let answered = asked.await;
            if matches!(answered, Ok(Ok(()))) {
                return Ok(locations);
            }
            // One of the others may be the trouble; whoever waits for it will see.
        }
        let began = Instant::now();
        for asked in missing.chunks(ASKED_MAX) {
            if let Err(error) = self.look_up(domain, key, asked, &mut locations).await {
                together.extend(missing);
                turn.failed(began, error.clone(), together);
                return Err(error);
            }
        }
        Ok(locations)
    }

    async fn look_up(
        &self,
        domain: &Domain,
        key: &Arc<str>,
        asked: &[MissingUser],
        locations: &mut HashMap<String, UserLocation>,
    ) -> Result<(), SourceError> {
        let look_up = UnderWay { users: self, look_up: self.lock().begin(Instant::now()) };
        let user_ids: Vec<String> = asked.iter().map(|asked| asked.user_id.clone()).collect();
        let mut answers = self.directory.locations(domain.as_str(), &user_ids).await?;
        let now = Instant::now();
        let mut entries = self.lock();
        for MissingUser { user_id, published } in asked {
            let location: UserLocation =
                answers.remove(user_id).flatten().filter(|location| !location.is_empty()).map(Into::into);
            let max_age = if location.is_some() { self.max_age } else { self.max_age_without_location };
            // Until the record's publication is so long ago, HQ may still give an old answer.
            let settled = published.map(|published| published + self.settle);
            let until = settled.map_or(now + max_age, |settled| settled.min(now + max_age));
            entries.put(look_up.look_up, key, user_id, location.clone(), until);
            locations.insert(user_id.clone(), location);
        }
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!(metric_names::CACHE_ENTRIES, "cache" => "users").set(entries.len() as f64);
        Ok(())
    }
}

/// The age of a change that was published less than `settle` ago, so that its user may have changed with it. As clocks differ, a time of
/// publication in the future counts as now.
fn recent_age(published_us: i64, now_us: i64, settle: Duration) -> Option<Duration> {
    let age = Duration::from_micros(u64::try_from(now_us.saturating_sub(published_us)).unwrap_or(0));
    (age < settle).then_some(age)
}

/// Ends the look-up also when its future is dropped.
struct UnderWay<'u> {
    users: &'u CachedUsers,
    look_up: LookUp,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.users.lock().end(self.look_up);
    }
}
