//! What is in quarantine.

use std::io::{BufRead, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use lake_proto::admin::v1 as proto;
use prost_types::Timestamp;

use super::PAGE_SIZE;
use super::operation;
use crate::client::Clients;
use crate::command_line::Global;
use crate::command_line::quarantine::{DiscardArguments, QuarantineVerb, ReplayArguments, Selection, StageName};
use crate::exit;
use crate::output::{self, Columns};
use crate::quarantine_view::{Entry, Group, WholeEntry};

const GROUPS: Columns = Columns {
    table: &["reason", "stage", "domain", "entries", "replayed", "oldest_at", "newest_at", "next_action"],
    wide: &["bytes", "meaning"],
};

const ENTRIES: Columns = Columns {
    table: &["id", "reason", "domain", "kind", "type", "document_id", "attempts", "last_at", "replay"],
    wide: &["stage", "first_at", "replayed_at", "topic", "partition", "offset", "fetched_at", "bytes", "next_action"],
};

pub(super) async fn run(global: &Global, verb: QuarantineVerb) -> Result<u8> {
    let mut clients = super::connect(global).await?;
    match verb {
        QuarantineVerb::Summary { selection } => {
            let groups = summary(&mut clients, &selection).await?;
            output::print(&output::list(global.output, &GROUPS, &groups)?)?;
            Ok(exit::DONE)
        }
        QuarantineVerb::List { selection, limit } => {
            let entries = list(&mut clients, &selection, limit as usize).await?;
            output::print(&output::list(global.output, &ENTRIES, &entries)?)?;
            Ok(exit::DONE)
        }
        QuarantineVerb::Get { id, bytes_max, save } => {
            let request = proto::GetQuarantineEntryRequest { id: id.clone(), payload_bytes_max: bytes_max };
            let answer = clients.quarantine.get_quarantine_entry(request).await;
            let answer = answer.with_context(|| format!("get quarantine entry {id}"))?.into_inner();
            if let Some(file) = &save {
                keep(file, &answer.payload)?;
            }
            output::print(&output::one(global.output, "id", &WholeEntry::of(answer, save.is_none()))?)?;
            Ok(exit::DONE)
        }
        QuarantineVerb::Replay(arguments) => replay(global, &mut clients, arguments).await,
        QuarantineVerb::Discard(arguments) => discard(global, &mut clients, arguments).await,
    }
}

/// Entries in groups.
///
/// # Errors
/// The writer cannot be asked.
pub(super) async fn summary(clients: &mut Clients, selection: &Selection) -> Result<Vec<Group>> {
    let request = proto::SummarizeQuarantineRequest { filter: Some(filter(selection)) };
    let answer = clients.quarantine.summarize_quarantine(request).await.context("summarize the quarantine")?;
    Ok(answer.into_inner().groups.into_iter().map(Group::from).collect())
}

async fn list(clients: &mut Clients, selection: &Selection, limit: usize) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let (filter, page_token) = (Some(filter(selection)), String::new());
    let mut request = proto::ListQuarantineEntriesRequest { filter, page_size: PAGE_SIZE, page_token };
    loop {
        let page = clients.quarantine.list_quarantine_entries(request.clone()).await;
        let page = page.context("list the quarantine")?.into_inner();
        entries.extend(page.entries.into_iter().map(Entry::from));
        if page.next_page_token.is_empty() || entries.len() >= limit {
            entries.truncate(limit);
            return Ok(entries);
        }
        request.page_token = page.next_page_token;
    }
}

fn filter(selection: &Selection) -> proto::QuarantineFilter {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let stage = match selection.stage {
        None => "",
        Some(StageName::Fetcher) => "fetcher",
        Some(StageName::Enricher) => "enricher",
        Some(StageName::Writer) => "writer",
    };
    proto::QuarantineFilter {
        reason: text(&selection.reason),
        domain: text(&selection.domain),
        kind: super::kind(selection.kind),
        r#type: text(&selection.document_type),
        document_id: text(&selection.document_id),
        stage: stage.to_owned(),
        entry_id: text(&selection.entry),
        from: selection.since.map(timestamp),
        until: selection.until.map(timestamp),
    }
}

fn timestamp(at: DateTime<Utc>) -> Timestamp {
    Timestamp { seconds: at.timestamp(), nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or_default() }
}

/// Writes what could not be handled to a new file that only its owner may read.
fn keep(file: &Path, bytes: &[u8]) -> Result<()> {
    let opened = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    let written = opened.and_then(|mut file| file.write_all(bytes));
    written.with_context(|| format!("the bytes cannot be written to {}, which must not exist yet", file.display()))
}

/// Whether something is selected.
fn is_selected(selection: &Selection, all: bool) -> bool {
    if selection.is_everything() != all {
        eprintln!("lakectl: give what is meant (--reason, --domain, --id and so on), or --all, and not both");
        return false;
    }
    true
}

async fn replay(global: &Global, clients: &mut Clients, arguments: ReplayArguments) -> Result<u8> {
    if !is_selected(&arguments.selection, arguments.all) {
        return Ok(exit::USAGE);
    }
    let request = proto::ReplayQuarantineRequest {
        request_id: super::request_id(arguments.waiting.request_id),
        filter: Some(filter(&arguments.selection)),
        dry_run: arguments.dry_run,
        plan_id: arguments.plan.unwrap_or_default(),
    };
    let asked = clients.quarantine.replay_quarantine(request).await.context("replay the quarantine")?.into_inner();
    operation::show(global, clients, asked.operation, arguments.waiting.no_wait).await
}

/// Shows what would go, asks, and removes exactly that.
async fn discard(global: &Global, clients: &mut Clients, arguments: DiscardArguments) -> Result<u8> {
    if !is_selected(&arguments.selection, arguments.all) {
        return Ok(exit::USAGE);
    }
    let mut ask = async |dry_run, plan_id| {
        let filter = Some(filter(&arguments.selection));
        let request_id = super::request_id(None);
        let request = proto::DiscardQuarantineRequest { request_id, filter, dry_run, plan_id };
        let asked = clients.quarantine.discard_quarantine(request).await.context("discard what is in quarantine")?;
        operation::end_of(clients, &asked.into_inner().operation.unwrap_or_default().id).await
    };
    let plan_id = match &arguments.plan {
        Some(plan) => plan.clone(),
        None => {
            let planned = ask(true, String::new()).await?;
            let entries = planned.result.get("entries").copied().unwrap_or_default();
            if arguments.dry_run || planned.state != "succeeded" {
                output::print(&output::one(global.output, "id", &planned)?)?;
                return Ok(if planned.state == "succeeded" { exit::DONE } else { exit::FAILED });
            }
            eprintln!("{entries} entries; plan {}", planned.plan_id);
            if !arguments.yes && !is_meant(entries)? {
                return Ok(exit::USAGE);
            }
            planned.plan_id
        }
    };
    let ended = ask(false, plan_id).await?;
    output::print(&output::one(global.output, "id", &ended)?)?;
    Ok(if ended.state == "succeeded" { exit::DONE } else { exit::FAILED })
}

/// Whether the person at the terminal means it.
fn is_meant(entries: i64) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        eprintln!(
            "lakectl: nobody can be asked whether this is meant; give --yes, or --plan with the id that --dry-run shows"
        );
        return Ok(false);
    }
    eprint!("Nothing brings them back. Type `{entries}` to remove them: ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let is_meant = line.trim() == entries.to_string();
    if !is_meant {
        eprintln!("lakectl: nothing was removed");
    }
    Ok(is_meant)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn what_is_meant_is_said() {
        let reason = Selection { reason: Some("row_fails".into()), ..Selection::default() };
        assert!(is_selected(&reason, false) && is_selected(&Selection::default(), true));
        assert!(!is_selected(&reason, true) && !is_selected(&Selection::default(), false));
        let since = "2026-01-05T10:00:00.5Z".parse().ok();
        let asked = filter(&Selection { since, stage: Some(StageName::Enricher), ..reason });
        assert_eq!((asked.reason.as_str(), asked.stage.as_str()), ("row_fails", "enricher"));
        assert_eq!(asked.from.unwrap().nanos, 500_000_000);
    }

    #[test]
    fn bytes_are_kept_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("payload");
        keep(&file, b"x").unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(keep(&file, b"y").unwrap_err().to_string().contains("must not exist"));
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }
}
