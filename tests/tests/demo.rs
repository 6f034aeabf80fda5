//! The demo as a newcomer runs it, and `lake xform`.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::process::Command;
use std::time::Duration;

use lake_tests::invocation::run;
use lake_tests::parts::{Launch, parts_dir, wait_until};

/// A demo that takes seconds.
const CHANGES: &str = "1500";

#[test]
fn the_demo_can_be_repeated_and_its_lines_open_a_table() {
    let folder = tempfile::tempdir().unwrap();
    let tables = folder.path().join("demo");
    let arguments = ["demo", "--changes", CHANGES, "--folder", tables.to_str().unwrap()];
    for _ in 0..2 {
        let outcome = run("lake", &arguments, &[]).unwrap();
        assert_eq!(outcome.code, Some(0), "{}{}", outcome.stdout, outcome.stderr);
        assert!(outcome.stdout.contains("Ended cleanly"), "{}", outcome.stdout);
        assert!(outcome.stdout.contains("Register household"), "names of forms: {}", outcome.stdout);
        let line =
            outcome.stdout.lines().map(str::trim).find(|line| line.contains("import polars")).unwrap().to_owned();
        let python = parts_dir().unwrap().join("python/bin");
        let path = format!("{}:{}", python.display(), std::env::var("PATH").unwrap());
        let opened = Command::new("sh").args(["-c", &line]).env("PATH", path).output().unwrap();
        let shown = String::from_utf8_lossy(&opened.stdout).into_owned();
        assert!(opened.status.success(), "{}", String::from_utf8_lossy(&opened.stderr));
        assert!(shown.contains("shape: (") && shown.contains("_id"), "{shown}");
    }
}

#[test]
fn a_folder_with_something_else_in_it_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.txt"), "years of work").unwrap();
    let outcome = run("lake", &["demo", "--folder", folder.path().to_str().unwrap()], &[]).unwrap();
    assert_eq!(outcome.code, Some(1));
    assert!(outcome.stderr.contains("--folder"), "{}", outcome.stderr);
    assert!(folder.path().join("thesis.txt").exists());
}

#[tokio::test]
async fn a_demo_that_keeps_running_ends_when_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Launch::new("lake").args(["demo", "--keep-running", "--changes", CHANGES, "--folder"]);
    let mut service = demo.arg(folder.path().join("demo")).start().unwrap();
    wait_until("the programme goes on", Duration::from_secs(60), async || Ok(service.log().contains("goes on")))
        .await
        .unwrap();
    assert!(service.terminate().unwrap().success(), "{}", service.log());
    assert!(service.log().contains("Ended cleanly"), "{}", service.log());
}

#[test]
fn xform_shows_one_line_for_each_file() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) = (folder.path().join("good.xml"), folder.path().join("bad.xml"));
    std::fs::write(&good, "<data xmlns=\"http://example.org/f\"><a>1</a></data>").unwrap();
    std::fs::write(&bad, "<data><a></data>").unwrap();
    let outcome = run("lake", &["xform", good.to_str().unwrap(), bad.to_str().unwrap(), "/nowhere.xml"], &[]).unwrap();
    assert_eq!(outcome.code, Some(1));
    let lines: Vec<serde_json::Value> =
        outcome.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["form"]["a"], "1");
    assert!(lines[1]["error"].is_string() && lines[2]["error"].is_string());
}
