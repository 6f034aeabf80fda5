//! What fetchers take and nobody has filled: what Kafka did not remember of it is missing in the lake. An entry that comes to an allow-list offers its
//! backfill, here, in the log, and by `lakectl backfill offers`.

use std::collections::BTreeSet;

use lake_proto::queue::v1::Taken;
use lake_shared::error_chain::Chain;
use lake_shared::identity::{DocumentType, Kind};

use super::scope::BackfillScope;
use crate::metastore::Metastore;
use crate::metastore::backfills::TakenEntry;
use crate::metastore::steering::OperationRecord;
use crate::pipeline_watch::Heard;

const DOMAINS: &str = "domains";
const CASE_TYPES: &str = "case_types";
const FORM_XMLNS: &str = "form_xmlns";

/// Most new entries that are told in the log one by one.
const TOLD_MAX: usize = 20;

/// Something that could be filled.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Offer {
    /// The project; empty: each.
    pub(crate) domain: String,
    /// The kind; `None`: all.
    pub(crate) kind: Option<Kind>,
    /// The case type or xmlns; empty: all.
    pub(crate) document_type: String,
    /// Since when it is taken, microseconds.
    pub(crate) since_us: i64,
}

/// Keeps what the fetchers that are there take, and tells in the log what is new.
pub(super) async fn note_taken(metastore: &dyn Metastore, present: &[Heard]) {
    let taken: Vec<&Taken> = present.iter().filter_map(|heard| heard.announcement.taken.as_ref()).collect();
    if taken.is_empty() {
        return;
    }
    match metastore.note_taken(&entries(&taken)).await {
        Ok(new) => {
            for (list, entry) in new.iter().take(TOLD_MAX) {
                let command = command(list, entry);
                tracing::info!(
                    list,
                    entry,
                    "it is taken since now; what Kafka does not remember of it is missing: {command}"
                );
            }
            if new.len() > TOLD_MAX {
                tracing::info!(
                    entries = new.len(),
                    "so many entries are taken since now; what Kafka does not remember of them is missing: lakectl backfill offers"
                );
            }
        }
        Err(error) => tracing::debug!(error = %Chain(&error), "what is taken cannot be kept now"),
    }
}

/// The entries of one allow-list.
type EntriesOf = fn(&Taken) -> &[String];

/// The entries of all allow-lists. A list that takes everything has none.
fn entries(taken: &[&Taken]) -> Vec<(&'static str, String)> {
    let mut all = BTreeSet::new();
    let lists: [(&'static str, EntriesOf); 3] = [
        (DOMAINS, |taken| &taken.domains),
        (CASE_TYPES, |taken| &taken.case_types),
        (FORM_XMLNS, |taken| &taken.form_xmlns),
    ];
    for (list, of) in lists {
        if taken.iter().all(|taken| !of(taken).is_empty()) {
            all.extend(taken.iter().flat_map(|taken| of(taken)).map(|entry| (list, entry.clone())));
        }
    }
    all.into_iter().collect()
}

fn command(list: &str, entry: &str) -> String {
    match list {
        DOMAINS => format!("lakectl backfill start {entry:?}"),
        CASE_TYPES => format!("lakectl backfill start PROJECT --kind case --type {entry:?}"),
        _ => format!("lakectl backfill start PROJECT --kind form --type {entry:?}"),
    }
}

/// What is taken and was not filled since, where these backfills were asked for.
pub(crate) fn offers(taken: &[TakenEntry], backfills: &[OperationRecord]) -> Vec<Offer> {
    let domains: Vec<&TakenEntry> = taken.iter().filter(|entry| entry.list == DOMAINS).collect();
    let mut offers = BTreeSet::new();
    for entry in &domains {
        let missing: Vec<Kind> = Kind::ALL
            .into_iter()
            .filter(|kind| !is_filled(backfills, &entry.entry, *kind, None, entry.since_us))
            .collect();
        let offer =
            |kind| Offer { domain: entry.entry.clone(), kind, document_type: String::new(), since_us: entry.since_us };
        match missing.len() == Kind::ALL.len() {
            true => drop(offers.insert(offer(None))),
            false => offers.extend(missing.into_iter().map(|kind| offer(Some(kind)))),
        }
    }
    for entry in taken.iter().filter(|entry| entry.list != DOMAINS) {
        let kind = if entry.list == CASE_TYPES { Kind::Case } else { Kind::Form };
        let of_each = [String::new()];
        let of: Vec<&String> = match domains.is_empty() {
            true => of_each.iter().collect(),
            // Of a project that is new itself everything is offered.
            false => domains.iter().map(|of| &of.entry).filter(|of| !is_offered(&offers, of, kind)).collect(),
        };
        for domain in of {
            if !is_filled(backfills, domain, kind, Some(&entry.entry), entry.since_us) {
                let (domain, document_type) = (domain.clone(), entry.entry.clone());
                offers.insert(Offer { domain, kind: Some(kind), document_type, since_us: entry.since_us });
            }
        }
    }
    offers.into_iter().collect()
}

fn is_offered(offers: &BTreeSet<Offer>, domain: &str, kind: Kind) -> bool {
    offers
        .iter()
        .any(|offer| offer.domain == domain && offer.document_type.is_empty() && offer.kind.is_none_or(|of| of == kind))
}

/// Whether a backfill since then goes over everything of this. An empty domain is any.
fn is_filled(
    backfills: &[OperationRecord],
    domain: &str,
    kind: Kind,
    document_type: Option<&str>,
    since_us: i64,
) -> bool {
    backfills.iter().any(|record| {
        let space = &record.asked.target.space;
        let Ok(scope) = BackfillScope::of_details(&record.asked.details) else { return false };
        let named = |name: &str| match kind {
            Kind::Form => DocumentType::of_form(name),
            Kind::Case | Kind::Location => name.into(),
        };
        let has_type = |wanted: &str| scope.types.iter().any(|name| named(name) == named(wanted));
        record.created_us >= since_us
            && space.kind == kind
            && (domain.is_empty() || space.domain.as_str() == domain)
            && scope.is_whole()
            && (scope.types.is_empty() || document_type.is_some_and(has_type))
    })
}

#[cfg(test)]
mod tests {
    use lake_shared::identity::Space;

    use super::*;
    use crate::consent::Consent;
    use crate::metastore::steering::{NewOperation, OperationKind, OperationState, OperationTarget};

    fn backfill(domain: &str, kind: Kind, scope: &BackfillScope, created_us: i64) -> OperationRecord {
        OperationRecord {
            id: String::new(),
            asked: NewOperation {
                request_id: String::new(),
                kind: OperationKind::Backfill,
                target: OperationTarget::space(Space { domain: domain.into(), kind }),
                asked_by: String::new(),
                consent: Consent::Given,
                details: scope.details(),
            },
            state: OperationState::Succeeded,
            since_us: 0,
            reason: String::new(),
            attempts: 1,
            done: 0,
            total: None,
            created_us,
            started_us: None,
            heartbeat_us: None,
            finished_us: None,
            per_second: None,
            cancel_requested: false,
            paused: false,
            result: String::new(),
            plan: String::new(),
        }
    }

    fn taken(list: &str, entry: &str, since_us: i64) -> TakenEntry {
        TakenEntry { list: list.into(), entry: entry.into(), since_us }
    }

    fn shown(offers: &[Offer]) -> Vec<(&str, Option<Kind>, &str)> {
        offers.iter().map(|offer| (offer.domain.as_str(), offer.kind, offer.document_type.as_str())).collect()
    }

    #[test]
    fn a_new_project_is_offered_until_each_kind_of_it_was_filled() {
        let lists = [taken(DOMAINS, "new", 5), taken(DOMAINS, "old", 1)];
        let whole = BackfillScope::default();
        let some = BackfillScope { from_us: Some(3), ..BackfillScope::default() };
        let mut asked: Vec<OperationRecord> = Kind::ALL.map(|kind| backfill("old", kind, &whole, 2)).into();
        // Before it was taken, or only a part.
        asked.extend([backfill("new", Kind::Case, &whole, 4), backfill("new", Kind::Form, &some, 9)]);
        assert_eq!(shown(&offers(&lists, &asked)), [("new", None, "")]);
        asked.push(backfill("new", Kind::Form, &whole, 9));
        assert_eq!(shown(&offers(&lists, &asked)), [("new", Some(Kind::Case), ""), ("new", Some(Kind::Location), "")]);
    }

    #[test]
    fn a_new_type_is_offered_in_each_project_that_is_not_new() {
        let lists =
            [taken(DOMAINS, "a", 1), taken(DOMAINS, "b", 1), taken(DOMAINS, "new", 9), taken(FORM_XMLNS, "X", 5)];
        let whole = BackfillScope::default();
        let prefixed = BackfillScope { types: vec!["http://openrosa.org/formdesigner/X".into()], ..whole.clone() };
        let mut asked: Vec<OperationRecord> =
            ["a", "b"].iter().flat_map(|domain| Kind::ALL.map(|kind| backfill(domain, kind, &whole, 2))).collect();
        let types = [("a", Some(Kind::Form), "X"), ("b", Some(Kind::Form), "X"), ("new", None, "")];
        assert_eq!(shown(&offers(&lists, &asked)), types);
        asked.push(backfill("a", Kind::Form, &prefixed, 6));
        assert_eq!(shown(&offers(&lists, &asked)), types[1..]);
        // Where every project is taken, any that was filled will do.
        let every = [taken(CASE_TYPES, "t", 5)];
        assert_eq!(shown(&offers(&every, &asked)), [("", Some(Kind::Case), "t")]);
        asked.push(backfill("a", Kind::Case, &whole, 6));
        assert_eq!(offers(&every, &asked), []);
    }

    #[test]
    fn a_list_counts_where_every_fetcher_has_one() {
        let of = |domains: &[&str]| Taken {
            domains: domains.iter().map(|&name| name.to_owned()).collect(),
            ..Taken::default()
        };
        assert_eq!(entries(&[&of(&["b", "a"]), &of(&["a"])]), [(DOMAINS, "a".to_owned()), (DOMAINS, "b".to_owned())]);
        assert_eq!(entries(&[&of(&["a"]), &of(&[])]), [], "one of them takes every project");
        assert!(command(CASE_TYPES, "t").contains("--type \"t\""));
    }
}
