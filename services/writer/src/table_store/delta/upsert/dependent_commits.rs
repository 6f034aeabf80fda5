//! Commits to tables between which rows move, one after the other.

use std::collections::BTreeMap;

use roaring::RoaringBitmap;

use crate::key_index::{FileNumber, IdHash, Liveness, Position};
use crate::table_store::SpaceBatch;
use crate::table_store::by_id_hash::{ByIdHash, IdHashes};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::space::state::{RowLocation, SpaceState};
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::delta::upsert::adopt::adopt;
use crate::table_store::delta::upsert::apply::Upserter;
use crate::table_store::delta::upsert::change::Change;
use crate::table_store::delta::upsert::plan::decide::Decisions;
use crate::table_store::delta::upsert::progress::Progress;
use crate::table_store::delta::upsert::rows::incoming::IncomingRows;

impl Upserter {
    /// Commits the changes of tables between which rows move. `tables`: positions in `SpaceBatch::upserts` with the
    /// numbers of their tables; `found`: rows in such tables only. Answers a table in which another program committed.
    pub(super) async fn commit_dependent(
        &self,
        state: &mut SpaceState,
        tables: &[(usize, TableNumber)],
        batch: &SpaceBatch,
        decisions: &Decisions,
        mut found: ByIdHash<RowLocation>,
        progress: &mut Progress,
    ) -> Result<Option<TableNumber>, EngineError> {
        // Rows enter before rows of the same ids leave other tables: a reader may see an id twice for a moment, never not at all.
        let mut deletes: IdHashes = decisions.deletes.iter().copied().filter(|id| found.contains_key(id)).collect();
        for (position, number) in tables {
            let upserts = &decisions.upserts[*position];
            if upserts.is_empty() {
                continue;
            }
            let replaced = upserts.iter().filter_map(|row| found.get(&row.id));
            let (here, elsewhere): (Vec<&RowLocation>, Vec<&RowLocation>) =
                replaced.partition(|row| row.table == *number);
            let here = here.into_iter().map(|row| row.position);
            let elsewhere: Vec<Position> = elsewhere.into_iter().map(|row| row.position).collect();
            let incoming = IncomingRows::of(&batch.upserts[*position], upserts);
            let change = change_of(state, *number, incoming, here, &found, &mut deletes);
            let Some(committed) = self.commit_change(state, change).await? else { return Ok(Some(*number)) };
            adopt(state, committed, progress);
            for position in elsewhere {
                state.mark_stale(position);
            }
            follow_copies(state, &mut found).await?;
        }
        let mut rest: Vec<TableNumber> = deletes.iter().filter_map(|id| found.get(id)).map(|row| row.table).collect();
        rest.extend(state.live().tables_with_stale_rows());
        rest.sort_unstable();
        rest.dedup();
        for number in rest {
            let change = change_of(state, number, IncomingRows::default(), std::iter::empty(), &found, &mut deletes);
            let Some(committed) = self.commit_change(state, change).await? else { return Ok(Some(number)) };
            adopt(state, committed, progress);
            follow_copies(state, &mut found).await?;
        }
        Ok(None)
    }
}

/// A commit may have copied rows that the rest of the batch is about into other files.
async fn follow_copies(state: &SpaceState, found: &mut ByIdHash<RowLocation>) -> Result<(), EngineError> {
    let copied = found.iter().filter(|(_, row)| !state.live().file_is_live(row.position.file));
    let copied: Vec<IdHash> = copied.map(|(id, _)| *id).collect();
    if !copied.is_empty() {
        found.extend(state.find(copied).await?);
    }
    Ok(())
}

/// A change of one table: rows enter, what they replace leaves, and so do its share of the deleted ids and its stale rows. The ids are no
/// longer in `deletes` afterwards.
fn change_of(
    state: &SpaceState,
    number: TableNumber,
    incoming: IncomingRows,
    replaced: impl Iterator<Item = Position>,
    found: &ByIdHash<RowLocation>,
    deletes: &mut IdHashes,
) -> Change {
    let mut dead: BTreeMap<FileNumber, RoaringBitmap> =
        state.live().stale_rows_of(number).map(|(file, rows)| (file, rows.clone())).collect();
    let here = |id: &IdHash| found.get(id).filter(|row| row.table == number);
    let taken: Vec<IdHash> = deletes.iter().copied().filter(|id| here(id).is_some()).collect();
    for id in &taken {
        deletes.remove(id);
    }
    let deleted = taken.iter().filter_map(here).map(|row| row.position);
    for position in replaced.chain(deleted) {
        dead.entry(position.file).or_default().insert(position.row.get());
    }
    Change { number, incoming, dead, deleted: taken.len() as u64 }
}
