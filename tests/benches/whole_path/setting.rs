//! The servers, the lake's services on them with the configuration that an operator would write, and what all of them use.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use lake_tests::invocation;
use lake_tests::parts::{Kafka, Nats, Port, Postgres};
use lake_tests::system::Running;
use tempfile::TempDir;

use super::arguments::{Arguments, Lake};
use super::hq::{MAIN, SHARDS};
use super::processes::{self, Watched};

const METASTORE: &str = "lake_metastore";

/// The servers.
pub struct Servers {
    /// HQ's databases and the metastore.
    pub postgres: Postgres,
    /// HQ's change feed.
    pub kafka: Kafka,
    nats: Option<Nats>,
    /// Where the writer answers operators.
    admin: Port,
    folder: TempDir,
    logs: PathBuf,
}

/// What processes have used so far.
pub struct Usage {
    processes: Vec<(Watched, f64)>,
    machine: (f64, f64),
}

impl Servers {
    /// Starts those that the lake needs.
    pub async fn start(arguments: &Arguments) -> anyhow::Result<Self> {
        let with_queue = arguments.lake == Lake::Services;
        let start = move || {
            anyhow::Ok((Postgres::start()?, Kafka::start()?, if with_queue { Some(Nats::start()?) } else { None }))
        };
        let (postgres, kafka, nats) = tokio::task::spawn_blocking(start).await??;
        postgres.create_database(METASTORE)?;
        let folder = tempfile::tempdir()?;
        std::fs::create_dir(folder.path().join("blobs"))?;
        let logs = arguments.logs.clone().unwrap_or_else(|| folder.path().to_owned());
        std::fs::create_dir_all(&logs)?;
        Ok(Self { postgres, kafka, nats, admin: Port::free()?, folder, logs })
    }

    /// Where the tables are.
    pub fn root(&self) -> PathBuf {
        self.folder.path().join("tables")
    }

    /// Starts the lake, the last of the path first, so that whatever is read can go on at once.
    pub async fn start_lake(&self, arguments: &Arguments) -> anyhow::Result<Vec<(&'static str, Running)>> {
        let binaries: &[&str] = match arguments.lake {
            Lake::Services => &["writer", "enricher", "fetcher"],
            Lake::OneProcess => &["lake"],
        };
        let mut running = Vec::new();
        for &binary in binaries {
            let config = self.config(binary, arguments);
            running.push((binary, Running::start(binary, binary, &config, Vec::new(), &self.logs).await?));
        }
        Ok(running)
    }

    fn config(&self, binary: &str, arguments: &Arguments) -> String {
        let url = |database: &str| format!("url = \"{}\"", self.postgres.url(database));
        let path = |path: PathBuf| path.display().to_string();
        let mut sections: Vec<(String, Vec<String>)> = Vec::new();
        let mut add = |name: &str, lines: Vec<String>| sections.push((format!("[{name}]"), lines));
        if matches!(binary, "fetcher" | "lake") {
            add("kafka", vec![format!("bootstrap_servers = [\"{}\"]", self.kafka.bootstrap())]);
            add("take", vec!["domains = \"everything\"".to_owned()]);
        }
        if binary != "writer" {
            add("hq.database", vec![url(MAIN)]);
            for (name, first, last) in SHARDS {
                let range = [format!("name = \"{name}\""), format!("first = {first}"), format!("last = {last}")];
                add("[hq.database.shards]", range.into_iter().chain([url(name)]).collect());
            }
            add("[hq.blobs.stores]", vec![format!("folder = \"{}\"", path(self.folder.path().join("blobs")))]);
        }
        if let Some(nats) = &self.nats {
            add("queue", vec![format!("servers = [\"{}\"]", nats.url())]);
        }
        if matches!(binary, "writer" | "lake") {
            add("store", vec![format!("root = \"{}\"", path(self.root()))]);
            add("metastore", vec![url(METASTORE)]);
            add("admin", vec![format!("address = \"127.0.0.1:{}\"", self.admin.number())]);
            add("tables", vec![format!("index_folder = \"{}\"", path(self.folder.path().join("index")))]);
        }
        for setting in arguments.settings.iter().filter(|setting| setting.service == binary) {
            let name = format!("[{}]", setting.section);
            match sections.iter_mut().find(|(section, _)| *section == name) {
                Some((_, lines)) => lines.push(setting.line.clone()),
                None => sections.push((name, vec![setting.line.clone()])),
            }
        }
        sections.iter().map(|(section, lines)| format!("{section}\n{}\n", lines.join("\n"))).collect()
    }

    /// Has `lakectl` ask the writer.
    pub fn lakectl(&self, words: &[&str]) -> anyhow::Result<()> {
        let server = format!("http://127.0.0.1:{}", self.admin.number());
        let arguments: Vec<&str> = ["--at", &server].into_iter().chain(words.iter().copied()).collect();
        let outcome = invocation::run("lakectl", &arguments, &[])?;
        ensure!(outcome.code == Some(0), "lakectl {words:?}: {outcome:?}");
        Ok(())
    }

    /// All processes.
    pub fn watched(&mut self, lake: &mut [(&'static str, Running)]) -> anyhow::Result<Vec<Watched>> {
        let mut watched = Vec::new();
        let mut add = |name: &str, id: Option<u32>, is_service: bool| {
            let id = id.with_context(|| format!("{name} does not run"))?;
            watched.push(Watched { name: name.to_owned(), id, is_service });
            anyhow::Ok(())
        };
        for (name, running) in lake.iter_mut().rev() {
            add(name, running.service.process().id(), true)?;
        }
        add("Postgres", self.postgres.server().id(), false)?;
        add("Kafka", self.kafka.server().id(), false)?;
        if let Some(nats) = &mut self.nats {
            add("NATS", nats.server().id(), false)?;
        }
        add("this program", Some(std::process::id()), false)?;
        Ok(watched)
    }

    /// The folder of logs and configurations.
    pub fn logs(&self) -> &Path {
        &self.logs
    }
}

impl Usage {
    /// What they have used so far.
    pub fn now(watched: &[Watched]) -> anyhow::Result<Self> {
        let seconds = |id| {
            if id == std::process::id() { processes::own_cpu_seconds() } else { processes::cpu_seconds(id) }
        };
        let processes = watched.iter().map(|process| Ok((process.clone(), seconds(process.id)?)));
        Ok(Self { processes: processes.collect::<anyhow::Result<_>>()?, machine: processes::machine_seconds()? })
    }

    /// CPU seconds of each since an earlier look.
    pub fn since(&self, earlier: &Self) -> Vec<(Watched, f64)> {
        let before = |id: u32| {
            earlier.processes.iter().find(|(process, _)| process.id == id).map_or(0.0, |(_, seconds)| *seconds)
        };
        self.processes.iter().map(|(process, seconds)| (process.clone(), seconds - before(process.id))).collect()
    }

    /// CPU seconds of the whole machine since then: used and idle.
    pub fn machine_since(&self, earlier: &Self) -> (f64, f64) {
        (self.machine.0 - earlier.machine.0, self.machine.1 - earlier.machine.1)
    }
}
