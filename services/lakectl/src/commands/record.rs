//! Single records.

use anyhow::{Context, Result};
use lake_proto::admin::v1 as proto;

use crate::command_line::Global;
use crate::command_line::quarantine::RecordVerb;
use crate::exit;
use crate::output;
use crate::quarantine_view::Trace;

pub(super) async fn run(global: &Global, verb: RecordVerb) -> Result<u8> {
    let mut clients = super::connect(global).await?;
    let RecordVerb::Trace { id, domain, kind } = verb;
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
