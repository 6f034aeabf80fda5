//! A bundle for those who help: everything that the interface tells, in one object, without secrets.

use anyhow::Result;
use lake_proto::admin::v1 as proto;
use serde_json::{Value, json};

use super::{catalog, lake, operation, table};
use crate::client::Clients;
use crate::command_line::{Global, TableFilter};
use crate::exit;
use crate::output;
use crate::pipeline_view::Pipeline;
use crate::view;

/// Operations and audit records that are taken.
const NEWEST: usize = 500;

/// Prints the bundle. What cannot be had, as the token allows too little for instance, is in it with the reason.
///
/// # Errors
/// The writer cannot be reached, or the bundle cannot be written.
pub(super) async fn run(global: &Global) -> Result<u8> {
    let mut clients = super::connect(global).await?;
    let bundle = json!({
        "lakectl": env!("CARGO_PKG_VERSION"),
        "gathered_at": chrono::Utc::now().to_rfc3339(),
        "status": part(lake::status(&mut clients).await),
        "pipeline": part(pipeline(&mut clients).await),
        "catalog": part(catalog::status(&mut clients).await),
        "tables": part(table::all(&mut clients, &TableFilter::default()).await),
        "dropped": part(dropped(&mut clients).await),
        "operations": part(operation::list(&mut clients, Vec::new(), String::new(), NEWEST).await),
        "audit": part(lake::audit(&mut clients, NEWEST).await),
    });
    output::print(&output::one(global.output, "gathered_at", &bundle)?)?;
    Ok(exit::DONE)
}

async fn pipeline(clients: &mut Clients) -> Result<Pipeline> {
    Ok(clients.lake.get_pipeline(proto::GetPipelineRequest {}).await?.into_inner().into())
}

async fn dropped(clients: &mut Clients) -> Result<Vec<view::DroppedTable>> {
    let answer = clients.tables.list_dropped_tables(proto::ListDroppedTablesRequest::default()).await?.into_inner();
    Ok(answer.tables.into_iter().map(Into::into).collect())
}

/// A part of the bundle, or why it is missing.
fn part<T: serde::Serialize>(found: Result<T>) -> Value {
    let value = found.and_then(|found| Ok(serde_json::to_value(found)?));
    value.unwrap_or_else(|error| json!({"missing": format!("{error:#}")}))
}
