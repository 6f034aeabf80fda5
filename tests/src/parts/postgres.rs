//! A throw-away Postgres cluster without durability: fast, and gone afterwards.

use std::ffi::OsStr;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::port::Port;
use super::process::Process;
use super::with_fresh_ports;
use crate::certificates::Certificates;

const USER: &str = "lake";
const PROGRAMS: [&str; 4] = ["initdb", "postgres", "pg_isready", "createdb"];

/// A running Postgres server; user `lake`, no password, database `postgres` and what [`Postgres::create_database`] adds.
#[derive(Debug)]
pub struct Postgres {
    server: Process,
    programs: PathBuf,
    port: Port,
    _folder: TempDir,
}

impl Postgres {
    /// Makes a cluster and starts it, in about a second. As root, the server runs as the system user `postgres`, because it refuses root.
    ///
    /// # Errors
    /// When Postgres is not installed, or does not come up.
    pub fn start() -> anyhow::Result<Self> {
        with_fresh_ports(|| Self::start_once(None))
    }

    /// Starts a cluster that takes encrypted connections only; those of clients without a certificate of its root, too.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_with_tls(certificates: &Certificates) -> anyhow::Result<Self> {
        with_fresh_ports(|| Self::start_once(Some(certificates)))
    }

    fn start_once(tls: Option<&Certificates>) -> anyhow::Result<Self> {
        let programs = programs()?;
        let folder = tempfile::Builder::new().prefix("lake-test-postgres-").tempdir()?;
        let data = folder.path().join("data");
        if is_root()? {
            run(Command::new("chown").arg("postgres").arg(folder.path()))?;
        }
        run(server_command(&programs.join("initdb"))?
            .args(["-A", "trust", "-U", USER, "-E", "UTF8", "--locale=C.UTF-8", "-N", "-D"])
            .arg(&data))?;
        let port = Port::free()?;
        let mut command = server_command(&programs.join("postgres"))?;
        command.arg("-D").arg(&data).args(["-p", &port.number().to_string()]).arg("-k").arg(folder.path());
        for setting in [
            "listen_addresses=127.0.0.1",
            "fsync=off",
            "synchronous_commit=off",
            "full_page_writes=off",
            "max_connections=200",
        ] {
            command.args(["-c", setting]);
        }
        if let Some(certificates) = tls {
            encrypt(&mut command, certificates, &data)?;
        }
        let is_ready = programs.join("pg_isready");
        let number = port.number().to_string();
        let ready = Box::new(move || {
            let mut probe = Command::new(&is_ready);
            probe.args(["-q", "-h", "127.0.0.1", "-U", USER, "-d", "postgres", "-p", &number]);
            probe.stdin(Stdio::null()).status().is_ok_and(|status| status.success())
        });
        let log = folder.path().join("server.log");
        let server = Process::start("Postgres", command, &log, "QUIT", vec![folder.path().to_owned()], ready)?;
        Ok(Self { server, programs, port, _folder: folder })
    }

    /// The address of a database of this cluster, as `postgres://…`.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port.number())
    }

    /// Makes an empty database and gives its address.
    ///
    /// # Errors
    /// When it exists already or the server is down.
    pub fn create_database(&self, name: &str) -> anyhow::Result<String> {
        run(Command::new(self.programs.join("createdb"))
            .args(["-h", "127.0.0.1", "-U", USER, "-p", &self.port.number().to_string(), "--", name])
            .stdin(Stdio::null()))?;
        Ok(self.url(name))
    }

    /// The server process, to be stopped, killed, frozen or started again.
    pub fn server(&mut self) -> &mut Process {
        &mut self.server
    }
}

/// Has the server take encrypted connections only. It wants to own its key.
fn encrypt(command: &mut Command, certificates: &Certificates, data: &Path) -> anyhow::Result<()> {
    for name in ["server.pem", "server.key"] {
        let copy = data.join(name);
        std::fs::copy(certificates.file(name), &copy)?;
        std::fs::set_permissions(&copy, Permissions::from_mode(0o600))?;
        if is_root()? {
            run(Command::new("chown").arg("postgres").arg(&copy))?;
        }
    }
    std::fs::write(data.join("pg_hba.conf"), "hostssl all all 127.0.0.1/32 trust\n")?;
    for setting in ["ssl=on", "ssl_cert_file=server.pem", "ssl_key_file=server.key"] {
        command.args(["-c", setting]);
    }
    Ok(())
}

/// The folder of the newest installed server. Debian keeps it out of `PATH`; elsewhere it is found there.
fn programs() -> anyhow::Result<PathBuf> {
    let complete = |folder: &PathBuf| PROGRAMS.iter().all(|program| folder.join(program).is_file());
    let version = |folder: &Path| folder.file_name().and_then(OsStr::to_str).and_then(|name| name.parse::<u32>().ok());
    let mut installed: Vec<PathBuf> =
        std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    installed.sort_by_key(|folder| std::cmp::Reverse(version(folder)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = installed.into_iter().map(|folder| folder.join("bin")).chain(std::env::split_paths(&path));
    candidates
        .into_iter()
        .find(complete)
        .context("no Postgres server is installed: run tests/set-up (it installs what the tests need)")
}

fn is_root() -> anyhow::Result<bool> {
    Ok(std::fs::metadata("/proc/self").context("read the user of this process")?.uid() == 0)
}

/// A command that runs as a user whom Postgres accepts.
fn server_command(program: &Path) -> anyhow::Result<Command> {
    let mut command = if is_root()? {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    // The folder of the test may be closed to that user.
    command.current_dir("/").stdin(Stdio::null());
    Ok(command)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("run {program}"))?;
    if !output.status.success() {
        let trouble = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("{program} failed ({}): {trouble}", output.status);
    }
    Ok(())
}
