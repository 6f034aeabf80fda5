//! What happened in the histories.

use lake_test_kit::log::LogFigures;

/// What happened in the histories, so that it shows when something never does.
#[derive(Debug, Default)]
pub struct Tally {
    pub batches: u64,
    pub crashes: u64,
    pub maintained: u64,
    pub files_deleted: u64,
    /// Files of deletion vectors among them.
    pub vector_files_deleted: u64,
    pub external_commits: u64,
    pub readings: u64,
    /// Those of Spark among them.
    pub spark_readings: u64,
    pub past_readings: u64,
    /// Questions with conditions.
    pub questions: u64,
    /// Rows that deletion vectors hid, over all looks.
    pub hidden_rows: u64,
    /// What the logs tell of the commits.
    pub log: LogFigures,
}

impl Tally {
    pub fn add(&mut self, other: &Self) {
        self.batches += other.batches;
        self.crashes += other.crashes;
        self.maintained += other.maintained;
        self.files_deleted += other.files_deleted;
        self.vector_files_deleted += other.vector_files_deleted;
        self.external_commits += other.external_commits;
        self.readings += other.readings;
        self.spark_readings += other.spark_readings;
        self.past_readings += other.past_readings;
        self.questions += other.questions;
        self.hidden_rows += other.hidden_rows;
        self.log += other.log;
    }

    /// Whether everything happened at least once in so many histories.
    pub fn has_everything(&self, histories: usize) -> bool {
        let Self { batches, crashes, maintained, files_deleted, vector_files_deleted, external_commits, .. } = *self;
        let Self { readings, spark_readings, past_readings, questions, hidden_rows, .. } = *self;
        let LogFigures { compactions, remapped_files, schemas, .. } = self.log;
        let done = [batches, crashes, maintained, files_deleted, vector_files_deleted, external_commits];
        let seen = [readings, spark_readings, past_readings, questions, hidden_rows];
        // Few of the batches beside compaction are about rows of just the files that it writes anew.
        let remapped = remapped_files > 0 || histories < 300;
        remapped && done.iter().chain(&seen).chain(&[compactions, schemas]).all(|&times| times > 0)
    }
}
