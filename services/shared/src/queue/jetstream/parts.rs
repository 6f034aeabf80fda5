//! Messages that are larger than the server takes: cut into parts, which lie in a stream of their own beside the queue, and put together again
//! before they are handed out.
//!
//! The queue itself gets one small message that names the parts, when all of them are stored. So a consumer gets all of a message or nothing, whoever
//! else publishes or reads, and parts neither count as in flight nor hold up anything. Each try to publish has parts of its own. They are dropped when
//! the server has confirmed the acknowledgement of the message that names them. What a publisher leaves that is killed in between is dropped
//! later: see `abandoned_parts.rs`.

use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishErrorKind;
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::{DirectGetErrorKind, RawMessageErrorKind};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::time::{Instant, timeout};

use super::connection::Connection;
use super::header_value;
use super::server_stream::ServerStream;
use crate::error_chain::Chain;
use crate::queue::{Message, Receipt, Stream};
use crate::wire;

/// Header of a message that names the parts of its payload.
const HEADER: &str = "Lake-Parts";
/// Parts of one message that are on their way to the server at the same time.
const SENT_AT_ONCE: usize = 4;

/// The parts of one message, as the message that names them says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PartList {
    stream: Stream,
    /// Random and without a dot.
    key: String,
    count: usize,
    /// Bytes of all parts together.
    size: usize,
}

impl PartList {
    fn new(stream: Stream, size: usize, part_size: usize) -> Self {
        let key = uuid::Uuid::new_v4().simple().to_string();
        Self { stream, key, count: size.div_ceil(part_size), size }
    }

    /// What the headers of a message name: nothing where it holds its payload itself.
    pub(super) fn of(stream: Stream, headers: Option<&HeaderMap>) -> Option<Self> {
        let value = headers?.get(HEADER)?.as_str().to_owned();
        let mut fields = value.split('/');
        let key = fields.next().filter(|key| !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        let (count, size) =
            (fields.next().and_then(|count| count.parse().ok()), fields.next().map(str::parse::<usize>));
        match (key, count, size) {
            (Some(key), Some(count), Some(Ok(size))) => Some(Self { stream, key: key.to_owned(), count, size }),
            // Not ours: without parts, so that it is found to be unreadable.
            _ => Some(Self { stream, key: "unreadable".into(), count: 0, size: usize::MAX }),
        }
    }

    fn header(&self) -> String {
        format!("{}/{}/{}", self.key, self.count, self.size)
    }

    fn subject(&self, part: impl std::fmt::Display) -> String {
        let all = ServerStream::Parts(self.stream).subjects().trim_end_matches('>');
        format!("{all}{}.{part}", self.key)
    }
}

impl std::fmt::Display for PartList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} parts of {} bytes, {}", self.count, self.size, self.subject("*"))
    }
}

/// Stores the parts of a message and then the message that names them, within this time. What is stored in vain is dropped.
///
/// # Errors
/// What prevents it now; trying again is safe.
pub(super) async fn publish(
    connection: &Connection,
    stream: Stream,
    message: Message,
    part_size: usize,
    within: Duration,
) -> Result<(), String> {
    let list = PartList::new(stream, message.payload.len(), part_size);
    let began = Instant::now();
    let (stored, may_be_named) =
        match timeout(within, store_parts(connection, &list, &message.payload, part_size)).await {
            // A process that was suspended here must not name parts that may have been dropped meanwhile.
            Ok(Ok(())) if began.elapsed() < within => store_naming(connection, &list, message).await,
            Ok(Ok(())) | Err(_) => (Err(format!("its parts are not stored within {} s", within.as_secs())), false),
            Ok(Err(reason)) => (Err(reason), false),
        };
    if !may_be_named {
        drop_parts(&connection.context, &list).await;
    }
    stored
}

async fn store_parts(
    connection: &Connection,
    list: &PartList,
    payload: &Bytes,
    part_size: usize,
) -> Result<(), String> {
    let parts = (0..list.count).map(|number| {
        let part = payload.slice(number * part_size..payload.len().min((number + 1) * part_size));
        let publish = PublishMessage::build().payload(part);
        async move {
            connection.connected().await;
            let sent = connection.context.send_publish(list.subject(number), publish).await;
            let stored = match sent {
                Ok(stored) => stored.await.map(drop),
                Err(error) => Err(error),
            };
            stored.map_err(|error| format!("part {number} of {}: {}", list.count, Chain(&error)))
        }
    });
    futures::stream::iter(parts).buffer_unordered(SENT_AT_ONCE).try_collect::<()>().await
}

/// Queues the message that names the parts. Also answers whether such a message may be in the queue now.
async fn store_naming(connection: &Connection, list: &PartList, message: Message) -> (Result<(), String>, bool) {
    connection.connected().await;
    let publish = PublishMessage::build().header(HEADER, list.header()).message_id(header_value(&message.dedupe_id));
    let sent = match connection.context.send_publish(message.subject, publish).await {
        Ok(sent) => sent.await,
        Err(error) => Err(error),
    };
    match sent {
        // A repetition: the message that is queued names the parts of an earlier try.
        Ok(stored) => (Ok(()), !stored.duplicate),
        Err(error) => {
            let refused = !matches!(error.kind(), PublishErrorKind::TimedOut | PublishErrorKind::BrokenPipe);
            (Err(Chain(&error).to_string()), !refused)
        }
    }
}

/// Drops the parts of a message. Where that does not succeed they are dropped as abandoned later.
pub(super) async fn drop_parts(context: &Context, list: &PartList) {
    let name = ServerStream::Parts(list.stream).name();
    let dropped = match context.get_stream_no_info(name).await {
        Ok(stream) => {
            stream.purge().filter(list.subject("*")).await.map(drop).map_err(|error| Chain(&error).to_string())
        }
        Err(error) => Err(Chain(&error).to_string()),
    };
    if let Err(reason) = dropped {
        tracing::debug!(stream = name, parts = list.key, reason, "parts of a message are not dropped yet");
    }
}

/// A message whose parts are being read.
pub(super) struct Assembly<R> {
    list: PartList,
    payload: Vec<u8>,
    read: usize,
    /// When the server heard last that the message is worked on.
    told: Instant,
    acknowledge_within: Duration,
    /// How the message is answered.
    pub(super) receipt: R,
}

/// What came of reading parts.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Assembled {
    Whole(Bytes),
    /// A part is not there.
    Gone,
    /// Nothing was said of the message for so long that the server may have handed it out again.
    Stale,
}

impl<R: Receipt> Assembly<R> {
    pub(super) fn new(list: PartList, receipt: R, acknowledge_within: Duration) -> Self {
        Self { list, payload: Vec::new(), read: 0, told: Instant::now(), acknowledge_within, receipt }
    }

    pub(super) fn list(&self) -> &PartList {
        &self.list
    }

    /// Reads on. Cancel safe: what was read is kept.
    ///
    /// # Errors
    /// What prevents it now.
    pub(super) async fn read(&mut self, connection: &Connection) -> Result<Assembled, String> {
        if self.list.size > wire::DECODED_SIZE_MAX {
            return Ok(Assembled::Gone);
        }
        let name = ServerStream::Parts(self.list.stream).name();
        let stream = connection.context.get_stream_no_info(name).await.map_err(|error| Chain(&error).to_string())?;
        while self.read < self.list.count {
            if self.told.elapsed() >= self.acknowledge_within * 3 / 4 {
                return Ok(Assembled::Stale);
            }
            if self.told.elapsed() >= self.acknowledge_within / 4 {
                // Where it does not arrive, the message comes twice.
                let _ = self.receipt.in_progress().await;
                self.told = Instant::now();
            }
            match stream.direct_get_last_for_subject(self.list.subject(self.read)).await {
                Ok(part) if self.payload.len() + part.payload.len() > self.list.size => return Ok(Assembled::Gone),
                Ok(part) => {
                    if self.payload.is_empty() {
                        self.payload.reserve_exact(self.list.size);
                    }
                    self.payload.extend_from_slice(&part.payload);
                    self.read += 1;
                }
                Err(error) if error.kind() == DirectGetErrorKind::NotFound => return Ok(Assembled::Gone),
                Err(error) => return Err(format!("part {} of {}: {}", self.read, self.list.count, Chain(&error))),
            }
        }
        if self.payload.len() != self.list.size {
            return Ok(Assembled::Gone);
        }
        Ok(Assembled::Whole(std::mem::take(&mut self.payload).into()))
    }
}

/// Whether a message is still in its queue. Its leader is asked: another server may not know of an acknowledgement yet.
///
/// # Errors
/// What prevents an answer now.
pub(super) async fn is_queued(connection: &Connection, stream: Stream, sequence: u64) -> Result<bool, String> {
    let found = connection.context.get_stream_no_info(stream.name()).await;
    let found = found.map_err(|error| Chain(&error).to_string())?;
    match found.get_raw_message(sequence).await {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(false),
        Err(error) => Err(Chain(&error).to_string()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn a_list_of_parts_survives_its_header_and_others_name_nothing_that_can_be_read() {
        let list = PartList::new(Stream::Rows, 10, 4);
        assert_eq!(list.count, 3);
        let headers = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, value);
            headers
        };
        assert_eq!(PartList::of(Stream::Rows, Some(&headers(&list.header()))), Some(list.clone()));
        assert_eq!(list.subject("*"), format!("lake.parts.rows.{}.*", list.key));
        for foreign in ["", "a", "a/1", "a/1/x", "/1/1", "a.>/1/1", "*/1/1", "a/-1/5"] {
            let read = PartList::of(Stream::Rows, Some(&headers(foreign))).unwrap();
            assert!(read.size > wire::DECODED_SIZE_MAX, "{foreign}");
        }
        assert_eq!(PartList::of(Stream::Rows, Some(&HeaderMap::new())), None);
        assert_eq!(PartList::of(Stream::Rows, None), None);
    }
}
