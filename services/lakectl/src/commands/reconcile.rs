//! Comparisons with HQ.

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;
use serde::Serialize;

use super::{PAGE_SIZE, operation};
use crate::client::Clients;
use crate::command_line::reconcile::{ReconcileArguments, ReconcileVerb};
use crate::command_line::{Global, KindName};
use crate::exit;
use crate::output::{self, Columns};
use crate::view;
use crate::words;

const COLUMNS: Columns = Columns {
    table: &["id", "target", "state", "done", "total", "per_second", "seconds_left", "reason"],
    wide: &["since", "asked_by", "created_at", "finished_at"],
};

/// A comparison with what it has found.
#[derive(Serialize)]
struct Reconcile {
    #[serde(flatten)]
    operation: view::Operation,
    types: Vec<String>,
    from_id: String,
    until_id: String,
    heal: bool,
    differences: Vec<Difference>,
}

/// A document in which HQ and the lake differ.
#[derive(Serialize)]
struct Difference {
    id: String,
    class: &'static str,
    lake_type: String,
    hq_type: String,
    lake_saved_at: Option<String>,
    hq_saved_at: Option<String>,
}

pub(super) async fn run(global: &Global, verb: ReconcileVerb) -> Result<u8> {
    let mut clients = super::connect(global).await?;
    match verb {
        ReconcileVerb::Start(arguments) => start(global, &mut clients, arguments).await,
        ReconcileVerb::List { domain } => {
            let all = operation::list(&mut clients, Vec::new(), domain.unwrap_or_default(), usize::MAX).await?;
            let comparisons: Vec<_> = all.into_iter().filter(|operation| operation.kind() == "reconcile").collect();
            output::print(&output::list(global.output, &COLUMNS, &comparisons)?)?;
            Ok(exit::DONE)
        }
        ReconcileVerb::Get { id, limit } => {
            let found = get(&mut clients, &id, limit).await?;
            output::print(&output::one(global.output, "id", &found)?)?;
            Ok(exit::DONE)
        }
        ReconcileVerb::Watch { id } => operation::watch(global, &mut clients, &id).await,
        ReconcileVerb::Cancel { id } => {
            let answer = clients.operations.cancel_operation(proto::CancelOperationRequest { id: id.clone() }).await;
            let answer = answer.with_context(|| format!("cancel comparison {id}"))?.into_inner();
            operation::shown(global, answer.operation)
        }
    }
}

/// Begins one comparison for each kind; then follows them, unless nobody waits.
async fn start(global: &Global, clients: &mut Clients, arguments: ReconcileArguments) -> Result<u8> {
    let ReconcileArguments { domain, kind, types, from_id, until_id, heal, waiting } = arguments;
    if kind.len() != 1 && !types.is_empty() {
        eprintln!("lakectl: types are those of one kind; give --kind once");
        return Ok(exit::USAGE);
    }
    let kinds = if kind.is_empty() { vec![KindName::Case, KindName::Form, KindName::Location] } else { kind };
    let request_id = super::request_id(waiting.request_id);
    let is_one = kinds.len() == 1;
    let mut begun = Vec::new();
    for kind in kinds {
        let kind_number = super::kind(Some(kind));
        let request_id = if is_one { request_id.clone() } else { format!("{request_id}-{}", words::kind(kind_number)) };
        let request = proto::StartReconcileRequest {
            request_id,
            space: Some(proto::Space { domain: domain.clone(), kind: kind_number }),
            types: types.clone(),
            from_id: from_id.clone(),
            until_id: until_id.clone(),
            heal,
        };
        let asked = clients.trust.start_reconcile(request).await;
        let asked = asked.with_context(|| format!("compare {domain} with HQ"))?.into_inner();
        begun.push(view::Operation::from(asked.operation.unwrap_or_default()));
    }
    let (mut ended, mut code) = (Vec::new(), exit::DONE);
    for operation in begun {
        if waiting.no_wait {
            ended.push(operation);
            continue;
        }
        let end = operation::end_of(clients, &operation.id).await?;
        let differs = end.result.get("differences").is_some_and(|count| *count > 0);
        if end.state != "succeeded" || (differs && !heal) {
            code = exit::FAILED;
        }
        ended.push(end);
    }
    let text = match ended.as_slice() {
        [one] => output::one(global.output, "id", one)?,
        several => output::list(global.output, &COLUMNS, several)?,
    };
    output::print(&text)?;
    Ok(code)
}

/// A comparison, with the first documents that differ, out of as many pages as are needed.
async fn get(clients: &mut Clients, id: &str, limit: usize) -> Result<Reconcile> {
    let page_size = i32::try_from(limit).unwrap_or(PAGE_SIZE).clamp(1, PAGE_SIZE);
    let mut request = proto::GetReconcileRequest { id: id.to_owned(), page_size, page_token: String::new() };
    let mut found: Option<Reconcile> = None;
    loop {
        let answer = clients.trust.get_reconcile(request.clone()).await;
        let mut answer = answer.with_context(|| format!("get comparison {id}"))?.into_inner();
        request.page_token = std::mem::take(&mut answer.next_page_token);
        let page = Reconcile::from(answer);
        let held = match &mut found {
            Some(held) => {
                held.differences.extend(page.differences);
                held
            }
            None => found.insert(page),
        };
        if request.page_token.is_empty() || held.differences.len() >= limit {
            held.differences.truncate(limit);
            break;
        }
    }
    found.with_context(|| format!("the writer said nothing of comparison {id}; ask again"))
}

impl From<proto::GetReconcileResponse> for Reconcile {
    fn from(answer: proto::GetReconcileResponse) -> Self {
        Self {
            operation: answer.operation.unwrap_or_default().into(),
            types: answer.types,
            from_id: answer.from_id,
            until_id: answer.until_id,
            heal: answer.heal,
            differences: answer.differences.into_iter().map(Difference::from).collect(),
        }
    }
}

impl From<proto::Difference> for Difference {
    fn from(of: proto::Difference) -> Self {
        let class = match of.class() {
            proto::DifferenceClass::Missing => "missing",
            proto::DifferenceClass::Stale => "stale",
            proto::DifferenceClass::Extra => "extra",
            proto::DifferenceClass::Moved => "moved",
            proto::DifferenceClass::Unspecified => "unknown",
        };
        Self {
            id: of.id,
            class,
            lake_type: of.lake_type,
            hq_type: of.hq_type,
            lake_saved_at: words::instant(of.lake_saved_at),
            hq_saved_at: words::instant(of.hq_saved_at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_has_its_word() {
        let word = |class: i32| Difference::from(proto::Difference { class, ..proto::Difference::default() }).class;
        assert_eq!([0, 1, 2, 3, 4, 99].map(word), ["unknown", "missing", "stale", "extra", "moved", "unknown"]);
    }
}
