//! Whether the lake is where the metastore knows it to be. Without its volume, or with another bucket, every table looks as if it had been
//! dropped: all would be made anew with nothing but the rows of today.

use std::error::Error;

use futures::{StreamExt, TryStreamExt, stream};

use crate::metastore::Metastore;
use crate::table_store::delta::error::EngineError;
use crate::table_store::delta::log::table_access::TableAccess;
use crate::table_store::delta::options::DeltaOptions;
use crate::table_store::lake_store::LakeStoreError;

/// Tables that are looked for, of all that the metastore knows.
const SAMPLE: usize = 64;

/// Tables that are looked for at once.
const LOOKS_AT_ONCE: usize = 8;

/// Why the writer does not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartupCheckError {
    /// Nothing of the lake is there.
    #[error(
        "lake root `{root}`: none of the tables that the metastore knows is there (looked for {looked_for} of {known}); is the volume \
         mounted, are store.root and the metastore those of the same lake? To begin anew with what comes from now on, start once with \
         tables.start_without_tables = true, and backfill"
    )]
    Missing {
        /// Where they should be.
        root: String,
        /// How many were looked for.
        looked_for: usize,
        /// How many have had a commit.
        known: usize,
    },
    /// Without the mark, a root that goes away later would look like an empty lake.
    #[error("the lake root cannot be marked")]
    Unmarked(#[source] LakeStoreError),
    /// The metastore or the store failed, so it is not known whether the tables are there.
    #[error("cannot tell whether the tables that the metastore knows are there")]
    Unknown(#[source] Box<dyn Error + Send + Sync>),
}

impl From<EngineError> for StartupCheckError {
    fn from(error: EngineError) -> Self {
        Self::Unknown(Box::new(error))
    }
}

/// Looks for some of the tables that have had a commit, and marks the root, so that it is missed when it goes away later.
///
/// # Errors
/// When none of the tables is there, unless [`DeltaOptions::start_without_tables`] allows it; when the metastore or the store fails.
pub(crate) async fn check_at_startup(
    access: &TableAccess,
    metastore: &dyn Metastore,
    options: &DeltaOptions,
) -> Result<(), StartupCheckError> {
    if !options.start_without_tables {
        look_for_tables(access, metastore).await?;
    }
    access.lake().mark().await.map_err(StartupCheckError::Unmarked)
}

async fn look_for_tables(access: &TableAccess, metastore: &dyn Metastore) -> Result<(), StartupCheckError> {
    let tables = metastore.tables(None).await.map_err(EngineError::Metastore)?;
    let filled: Vec<_> = tables.iter().filter(|table| table.state.version.is_some()).collect();
    let every = filled.len().div_ceil(SAMPLE).max(1);
    let sample: Vec<&str> = filled.iter().step_by(every).map(|table| table.path.as_str()).collect();
    let looked_for = sample.len();
    let mut looks = stream::iter(sample.into_iter().map(|path| access.has_log(path))).buffer_unordered(LOOKS_AT_ONCE);
    while let Some(is_there) = looks.try_next().await? {
        if is_there {
            return Ok(());
        }
    }
    if looked_for == 0 {
        return Ok(());
    }
    Err(StartupCheckError::Missing { root: access.lake().location(""), looked_for, known: filled.len() })
}
