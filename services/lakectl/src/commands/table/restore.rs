//! Restoring a table: first what would change, then a question, then exactly that.

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::restore_table_request::To;
use prost_types::Timestamp;

use crate::client::Clients;
use crate::command_line::Global;
use crate::command_line::table::RestoreArguments;
use crate::commands::{self, operation};
use crate::exit;
use crate::output;
use crate::view;

/// Shows what would change, asks, and does it.
///
/// # Errors
/// The writer cannot be asked or refuses, or nobody can be asked whether it is meant.
pub(super) async fn run(global: &Global, clients: &mut Clients, arguments: RestoreArguments) -> Result<u8> {
    let name = arguments.name.clone();
    let plan_id = match arguments.plan.clone() {
        Some(plan_id) => plan_id,
        None => {
            let planned = asked(clients, &arguments, "").await?;
            if planned.state != "succeeded" || arguments.dry_run {
                output::print(&output::one(global.output, "id", &planned)?)?;
                return Ok(if planned.state == "succeeded" { exit::DONE } else { exit::FAILED });
            }
            let figure = |name: &str| planned.result.get(name).copied().unwrap_or_default();
            eprintln!(
                "{name} as of version {}: {} rows instead of {}; {} files come, {} leave; plan {}",
                figure("version"),
                figure("rows_after"),
                figure("rows_before"),
                figure("files_added"),
                figure("files_removed"),
                planned.plan_id
            );
            if !arguments.yes && !commands::is_meant("Later changes leave the table", "restore", &name)? {
                return Ok(exit::USAGE);
            }
            planned.plan_id
        }
    };
    let done = asked(clients, &arguments, &plan_id).await?;
    output::print(&output::one(global.output, "id", &done)?)?;
    Ok(if done.state == "succeeded" { exit::DONE } else { exit::FAILED })
}

/// The end of an operation that plans (no plan id), or that keeps to a plan.
async fn asked(clients: &mut Clients, arguments: &RestoreArguments, plan_id: &str) -> Result<view::Operation> {
    let instant = arguments.before.map(|at| {
        let nanos = i32::try_from(at.timestamp_subsec_nanos()).unwrap_or_default();
        To::Instant(Timestamp { seconds: at.timestamp(), nanos })
    });
    let request = proto::RestoreTableRequest {
        request_id: commands::request_id(None),
        name: arguments.name.clone(),
        to: arguments.version.map(To::Version).or(instant),
        dry_run: plan_id.is_empty(),
        plan_id: plan_id.to_owned(),
    };
    let asked = clients.tables.restore_table(request).await;
    let asked = asked.with_context(|| format!("restore table {}", arguments.name))?.into_inner();
    operation::end_of(clients, &asked.operation.unwrap_or_default().id).await
}
