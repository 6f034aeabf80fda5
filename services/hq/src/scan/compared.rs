//! Comparing HQ's tables with the lake: sums over many documents at once, made by HQ's databases themselves, and the states of single ones.

use async_trait::async_trait;
use lake_shared::comparison::{BucketSum, ComparedDocument};
use lake_shared::identity::DocumentType;

use super::ScanScope;
use crate::source_error::SourceError;

/// Which documents are compared: live ones only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparedScope {
    /// Their project space, kind and types.
    pub scan: ScanScope,
    /// Ids from this one on, in the order of their bytes; empty: from the first.
    pub from_id: String,
    /// And before this one; empty: to the last.
    pub until_id: String,
}

impl ComparedScope {
    /// Everything that a scan goes over.
    pub const fn whole(scan: ScanScope) -> Self {
        Self { scan, from_id: String::new(), until_id: String::new() }
    }

    /// Whether an id is in the range.
    pub fn has_id(&self, id: &str) -> bool {
        id >= self.from_id.as_str() && (self.until_id.is_empty() || id < self.until_id.as_str())
    }
}

/// A stretch of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComparedStretch<'s> {
    /// The database, as the configuration names it.
    pub shard: &'s str,
    /// Documents with a greater primary key.
    pub after: i64,
    /// No more documents than these.
    pub documents_max: usize,
    /// Number of buckets, a power of two.
    pub bucket_count: u32,
}

/// What a stretch has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared<T> {
    /// Sums of buckets, or documents by primary key.
    pub found: Vec<T>,
    /// Where the next stretch begins.
    pub reached: i64,
    /// Whether there is no next one.
    pub finished: bool,
}

/// The sum of a bucket.
pub type NumberedSum = (u32, BucketSum);

/// What is compared of a live document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentState {
    /// Its id.
    pub id: String,
    /// Its type, as the lake names it.
    pub document_type: DocumentType,
    /// See [`lake_shared::comparison::time_columns`], microseconds since 1970.
    pub times_us: [Option<i64>; 2],
}

impl DocumentState {
    /// As it is compared.
    pub fn compared(&self) -> ComparedDocument<'_> {
        ComparedDocument { id: &self.id, document_type: self.document_type.as_str(), times_us: self.times_us }
    }
}

/// The part of `HqDatabase` that compares. Fails as its other methods do.
#[async_trait]
pub trait HqComparison {
    /// Sums over a stretch, of a replica where there is one; perhaps none, although it is not finished. `None`: there is no database of that name.
    async fn sum_stretch(
        &self,
        scope: &ComparedScope,
        stretch: ComparedStretch<'_>,
    ) -> Result<Option<Compared<NumberedSum>>, SourceError>;

    /// The documents of a stretch that are in these buckets, by the rules of [`HqComparison::sum_stretch`].
    async fn stretch_states(
        &self,
        scope: &ComparedScope,
        stretch: ComparedStretch<'_>,
        buckets: &[u32],
    ) -> Result<Option<Compared<DocumentState>>, SourceError>;

    /// Those of the documents that are in the scope now, from the primaries.
    async fn read_states(&self, scope: &ScanScope, ids: &[String]) -> Result<Vec<DocumentState>, SourceError>;
}

#[cfg(test)]
mod tests {
    use lake_shared::identity::Kind;

    use super::*;

    #[test]
    fn a_range_goes_by_bytes() {
        let scan = ScanScope { domain: "d".into(), kind: Kind::Case, types: None, from_us: None, until_us: None };
        let whole = ComparedScope::whole(scan);
        assert!(whole.has_id("") && whole.has_id("é"));
        let some = ComparedScope { from_id: "B".into(), until_id: "a".into(), ..whole };
        assert_eq!(["A", "B", "Z", "_", "a", "é"].map(|id| some.has_id(id)), [false, true, true, true, false, false]);
    }
}
