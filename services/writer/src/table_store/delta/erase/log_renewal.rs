//! A log that names erased records begins anew: behind a checkpoint of the newest version, which does not, everything before it is deleted.
//! delta-rs makes no checkpoint where the version has one, so a version that is named itself gets a successor without any change first.

use deltalake::checkpoints;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

use crate::table_store::delta::erase::rewrite::loaded;
use crate::table_store::delta::erase::search::{LOG, TableSearch};
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::files::new_files::NewFiles;
use crate::table_store::delta::log::checkpoint_files::{self, CheckpointFiles};
use crate::table_store::delta::log::commit::{Commit, Label};
use crate::table_store::delta::log::table_access::CommitResult;
use crate::table_store::delta::space::cell::SpaceCell;
use crate::table_store::delta::space::loader::SpaceLoader;
use crate::table_store::delta::space::state::SpaceState;
use crate::table_store::delta::table_number::TableNumber;
use crate::table_store::delta::upkeep::vacuum;

/// Name in the log of the object that names the last checkpoint.
const HINT: &str = "_delta_log/_last_checkpoint";

/// What a file of a log is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// This version, or those from it on.
    Version(u64),
    /// A part of a checkpoint that is named elsewhere, or something else.
    Unknown,
}

impl About {
    fn of(path: &str) -> Self {
        let name = path.rsplit('/').next().unwrap_or_default();
        let digits = name.get(..20).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        digits.and_then(|digits| digits.parse().ok()).map_or(Self::Unknown, Self::Version)
    }
}

/// Lets the log of a table begin anew where it names one of the ids. Answers how many of its files were deleted; `None`: it names none. Batches
/// of the space wait for it.
///
/// # Errors
/// When other programs commit all the time, or the store or the metastore fails. What is left is found by the next try.
pub(super) async fn renew_log(
    loader: &SpaceLoader,
    cell: &SpaceCell,
    search: &TableSearch,
) -> Result<Option<u64>, EngineError> {
    let naming = search.naming();
    if naming.is_empty() {
        return Ok(None);
    }
    let mut guard = cell.state.lock().await;
    let state = loaded(&mut guard, search)?;
    let Some(number) = state.number_of(&search.key.document_type) else { return Ok(None) };
    let Some(version) = state.table(number).version() else { return Ok(None) };
    let is_before = |path: &String| matches!(About::of(path), About::Version(of) if of < version);
    if !naming.iter().all(is_before) {
        succeed(loader, state, number).await?;
    }
    let table = state.table(number);
    let version = table.version().ok_or_else(|| EngineError::Contended(search.key.clone()))?;
    let deleted = delete_before(loader, search, version).await?;
    // Open handles know the entries that are gone.
    loader.access().close(&search.key);
    Ok(Some(deleted))
}

/// Makes the next version, which changes nothing.
async fn succeed(loader: &SpaceLoader, state: &mut SpaceState, number: TableNumber) -> Result<(), EngineError> {
    let held = state.table(number);
    let (key, access) = (held.key().clone(), loader.access());
    let Some(table) = access.at_known_version(&held.known()).await? else {
        loader.refresh(state, number).await?;
        return Err(EngineError::Contended(key));
    };
    let base = access.base_version(&held.known()).await?;
    let (label, actions, new_files) = (Label::Erasure, Vec::new(), NewFiles::default());
    let commit = Commit { table, base, label, actions, logged: held.logged_paths(), new_files };
    let committed = access.commit(&key, commit).await?;
    loader.refresh(state, number).await?;
    loader.report_state(state).await?;
    match committed {
        CommitResult::Committed(_) => Ok(()),
        CommitResult::Conflict { .. } => Err(EngineError::Contended(key)),
    }
}

/// Makes a checkpoint of a version, which has to be the newest one, and deletes what came before it.
async fn delete_before(loader: &SpaceLoader, search: &TableSearch, version: u64) -> Result<u64, EngineError> {
    let access = loader.access();
    // One of an earlier version that is being made would have nothing to stand on.
    let _alone = access.no_checkpoints().await;
    let table = access.latest(&search.path).await?.filter(|table| table.version() == Some(version));
    let table = table.ok_or_else(|| EngineError::Contended(search.key.clone()))?;
    let store = table.object_store();
    let before: Vec<ObjectMeta> = store.list(Some(&Path::from(LOG))).try_collect().await.map_err(EngineError::Store)?;
    let had_checkpoint = CheckpointFiles::list(&store).await?.has(version);
    checkpoints::create_checkpoint(&table, None).await.map_err(EngineError::delta)?;
    if !CheckpointFiles::list(&store).await?.has(version) {
        return Err(EngineError::corrupt(format!(
            "the log has no checkpoint of version {version}, which was just made"
        )));
    }
    // Readers that believe it must find what it names; without it they list the log.
    if checkpoint_files::hint(&store).await?.is_some_and(|named| named != version) {
        match store.delete(&Path::from(HINT)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(EngineError::Store(error)),
        }
    }
    access.check_lease()?;
    let is_superseded = |path: &Path| match About::of(path.as_ref()) {
        About::Version(of) => of < version,
        // Parts of checkpoints of before, if the one of this version was made after they were listed, and entries that a dead process has left.
        About::Unknown => {
            let is_part = path.parts().any(|part| part.as_ref() == "_sidecars");
            (is_part && !had_checkpoint) || path.as_ref().ends_with(".tmp")
        }
    };
    let superseded = before.into_iter().map(|file| file.location).filter(is_superseded).collect();
    vacuum::delete(&store, superseded).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_a_log_are_told_apart_by_their_names() {
        for (name, version) in [
            ("00000000000000000007.json", Some(7)),
            ("00000000000000000010.checkpoint.parquet", Some(10)),
            ("00000000000000000010.checkpoint.0000000001.0000000002.parquet", Some(10)),
            ("00000000000000000003.00000000000000000009.compacted.json", Some(3)),
            ("00000000000000000007.crc", Some(7)),
            ("_sidecars/80a083e8-7026-4e79-81be-64bd76c43a11.parquet", None),
            ("_last_checkpoint", None),
        ] {
            let about = About::of(&format!("{LOG}/{name}"));
            assert_eq!(about, version.map_or(About::Unknown, About::Version), "{name}");
        }
    }
}
