//! Work on a message that takes longer than its acknowledgement time-out.

use std::time::Duration;

use super::Receipt;

/// Waits for `work`, saying from time to time that the message is still worked on. `within` is the acknowledgement time-out.
pub async fn while_in_progress<T>(receipt: &dyn Receipt, within: Duration, work: impl Future<Output = T>) -> T {
    let every = within / 3;
    let mut work = std::pin::pin!(work);
    loop {
        match tokio::time::timeout(every, &mut work).await {
            Ok(done) => return done,
            Err(_) => {
                if let Err(error) = receipt.in_progress().await {
                    tracing::debug!(%error, "cannot say that a message is still worked on");
                }
            }
        }
    }
}
