//! A live view of the lake in the terminal: lag, rates, freshness, operations.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use console::Term;
use lake_proto::admin::v1 as proto;
use prost_types::Timestamp;

use super::PAGE_SIZE;
use crate::client::Clients;
use crate::command_line::Global;
use crate::exit;
use crate::view;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(2);

/// Looks between two at the tables, of which there may be thousands.
const TABLES_EVERY_LOOKS: u32 = 5;

/// Lines that the tables leave to everything else.
const OTHER_LINES: usize = 12;

/// Most operations that are shown.
const OPERATIONS: usize = 5;

/// What was seen at one look.
#[derive(Default)]
struct Look {
    status: proto::GetStatusResponse,
    pipeline: proto::GetPipelineResponse,
    operations: Vec<proto::Operation>,
    /// Those that were committed to last, newest first.
    tables: Vec<proto::Table>,
    at: Option<Instant>,
}

/// Shows the lake again and again; once, where standard output is no terminal.
///
/// # Errors
/// The writer cannot be asked.
pub(super) async fn run(global: &Global) -> Result<u8> {
    let mut clients = super::connect(global).await?;
    let terminal = Term::stdout();
    let (mut before, mut round) = (Look::default(), 0_u32);
    loop {
        let with_tables = round.is_multiple_of(TABLES_EVERY_LOOKS);
        let mut look = look(&mut clients, with_tables).await?;
        if !with_tables {
            look.tables = std::mem::take(&mut before.tables);
        }
        let (height, width) = terminal.size();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let text = screen(&look, &before, now, usize::from(height), usize::from(width));
        if !terminal.is_term() {
            crate::output::print(&text)?;
            return Ok(exit::DONE);
        }
        terminal.clear_screen()?;
        terminal.write_str(&text)?;
        (before, round) = (look, round.wrapping_add(1));
        tokio::time::sleep(EVERY).await;
    }
}

async fn look(clients: &mut Clients, with_tables: bool) -> Result<Look> {
    let status = clients.lake.get_status(proto::GetStatusRequest {}).await.context("get the status of the lake")?;
    let pipeline =
        clients.lake.get_pipeline(proto::GetPipelineRequest {}).await.context("get the state of the pipeline")?;
    let open = [proto::OperationState::Pending, proto::OperationState::Running].map(Into::into).into();
    let request = proto::ListOperationsRequest { states: open, page_size: 100, ..Default::default() };
    let operations = clients.operations.list_operations(request).await.context("list operations")?;
    let tables = if with_tables { newest(clients).await? } else { Vec::new() };
    Ok(Look {
        status: status.into_inner(),
        pipeline: pipeline.into_inner(),
        operations: operations.into_inner().operations,
        tables,
        at: Some(Instant::now()),
    })
}

/// The tables, those that were committed to last first.
async fn newest(clients: &mut Clients) -> Result<Vec<proto::Table>> {
    let mut tables = Vec::new();
    let mut request = proto::ListTablesRequest { page_size: PAGE_SIZE, ..Default::default() };
    loop {
        let page = clients.tables.list_tables(request.clone()).await.context("list tables")?.into_inner();
        tables.extend(page.tables);
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    tables.sort_by(|one, other| seconds(other.last_commit_at).total_cmp(&seconds(one.last_commit_at)));
    Ok(tables)
}

fn seconds(at: Option<Timestamp>) -> f64 {
    at.map_or(f64::NEG_INFINITY, |at| at.seconds as f64 + f64::from(at.nanos) / 1e9)
}

/// The text of a look, within so many lines and columns. Pure.
fn screen(look: &Look, before: &Look, now: f64, height: usize, width: usize) -> String {
    let mut lines = head(look, before);
    if !look.operations.is_empty() {
        lines.extend([String::new(), "OPERATIONS".into()]);
        lines.extend(look.operations.iter().take(OPERATIONS).map(|operation| {
            let shown = view::Operation::from(operation.clone());
            let total = shown.total().map_or_else(String::new, |total| format!(" of {total}"));
            format!(
                "  {:<18} {:<40} {:<8} {}{total} {}",
                shown.kind(),
                shown.target,
                shown.state,
                shown.done,
                shown.unit
            )
        }));
    }
    lines.extend([String::new(), format!("{:<48} {:>12} {:>12} {:>12}", "LAST COMMITS", "ROWS", "AGO", "BEHIND HQ")]);
    let room = height.saturating_sub(OTHER_LINES.max(lines.len())).max(3);
    lines.extend(look.tables.iter().take(room).map(|table| {
        let committed = seconds(table.last_commit_at);
        let behind = committed - seconds(table.newest_change_at);
        format!("  {:<46} {:>12} {:>12} {:>12}", table.name, table.rows, span(now - committed), span(behind))
    }));
    lines.iter().map(|line| cut(line, width) + "\n").collect()
}

fn head(look: &Look, before: &Look) -> Vec<String> {
    let Look { status, pipeline, .. } = look;
    let holder = status.holder.as_ref().map_or("no writer holds the lease", |holder| holder.name.as_str());
    let known = || pipeline.partitions.iter().filter_map(|partition| partition.lag);
    let lag = known().next().map_or_else(|| "unknown".to_owned(), |_| format!("{} messages", known().sum::<i64>()));
    let behind = pipeline.partitions.iter().filter_map(|partition| partition.lag_seconds).reduce(f64::max);
    let passed = look.at.zip(before.at).map(|(now, then)| now.saturating_duration_since(then).as_secs_f64());
    let of = |answer: &proto::GetPipelineResponse, name: &str| {
        answer.streams.iter().find(|stream| stream.name == name).map(|stream| (stream.published_total, stream.messages))
    };
    let rate = |name: &str| {
        let (now, then) = (of(pipeline, name)?.0, of(&before.pipeline, name)?.0);
        Some(format!("{:.1}/s", (now - then).max(0) as f64 / passed?.max(1e-3)))
    };
    let rate = |name| rate(name).unwrap_or_else(|| "–".into());
    let waits = ["LAKE_RECORDS", "LAKE_ROWS"].iter().filter_map(|name| of(pipeline, name)).map(|(_, held)| held);
    let alive = |service: &str| pipeline.replicas.iter().filter(|replica| replica.service == service).count();
    let rows = status.ingest.as_ref().map_or_else(|| "–".to_owned(), |ingest| ingest.rows_waiting.to_string());
    let quarantined: i64 = status.quarantined.iter().map(|reason| reason.entries).sum();
    let mut lines = vec![
        format!("CommCare Lake · {holder} · {} tables", status.tables),
        format!("lag        {lag}, {} behind HQ", behind.map_or_else(|| "–".into(), span)),
        format!("batches    records {}, rows {}", rate("LAKE_RECORDS"), rate("LAKE_ROWS")),
        format!("waiting    {} batches on the queue, {rows} rows for their commit", waits.sum::<i64>()),
        format!(
            "processes  {} fetchers, {} enrichers, {} writers",
            alive("fetcher"),
            alive("enricher"),
            alive("writer")
        ),
        format!("quarantine {quarantined}"),
    ];
    let held_back =
        pipeline.replicas.iter().filter(|replica| replica.paces.iter().any(|pace| pace.held_back_since.is_some()));
    let held_back = held_back.count();
    if held_back > 0 {
        lines.push(format!("SLOW HQ    {held_back} fetchers ask it less at once: lakectl lake pipeline"));
    }
    let failing = status.ingest.iter().flat_map(|ingest| &ingest.failing).count();
    if failing > 0 {
        lines.push(format!("FAILING    {failing} projects cannot be committed: lakectl lake status"));
    }
    if !status.pauses.is_empty() {
        lines.push(format!("PAUSED     {}: lakectl lake status", status.pauses.len()));
    }
    lines
}

/// A time in the largest unit of which it has at least two.
fn span(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "–".into();
    }
    let units = [("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)];
    let unit = units.into_iter().find(|(_, length)| seconds >= 2.0 * length);
    unit.map_or_else(
        || format!("{:.1} s", seconds.max(0.0)),
        |(unit, length)| format!("{:.0} {unit}", (seconds / length).floor()),
    )
}

/// The beginning of a line that fits; control characters, which could change the terminal, are left out.
fn cut(line: &str, width: usize) -> String {
    line.chars().filter(|letter| !letter.is_control()).take(width.max(20)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<Timestamp> {
        Some(Timestamp { seconds, nanos: 0 })
    }

    fn look_at(published_total: i64, at: Instant) -> Look {
        let stream =
            |name: &str| proto::QueueStream { name: name.into(), messages: 2, published_total, ..Default::default() };
        let partition = |lag| proto::FeedPartition { lag, lag_seconds: Some(130.0), ..Default::default() };
        let table = |name: &str, commit| proto::Table {
            name: name.into(),
            rows: 7,
            last_commit_at: self::at(commit),
            newest_change_at: self::at(commit - 3),
            ..Default::default()
        };
        let pace = proto::SourcePace { source: "database".into(), held_back_since: self::at(5), ..Default::default() };
        Look {
            status: proto::GetStatusResponse { tables: 2, ..Default::default() },
            pipeline: proto::GetPipelineResponse {
                partitions: vec![partition(Some(3)), partition(Some(4)), partition(None)],
                streams: vec![stream("LAKE_RECORDS"), stream("LAKE_ROWS")],
                replicas: vec![proto::Replica { service: "fetcher".into(), paces: vec![pace], ..Default::default() }],
            },
            operations: Vec::new(),
            tables: vec![table("new\u{1b}[31m", 100), table("old", 10)],
            at: Some(at),
        }
    }

    #[test]
    fn a_look_tells_lag_rates_and_freshness() {
        let start = Instant::now();
        let (before, now) = (look_at(10, start), look_at(30, start + Duration::from_secs(2)));
        let text = screen(&now, &before, 110.0, 40, 200);
        for told in [
            "7 messages, 2 min behind HQ",
            "SLOW HQ    1 fetchers",
            "records 10.0/s",
            "4 batches",
            "1 fetchers",
            "no writer holds the lease",
        ] {
            assert!(text.contains(told), "{told} is not in\n{text}");
        }
        let newest = text.lines().find(|line| line.contains("new")).unwrap_or_default();
        assert!(newest.ends_with("10.0 s        3.0 s") && !text.contains('\u{1b}'), "{newest}");
        let first = screen(&now, &Look::default(), 110.0, 40, 200);
        assert!(first.contains("records –"), "no rate before the second look\n{first}");
    }

    #[test]
    fn it_fits_into_the_terminal() {
        let many = Look { tables: vec![proto::Table::default(); 500], ..Look::default() };
        let text = screen(&many, &Look::default(), 0.0, 24, 30);
        assert!(text.lines().count() <= 24 && text.lines().all(|line| line.chars().count() <= 30), "{text}");
    }
}
