//! Reading forms: the rows, and the XML that they name.
//!
//! The two are not read at one moment. HQ removes the rows of a form before its XML, and not always with a message that says so. So where the
//! XML is missing, the rows are read again, and what they say then counts.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt};
use lake_hq::document_rules::{self, Disposition};
use lake_hq::documents::form;
use lake_hq::source::{BlobReference, FormRows, Observation, ReadFrom};
use lake_hq::xform::{self, FormXmlError};
use lake_shared::error_chain::Chain;
use lake_shared::identity::Kind;
use lake_shared::quarantine::{DocumentIdentity, QuarantineEntry, Reason, Stage};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::fetch::{Changes, Fetched, lineage, wanted};
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
        Ok(blob.map_or(FormXml::Missing, FormXml::Found))
    }

    fn add_form(&self, fetched: &mut Fetched, changes: &Changes, observation: Observation<FormRows>, xml: &FormXml) {
        let disposition = document_rules::of_form(observation.rows.as_ref());
        let (form_object, trouble) = xml.form_object();
        if let (Some((reason, detail)), Disposition::Upsert { domain, document_type, .. }) = (trouble, &disposition) {
            // The row is kept without its answers; the quarantine says so to an operator.
            let document = DocumentIdentity {
                domain: domain.as_str().into(),
                kind: Some(Kind::Form),
                document_type: document_type.as_str().into(),
                id: observation.id.clone(),
            };
            let detail = format!("form {} of domain {domain}: {detail}", observation.id);
            let entry = QuarantineEntry::new(Stage::Fetcher, reason, detail)
                .document(document)
                .lineage(Some(lineage(changes, &observation.id)))
                .payload(xml.bytes());
            fetched.quarantined.push(entry);
        }
        self.add(fetched, Kind::Form, changes, &observation.id, observation.observed_us, disposition, || {
            match &observation.rows {
                Some(rows) => form::to_json(rows, form_object).map_err(|error| Chain(&error).to_string()),
                None => Ok(Map::new()),
            }
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
enum FormXml {
    /// The form is not live, so its XML was not read.
    NotNeeded,
    /// The form is live, and no blob store has its XML.
    Missing,
    Found(bytes::Bytes),
}

impl FormXml {
    /// The `form` object, and what was wrong with its XML: reason and detail.
    fn form_object(&self) -> (Map<String, Value>, Option<(Reason, String)>) {
        match self {
            Self::NotNeeded => (Map::new(), None),
            Self::Missing => {
                let detail = "no store has its XML; restore the blob, then save the form in HQ again";
                (Map::new(), Some((Reason::FormXmlMissing, detail.to_owned())))
            }
            Self::Found(xml) => match xform::form_json(xml) {
                Ok(form) => (form, None),
                Err(error) => {
                    let reason = match error {
                        FormXmlError::Raises { .. } => Reason::FormXmlRaises,
                        FormXmlError::NotWellFormed { .. } => Reason::FormXmlNotWellFormed,
                    };
                    (Map::new(), Some((reason, Chain(&error).to_string())))
                }
            },
        }
    }

    fn bytes(&self) -> bytes::Bytes {
        match self {
            Self::Found(xml) => xml.clone(),
            Self::NotNeeded | Self::Missing => bytes::Bytes::new(),
        }
    }
}
