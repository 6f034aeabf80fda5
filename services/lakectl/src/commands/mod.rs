//! What each command does.

use std::io::{BufRead, IsTerminal, Write};
use std::time::Duration;

use anyhow::{Context, Result};
use clap_complete::env::Shells;
use lake_proto::admin::v1 as proto;

use crate::client::Clients;
use crate::command_line::{CommandLine, Global, KindName, Noun};
use crate::context::{self, Contexts};
use crate::exit;
use crate::output;

mod backfill;
mod catalog;
mod contexts;
mod gather;
mod lake;
mod operation;
mod quarantine;
mod reconcile;
mod record;
mod table;
mod token;
mod top;

/// Time between two looks with `--watch`.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// Entries that are asked for at once.
const PAGE_SIZE: i32 = 1_000;

/// Does what the command line says. The answer is the exit code.
///
/// # Errors
/// What failed, on which object, and what to do next.
pub(crate) async fn run(line: CommandLine) -> Result<u8> {
    let CommandLine { global, noun } = line;
    match noun {
        Noun::Table(verb) => table::run(&global, verb).await,
        Noun::Record(verb) => record::run(&global, verb).await,
        Noun::Quarantine(verb) => quarantine::run(&global, verb).await,
        Noun::Operation(verb) => operation::run(&global, verb).await,
        Noun::Backfill(verb) => backfill::run(&global, verb).await,
        Noun::Reconcile(verb) => reconcile::run(&global, verb).await,
        Noun::Lake(verb) => lake::run(&global, verb).await,
        Noun::Catalog(verb) => catalog::run(&global, verb).await,
        Noun::Context(verb) => contexts::run(&global, verb),
        Noun::Token(verb) => token::run(verb),
        Noun::Completions { shell } => {
            let mut script = Vec::new();
            let shells = Shells::builtins();
            let completer = shells.completer(&shell.to_string()).context("this shell cannot complete words")?;
            completer.write_registration("COMPLETE", "lakectl", "lakectl", "lakectl", &mut script)?;
            output::print(&String::from_utf8_lossy(&script))?;
            Ok(exit::DONE)
        }
    }
}

async fn connect(global: &Global) -> Result<Clients> {
    let contexts = Contexts::read(&context::file()?)?;
    let lake = contexts.lake(global.context.as_deref(), global.server_address.as_deref())?;
    Clients::connect(&lake).await
}

fn kind(kind: Option<KindName>) -> i32 {
    let kind = match kind {
        None => proto::Kind::Unspecified,
        Some(KindName::Case) => proto::Kind::Case,
        Some(KindName::Form) => proto::Kind::Form,
        Some(KindName::Location) => proto::Kind::Location,
    };
    kind.into()
}

/// The id of a request: the given one or a new one.
fn request_id(given: Option<String>) -> String {
    given.unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
}

/// Whether the person at the terminal means it: they type the name. `warning`: what it means.
///
/// # Errors
/// The terminal cannot be read.
fn is_meant(warning: &str, verb: &str, name: &str) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        eprintln!(
            "lakectl: nobody can be asked whether this is meant; give --yes, or --plan with the id that --dry-run shows"
        );
        return Ok(false);
    }
    eprint!("{warning}. Type `{name}` to {verb} it: ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let is_meant = line.trim() == name;
    if !is_meant {
        eprintln!("lakectl: nothing was done");
    }
    Ok(is_meant)
}
