//! Operations.

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;

use super::PAGE_SIZE;
use crate::client::Clients;
use crate::command_line::{Global, OperationVerb, StateName};
use crate::exit;
use crate::output::{self, Columns};
use crate::view;

const COLUMNS: Columns = Columns {
    table: &["id", "kind", "target", "state", "since", "asked_by", "reason"],
    wide: &["attempts", "done", "total", "unit", "created_at", "finished_at", "request_id", "selection"],
};

pub(super) async fn run(global: &Global, verb: OperationVerb) -> Result<u8> {
    let mut clients = super::connect(global).await?;
    match verb {
        OperationVerb::List { state, domain, limit } => {
            let operations = list(&mut clients, state, domain.unwrap_or_default(), limit as usize).await?;
            output::print(&output::list(global.output, &COLUMNS, &operations)?)?;
            Ok(exit::DONE)
        }
        OperationVerb::Get { id } => {
            let answer = clients.operations.get_operation(proto::GetOperationRequest { id: id.clone() }).await;
            let answer = answer.with_context(|| format!("get operation {id}"))?.into_inner();
            shown(global, answer.operation)
        }
        OperationVerb::Watch { id } => watch(global, &mut clients, &id).await,
        OperationVerb::Cancel { id } => {
            let answer = clients.operations.cancel_operation(proto::CancelOperationRequest { id: id.clone() }).await;
            let answer = answer.with_context(|| format!("cancel operation {id}"))?.into_inner();
            shown(global, answer.operation)
        }
    }
}

/// Shows an operation that was asked for, at its end or as it is.
pub(super) async fn show(
    global: &Global,
    clients: &mut Clients,
    operation: Option<proto::Operation>,
    no_wait: bool,
) -> Result<u8> {
    match operation {
        Some(operation) if !no_wait => watch(global, clients, &operation.id).await,
        operation => shown(global, operation),
    }
}

pub(super) fn shown(global: &Global, operation: Option<proto::Operation>) -> Result<u8> {
    let operation = view::Operation::from(operation.unwrap_or_default());
    output::print(&output::one(global.output, "id", &operation)?)?;
    Ok(exit::DONE)
}

/// Follows an operation to its end: on the way on standard error, the end on standard output. The code says whether it succeeded.
pub(super) async fn watch(global: &Global, clients: &mut Clients, id: &str) -> Result<u8> {
    let last = end_of(clients, id).await?;
    output::print(&output::one(global.output, "id", &last)?)?;
    Ok(if last.state == "succeeded" { exit::DONE } else { exit::FAILED })
}

/// Follows an operation to its end, and tells on standard error how far it is.
///
/// # Errors
/// The writer cannot be asked, or says nothing.
pub(super) async fn end_of(clients: &mut Clients, id: &str) -> Result<view::Operation> {
    let context = || format!("watch operation {id}");
    let stream = clients.operations.watch_operation(proto::WatchOperationRequest { id: id.to_owned() }).await;
    let mut stream = stream.with_context(context)?.into_inner();
    let mut last = None;
    while let Some(told) = stream.message().await.with_context(context)? {
        let operation = view::Operation::from(told.operation.unwrap_or_default());
        eprintln!("operation {id}: {}", operation.progress_line());
        let is_resting = operation.state == "paused";
        last = Some(operation);
        if is_resting {
            break;
        }
    }
    let last = last.with_context(|| format!("the writer said nothing of operation {id}; ask again"))?;
    // The writer may have ended in the middle: the operation goes on, but how it ends is not known here.
    if last.state != "succeeded" && last.state != "paused" && !last.has_failed() {
        eprintln!("lakectl: the writer has ended; the operation goes on: lakectl operation watch {id}");
    }
    Ok(last)
}

/// Operations, newest first, out of as many pages as are needed.
///
/// # Errors
/// The writer cannot be asked.
pub(super) async fn list(
    clients: &mut Clients,
    states: Vec<StateName>,
    domain: String,
    limit: usize,
) -> Result<Vec<view::Operation>> {
    let state = |state: StateName| match state {
        StateName::Pending => proto::OperationState::Pending,
        StateName::Running => proto::OperationState::Running,
        StateName::Succeeded => proto::OperationState::Succeeded,
        StateName::Failed => proto::OperationState::Failed,
        StateName::Cancelled => proto::OperationState::Cancelled,
        StateName::Paused => proto::OperationState::Paused,
    };
    let states = states.into_iter().map(|name| state(name).into()).collect();
    let mut operations = Vec::new();
    let mut request = proto::ListOperationsRequest { states, domain, page_size: PAGE_SIZE, page_token: String::new() };
    loop {
        let page = clients.operations.list_operations(request.clone()).await.context("list operations")?.into_inner();
        operations.extend(page.operations.into_iter().map(view::Operation::from));
        if page.next_page_token.is_empty() || operations.len() >= limit {
            operations.truncate(limit);
            return Ok(operations);
        }
        request.page_token = page.next_page_token;
    }
}
