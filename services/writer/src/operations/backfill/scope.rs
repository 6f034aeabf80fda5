//! What a backfill is to fill, as it is kept with its operation. Pure.

use lake_proto::queue::v1::ScanScope;
use serde::{Deserialize, Serialize};

use crate::metastore::backfills::BackfillPart;

/// Ids of a part.
const IDS_OF_PART: usize = 1_000;

/// What a backfill is to fill of its space.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BackfillScope {
    /// Case types or xmlns; none: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) types: Vec<String>,
    /// What was saved in HQ from this time on, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) from_us: Option<i64>,
    /// And before this time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) until_us: Option<i64>,
    /// Only these documents; none: all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) ids: Vec<String>,
}

impl BackfillScope {
    /// From the details of an operation.
    ///
    /// # Errors
    /// They are no scope of this version.
    pub(crate) fn of_details(details: &str) -> Result<Self, String> {
        serde_json::from_str(details).map_err(|error| error.to_string())
    }

    /// As details of an operation.
    pub(crate) fn details(&self) -> String {
        // Texts and numbers can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether it goes over everything of its types, or of all types.
    pub(crate) fn is_whole(&self) -> bool {
        self.from_us.is_none() && self.until_us.is_none() && self.ids.is_empty()
    }

    /// As fetchers are asked for it.
    pub(super) fn to_scan(&self) -> ScanScope {
        ScanScope { types: self.types.clone(), from_us: self.from_us, until_us: self.until_us }
    }

    /// Its parts, where it is about ids.
    pub(super) fn id_parts(&self) -> Vec<BackfillPart> {
        let part = |(number, ids): (i64, &[String])| BackfillPart {
            part: format!("ids {}", number + 1),
            number,
            estimate: ids.len() as i64,
            ..BackfillPart::default()
        };
        (0..).zip(self.ids.chunks(IDS_OF_PART)).map(part).collect()
    }

    /// The ids of a part.
    pub(super) fn ids_of(&self, part: &BackfillPart) -> &[String] {
        let number = usize::try_from(part.number).unwrap_or(usize::MAX);
        self.ids.chunks(IDS_OF_PART).nth(number).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_scope_is_kept_and_its_ids_are_in_parts() {
        let ids: Vec<String> = (0..2_500).map(|number| format!("id \"{number}\"")).collect();
        let scope = BackfillScope { types: vec!["t".into()], from_us: Some(-1), until_us: None, ids: ids.clone() };
        assert_eq!(BackfillScope::of_details(&scope.details()).unwrap(), scope);
        assert_eq!(BackfillScope::default().details(), "{}");
        assert!(BackfillScope::default().is_whole() && !scope.is_whole());
        assert!(BackfillScope::of_details("{\"other\":1}").is_err());
        let parts = scope.id_parts();
        let names: Vec<_> = parts.iter().map(|part| (part.part.as_str(), part.estimate)).collect();
        assert_eq!(names, [("ids 1", 1_000), ("ids 2", 1_000), ("ids 3", 500)]);
        let all: Vec<String> = parts.iter().flat_map(|part| scope.ids_of(part).to_vec()).collect();
        assert_eq!(all, ids);
        assert!(scope.ids_of(&BackfillPart { number: 3, ..BackfillPart::default() }).is_empty());
    }
}
