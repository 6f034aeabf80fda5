//! What the connection's owner keeps on the servers, as those who use the connection tell it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

use super::durable::Durable;
use crate::queue::Stream;

/// What there is to keep, and a way to ask for a look at it.
#[derive(Clone, Debug, Default)]
pub(super) struct Kept {
    consumers: Arc<Mutex<HashMap<Stream, Durable>>>,
    doubt: Arc<Notify>,
}

impl Kept {
    /// Keeps this consumer from now on.
    pub(super) fn consumer(&self, durable: &Durable) {
        let mut consumers = self.consumers.lock().unwrap_or_else(PoisonError::into_inner);
        consumers.insert(durable.stream, durable.clone());
    }

    /// Asks for a look: something does not go as it should.
    pub(super) fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Waits until a look is asked for.
    pub(super) async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// The consumer of a stream, where one was opened here.
    pub(super) fn consumer_of(&self, stream: Stream) -> Option<Durable> {
        self.consumers.lock().unwrap_or_else(PoisonError::into_inner).get(&stream).cloned()
    }
}
