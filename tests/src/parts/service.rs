//! Binaries of this workspace, run as an operator would run them.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::process::Process;
use super::wait_until;

const TERMINATE_DEADLINE: Duration = Duration::from_secs(30);

/// Path of a binary of this workspace: in the folder that `LAKE_TEST_BINARIES` names, else built with the profile of the running test.
///
/// # Errors
/// When it is not built.
pub fn binary_path(name: &str) -> anyhow::Result<PathBuf> {
    if let Some(folder) = std::env::var_os("LAKE_TEST_BINARIES").filter(|value| !value.is_empty()) {
        let path = PathBuf::from(folder).join(name);
        anyhow::ensure!(path.is_file(), "there is no {}; correct LAKE_TEST_BINARIES", path.display());
        return Ok(path);
    }
    let test = std::env::current_exe().context("find the running test")?;
    // The test is target/<profile>/deps/<test>; a doc test or example may lie elsewhere below target/<profile>.
    let found = test.ancestors().skip(1).take(3).map(|folder| folder.join(name)).find(|path| path.is_file());
    match found {
        Some(path) => Ok(path),
        None => bail!("binary {name} is not built beside {}: run cargo build --workspace --bins", test.display()),
    }
}

/// How to start a binary: arguments, environment, log. Variables of the caller that begin with `LAKE_` are not handed on.
#[derive(Debug)]
pub struct Launch {
    name: String,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    log: Option<PathBuf>,
}

impl Launch {
    /// A binary of this workspace, by name.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), arguments: Vec::new(), environment: Vec::new(), log: None }
    }

    /// Adds an argument to the command line.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments to the command line.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets several variables of the environment.
    pub fn envs(mut self, variables: impl IntoIterator<Item = (impl AsRef<OsStr>, impl AsRef<OsStr>)>) -> Self {
        let variables = variables.into_iter().map(|(key, value)| (key.as_ref().to_owned(), value.as_ref().to_owned()));
        self.environment.extend(variables);
        self
    }

    /// Appends the output to this file instead of one that is removed with the [`Service`].
    pub fn log_file(mut self, path: impl AsRef<Path>) -> Self {
        self.log = Some(path.as_ref().to_owned());
        self
    }

    /// Starts the binary; it may not be ready yet (see [`Service::wait_ready`]).
    ///
    /// # Errors
    /// When the binary is not built or cannot be started.
    pub fn start(self) -> anyhow::Result<Service> {
        let folder = tempfile::Builder::new().prefix("lake-test-service-").tempdir()?;
        let log = self.log.unwrap_or_else(|| folder.path().join("service.log"));
        let mut command = Command::new(binary_path(&self.name)?);
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"LAKE_")) {
            command.env_remove(key);
        }
        // Key indexes without a configured folder are not left behind in the home of whoever runs the tests.
        command.env("XDG_STATE_HOME", folder.path()).env_remove("STATE_DIRECTORY");
        command.args(self.arguments).envs(self.environment);
        let leftovers = vec![folder.path().to_owned()];
        let process = Process::start(&self.name, command, &log, "TERM", leftovers, Box::new(|| true))?;
        Ok(Service { name: self.name, process, _folder: folder })
    }
}

/// A running binary of this workspace. It is killed hard on drop; the end of its log is shown when a test panics.
#[derive(Debug)]
pub struct Service {
    name: String,
    process: Process,
    _folder: TempDir,
}

impl Service {
    /// Waits until `url` answers 200.
    ///
    /// # Errors
    /// When the service ends first, or does not answer so within `deadline`; with the end of its log.
    pub async fn wait_ready(&mut self, url: &str, deadline: Duration) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()?;
        let what = format!("{} answers 200 at {url}", self.name);
        let mut ended = None;
        let until = Instant::now() + deadline;
        let outcome = wait_until(&what, deadline, async || {
            if let Some(status) = self.process.exit_status()? {
                ended = Some(status);
            }
            // Ends the wait; told apart below.
            if ended.is_some() {
                return Ok(true);
            }
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
            Ok(client.get(url).timeout(left).send().await?.status() == reqwest::StatusCode::OK)
        })
        .await;
        if let Some(status) = ended {
            bail!("{} ended ({status}) before it was ready; its log ends:\n{}", self.name, self.process.log_tail());
        }
        outcome.with_context(|| format!("the log of {} ends:\n{}", self.name, self.process.log_tail()))
    }

    /// Kills the service with SIGKILL, as a power failure would.
    ///
    /// # Errors
    /// When the dead process cannot be collected.
    pub fn kill_hard(&mut self) -> anyhow::Result<()> {
        self.process.kill_hard()
    }

    /// Asks the service to end (SIGTERM) and waits up to 30 seconds; gives how it ended.
    ///
    /// # Errors
    /// When it does not run, or had to be killed; with the end of its log.
    pub fn terminate(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.terminate_within(TERMINATE_DEADLINE)
    }

    /// Everything the service wrote so far, over all its starts.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The process itself, to be frozen, started again, or asked whether it runs.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the log of {} ends:\n{}\n---", self.name, self.process.log_tail());
        }
    }
}
