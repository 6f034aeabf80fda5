//! Named tasks that end together. The first signal (or the first task that fails or ends) starts an orderly end: what is in flight is
//! drained within a grace time. A second signal leaves at once.

use std::future::Future;
use std::time::Duration;

use tokio::signal::unix::{self, Signal, SignalKind};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The tasks of one process.
pub struct TaskGroup {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    shutdown: CancellationToken,
    grace: Duration,
}

impl TaskGroup {
    /// `grace`: how long tasks may take to drain after shutdown began.
    pub fn new(grace: Duration) -> Self {
        Self { tasks: JoinSet::new(), shutdown: CancellationToken::new(), grace }
    }

    /// Cancelled when the orderly end begins.
    pub fn shutdown(&self) -> CancellationToken {
        self.shutdown.clone()
    }

    /// Starts a task. It should run until [`TaskGroup::shutdown`], then drain and return.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.tasks.spawn(async move { (name, task.await) });
    }

    /// Waits for `stop` or the first task that ends, then drains all the others.
    ///
    /// # Errors
    /// What the first task failed with; also where a task ended by itself before `stop`.
    pub async fn run_until(mut self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let mut failure = None;
        tokio::select! {
            () = stop => {}
            ended = self.tasks.join_next() => {
                if let Some(ended) = ended {
                    note_end(ended, &mut failure, self.shutdown.is_cancelled());
                }
            }
        }
        self.shutdown.cancel();
        let drained = tokio::time::timeout(self.grace, async {
            while let Some(ended) = self.tasks.join_next().await {
                note_end(ended, &mut failure, true);
            }
        });
        if drained.await.is_err() {
            let seconds = self.grace.as_secs();
            tracing::warn!(seconds, "not drained within the grace time; what is in flight will be delivered again");
        }
        self.tasks.shutdown().await;
        failure.map_or(Ok(()), Err)
    }
}

type Ended = Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>;

fn note_end(ended: Ended, failure: &mut Option<anyhow::Error>, expected: bool) {
    let error = match ended {
        Ok((name, Ok(()))) => {
            tracing::info!(task = name, "task ended");
            (!expected).then(|| anyhow::anyhow!("task {name} ended by itself"))
        }
        Ok((name, Err(error))) => Some(error.context(format!("task {name}"))),
        Err(join) => Some(anyhow::anyhow!("a task panicked: {join}")),
    };
    if let Some(error) = error {
        tracing::error!(error = format!("{error:#}"), "task failed");
        failure.get_or_insert(error);
    }
}

/// Resolves at the first SIGINT or SIGTERM; at the second the process leaves at once.
pub async fn signal() {
    let Ok(mut signals) = Signals::listen() else {
        // Without handlers the default action ends the process, which is safe: nothing unacknowledged is lost.
        return std::future::pending().await;
    };
    signals.next().await;
    // The same ones go on listening, so that a second signal that follows at once is not lost.
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("second signal, leaving at once");
        std::process::exit(130);
    });
    tracing::info!("stopping; signal again to leave at once");
}

/// The signals that tell a process to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
