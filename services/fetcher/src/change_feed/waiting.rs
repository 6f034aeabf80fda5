//! Messages on their way from the consumer to the pipeline, bounded by number and by bytes.

use std::collections::VecDeque;

use bytes::Bytes;
use lake_shared::byte_budget::{ByteBudget, Reservation};
use tokio::sync::mpsc;

use super::FeedMessage;

/// Messages that wait for the pipeline, and as many for which there is no place yet, until the partitions are paused.
pub(super) const MESSAGES_MAX: usize = 2_000;
/// The same in bytes of their values.
pub(super) const BYTES_MAX: usize = 8 << 20;

/// A message with the room that it takes up until the pipeline has it.
pub(super) type Placed = (FeedMessage, Reservation);

/// Messages for which there is no place in the channel yet.
#[derive(Default)]
pub(super) struct WaitingMessages {
    messages: VecDeque<FeedMessage>,
    bytes: usize,
}

impl WaitingMessages {
    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Whether the partitions are to be paused.
    pub(super) fn is_full(&self) -> bool {
        self.messages.len() >= MESSAGES_MAX || self.bytes >= BYTES_MAX
    }

    pub(super) fn push(&mut self, message: FeedMessage) {
        self.bytes += bytes_of(&message);
        self.messages.push_back(message);
    }

    /// Bytes of the message that is next.
    pub(super) fn first_bytes(&self) -> usize {
        self.messages.front().map_or(0, bytes_of)
    }

    pub(super) fn pop(&mut self) -> Option<FeedMessage> {
        let message = self.messages.pop_front()?;
        self.bytes -= bytes_of(&message);
        Some(message)
    }
}

fn bytes_of(message: &FeedMessage) -> usize {
    message.payload.as_ref().map_or(0, Bytes::len)
}

/// Waits for a place in the channel, and for room for so many bytes. `None` when nobody reads it any more. Cancel safe.
pub(super) async fn place<'s>(
    sender: &'s mpsc::Sender<Placed>,
    room: &ByteBudget,
    bytes: usize,
) -> Option<(mpsc::Permit<'s, Placed>, Reservation)> {
    let permit = sender.reserve().await.ok()?;
    Some((permit, room.reserve(bytes).await))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::change_feed::Position;

    fn message(bytes: usize) -> FeedMessage {
        let position = Position { topic: "t".into(), partition: 0, offset: 0, generation: 1 };
        FeedMessage { position, payload: Some(vec![0; bytes].into()) }
    }

    #[test]
    fn few_large_messages_are_full_as_many_small_ones_are() {
        let mut waiting = WaitingMessages::default();
        (0..7).for_each(|_| waiting.push(message(1 << 20)));
        assert!(!waiting.is_full());
        waiting.push(message(1 << 20));
        assert!(waiting.is_full());
        while waiting.pop().is_some() {}
        (0..MESSAGES_MAX - 1).for_each(|_| waiting.push(message(10)));
        assert!(!waiting.is_full());
        waiting.push(message(0));
        assert!(waiting.is_full());
    }
}
