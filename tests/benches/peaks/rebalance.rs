//! A backlog on Kafka that cannot be worked on, as HQ's databases are down, and a rebalance of the group meanwhile.

use std::time::{Duration, Instant};

use lake_simulated_hq::turn::ChangeMessage;
use lake_tests::system::{GROUP, RealParts};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::json;

use super::words;

/// How long a fetcher may take to be full.
const FULL_AFTER: Duration = Duration::from_secs(10);
/// How long a second member stays in the group.
const MEMBER_FOR: Duration = Duration::from_secs(15);
/// How long the fetcher has to read what it should not.
const READS_FOR: Duration = Duration::from_secs(20);

/// So many messages of a kilobyte, about cases that HQ does not have.
pub fn backlog(messages: u64) -> Vec<ChangeMessage> {
    let padding = words::text(1, 850);
    let message = |number: u64| {
        let id = format!("absent-{number}");
        let value = json!({"document_id": id, "document_subtype": "person", "domain": "peaks", "padding": padding});
        ChangeMessage { topic: "case-sql", key: Some(id), value: value.to_string().into_bytes() }
    };
    (0..messages).map(message).collect()
}

/// Publishes the backlog while HQ is down, and lets another member join the group and leave it.
pub async fn while_paused(parts: &mut RealParts, backlog: &[ChangeMessage]) -> anyhow::Result<()> {
    parts.postgres.server().stop()?;
    parts.hq.kafka.publish(backlog).await?;
    tokio::time::sleep(FULL_AFTER).await;
    let bootstrap = parts.kafka.bootstrap();
    tokio::task::spawn_blocking(move || visit(&bootstrap)).await??;
    tokio::time::sleep(READS_FOR).await;
    Ok(())
}

/// Is a member of the fetchers' group for a while. It commits nothing.
fn visit(bootstrap: &str) -> anyhow::Result<()> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("group.id", GROUP)
        .set("partition.assignment.strategy", "roundrobin")
        .set("session.timeout.ms", "6000")
        .set("enable.auto.commit", "false")
        .create()?;
    consumer.subscribe(&["case-sql"])?;
    let until = Instant::now() + MEMBER_FOR;
    while Instant::now() < until {
        // Whether a message or an error: only that the group has another member matters.
        let _ = consumer.poll(Duration::from_millis(100));
    }
    consumer.unsubscribe();
    Ok(())
}
