//! The command line of backfills.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{KindName, Waiting};

/// What is filled.
#[derive(Args, Debug)]
pub(crate) struct BackfillArguments {
    /// The project
    pub(crate) domain: String,
    /// Only this kind; may be repeated. Without it: all kinds
    #[arg(long, value_enum)]
    pub(crate) kind: Vec<KindName>,
    /// Only this case type, or forms with this xmlns; may be repeated. Needs one kind
    #[arg(long = "type")]
    pub(crate) types: Vec<String>,
    /// Only what was saved in HQ at this time or later, for example 2026-11-01 or 2026-11-01T06:00:00Z
    #[arg(long)]
    pub(crate) from: Option<String>,
    /// Only what was saved in HQ before this time
    #[arg(long)]
    pub(crate) until: Option<String>,
    /// Only this id; may be repeated. Needs one kind
    #[arg(long = "id", conflicts_with_all = ["types", "from", "until"])]
    pub(crate) ids: Vec<String>,
    /// Only the ids in this file, one a line. Needs one kind
    #[arg(long, conflicts_with_all = ["types", "from", "until"])]
    pub(crate) ids_file: Option<PathBuf>,
    /// Only show how much there is, as HQ's planner guesses
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Subcommand, Debug)]
pub(crate) enum BackfillVerb {
    /// Fill a project from HQ's tables, behind what HQ changes meanwhile
    Start(BackfillArguments),
    /// List backfills, newest first
    List {
        /// Only of this project
        #[arg(long)]
        domain: Option<String>,
    },
    /// Show one backfill and its parts
    Get {
        /// Id of its operation
        id: String,
    },
    /// Follow one backfill until it has ended or rests; the exit code says how
    Watch {
        /// Id of its operation
        id: String,
    },
    /// Let one backfill rest
    Pause {
        /// Id of its operation
        id: String,
    },
    /// Let one backfill go on that rests
    Resume {
        /// Id of its operation
        id: String,
    },
    /// End one backfill; what it has filled stays
    Cancel {
        /// Id of its operation
        id: String,
    },
    /// List what is taken and was not filled since then
    Offers,
}
