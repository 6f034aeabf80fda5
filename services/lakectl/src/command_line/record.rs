//! The command line of single records.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{KindName, Waiting};

/// What is erased, and how far.
#[derive(Args, Debug)]
pub(crate) struct EraseArguments {
    /// The project
    pub(crate) domain: String,
    /// Case ids, form ids or location ids; at most 1,000
    pub(crate) ids: Vec<String>,
    /// Their kind
    #[arg(long, value_enum)]
    pub(crate) kind: KindName,
    /// And the ids in this file, one a line
    #[arg(long)]
    pub(crate) ids_file: Option<PathBuf>,
    /// Only show what would be rewritten and deleted, with the id of the plan
    #[arg(long, conflicts_with_all = ["plan", "yes"])]
    pub(crate) dry_run: bool,
    /// Erase exactly what this plan has shown, without asking again
    #[arg(long)]
    pub(crate) plan: Option<String>,
    /// Do not ask before it is done
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// What is let in again.
#[derive(Args, Debug)]
pub(crate) struct AllowArguments {
    /// The project
    pub(crate) domain: String,
    /// Case ids, form ids or location ids
    pub(crate) ids: Vec<String>,
    /// Their kind
    #[arg(long, value_enum)]
    pub(crate) kind: KindName,
    /// And the ids in this file, one a line
    #[arg(long)]
    pub(crate) ids_file: Option<PathBuf>,
    /// And the record with this hash, as `record erased` shows it; may be repeated
    #[arg(long = "hash")]
    pub(crate) hashes: Vec<String>,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Subcommand, Debug)]
pub(crate) enum RecordVerb {
    /// Show where a record is or was, and why it is not in the lake
    Trace {
        /// Case id, form id or location id
        id: String,
        /// Only in this project
        #[arg(long)]
        domain: Option<String>,
        /// Only of this kind
        #[arg(long, value_enum)]
        kind: Option<KindName>,
    },
    /// Take records out of the lake wholly and keep them out; what would go is shown first
    Erase(EraseArguments),
    /// Let erased records in again, with their next change in HQ or by a backfill
    Allow(AllowArguments),
    /// List what was erased, newest first; ids are not kept, only their hashes
    Erased {
        /// Only of this project
        #[arg(long)]
        domain: Option<String>,
        /// Most records
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
}
