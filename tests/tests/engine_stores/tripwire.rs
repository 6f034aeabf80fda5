//! A server that is killed at a request, and started again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lake_test_kit::watcher::Step;
use rand::RngExt;
use rand::rngs::StdRng;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use super::server::Server;

/// When the server is killed.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    /// At the so-manyth step of the requests to come, from 1.
    steps: u64,
    /// Whether reading counts.
    reads: bool,
    /// So long after it: the server is in the middle of something.
    delay: Duration,
}

impl Wire {
    /// A wire that is hit soon.
    pub fn drawn(random: &mut StdRng) -> Self {
        let reads = random.random_range(0..3) == 0;
        let steps = random.random_range(1..if reads { 20 } else { 8 });
        Self { steps, reads, delay: Duration::from_micros(random.random_range(0..15_000)) }
    }
}

#[derive(Debug, Default)]
struct State {
    wire: Option<Wire>,
    restarts: Vec<JoinHandle<anyhow::Result<()>>>,
    deaths: u64,
}

/// The server, and the wire before it.
#[derive(Debug)]
pub struct Tripwire {
    server: Mutex<Server>,
    /// Requests come from any thread.
    runtime: Handle,
    state: Mutex<State>,
}

impl Tripwire {
    /// To be called within a runtime.
    pub fn of(server: Server) -> Self {
        Self { server: Mutex::new(server), runtime: Handle::current(), state: Mutex::default() }
    }

    /// The server, when nobody kills it.
    pub fn server(&self) -> MutexGuard<'_, Server> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next death of the server.
    pub fn stretch(&self, wire: Option<Wire>) {
        self.state().wire = wire;
    }

    /// A step of a request.
    pub fn touch(self: &Arc<Self>, step: Step) {
        let mut state = self.state();
        let Some(wire) = state.wire.filter(|wire| wire.reads || step != Step::Read) else { return };
        state.wire = (wire.steps > 1).then(|| Wire { steps: wire.steps - 1, ..wire });
        if state.wire.is_some() {
            return;
        }
        let tripwire = Arc::clone(self);
        let restart = self.runtime.spawn_blocking(move || {
            std::thread::sleep(wire.delay);
            tripwire.server().restart()
        });
        state.restarts.push(restart);
        state.deaths += 1;
    }

    /// Nothing happens any more, and the server answers.
    pub async fn come_to_rest(&self) -> anyhow::Result<()> {
        let restarts = {
            let mut state = self.state();
            state.wire = None;
            std::mem::take(&mut state.restarts)
        };
        for restart in restarts {
            restart.await??;
        }
        Ok(())
    }

    /// How often the server died.
    pub fn deaths(&self) -> u64 {
        self.state().deaths
    }
}
