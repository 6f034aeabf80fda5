//! A service that cannot drain leaves at once when it is told a second time.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use lake_tests::parts::{Launch, Nats, Port, Postgres, wait_until};

/// Exit code after the second signal: 128 + SIGINT, as shells have it.
const LEFT_AT_ONCE: i32 = 130;

#[tokio::test]
async fn a_second_signal_does_not_wait_for_the_drain() {
    let (postgres, nats) = (Postgres::start().unwrap(), Nats::start().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let port = Port::free().unwrap();
    let config = folder.path().join("writer.toml");
    let text = format!(
        "[telemetry]\nhttp_address = \"127.0.0.1:{}\"\n[queue]\nservers = [\"{}\"]\n\
         stream_size_bytes_max = 67108864\nquarantine_size_bytes_max = 67108864\n[store]\nroot = \"{}\"\n[metastore]\nurl = \"{}\"\n",
        port.number(),
        nats.url(),
        folder.path().join("tables").display(),
        postgres.create_database("metastore").unwrap()
    );
    std::fs::write(&config, text).unwrap();
    let mut writer = Launch::new("writer").args(["serve", "--config"]).arg(&config).start().unwrap();
    writer.wait_ready(&format!("http://127.0.0.1:{}/ready", port.number()), Duration::from_secs(60)).await.unwrap();

    // A request that is never finished keeps the service from ending in good order.
    let mut client = TcpStream::connect(("127.0.0.1", port.number())).unwrap();
    client.write_all(b"GET /live HTTP/1.1\r\nHost: lake\r\n").unwrap();
    let id = writer.process().id().unwrap().to_string();
    assert!(Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
    wait_until("the writer drains", Duration::from_secs(10), async || Ok(writer.log().contains("signal again")))
        .await
        .unwrap();
    assert!(writer.process().exit_status().unwrap().is_none(), "it is still draining");
    let status = writer.process().terminate_within(Duration::from_secs(5)).unwrap();
    assert_eq!(status.code(), Some(LEFT_AT_ONCE), "{}", writer.log());
    drop(client);
}
