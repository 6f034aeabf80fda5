//! The location of each user, looked up in bulk.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lake_hq::source::{SourceError, UserDirectory};
use lake_shared::identity::Domain;
use lake_shared::names;
use tokio::time::Instant;

use super::user_entries::{LookUp, UserEntries, UserLocation};
use crate::metric_names;
use crate::options::CacheOptions;

/// Most users in one question.
const ASKED_MAX: usize = 1_000;

/// See the module.
pub struct Users {
    directory: Arc<dyn UserDirectory>,
    max_age: Duration,
    max_age_without_location: Duration,
    entries: Mutex<UserEntries>,
}

impl Users {
    /// Nothing is known yet.
    pub fn new(directory: Arc<dyn UserDirectory>, options: &CacheOptions) -> Self {
        Self {
            directory,
            max_age: Duration::from_secs(options.user_max_age_seconds),
            max_age_without_location: Duration::from_secs(options.user_without_location_max_age_seconds),
            entries: Mutex::new(UserEntries::new(options.user_entries_max)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, UserEntries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The location of each of these users, who all get an answer. Asks HQ for those only that are not remembered.
    pub async fn locations(
        &self,
        domain: &Domain,
        user_ids: &BTreeSet<&str>,
    ) -> Result<HashMap<String, UserLocation>, SourceError> {
        let key: Arc<str> = names::token(domain.as_str()).into();
        let mut locations = HashMap::with_capacity(user_ids.len());
        let mut missing = Vec::new();
        {
            let (now, mut entries) = (Instant::now(), self.lock());
            for user_id in user_ids {
                match entries.find(&key, user_id, now) {
                    Some(location) => drop(locations.insert((*user_id).to_owned(), location)),
                    None => missing.push((*user_id).to_owned()),
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
        asked: &[String],
        locations: &mut HashMap<String, UserLocation>,
    ) -> Result<(), SourceError> {
        let look_up = UnderWay { users: self, look_up: self.lock().begin() };
        let mut answers = self.directory.locations(domain.as_str(), asked).await?;
        let now = Instant::now();
        let mut entries = self.lock();
        for user_id in asked {
            let location: UserLocation =
                answers.remove(user_id).flatten().filter(|location| !location.is_empty()).map(Into::into);
            let max_age = if location.is_some() { self.max_age } else { self.max_age_without_location };
            entries.put(look_up.look_up, key, user_id, location.clone(), now + max_age);
            locations.insert(user_id.clone(), location);
        }
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!(metric_names::CACHE_ENTRIES, "cache" => "users").set(entries.len() as f64);
        Ok(())
    }

    /// These users changed (in whatever domain); without ids, everyone of the domain, or everyone at all.
    pub fn forget(&self, domain_token: Option<&str>, user_ids: &[String]) {
        let mut entries = self.lock();
        match (domain_token, user_ids) {
            (None, []) => entries.forget_all(),
            (Some(domain), []) => entries.forget_domain(domain),
            (_, user_ids) => user_ids.iter().for_each(|user_id| entries.forget_user(user_id)),
        }
    }
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
