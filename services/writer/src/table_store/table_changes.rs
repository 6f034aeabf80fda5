//! Telling those who follow the tables of the lake that there are new ones, that some are gone, or that their columns have changed.

use std::sync::Arc;

use tokio::sync::Notify;

/// Shared by who tells and the one who waits. Changes that nobody waits for are one change when somebody does.
#[derive(Clone, Debug, Default)]
pub struct TableChanges(Arc<Notify>);

impl TableChanges {
    /// Something has changed.
    pub(crate) fn tell(&self) {
        self.0.notify_one();
    }

    /// Waits until something has changed since the last answer.
    pub(crate) async fn next(&self) {
        self.0.notified().await;
    }
}
