//! How rows that are replaced or deleted leave their table: by rewriting their files, or by deletion vectors. Pure.

use crate::table_store::delta::options::{DeletionVectors, TableOptions};

/// How rows leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Replacement {
    /// Their files are written anew without them.
    Rewrite,
    /// They are marked in deletion vectors of their files.
    DeletionVectors,
}

/// What may be rewritten now to keep small tables free of deletion vectors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum BudgetLeft {
    /// So many bytes.
    Bytes(f64),
    /// The budget is full, or there is none: any number of bytes.
    Unlimited,
}

impl BudgetLeft {
    pub(crate) fn covers(self, bytes: u64) -> bool {
        match self {
            Self::Bytes(left) => bytes == 0 || bytes as f64 <= left,
            Self::Unlimited => true,
        }
    }
}

/// Decides for one change of a table. `table_bytes`: bytes of its data files; `rewritten_bytes`: of those that hold the rows that leave.
pub(crate) fn replacement(
    options: &TableOptions,
    table_bytes: i64,
    rewritten_bytes: u64,
    left: BudgetLeft,
) -> Replacement {
    match options.deletion_vectors {
        DeletionVectors::On => Replacement::DeletionVectors,
        DeletionVectors::Off => Replacement::Rewrite,
        DeletionVectors::Auto => {
            let is_small = table_bytes.unsigned_abs() < options.copy_on_write_below_bytes;
            if is_small && left.covers(rewritten_bytes) { Replacement::Rewrite } else { Replacement::DeletionVectors }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_tables_are_rewritten_as_far_as_the_budget_goes() {
        let options = |deletion_vectors| TableOptions {
            deletion_vectors,
            partition_by: Vec::new(),
            copy_on_write_below_bytes: 100,
            compaction: true,
            retention_hours: 48,
        };
        let auto = |table_bytes, rewritten_bytes, left| {
            replacement(&options(DeletionVectors::Auto), table_bytes, rewritten_bytes, left) == Replacement::Rewrite
        };
        assert!(auto(99, 50, BudgetLeft::Bytes(50.0)) && auto(99, 99, BudgetLeft::Unlimited));
        assert!(auto(99, 0, BudgetLeft::Bytes(-7.0)), "nothing is rewritten");
        assert!(!auto(99, 51, BudgetLeft::Bytes(50.0)) && !auto(100, 0, BudgetLeft::Unlimited));
        for (table_bytes, left) in [(0, BudgetLeft::Unlimited), (i64::MAX, BudgetLeft::Bytes(0.0))] {
            let decided = |deletion_vectors| replacement(&options(deletion_vectors), table_bytes, 1, left);
            assert_eq!(decided(DeletionVectors::On), Replacement::DeletionVectors);
            assert_eq!(decided(DeletionVectors::Off), Replacement::Rewrite);
        }
    }
}
