//! The state of the catalog as messages of the interface. Pure.

use lake_proto::admin::v1 as proto;

use super::super::convert;
use crate::catalog::differences::Difference;
use crate::catalog::status::{CatalogEntry, CatalogStatus};

/// Most entries of a status.
const ENTRIES_MAX: usize = 1_000;

/// A table of the catalog.
pub(in crate::admin) fn entry(of: &CatalogEntry) -> proto::CatalogEntry {
    proto::CatalogEntry {
        name: of.name.to_string(),
        state: state(of.difference).into(),
        since: of.difference.is_some().then(|| convert::timestamp(of.since_us)),
        error: of.error.clone(),
        next_action: next_action(of).to_owned(),
        location: of.location.clone(),
        key: of.key.as_ref().map(convert::key),
    }
}

const fn state(difference: Option<Difference>) -> proto::CatalogState {
    match difference {
        None => proto::CatalogState::Registered,
        Some(Difference::Create) => proto::CatalogState::ToCreate,
        Some(Difference::Alter) => proto::CatalogState::ToAlter,
        Some(Difference::Drop) => proto::CatalogState::ToDrop,
        Some(Difference::Taken) => proto::CatalogState::Taken,
    }
}

fn next_action(of: &CatalogEntry) -> &'static str {
    match of.difference {
        Some(Difference::Taken) => {
            "drop or rename the table that has the name, in the catalog; then lakectl catalog sync. The lake never touches it"
        }
        Some(_) if !of.error.is_empty() => {
            "mend what the catalog refuses; it is tried again by itself, or at once by lakectl catalog sync"
        }
        _ => "",
    }
}

/// The catalog as a whole, at an instant.
pub(in crate::admin) fn status(of: &CatalogStatus, now_us: i64) -> proto::GetCatalogStatusResponse {
    let (pending, all) = (of.pending().count(), of.entries.len());
    let is_there = !of.addresses.is_empty();
    let next_action = match (&of.trouble, is_there) {
        (_, false) => "for readers by name, configure section `catalog` of the writer",
        (Some(_), true) => "see whether the catalog runs and whether its log says why; it is asked again by itself",
        (None, true) if all > 0 => "see what the entries say",
        (None, true) => "",
    };
    proto::GetCatalogStatusResponse {
        kind: if is_there { "hive" } else { "none" }.into(),
        addresses: of.addresses.clone(),
        registered: convert::count(of.registered),
        pending: convert::count(pending as u64),
        taken: convert::count((all - pending) as u64),
        lag_seconds: of.lag_seconds(now_us),
        last_success_at: of.last_success_us.map(convert::timestamp),
        last_comparison_at: of.last_comparison_us.map(convert::timestamp),
        error: of.trouble.as_ref().map(|(error, _)| error.clone()).unwrap_or_default(),
        error_since: of.trouble.as_ref().map(|(_, since_us)| convert::timestamp(*since_us)),
        next_action: next_action.into(),
        entries: of.entries.iter().take(ENTRIES_MAX).map(entry).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::CatalogName;

    fn differing(difference: Difference, error: &str) -> CatalogEntry {
        CatalogEntry {
            name: CatalogName { database: "demo".into(), table: "case_sql_person".into() },
            key: None,
            difference: Some(difference),
            since_us: 1_000_000,
            error: error.into(),
            location: String::new(),
        }
    }

    #[test]
    fn what_needs_somebody_says_what_to_do() {
        let taken = entry(&differing(Difference::Taken, "a table has this name"));
        assert!(taken.state() == proto::CatalogState::Taken && taken.next_action.contains("catalog sync"));
        assert_eq!((taken.name.as_str(), taken.since.map_or(0, |since| since.seconds)), ("demo.case_sql_person", 1));
        let waiting = entry(&differing(Difference::Create, ""));
        assert_eq!((waiting.state(), waiting.next_action.as_str()), (proto::CatalogState::ToCreate, ""));
        assert!(!entry(&differing(Difference::Drop, "refused")).next_action.is_empty());
    }

    #[test]
    fn a_status_counts_and_tells_the_lag() {
        let none = status(&CatalogStatus::default(), 0);
        assert!(none.kind == "none" && none.next_action.contains("`catalog`"));
        let of = CatalogStatus {
            addresses: vec!["thrift://hive:9083".into()],
            registered: 5,
            entries: vec![differing(Difference::Create, ""), differing(Difference::Taken, "")],
            trouble: Some(("it does not answer".into(), 2_000_000)),
            ..CatalogStatus::default()
        };
        let told = status(&of, 4_000_000);
        assert_eq!((told.kind.as_str(), told.registered, told.pending, told.taken), ("hive", 5, 1, 1));
        assert_eq!((told.lag_seconds, told.error_since.map_or(0, |since| since.seconds)), (3.0, 2));
        assert!(told.error.contains("does not answer") && told.next_action.contains("runs"));
    }
}
