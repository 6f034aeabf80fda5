//! The file actions of a written change.

use std::collections::HashMap;

use deltalake::DeltaTable;
use deltalake::kernel::Action;

use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file::DataFile;
use crate::table_store::delta::files::deletion_vectors::DeletionVector;
use crate::table_store::delta::log::file_actions::{removal, with_vector};
use crate::table_store::delta::space::table::TableState;
use crate::table_store::delta::upsert::change::WrittenChange;

/// The file actions of a written change. A `Remove` names the deletion vector that its file had: other readers tell two versions of one
/// file apart by it.
pub(crate) fn file_actions(
    held: &TableState,
    table: &DeltaTable,
    written: &WrittenChange,
    now_ms: i64,
) -> Result<Vec<Action>, EngineError> {
    let removed = written.removed.iter().chain(written.marked.iter().map(|(number, _)| number));
    let removed = removed.filter_map(|number| held.file(*number));
    let mut actions: Vec<Action> =
        removed.map(|file| Action::Remove(removal(file, held.partition_columns(), true, now_ms))).collect();
    let marked: HashMap<&str, (&DataFile, &DeletionVector)> = written
        .marked
        .iter()
        .filter_map(|(number, vector)| held.file(*number).map(|file| (file.path.as_str(), (file, vector))))
        .collect();
    if !marked.is_empty() {
        let snapshot = table.snapshot().map_err(EngineError::delta)?;
        let log = snapshot.log_data();
        let adds = log.iter().filter_map(|view| {
            let (file, vector) = marked.get(view.path().as_ref())?;
            Some(Action::Add(with_vector(&view, file, vector)))
        });
        let adds: Vec<Action> = adds.collect();
        if adds.len() != marked.len() {
            return Err(EngineError::corrupt("a file of the key index is not in the log"));
        }
        actions.extend(adds);
    }
    actions.extend(written.added.iter().map(|file| Action::Add(file.add.clone())));
    Ok(actions)
}
