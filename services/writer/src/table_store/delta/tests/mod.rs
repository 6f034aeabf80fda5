//! Proofs of the engine on a local folder.
#![allow(clippy::unwrap_used, reason = "tests")]

use crate::table_store::Maintained;
use crate::table_store::delta::DeltaTableStore;
use crate::table_store::delta::error::EngineError;

mod checkpoints_of_others;
mod cleanup;
mod compaction;
mod compaction_conflicts;
mod comparing;
mod dropping;
mod erasing;
mod eviction;
mod external_commits;
mod foreign;
mod incomplete;
mod index;
mod int96;
mod lake;
mod layout;
mod limits;
mod log;
mod logged_paths;
mod many_tables;
mod messages;
mod model;
mod overwritten_commit;
mod panics;
mod partitions;
mod policies;
mod protocol;
mod respelled;
mod restoring;
mod retention;
mod single;
mod startup_check;
mod status_table;
mod two_writers;
mod unusable;
mod vectors;

/// The clean-up of the space of the tests, without the compaction that `maintain` begins with.
async fn clean_space(store: &DeltaTableStore) -> Result<Maintained, EngineError> {
    let space = lake::space();
    store.vacuum.clean_space(&store.spaces.cell(&space), &space).await
}
