//! When rows were observed, which decides between equal versions and is not in the key index: read from the data files.

use std::collections::{BTreeMap, HashMap};

use roaring::RoaringBitmap;

use crate::key_index::{FileNumber, IdHash, Position, RowNumber};
use crate::table_store::by_id_hash::ByIdHash;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::data_file;
use crate::table_store::delta::files::key_columns::key_names;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::{RowLocation, SpaceState};

impl SpaceLoader {
    /// Fills in when found rows were observed, exactly or by a bound that decides as well. `needed`: ids, each with an instant
    /// (microseconds since 1970) that is to be compared with that of its row.
    pub(crate) async fn load_tie_breakers(
        &self,
        state: &mut SpaceState,
        found: &mut ByIdHash<RowLocation>,
        needed: &[(IdHash, i64)],
    ) -> Result<(), EngineError> {
        let mut asked: BTreeMap<FileNumber, Vec<(IdHash, i64)>> = BTreeMap::new();
        for (id, observed_us) in needed {
            if let Some(row) = found.get(id) {
                asked.entry(row.position.file).or_default().push((*id, *observed_us));
            }
        }
        let mut exact: Vec<IdHash> = Vec::new();
        for (file, asked) in asked {
            let bounds = self.observed_bounds(state, file).await?;
            let mut instants: ByIdHash<(i64, i64)> = ByIdHash::default();
            for (id, instant) in asked {
                let range = instants.entry(id).or_insert((instant, instant));
                *range = (range.0.min(instant), range.1.max(instant));
            }
            for (id, (earliest, latest)) in instants {
                let bound =
                    bounds.and_then(
                        |(least, most)| {
                            if earliest > most { Some(most) } else { (latest < least).then_some(least) }
                        },
                    );
                match (bound, found.get_mut(&id)) {
                    (Some(bound), Some(row)) => row.order.observed_us = bound,
                    _ => exact.push(id),
                }
            }
        }
        let positions: Vec<Position> = exact.iter().filter_map(|id| Some(found.get(id)?.position)).collect();
        let observed = self.observed_at(state, &positions).await?;
        for id in exact {
            if let Some(row) = found.get_mut(&id) {
                row.order.observed_us = observed.get(&row.position).copied().unwrap_or(i64::MIN);
            }
        }
        Ok(())
    }

    /// Least and greatest instant of observation in a file; `None`: its statistics do not tell.
    async fn observed_bounds(
        &self,
        state: &mut SpaceState,
        file: FileNumber,
    ) -> Result<Option<(i64, i64)>, EngineError> {
        let Some(table) = state.live().table(file) else { return Ok(None) };
        let held = state.table(table);
        let Some(data_file) = held.file(file) else { return Ok(None) };
        if data_file.observed_us.is_some() {
            return Ok(data_file.observed_us);
        }
        let [_, _, column] = key_names(held.schema());
        let store = self.access().unloaded(held.path())?.object_store();
        let bounds = data_file::instant_bounds(&store, data_file, &column).await;
        let bounds = bounds.map_err(|error| error.of_table(table))?;
        state.table_mut(table).set_observed_bounds(file, bounds);
        Ok(bounds)
    }

    /// When the rows at these positions were observed, read from their files.
    pub(super) async fn observed_at(
        &self,
        state: &SpaceState,
        positions: &[Position],
    ) -> Result<HashMap<Position, i64>, EngineError> {
        let mut by_file: BTreeMap<FileNumber, RoaringBitmap> = BTreeMap::new();
        for position in positions {
            by_file.entry(position.file).or_default().insert(position.row.get());
        }
        let mut observed = HashMap::with_capacity(positions.len());
        for (number, rows) in by_file {
            let Some(table) = state.live().table(number) else { continue };
            let held = state.table(table);
            let Some(file) = held.file(number) else { continue };
            let [_, _, column] = key_names(held.schema());
            let store = self.access().unloaded(held.path())?.object_store();
            let instants = data_file::instants(&store, file, &column, &rows).await;
            let instants = instants.map_err(|error| error.of_table(table))?;
            let positions = rows.iter().map(|row| Position { file: number, row: RowNumber::new(row) });
            observed.extend(positions.zip(instants));
        }
        Ok(observed)
    }
}
