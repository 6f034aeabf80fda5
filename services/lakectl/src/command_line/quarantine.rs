//! The command line of the quarantine.

use std::path::PathBuf;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand, ValueEnum};

use super::{KindName, Waiting};

/// The services that put entries into quarantine.
#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum StageName {
    /// Reads from HQ
    Fetcher,
    /// Makes rows
    Enricher,
    /// Commits rows
    Writer,
}

/// Which entries are meant: those to which all that is given applies.
#[derive(Args, Debug, Default)]
pub(crate) struct Selection {
    /// Only with this code of a reason, for example form_xml_missing
    #[arg(long)]
    pub(crate) reason: Option<String>,
    /// Only of this project
    #[arg(long)]
    pub(crate) domain: Option<String>,
    /// Only of this kind
    #[arg(long, value_enum)]
    pub(crate) kind: Option<KindName>,
    /// Only of this type: case type or form xmlns
    #[arg(long = "type")]
    pub(crate) document_type: Option<String>,
    /// Only about the record with this id
    #[arg(long = "id")]
    pub(crate) document_id: Option<String>,
    /// Only of this service
    #[arg(long, value_enum)]
    pub(crate) stage: Option<StageName>,
    /// Only this entry
    #[arg(long)]
    pub(crate) entry: Option<String>,
    /// Only those that came last at this instant or later, for example 2026-01-05T10:00:00Z
    #[arg(long)]
    pub(crate) since: Option<DateTime<Utc>>,
    /// Only those that came last before this instant
    #[arg(long)]
    pub(crate) until: Option<DateTime<Utc>>,
}

impl Selection {
    /// Whether nothing is given, so that everything is meant.
    pub(crate) const fn is_everything(&self) -> bool {
        self.reason.is_none()
            && self.domain.is_none()
            && self.kind.is_none()
            && self.document_type.is_none()
            && self.document_id.is_none()
            && self.stage.is_none()
            && self.entry.is_none()
            && self.since.is_none()
            && self.until.is_none()
    }
}

/// What is replayed.
#[derive(Args, Debug)]
pub(crate) struct ReplayArguments {
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// All entries, where nothing else is given
    #[arg(long)]
    pub(crate) all: bool,
    /// Only show what would be read again, with the id of the plan
    #[arg(long, conflicts_with = "plan")]
    pub(crate) dry_run: bool,
    /// Replay only if it is exactly what this plan has shown
    #[arg(long)]
    pub(crate) plan: Option<String>,
    #[command(flatten)]
    pub(crate) waiting: Waiting,
}

/// What is discarded, and how far.
#[derive(Args, Debug)]
pub(crate) struct DiscardArguments {
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// All entries, where nothing else is given
    #[arg(long)]
    pub(crate) all: bool,
    /// Only show what would be removed, with the id of the plan
    #[arg(long, conflicts_with_all = ["plan", "yes"])]
    pub(crate) dry_run: bool,
    /// Remove exactly what this plan has shown, without asking again
    #[arg(long)]
    pub(crate) plan: Option<String>,
    /// Do not ask before it is done
    #[arg(long, short)]
    pub(crate) yes: bool,
}

#[derive(Subcommand, Debug)]
pub(crate) enum QuarantineVerb {
    /// Show how much is in quarantine, by reason, service and project, and what to do about it
    Summary {
        #[command(flatten)]
        selection: Selection,
    },
    /// List entries, those that came last first
    List {
        #[command(flatten)]
        selection: Selection,
        /// Most entries
        #[arg(long, default_value_t = 100)]
        limit: u32,
    },
    /// Show one entry with its detail and its bytes, which are people's data
    Get {
        /// Its id
        id: String,
        /// Most bytes of what could not be handled
        #[arg(long, default_value_t = 65_536)]
        bytes_max: i32,
        /// Write those bytes to this file, which only its owner may read, instead of showing them
        #[arg(long)]
        save: Option<PathBuf>,
    },
    /// Have records read from HQ again, after the cause was mended; entries leave when that has succeeded
    Replay(ReplayArguments),
    /// Remove entries for good; what would go is shown first
    Discard(DiscardArguments),
}
