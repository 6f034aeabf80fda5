//! Times, memory, and what a commit left in a table's folder.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use anyhow::Context;
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use url::Url;

use super::home::{self, Home};

/// Times of repetitions, milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    /// The one in the middle.
    pub median: f64,
    /// At most one in twenty took longer.
    pub p95: f64,
    /// The longest of the times, milliseconds.
    pub max: f64,
    /// Number of times.
    pub count: usize,
}

impl Spread {
    /// The spread of some values; zeros of none.
    pub fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted.get(((sorted.len() as f64 * share).ceil() as usize).saturating_sub(1)).copied();
        Self {
            median: at(0.5).unwrap_or_default(),
            p95: at(0.95).unwrap_or_default(),
            max: sorted.last().copied().unwrap_or_default(),
            count: sorted.len(),
        }
    }
}

/// Memory of this process, bytes.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Memory {
    /// Resident now (`VmRSS`).
    pub resident: u64,
    /// Most that was ever resident (`VmHWM`).
    pub peak: u64,
}

impl Memory {
    /// Now; zeros where the system does not tell.
    pub fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() * 1024
        };
        Self { resident: bytes("VmRSS:"), peak: bytes("VmHWM:") }
    }

    /// From now on, the peak is that of what follows.
    pub fn forget_peak() -> anyhow::Result<()> {
        fs::write("/proc/self/clear_refs", "5").context("reset the peak of memory")
    }
}

/// One line about where the figures come from.
pub fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse().ok());
    let memory: u64 = memory.unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{cores} cores ({}), {} GiB of memory, {} build. Times are medians, in milliseconds, commit included, unless said otherwise.",
        model.map_or("unknown", |(_, name)| name),
        (memory + (1 << 19)) >> 20,
        if cfg!(debug_assertions) { "dev" } else { "release" }
    )
}

/// What came into a table's folder.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Written {
    /// Bytes of data files.
    pub data_bytes: u64,
    /// Number of data files.
    pub data_files: u64,
    /// Bytes of deletion vectors.
    pub vector_bytes: u64,
    /// Files of deletion vectors.
    pub vector_files: u64,
    /// Bytes of commits.
    pub log_bytes: u64,
    /// Bytes of checkpoints.
    pub checkpoint_bytes: u64,
    /// Number of commits.
    pub commits: u64,
    /// Data files that the commits gave a deletion vector.
    pub files_marked: u64,
    /// Data files that the commits took away, those with a new deletion vector not counted.
    pub files_removed: u64,
    /// Data files that the commits added without a change of the data: compaction.
    pub files_compacted: u64,
}

impl Written {
    /// Bytes of data files, deletion vectors, commits and checkpoints.
    pub fn bytes(&self) -> u64 {
        self.data_bytes + self.vector_bytes + self.log_bytes + self.checkpoint_bytes
    }

    /// Adds what another commit wrote.
    pub fn add(&mut self, other: &Self) {
        self.data_bytes += other.data_bytes;
        self.data_files += other.data_files;
        self.vector_bytes += other.vector_bytes;
        self.vector_files += other.vector_files;
        self.log_bytes += other.log_bytes;
        self.checkpoint_bytes += other.checkpoint_bytes;
        self.commits += other.commits;
        self.files_marked += other.files_marked;
        self.files_removed += other.files_removed;
        self.files_compacted += other.files_compacted;
    }

    fn read_commit(&mut self, commit: &[u8]) {
        let actions = commit.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        let (mut marked, mut removed) = (0, 0);
        for action in actions {
            let add = &action["add"];
            if add.is_object() {
                marked += u64::from(add["deletionVector"].is_object());
                self.files_compacted += u64::from(add["dataChange"] == false);
            }
            removed += u64::from(action["remove"].is_object());
        }
        self.files_marked += marked;
        self.files_removed += u64::saturating_sub(removed, marked);
    }
}

/// Names and sizes of the files of a table.
pub type Files = BTreeMap<Path, u64>;

/// The folder of the table that most parts use, on disk or on S3.
pub struct TableFolder {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
}

impl TableFolder {
    /// The table's folder in a home.
    pub fn of(home: &Home) -> anyhow::Result<Self> {
        let (store, prefix): (Arc<dyn ObjectStore>, _) = match &home.remote_root {
            None => (Arc::new(LocalFileSystem::new_with_prefix(home.root())?), Path::default()),
            Some(root) => {
                let prefix = Path::from_url_path(Url::parse(root)?.path())?;
                (Arc::new(AmazonS3Builder::from_env().with_url(root).build()?), prefix)
            }
        };
        let prefix = Path::from_iter(prefix.parts().chain(Path::from(home::table_path()).parts()));
        Ok(Self { store, prefix })
    }

    /// All files of the table, and their sizes in bytes.
    pub async fn files(&self) -> anyhow::Result<Files> {
        let files = self.store.list(Some(&self.prefix)).map_ok(|file| (file.location, file.size));
        files.try_collect().await.context("list the table's folder")
    }

    /// What came since an earlier list.
    pub async fn written_since(&self, before: &Files) -> anyhow::Result<Written> {
        let mut written = Written::default();
        for (path, size) in self.files().await?.into_iter().filter(|(path, _)| !before.contains_key(path)) {
            let in_log = path.as_ref().contains("/_delta_log/");
            match path.extension() {
                Some("json") if in_log && path.filename().is_some_and(|name| name.len() == 25) => {
                    written.log_bytes += size;
                    written.commits += 1;
                    let commit = self.store.get(&path).await?.bytes().await?;
                    written.read_commit(&commit);
                }
                _ if in_log => written.checkpoint_bytes += size,
                Some("bin") => {
                    written.vector_bytes += size;
                    written.vector_files += 1;
                }
                _ => {
                    written.data_bytes += size;
                    written.data_files += 1;
                }
            }
        }
        Ok(written)
    }
}
