//! Reading forms: the rows, and the XML that they name.
//!
//! The two are not read at one moment. HQ removes the rows of a form before its XML, and not always with a message that says so. So where the
//! XML is missing, the rows are read again, and what they say then counts.
//!
//! A form whose XML is missing then, or cannot be read, is published without answers and as incomplete: its row keeps those that it has.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lake_hq::document_rules::{self, Disposition};
use lake_hq::documents::form;
use lake_hq::source::{Blob, BlobReference, FormRows, Observation, ReadFrom, Wanted};
use lake_hq::xform::{self, FormXmlError};
use lake_shared::byte_budget::Reservation;
use lake_shared::error_chain::Chain;
use lake_shared::identity::Kind;
use lake_shared::quarantine::Reason;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::fetch::{Changes, Fetched, FetchedDocument, LackingPart, wanted};
use crate::fetcher::{Fetcher, NotFetched, Stopping, unless_stopping};
use crate::metric_names;

/// Blobs that one batch reads at the same time; the store caps the total.
const BLOBS_AT_ONCE: usize = 16;

/// A form takes about so many times the size of its XML while it is made into a document: the XML as it came and expanded, its elements, the text of
/// the document while it grows.
const SIZE_IN_WORK: usize = 8;
/// And at least so many bytes.
const SIZE_IN_WORK_LEAST: usize = 64 << 10;
/// A document is held so many times until it is published: as it is, and in its message.
const SIZE_WHEN_DONE: usize = 2;
/// What one batch has made is published when it has this part of the budget.
const BATCH_SHARE: usize = 4;

/// Forms that were made into documents and wait to be published.
#[derive(Default)]
struct DoneForms {
    fetched: Fetched,
    room: Reservation,
}

impl Fetcher {
    /// Reads these forms and their XML, and publishes what they mean. No more XML is read at once, and no more documents wait, than
    /// there is memory for.
    pub(crate) async fn fetch_forms(
        &self,
        mut changes: Changes,
        shutdown: &CancellationToken,
    ) -> Result<(), NotFetched> {
        let (database, started) = (&self.hq.database, Instant::now());
        let read = |wanted: Arc<[Wanted]>| async move { database.latest_forms(&wanted).await };
        let (observations, _room) = self.read_rows(wanted(&changes), FormRows::memory, read, shutdown).await?;
        metrics::histogram!(metric_names::READ_SECONDS, "kind" => Kind::Form.name()).record(started.elapsed());
        let mut done = DoneForms::default();
        let mut missing = self.make_documents(observations, &changes, &mut done, shutdown).await?;
        while !missing.is_empty() {
            let other = self.without_lost(missing, &mut changes, &mut done, shutdown).await?;
            missing = self.make_documents(other, &changes, &mut done, shutdown).await?;
        }
        Ok(self.publish_done(&mut done, shutdown).await?)
    }

    /// Makes documents of forms as their XML comes, and publishes them when memory is short. Returns the live forms whose XML is missing.
    async fn make_documents(
        &self,
        observations: Vec<Observation<FormRows>>,
        changes: &Changes,
        done: &mut DoneForms,
        shutdown: &CancellationToken,
    ) -> Result<Vec<Observation<FormRows>>, NotFetched> {
        let share = self.xml_budget.bytes_max() / BATCH_SHARE;
        let mut waiting = VecDeque::from(observations);
        let (mut reading, mut missing) = (FuturesUnordered::new(), Vec::new());
        loop {
            while reading.len() < BLOBS_AT_ONCE && SIZE_WHEN_DONE * done.fetched.bytes() < share {
                let Some(observation) = waiting.front() else { break };
                let size = size_in_work(observation);
                let room = match self.xml_budget.try_reserve(size) {
                    Some(room) => room,
                    // What is being read gives room back when it is done.
                    None if !reading.is_empty() => break,
                    None => {
                        // Nobody waits for room while holding any.
                        self.publish_done(done, shutdown).await?;
                        unless_stopping(self.xml_budget.reserve(size), shutdown).await?
                    }
                };
                let Some(observation) = waiting.pop_front() else { break };
                reading.push(async {
                    let xml = self.form_xml(&observation, shutdown).await?;
                    Ok::<_, NotFetched>((observation, xml, room))
                });
            }
            match reading.next().await {
                Some(read) => {
                    let (observation, xml, room) = read?;
                    match xml {
                        FormXml::Missing => missing.push(observation),
                        _ => self.add_done(done, changes, observation, &xml, room),
                    }
                }
                None if waiting.is_empty() => return Ok(missing),
                None => self.publish_done(done, shutdown).await?,
            }
        }
    }

    /// Makes the document of one form.
    fn add_done(
        &self,
        done: &mut DoneForms,
        changes: &Changes,
        observation: Observation<FormRows>,
        xml: &FormXml,
        mut room: Reservation,
    ) {
        let before = done.fetched.bytes();
        // Parsing takes milliseconds: away from the threads that serve I/O.
        tokio::task::block_in_place(|| self.add_form(&mut done.fetched, changes, observation, xml));
        room.shrink(SIZE_WHEN_DONE * (done.fetched.bytes() - before));
        done.room.merge(room);
    }

    async fn publish_done(&self, done: &mut DoneForms, shutdown: &CancellationToken) -> Result<(), Stopping> {
        let DoneForms { fetched, room } = std::mem::take(done);
        if !fetched.is_empty() {
            self.publish(fetched, shutdown).await?;
        }
        drop(room);
        Ok(())
    }

    /// Asks the primary again about the forms whose XML is missing, all at once. Where it names the same XML, that is lost, and the form is done;
    /// the others are returned. A form that is gone meanwhile becomes a tombstone in the domain that its row named, too.
    async fn without_lost(
        &self,
        missing: Vec<Observation<FormRows>>,
        changes: &mut Changes,
        done: &mut DoneForms,
        shutdown: &CancellationToken,
    ) -> Result<Vec<Observation<FormRows>>, NotFetched> {
        let missing: HashMap<String, Observation<FormRows>> =
            missing.into_iter().map(|observation| (observation.id.clone(), observation)).collect();
        let ids: Vec<String> = missing.keys().cloned().collect();
        let database = &self.hq.database;
        let again = self.until_answered(shutdown, || database.forms(&ids, ReadFrom::Primary)).await?;
        let (same, other): (Vec<_>, Vec<_>) = again.into_iter().partition(|observation| {
            let before = missing.get(&observation.id);
            before.is_some_and(|before| is_live(observation) && reference(before) == reference(observation))
        });
        for observation in other.iter().filter(|observation| observation.rows.is_none()) {
            if let (Some(change), Some(before)) = (changes.get_mut(&observation.id), missing.get(&observation.id)) {
                change.add_domain(domain(before));
            }
        }
        for observation in same {
            self.add_form(&mut done.fetched, changes, observation, &FormXml::Missing);
        }
        Ok(other)
    }

    /// Reads the XML of a live form; that of other forms is not needed.
    async fn form_xml(
        &self,
        observation: &Observation<FormRows>,
        shutdown: &CancellationToken,
    ) -> Result<FormXml, NotFetched> {
        if !is_live(observation) {
            return Ok(FormXml::NotNeeded);
        }
        let Some(reference) = reference(observation) else { return Ok(FormXml::Missing) };
        let blob = self.until_answered(shutdown, || self.hq.blobs.get(reference)).await?;
        Ok(match blob {
            Blob::Found(xml) => FormXml::Found(xml),
            Blob::Missing => FormXml::Missing,
            Blob::TooLarge { size_max } => FormXml::TooLarge { size_max },
        })
    }

    fn add_form(&self, fetched: &mut Fetched, changes: &Changes, observation: Observation<FormRows>, xml: &FormXml) {
        let disposition = document_rules::of_form(observation.rows.as_ref());
        if !matches!(xml, FormXml::NotNeeded) {
            self.xml_watch.note(matches!(xml, FormXml::Missing));
        }
        self.add(fetched, Kind::Form, changes, &observation.id, observation.observed_us, disposition, || {
            let Some(rows) = &observation.rows else { return FetchedDocument::default() };
            let (answers, lacking) = xml.answers();
            let read = FetchedDocument::from(form::read_without_answers(rows));
            FetchedDocument { answers: Some(answers), lacking: lacking.or(read.lacking), ..read }
        });
    }
}

/// Bytes that a form takes while it is made into a document, as HQ tells the size of its XML.
fn size_in_work(observation: &Observation<FormRows>) -> usize {
    let xml = reference(observation).map_or(0, |reference| usize::try_from(reference.content_length).unwrap_or(0));
    xml.saturating_mul(SIZE_IN_WORK).max(SIZE_IN_WORK_LEAST)
}

fn is_live(observation: &Observation<FormRows>) -> bool {
    matches!(document_rules::of_form(observation.rows.as_ref()), Disposition::Upsert { .. })
}

fn reference(observation: &Observation<FormRows>) -> Option<&BlobReference> {
    observation.rows.as_ref()?.xml.as_ref()
}

fn domain(observation: &Observation<FormRows>) -> Option<&str> {
    observation.rows.as_ref()?.form.get("domain").and_then(Value::as_str)
}

/// The XML of a form, as far as it is known.
pub(crate) enum FormXml {
    /// The form is not live, so its XML was not read.
    NotNeeded,
    /// The form is live, and no blob store has its XML.
    Missing,
    /// It has more bytes than may be read.
    TooLarge {
        size_max: u64,
    },
    Found(Bytes),
}

impl FormXml {
    /// The beginning of the document's text, which is the member `form`, and why it lacks the answers. Written at once: as a map of values, the
    /// answers would take several times as much memory.
    pub(crate) fn answers(&self) -> (Vec<u8>, Option<LackingPart>) {
        const BEGINNING: &[u8] = b"{\"form\":";
        let none = || [BEGINNING, b"{}"].concat();
        let lacking = |reason, detail, payload| (none(), Some(LackingPart { reason, detail, payload }));
        match self {
            Self::NotNeeded => (none(), None),
            Self::Missing => {
                let detail = "no store has its XML; restore the blob, or name the store that has it in hq.blobs.stores, \
                              then save the form in HQ again";
                lacking(Reason::FormXmlMissing, detail.to_owned(), Bytes::new())
            }
            Self::TooLarge { size_max } => {
                let detail = format!(
                    "its XML is larger than hq.blobs.size_max_bytes = {size_max}; raise that, then save the form in HQ again"
                );
                lacking(Reason::FormXmlTooLarge, detail, Bytes::new())
            }
            Self::Found(xml) => {
                let mut text = BEGINNING.to_vec();
                let Err(error) = xform::write_form_json(xml, &mut text) else { return (text, None) };
                let reason = match error {
                    FormXmlError::Raises { .. } => Reason::FormXmlRaises,
                    FormXmlError::NotWellFormed { .. } => Reason::FormXmlNotWellFormed,
                };
                lacking(reason, Chain(&error).to_string(), xml.clone())
            }
        }
    }
}
