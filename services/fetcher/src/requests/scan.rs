//! A stretch of a scan over one of HQ's databases: its keys are listed, what they stand for is read as ever, and the writer is told how far it came.
//!
//! The report comes after everything is safe on the queue, and before the request is acknowledged. Whoever dies in between has the stretch read
//! again, which changes nothing; the writer counts a stretch once.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use lake_hq::scan::{ScanScope, ScannedKeys};
use lake_proto::queue::v1::{self as proto, ScanReport};
use lake_shared::identity::{DocumentType, FORM_DESIGNER_PREFIX, Kind};
use lake_shared::queue::{Message, publish_until_safe};
use lake_shared::{escaped_names, quarantine, wire};

use super::{Asker, RequestReader, behind_live};
use crate::allow_list::TakeConfig;
use crate::coalesce::Change;
use crate::fetch::portions::{in_portions, put_aside};
use crate::fetcher::{NotFetched, Stopping};
use crate::metric_names;

/// Most keys that are listed at once, whatever is asked for: they are held until their documents are read.
const KEYS_MAX: usize = 50_000;

impl RequestReader {
    /// Reads a stretch and reports it; returns when all of it is safe on the queue.
    pub(super) async fn scan(&self, asker: &Asker, operation_id: &str, scan: proto::Scan) -> Result<(), Stopping> {
        let proto::Scan { scope, shard, after, documents_max } = scan;
        let report = ScanReport {
            operation_id: operation_id.to_owned(),
            domain: asker.domain.to_string(),
            kind: asker.kind.to_proto().into(),
            shard,
            after,
            reached: after,
            ..ScanReport::default()
        };
        let keys_max = usize::try_from(documents_max).unwrap_or(KEYS_MAX).clamp(1, KEYS_MAX);
        let report = match scope_of(&self.fetcher.take, asker, &scope.unwrap_or_default()) {
            Ok(scope) => self.scan_stretch(asker, &scope, keys_max, report).await?,
            Err(refused) => ScanReport { refused, ..report },
        };
        let message = Message {
            subject: escaped_names::reports_subject(&asker.domain, asker.kind),
            payload: wire::encode(&report),
            dedupe_id: uuid::Uuid::new_v4().to_string(),
        };
        Ok(publish_until_safe(&*self.fetcher.queue, message, &self.shutdown).await?)
    }

    async fn scan_stretch(
        &self,
        asker: &Asker,
        scope: &ScanScope,
        keys_max: usize,
        report: ScanReport,
    ) -> Result<ScanReport, Stopping> {
        behind_live::idle(&self.pace, &self.shutdown).await?;
        let database = &self.fetcher.hq.database;
        let listing = || database.scan_keys(scope, &report.shard, report.after, keys_max);
        let ScannedKeys { keys, reached, finished } = match self.fetcher.until_answered(&self.shutdown, listing).await {
            Ok(Some(listed)) => listed,
            Ok(None) => {
                let refused = format!("HQ has no database {} any more; begin a new backfill", report.shard);
                return Ok(ScanReport { refused, ..report });
            }
            Err(NotFetched::Stopping) => return Err(Stopping),
            Err(NotFetched::AskLess(why)) => {
                let shown =
                    format!("{}; raise hq.database.statement_timeout_ms, then begin a new backfill", why.detail);
                return Ok(ScanReport { refused: shown, ..report });
            }
        };
        let documents = keys.len() as u64;
        match asker.kind {
            // Rows are read by themselves: each has a key of its own, so nothing below them needs to be emitted with them.
            Kind::Location => self.fetch_locations(asker, keys.into_iter().map(|(key, _)| key).collect()).await?,
            Kind::Case | Kind::Form => {
                let domain = asker.domain.as_str();
                let requested = keys.into_iter().map(|(_, id)| (id, Change::of_lake(domain, false))).collect();
                self.fetch_requested(asker, requested).await?;
            }
        }
        tracing::debug!(domain = %asker.domain, kind = %asker.kind, shard = report.shard, reached, documents, "stretch was read");
        Ok(ScanReport { reached, finished, documents, ..report })
    }

    async fn fetch_locations(&self, asker: &Asker, mut rest: Vec<i64>) -> Result<(), Stopping> {
        let cause = Change::of_lake(asker.domain.as_str(), false);
        // All of a stretch are said to be observed at its first reading, which spares the enrichers a newer tree for each portion.
        let first_observed_us = OnceLock::new();
        while !rest.is_empty() {
            let wanted = rest.len().min(self.fetcher.options.max_records);
            let count = behind_live::turn(&self.pace, &asker.domain, wanted, &self.shutdown).await?;
            let later = rest.split_off(count.min(wanted));
            let portion = std::mem::replace(&mut rest, later);
            let handle = |ids| self.fetcher.emit_locations(ids, &cause, &first_observed_us, &self.shutdown);
            let (counts, unreadable) = in_portions(portion, handle).await?;
            for (id, mut why) in unreadable {
                why.detail = format!("the row with id {id}, which the lake asked for: {}", why.detail);
                let entry = put_aside(Kind::Location, "", &cause, &why);
                quarantine::publish(&*self.fetcher.queue, entry, &self.shutdown).await?;
            }
            let (kind, cause) = (asker.kind.name(), asker.cause_name());
            let count = counts.into_iter().sum::<usize>() as u64;
            metrics::counter!(metric_names::REQUESTED_TOTAL, "kind" => kind, "cause" => cause).increment(count);
        }
        Ok(())
    }
}

/// What is asked for, as far as it is taken. The error says for people why none of it is.
pub(super) fn scope_of(take: &TakeConfig, asker: &Asker, scope: &proto::ScanScope) -> Result<ScanScope, String> {
    let Asker { domain, kind, .. } = asker;
    if !take.domain(domain.as_str()) {
        return Err(format!("project {domain} is not taken; add it to take.domains of the fetchers first"));
    }
    let asked: BTreeSet<DocumentType> = scope.types.iter().map(|name| type_of(*kind, name)).collect();
    if *kind == Kind::Location && !asked.is_empty() {
        return Err("locations have no types".into());
    }
    let taken = take.types(*kind).map(|taken| taken.into_iter().collect::<BTreeSet<_>>());
    let types = match (asked.is_empty(), taken) {
        (true, None) => None,
        (true, Some(taken)) => Some(taken),
        (false, None) => Some(asked),
        (false, Some(taken)) => Some(asked.into_iter().filter(|name| taken.contains(name)).collect()),
    };
    if types.as_ref().is_some_and(BTreeSet::is_empty) {
        return Err(format!(
            "none of these types is taken; add them to section take of the fetchers first: {:?}",
            scope.types
        ));
    }
    let types = types.map(|types| types.iter().flat_map(|name| spellings(*kind, name)).collect());
    Ok(ScanScope { domain: domain.clone(), kind: *kind, types, from_us: scope.from_us, until_us: scope.until_us })
}

pub(super) fn type_of(kind: Kind, name: &str) -> DocumentType {
    match kind {
        Kind::Form => DocumentType::of_form(name),
        Kind::Case | Kind::Location => name.into(),
    }
}

/// A type as HQ's tables may have it.
fn spellings(kind: Kind, name: &DocumentType) -> Vec<String> {
    let plain = name.as_str().to_owned();
    match kind {
        Kind::Form => vec![format!("{FORM_DESIGNER_PREFIX}{plain}"), plain],
        Kind::Case | Kind::Location => vec![plain],
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use lake_proto::queue::v1::ChangeCause;

    use super::*;
    use crate::allow_list::AllowList;

    fn only(names: &[&str]) -> AllowList {
        AllowList::Only(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn only_what_is_taken_is_scanned() {
        let take =
            TakeConfig { domains: only(&["d"]), case_types: AllowList::Everything, form_xmlns: only(&["X", "Y"]) };
        let asker = |domain: &str, kind| Asker { domain: domain.into(), kind, cause: ChangeCause::Backfill };
        let scope = |types: &[&str]| proto::ScanScope {
            types: types.iter().map(|&name| name.to_owned()).collect(),
            from_us: Some(7),
            until_us: None,
        };
        let of = |domain, kind, types: &[&str]| scope_of(&take, &asker(domain, kind), &scope(types));
        assert!(of("e", Kind::Case, &[]).unwrap_err().contains("take.domains"));
        assert!(of("d", Kind::Form, &["Z"]).unwrap_err().contains("\"Z\""));
        assert!(of("d", Kind::Location, &["t"]).is_err());
        let all = of("d", Kind::Case, &[]).unwrap();
        assert_eq!((all.types, all.from_us, all.until_us), (None, Some(7), None));
        assert_eq!(of("d", Kind::Case, &["t"]).unwrap().types.unwrap(), ["t"]);
        let prefixed = |name: &str| format!("{FORM_DESIGNER_PREFIX}{name}");
        let forms = of("d", Kind::Form, &[&prefixed("X"), "Z"]).unwrap();
        assert_eq!(forms.types.unwrap(), [prefixed("X"), "X".into()]);
        assert_eq!(of("d", Kind::Form, &[]).unwrap().types.unwrap().len(), 4, "both, each in two spellings");
    }
}
