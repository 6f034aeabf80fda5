//! Dropping tables: first what would go, then a question, then exactly that.

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::drop_tables_request::Target;
use tonic::Code;

use crate::client::Clients;
use crate::command_line::table::DropArguments;
use crate::command_line::{Global, KindName, Waiting};
use crate::commands::{self, operation};
use crate::exit;
use crate::output::{self, Columns};
use crate::view;

const COLUMNS: Columns = Columns { table: &["target", "state", "reason"], wide: &["id", "plan_id"] };

const DROPPED: Columns = Columns { table: &["target", "name", "since", "asked_by", "files_gone"], wide: &[] };

/// Lists what was dropped.
///
/// # Errors
/// The writer cannot be asked.
pub(super) async fn list(global: &Global, clients: &mut Clients, domain: Option<String>) -> Result<u8> {
    let request = proto::ListDroppedTablesRequest { domain: domain.unwrap_or_default() };
    let answer = clients.tables.list_dropped_tables(request).await.context("list what was dropped")?;
    let dropped: Vec<_> = answer.into_inner().tables.into_iter().map(view::DroppedTable::from).collect();
    output::print(&output::list(global.output, &DROPPED, &dropped)?)?;
    Ok(exit::DONE)
}

/// Lets what was dropped be made anew.
///
/// # Errors
/// The writer cannot be asked, or nothing of the kind was dropped.
pub(super) async fn allow(
    global: &Global,
    clients: &mut Clients,
    space: proto::Space,
    document_type: Option<String>,
    waiting: Waiting,
) -> Result<u8> {
    let domain = space.domain.clone();
    let request_id = commands::request_id(waiting.request_id);
    let request = proto::AllowTablesRequest { request_id, space: Some(space), r#type: document_type };
    let asked = clients.tables.allow_tables(request).await;
    let asked = asked.with_context(|| format!("let tables of {domain} be made anew"))?.into_inner();
    operation::show(global, clients, asked.operation, waiting.no_wait).await
}

/// Shows what would be dropped, asks, and drops it.
///
/// # Errors
/// The writer cannot be asked or refuses, or nobody can be asked whether it is meant.
pub(super) async fn run(global: &Global, clients: &mut Clients, arguments: DropArguments) -> Result<u8> {
    let targets = targets(&arguments);
    let meant = arguments.name.clone().or_else(|| arguments.domain.clone()).unwrap_or_default();
    if let Some(plan) = arguments.plan {
        let [target] = targets.as_slice() else {
            eprintln!("lakectl: a plan is for one table, or for one kind of a project: give --kind as well");
            return Ok(exit::USAGE);
        };
        return apply(global, clients, vec![(target.clone(), plan)]).await;
    }
    let mut plans = Vec::new();
    for target in targets {
        if let Some(planned) = plan(clients, &target, arguments.kind.is_none() && arguments.name.is_none()).await? {
            plans.push((target, planned));
        }
    }
    if plans.is_empty() {
        eprintln!("lakectl: project {meant} has no tables; lakectl table list shows those that there are");
        return Ok(exit::NOT_FOUND);
    }
    if let Some((_, failed)) = plans.iter().find(|(_, planned)| planned.state != "succeeded") {
        output::print(&output::one(global.output, "id", failed)?)?;
        return Ok(exit::FAILED);
    }
    for (_, planned) in &plans {
        let figure = |name: &str| planned.result.get(name).copied().unwrap_or_default();
        eprintln!(
            "{}: {} tables, {} rows, {} files, {} bytes; plan {}",
            planned.target,
            figure("tables"),
            figure("rows"),
            figure("files"),
            figure("bytes"),
            planned.plan_id
        );
    }
    if arguments.dry_run {
        let planned: Vec<view::Operation> = plans.into_iter().map(|(_, planned)| planned).collect();
        output::print(&output::list(global.output, &COLUMNS, &planned)?)?;
        return Ok(exit::DONE);
    }
    if !arguments.yes && !commands::is_meant("Nothing brings this back", "drop", &meant)? {
        return Ok(exit::USAGE);
    }
    let plans = plans.into_iter().map(|(target, planned)| (target, planned.plan_id)).collect();
    apply(global, clients, plans).await
}

fn targets(arguments: &DropArguments) -> Vec<Target> {
    match (&arguments.name, &arguments.domain) {
        (Some(name), _) => vec![Target::Name(name.clone())],
        (None, Some(domain)) => {
            let kinds = arguments
                .kind
                .map_or_else(|| vec![KindName::Case, KindName::Form, KindName::Location], |kind| vec![kind]);
            let space = |kind| proto::Space { domain: domain.clone(), kind: commands::kind(Some(kind)) };
            kinds.into_iter().map(|kind| Target::Space(space(kind))).collect()
        }
        (None, None) => Vec::new(),
    }
}

/// What would be dropped. `None`: nothing, and `may_be_absent` allows that.
async fn plan(clients: &mut Clients, target: &Target, may_be_absent: bool) -> Result<Option<view::Operation>> {
    let request = proto::DropTablesRequest {
        request_id: commands::request_id(None),
        target: Some(target.clone()),
        dry_run: true,
        plan_id: String::new(),
    };
    let asked = match clients.tables.drop_tables(request).await {
        Err(status) if may_be_absent && status.code() == Code::NotFound => return Ok(None),
        asked => asked.context("plan what is to be dropped")?.into_inner(),
    };
    let operation = asked.operation.unwrap_or_default();
    operation::end_of(clients, &operation.id).await.map(Some)
}

/// Drops what the plans have shown.
async fn apply(global: &Global, clients: &mut Clients, plans: Vec<(Target, String)>) -> Result<u8> {
    let (mut ended, mut code) = (Vec::new(), exit::DONE);
    for (target, plan_id) in plans {
        let request = proto::DropTablesRequest {
            request_id: commands::request_id(None),
            target: Some(target),
            dry_run: false,
            plan_id,
        };
        let asked = clients.tables.drop_tables(request).await.context("drop tables")?.into_inner();
        let end = operation::end_of(clients, &asked.operation.unwrap_or_default().id).await?;
        if end.state != "succeeded" {
            code = exit::FAILED;
        }
        ended.push(end);
    }
    output::print(&output::list(global.output, &COLUMNS, &ended)?)?;
    Ok(code)
}
