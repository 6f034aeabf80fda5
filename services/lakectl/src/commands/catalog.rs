//! The catalog in which readers find the tables by name.

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;

use super::{WATCH_EVERY, operation};
use crate::catalog_view::{CatalogEntry, CatalogStatus};
use crate::client::Clients;
use crate::command_line::{CatalogVerb, Global};
use crate::exit;
use crate::output::{self, Columns};

const COLUMNS: Columns =
    Columns { table: &["name", "state", "since", "error", "next_action"], wide: &["table", "location"] };

pub(super) async fn run(global: &Global, verb: CatalogVerb) -> Result<u8> {
    let mut clients = super::connect(global).await?;
    match verb {
        CatalogVerb::Status { watch } => loop {
            output::print(&output::one(global.output, "kind", &status(&mut clients).await?)?)?;
            if !watch {
                return Ok(exit::DONE);
            }
            tokio::time::sleep(WATCH_EVERY).await;
        },
        CatalogVerb::Diff => {
            let answer = clients.catalog.get_catalog_diff(proto::GetCatalogDiffRequest {}).await;
            let answer = answer.context("compare the lake with the catalog")?.into_inner();
            eprintln!("{} tables are as they should be", answer.registered);
            let differing: Vec<CatalogEntry> = answer.entries.into_iter().map(CatalogEntry::from).collect();
            output::print(&output::list(global.output, &COLUMNS, &differing)?)?;
            Ok(if differing.is_empty() { exit::DONE } else { exit::FAILED })
        }
        CatalogVerb::Sync { dry_run, plan, waiting } => {
            let request_id = super::request_id(waiting.request_id);
            let request = proto::SyncCatalogRequest { request_id, dry_run, plan_id: plan.unwrap_or_default() };
            let asked = clients.catalog.sync_catalog(request).await.context("make the catalog what the lake has")?;
            operation::show(global, &mut clients, asked.into_inner().operation, waiting.no_wait).await
        }
    }
}

/// How far the catalog is.
///
/// # Errors
/// The writer cannot be asked, or does not hold the lease.
pub(super) async fn status(clients: &mut Clients) -> Result<CatalogStatus> {
    let answer = clients.catalog.get_catalog_status(proto::GetCatalogStatusRequest {}).await;
    Ok(answer.context("get the state of the catalog")?.into_inner().into())
}
