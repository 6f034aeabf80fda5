//! Tables.

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;

use super::{PAGE_SIZE, WATCH_EVERY, operation};
use crate::client::Clients;
use crate::command_line::table::{DeletionVectorsName, PolicyArguments, Switch, TableVerb};
use crate::command_line::{Global, TableFilter};
use crate::exit;
use crate::output::{self, Columns};
use crate::view;

mod drop;
mod restore;
mod spark_views;

const COLUMNS: Columns = Columns {
    table: &["name", "rows", "files", "bytes", "version", "newest_change_at"],
    wide: &["delay_p50_seconds", "delay_p99_seconds", "last_commit_at", "domain", "kind", "type", "location"],
};

const VERSIONS: Columns = Columns {
    table: &["version", "at", "operation", "by_lake", "rows_written", "bytes_written", "files_added", "files_removed"],
    wide: &["files_with_new_deletion_vectors", "engine"],
};
const FILES: Columns = Columns { table: &["path", "bytes", "rows", "rows_hidden", "written_at"], wide: &[] };

pub(super) async fn run(global: &Global, verb: TableVerb) -> Result<u8> {
    let mut clients = super::connect(global).await?;
    match verb {
        TableVerb::List { filter, watch } => loop {
            output::print(&output::list(global.output, &COLUMNS, &all(&mut clients, &filter).await?)?)?;
            if !watch {
                return Ok(exit::DONE);
            }
            tokio::time::sleep(WATCH_EVERY).await;
        },
        TableVerb::Get { name } => {
            let answer = clients.tables.get_table(proto::GetTableRequest { name: name.clone() }).await;
            let answer = answer.with_context(|| format!("get table {name}"))?.into_inner();
            output::print(&output::one(global.output, "name", &view::TableDetail::from(answer))?)?;
            Ok(exit::DONE)
        }
        TableVerb::Compact { name, dry_run, plan, waiting } => {
            let request_id = super::request_id(waiting.request_id);
            let plan_id = plan.unwrap_or_default();
            let request = proto::CompactTableRequest { request_id, name: name.clone(), dry_run, plan_id };
            let asked = clients.tables.compact_table(request).await;
            let asked = asked.with_context(|| format!("compact table {name}"))?.into_inner();
            operation::show(global, &mut clients, asked.operation, waiting.no_wait).await
        }
        TableVerb::Vacuum { name, dry_run, plan, waiting } => {
            let request_id = super::request_id(waiting.request_id);
            let plan_id = plan.unwrap_or_default();
            let request = proto::VacuumTableRequest { request_id, name: name.clone(), dry_run, plan_id };
            let asked = clients.tables.vacuum_table(request).await;
            let asked = asked.with_context(|| format!("vacuum table {name}"))?.into_inner();
            operation::show(global, &mut clients, asked.operation, waiting.no_wait).await
        }
        TableVerb::Checkpoint { name, waiting } => {
            let request_id = super::request_id(waiting.request_id);
            let request = proto::CheckpointTableRequest { request_id, name: name.clone() };
            let asked = clients.tables.checkpoint_table(request).await;
            let asked = asked.with_context(|| format!("write a checkpoint of table {name}"))?.into_inner();
            operation::show(global, &mut clients, asked.operation, waiting.no_wait).await
        }
        TableVerb::History { name, limit } => {
            let versions = history(&mut clients, name, limit as usize).await?;
            output::print(&output::list(global.output, &VERSIONS, &versions)?)?;
            Ok(exit::DONE)
        }
        TableVerb::Files { name } => {
            output::print(&output::list(global.output, &FILES, &files(&mut clients, name).await?)?)?;
            Ok(exit::DONE)
        }
        TableVerb::Policy(arguments) => set_policy(global, &mut clients, arguments).await,
        TableVerb::Drop(arguments) => drop::run(global, &mut clients, arguments).await,
        TableVerb::Restore(arguments) => restore::run(global, &mut clients, arguments).await,
        TableVerb::SparkViews(arguments) => spark_views::run(&mut clients, arguments).await,
        TableVerb::Dropped { domain } => drop::list(global, &mut clients, domain).await,
        TableVerb::Allow { domain, kind, document_type, waiting } => {
            let space = proto::Space { domain, kind: super::kind(Some(kind)) };
            drop::allow(global, &mut clients, space, document_type, waiting).await
        }
        TableVerb::CleanUp { domain, kind, waiting } => {
            let request_id = super::request_id(waiting.request_id);
            let space = proto::Space { domain: domain.clone(), kind: super::kind(Some(kind)) };
            let request = proto::CleanUpSpaceRequest { request_id, space: Some(space) };
            let asked = clients.tables.clean_up_space(request).await;
            let asked = asked.with_context(|| format!("clean up {domain}"))?.into_inner();
            operation::show(global, &mut clients, asked.operation, waiting.no_wait).await
        }
    }
}

/// Changes what is said about a table, the rest of it stays; without a change it is only shown.
async fn set_policy(global: &Global, clients: &mut Clients, arguments: PolicyArguments) -> Result<u8> {
    let name = arguments.name.clone();
    let answer = clients.tables.get_table(proto::GetTableRequest { name: name.clone() }).await;
    let before = answer.with_context(|| format!("get table {name}"))?.into_inner().policy.unwrap_or_default();
    let wanted = policy(before, &arguments);
    let said = if wanted == before {
        wanted
    } else {
        let request_id = super::request_id(None);
        let request = proto::SetTablePolicyRequest { request_id, name: name.clone(), policy: Some(wanted) };
        let set = clients.tables.set_table_policy(request).await;
        set.with_context(|| format!("set the policy of {name}"))?.into_inner().policy.unwrap_or_default()
    };
    output::print(&output::one(global.output, "name", &view::PolicyOfTable { name, policy: said.into() })?)?;
    Ok(exit::DONE)
}

/// What is to be said about a table.
fn policy(mut said: proto::TablePolicy, wanted: &PolicyArguments) -> proto::TablePolicy {
    if wanted.as_configured {
        said = proto::TablePolicy::default();
    }
    if let Some(deletion_vectors) = wanted.deletion_vectors {
        let deletion_vectors = match deletion_vectors {
            DeletionVectorsName::Auto => proto::DeletionVectors::Auto,
            DeletionVectorsName::On => proto::DeletionVectors::On,
            DeletionVectorsName::Off => proto::DeletionVectors::Off,
        };
        said.deletion_vectors = deletion_vectors.into();
    }
    if let Some(compaction) = wanted.compaction {
        said.compaction = Some(compaction == Switch::On);
    }
    said.retention_hours = wanted.retention_hours.or(said.retention_hours);
    said
}

/// The tables of all pages.
pub(super) async fn all(clients: &mut Clients, filter: &TableFilter) -> Result<Vec<view::Table>> {
    let mut tables = Vec::new();
    let mut request = proto::ListTablesRequest {
        domain: filter.domain.clone().unwrap_or_default(),
        kind: super::kind(filter.kind),
        name_contains: filter.contains.clone().unwrap_or_default(),
        page_size: PAGE_SIZE,
        page_token: String::new(),
    };
    loop {
        let page = clients.tables.list_tables(request.clone()).await.context("list tables")?.into_inner();
        tables.extend(page.tables.into_iter().map(view::Table::from));
        if page.next_page_token.is_empty() {
            return Ok(tables);
        }
        request.page_token = page.next_page_token;
    }
}

/// The newest versions of a table.
async fn history(clients: &mut Clients, name: String, limit: usize) -> Result<Vec<view::TableVersion>> {
    let mut versions = Vec::new();
    let mut request = proto::ListTableVersionsRequest { name, page_size: PAGE_SIZE, page_token: String::new() };
    loop {
        request.page_size = PAGE_SIZE.min(i32::try_from(limit - versions.len()).unwrap_or(PAGE_SIZE)).max(1);
        let page = clients.tables.list_table_versions(request.clone()).await;
        let page = page.with_context(|| format!("list the versions of {}", request.name))?.into_inner();
        versions.extend(page.versions.into_iter().map(view::TableVersion::from));
        if page.next_page_token.is_empty() || versions.len() >= limit {
            versions.truncate(limit);
            return Ok(versions);
        }
        request.page_token = page.next_page_token;
    }
}

/// The data files of a table.
async fn files(clients: &mut Clients, name: String) -> Result<Vec<view::TableFile>> {
    let mut files = Vec::new();
    let mut request = proto::ListTableFilesRequest { name, page_size: PAGE_SIZE, page_token: String::new() };
    loop {
        let page = clients.tables.list_table_files(request.clone()).await;
        let page = page.with_context(|| format!("list the files of {}", request.name))?.into_inner();
        files.extend(page.files.into_iter().map(view::TableFile::from));
        if page.next_page_token.is_empty() {
            return Ok(files);
        }
        request.page_token = page.next_page_token;
    }
}
