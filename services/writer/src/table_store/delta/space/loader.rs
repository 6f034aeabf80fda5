//! What loading and following spaces needs: the tables, the metastore, the key indexes.

use std::sync::Arc;

use crate::metastore::Metastore;
use crate::table_store::delta::log::table_access::TableAccess;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::delta::space::index::upkeep::KeyIndexes;
use crate::table_store::delta::space::report::measured_tables::MeasuredTables;
use crate::table_store::table_changes::TableChanges;

/// Loads spaces and keeps them in step with the logs of their tables and with the metastore. Its methods stand with what they do: loading
/// in `load`, new tables in `registration`, keys in `index::read_keys`, deletions in `tombstones`, telling the metastore in
/// `report_state`, tables that cannot be used in `unusable::tables`.
pub(crate) struct SpaceLoader {
    access: Arc<TableAccess>,
    metastore: Arc<dyn Metastore>,
    indexes: KeyIndexes,
    types_max: usize,
    measured_tables: MeasuredTables,
    changes: TableChanges,
}

impl SpaceLoader {
    pub(crate) fn new(access: Arc<TableAccess>, metastore: Arc<dyn Metastore>, options: &DeltaOptions) -> Self {
        Self {
            access,
            metastore,
            indexes: KeyIndexes::new(options),
            types_max: options.types_max,
            measured_tables: MeasuredTables::new(options.metrics_tables_max),
            changes: TableChanges::default(),
        }
    }

    pub(crate) fn access(&self) -> &TableAccess {
        &self.access
    }

    /// Where changes of tables are told.
    pub(crate) const fn changes(&self) -> &TableChanges {
        &self.changes
    }

    pub(crate) fn metastore(&self) -> &dyn Metastore {
        &*self.metastore
    }

    pub(crate) const fn indexes(&self) -> &KeyIndexes {
        &self.indexes
    }

    /// Most tables of a space.
    pub(super) const fn types_max(&self) -> usize {
        self.types_max
    }

    /// Which tables have metrics of their own.
    pub(super) const fn measured_tables(&self) -> &MeasuredTables {
        &self.measured_tables
    }
}
