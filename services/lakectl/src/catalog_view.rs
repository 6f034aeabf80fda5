//! What the interface answers about the catalog, as it is shown.

use lake_proto::admin::v1 as proto;
use serde::Serialize;

use crate::words::{instant, space};

/// A table in the catalog.
#[derive(Debug, Serialize)]
pub(crate) struct CatalogEntry {
    name: String,
    state: &'static str,
    since: Option<String>,
    error: String,
    next_action: String,
    location: String,
    /// The table of the lake; absent when the lake does not have it any more.
    table: Option<String>,
}

impl From<proto::CatalogEntry> for CatalogEntry {
    fn from(entry: proto::CatalogEntry) -> Self {
        let state = match entry.state() {
            proto::CatalogState::Registered => "registered",
            proto::CatalogState::ToCreate => "to create",
            proto::CatalogState::ToAlter => "to alter",
            proto::CatalogState::ToDrop => "to drop",
            proto::CatalogState::Taken => "taken",
            proto::CatalogState::Unspecified => "unknown",
        };
        Self {
            name: entry.name,
            state,
            since: instant(entry.since),
            error: entry.error,
            next_action: entry.next_action,
            location: entry.location,
            table: entry.key.map(|key| format!("{}/{}", space(key.space), key.r#type)),
        }
    }
}

/// How far the catalog is.
#[derive(Debug, Serialize)]
pub(crate) struct CatalogStatus {
    kind: String,
    addresses: Vec<String>,
    registered: i64,
    pending: i64,
    taken: i64,
    lag_seconds: f64,
    last_success_at: Option<String>,
    last_comparison_at: Option<String>,
    error: String,
    error_since: Option<String>,
    next_action: String,
    entries: Vec<CatalogEntry>,
}

impl From<proto::GetCatalogStatusResponse> for CatalogStatus {
    fn from(answer: proto::GetCatalogStatusResponse) -> Self {
        Self {
            kind: answer.kind,
            addresses: answer.addresses,
            registered: answer.registered,
            pending: answer.pending,
            taken: answer.taken,
            lag_seconds: answer.lag_seconds,
            last_success_at: instant(answer.last_success_at),
            last_comparison_at: instant(answer.last_comparison_at),
            error: answer.error,
            error_since: instant(answer.error_since),
            next_action: answer.next_action,
            entries: answer.entries.into_iter().map(CatalogEntry::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_names_the_table_of_the_lake() {
        let key = proto::TableKey {
            space: Some(proto::Space { domain: "demo".into(), kind: proto::Kind::Case.into() }),
            r#type: "person".into(),
        };
        let entry = |state: proto::CatalogState, key| {
            CatalogEntry::from(proto::CatalogEntry { state: state.into(), key, ..Default::default() })
        };
        let here = entry(proto::CatalogState::ToAlter, Some(key));
        assert_eq!((here.state, here.table.as_deref()), ("to alter", Some("demo/case/person")));
        assert_eq!(entry(proto::CatalogState::ToDrop, None).table, None);
    }
}
