//! HQ's change feed on a real Kafka: topics, and messages keyed and partitioned as HQ's producer does.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer};

use crate::turn::ChangeMessage;

/// The topics that the simulated HQ publishes on; a lake needs all but the last.
pub const TOPICS: [&str; 5] = ["case-sql", "form-sql", "location", "commcare-user", "web-user"];

/// How long one request to the brokers may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// HQ's producer.
#[derive(Clone)]
pub struct KafkaSink {
    producer: FutureProducer,
    config: ClientConfig,
}

impl std::fmt::Debug for KafkaSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KafkaSink").finish_non_exhaustive()
    }
}

impl KafkaSink {
    /// Makes a producer; brokers are connected to in the background. `properties` are more of librdkafka's, for example of security.
    ///
    /// # Errors
    ///
    /// When a property is unknown or does not go with others.
    pub fn new(bootstrap: &str, properties: &[(String, String)]) -> Result<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", bootstrap).set("client.id", "cchq-producer");
        for (name, value) in properties {
            config.set(name, value);
        }
        let mut producing = config.clone();
        producing
            // As kafka-python does: murmur2 of the key, any partition without a key.
            .set("partitioner", "murmur2_random")
            .set("acks", "all")
            .set("linger.ms", "5")
            .set("message.timeout.ms", "60000")
            // Retries must not reorder: disorder is the life's own business.
            .set("enable.idempotence", "true");
        let producer = producing.create().context("make a Kafka producer")?;
        Ok(Self { producer, config })
    }

    /// Waits for the brokers' answer once.
    ///
    /// # Errors
    ///
    /// When none answers in 5 seconds.
    pub async fn check(&self) -> Result<()> {
        let producer = self.producer.clone();
        // The client only has a blocking call for this.
        tokio::task::spawn_blocking(move || producer.client().fetch_metadata(None, Duration::from_secs(5)))
            .await
            .context("ask Kafka for its topics")?
            .context("ask Kafka for its topics")?;
        Ok(())
    }

    /// Creates those of [`TOPICS`] that are missing, each with so many partitions.
    ///
    /// # Errors
    ///
    /// When the brokers do not answer or refuse.
    pub async fn create_topics(&self, partitions: i32, replication: i32) -> Result<()> {
        let admin: AdminClient<DefaultClientContext> = self.config.create().context("make a Kafka admin client")?;
        let topics: Vec<NewTopic<'_>> =
            TOPICS.iter().map(|topic| NewTopic::new(topic, partitions, TopicReplication::Fixed(replication))).collect();
        let options =
            AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT)).operation_timeout(Some(REQUEST_TIMEOUT));
        for outcome in admin.create_topics(&topics, &options).await.context("create Kafka topics")? {
            match outcome {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => bail!("create the Kafka topic {topic}: {code}"),
            }
        }
        Ok(())
    }

    /// Publishes in this order. On return the brokers have acknowledged all.
    ///
    /// # Errors
    ///
    /// When a message was not acknowledged in a minute; others may be published.
    pub async fn publish(&self, messages: &[ChangeMessage]) -> Result<()> {
        let mut pending: VecDeque<DeliveryFuture> = VecDeque::new();
        for message in messages {
            let mut record: FutureRecord<'_, str, [u8]> = FutureRecord::to(message.topic).payload(&message.value);
            if let Some(key) = &message.key {
                record = record.key(key);
            }
            loop {
                match self.producer.send_result(record) {
                    Ok(delivery) => {
                        pending.push_back(delivery);
                        break;
                    }
                    Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                        record = back;
                        match pending.pop_front() {
                            Some(oldest) => delivered(oldest).await?,
                            // Filled by another call: it drains without us.
                            None => tokio::time::sleep(Duration::from_millis(5)).await,
                        }
                    }
                    Err((error, _)) => {
                        return Err(error).with_context(|| format!("publish to the topic {}", message.topic));
                    }
                }
            }
        }
        for delivery in pending {
            delivered(delivery).await?;
        }
        Ok(())
    }

    /// Waits until the brokers have acknowledged what was given to the producer, also by calls that were abandoned.
    ///
    /// # Errors
    ///
    /// When that takes more than 30 seconds.
    pub async fn flush(&self) -> Result<()> {
        let producer = self.producer.clone();
        tokio::task::spawn_blocking(move || producer.flush(REQUEST_TIMEOUT))
            .await
            .context("flush the Kafka producer")?
            .context("flush the Kafka producer")
    }
}

async fn delivered(delivery: DeliveryFuture) -> Result<()> {
    match delivery.await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err((error, _))) => Err(error).context("publish to Kafka"),
        Err(_) => Err(anyhow!("the Kafka producer was closed before it published all")),
    }
}
