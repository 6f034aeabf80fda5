//! The lake as a whole.

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;

use super::{PAGE_SIZE, WATCH_EVERY, gather, top};
use crate::client::Clients;
use crate::command_line::{Global, LakeVerb, Scope};
use crate::exit::{self, check};
use crate::output::{self, Columns};
use crate::pipeline_view::Pipeline;
use crate::view;

const PAUSES: Columns = Columns { table: &["scope", "since", "in_force_at", "asked_by", "reason"], wide: &[] };
const AUDIT: Columns = Columns { table: &["at", "asked_by", "call", "target", "request_id"], wide: &[] };

pub(super) async fn run(global: &Global, verb: LakeVerb) -> Result<u8> {
    match verb {
        LakeVerb::Check { quarantined_max } => return Ok(look_after(global, quarantined_max).await),
        LakeVerb::Top => return top::run(global).await,
        LakeVerb::Gather => return gather::run(global).await,
        _ => {}
    }
    let mut clients = super::connect(global).await?;
    match verb {
        LakeVerb::Status { watch } => loop {
            output::print(&output::one(global.output, "writer", &status(&mut clients).await?)?)?;
            if !watch {
                return Ok(exit::DONE);
            }
            tokio::time::sleep(WATCH_EVERY).await;
        },
        LakeVerb::Pipeline { watch } => loop {
            let answer = clients.lake.get_pipeline(proto::GetPipelineRequest {}).await;
            let answer = answer.context("get the state of the pipeline")?.into_inner();
            output::print(&output::one(global.output, "replicas_alive", &Pipeline::from(answer))?)?;
            if !watch {
                return Ok(exit::DONE);
            }
            tokio::time::sleep(WATCH_EVERY).await;
        },
        LakeVerb::Pause { scope, reason } => {
            let request = proto::PauseRequest { space: space(&scope), reason };
            let answer = clients.lake.pause(request).await.context("pause")?.into_inner();
            let pauses: Vec<view::Pause> = answer.pauses.into_iter().map(Into::into).collect();
            for pause in pauses.iter().filter(|pause| !pause.is_in_force()) {
                let scope = &pause.scope;
                eprintln!("the pause of {scope} is kept, but not in force yet; see lakectl lake status");
            }
            output::print(&output::list(global.output, &PAUSES, &pauses)?)?;
            Ok(exit::DONE)
        }
        LakeVerb::Resume { scope } => {
            let request = proto::ResumeRequest { space: space(&scope) };
            let answer = clients.lake.resume(request).await.context("resume")?.into_inner();
            let pauses: Vec<view::Pause> = answer.pauses.into_iter().map(Into::into).collect();
            output::print(&output::list(global.output, &PAUSES, &pauses)?)?;
            Ok(exit::DONE)
        }
        LakeVerb::Audit { limit } => {
            let records = audit(&mut clients, limit as usize).await?;
            output::print(&output::list(global.output, &AUDIT, &records)?)?;
            Ok(exit::DONE)
        }
        LakeVerb::Check { .. } | LakeVerb::Top | LakeVerb::Gather => Ok(exit::DONE),
    }
}

pub(super) async fn status(clients: &mut Clients) -> Result<view::Status> {
    let answer = clients.lake.get_status(proto::GetStatusRequest {}).await.context("get the status of the lake")?;
    Ok(answer.into_inner().into())
}

fn space(scope: &Scope) -> Option<proto::Space> {
    let domain = scope.domain.clone()?;
    Some(proto::Space { domain, kind: super::kind(scope.kind) })
}

pub(super) async fn audit(clients: &mut Clients, limit: usize) -> Result<Vec<view::AuditRecord>> {
    let mut records = Vec::new();
    let mut request = proto::ListAuditRecordsRequest { page_size: PAGE_SIZE, page_token: String::new() };
    loop {
        let page = clients.lake.list_audit_records(request.clone()).await.context("list the audit")?.into_inner();
        records.extend(page.records.into_iter().map(view::AuditRecord::from));
        if page.next_page_token.is_empty() || records.len() >= limit {
            records.truncate(limit);
            return Ok(records);
        }
        request.page_token = page.next_page_token;
    }
}

/// Says in one line how the lake is. The code is that of [`check`], also where the lake cannot be asked.
async fn look_after(global: &Global, quarantined_max: i64) -> u8 {
    let asked = async { status(&mut super::connect(global).await?).await };
    let (code, text) = match asked.await {
        Ok(status) => judge(&status, quarantined_max),
        Err(error) => (check::UNKNOWN, format!("{error:#}")),
    };
    let word = ["OK", "WARNING", "CRITICAL", "UNKNOWN"][usize::from(code)];
    if let Err(error) = output::print(&format!("LAKE {word} - {text}\n")) {
        eprintln!("lakectl: {error:#}");
    }
    code
}

fn judge(status: &view::Status, quarantined_max: i64) -> (u8, String) {
    if status.holder.is_none() {
        return (check::CRITICAL, "no writer holds the lease, so nothing is written; is a writer running?".into());
    }
    let mut trouble = Vec::new();
    if !status.failing.is_empty() {
        trouble.push(format!("cannot be committed: {}", status.failing.join(", ")));
    }
    let code = if trouble.is_empty() { check::WARNING } else { check::CRITICAL };
    if !status.pauses.is_empty() {
        let paused: Vec<&str> = status.pauses.iter().map(|pause| pause.scope.as_str()).collect();
        trouble.push(format!("paused: {}", paused.join(", ")));
    }
    let quarantined: i64 = status.quarantined.iter().map(|reason| reason.entries).sum();
    if quarantined >= quarantined_max.max(1) {
        trouble.push(format!("{quarantined} in quarantine; see lakectl lake status"));
    }
    if trouble.is_empty() { (check::OK, "a writer holds the lease".into()) } else { (code, trouble.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(change: impl FnOnce(&mut proto::GetStatusResponse)) -> view::Status {
        let mut answer = proto::GetStatusResponse { holder: Some(Default::default()), ..Default::default() };
        change(&mut answer);
        answer.into()
    }

    #[test]
    fn a_check_tells_what_needs_somebody() {
        let code = |change: fn(&mut proto::GetStatusResponse)| judge(&status(change), 5).0;
        assert_eq!(code(|_| ()), check::OK);
        assert_eq!(code(|answer| answer.holder = None), check::CRITICAL);
        assert_eq!(code(|answer| answer.pauses.push(Default::default())), check::WARNING);
        let quarantine = |entries| {
            move |answer: &mut proto::GetStatusResponse| {
                answer.quarantined.push(proto::QuarantinedReason { entries, ..Default::default() });
            }
        };
        assert_eq!(judge(&status(quarantine(4)), 5).0, check::OK);
        assert_eq!(judge(&status(quarantine(5)), 5).0, check::WARNING);
        let (code, text) = judge(
            &status(|answer| {
                let failing = vec![proto::Space { domain: "demo".into(), kind: 1 }];
                answer.ingest = Some(proto::Ingest { failing, ..Default::default() });
                answer.pauses.push(Default::default());
            }),
            5,
        );
        assert_eq!(code, check::CRITICAL);
        assert!(text.contains("demo/case") && text.contains("paused: everything"), "{text}");
    }
}
