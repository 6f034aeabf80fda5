//! Single records.

use std::path::PathBuf;

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;

use super::{PAGE_SIZE, backfill, operation};
use crate::client::Clients;
use crate::command_line::record::{AllowArguments, EraseArguments, RecordVerb};
use crate::command_line::{Global, KindName};
use crate::exit;
use crate::output::{self, Columns};
use crate::quarantine_view::{ErasedRecord, Trace};
use crate::view;

const ERASED: Columns = Columns {
    table: &["id_hash", "space", "kept_out", "since", "erased_at", "asked_by"],
    wide: &["allowed_at", "allowed_by", "operation"],
};

pub(super) async fn run(global: &Global, verb: RecordVerb) -> Result<u8> {
    let mut clients = super::connect(global).await?;
    match verb {
        RecordVerb::Trace { id, domain, kind } => trace(global, &mut clients, id, domain, kind).await,
        RecordVerb::Erase(arguments) => erase(global, &mut clients, arguments).await,
        RecordVerb::Allow(arguments) => allow(global, &mut clients, arguments).await,
        RecordVerb::Erased { domain, limit } => {
            let records = erased(&mut clients, domain.unwrap_or_default(), limit as usize).await?;
            output::print(&output::list(global.output, &ERASED, &records)?)?;
            Ok(exit::DONE)
        }
    }
}

async fn trace(
    global: &Global,
    clients: &mut Clients,
    id: String,
    domain: Option<String>,
    kind: Option<KindName>,
) -> Result<u8> {
    let request =
        proto::TraceRecordRequest { id: id.clone(), domain: domain.unwrap_or_default(), kind: super::kind(kind) };
    let answer = clients.records.trace_record(request).await.with_context(|| format!("trace record {id}"))?;
    let trace = Trace::of(id, answer.into_inner());
    output::print(&output::one(global.output, "id", &trace)?)?;
    if trace.state == "not_found" {
        eprintln!("lakectl: nothing is known of this record; the answer says what it cannot know");
        return Ok(exit::NOT_FOUND);
    }
    if trace.state == "not_searched" {
        eprintln!("lakectl: not everything could be searched; the answer says what and why, ask again");
        return Ok(exit::UNAVAILABLE);
    }
    Ok(exit::DONE)
}

/// Ids that are given, and those of a file.
fn all_ids(mut ids: Vec<String>, file: Option<PathBuf>) -> Result<Vec<String>> {
    if let Some(file) = file {
        ids.extend(backfill::ids_of(&file)?);
    }
    Ok(ids)
}

/// Shows what would go, asks, and erases exactly that.
async fn erase(global: &Global, clients: &mut Clients, arguments: EraseArguments) -> Result<u8> {
    let EraseArguments { domain, ids, kind, ids_file, dry_run, plan, yes } = arguments;
    let ids = all_ids(ids, ids_file)?;
    if ids.is_empty() {
        eprintln!("lakectl: give the ids of the records, or --ids-file");
        return Ok(exit::USAGE);
    }
    let space = proto::Space { domain: domain.clone(), kind: super::kind(Some(kind)) };
    let mut ask = async |dry_run, plan_id| {
        let (request_id, space, ids) = (super::request_id(None), Some(space.clone()), ids.clone());
        let request = proto::EraseRecordsRequest { request_id, space, ids, dry_run, plan_id };
        let asked = clients.trust.erase_records(request).await;
        let asked = asked.with_context(|| format!("erase records of {domain}"))?.into_inner();
        operation::end_of(clients, &asked.operation.unwrap_or_default().id).await
    };
    let plan_id = match plan {
        Some(plan) => plan,
        None => {
            let planned = ask(true, String::new()).await?;
            if dry_run || planned.state != "succeeded" {
                output::print(&output::one(global.output, "id", &planned)?)?;
                return Ok(if planned.state == "succeeded" { exit::DONE } else { exit::FAILED });
            }
            eprintln!("{}", told(&planned));
            let warning = "Nothing brings them back but HQ, and the versions of before end";
            if !yes && !super::is_meant(warning, "erase", &format!("{} records", ids.len()))? {
                return Ok(exit::USAGE);
            }
            planned.plan_id
        }
    };
    let ended = ask(false, plan_id).await?;
    output::print(&output::one(global.output, "id", &ended)?)?;
    Ok(if ended.state == "succeeded" { exit::DONE } else { exit::FAILED })
}

/// What a plan has found, in words.
fn told(planned: &view::Operation) -> String {
    let figure = |name: &str| planned.result.get(name).copied().unwrap_or_default();
    let history =
        if figure("log_files_found") > 0 { "; logs name them: the history of their tables begins anew" } else { "" };
    format!(
        "{}, {} records: {} rows in {} files of {} tables ({} files searched), {} remembered deletions, {} entries in quarantine; versions that \
         have these files cannot be read any more{history}; plan {}",
        planned.target,
        figure("records"),
        figure("rows"),
        figure("files_found"),
        figure("tables"),
        figure("files_searched"),
        figure("deletions"),
        figure("quarantined"),
        planned.plan_id
    )
}

async fn allow(global: &Global, clients: &mut Clients, arguments: AllowArguments) -> Result<u8> {
    let AllowArguments { domain, ids, kind, ids_file, hashes, waiting } = arguments;
    let ids = all_ids(ids, ids_file)?;
    if ids.is_empty() && hashes.is_empty() {
        eprintln!("lakectl: give the ids of the records, --ids-file, or --hash");
        return Ok(exit::USAGE);
    }
    let request = proto::AllowRecordsRequest {
        request_id: super::request_id(waiting.request_id),
        space: Some(proto::Space { domain: domain.clone(), kind: super::kind(Some(kind)) }),
        ids,
        id_hashes: hashes,
    };
    let asked = clients.trust.allow_records(request).await;
    let asked = asked.with_context(|| format!("let records of {domain} in again"))?.into_inner();
    operation::show(global, clients, asked.operation, waiting.no_wait).await
}

async fn erased(clients: &mut Clients, domain: String, limit: usize) -> Result<Vec<ErasedRecord>> {
    let mut records = Vec::new();
    let mut request = proto::ListErasedRecordsRequest { domain, page_size: PAGE_SIZE, page_token: String::new() };
    loop {
        let page = clients.trust.list_erased_records(request.clone()).await;
        let page = page.context("list what was erased")?.into_inner();
        records.extend(page.records.into_iter().map(ErasedRecord::from));
        if page.next_page_token.is_empty() || records.len() >= limit {
            records.truncate(limit);
            return Ok(records);
        }
        request.page_token = page.next_page_token;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_plan_says_what_ends() {
        let planned = |log_files_found: i64| {
            view::Operation::from(proto::Operation {
                result: [("records".to_owned(), 2), ("log_files_found".to_owned(), log_files_found)].into(),
                plan_id: "0a".into(),
                ..proto::Operation::default()
            })
        };
        let (plain, named) = (told(&planned(0)), told(&planned(3)));
        assert!(plain.contains("2 records") && plain.ends_with("plan 0a") && !plain.contains("begins anew"));
        assert!(named.contains("begins anew"));
    }

    #[test]
    fn ids_are_those_that_are_given_and_those_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ids");
        std::fs::write(&file, "b\n").unwrap();
        assert_eq!(all_ids(vec!["a".into()], Some(file)).unwrap(), ["a", "b"]);
        assert_eq!(all_ids(Vec::new(), None).unwrap(), Vec::<String>::new());
    }
}
