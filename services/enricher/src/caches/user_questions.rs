//! Who may ask HQ's user directory, and for whom else.
//!
//! A domain has one question under way at a time, so that nobody asks for a user who is being asked for; who waits says which users it wants, and the
//! next question takes them along. Over all domains a few questions are under way. A question that failed has failed for all who came before it
//! was asked and want the same users: a directory that does not answer in time is not asked once more for each of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lake_hq::source::SourceError;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

/// A user that HQ has to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MissingUser {
    pub(super) user_id: String,
    /// When the record that needs the location was published, if that is so short a time ago that HQ may still give an old answer.
    pub(super) published: Option<Instant>,
}

/// The questions of all domains.
pub(super) struct UserQuestions {
    permits: Semaphore,
    domains: Mutex<HashMap<Arc<str>, Arc<DomainQuestions>>>,
}

/// The questions about users of one domain.
#[derive(Default)]
pub(super) struct DomainQuestions {
    turn: tokio::sync::Mutex<Option<Failure>>,
    /// Users who are waited for, each with the latest publication of their records.
    wanted: Mutex<HashMap<String, Option<Instant>>>,
}

/// A question that failed.
struct Failure {
    began: Instant,
    error: SourceError,
    users: HashSet<String>,
}

/// The right to ask about the users of a domain.
pub(super) struct Turn<'d>(tokio::sync::MutexGuard<'d, Option<Failure>>);

impl UserQuestions {
    /// At most so many questions are under way at a time, over all domains.
    pub(super) fn new(at_once_max: usize) -> Self {
        Self { permits: Semaphore::new(at_once_max.clamp(1, Semaphore::MAX_PERMITS)), domains: Mutex::default() }
    }

    /// The questions about one domain, by the token of its name. Those of domains about which nobody asks are dropped.
    pub(super) fn of_domain(&self, key: &Arc<str>) -> Arc<DomainQuestions> {
        let mut domains = self.domains.lock().unwrap_or_else(PoisonError::into_inner);
        domains.retain(|_, questions| Arc::strong_count(questions) > 1);
        Arc::clone(domains.entry(Arc::clone(key)).or_default())
    }

    /// A place among the questions that are under way.
    ///
    /// # Errors
    /// Never, as long as the semaphore is not closed, which nobody does.
    pub(super) async fn permit(&self) -> Result<SemaphorePermit<'_>, SourceError> {
        self.permits.acquire().await.map_err(|error| SourceError::Unavailable {
            action: "ask for the locations of users".into(),
            reason: error.to_string(),
        })
    }
}

impl DomainQuestions {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Option<Instant>>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says who is waited for.
    pub(super) fn want(&self, missing: &[MissingUser]) {
        let mut wanted = self.lock();
        for MissingUser { user_id, published } in missing {
            let latest = wanted.entry(user_id.clone()).or_default();
            *latest = (*latest).max(*published);
        }
    }

    /// Waits until no other question about the domain is under way.
    pub(super) async fn turn(&self) -> Turn<'_> {
        Turn(self.turn.lock().await)
    }

    /// Users whom others wait for, at most so many that there are `at_most` with one's own, and not those. They are not handed out again.
    pub(super) fn wanted_besides(&self, own: &[MissingUser], at_most: usize) -> Vec<MissingUser> {
        let mut wanted = self.lock();
        for user in own {
            wanted.remove(&user.user_id);
        }
        let besides: Vec<String> = wanted.keys().take(at_most.saturating_sub(own.len())).cloned().collect();
        let user = |user_id: String| {
            let published = wanted.remove(&user_id).flatten();
            MissingUser { user_id, published }
        };
        besides.into_iter().map(user).collect()
    }
}

impl Turn<'_> {
    /// How the last question failed, if it was asked after this moment, about all of these users.
    pub(super) fn failed_since(&self, came: Instant, missing: &[MissingUser]) -> Option<SourceError> {
        let failure = self.0.as_ref().filter(|failure| failure.began >= came)?;
        missing.iter().all(|user| failure.users.contains(&user.user_id)).then(|| failure.error.clone())
    }

    /// Takes note that a question about these users that began at this moment has failed.
    pub(super) fn failed(&mut self, began: Instant, error: SourceError, users: Vec<MissingUser>) {
        let users = users.into_iter().map(|user| user.user_id).collect();
        *self.0 = Some(Failure { began, error, users });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn missing(user_id: &str, published: Option<Instant>) -> MissingUser {
        MissingUser { user_id: user_id.into(), published }
    }

    #[tokio::test]
    async fn a_question_takes_along_whom_others_wait_for_once_and_within_bounds() {
        let questions = UserQuestions::new(1);
        let (domain, now) = (questions.of_domain(&"demo".into()), Instant::now());
        let own = [missing("a", None)];
        domain.want(&own);
        domain.want(&[missing("b", Some(now)), missing("b", None), missing("c", None)]);
        let mut besides = questions.of_domain(&"demo".into()).wanted_besides(&own, 10);
        besides.sort_by(|one, other| one.user_id.cmp(&other.user_id));
        assert_eq!(besides, [missing("b", Some(now)), missing("c", None)], "the latest publication counts");
        assert_eq!(domain.wanted_besides(&own, 10), []);
        domain.want(&[missing("b", None), missing("c", None)]);
        assert_eq!(domain.wanted_besides(&own, 2).len(), 1);
        assert_eq!(domain.wanted_besides(&own, 1).len(), 0);
        drop(domain);
        assert_eq!(questions.of_domain(&"demo".into()).wanted_besides(&own, 10), [], "forgotten with who waited");
    }

    #[tokio::test]
    async fn a_failure_counts_for_those_who_came_before_the_question_and_want_the_same() {
        let domain = DomainQuestions::default();
        let began = Instant::now();
        let error = SourceError::Unavailable { action: "ask".into(), reason: "down".into() };
        domain.turn().await.failed(began, error, vec![missing("a", None), missing("b", None)]);
        let turn = domain.turn().await;
        assert!(turn.failed_since(began, &[missing("b", None)]).is_some());
        assert!(turn.failed_since(began + Duration::from_millis(1), &[missing("b", None)]).is_none());
        assert!(turn.failed_since(began, &[missing("b", None), missing("c", None)]).is_none());
    }
}
