//! The command line of tables.

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};
use clap_complete::ArgValueCompleter;

use super::{KindName, TableFilter, Waiting};
use crate::completion::table_names;

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

/// Which views are made, and how.
#[derive(Args, Debug)]
pub(crate) struct ViewArguments {
    #[command(flatten)]
    pub(crate) filter: TableFilter,
    /// The database of the views
    #[arg(long)]
    pub(crate) database: String,
    /// A column with a list of objects, such as a group of questions that repeats; may be given several times
    #[arg(long = "array", value_name = "COLUMN")]
    pub(crate) arrays: Vec<String>,
    /// The name that the columns of a type of locations had: its code and its name in HQ, such as health-post="Health Post"
    #[arg(long = "location-type", value_name = "CODE=NAME", value_parser = location_type)]
    pub(crate) location_types: Vec<(String, String)>,
}

fn location_type(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((code, name)) if !code.is_empty() && !name.is_empty() => Ok((code.into(), name.into())),
        _ => Err("give its code and its name with = between them, such as health-post=\"Health Post\"".into()),
    }
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
    /// Print Spark SQL of views that give tables the column types that the lake's predecessor had
    SparkViews(ViewArguments),
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
