//! Operations that take records out of the lake wholly, and that let them in again.

use super::runner::{End, Figures, ONLY_PLANNED, Worker};
use crate::consent::Consent;
use crate::handle_error::HandleError;
use crate::metastore::QuarantineFilter;
use crate::metastore::steering::OperationRecord;
use crate::table_store::erasure::{Erased, Erasure};

/// Why work on records cannot be done.
const NO_IDS: &str = "the operation does not say which records it is about; ask for it again";

impl Worker {
    /// Erases records, as far as the consent goes: from the tables, then from the quarantine.
    pub(super) async fn erase(&self, begun: &OperationRecord) -> End {
        let (id, asked) = (begun.id.as_str(), &begun.asked);
        let Some(records) = asked.records().filter(|records| !records.ids.is_empty()) else {
            return End::Failed(NO_IDS.into());
        };
        let erasure = Erasure {
            space: asked.target.space.clone(),
            ids: records.ids,
            asked_by: asked.asked_by.clone(),
            operation_id: id.to_owned(),
        };
        let erasing = || self.operations.erase(&erasure, &asked.consent);
        let erased = match self.beside_heartbeats(id, 0, erasing).await {
            Ok(erased) => erased,
            Err(end) => return end,
        };
        let put_aside = || self.discard_about(&erasure, erased.done);
        let quarantined = match self.beside_heartbeats(id, erased.records, put_aside).await {
            Ok(quarantined) => quarantined,
            Err(end) => return end,
        };
        let mut figures: Figures = erased.figures();
        figures.insert("quarantined", quarantined);
        if erased.done {
            let masking = || async {
                self.metastore.mask_ids(&erasure.space, &erasure.ids).await.map_err(HandleError::Metastore)
            };
            let masked = match self.beside_heartbeats(id, erased.records, masking).await {
                Ok(masked) => masked,
                Err(end) => return end,
            };
            figures.insert("mentions", masked);
            let report = serde_json::to_string(&figures).unwrap_or_else(|_| "{}".into());
            let kept = || async { self.metastore.records_erased(id, &report).await.map_err(HandleError::Metastore) };
            if let Err(end) = self.beside_heartbeats(id, erased.records, kept).await {
                return end;
            }
        }
        End::Told { reason: reason(&erased), figures, plan: erased.plan }
    }

    /// Entries of the quarantine about the records, which are removed if that `is_allowed`. Answers how many.
    async fn discard_about(&self, erasure: &Erasure, is_allowed: bool) -> Result<u64, HandleError> {
        let consent = if is_allowed { Consent::Given } else { Consent::DryRun };
        let mut entries = 0;
        for id in &erasure.ids {
            let filter = QuarantineFilter {
                domain: Some(erasure.space.domain.to_string()),
                document_id: Some(id.clone()),
                ..QuarantineFilter::default()
            };
            entries += self.operations.quarantine().discard(&filter, &consent, true).await?.entries;
        }
        Ok(entries)
    }

    /// Lets erased records in again.
    pub(super) async fn allow_records(&self, begun: &OperationRecord) -> End {
        let (asked, space) = (&begun.asked, &begun.asked.target.space);
        let Some(records) = asked.records() else { return End::Failed(NO_IDS.into()) };
        let hashes = records.all_hashes(space);
        let allowing = || self.operations.allow_records(space, &hashes, &asked.asked_by);
        match self.beside_heartbeats(&begun.id, 0, allowing).await {
            // Begun anew, it finds that a writer had done it before it ended.
            Ok(0) if begun.attempts <= 1 => End::Failed(format!(
                "none of these records is kept out of {space}; `lakectl record erased` lists those that are"
            )),
            Ok(allowed) => End::Succeeded(Figures::from([("allowed", allowed)])),
            Err(end) => end,
        }
    }
}

/// What there is to say of an erasure.
fn reason(erased: &Erased) -> String {
    match (erased.done, erased.log_files_left) {
        (false, _) => ONLY_PLANNED.into(),
        (true, 0) => String::new(),
        (true, left) => format!(
            "{left} files of logs name an id still: a row of another record has it among its values, or a folder of a partition within the \
             retention; erase again when that is over"
        ),
    }
}
