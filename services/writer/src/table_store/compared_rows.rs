//! Rows as they are compared with HQ's documents: see [`lake_shared::comparison`].

use std::collections::{BTreeSet, HashSet};

use lake_shared::identity::{DocumentType, Space};

/// Which rows are compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparedScope {
    /// Of this space.
    pub space: Space,
    /// Of these types; `None`: of all.
    pub types: Option<BTreeSet<DocumentType>>,
    /// With ids from this one on, in the order of their bytes; empty: from the first.
    pub from_id: String,
    /// And before this one; empty: to the last.
    pub until_id: String,
}

impl ComparedScope {
    /// All rows of a space.
    pub const fn whole(space: Space) -> Self {
        Self { space, types: None, from_id: String::new(), until_id: String::new() }
    }

    /// Whether rows of a type are compared.
    pub fn has_type(&self, document_type: &DocumentType) -> bool {
        self.types.as_ref().is_none_or(|types| types.contains(document_type))
    }

    /// Whether an id is in the range.
    pub fn has_id(&self, id: &str) -> bool {
        id >= self.from_id.as_str() && (self.until_id.is_empty() || id < self.until_id.as_str())
    }
}

/// Rows that are told one by one.
#[derive(Clone, Copy, Debug)]
pub enum WantedRows<'w> {
    /// Those in some buckets.
    Buckets {
        /// Number of all buckets, a power of two.
        bucket_count: u32,
        /// The buckets.
        buckets: &'w BTreeSet<u32>,
    },
    /// Those with these ids.
    Ids(&'w HashSet<String>),
}

impl WantedRows<'_> {
    /// Whether the row of an id is wanted.
    pub fn has(&self, id: &str) -> bool {
        match self {
            Self::Buckets { bucket_count, buckets } => {
                buckets.contains(&lake_shared::comparison::bucket(id, *bucket_count))
            }
            Self::Ids(ids) => ids.contains(id),
        }
    }
}

/// What is compared of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowState {
    /// Its id.
    pub id: String,
    /// Type of its table.
    pub document_type: DocumentType,
    /// Stands for its state.
    pub fingerprint: u64,
    /// When HQ had saved it, microseconds; `None`: the row does not say.
    pub saved_us: Option<i64>,
}

#[cfg(test)]
mod tests {
    use lake_shared::comparison::bucket;
    use lake_shared::identity::Kind;

    use super::*;

    #[test]
    fn a_scope_has_types_and_a_range() {
        let whole = ComparedScope::whole(Space { domain: "d".into(), kind: Kind::Case });
        assert!(whole.has_type(&"t".into()) && whole.has_id(""));
        let types = Some(BTreeSet::from(["t".into()]));
        let some = ComparedScope { types, from_id: "b".into(), until_id: "d".into(), ..whole };
        assert!(some.has_type(&"t".into()) && !some.has_type(&"u".into()));
        assert_eq!(["a", "b", "c", "d"].map(|id| some.has_id(id)), [false, true, true, false]);
    }

    #[test]
    fn rows_are_wanted_by_bucket_or_by_id() {
        let buckets = BTreeSet::from([bucket("a", 64)]);
        assert!(WantedRows::Buckets { bucket_count: 64, buckets: &buckets }.has("a"));
        assert!(!WantedRows::Buckets { bucket_count: 64, buckets: &BTreeSet::new() }.has("a"));
        let ids = HashSet::from(["a".to_owned()]);
        assert!(WantedRows::Ids(&ids).has("a") && !WantedRows::Ids(&ids).has("b"));
    }
}
