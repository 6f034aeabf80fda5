//! Reading forms: the rows, and the XML that they name.
//!
//! The two are not read at one moment. HQ removes the rows of a form before its XML, and not always with a message that says so; so where the
//! XML is not there, what the rows say after that counts.

use std::collections::HashMap;

use futures::{StreamExt, TryStreamExt};
use lake_hq::document_rules::{self, Disposition};
use lake_hq::documents::form;
use lake_hq::source::{BlobReference, FormRows, ReadFrom, Sighting};
use lake_hq::xform::{self, FormXmlError};
use lake_shared::error_chain::Chain;
use lake_shared::identity::Kind;
use lake_shared::quarantine::{DocumentIdentity, QuarantineEntry, Reason, Stage};
use serde_json::{Map, Value};
use tokio_util::sync::CancellationToken;

use crate::fetch::{Changes, Fetched, lineage, wanted};
use crate::pipeline::{Fetcher, Stopping};

/// Blobs that one batch reads at the same time; the store caps the total.
const BLOBS_AT_ONCE: usize = 16;

type WithXml = (Sighting<FormRows>, FormXml);

impl Fetcher {
    /// What is to be published of these forms.
    pub(crate) async fn fetch_forms(
        &self,
        mut changes: Changes,
        shutdown: &CancellationToken,
    ) -> Result<Fetched, Stopping> {
        let (database, wanted) = (&self.hq.database, wanted(&changes));
        let sightings = self.until_answered(shutdown, || database.latest_forms(&wanted)).await?;
        let with_xml = self.with_xml(sightings, shutdown).await?;
        let with_xml = self.without_vanished(with_xml, &mut changes, shutdown).await?;
        // Parsing takes milliseconds a batch: away from the threads that serve I/O.
        Ok(tokio::task::block_in_place(|| {
            let mut fetched = Fetched::default();
            for (sighting, xml) in with_xml {
                self.add_form(&mut fetched, &changes, sighting, &xml);
            }
            fetched
        }))
    }

    async fn with_xml(
        &self,
        sightings: Vec<Sighting<FormRows>>,
        shutdown: &CancellationToken,
    ) -> Result<Vec<WithXml>, Stopping> {
        futures::stream::iter(sightings)
            .map(|sighting| async {
                let xml = self.form_xml(&sighting, shutdown).await?;
                Ok::<_, Stopping>((sighting, xml))
            })
            .buffer_unordered(BLOBS_AT_ONCE)
            .try_collect()
            .await
    }

    /// Asks the primary again about forms whose XML is not there, all at once, until it names no other XML. A form that is gone meanwhile leaves
    /// the domain that its row named, too.
    async fn without_vanished(
        &self,
        with_xml: Vec<WithXml>,
        changes: &mut Changes,
        shutdown: &CancellationToken,
    ) -> Result<Vec<WithXml>, Stopping> {
        let (mut settled, mut missing) = apart(with_xml);
        while !missing.is_empty() {
            let ids: Vec<String> = missing.keys().cloned().collect();
            let database = &self.hq.database;
            let again = self.until_answered(shutdown, || database.forms(&ids, ReadFrom::Primary)).await?;
            let (same, other): (Vec<_>, Vec<_>) = again.into_iter().partition(|sighting| {
                let before = missing.get(&sighting.id);
                before.is_some_and(|before| is_live(sighting) && reference(before) == reference(sighting))
            });
            for sighting in other.iter().filter(|sighting| sighting.rows.is_none()) {
                if let (Some(change), Some(before)) = (changes.get_mut(&sighting.id), missing.get(&sighting.id)) {
                    change.add_domain(domain(before));
                }
            }
            settled.extend(same.into_iter().map(|sighting| (sighting, FormXml::Missing)));
            let (found, still_missing) = apart(self.with_xml(other, shutdown).await?);
            settled.extend(found);
            missing = still_missing;
        }
        Ok(settled)
    }

    /// The XML of a live form; that of others is not wanted.
    async fn form_xml(&self, sighting: &Sighting<FormRows>, shutdown: &CancellationToken) -> Result<FormXml, Stopping> {
        if !is_live(sighting) {
            return Ok(FormXml::NotWanted);
        }
        let Some(reference) = reference(sighting) else { return Ok(FormXml::Missing) };
        let blob = self.until_answered(shutdown, || self.hq.blobs.get(reference)).await?;
        Ok(blob.map_or(FormXml::Missing, FormXml::Found))
    }

    fn add_form(&self, fetched: &mut Fetched, changes: &Changes, sighting: Sighting<FormRows>, xml: &FormXml) {
        let disposition = document_rules::of_form(sighting.rows.as_ref());
        let (form_object, trouble) = xml.form_object();
        if let (Some((reason, detail)), Disposition::Upsert { domain, document_type, .. }) = (trouble, &disposition) {
            // The row is kept without its answers; the quarantine says so to an operator.
            let document = DocumentIdentity {
                domain: domain.as_str().into(),
                kind: Some(Kind::Form),
                document_type: document_type.as_str().into(),
                id: sighting.id.clone(),
            };
            let detail = format!("form {} of domain {domain}: {detail}", sighting.id);
            let entry = QuarantineEntry::new(Stage::Fetcher, reason, detail)
                .document(document)
                .lineage(Some(lineage(changes, &sighting.id)))
                .payload(xml.bytes());
            fetched.quarantined.push(entry);
        }
        self.add(fetched, Kind::Form, changes, &sighting.id, sighting.observed_us, disposition, || {
            match &sighting.rows {
                Some(rows) => form::to_json(rows, form_object).map_err(|error| Chain(&error).to_string()),
                None => Ok(Map::new()),
            }
        });
    }
}

fn is_live(sighting: &Sighting<FormRows>) -> bool {
    matches!(document_rules::of_form(sighting.rows.as_ref()), Disposition::Upsert { .. })
}

fn reference(sighting: &Sighting<FormRows>) -> Option<&BlobReference> {
    sighting.rows.as_ref()?.xml.as_ref()
}

fn domain(sighting: &Sighting<FormRows>) -> Option<&str> {
    sighting.rows.as_ref()?.form.get("domain").and_then(Value::as_str)
}

/// Forms of which everything is known, and by id those whose XML is not there.
fn apart(with_xml: Vec<WithXml>) -> (Vec<WithXml>, HashMap<String, Sighting<FormRows>>) {
    let (missing, settled): (Vec<_>, Vec<_>) =
        with_xml.into_iter().partition(|(_, xml)| matches!(xml, FormXml::Missing));
    (settled, missing.into_iter().map(|(sighting, _)| (sighting.id.clone(), sighting)).collect())
}

/// What is known of a form's XML.
enum FormXml {
    NotWanted,
    Missing,
    Found(bytes::Bytes),
}

impl FormXml {
    /// The `form` object, and what was wrong with its XML: reason and detail.
    fn form_object(&self) -> (Map<String, Value>, Option<(Reason, String)>) {
        match self {
            Self::NotWanted => (Map::new(), None),
            Self::Missing => {
                let detail = "no store has its XML; restore the blob and replay it";
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
            Self::NotWanted | Self::Missing => bytes::Bytes::new(),
        }
    }
}
