//! Where a Spark job that read HQ's topics stood, by the checkpoint that Structured Streaming keeps in a folder.
//!
//! `offsets/<batch>` is written before a batch is done and says where it ends; `commits/<batch>` is written after it. A file has a version, a line
//! about the batch, and a line for each source: `{"case-sql":{"0":123}}`, the next offset of each partition (`OffsetSeqLog` and
//! `JsonUtils.partitionOffsets` of Spark; a `-` stands for a source that has read nothing).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The version that is understood; Spark has no other one.
const VERSION: &str = "v1";

/// The next offset to read, by topic and partition.
pub type Positions = BTreeMap<(String, i32), i64>;

/// Why a checkpoint does not say where to begin.
#[derive(Debug, thiserror::Error)]
pub enum SparkCheckpointError {
    /// A file or folder cannot be read.
    #[error("{} cannot be read; give a copy of the checkpoint in a local folder", path.display())]
    Unreadable {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It has no batch that was done.
    #[error("{} has no batch that was done: there is no number that both `offsets` and `commits` have", folder.display())]
    NoBatch {
        /// The checkpoint.
        folder: PathBuf,
    },
    /// There is no checkpoint in the folder.
    #[error("{} is no checkpoint of Spark and holds none: a folder `offsets` is missing", folder.display())]
    NoCheckpoint {
        /// The folder.
        folder: PathBuf,
    },
    /// A file has another form.
    #[error("{}: {reason}; only checkpoints of Spark's Kafka source are understood", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is odd about it.
        reason: String,
    },
}

/// Where the job stood, by a checkpoint or a folder of several, one for each topic.
///
/// # Errors
/// A folder that is no checkpoint, has no batch that was done, or cannot be read.
pub fn positions(folder: &Path) -> Result<Positions, SparkCheckpointError> {
    let mut all = Positions::new();
    for checkpoint in checkpoints(folder)? {
        let newest = newest_done(&checkpoint)?;
        let path = checkpoint.join("offsets").join(newest.to_string());
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|source| SparkCheckpointError::Unreadable { path: path.clone(), source })?;
        for (partition, offset) in
            parse(&text).map_err(|reason| SparkCheckpointError::Malformed { path: path.clone(), reason })?
        {
            // Two checkpoints of one topic: nothing is left out by beginning with the earlier one.
            let earliest = all.entry(partition).or_insert(offset);
            *earliest = offset.min(*earliest);
        }
    }
    Ok(all)
}

/// The checkpoints that are meant: the folder itself, or those in it.
fn checkpoints(folder: &Path) -> Result<Vec<PathBuf>, SparkCheckpointError> {
    let is_checkpoint = |path: &Path| path.join("offsets").is_dir();
    if is_checkpoint(folder) {
        return Ok(vec![folder.to_owned()]);
    }
    let mut found = entries(folder)?;
    found.retain(|path| is_checkpoint(path));
    if found.is_empty() {
        return Err(SparkCheckpointError::NoCheckpoint { folder: folder.to_owned() });
    }
    found.sort();
    Ok(found)
}

fn newest_done(checkpoint: &Path) -> Result<u64, SparkCheckpointError> {
    let begun = batches(&checkpoint.join("offsets"))?;
    let done = match batches(&checkpoint.join("commits")) {
        Err(SparkCheckpointError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
        batches => batches?,
    };
    let newest = begun.into_iter().filter(|batch| done.contains(batch)).max();
    newest.ok_or_else(|| SparkCheckpointError::NoBatch { folder: checkpoint.to_owned() })
}

/// The numbers of the batches that a folder has files of; checksums (`.7.crc`) and temporary files are none.
fn batches(folder: &Path) -> Result<Vec<u64>, SparkCheckpointError> {
    let number = |path: PathBuf| path.file_name()?.to_str()?.parse().ok();
    Ok(entries(folder)?.into_iter().filter_map(number).collect())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, SparkCheckpointError> {
    let unreadable = |source| SparkCheckpointError::Unreadable { path: folder.to_owned(), source };
    let entries = std::fs::read_dir(folder).map_err(unreadable)?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(unreadable)).collect()
}

/// Reads a file of `offsets`.
fn parse(text: &str) -> Result<Positions, String> {
    let mut lines = text.lines();
    let version = lines.next().unwrap_or_default();
    if version != VERSION {
        return Err(format!("it begins with {version:?} instead of {VERSION:?}"));
    }
    let mut all = Positions::new();
    // The line after the version tells of the batch: its time and some settings.
    for line in lines.skip(1).filter(|line| !matches!(line.trim(), "" | "-")) {
        let topics: BTreeMap<String, BTreeMap<i32, i64>> = serde_json::from_str(line)
            .map_err(|error| format!("a source does not tell offsets of topics and partitions: {error}"))?;
        for (topic, partitions) in topics {
            for (partition, offset) in partitions {
                if partition < 0 || offset < 0 {
                    return Err(format!("partition {partition} of {topic} stands at {offset}, which is no offset"));
                }
                all.insert((topic.clone(), partition), offset);
            }
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const ABOUT: &str =
        r#"{"batchWatermarkMs":0,"batchTimestampMs":1614590000000,"conf":{"spark.sql.shuffle.partitions":"200"}}"#;

    fn checkpoint(folder: &Path, batches: &[(u64, &str)], done: &[u64]) {
        for (name, numbers) in
            [("offsets", batches.iter().map(|(number, _)| *number).collect()), ("commits", done.to_vec())]
        {
            std::fs::create_dir_all(folder.join(name)).unwrap();
            for number in numbers {
                std::fs::write(folder.join(name).join(format!(".{number}.crc")), "crc").unwrap();
                std::fs::write(folder.join(name).join(number.to_string()), "v1\n{\"nextBatchWatermarkMs\":0}").unwrap();
            }
        }
        for (number, source) in batches {
            std::fs::write(folder.join("offsets").join(number.to_string()), format!("v1\n{ABOUT}\n{source}")).unwrap();
        }
    }

    fn of(all: &[(&str, i32, i64)]) -> Positions {
        all.iter().map(|&(topic, partition, offset)| ((topic.to_owned(), partition), offset)).collect()
    }

    #[test]
    fn the_newest_batch_that_was_done_counts() {
        let folder = tempfile::tempdir().unwrap();
        let batches = [
            (9, r#"{"case-sql":{"0":90,"1":91}}"#),
            (10, r#"{"case-sql":{"1":101,"0":100}}"#),
            (11, r#"{"case-sql":{"0":110,"1":111}}"#),
        ];
        checkpoint(folder.path(), &batches, &[9, 10]);
        assert_eq!(positions(folder.path()).unwrap(), of(&[("case-sql", 0, 100), ("case-sql", 1, 101)]));
    }

    #[test]
    fn a_folder_of_checkpoints_is_all_of_them() {
        let folder = tempfile::tempdir().unwrap();
        checkpoint(&folder.path().join("case-sql"), &[(0, r#"{"case-sql":{"0":5}}"#)], &[0]);
        checkpoint(&folder.path().join("form-sql"), &[(3, "-\n{\"form-sql\":{\"0\":7},\"case-sql\":{\"0\":4}}")], &[3]);
        std::fs::create_dir(folder.path().join("something")).unwrap();
        assert_eq!(positions(folder.path()).unwrap(), of(&[("case-sql", 0, 4), ("form-sql", 0, 7)]));
    }

    #[test]
    fn what_says_nothing_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |what: &str| {
            let told = positions(folder.path()).unwrap_err().to_string();
            assert!(told.contains(what), "{told}");
        };
        refused("a folder `offsets` is missing");
        checkpoint(folder.path(), &[(1, r#"{"case-sql":{"0":5}}"#)], &[]);
        refused("no batch that was done");
        std::fs::remove_dir_all(folder.path().join("commits")).unwrap();
        refused("no batch that was done");
        for (source, why) in [
            (r#"{"logOffset":3}"#, "does not tell offsets"),
            (r#"{"case-sql":{"0":-2}}"#, "no offset"),
            (r#"{"case-sql":{"0":5}"#, "does not tell offsets"),
        ] {
            checkpoint(folder.path(), &[(1, source)], &[1]);
            refused(why);
        }
        std::fs::write(folder.path().join("offsets/1"), "v2\n{}\n{}").unwrap();
        refused("\"v2\"");
    }
}
