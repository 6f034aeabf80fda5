//! The page for people, looked at in a real browser on a phone's width and on a desktop's, with thousands of tables.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use lake_shared::identity::{Kind, Space, TableKey};
use lake_tests::parts::{Nats, Port, Postgres};
use lake_tests::system::Running;
use lake_writer::metastore::postgres::PostgresMetastore;
use lake_writer::metastore::steering::Steering;
use lake_writer::metastore::{Metastore, NewTable, RecordedState};

/// So many tables a lake may have.
const TABLES: usize = 5_000;

/// Headless Chromium, without what it would look for on the internet.
fn chromium(profile: &Path, arguments: &[&str]) -> Vec<u8> {
    let program = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()));
    let program = program.expect("no Chromium is installed: run tests/set-up");
    let output = Command::new(program)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"])
        .args(["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", profile.display()))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

async fn register(metastore: &PostgresMetastore) {
    let key = |number: usize| TableKey {
        space: Space { domain: format!("project-{}", number % 50).into(), kind: Kind::Case },
        document_type: format!("type {number}").into(),
    };
    let new = |number| {
        let path = format!("p/{number}");
        NewTable { key: key(number), location: format!("file:///{path}"), path, suffix: String::new() }
    };
    let tables: Vec<NewTable> = (0..TABLES).map(new).collect();
    for some in tables.chunks(500) {
        metastore.register_tables(some).await.unwrap();
    }
    let state = |number: usize| RecordedState {
        version: Some(number as i64),
        rows: number as i64 * 1_000,
        files: 3,
        bytes: 5 << 20,
        newest_published_us: Some(chrono::Utc::now().timestamp_micros() - 300_000_000),
        ..RecordedState::default()
    };
    let states: Vec<_> = (0..TABLES).map(|number| (key(number), state(number))).collect();
    for some in states.chunks(500) {
        metastore.record_commits(some).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_the_lake_in_a_browser() {
    let (postgres, nats) = (Postgres::start().unwrap(), Nats::start().unwrap());
    let metastore = PostgresMetastore::new(&postgres.create_database("metastore").unwrap().into(), 2).unwrap();
    metastore.migrate().await.unwrap();
    register(&metastore).await;
    let hostile = "<img src=x onerror=document.title='stolen'>";
    let space = Space { domain: "project-1".into(), kind: Kind::Case };
    metastore.pause(Some(&space), "ann", hostile).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("lake")).unwrap();
    let port = Port::free().unwrap();
    let config = format!(
        "[queue]\nservers = [\"{}\"]\nstream_size_bytes_max = 67108864\nquarantine_size_bytes_max = 67108864\n\
         [store]\nroot = \"{}\"\nsync = false\n[metastore]\nurl = \"{}\"\n[tables]\nstart_without_tables = true\n\
         [admin]\naddress = \"127.0.0.1:{}\"\n",
        nats.url(),
        folder.path().join("lake").display(),
        postgres.url("metastore"),
        port.number(),
    );
    let mut writer = Running::start("writer", "w", &config, Vec::new(), folder.path()).await.unwrap();
    let url = format!("{}/", writer.url());
    let profile = folder.path().join("profile");

    // What the page has become after its scripts have run.
    let began = Instant::now();
    let shown = chromium(&profile, &["--virtual-time-budget=8000", "--dump-dom", &url]);
    println!("{TABLES} tables: shown after {:.1} s", began.elapsed().as_secs_f64());
    let shown = String::from_utf8(shown).unwrap();
    let holds = |text: &str| assert!(shown.contains(text), "{text} is not in {shown}");
    holds("paused: project-1/case-sql");
    holds("100 shown of 5,000 in all");
    holds("project_0_case_sql_type_0");
    holds("lakectl lake resume --domain project-1 --kind case");
    holds("5.0 MiB");
    holds("5 min ago");
    holds("&lt;img src=x");
    assert!(!shown.contains("<img") && !shown.contains("<title>stolen"), "a reason is no markup");
    for needed in ["lang=\"en\"", "role=\"status\"", "scope=\"col\"", "<label for=\"contains\"", "name=\"viewport\""] {
        holds(needed);
    }

    // Pictures for people who look at this change, on a phone and on a desktop.
    let pictures = pictures();
    for (name, size) in [("phone", "390,844"), ("desktop", "1280,900")] {
        let file = pictures.join(format!("status_page_{name}.png"));
        let (screenshot, size) = (format!("--screenshot={}", file.display()), format!("--window-size={size}"));
        chromium(&profile, &["--virtual-time-budget=8000", &size, &screenshot, &url]);
        assert!(std::fs::metadata(&file).unwrap().len() > 10_000, "{} shows nothing", file.display());
        println!("{}", file.display());
    }
    writer.end().unwrap();
}

/// Where pictures are kept: beside what is built.
fn pictures() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}
