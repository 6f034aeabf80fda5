//! What the command `hq-sim` does.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::command_line::{Blobs, Command, Create, Creation, LifeArguments, Parts, Serving};
use crate::expectation::ExpectationOptions;
use crate::kafka::KafkaSink;
use crate::life::Life;
use crate::patience::persist;
use crate::play::{Pace, Progress, RealHq};
use crate::postgres::PostgresSink;
use crate::users::{UserDocuments, UserServer};

/// Time between two lines about the progress.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Runs the command.
///
/// # Errors
///
/// When options do not fit together, or a part fails for longer than the options allow.
pub async fn run(command: Command) -> Result<()> {
    match command {
        Command::Create(Create { parts, creation }) => create(&parts, &creation).await.map(drop),
        Command::Play(play) => {
            let pace = Pace {
                changes: play.changes.unwrap_or(u64::MAX),
                rate_per_second: Some(play.rate),
                turns_per_group_max: 100,
                account: None,
            };
            live(&play.parts, &play.blobs, &play.creation, &play.life, &play.serving, pace).await.map(drop)
        }
        Command::Load(load) => {
            let pace = Pace {
                changes: load.changes,
                rate_per_second: load.rate,
                turns_per_group_max: load.group.max(1),
                account: None,
            };
            let done = live(&load.parts, &load.blobs, &load.creation, &load.life, &load.serving, pace).await?;
            print_rate(&done)
        }
    }
}

/// Waits for Postgres and Kafka to come up, and creates what is missing in them.
async fn create(parts: &Parts, creation: &Creation) -> Result<(PostgresSink, KafkaSink)> {
    let shards = parts.shards()?;
    let kafka = parts.kafka()?;
    if creation.create_databases {
        for url in std::iter::once(&parts.main_url).chain(shards.iter().map(|(.., url)| url)) {
            persist("create databases", parts.patience(), async || create_database(url).await).await?;
        }
    }
    let connect = async || PostgresSink::connect(&parts.main_url, shards.clone()).await;
    let postgres = persist("connect to Postgres", parts.patience(), connect).await?;
    persist("create HQ's tables", parts.patience(), async || postgres.create_schema().await).await?;
    persist("connect to Kafka", parts.patience(), async || kafka.check().await).await?;
    let topics = async || kafka.create_topics(creation.partitions, creation.replication).await;
    persist("create HQ's topics", parts.patience(), topics).await?;
    info!("tables and topics are there");
    Ok((postgres, kafka))
}

async fn create_database(url: &str) -> Result<()> {
    let options: PgConnectOptions = url.parse().context("the address is no postgres:// URL")?;
    let name = options.get_database().context("the address of a database names none")?.to_owned();
    let mut server =
        PgConnection::connect_with(&options.database("postgres")).await.context("connect to the database postgres")?;
    let known: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(&name)
        .fetch_one(&mut server)
        .await
        .context("look for a database")?;
    if !known {
        let statement = format!("create database \"{}\"", name.replace('"', "\"\""));
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut server)
            .await
            .with_context(|| format!("create the database {name}"))?;
    }
    server.close().await.context("close the connection to the database postgres")
}

/// From the opening (or from where an earlier run was) to the end, and what is asked for after that.
async fn live(
    parts: &Parts,
    blobs: &Blobs,
    creation: &Creation,
    kind: &LifeArguments,
    serving: &Serving,
    pace: Pace,
) -> Result<Progress> {
    let stop = stop_signal()?;
    let (users, _) = UserServer::start_on(serving.users_listen, UserDocuments::default()).await?;
    let (postgres, kafka) = tokio::select! {
        created = create(parts, creation) => created?,
        () = signalled(&stop) => bail!("told to end before the parts were there"),
    };
    let documents = users.documents().clone();
    let hq = RealHq { postgres, blobs: blobs.sink()?, users: documents, kafka, patience: parts.patience() };
    let mut life = Life::new(kind.options());
    let account = kind.account();
    open(&hq, &mut life, &account).await?;

    let pace = Pace { account: Some(account), ..pace };
    let mut reported = Instant::now();
    let done = hq.play(&mut life, &pace, |progress| {
        if reported.elapsed() >= REPORT_INTERVAL {
            reported = Instant::now();
            info!(changes = progress.changes, mutations = progress.mutations, rate = progress.rate(), "playing");
        }
        if stop.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let done = done.await?;
    hq.apply(&life.settle()).await?;
    info!(changes = done.changes, mutations = done.mutations, rate = done.rate(), "played");
    if let Some(folder) = &serving.expectation {
        std::fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))?;
        let options = ExpectationOptions { place_slack_turns: serving.place_slack_turns };
        life.write_expectation(folder, &options).context("write the expectation")?;
        info!(folder = %folder.display(), "expectation written");
    }
    if serving.keep_running && !stop.load(Ordering::Relaxed) {
        info!("serving users until a signal comes");
        signalled(&stop).await;
    }
    Ok(done)
}

/// Begins the life, or goes to where it was left.
async fn open(hq: &RealHq, life: &mut Life, account: &str) -> Result<()> {
    let opening = life.opening();
    match hq.postgres.turns(account).await? {
        None => {
            hq.apply(&opening).await?;
            hq.postgres.add_turns(account, 0).await
        }
        Some(turns) => {
            info!(turns, "resuming the life that these databases know");
            hq.users.apply(&opening.mutations);
            hq.resume(life, turns);
            Ok(())
        }
    }
}

fn print_rate(done: &Progress) -> Result<()> {
    let summary = serde_json::json!({
        "turns": done.turns,
        "changes": done.changes,
        "mutations": done.mutations,
        "messages": done.messages,
        "seconds": done.elapsed.as_secs_f64(),
        "changes_per_second": done.rate(),
    });
    // The summary is the command's result, so it goes to standard output, apart from the log.
    use std::io::Write;
    writeln!(std::io::stdout(), "{summary}").context("print the rate")
}

/// Becomes true at the first signal to end; the second ends at once.
fn stop_signal() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt()).context("listen for signals")?,
        signal(SignalKind::terminate()).context("listen for signals")?,
    );
    let seen = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! { _ = interrupt.recv() => {} _ = terminate.recv() => {} }
            if seen.swap(true, Ordering::Relaxed) {
                warn!("ending at once");
                std::process::exit(1);
            }
            info!("ending after what is being done");
        }
    });
    Ok(stop)
}

async fn signalled(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
