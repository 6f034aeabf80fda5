//! The lake's processes on the real parts, with the defaults of an operator, and what memory they need.

use std::time::Duration;

use anyhow::Context;
use lake_tests::system::{RealParts, Running};

use super::arguments::Shape;

/// When what can be compacted has been.
pub const COMPACTED_WITHIN: Duration = Duration::from_secs(20);

/// Rounds of compaction are close to each other, so that one comes while it is watched.
const MAINTENANCE: &str = "[maintenance]\ncompact_every_seconds = 2\n";
const TAKE: &str = "[take]\ndomains = \"everything\"\n";

/// Running processes, the last of the path first.
pub struct Lake {
    shape: Shape,
    running: Vec<(&'static str, Running)>,
}

impl Lake {
    /// Starts them on an empty lake.
    pub async fn start(parts: &RealParts, shape: Shape) -> anyhow::Result<Self> {
        let folder = parts.folder.path();
        let store = format!(
            "[store]\nroot = \"{}\"\n[metastore]\nurl = \"sqlite:{}\"\n{MAINTENANCE}[tables]\nindex_folder = \"{}\"\n",
            folder.join("tables").display(),
            folder.join("metastore.sqlite").display(),
            folder.join("index").display(),
        );
        let (kafka, hq, queue, take) =
            (parts.kafka_section(), parts.hq_section(), parts.queue_section(), TAKE.to_owned());
        let wanted = match shape {
            Shape::Services => vec![
                ("writer", [queue.clone(), store].concat()),
                ("enricher", [hq.clone(), queue.clone()].concat()),
                ("fetcher", [kafka, hq, queue, take].concat()),
            ],
            Shape::OneProcess => vec![("lake", [kafka, hq, take, store].concat())],
        };
        let mut running = Vec::new();
        for (binary, config) in wanted {
            running.push((binary, Running::start(binary, binary, &config, Vec::new(), folder).await?));
        }
        Ok(Self { shape, running })
    }

    /// Waits until everything on Kafka is in the lake.
    pub async fn has_all(&self, parts: &RealParts, patience: Duration) -> anyhow::Result<()> {
        match self.shape {
            Shape::Services => parts.drained(patience).await,
            Shape::OneProcess => parts.committed(patience).await,
        }
    }

    /// Highest resident memory of each so far, bytes.
    pub fn peaks(&mut self) -> anyhow::Result<Vec<(&'static str, u64)>> {
        self.memory("VmHWM:")
    }

    /// Resident memory of each now, bytes.
    pub fn resident(&mut self) -> anyhow::Result<Vec<(&'static str, u64)>> {
        self.memory("VmRSS:")
    }

    fn memory(&mut self, figure: &str) -> anyhow::Result<Vec<(&'static str, u64)>> {
        let of = |(name, running): &mut (&'static str, Running)| {
            let id = running.service.process().id().with_context(|| format!("{name} does not run any more"))?;
            let status = std::fs::read_to_string(format!("/proc/{id}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix(figure)).context("no such figure")?;
            Ok((*name, line.trim().trim_end_matches(" kB").trim().parse::<u64>()? << 10))
        };
        self.running.iter_mut().map(of).collect()
    }

    /// Ends all in the order of the path; each must end well.
    pub fn end(mut self) -> anyhow::Result<()> {
        self.running.iter_mut().rev().try_for_each(|(_, running)| running.end())
    }
}
