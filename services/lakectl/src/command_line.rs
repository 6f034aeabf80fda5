//! The command line: a noun, then a verb.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;

use self::quarantine::{QuarantineVerb, RecordVerb};
use crate::completion::table_names;
use crate::output::Format;

pub(crate) mod quarantine;

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

/// Which table is restored to what, and how far.
#[derive(Args, Debug)]
pub(crate) struct RestoreArguments {
    /// Name of the table
    #[arg(add = ArgValueCompleter::new(table_names))]
    pub(crate) name: String,
    /// The version of this number
    #[arg(long, required_unless_present = "before", conflicts_with = "before", value_parser = clap::value_parser!(i64).range(0..))]
    pub(crate) version: Option<i64>,
    /// The version that was the newest one at this time, such as 2026-11-30T08:00:00Z
    #[arg(long, value_parser = instant)]
    pub(crate) before: Option<DateTime<Utc>>,
    /// Only show what would change, with the id of the plan
    #[arg(long, conflicts_with_all = ["plan", "yes"])]
    pub(crate) dry_run: bool,
    /// Do exactly what this plan has shown, without asking again
    #[arg(long)]
    pub(crate) plan: Option<String>,
    /// Do not ask before it is done
    #[arg(long, short)]
    pub(crate) yes: bool,
}

fn instant(text: &str) -> Result<DateTime<Utc>, String> {
    let read = DateTime::parse_from_rfc3339(text).map(Into::into);
    read.map_err(|error| format!("{error}; give a time with its zone, such as 2026-11-30T08:00:00Z"))
}

/// What is dropped, and how far.
#[derive(Args, Debug)]
pub(crate) struct DropArguments {
    /// Name of the table
    #[arg(required_unless_present = "domain", conflicts_with = "domain", add = ArgValueCompleter::new(table_names))]
    pub(crate) name: Option<String>,
    /// All tables of this project
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// Of the project, those of this kind alone
    #[arg(long, value_enum, requires = "domain")]
    pub(crate) kind: Option<KindName>,
    /// Only show what would be dropped, with the id of the plan
    #[arg(long, conflicts_with_all = ["plan", "yes"])]
    pub(crate) dry_run: bool,
    /// Drop exactly what this plan has shown, without asking again
    #[arg(long)]
    pub(crate) plan: Option<String>,
    /// Do not ask before it is done
    #[arg(long, short)]
    pub(crate) yes: bool,
}

/// Whether a table has deletion vectors.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum DeletionVectorsName {
    /// Where it is too large to be rewritten
    Auto,
    /// Always
    On,
    /// Never, for readers that do not know them
    Off,
}

/// On or off.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum Switch {
    /// It is done
    On,
    /// It is not done
    Off,
}

/// What is said about a table.
#[derive(Args, Debug)]
pub(crate) struct PolicyArguments {
    /// Name of the table
    #[arg(add = ArgValueCompleter::new(table_names))]
    pub(crate) name: String,
    /// Whether it has deletion vectors
    #[arg(long, value_enum)]
    pub(crate) deletion_vectors: Option<DeletionVectorsName>,
    /// Whether rounds of compaction take it in
    #[arg(long, value_enum)]
    pub(crate) compaction: Option<Switch>,
    /// How long superseded files stay, hours
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..))]
    pub(crate) retention_hours: Option<i64>,
    /// Forget what was said before
    #[arg(long)]
    pub(crate) as_configured: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum TableVerb {
    /// List tables, by name
    List {
        #[command(flatten)]
        filter: TableFilter,
        /// Show again every 2 seconds
        #[arg(long)]
        watch: bool,
    },
    /// Show one table and its columns
    Get {
        /// Name of the table
        #[arg(add = ArgValueCompleter::new(table_names))]
        name: String,
    },
    /// Compact one table now
    Compact {
        /// Name of the table
        #[arg(add = ArgValueCompleter::new(table_names))]
        name: String,
        /// Only show what would be rewritten, with the id of the plan
        #[arg(long, conflicts_with = "plan")]
        dry_run: bool,
        /// Compact only if it is exactly what this plan has shown
        #[arg(long)]
        plan: Option<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Delete the files of one table that no version within the retention needs
    Vacuum {
        /// Name of the table
        #[arg(add = ArgValueCompleter::new(table_names))]
        name: String,
        /// Only show what would be deleted, with the id of the plan
        #[arg(long, conflicts_with = "plan")]
        dry_run: bool,
        /// Delete only if it is exactly what this plan has shown
        #[arg(long)]
        plan: Option<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Write a checkpoint of the log of one table
    Checkpoint {
        /// Name of the table
        #[arg(add = ArgValueCompleter::new(table_names))]
        name: String,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// List the versions of a table, newest first
    History {
        /// Name of the table
        #[arg(add = ArgValueCompleter::new(table_names))]
        name: String,
        /// Most versions
        #[arg(long, default_value_t = 20)]
        limit: u32,
    },
    /// List the data files of a table
    Files {
        /// Name of the table
        #[arg(add = ArgValueCompleter::new(table_names))]
        name: String,
    },
    /// Show how one table is treated, or say it: in force within seconds, until something else is said
    Policy(PolicyArguments),
    /// Take a table, or all tables of a project, out of the lake for good; what would go is shown first
    Drop(DropArguments),
    /// Bring one table back to an earlier version; what would change is shown first
    Restore(RestoreArguments),
    /// List what was dropped
    Dropped {
        /// Only of this project
        #[arg(long)]
        domain: Option<String>,
    },
    /// Let a dropped table, or a dropped project, be made anew by the next rows for it
    Allow {
        /// The project
        domain: String,
        /// The kind
        #[arg(value_enum)]
        kind: KindName,
        /// The type of the one table; without it, all of the project and the kind
        #[arg(long = "type")]
        document_type: Option<String>,
        #[command(flatten)]
        waiting: Waiting,
    },
    /// Compact and clean up all tables of one kind of a project now
    CleanUp {
        /// The project
        domain: String,
        /// The kind
        #[arg(value_enum)]
        kind: KindName,
        #[command(flatten)]
        waiting: Waiting,
    },
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
