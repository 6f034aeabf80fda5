//! The three services in one process, over the in-process queue.
//!
//! They end in the order of the data path: the fetcher first, so that what it waits for is still written; then the enricher, then the writer.

use std::sync::Arc;

use lake_enricher::options::EnricherOptions;
use lake_fetcher::change_feed::ChangeFeed;
use lake_fetcher::pipeline::Fetcher;
use lake_hq::source::Hq;
use lake_shared::queue::Queue;
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_writer::writer::Writer;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What the process is made of.
pub struct Embedded {
    /// HQ's change feed.
    pub feed: Arc<dyn ChangeFeed>,
    /// HQ.
    pub hq: Hq,
    /// The fetcher, without its queue.
    pub fetcher: FetcherParts,
    /// How rows are made.
    pub enricher: EnricherOptions,
    /// The writer, opened.
    pub writer: Writer,
}

/// What a fetcher needs besides HQ and the queue.
pub struct FetcherParts {
    /// What is taken.
    pub take: lake_fetcher::allow_list::TakeConfig,
    /// What a case's document holds.
    pub case_options: lake_hq::documents::case::CaseOptions,
    /// Batches.
    pub options: lake_fetcher::options::FetchOptions,
}

impl Embedded {
    /// Runs until `shutdown`, until the feed closes, or until one of the three fails; then drains.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let memory = MemoryQueue::new(MemoryQueueOptions::default());
        let queue: Arc<dyn Queue> = Arc::<MemoryQueue>::clone(&memory);
        let FetcherParts { take, case_options, options } = self.fetcher;
        let fetcher = Fetcher { hq: self.hq.clone(), queue: Arc::clone(&queue), take, case_options, options };
        let (fetched, enriched) = (CancellationToken::new(), CancellationToken::new());

        let fetching = {
            let (fetched, shutdown) = (fetched.clone(), shutdown.clone());
            async move {
                let outcome = lake_fetcher::pipeline::run(self.feed, Arc::new(fetcher), shutdown).await;
                fetched.cancel();
                outcome
            }
        };
        let enriching = {
            let (queue, fetched, enriched) = (Arc::clone(&queue), fetched.clone(), enriched.clone());
            async move {
                let outcome = lake_enricher::pipeline::run(queue, self.hq, self.enricher, fetched).await;
                enriched.cancel();
                outcome
            }
        };
        let writing = self.writer.run(queue, enriched.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async { ("fetcher", fetching.await) });
        tasks.spawn(async { ("enricher", enriching.await) });
        tasks.spawn(async { ("writer", writing.await) });
        let mut failure = None;
        while let Some(ended) = tasks.join_next().await {
            let error = match ended {
                Ok((_, Ok(()))) => continue,
                Ok((name, Err(error))) => error.context(name),
                Err(panicked) => anyhow::anyhow!("a service panicked: {panicked}"),
            };
            // The others would wait for ever for whoever is gone.
            shutdown.cancel();
            fetched.cancel();
            enriched.cancel();
            memory.close();
            failure.get_or_insert(error);
        }
        memory.close();
        failure.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
