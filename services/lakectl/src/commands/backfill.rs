//! Backfills.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use lake_proto::admin::v1 as proto;
use prost_types::Timestamp;
use serde::Serialize;

use super::operation;
use crate::client::Clients;
use crate::command_line::backfill::{BackfillArguments, BackfillVerb};
use crate::command_line::{Global, KindName};
use crate::exit;
use crate::output::{self, Columns};
use crate::view;
use crate::words;

/// Most ids that one backfill takes.
const IDS_MAX: usize = 10_000;

const COLUMNS: Columns = Columns {
    table: &["id", "target", "state", "done", "total", "per_second", "seconds_left", "reason"],
    wide: &["since", "asked_by", "created_at", "finished_at", "dry_run"],
};

const OFFERS: Columns = Columns { table: &["command", "since"], wide: &["domain", "kind", "type"] };

/// A backfill with its parts.
#[derive(Serialize)]
struct Backfill {
    #[serde(flatten)]
    operation: view::Operation,
    types: Vec<String>,
    from: Option<String>,
    until: Option<String>,
    ids: i64,
    parts: Vec<Part>,
}

#[derive(Serialize)]
struct Part {
    name: String,
    estimate: i64,
    documents: i64,
    reached: i64,
    finished: bool,
}

/// Something that is taken and was not filled.
#[derive(Serialize)]
struct Offer {
    command: String,
    since: Option<String>,
    domain: String,
    kind: &'static str,
    r#type: String,
}

pub(super) async fn run(global: &Global, verb: BackfillVerb) -> Result<u8> {
    let mut clients = super::connect(global).await?;
    match verb {
        BackfillVerb::Start(arguments) => start(global, &mut clients, arguments).await,
        BackfillVerb::List { domain } => {
            let all = operation::list(&mut clients, Vec::new(), domain.unwrap_or_default(), usize::MAX).await?;
            let backfills: Vec<_> = all.into_iter().filter(|operation| operation.kind() == "backfill").collect();
            output::print(&output::list(global.output, &COLUMNS, &backfills)?)?;
            Ok(exit::DONE)
        }
        BackfillVerb::Get { id } => {
            let answer = clients.trust.get_backfill(proto::GetBackfillRequest { id: id.clone() }).await;
            let answer = answer.with_context(|| format!("get backfill {id}"))?.into_inner();
            output::print(&output::one(global.output, "id", &Backfill::from(answer))?)?;
            Ok(exit::DONE)
        }
        BackfillVerb::Watch { id } => operation::watch(global, &mut clients, &id).await,
        BackfillVerb::Pause { id } => {
            let answer = clients.trust.pause_backfill(proto::PauseBackfillRequest { id: id.clone() }).await;
            let answer = answer.with_context(|| format!("pause backfill {id}"))?.into_inner();
            operation::shown(global, answer.operation)
        }
        BackfillVerb::Resume { id } => {
            let answer = clients.trust.resume_backfill(proto::ResumeBackfillRequest { id: id.clone() }).await;
            let answer = answer.with_context(|| format!("resume backfill {id}"))?.into_inner();
            operation::shown(global, answer.operation)
        }
        BackfillVerb::Cancel { id } => {
            let answer = clients.operations.cancel_operation(proto::CancelOperationRequest { id: id.clone() }).await;
            let answer = answer.with_context(|| format!("cancel backfill {id}"))?.into_inner();
            operation::shown(global, answer.operation)
        }
        BackfillVerb::Offers => offers(global, &mut clients).await,
    }
}

/// Begins one backfill for each kind, and for each portion of ids; then follows them, unless nobody waits.
async fn start(global: &Global, clients: &mut Clients, arguments: BackfillArguments) -> Result<u8> {
    let BackfillArguments { domain, kind, types, from, until, ids, ids_file, dry_run, waiting } = arguments;
    let ids = match ids_file {
        Some(path) => ids.into_iter().chain(ids_of(&path)?).collect(),
        None => ids,
    };
    if kind.len() != 1 && !(types.is_empty() && ids.is_empty()) {
        eprintln!("lakectl: types and ids are those of one kind; give --kind once");
        return Ok(exit::USAGE);
    }
    let (from, until) = (instant(from.as_deref())?, instant(until.as_deref())?);
    let kinds = if kind.is_empty() { vec![KindName::Case, KindName::Form, KindName::Location] } else { kind };
    let portions: Vec<Vec<String>> =
        if ids.is_empty() { vec![Vec::new()] } else { ids.chunks(IDS_MAX).map(<[String]>::to_vec).collect() };
    let request_id = super::request_id(waiting.request_id);
    let is_one = kinds.len() * portions.len() == 1;
    let mut begun = Vec::new();
    for (kind, (number, ids)) in kinds.iter().flat_map(|kind| portions.iter().enumerate().map(move |of| (kind, of))) {
        let kind_number = super::kind(Some(*kind));
        let request_id =
            if is_one { request_id.clone() } else { format!("{request_id}-{}-{number}", words::kind(kind_number)) };
        let request = proto::StartBackfillRequest {
            request_id,
            space: Some(proto::Space { domain: domain.clone(), kind: kind_number }),
            types: types.clone(),
            from,
            until,
            ids: ids.clone(),
            dry_run,
        };
        let asked = clients.trust.start_backfill(request).await;
        let asked = asked.with_context(|| format!("backfill {domain}"))?.into_inner();
        if is_one {
            return operation::show(global, clients, asked.operation, waiting.no_wait).await;
        }
        begun.push(view::Operation::from(asked.operation.unwrap_or_default()));
    }
    let (mut ended, mut code) = (Vec::new(), exit::DONE);
    for operation in begun {
        ended.push(if waiting.no_wait {
            operation
        } else {
            let end = operation::end_of(clients, &operation.id).await?;
            if end.state != "succeeded" {
                code = exit::FAILED;
            }
            end
        });
    }
    output::print(&output::list(global.output, &COLUMNS, &ended)?)?;
    Ok(code)
}

async fn offers(global: &Global, clients: &mut Clients) -> Result<u8> {
    let answer = clients.trust.list_backfill_offers(proto::ListBackfillOffersRequest {}).await;
    let offers = answer.context("list what could be filled")?.into_inner().offers;
    let offers: Vec<Offer> = offers.into_iter().map(Offer::from).collect();
    output::print(&output::list(global.output, &OFFERS, &offers)?)?;
    Ok(exit::DONE)
}

/// The ids of a file, each once.
///
/// # Errors
/// It cannot be read, or holds none.
pub(super) fn ids_of(path: &Path) -> Result<BTreeSet<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let ids: BTreeSet<String> =
        text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    anyhow::ensure!(!ids.is_empty(), "{} holds no id", path.display());
    Ok(ids)
}

/// A day, which begins in UTC, or an instant.
fn instant(text: Option<&str>) -> Result<Option<Timestamp>> {
    let Some(text) = text else { return Ok(None) };
    let day = || text.parse::<NaiveDate>().ok().map(|day| day.and_time(NaiveTime::MIN).and_utc());
    let Some(at) = DateTime::parse_from_rfc3339(text).ok().map(|at| at.with_timezone(&Utc)).or_else(day) else {
        bail!("`{text}` is no time such as 2026-11-01 or 2026-11-01T06:00:00Z");
    };
    let nanos = i32::try_from(at.timestamp_subsec_nanos()).unwrap_or_default();
    Ok(Some(Timestamp { seconds: at.timestamp(), nanos }))
}

impl From<proto::GetBackfillResponse> for Backfill {
    fn from(answer: proto::GetBackfillResponse) -> Self {
        let part = |of: proto::BackfillPart| Part {
            name: of.name,
            estimate: of.estimate,
            documents: of.documents,
            reached: of.reached,
            finished: of.finished,
        };
        Self {
            operation: answer.operation.unwrap_or_default().into(),
            types: answer.types,
            from: words::instant(answer.from),
            until: words::instant(answer.until),
            ids: answer.ids,
            parts: answer.parts.into_iter().map(part).collect(),
        }
    }
}

impl From<proto::BackfillOffer> for Offer {
    fn from(offer: proto::BackfillOffer) -> Self {
        let kind = if offer.kind() == proto::Kind::Unspecified { "" } else { words::kind(offer.kind) };
        let mut command = format!("lakectl backfill start {}", quoted(&offer.domain));
        if !kind.is_empty() {
            command += &format!(" --kind {kind}");
        }
        if !offer.r#type.is_empty() {
            command += &format!(" --type {}", quoted(&offer.r#type));
        }
        Self { command, since: words::instant(offer.since), domain: offer.domain, kind, r#type: offer.r#type }
    }
}

/// A name as a shell takes it; `PROJECT` where it is to be filled in.
fn quoted(name: &str) -> String {
    if name.is_empty() {
        return "PROJECT".into();
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if name.chars().all(plain) && !name.starts_with('-') {
        return name.to_owned();
    }
    format!("'{}'", name.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn times_are_days_or_instants() {
        let seconds = |text: &str| instant(Some(text)).unwrap().unwrap().seconds;
        assert_eq!(seconds("1970-01-02"), 86_400);
        assert_eq!(seconds("1970-01-02T01:00:00+01:00"), 86_400);
        assert!(instant(Some("yesterday")).unwrap_err().to_string().contains("2026-11-01"));
        assert_eq!(instant(None).unwrap(), None);
    }

    #[test]
    fn an_offer_is_a_command_to_copy() {
        let offer = |domain: &str, kind: proto::Kind, name: &str| {
            let (domain, r#type) = (domain.to_owned(), name.to_owned());
            Offer::from(proto::BackfillOffer { domain, kind: kind.into(), r#type, since: None }).command
        };
        assert_eq!(offer("demo", proto::Kind::Unspecified, ""), "lakectl backfill start demo");
        assert_eq!(
            offer("demo", proto::Kind::Case, "it's"),
            "lakectl backfill start demo --kind case --type 'it'\\''s'"
        );
        assert_eq!(offer("", proto::Kind::Form, "X"), "lakectl backfill start PROJECT --kind form --type X");
    }

    #[test]
    fn ids_come_from_a_file_each_once() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ids");
        std::fs::write(&file, "b\n\n a \nb\n").unwrap();
        assert_eq!(ids_of(&file).unwrap().into_iter().collect::<Vec<_>>(), ["a", "b"]);
        std::fs::write(&file, "\n").unwrap();
        assert!(ids_of(&file).is_err());
    }
}
