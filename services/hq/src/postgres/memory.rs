//! Memory that the rows of an answer may take, whichever databases they come from.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::failure::RowsTooLarge;
use crate::source::{Columns, memory_of};

/// What the rows of one answer may take together.
#[derive(Debug)]
pub(super) struct AnswerRoom {
    held: AtomicUsize,
    bytes_max: usize,
}

/// Adds up the memory that the rows of one reading take, and ends the reading when the answer is too much. What a reading took that did not
/// succeed is free again.
#[derive(Debug)]
pub(super) struct Memory<'r> {
    room: &'r AnswerRoom,
    bytes: usize,
}

impl AnswerRoom {
    pub fn new(bytes_max: usize) -> Self {
        Self { held: AtomicUsize::new(0), bytes_max }
    }

    /// For the rows of one reading.
    pub fn reading(&self) -> Memory<'_> {
        Memory { room: self, bytes: 0 }
    }
}

impl Memory<'_> {
    /// Counts a row; the error is [`RowsTooLarge`].
    pub fn add(&mut self, row: &Columns) -> Result<(), sqlx::Error> {
        let bytes = memory_of(row);
        self.bytes += bytes;
        let bytes_max = self.room.bytes_max;
        match self.room.held.fetch_add(bytes, Ordering::Relaxed) + bytes > bytes_max {
            true => Err(sqlx::Error::Decode(Box::new(RowsTooLarge { bytes_max }))),
            false => Ok(()),
        }
    }

    /// The rows are part of the answer.
    pub fn keep(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        self.room.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn readings_of_several_databases_share_the_room_of_their_answer() {
        let row = json!({"case_json": "x".repeat(1_000)}).as_object().unwrap().clone();
        let room = AnswerRoom::new(3_500);
        let (mut one, mut other) = (room.reading(), room.reading());
        one.add(&row).unwrap();
        other.add(&row).unwrap();
        other.add(&row).unwrap();
        assert!(one.add(&row).is_err(), "three rows fit, whoever reads them");
        drop(one);
        other.keep();
        let mut again = room.reading();
        again.add(&row).unwrap();
        assert!(again.add(&row).is_err(), "what is kept stays counted");
    }
}
