//! The command line of comparisons with HQ.

use clap::{Args, Subcommand};

use super::{KindName, Waiting};

/// What is compared.
#[derive(Args, Debug)]
pub(crate) struct ReconcileArguments {
    /// The project
    pub(crate) domain: String,
    /// Only this kind; may be repeated. Without it: all kinds
    #[arg(long, value_enum)]
    pub(crate) kind: Vec<KindName>,
    /// Only this case type, or forms with this xmlns; may be repeated. Needs one kind
    #[arg(long = "type")]
    pub(crate) types: Vec<String>,
    /// Only ids from this one on, in the order of their bytes
    #[arg(long, default_value = "")]
    pub(crate) from_id: String,
    /// Only ids before this one
    #[arg(long, default_value = "")]
    pub(crate) until_id: String,
    /// Have what differs read from HQ again
    #[arg(long)]
    pub(crate) heal: bool,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

#[derive(Subcommand, Debug)]
pub(crate) enum ReconcileVerb {
    /// Compare a project with HQ's tables; nothing is changed without --heal. The exit code is 1 where something differs that is not healed
    Start(ReconcileArguments),
    /// List comparisons, newest first
    List {
        /// Only of this project
        #[arg(long)]
        domain: Option<String>,
    },
    /// Show one comparison and the documents that differ
    Get {
        /// Id of its operation
        id: String,
        /// Most documents
        #[arg(long, default_value_t = 1_000)]
        limit: usize,
    },
    /// Follow one comparison until it has ended; the exit code says how
    Watch {
        /// Id of its operation
        id: String,
    },
    /// End one comparison
    Cancel {
        /// Id of its operation
        id: String,
    },
}
