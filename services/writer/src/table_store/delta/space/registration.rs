//! Tables that a batch names for the first time.

use std::collections::HashSet;

use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use lake_shared::escaped_names;
use lake_shared::identity::{DocumentType, TableKey};

use crate::metastore::NewTable;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::table_number::TableNumber;

/// Folders of new tables that are looked into at once.
const FOLDERS_AT_ONCE: usize = 16;

impl SpaceLoader {
    /// The numbers of tables, registering those that are new. Registered before their first commits, so that no table with rows is
    /// ever unknown to the metastore; a registered table without a log does no harm.
    ///
    /// # Errors
    /// [`EngineError::TooManyTypes`] where the space would have more tables than it may; nothing is registered then.
    pub(crate) async fn numbers_of(
        &self,
        state: &mut SpaceState,
        document_types: &[DocumentType],
    ) -> Result<Vec<TableNumber>, EngineError> {
        for name in document_types {
            if let Some(number) = state.number_of(name) {
                self.try_if_due(state, number).await?;
            }
        }
        let mut seen = HashSet::new();
        let new = document_types.iter().filter(|name| state.number_of(name).is_none() && seen.insert(*name));
        let new: Vec<&DocumentType> = new.collect();
        let room = self.types_max().saturating_sub(state.tables().len());
        if let Some(refused) = new.get(room..).filter(|refused| !refused.is_empty()) {
            let refused = refused.iter().map(|name| (*name).clone()).collect();
            return Err(EngineError::TooManyTypes { types_max: self.types_max(), refused });
        }
        let new: Vec<NewTable> = new.into_iter().map(|name| self.new_table(state, name)).collect();
        self.register(state, &new).await?;
        let number = |name: &DocumentType| state.number_of(name);
        let numbers: Option<Vec<TableNumber>> = document_types.iter().map(number).collect();
        numbers.ok_or_else(|| EngineError::corrupt("the metastore answered with other tables than it was asked for"))
    }

    fn new_table(&self, state: &SpaceState, document_type: &DocumentType) -> NewTable {
        let key = TableKey { space: state.space().clone(), document_type: document_type.clone() };
        let path = escaped_names::table_path(&key);
        let suffix =
            if self.access().lake().ignores_case() { escaped_names::table_path_suffix(&key) } else { String::new() };
        NewTable { location: self.access().lake().location(&path), path, suffix, key }
    }

    /// Registers tables. One that has a log all the same is opened: it was lost by the metastore, or made by another program.
    async fn register(&self, state: &mut SpaceState, new: &[NewTable]) -> Result<(), EngineError> {
        if new.is_empty() {
            return Ok(());
        }
        let records = self.metastore().register_tables(new).await.map_err(EngineError::Metastore)?;
        let mut looks = Vec::with_capacity(records.len());
        for record in &records {
            looks.push(self.access().has_log(&record.path).boxed());
        }
        let have_logs: Vec<bool> = stream::iter(looks).buffered(FOLDERS_AT_ONCE).try_collect().await?;
        let numbers: Vec<TableNumber> = records.into_iter().map(|record| state.add_table(record)).collect();
        for (number, _) in numbers.into_iter().zip(have_logs).filter(|(_, has_log)| *has_log) {
            self.refresh(state, number).await?;
        }
        Ok(())
    }
}
