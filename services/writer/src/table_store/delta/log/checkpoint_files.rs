//! Which checkpoints a log really has. A checkpoint of several parts counts when all of them are there
//! (<https://github.com/delta-io/delta/blob/master/PROTOCOL.md#multi-part-checkpoint>): its maker may have died half-way. The object
//! `_last_checkpoint` is only a hint: it may name one that is not there, after a restored backup, a copied bucket, or a clean-up by others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use serde::Deserialize;

use crate::table_store::delta::error::EngineError;

const LOG: &str = "_delta_log";
const HINT: &str = "_delta_log/_last_checkpoint";

/// What the name of a file of a log says about a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CheckpointFile {
    /// A checkpoint in one file, also one of the second version of the format.
    Whole(u64),
    /// One of several parts.
    Part { version: u64, of: u32, number: u32 },
    /// It is named like one, and no reader takes it for one.
    Malformed,
}

impl CheckpointFile {
    /// `None` for other files.
    fn of(name: &str) -> Option<Self> {
        let (version, rest) = name.split_once(".checkpoint")?;
        let version = version.parse().ok().filter(|_| version.len() == 20)?;
        let words: Vec<&str> = rest.split('.').collect();
        let number = |text: &str| text.parse::<u32>().ok().filter(|_| text.len() == 10);
        Some(match words[..] {
            ["", "parquet"] => Self::Whole(version),
            ["", id, "json" | "parquet"] if uuid::Uuid::try_parse(id).is_ok() => Self::Whole(version),
            ["", part, of, "parquet"] => match (number(part), number(of)) {
                (Some(number), Some(of)) if (1..=of).contains(&number) => Self::Part { version, of, number },
                _ => Self::Malformed,
            },
            _ => Self::Malformed,
        })
    }
}

/// The checkpoints of a log.
#[derive(Debug, Default)]
pub(crate) struct CheckpointFiles {
    complete: BTreeSet<u64>,
    /// Files of checkpoints that are not complete.
    pub(crate) incomplete: Vec<ObjectMeta>,
}

impl CheckpointFiles {
    /// Lists the log of a table.
    pub(crate) async fn list(table: &Arc<dyn ObjectStore>) -> Result<Self, EngineError> {
        let files: Vec<ObjectMeta> =
            table.list(Some(&Path::from(LOG))).try_collect().await.map_err(EngineError::Store)?;
        Ok(Self::among(files))
    }

    /// Whether a whole checkpoint of a version is there.
    pub(crate) fn has(&self, version: u64) -> bool {
        self.complete.contains(&version)
    }

    fn among(files: Vec<ObjectMeta>) -> Self {
        let mut found = Self::default();
        let mut parts: BTreeMap<(u64, u32), BTreeMap<u32, ObjectMeta>> = BTreeMap::new();
        for file in files {
            match CheckpointFile::of(file.location.filename().unwrap_or_default()) {
                None => {}
                Some(CheckpointFile::Whole(version)) => {
                    found.complete.insert(version);
                }
                Some(CheckpointFile::Part { version, of, number }) => {
                    parts.entry((version, of)).or_default().insert(number, file);
                }
                Some(CheckpointFile::Malformed) => found.incomplete.push(file),
            }
        }
        for ((version, of), parts) in parts {
            if parts.len() == of as usize {
                found.complete.insert(version);
            } else {
                found.incomplete.extend(parts.into_values());
            }
        }
        found
    }
}

/// Version of the last checkpoint, if the log names one.
pub(crate) async fn hint(table: &Arc<dyn ObjectStore>) -> Result<Option<u64>, EngineError> {
    #[derive(Deserialize)]
    struct Hint {
        version: u64,
    }
    let found = match table.get(&Path::from(HINT)).await {
        Ok(found) => found.bytes().await.map_err(EngineError::Store)?,
        Err(object_store::Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(EngineError::Store(error)),
    };
    // One that cannot be understood is no hint: readers do without it, too, until the next checkpoint.
    Ok(serde_json::from_slice::<Hint>(&found).ok().map(|hint| hint.version))
}

/// Deletes a hint that names a checkpoint which is not there: readers that believe it cannot open the table. Whether it did. Without a hint
/// readers list the log.
pub(crate) async fn delete_dangling_hint(table: &Arc<dyn ObjectStore>) -> Result<bool, EngineError> {
    let Some(version) = hint(table).await? else { return Ok(false) };
    if CheckpointFiles::list(table).await?.complete.contains(&version) {
        return Ok(false);
    }
    match table.delete(&Path::from(HINT)).await {
        Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(true),
        Err(error) => Err(EngineError::Store(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    async fn log_with(names: &[&str]) -> Arc<dyn ObjectStore> {
        let store: Arc<dyn ObjectStore> = Arc::new(object_store::memory::InMemory::new());
        for name in names {
            store.put(&Path::from(format!("{LOG}/{name}")), "x".into()).await.unwrap();
        }
        store
    }

    #[tokio::test]
    async fn a_checkpoint_counts_when_all_of_it_is_there() {
        let log = log_with(&[
            "00000000000000000010.checkpoint.parquet",
            "00000000000000000020.checkpoint.0000000001.0000000002.parquet",
            "00000000000000000030.checkpoint.0000000001.0000000002.parquet",
            "00000000000000000030.checkpoint.0000000002.0000000002.parquet",
            "00000000000000000040.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json",
            "00000000000000000050.checkpoint.parquet.tmp",
            "00000000000000000060.checkpoint.0000000003.0000000002.parquet",
            "00000000000000000060.json",
            "00000000000000000060.crc",
        ])
        .await;
        let found = CheckpointFiles::list(&log).await.unwrap();
        assert_eq!(found.complete, BTreeSet::from([10, 30, 40]));
        let incomplete: BTreeSet<&str> =
            found.incomplete.iter().map(|file| &file.location.filename().unwrap()[18..20]).collect();
        assert_eq!(incomplete, BTreeSet::from(["20", "50", "60"]));
    }

    #[tokio::test]
    async fn only_a_hint_that_leads_nowhere_is_deleted() {
        let log = log_with(&["00000000000000000010.checkpoint.parquet"]).await;
        for (text, deleted) in [("{\"version\":10}", false), ("{\"version\":20}", true), ("{", false)] {
            log.put(&Path::from(HINT), text.into()).await.unwrap();
            assert_eq!(delete_dangling_hint(&log).await.unwrap(), deleted, "{text}");
            assert_eq!(log.head(&Path::from(HINT)).await.is_err(), deleted, "{text}");
        }
        log.delete(&Path::from(HINT)).await.unwrap();
        assert!(!delete_dangling_hint(&log).await.unwrap());
    }

    #[tokio::test]
    async fn a_hint_that_is_absent_or_broken_is_none() {
        let log = log_with(&[]).await;
        assert_eq!(hint(&log).await.unwrap(), None);
        for (text, version) in [("{", None), ("{\"size\":3}", None), ("{\"version\":7,\"size\":3}", Some(7))] {
            log.put(&Path::from(HINT), text.into()).await.unwrap();
            assert_eq!(hint(&log).await.unwrap(), version);
        }
    }
}
