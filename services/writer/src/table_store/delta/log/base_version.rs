//! What a commit is made upon, and how commits of other programs are noticed.
//!
//! A commit notices other commits by its own version being taken. It does not notice that the log it follows is gone (a table that was
//! dropped, or dropped and made anew), so each commit also asks whether the version it is made upon is still there ([`BaseVersion`]).
//! Tables without batches are probed in turn ([`Probe`]).

use std::sync::Arc;

use chrono::{DateTime, Utc};
use deltalake::DeltaTable;
use deltalake::kernel::Action;
use deltalake::table::state::DeltaTableState;
use lake_shared::identity::TableKey;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use uuid::Uuid;

use crate::table_store::delta::error::EngineError;

/// Version of one object in the store: two objects of the same name differ in at least one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectVersion {
    e_tag: Option<String>,
    /// Bytes.
    size: u64,
    last_modified: DateTime<Utc>,
}

/// A log entry that this process has put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnEntry {
    pub(crate) version: u64,
    /// Identity of the commit, which is in the entry.
    pub(crate) id: Uuid,
    /// Length of the entry.
    pub(crate) bytes: u64,
}

/// What a commit would be made upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BaseVersion {
    /// The last known version, or no table yet.
    Current,
    /// The last known version, which is there only as a checkpoint: its log entry was cleaned up.
    CurrentByCheckpoint,
    /// Another table, another version of it, or nothing.
    Stale,
}

/// A table as the engine knows it: what its files and index entries stand for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KnownTable<'a> {
    pub(crate) key: &'a TableKey,
    /// Folder, relative to the lake's root.
    pub(crate) path: &'a str,
    /// Version of the log; `None`: no commit is known.
    pub(crate) version: Option<u64>,
    /// Identity in the metadata; `None`: not known yet.
    pub(crate) id: Option<&'a str>,
    /// The log entry of `version` as it was last seen; `None`: not looked at, or cleaned up.
    pub(crate) entry: Option<&'a ObjectVersion>,
    /// Length of the entry of `version`, if this process has put it.
    pub(crate) own_bytes: Option<u64>,
}

impl KnownTable<'_> {
    /// Whether a loaded table (`None`: there is none) is this one, at the same version.
    ///
    /// # Errors
    /// When the table has not been loaded.
    pub(crate) fn is(&self, loaded: Option<&DeltaTable>) -> Result<bool, EngineError> {
        let (version, id) = version_and_id(loaded)?;
        Ok(self.version == version && (version.is_none() || self.has_id(id.as_deref())))
    }

    /// Whether a loaded table (`None`: there is none) says something that is not known: it is another one, or further. An earlier version
    /// was read before the commits that are known.
    ///
    /// # Errors
    /// When the table has not been loaded.
    pub(crate) fn is_outdated_by(&self, loaded: Option<&DeltaTable>) -> Result<bool, EngineError> {
        let (version, id) = version_and_id(loaded)?;
        Ok(!self.has_id(id.as_deref()) || self.version < version)
    }

    /// Whether the entry of the version is not the one that this process has put: a program that puts entries without a condition, as Spark does on S3
    /// by default, has replaced it.
    pub(crate) fn is_replaced_by(&self, entry: Option<&ObjectVersion>) -> bool {
        entry.zip(self.own_bytes).is_some_and(|(entry, bytes)| entry.size != bytes)
    }

    fn has_id(&self, id: Option<&str>) -> bool {
        self.id.is_none() || self.id == id
    }
}

fn version_and_id(loaded: Option<&DeltaTable>) -> Result<(Option<u64>, Option<String>), EngineError> {
    let Some(table) = loaded else { return Ok((None, None)) };
    Ok((table.version(), Some(id_of(table.snapshot().map_err(EngineError::delta)?))))
}

/// Identity of the table that a loaded version is of.
pub(crate) fn id_of(snapshot: &DeltaTableState) -> String {
    snapshot.metadata().id().to_owned()
}

/// Identity of the table that actions make or alter.
pub(crate) fn id_in(actions: &[Action]) -> Option<String> {
    actions.iter().find_map(|action| match action {
        Action::Metadata(metadata) => Some(metadata.id().to_owned()),
        _ => None,
    })
}

/// The log entry of a version as an object; `None`: it is not there.
pub(crate) async fn entry_version(
    store: &Arc<dyn ObjectStore>,
    version: u64,
) -> Result<Option<ObjectVersion>, EngineError> {
    match store.head(&Path::from(format!("_delta_log/{version:020}.json"))).await {
        Ok(found) => {
            Ok(Some(ObjectVersion { e_tag: found.e_tag, size: found.size, last_modified: found.last_modified }))
        }
        Err(object_store::Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(EngineError::Store(error)),
    }
}

/// A question to the log of a table: does it still end with the known version?
pub(crate) struct Probe {
    version: Option<u64>,
    own_bytes: Option<u64>,
    /// Nothing of it is loaded.
    table: DeltaTable,
}

/// The answer to a [`Probe`].
pub(crate) struct ProbeResult {
    version: Option<u64>,
    /// The entry of the known version.
    entry: Option<ObjectVersion>,
    /// Whether that entry is not the one that this process has put.
    is_replaced: bool,
    /// Whether the log has the version after it; where no version is known, whether there is a log.
    has_next: bool,
}

impl Probe {
    pub(crate) const fn new(known: &KnownTable<'_>, table: DeltaTable) -> Self {
        Self { version: known.version, own_bytes: known.own_bytes, table }
    }

    /// Asks the store: two requests, one where no version is known.
    pub(crate) async fn run(self) -> Result<ProbeResult, EngineError> {
        let Self { version, own_bytes, table } = self;
        let Some(known) = version else {
            // The first entries may have been cleaned up.
            let has_next = table.verify_deltatable_existence().await.map_err(EngineError::delta)?;
            return Ok(ProbeResult { version, entry: None, is_replaced: false, has_next });
        };
        let store = table.object_store();
        let (entry, next) = futures::try_join!(entry_version(&store, known), entry_version(&store, known + 1))?;
        let is_replaced = entry.as_ref().zip(own_bytes).is_some_and(|(entry, bytes)| entry.size != bytes);
        Ok(ProbeResult { version, entry, is_replaced, has_next: next.is_some() })
    }
}

impl ProbeResult {
    /// The version that was asked about.
    pub(crate) const fn version(&self) -> Option<u64> {
        self.version
    }

    /// The version with what was seen of its entry, to be compared with the next probe.
    pub(crate) fn into_seen(self) -> Option<(u64, Option<ObjectVersion>)> {
        self.version.map(|version| (version, self.entry))
    }

    /// Whether the log has to be read to know what happened. `seen`: what the probe before saw.
    pub(crate) fn needs_reload(&self, seen: Option<&(u64, Option<ObjectVersion>)>) -> bool {
        if self.has_next || self.is_replaced {
            return true;
        }
        let Some(version) = self.version else { return false };
        match seen.filter(|(seen, _)| *seen == version) {
            Some((_, before)) => *before != self.entry,
            None => self.entry.is_none(),
        }
    }
}
