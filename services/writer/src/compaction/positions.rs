//! Where each row of the merged files went.

use std::ops::Sub;

use roaring::RoaringBitmap;

use super::merge::Source;
use crate::key_index::{Position, RowNumber};

/// A row that has no new place.
const NOWHERE: u64 = u64::MAX;

/// For each row of each input: its position in the new files, or nothing. 8 bytes per physical row.
#[derive(Clone, Debug, Default)]
pub struct PositionMap {
    places: Vec<Vec<u64>>,
}

impl PositionMap {
    /// A map for inputs with these numbers of physical rows. It grows when a later row is recorded.
    pub fn new(rows: &[u64]) -> Self {
        let rows = rows.iter().map(|rows| usize::try_from(*rows).unwrap_or_default());
        Self { places: rows.map(|rows| vec![NOWHERE; rows]).collect() }
    }

    /// Records that a row was written to this position.
    pub fn record(&mut self, source: Source, target: Position) {
        let (input, from) = (source.input as usize, source.row.index());
        if self.places.len() <= input {
            self.places.resize_with(input + 1, Vec::new);
        }
        let places = &mut self.places[input];
        if places.len() <= from {
            places.resize(from + 1, NOWHERE);
        }
        places[from] = u64::from(target.file.get()) << 32 | u64::from(target.row.get());
    }

    /// Records rows that were written one after the other, the first of them to the position `first`.
    pub fn record_all(&mut self, sources: &[Source], first: Position) {
        for (rows, source) in (0..).zip(sources) {
            self.record(*source, first.offset(rows));
        }
    }

    /// Where a row of an input was written; `None` if it was not.
    pub fn target(&self, input: u32, row: RowNumber) -> Option<Position> {
        let place = *self.places.get(input as usize)?.get(row.index())?;
        (place != NOWHERE).then_some(Position::new((place >> 32) as u32, place as u32))
    }

    /// Positions that have to be deleted because the rows they came from were deleted since the merge began:
    /// those of `now` that are not in `before`, the bitmap that was merged with. In the order of the input's rows.
    pub fn remap(&self, input: u32, before: Option<&RoaringBitmap>, now: Option<&RoaringBitmap>) -> Vec<Position> {
        let Some(now) = now else { return Vec::new() };
        let since = before.map_or_else(|| now.clone(), |before| now.sub(before));
        since.iter().filter_map(|row| self.target(input, RowNumber::new(row))).collect()
    }
}
