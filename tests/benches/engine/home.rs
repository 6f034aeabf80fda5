//! Everything one lake consists of, in one folder: the tables, the metastore and what the engine keeps on local disk.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use lake_shared::escaped_names;
use lake_shared::identity::{DocumentType, Kind, Space, TableKey};
use lake_writer::metastore::Metastore;
use lake_writer::metastore::sqlite::SqliteMetastore;
use lake_writer::table_store::delta::{DeltaOptions, DeltaTableStore};
use lake_writer::table_store::lake_store::{LakeStore, LakeStoreConfig};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Name of the tables' folder in a home. Its files never change once written, so copies share them by hard links.
const LAKE: &str = "lake";
/// Name of the key index in a home.
const INDEX: &str = "index";

/// A lake that can be opened by an engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Home {
    /// The folder that holds all of it.
    pub folder: PathBuf,
    /// `s3://bucket/prefix`, when the tables are not in the folder.
    pub remote_root: Option<String>,
    /// Options of the engine, key and value.
    pub options: Vec<(String, String)>,
    /// For the processes that use this home: access to S3.
    #[serde(skip)]
    pub environment: Vec<(&'static str, String)>,
}

impl Home {
    /// A home in a folder of its own, which may be empty.
    pub fn new(folder: PathBuf, options: &[(String, String)]) -> Self {
        Self { folder, remote_root: None, options: options.to_vec(), environment: Vec::new() }
    }

    /// The root of the lake, as the engine is told.
    pub fn root(&self) -> String {
        self.remote_root.clone().unwrap_or_else(|| self.folder.join(LAKE).to_string_lossy().into_owned())
    }

    /// Folder of the table that most parts use.
    pub fn table_folder(&self) -> PathBuf {
        self.folder.join(LAKE).join(table_path())
    }

    /// Folder of the key index.
    pub fn index_folder(&self) -> PathBuf {
        self.folder.join(INDEX)
    }

    /// A new engine on this lake, as after a start.
    pub async fn open(&self) -> anyhow::Result<Arc<DeltaTableStore>> {
        fs::create_dir_all(&self.folder).with_context(|| format!("create {}", self.folder.display()))?;
        let metastore = SqliteMetastore::file(&self.folder.join("metastore.sqlite"));
        metastore.migrate().await?;
        let lake = LakeStore::open(&LakeStoreConfig::of_root(self.root()))?;
        lake.probe().await?;
        Ok(Arc::new(DeltaTableStore::new(Arc::new(lake), Arc::new(metastore), self.engine_options()?)))
    }

    fn engine_options(&self) -> anyhow::Result<DeltaOptions> {
        let mut given = Map::new();
        for (key, text) in &self.options {
            let text = text.replace("{home}", &self.folder.to_string_lossy());
            given.insert(key.clone(), serde_json::from_str(&text).unwrap_or(Value::String(text)));
        }
        let mut indexed = given;
        indexed.entry("index_folder").or_insert_with(|| self.index_folder().to_string_lossy().into());
        let options = serde_json::from_value(Value::Object(indexed));
        options.context("the engine does not take the options given by --option")
    }

    /// Replaces this home by a copy of another one.
    pub fn copy_from(&self, other: &Path) -> anyhow::Result<()> {
        self.remove()?;
        copy_tree(other, &self.folder, false).with_context(|| format!("copy {} to here", other.display()))
    }

    /// Deletes the folder; it may be absent.
    pub fn remove(&self) -> anyhow::Result<()> {
        remove(&self.folder)
    }
}

/// Deletes a folder that may be absent.
pub fn remove(folder: &Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

/// Copies a folder; what is below a folder named `lake` is linked.
pub fn copy_tree(from: &Path, to: &Path, linked: bool) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, linked || entry.file_name() == LAKE)?;
        } else if linked {
            fs::hard_link(entry.path(), target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// The space of the table that most parts use.
pub fn space() -> Space {
    Space { domain: "bench".into(), kind: Kind::Case }
}

/// The type of its rows.
pub fn document_type() -> DocumentType {
    "person".into()
}

/// Its path below the root.
pub fn table_path() -> String {
    escaped_names::table_path(&TableKey { space: space(), document_type: document_type() })
}
