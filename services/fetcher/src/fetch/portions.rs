//! Asking HQ for less where it cannot answer about all.
//!
//! A portion that is not answered is halved, down to single ids, and all portions of one size are read before smaller ones: so what is in order
//! is published as soon as it can be. An id that is left is read again by itself ([`Fetcher::fetch_alone`]), beside the batches in flight, and is
//! put aside when that fails too. Such ids are remembered and do not hold up another batch; the memory is bounded.

use std::collections::VecDeque;
use std::sync::PoisonError;

use lake_hq::source::Hindrance;
use lake_shared::identity::Kind;
use lake_shared::quarantine::{self, DocumentIdentity, QuarantineEntry, Reason, Stage};
use lake_shared::retry::Backoff;
use tokio_util::sync::CancellationToken;

use crate::coalesce::Change;
use crate::fetch::{Changes, lineage_now};
use crate::fetcher::{Fetcher, NotFetched, Stopping, Unanswered, pause, unless_stopping};

/// Tries of an id that is read alone, before it is put aside.
const TRIES_ALONE: usize = 2;
/// When so many ids are all there is to read, and none of them can be read, it is not their fault.
const SUSPICIOUSLY_MANY: usize = 8;

/// What is left of a batch to be read alone.
#[derive(Debug, Default)]
pub(crate) struct LeftAlone {
    changes: Vec<(Kind, String, Change)>,
    /// Whether anything else of the batch was read.
    others_answered: bool,
}

impl LeftAlone {
    /// Number of ids.
    pub(crate) fn len(&self) -> usize {
        self.changes.len()
    }

    /// Adds what is left of another part of the batch.
    pub(crate) fn extend(&mut self, other: Self) {
        self.changes.extend(other.changes);
        self.others_answered |= other.others_answered;
    }
}

/// Handles keys in ever smaller portions, until each is answered: what was made of the portions, and the keys that are not answered even alone.
pub(crate) async fn in_portions<K: Clone, T, F>(
    keys: Vec<K>,
    mut handle: impl FnMut(Vec<K>) -> F,
) -> Result<(Vec<T>, Vec<(K, Unanswered)>), Stopping>
where
    F: Future<Output = Result<T, NotFetched>>,
{
    let (mut answers, mut unanswered) = (Vec::new(), Vec::new());
    let mut portions = VecDeque::from([keys]);
    while let Some(mut portion) = portions.pop_front() {
        if portion.is_empty() {
            continue;
        }
        match handle(portion.clone()).await {
            Ok(answer) => answers.push(answer),
            Err(NotFetched::Stopping) => return Err(Stopping),
            Err(NotFetched::AskLess(why)) if portion.len() == 1 => {
                unanswered.extend(portion.pop().map(|key| (key, why)));
            }
            Err(NotFetched::AskLess(why)) => {
                tracing::info!(
                    asked = portion.len(),
                    reason = why.detail,
                    "HQ cannot answer about all at once; asking for half"
                );
                let half = portion.split_off(portion.len() / 2);
                portions.extend([portion, half]);
            }
        }
    }
    Ok((answers, unanswered))
}

impl Fetcher {
    /// Reads the current state of these ids and publishes it as documents and tombstones; what has to be read alone is left.
    pub(crate) async fn fetch(
        &self,
        kind: Kind,
        changes: Changes,
        shutdown: &CancellationToken,
    ) -> Result<LeftAlone, Stopping> {
        let (alone, together): (Vec<_>, Vec<_>) = {
            let hard = self.hard_ids.lock().unwrap_or_else(PoisonError::into_inner);
            changes.into_iter().partition(|(id, _)| hard.has(kind, id))
        };
        let count = together.len();
        let handle = |portion: Vec<(String, Change)>| {
            if let ([(id, _)], true) = (portion.as_slice(), count > 1) {
                // Which one of the last two it was is not known; reading both alone does no harm.
                self.hard_ids.lock().unwrap_or_else(PoisonError::into_inner).remember(kind, id);
            }
            self.fetch_portion(kind, portion.into_iter().collect(), shutdown)
        };
        let (answers, unanswered) = in_portions(together, handle).await?;
        let changes = alone.into_iter().chain(unanswered.into_iter().map(|(change, _)| change));
        let changes = changes.map(|(id, change)| (kind, id, change)).collect();
        Ok(LeftAlone { changes, others_answered: !answers.is_empty() })
    }

    /// Reads ids one by one; those that cannot be read go to quarantine. Only one batch does so at a time: such records are large.
    pub(crate) async fn fetch_alone(&self, left: LeftAlone, shutdown: &CancellationToken) -> Result<(), Stopping> {
        let LeftAlone { mut changes, mut others_answered } = left;
        if changes.is_empty() {
            return Ok(());
        }
        let _one_at_a_time = unless_stopping(self.alone.acquire(), shutdown).await?;
        let mut backoff = Backoff::default();
        loop {
            let count = changes.len();
            let mut unanswered = Vec::new();
            for (kind, id, change) in changes {
                match self.fetch_one(kind, &id, &change, shutdown).await? {
                    // Its size is certainly its own.
                    Some(why) if why.hindrance == Hindrance::TooLarge => {
                        quarantine::publish(&*self.queue, put_aside(kind, &id, &change, &why), shutdown).await?;
                    }
                    Some(why) => unanswered.push((kind, id, change, why)),
                    None => {}
                }
            }
            if others_answered || count < SUSPICIOUSLY_MANY {
                for (kind, id, change, why) in unanswered {
                    quarantine::publish(&*self.queue, put_aside(kind, &id, &change, &why), shutdown).await?;
                }
                return Ok(());
            }
            let reason = unanswered.first().map(|(.., why)| why.detail.as_str());
            tracing::error!(
                ids = count,
                reason,
                "none of these records can be read, which cannot be the fault of each; look at HQ's database, until then they wait"
            );
            // What was tried in this round before the first answer is tried again.
            others_answered = unanswered.len() < count;
            pause(&mut backoff, shutdown).await?;
            changes = unanswered.into_iter().map(|(kind, id, change, _)| (kind, id, change)).collect();
        }
    }

    /// Reads one id; why that is not possible.
    async fn fetch_one(
        &self,
        kind: Kind,
        id: &str,
        change: &Change,
        shutdown: &CancellationToken,
    ) -> Result<Option<Unanswered>, Stopping> {
        let mut backoff = Backoff::default();
        let mut tries = 1;
        loop {
            let portion = Changes::from([(id.to_owned(), change.clone())]);
            match self.fetch_portion(kind, portion, shutdown).await {
                Ok(()) => return Ok(None),
                Err(NotFetched::Stopping) => return Err(Stopping),
                Err(NotFetched::AskLess(why)) if tries == TRIES_ALONE || why.hindrance == Hindrance::TooLarge => {
                    return Ok(Some(why));
                }
                Err(NotFetched::AskLess(_)) => {}
            }
            tries += 1;
            pause(&mut backoff, shutdown).await?;
        }
    }
}

/// The quarantine's entry of a record that HQ cannot be asked for.
pub(crate) fn put_aside(kind: Kind, id: &str, change: &Change, why: &Unanswered) -> QuarantineEntry {
    let reason = match why.hindrance {
        Hindrance::TooSlow => Reason::RecordTooSlow,
        Hindrance::TooLarge => Reason::RowsTooLarge,
        Hindrance::Undecodable => Reason::RowUndecodable,
    };
    let domain = change.domain.clone().unwrap_or_default();
    let detail = format!("{kind} {id} of domain {domain}: {}", why.detail);
    let document = DocumentIdentity { domain, kind: Some(kind), id: id.to_owned(), ..DocumentIdentity::default() };
    QuarantineEntry::new(Stage::Fetcher, reason, detail).document(document).lineage(Some(lineage_now(&change.lineage)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::cell::RefCell;

    use super::*;

    fn too_slow() -> NotFetched {
        NotFetched::AskLess(Unanswered { hindrance: Hindrance::TooSlow, detail: "slow".into() })
    }

    #[tokio::test]
    async fn the_neighbours_of_a_bad_key_are_answered_by_halves_and_before_it() {
        let asked = RefCell::new(Vec::new());
        let handle = |portion: Vec<usize>| {
            asked.borrow_mut().push(portion.len());
            async move { if portion.contains(&5) { Err(too_slow()) } else { Ok(portion) } }
        };
        let (answers, unanswered) = in_portions((0..64).collect(), handle).await.unwrap();
        let mut answered: Vec<usize> = answers.into_iter().flatten().collect();
        answered.sort_unstable();
        assert_eq!(answered, (0..64).filter(|key| *key != 5).collect::<Vec<_>>());
        assert_eq!(unanswered.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [5]);
        assert_eq!(*asked.borrow(), [64, 32, 32, 16, 16, 8, 8, 4, 4, 2, 2, 1, 1]);
    }
}
