//! What every service's `main` does: read the command line and the configuration, start logs, run until a signal comes.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use serde::Deserialize;

use crate::config::ConfigError;
use crate::shutdown::TaskGroup;
use crate::telemetry::{self, Endpoints, Served, TelemetryConfig};

/// Exit code for a command line or configuration that cannot be used (`EX_USAGE` of sysexits.h).
pub const EXIT_USAGE: u8 = 64;

/// Exit code for everything else that went wrong.
pub const EXIT_FAILURE: u8 = 1;

/// How long the process waits at its end for threads that block.
const BLOCKED_AT_END_MAX: Duration = Duration::from_millis(500);

/// Section `[process]` of every service.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessConfig {
    /// How long work in flight may take to drain when the service stops, in seconds.
    pub shutdown_grace_seconds: u64,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self { shutdown_grace_seconds: 30, threads: 0 }
    }
}

/// What [`run`] needs of a service's configuration.
pub trait ServiceConfig: Sized + Send + 'static {
    /// Reads it from file and environment, by [`crate::config::load`] or [`crate::config::load_parts`].
    ///
    /// # Errors
    ///
    /// What is wrong with which key, and where it came from.
    fn load(path: Option<&Path>) -> Result<Self, ConfigError>;
    /// Section `[telemetry]`: logs and HTTP.
    fn telemetry(&self) -> &TelemetryConfig;
    /// Section `[process]`: threads and shutdown.
    fn process(&self) -> &ProcessConfig;
    /// Checks rules that types cannot express.
    ///
    /// # Errors
    /// Where the configuration cannot be used; the text names the key.
    fn validate(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// The argument that names the configuration file.
#[derive(Args, Debug)]
pub struct ConfigArgument {
    /// TOML file; LAKE_* environment variables override its keys
    #[arg(long, short, env = "LAKE_CONFIG")]
    pub config: Option<PathBuf>,
}

/// The verbs that every service has.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Run until SIGINT or SIGTERM
    Serve(ConfigArgument),
    /// Read and validate the configuration, then exit
    CheckConfig(ConfigArgument),
    /// Create or update the service's own database tables, then exit
    Migrate(ConfigArgument),
    /// Ask the running service whether it is ready; the exit code says so
    Health(ConfigArgument),
    /// Print the version
    Version,
}

/// A service of CommCare Lake
#[derive(Parser, Debug)]
#[command(disable_version_flag = true)]
pub struct CommandLine {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// Reads and validates a configuration.
///
/// # Errors
/// Where the file cannot be read, or a key is unknown, missing or out of range; the text names the key.
pub fn load<C: ServiceConfig>(argument: &ConfigArgument) -> anyhow::Result<C> {
    let configuration = C::load(argument.config.as_deref())?;
    telemetry::log_filter(configuration.telemetry())?;
    configuration.validate()?;
    Ok(configuration)
}

/// Runs a service by its command line, see [`run_verb`].
pub fn run<C, Build, BuildFuture, Built, Migrate, MigrateFuture>(
    name: &str,
    build: Build,
    migrate: Option<Migrate>,
) -> ExitCode
where
    C: ServiceConfig,
    Build: FnOnce(C, TaskGroup) -> BuildFuture,
    BuildFuture: Future<Output = anyhow::Result<(TaskGroup, Built)>>,
    Built: Into<Endpoints>,
    Migrate: FnOnce(C) -> MigrateFuture,
    MigrateFuture: Future<Output = anyhow::Result<()>>,
{
    match command_line::<CommandLine>() {
        Ok(line) => run_verb(name, line.verb, build, migrate),
        Err(exit) => exit,
    }
}

/// Parses the command line of this process.
///
/// # Errors
/// The exit code, after the reason (or the help that was asked for) has been printed.
pub fn command_line<P: Parser>() -> Result<P, ExitCode> {
    P::try_parse().map_err(|error| {
        // If standard error is closed, the exit code still says it.
        let _ = error.print();
        ExitCode::from(if error.use_stderr() { EXIT_USAGE } else { 0 })
    })
}

/// Does what the verb says. `build` starts the tasks in the group and returns what is answered on the HTTP port;
/// `migrate` is `None` where there is nothing to migrate.
pub fn run_verb<C, Build, BuildFuture, Built, Migrate, MigrateFuture>(
    name: &str,
    verb: Verb,
    build: Build,
    migrate: Option<Migrate>,
) -> ExitCode
where
    C: ServiceConfig,
    Build: FnOnce(C, TaskGroup) -> BuildFuture,
    BuildFuture: Future<Output = anyhow::Result<(TaskGroup, Built)>>,
    Built: Into<Endpoints>,
    Migrate: FnOnce(C) -> MigrateFuture,
    MigrateFuture: Future<Output = anyhow::Result<()>>,
{
    let outcome = match verb {
        Verb::Version => {
            println!("{name} {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Verb::CheckConfig(argument) => {
            return match load::<C>(&argument) {
                Ok(_) => {
                    println!("configuration is valid");
                    ExitCode::SUCCESS
                }
                Err(error) => usage_error(name, &error),
            };
        }
        Verb::Health(argument) => match load::<C>(&argument) {
            Err(error) => return usage_error(name, &error),
            Ok(configuration) => telemetry::ask_ready(configuration.telemetry().http_address),
        },
        Verb::Migrate(argument) => match load::<C>(&argument) {
            Err(error) => return usage_error(name, &error),
            Ok(configuration) => match migrate {
                None => {
                    println!("{name} has no tables of its own");
                    return ExitCode::SUCCESS;
                }
                Some(migrate) => telemetry::install_logs(configuration.telemetry())
                    .and_then(|()| runtime(configuration.process()))
                    .and_then(|runtime| runtime.block_on(migrate(configuration))),
            },
        },
        Verb::Serve(argument) => match load::<C>(&argument) {
            Err(error) => return usage_error(name, &error),
            Ok(configuration) => serve(name, configuration, build),
        },
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn usage_error(name: &str, error: &anyhow::Error) -> ExitCode {
    eprintln!("{name}: {error:#}");
    ExitCode::from(EXIT_USAGE)
}

/// The async runtime of a service.
///
/// # Errors
/// Where its threads cannot be started.
pub fn runtime(process: &ProcessConfig) -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if process.threads > 0 {
        builder.worker_threads(process.threads);
    }
    Ok(builder.enable_all().build()?)
}

fn serve<C, Build, BuildFuture, Built>(name: &str, configuration: C, build: Build) -> anyhow::Result<()>
where
    C: ServiceConfig,
    Build: FnOnce(C, TaskGroup) -> BuildFuture,
    BuildFuture: Future<Output = anyhow::Result<(TaskGroup, Built)>>,
    Built: Into<Endpoints>,
{
    telemetry::install_logs(configuration.telemetry())?;
    let metrics = telemetry::install_metrics()?;
    let http_address = configuration.telemetry().http_address;
    let grace = Duration::from_secs(configuration.process().shutdown_grace_seconds);
    let runtime = runtime(configuration.process())?;
    let outcome = runtime.block_on(async {
        tracing::info!(service = name, version = env!("CARGO_PKG_VERSION"), "starting");
        let mut stop = std::pin::pin!(crate::shutdown::signal());
        let mut tasks = TaskGroup::new(grace);
        let served = Served::default();
        // Served from the beginning: a service that waits for other parts is alive, though not ready.
        let listener = telemetry::bind(http_address).await?;
        tasks.spawn("http", telemetry::serve(listener, metrics, Arc::clone(&served), tasks.shutdown()));
        // A signal while the parts are still awaited ends the start at once.
        let (tasks, built) = tokio::select! {
            built = build(configuration, tasks) => built?,
            () = &mut stop => return Ok(()),
        };
        // Only set here, so it is empty.
        let _ = served.set(built.into());
        let outcome = tasks.run_until(stop).await;
        tracing::info!(service = name, "stopped");
        outcome
    });
    // A name look-up or a request of the Kafka client may block for longer; its result is not needed any more.
    runtime.shutdown_timeout(BLOCKED_AT_END_MAX);
    outcome
}
