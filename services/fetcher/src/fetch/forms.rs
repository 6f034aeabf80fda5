//! Reading forms: the rows, and the XML that they name.
//!
//! The two are not read at one moment. HQ removes the rows of a form before its XML, and not always with a message that says so. So where the
//! XML is missing, the rows are read again, and what they say then counts.
//!
//! A form whose XML is missing then, or cannot be read, is published without answers and as incomplete: its row keeps those that it has.

use std::collections::HashMap;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use lake_hq::document_rules::{self, Disposition};
use lake_hq::documents::form;
use lake_hq::source::{Blob, BlobReference, FormRows, Observation, ReadFrom};
use lake_hq::xform::{self, FormXmlError};
use lake_shared::error_chain::Chain;
use lake_shared::identity::Kind;
use lake_shared::quarantine::Reason;
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::fetch::{Changes, Fetched, FetchedDocument, LackingPart, wanted};
use crate::fetcher::{Fetcher, Stopping};

/// Blobs that one batch reads at the same time; the store caps the total.
const BLOBS_AT_ONCE: usize = 16;

type WithXml = (Observation<FormRows>, FormXml);

impl Fetcher {
    /// Reads these forms and their XML, and says what is to be published of them.
    pub(crate) async fn fetch_forms(
        &self,
        mut changes: Changes,
        shutdown: &CancellationToken,
    ) -> Result<Fetched, Stopping> {
        let (database, wanted) = (&self.hq.database, wanted(&changes));
        let observations = self.until_answered(shutdown, || database.latest_forms(&wanted)).await?;
        let with_xml = self.with_xml(observations, shutdown).await?;
        let with_xml = self.without_vanished(with_xml, &mut changes, shutdown).await?;
        // Parsing takes milliseconds a batch: away from the threads that serve I/O.
        Ok(tokio::task::block_in_place(|| {
            let mut fetched = Fetched::default();
            for (observation, xml) in with_xml {
                self.add_form(&mut fetched, &changes, observation, &xml);
            }
            fetched
        }))
    }

    async fn with_xml(
        &self,
        observations: Vec<Observation<FormRows>>,
        shutdown: &CancellationToken,
    ) -> Result<Vec<WithXml>, Stopping> {
        futures::stream::iter(observations)
            .map(|observation| async {
                let xml = self.form_xml(&observation, shutdown).await?;
                Ok::<_, Stopping>((observation, xml))
            })
            .buffer_unordered(BLOBS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Asks the primary again about the forms whose XML is missing, all at once, until it names no other XML for them. A form that is gone
    /// meanwhile becomes a tombstone in the domain that its row named, too.
    async fn without_vanished(
        &self,
        with_xml: Vec<WithXml>,
        changes: &mut Changes,
        shutdown: &CancellationToken,
    ) -> Result<Vec<WithXml>, Stopping> {
        let (mut complete, mut missing) = split_missing(with_xml);
        while !missing.is_empty() {
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
            complete.extend(same.into_iter().map(|observation| (observation, FormXml::Missing)));
            let (found, still_missing) = split_missing(self.with_xml(other, shutdown).await?);
            complete.extend(found);
            missing = still_missing;
        }
        Ok(complete)
    }

    /// Reads the XML of a live form; that of other forms is not needed.
    async fn form_xml(
        &self,
        observation: &Observation<FormRows>,
        shutdown: &CancellationToken,
    ) -> Result<FormXml, Stopping> {
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
            let (form_object, lacking) = xml.form_object();
            let read = FetchedDocument::from(form::read(rows, form_object));
            FetchedDocument { lacking: lacking.or(read.lacking), ..read }
        });
    }
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

/// Splits forms into those of which everything is known and, by id, those whose XML is missing.
fn split_missing(with_xml: Vec<WithXml>) -> (Vec<WithXml>, HashMap<String, Observation<FormRows>>) {
    let (missing, complete): (Vec<_>, Vec<_>) =
        with_xml.into_iter().partition(|(_, xml)| matches!(xml, FormXml::Missing));
    (complete, missing.into_iter().map(|(observation, _)| (observation.id.clone(), observation)).collect())
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
    /// The `form` object, and why it lacks the answers.
    pub(crate) fn form_object(&self) -> (Map<String, Value>, Option<LackingPart>) {
        let lacking = |reason, detail, payload| (Map::new(), Some(LackingPart { reason, detail, payload }));
        match self {
            Self::NotNeeded => (Map::new(), None),
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
            Self::Found(xml) => match xform::form_json(xml) {
                Ok(form) => (form, None),
                Err(error) => {
                    let reason = match error {
                        FormXmlError::Raises { .. } => Reason::FormXmlRaises,
                        FormXmlError::NotWellFormed { .. } => Reason::FormXmlNotWellFormed,
                    };
                    lacking(reason, Chain(&error).to_string(), xml.clone())
                }
            },
        }
    }
}
