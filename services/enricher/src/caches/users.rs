//! The location of each user, looked up in bulk.
//!
//! A worker may be assigned to a location at the moment of a submission. The change of the record and that of the user come by different
//! ways, in any order, and Elasticsearch shows a changed user only seconds later. Therefore, for `user_settle_seconds`:
//!
//! * A record that was published just now is not given what was remembered before: HQ is asked again, one question in bulk for each batch. (Records
//!   of a backlog take what is remembered.) Workers send many records in a row, so the location of a user is given to records of the next
//!   `user_reuse_seconds` as well, as long as no change of the user is heard; that a user has none is not.
//! * What HQ answers so soon after a record's publication, or after a change of the user was heard, is remembered no longer than that time.
//!
//! With CouchDB that is exact. With Elasticsearch a row that was made while HQ's own consumer of users was behind shows the older place until its
//! record changes again; rows of the user's later records are right.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::Utc;
use lake_hq::source::{SourceError, UserDirectory};
use lake_shared::escaped_names;
use lake_shared::identity::Domain;
use tokio::time::Instant;

use super::user_entries::{LookUp, UserEntries, UserLocation};
use crate::metric_names;
use crate::options::CacheOptions;

/// Most users in one question.
const ASKED_MAX: usize = 1_000;

/// The cache of users' locations, in front of HQ's user directory.
pub struct Users {
    directory: Arc<dyn UserDirectory>,
    max_age: Duration,
    max_age_without_location: Duration,
    settle: Duration,
    entries: Mutex<UserEntries>,
}

impl Users {
    /// A cache without any user, in front of HQ's user directory.
    pub fn new(directory: Arc<dyn UserDirectory>, options: &CacheOptions) -> Self {
        let settle = Duration::from_secs(options.user_settle_seconds);
        Self {
            directory,
            settle,
            max_age: Duration::from_secs(options.user_max_age_seconds),
            max_age_without_location: Duration::from_secs(options.user_without_location_max_age_seconds),
            entries: Mutex::new(UserEntries::new(
                options.user_entries_max,
                settle,
                Duration::from_secs(options.user_reuse_seconds),
            )),
        }
    }

    fn lock(&self) -> MutexGuard<'_, UserEntries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The location of each of these users; every one of them gets an answer. HQ is asked only for those that are not remembered. `wanted` has,
    /// for each user, the time at which the newest of the records that need the location was published, in microseconds since 1970.
    ///
    /// # Errors
    /// What asking HQ's user directory fails with.
    pub async fn locations(
        &self,
        domain: &Domain,
        wanted: &BTreeMap<&str, i64>,
    ) -> Result<HashMap<String, UserLocation>, SourceError> {
        let key: Arc<str> = escaped_names::token(domain.as_str()).into();
        let mut locations = HashMap::with_capacity(wanted.len());
        let mut missing = Vec::new();
        {
            let (now, now_us, mut entries) = (Instant::now(), Utc::now().timestamp_micros(), self.lock());
            for (user_id, published_us) in wanted {
                let published = recent_age(*published_us, now_us, self.settle).and_then(|age| now.checked_sub(age));
                match entries.find(&key, user_id, now, published) {
                    Some(location) => drop(locations.insert((*user_id).to_owned(), location)),
                    None => missing.push(MissingUser {
                        user_id: (*user_id).to_owned(),
                        settled: published.map(|at| at + self.settle),
                    }),
                }
            }
        }
        metrics::counter!(metric_names::CACHE_HITS_TOTAL, "cache" => "users").increment(locations.len() as u64);
        metrics::counter!(metric_names::CACHE_MISSES_TOTAL, "cache" => "users").increment(missing.len() as u64);
        for asked in missing.chunks(ASKED_MAX) {
            self.look_up(domain, &key, asked, &mut locations).await?;
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
        for MissingUser { user_id, settled } in asked {
            let location: UserLocation =
                answers.remove(user_id).flatten().filter(|location| !location.is_empty()).map(Into::into);
            let max_age = if location.is_some() { self.max_age } else { self.max_age_without_location };
            let until = settled.map_or(now + max_age, |settled| settled.min(now + max_age));
            entries.put(look_up.look_up, key, user_id, location.clone(), until);
            locations.insert(user_id.clone(), location);
        }
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!(metric_names::CACHE_ENTRIES, "cache" => "users").set(entries.len() as f64);
        Ok(())
    }

    /// Takes note that these users changed (in whatever domain); without ids, every user of the domain; without a domain too, every user.
    pub fn forget(&self, domain_token: Option<&str>, user_ids: &[String]) {
        let (now, mut entries) = (Instant::now(), self.lock());
        match (domain_token, user_ids) {
            (None, []) => entries.forget_all(now),
            (Some(domain), []) => entries.forget_domain(domain, now),
            (_, user_ids) => user_ids.iter().for_each(|user_id| entries.forget_user(user_id, now)),
        }
    }
}

/// A user that HQ has to be asked for.
struct MissingUser {
    user_id: String,
    /// Until when HQ may still give an old answer; `None` where it does not.
    settled: Option<Instant>,
}

/// The age of a change that was published less than `settle` ago, so that its user may have changed with it. As clocks differ, a time of
/// publication in the future counts as now.
fn recent_age(published_us: i64, now_us: i64, settle: Duration) -> Option<Duration> {
    let age = Duration::from_micros(u64::try_from(now_us.saturating_sub(published_us)).unwrap_or(0));
    (age < settle).then_some(age)
}

/// Ends the look-up also when its future is dropped.
struct UnderWay<'u> {
    users: &'u Users,
    look_up: LookUp,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.users.lock().end(self.look_up);
    }
}
