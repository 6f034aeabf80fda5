//! What is compared, as it is kept with its operation. Pure.

use lake_proto::queue::v1 as proto;
use serde::{Deserialize, Serialize};

use crate::operations::backfill::scope::BackfillScope;

/// What is compared of a space, and whether what differs is healed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ReconcileScope {
    /// Case types or xmlns; none: all that are taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) types: Vec<String>,
    /// Ids from this one on, in the order of their bytes; empty: from the first.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) from_id: String,
    /// And before this one; empty: to the last.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) until_id: String,
    /// Whether what differs is read from HQ again.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) heal: bool,
}

impl ReconcileScope {
    /// From the details of an operation.
    ///
    /// # Errors
    /// They are no scope of this version.
    pub(crate) fn of_details(details: &str) -> Result<Self, String> {
        serde_json::from_str(details).map_err(|error| error.to_string())
    }

    /// As details of an operation.
    pub(crate) fn details(&self) -> String {
        // Texts can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// As fetchers are asked for it.
    pub(super) fn to_proto(&self) -> proto::ComparedScope {
        let Self { types, from_id, until_id, .. } = self.clone();
        proto::ComparedScope { types, from_id, until_id }
    }

    /// As fetchers are asked how much there is: a range of ids is more than it may be.
    pub(super) fn to_estimate(&self) -> BackfillScope {
        BackfillScope { types: self.types.clone(), ..BackfillScope::default() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_scope_is_kept() {
        let scope = ReconcileScope { types: vec!["t".into()], from_id: "a\"".into(), until_id: "b".into(), heal: true };
        assert_eq!(ReconcileScope::of_details(&scope.details()).unwrap(), scope);
        assert_eq!(ReconcileScope::default().details(), "{}");
        assert!(ReconcileScope::of_details("{\"other\":1}").is_err());
        assert_eq!(scope.to_proto().types, ["t"]);
        assert!(!scope.to_estimate().is_whole() || scope.to_estimate().types == ["t"]);
    }
}
