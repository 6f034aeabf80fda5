//! What the retention promises of earlier versions.

use std::collections::BTreeMap;

use super::super::lake::{Lake, ReadRow};
use super::super::log::Log;
use super::{LONG_HOURS, TYPES};

/// The rows, and the hour at which a newer version was seen.
type PastVersion = (BTreeMap<String, ReadRow>, Option<u64>);

/// Versions of the tables that were the latest after some step, and the hours that have passed since the first.
#[derive(Default)]
pub(super) struct Past {
    clock: u64,
    /// By table and version.
    versions: BTreeMap<(usize, u64), PastVersion>,
}

impl Past {
    /// The tables that are there.
    pub(super) fn logs(lake: &Lake) -> impl Iterator<Item = (usize, Log)> {
        let logs = TYPES.into_iter().map(|document_type| Log::of(lake, document_type)).enumerate();
        logs.filter(|(_, log)| log.folder.join("_delta_log").exists() && !log.versions().is_empty())
    }

    /// Remembers the latest version of one table.
    pub(super) async fn note(&mut self, lake: &Lake, which: usize) {
        self.see_superseded(lake);
        for (number, log) in Self::logs(lake).filter(|(number, _)| *number == which) {
            self.versions.insert((number, log.latest()), (lake.read(TYPES[number]).await, None));
        }
    }

    fn see_superseded(&mut self, lake: &Lake) {
        for (number, log) in Self::logs(lake) {
            for (_, (_, superseded_at)) in self.versions.range_mut((number, 0)..(number, log.latest())) {
                superseded_at.get_or_insert(self.clock);
            }
        }
    }

    /// Everything happened so many hours earlier.
    pub(super) fn pass_time(&mut self, lake: &Lake, hours: u64) {
        self.see_superseded(lake);
        for (_, log) in Self::logs(lake) {
            log.versions().into_iter().for_each(|version| log.removed_earlier(version, hours as i64));
            log.age(log.files("parquet").into_iter().chain(log.files("bin")), LONG_HOURS);
            log.noted_earlier(hours as i64);
            log.forget_checkpoints();
        }
        self.clock += hours;
    }

    /// What the retention promises is there.
    pub(super) async fn ensure_is_there(&self, lake: &Lake, retention_hours: u64, seed: u64) {
        for ((number, version), (rows, superseded_at)) in &self.versions {
            if superseded_at.is_none_or(|hour| self.clock - hour < retention_hours) {
                let read = lake.read_at(TYPES[*number], Some(*version)).await;
                assert!(read == *rows, "seed {seed}: version {version} of table {number} has changed");
            }
        }
    }
}
