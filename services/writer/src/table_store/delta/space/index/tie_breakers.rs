//! Versions of rows, which decide between readings of the same instant and are not in the key index: read from the data files.

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
    /// Fills in the versions of found rows, exactly or by a bound that decides as well. `needed`: ids, each with a version
    /// (microseconds since 1970) that is to be compared with that of its row.
    pub(crate) async fn load_tie_breakers(
        &self,
        state: &mut SpaceState,
        found: &mut ByIdHash<RowLocation>,
        needed: &[(IdHash, i64)],
    ) -> Result<(), EngineError> {
        let mut asked: BTreeMap<FileNumber, Vec<(IdHash, i64)>> = BTreeMap::new();
        for (id, version_us) in needed {
            if let Some(row) = found.get(id) {
                asked.entry(row.position.file).or_default().push((*id, *version_us));
            }
        }
        let mut exact: Vec<IdHash> = Vec::new();
        for (file, asked) in asked {
            let bounds = self.version_bounds(state, file).await?;
            let mut versions: ByIdHash<(i64, i64)> = ByIdHash::default();
            for (id, version) in asked {
                let range = versions.entry(id).or_insert((version, version));
                *range = (range.0.min(version), range.1.max(version));
            }
            for (id, (earliest, latest)) in versions {
                let bound =
                    bounds.and_then(
                        |(least, most)| {
                            if earliest > most { Some(most) } else { (latest < least).then_some(least) }
                        },
                    );
                match (bound, found.get_mut(&id)) {
                    (Some(bound), Some(row)) => row.order.version_us = bound,
                    _ => exact.push(id),
                }
            }
        }
        let positions: Vec<Position> = exact.iter().filter_map(|id| Some(found.get(id)?.position)).collect();
        let versions = self.versions_at(state, &positions).await?;
        for id in exact {
            if let Some(row) = found.get_mut(&id) {
                row.order.version_us = versions.get(&row.position).copied().unwrap_or(i64::MIN);
            }
        }
        Ok(())
    }

    /// Least and greatest version in a file; `None`: its statistics do not tell.
    async fn version_bounds(
        &self,
        state: &mut SpaceState,
        file: FileNumber,
    ) -> Result<Option<(i64, i64)>, EngineError> {
        let Some(table) = state.live().table(file) else { return Ok(None) };
        let held = state.table(table);
        let Some(data_file) = held.file(file) else { return Ok(None) };
        if data_file.versions_us.is_some() {
            return Ok(data_file.versions_us);
        }
        let [_, column, _] = key_names(held.schema());
        let store = self.access().unloaded(held.path())?.object_store();
        let bounds = data_file::number_bounds(&store, data_file, &column).await;
        let bounds = bounds.map_err(|error| error.of_table(table))?;
        state.table_mut(table).set_version_bounds(file, bounds);
        Ok(bounds)
    }

    /// The versions of the rows at these positions, read from their files.
    pub(super) async fn versions_at(
        &self,
        state: &SpaceState,
        positions: &[Position],
    ) -> Result<HashMap<Position, i64>, EngineError> {
        let mut by_file: BTreeMap<FileNumber, RoaringBitmap> = BTreeMap::new();
        for position in positions {
            by_file.entry(position.file).or_default().insert(position.row.get());
        }
        let mut versions = HashMap::with_capacity(positions.len());
        for (number, rows) in by_file {
            let Some(table) = state.live().table(number) else { continue };
            let held = state.table(table);
            let Some(file) = held.file(number) else { continue };
            let [_, column, _] = key_names(held.schema());
            let store = self.access().unloaded(held.path())?.object_store();
            let numbers = data_file::numbers(&store, file, &column, &rows).await;
            let numbers = numbers.map_err(|error| error.of_table(table))?;
            let positions = rows.iter().map(|row| Position { file: number, row: RowNumber::new(row) });
            versions.extend(positions.zip(numbers));
        }
        Ok(versions)
    }
}
