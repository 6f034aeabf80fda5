//! The command line: a noun, then a verb.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use self::backfill::BackfillVerb;
use self::quarantine::QuarantineVerb;
use self::reconcile::ReconcileVerb;
use self::record::RecordVerb;
use self::table::TableVerb;
use crate::output::Format;

pub(crate) mod backfill;
pub(crate) mod quarantine;
pub(crate) mod reconcile;
pub(crate) mod record;
pub(crate) mod table;

/// Shows and steers a CommCare Lake
#[derive(Parser, Debug)]
#[command(name = "lakectl", version, max_term_width = 120)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 64 usage, 66 not found, 69 unavailable, 77 denied, 78 context.\n\
                        `lake check` ends with 0 ok, 1 warning, 2 critical, 3 unknown."
)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// What every command has.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// The context to use instead of the selected one
    #[arg(long, global = true, env = "LAKECTL_CONTEXT")]
    pub(crate) context: Option<String>,
    /// Address of a writer, where no context is named; for example http://127.0.0.1:9700
    #[arg(long = "at", global = true, env = "LAKECTL_SERVER")]
    pub(crate) server_address: Option<String>,
    /// Form of the answer on standard output
    #[arg(long, short, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

/// What a command is about.
#[derive(Subcommand, Debug)]
pub(crate) enum Noun {
    /// Tables of the lake
    #[command(subcommand)]
    Table(TableVerb),
    /// Single records
    #[command(subcommand)]
    Record(RecordVerb),
    /// What could not be handled
    #[command(subcommand)]
    Quarantine(QuarantineVerb),
    /// Work that takes longer than a call
    #[command(subcommand)]
    Operation(OperationVerb),
    /// Fill the lake with what HQ has and Kafka does not remember
    #[command(subcommand)]
    Backfill(BackfillVerb),
    /// Compare the lake with what HQ has, and heal what differs
    #[command(subcommand)]
    Reconcile(ReconcileVerb),
    /// The lake as a whole
    #[command(subcommand)]
    Lake(LakeVerb),
    /// The catalog in which readers find the tables by name
    #[command(subcommand)]
    Catalog(CatalogVerb),
    /// Where lakes are, and how to reach them
    #[command(subcommand)]
    Context(ContextVerb),
    /// Tokens for `[[admin.tokens]]` of a writer
    #[command(subcommand)]
    Token(TokenVerb),
    /// Print a script that completes commands
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// The kinds of records.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum KindName {
    /// Cases
    Case,
    /// Forms
    Form,
    /// Locations
    Location,
}

/// Which tables are meant.
#[derive(Args, Debug, Default)]
pub(crate) struct TableFilter {
    /// Only of this project
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// Only of this kind
    #[arg(long, value_enum)]
    pub(crate) kind: Option<KindName>,
    /// Only with this text in the name
    #[arg(long)]
    pub(crate) contains: Option<String>,
}

/// Whether the end of an operation is waited for.
#[derive(Args, Debug)]
pub(crate) struct Waiting {
    /// Do not wait until the operation has ended
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// The request's id; the same id again is the same operation. Made anew where it is not given
    #[arg(long)]
    pub(crate) request_id: Option<String>,
}

/// The states of operations.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum StateName {
    /// It waits for its turn
    Pending,
    /// It is being worked on
    Running,
    /// It has done what was asked for
    Succeeded,
    /// It has ended with an error
    Failed,
    /// It has ended early, as it was asked to
    Cancelled,
    /// It rests until it is resumed
    Paused,
}

#[derive(Subcommand, Debug)]
pub(crate) enum OperationVerb {
    /// List operations, newest first
    List {
        /// Only in this state; may be repeated
        #[arg(long, value_enum)]
        state: Vec<StateName>,
        /// Only on this project
        #[arg(long)]
        domain: Option<String>,
        /// Most operations
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Show one operation
    Get {
        /// Its id
        id: String,
    },
    /// Follow one operation until it has ended; the exit code says how
    Watch {
        /// Its id
        id: String,
    },
    /// Ask one operation to end early
    Cancel {
        /// Its id
        id: String,
    },
}

/// What is paused or resumed: all spaces, or one.
#[derive(Args, Debug)]
pub(crate) struct Scope {
    /// Everything
    #[arg(long, conflicts_with_all = ["domain", "kind"], required_unless_present = "domain")]
    pub(crate) all: bool,
    /// This project
    #[arg(long, requires = "kind")]
    pub(crate) domain: Option<String>,
    /// Of the project, this kind
    #[arg(long, value_enum, requires = "domain")]
    pub(crate) kind: Option<KindName>,
}

#[derive(Subcommand, Debug)]
pub(crate) enum LakeVerb {
    /// Show how the lake is
    Status {
        /// Show again every 2 seconds
        #[arg(long)]
        watch: bool,
    },
    /// Show how far the way from HQ to the tables is: processes, lag of the change feed, queue
    Pipeline {
        /// Show again every 2 seconds
        #[arg(long)]
        watch: bool,
    },
    /// Show lag, rates, freshness and operations live in the terminal
    Top,
    /// Print everything that the writer tells as one object, for those who help; there are no secrets in it
    Gather,
    /// Say in one line and by the exit code (0 to 3) whether the lake needs somebody
    Check {
        /// Entries in quarantine from which on it does
        #[arg(long, default_value_t = 1)]
        quarantined_max: i64,
    },
    /// Let rows wait in the queue until `resume`; nothing is lost
    Pause {
        #[command(flatten)]
        scope: Scope,
        /// Why, for other operators
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// End a pause
    Resume {
        #[command(flatten)]
        scope: Scope,
    },
    /// List what was asked for by whom, newest first
    Audit {
        /// Most records
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum CatalogVerb {
    /// Show how far the catalog is what the lake has
    Status {
        /// Show again every 2 seconds
        #[arg(long)]
        watch: bool,
    },
    /// Read all of the catalog and list what differs; the exit code is 1 when something does
    Diff,
    /// Make the catalog what the lake has; what others made is left alone
    Sync {
        /// Only show what would be changed, with the id of the plan
        #[arg(long, conflicts_with = "plan")]
        dry_run: bool,
        /// Change only exactly what this plan has shown
        #[arg(long)]
        plan: Option<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
}

#[derive(Subcommand, Debug)]
pub(crate) enum ContextVerb {
    /// Add or change a context, and select it if it is the first one
    Add {
        /// Its name
        name: String,
        /// Where a writer answers, for example https://writer.lake:9700
        #[arg(long)]
        server: String,
        /// File with the root certificate, where the system does not know it
        #[arg(long)]
        ca: Option<PathBuf>,
        /// File with the certificate of this client, where the writer asks for one
        #[arg(long, requires = "client_key")]
        client_certificate: Option<PathBuf>,
        /// File with its private key
        #[arg(long, requires = "client_certificate")]
        client_key: Option<PathBuf>,
        /// Read the token from standard input
        #[arg(long)]
        token_stdin: bool,
    },
    /// Use this context from now on
    Select {
        /// Its name
        name: String,
    },
    /// List contexts; tokens are not shown
    List,
    /// Remove a context
    Remove {
        /// Its name
        name: String,
    },
}

/// The roles of tokens.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum RoleName {
    /// To look
    Viewer,
    /// To have work done, to pause and to resume
    Operator,
    /// Everything
    Admin,
}

#[derive(Subcommand, Debug)]
pub(crate) enum TokenVerb {
    /// Make a token: prints it once, with the lines for the writer's configuration, which hold only its hash
    New {
        /// Who is to have it
        name: String,
        /// What it allows
        #[arg(long, value_enum)]
        role: RoleName,
        /// A project that it is for; may be repeated. Without any, all
        #[arg(long)]
        domain: Vec<String>,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn a_pause_names_what_it_is_about() {
        let parse = |words: &str| CommandLine::try_parse_from(words.split(' '));
        assert!(parse("lakectl lake pause").is_err(), "everything is paused only by that word");
        assert!(parse("lakectl lake pause --all").is_ok());
        assert!(parse("lakectl lake pause --domain demo --kind case").is_ok());
        for wrong in ["--domain demo", "--kind case", "--all --domain demo --kind case"] {
            assert!(parse(&format!("lakectl lake pause {wrong}")).is_err(), "{wrong}");
        }
    }
}
