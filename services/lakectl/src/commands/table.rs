//! Tables.

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;

use super::operation;
use super::{PAGE_SIZE, WATCH_EVERY};
use crate::client::Clients;
use crate::command_line::{Global, TableFilter, TableVerb};
use crate::exit;
use crate::output::{self, Columns};
use crate::view;

const COLUMNS: Columns = Columns {
    table: &["name", "rows", "files", "bytes", "version", "newest_change_at"],
    wide: &["last_commit_at", "domain", "kind", "type", "location"],
};

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
        TableVerb::Compact { name, waiting } => {
            let request_id = super::request_id(waiting.request_id);
            let request = proto::CompactTableRequest { request_id, name: name.clone() };
            let asked = clients.tables.compact_table(request).await;
            let asked = asked.with_context(|| format!("compact table {name}"))?.into_inner();
            operation::show(global, &mut clients, asked.operation, waiting.no_wait).await
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

/// The tables of all pages.
async fn all(clients: &mut Clients, filter: &TableFilter) -> Result<Vec<view::Table>> {
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
