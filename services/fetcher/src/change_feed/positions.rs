//! Where a consumer group begins to read, and what is said when Kafka does not have its position any more.
//!
//! Kafka's own setting for this, `auto.offset.reset`, is applied whenever a position is missing: to new groups, but also to partitions that
//! were added, partitions that were quiet so far, and positions that retention or a new topic has taken away. So it is always `earliest`,
//! and `start_from = "latest"` is resolved once, before the first fetcher of a new group joins it, into offsets that are committed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lake_shared::retry::{Backoff, milliseconds};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::types::RDKafkaRespErr;
use serde::Deserialize;

use super::group_member::GroupMember;
use super::offsets::{Gone, Start};
use super::spark_checkpoint::Positions;
use crate::metric_names;

/// Longest time for one answer of the brokers while a group is prepared.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Longest time for the committed offsets of an assignment; polling stands still meanwhile.
const COMMITTED_WITHIN: Duration = Duration::from_secs(10);

/// Where a new consumer group begins.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum StartFrom {
    /// With everything that Kafka still holds.
    #[default]
    Earliest,
    /// With what comes from now on.
    Latest,
}

/// A consumer group before this process joins it.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// Its name.
    pub(super) id: String,
    /// What it reads.
    pub(super) topics: Vec<String>,
    /// Where it begins if it is new.
    pub(super) start_from: StartFrom,
    /// Whether the lake has taken records before. Then a group that has committed nothing is not new: it has lost its positions.
    pub(super) lake_has_records: bool,
}

/// Resolves where a new group begins. Waits for brokers that do not answer.
pub(super) async fn prepare<C: ConsumerContext + 'static>(consumer: Arc<GroupMember<StreamConsumer<C>>>, group: Group) {
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
    loop {
        let (asked, asking) = (Arc::clone(&consumer), group.clone());
        let error = match tokio::task::spawn_blocking(move || prepare_once(&**asked, &asking)).await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error.to_string(),
            Err(panicked) => panicked.to_string(),
        };
        let wait = backoff.next_wait();
        let wait_ms = milliseconds(wait);
        tracing::warn!(
            error,
            group = group.id,
            wait_ms,
            "the group's positions cannot be read now; will be tried again"
        );
        tokio::time::sleep(wait).await;
    }
}

fn prepare_once<C: ConsumerContext>(consumer: &impl Consumer<C>, group: &Group) -> KafkaResult<()> {
    let partitions = partitions(consumer, &group.topics)?;
    if partitions.count() == 0 || has_committed(consumer, partitions.clone())? {
        return Ok(());
    }
    if group.lake_has_records {
        tell_lost(group, &partitions);
        return Ok(());
    }
    match group.start_from {
        StartFrom::Earliest => Ok(()),
        StartFrom::Latest => begin_at_the_end(consumer, group, &partitions),
    }
}

/// All partitions of those topics that exist.
fn partitions<C: ConsumerContext>(consumer: &impl Consumer<C>, topics: &[String]) -> KafkaResult<TopicPartitionList> {
    let mut partitions = TopicPartitionList::new();
    for name in topics {
        let metadata = consumer.fetch_metadata(Some(name), ANSWER_WITHIN)?;
        for topic in metadata.topics() {
            match topic.error() {
                None => topic.partitions().iter().for_each(|partition| {
                    partitions.add_partition(topic.name(), partition.id());
                }),
                // It begins with its first message when it is made.
                Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) => {}
                Some(error) => return Err(KafkaError::MetadataFetch(error.into())),
            }
        }
    }
    Ok(partitions)
}

fn has_committed<C: ConsumerContext>(consumer: &impl Consumer<C>, partitions: TopicPartitionList) -> KafkaResult<bool> {
    let committed = consumer.committed_offsets(partitions, ANSWER_WITHIN)?;
    for element in committed.elements() {
        element.error()?;
        if matches!(element.offset(), Offset::Offset(_)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Commits the ends of all partitions. The broker takes this only while the group has no member, so no position that a member has
/// reached is overwritten: of fetchers that start together, each reads what was committed last before the first of them joined.
fn begin_at_the_end<C: ConsumerContext>(
    consumer: &impl Consumer<C>,
    group: &Group,
    partitions: &TopicPartitionList,
) -> KafkaResult<()> {
    let mut ends = TopicPartitionList::new();
    for element in partitions.elements() {
        let (_, end) = consumer.fetch_watermarks(element.topic(), element.partition(), ANSWER_WITHIN)?;
        ends.add_partition_offset(element.topic(), element.partition(), Offset::Offset(end))?;
    }
    match consumer.commit(&ends, CommitMode::Sync) {
        Ok(()) => {
            tracing::info!(group = group.id, partitions = ends.count(), "a new group: it reads what comes from now on");
            Ok(())
        }
        Err(error) if has_members(&error) => {
            tracing::info!(%error, group = group.id, "the group has members already; it begins where they do");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Commits positions for a new group without members; see [`super::kafka::begin_at`].
pub(super) fn begin_at<C: ConsumerContext>(
    consumer: &impl Consumer<C>,
    group: &str,
    topics: &[&str],
    wanted: &Positions,
) -> anyhow::Result<Positions> {
    let strange = wanted.keys().find(|(topic, _)| !topics.contains(&topic.as_str()));
    if let Some((topic, _)) = strange {
        bail!("fetchers do not read topic {topic}, but {}; give the checkpoints of those alone", topics.join(", "));
    }
    let (mut list, mut gone) = (TopicPartitionList::new(), Positions::new());
    for ((topic, partition), &offset) in wanted {
        let place = || format!("partition {partition} of topic {topic}");
        let ends = consumer.fetch_watermarks(topic, *partition, ANSWER_WITHIN);
        let (low, high) = ends.with_context(|| format!("read what Kafka holds of {}", place()))?;
        ensure!(
            offset <= high,
            "{} ends at {high}, before {offset} where the Spark job stood: the topic was made anew, or it is another Kafka",
            place()
        );
        if offset < low {
            gone.insert((topic.clone(), *partition), low - offset);
        }
        list.add_partition_offset(topic, *partition, Offset::Offset(offset))?;
    }
    let read = topics.iter().map(|&topic| topic.to_owned()).collect::<Vec<_>>();
    let committed = partitions(consumer, &read).and_then(|all| has_committed(consumer, all));
    let committed = committed.with_context(|| format!("read where group {group} stands"))?;
    ensure!(!committed, "group {group} has positions already; give kafka.group_id a new name");
    match consumer.commit(&list, CommitMode::Sync) {
        Ok(()) => Ok(gone),
        Err(error) if has_members(&error) => bail!("group {group} has members ({error}); stop the fetchers first"),
        Err(error) => Err(error).with_context(|| format!("commit where group {group} is to begin")),
    }
}

fn has_members(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::RebalanceInProgress
        )
    )
}

/// Finds where assigned partitions begin, and writes it into the assignment. What cannot be found out now is left to the client.
pub(super) fn starts<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    assigned: &TopicPartitionList,
) -> Vec<(String, i32, Start)> {
    let committed = consumer.committed_offsets(assigned.clone(), COMMITTED_WITHIN).unwrap_or_else(|error| {
        tracing::warn!(%error, "the group's offsets cannot be read now; the client reads them later");
        TopicPartitionList::new()
    });
    let start = |topic: &str, partition| match committed.find_partition(topic, partition) {
        Some(found) if found.error().is_ok() => match found.offset() {
            Offset::Offset(offset) => Start::Committed(offset),
            _ => Start::Beginning,
        },
        _ => Start::Unknown,
    };
    let mut starts = Vec::new();
    for mut element in assigned.elements() {
        let start = start(element.topic(), element.partition());
        let set = match start {
            Start::Committed(offset) => element.set_offset(Offset::Offset(offset)),
            Start::Beginning => element.set_offset(Offset::Beginning),
            Start::Unknown => Ok(()),
        };
        if let Err(error) = set {
            // Without an offset the client asks for the committed one by itself.
            tracing::warn!(%error, topic = element.topic(), partition = element.partition(), "cannot set a start");
        }
        starts.push((element.topic().to_owned(), element.partition(), start));
    }
    starts
}

/// Says that a log does not have the wanted position any more.
pub(super) fn tell_gone(topic: &str, partition: i32, gone: Gone) {
    let Gone { wanted, low, high } = gone;
    let advice = if high < wanted {
        "Kafka's log ends before the position that was to be read: its topic was made anew or cut. It is read from its beginning; have HQ \
         publish again what the old log held and the lake does not show"
    } else {
        "Kafka has deleted messages before they were read: its retention is shorter than the lake was behind. Reading goes on with the \
         earliest that is there; have HQ publish the records of the time between again"
    };
    tracing::error!(topic, partition, wanted, first = low, end = high, "a position is gone: {advice}");
    count_gone(topic);
}

/// Says that the offsets of a partition began anew without a rebalance.
pub(super) fn tell_back(topic: &str, partition: i32, wanted: i64, found: i64) {
    let advice = "its topic was made anew or cut. It is read from there on; have HQ publish again what the old log held and the lake does \
                  not show";
    tracing::error!(topic, partition, wanted, found, "a position is gone: Kafka's log went backwards: {advice}");
    count_gone(topic);
}

/// Says that nothing is committed any more for a partition that this process had before.
pub(super) fn tell_uncommitted(topic: &str, partition: i32, wanted: i64) {
    let advice = "what the group has committed for it was deleted, as when its topic is made anew. It is read from its beginning; have HQ \
                  publish again what an old log held and the lake does not show";
    tracing::error!(topic, partition, wanted, "a position is gone: {advice}");
    count_gone(topic);
}

fn count_gone(topic: &str) {
    metrics::counter!(metric_names::POSITIONS_GONE_TOTAL, "topic" => topic.to_owned()).increment(1);
}

/// Says that a group that read before has no offset left.
fn tell_lost(group: &Group, partitions: &TopicPartitionList) {
    let advice = "they expired, as no fetcher ran for longer than the brokers' offsets.retention.minutes, were deleted, or the group is \
                  another one than before. Everything that Kafka still holds is read again";
    let count = partitions.count();
    tracing::error!(group = group.id, partitions = count, "all positions of the group are gone: {advice}");
    for element in partitions.elements() {
        count_gone(element.topic());
    }
}
