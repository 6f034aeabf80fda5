//! The three services in one process, over the in-process queue.
//!
//! They end in the order of the data path: the fetcher first, so that what it waits for is still written; then the enricher, then the writer.

use std::sync::Arc;

use lake_enricher::options::EnricherOptions;
use lake_enricher::service::EnricherService;
use lake_fetcher::change_feed::ChangeFeed;
use lake_fetcher::service::{FetcherOptions, FetcherService};
use lake_hq::source::Hq;
use lake_shared::queue::Queue;
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_shared::telemetry::{Check, Endpoints};
use lake_writer::ingest::control::PauseScope;
use lake_writer::writer::Writer;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The three services of one process, built.
pub struct Embedded {
    queue: Arc<MemoryQueue>,
    fetcher: FetcherService,
    enricher: EnricherService,
    writer: Writer,
}

impl Embedded {
    /// Puts the services together around a queue in memory.
    pub fn build(
        feed: Arc<dyn ChangeFeed>,
        hq: Hq,
        fetcher: FetcherOptions,
        enricher: EnricherOptions,
        writer: Writer,
    ) -> Self {
        let queue = MemoryQueue::new(MemoryQueueOptions::default());
        let fetcher = FetcherService::build(feed, hq.clone(), Arc::<MemoryQueue>::clone(&queue), fetcher);
        let enricher = EnricherService::build(hq, Arc::<MemoryQueue>::clone(&queue), enricher);
        Self { queue, fetcher, enricher, writer }
    }

    /// What `/ready` asks: everything that any of the services asks, each part once.
    pub fn checks(&self) -> Vec<Check> {
        let queue: Arc<dyn Queue> = Arc::<MemoryQueue>::clone(&self.queue);
        let mut checks: Vec<Check> = Vec::new();
        for check in [self.fetcher.checks(), self.enricher.checks(), self.writer.checks(&queue)].into_iter().flatten() {
            if !checks.iter().any(|known| known.name == check.name) {
                checks.push(check);
            }
        }
        checks
    }

    /// What the process answers on its HTTP port.
    pub fn endpoints(&self) -> Endpoints {
        Endpoints { checks: self.checks(), pages: self.writer.pages() }
    }

    /// Runs until `shutdown`, until the feed closes, or until one of the three fails; then drains.
    ///
    /// # Errors
    ///
    /// The error of the service that failed first, with its name.
    pub async fn run(self, shutdown: CancellationToken) -> anyhow::Result<()> {
        let Self { queue: memory, fetcher, enricher, writer } = self;
        let (fetched, enriched) = (CancellationToken::new(), CancellationToken::new());
        let fetching = {
            let (fetched, shutdown) = (fetched.clone(), shutdown.clone());
            async move {
                let outcome = fetcher.run(shutdown).await;
                fetched.cancel();
                outcome
            }
        };
        let enriching = {
            let (fetched, enriched) = (fetched.clone(), enriched.clone());
            async move {
                let outcome = enricher.run(fetched).await;
                enriched.cancel();
                outcome
            }
        };
        // What is paused waits in memory: the fetcher could not end before it is written.
        let (handle, stopping) = (writer.handle(), shutdown.clone());
        let resuming = tokio::spawn(async move {
            stopping.cancelled().await;
            if let Err(error) = handle.resume(PauseScope::Everything).await {
                tracing::debug!(%error, "nothing to resume at the end");
            }
        });
        let writing = writer.run(Arc::<MemoryQueue>::clone(&memory), enriched.clone());
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
            // The others would wait for ever for the service that is gone.
            shutdown.cancel();
            fetched.cancel();
            enriched.cancel();
            memory.close();
            failure.get_or_insert(error);
        }
        memory.close();
        resuming.abort();
        failure.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
