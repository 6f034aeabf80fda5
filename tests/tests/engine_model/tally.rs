//! What happened in the histories.

/// What happened in the histories, so that it shows when something never does.
#[derive(Debug, Default)]
pub struct Tally {
    pub batches: u64,
    pub crashes: u64,
    pub maintained: u64,
    pub files_deleted: u64,
    /// Files of deletion vectors among them.
    pub vector_files_deleted: u64,
    pub intrusions: u64,
    pub readings: u64,
    pub past_readings: u64,
    /// Questions with conditions.
    pub questions: u64,
    /// Rows that deletion vectors hid, over all looks.
    pub hidden_rows: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.batches += other.batches;
        self.crashes += other.crashes;
        self.maintained += other.maintained;
        self.files_deleted += other.files_deleted;
        self.vector_files_deleted += other.vector_files_deleted;
        self.intrusions += other.intrusions;
        self.readings += other.readings;
        self.past_readings += other.past_readings;
        self.questions += other.questions;
        self.hidden_rows += other.hidden_rows;
    }

    pub fn has_everything(&self) -> bool {
        let Self { batches, crashes, maintained, files_deleted, vector_files_deleted, .. } = *self;
        let Self { intrusions, readings, past_readings, questions, hidden_rows, .. } = *self;
        let done = [batches, crashes, maintained, files_deleted, vector_files_deleted];
        done.iter().chain(&[intrusions, readings, past_readings, questions, hidden_rows]).all(|&times| times > 0)
    }
}
