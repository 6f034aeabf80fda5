//! The Hive Metastore: its Thrift service over a database of the tests' Postgres.

use std::fmt::{self, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};
use tempfile::TempDir;

use super::port::Port;
use super::postgres::Postgres;
use super::process::Process;
use super::{installed, with_fresh_ports};

/// A version of the Hive Metastore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HiveVersion {
    /// 2.3, out of Spark 3.5.
    Two,
    /// 3.1.
    Three,
    /// 4.0.
    Four,
}

impl HiveVersion {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Two, Self::Three, Self::Four];

    /// Where `tests/set-up` installs it.
    const fn folder(self) -> &'static str {
        match self {
            Self::Two => "hive-2",
            Self::Three => "hive-3",
            Self::Four => "hive-4",
        }
    }
}

impl fmt::Display for HiveVersion {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.folder())
    }
}

/// A service with TLS: a key store in PKCS 12 and its password.
pub struct KeyStore {
    /// The file.
    pub file: PathBuf,
    /// What opens it.
    pub password: String,
}

/// A running Hive Metastore.
#[derive(Debug)]
pub struct HiveMetastore {
    server: Process,
    port: Port,
    database: String,
    folder: TempDir,
}

/// What it warns of goes to its log. It would be silent without.
const LOGGING: &str = "log4j.rootLogger=WARN,console\n\
    log4j.appender.console=org.apache.log4j.ConsoleAppender\n\
    log4j.appender.console.layout=org.apache.log4j.PatternLayout\n\
    log4j.appender.console.layout.ConversionPattern=%d %p %c %m%n\n";

impl HiveMetastore {
    /// Makes a database and starts the service on it, in some ten seconds.
    ///
    /// # Errors
    /// When Hive or Java is not installed, or the service does not come up.
    pub fn start(version: HiveVersion, postgres: &Postgres) -> anyhow::Result<Self> {
        Self::start_with(version, postgres, None)
    }

    /// The same with TLS.
    ///
    /// # Errors
    /// As [`HiveMetastore::start`].
    pub fn start_with(version: HiveVersion, postgres: &Postgres, tls: Option<&KeyStore>) -> anyhow::Result<Self> {
        with_fresh_ports(|| Self::start_once(version, postgres, tls))
    }

    fn start_once(version: HiveVersion, postgres: &Postgres, tls: Option<&KeyStore>) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("lake-test-hive-").tempdir()?;
        let port = Port::free()?;
        let name = format!("hive_{}", uuid::Uuid::new_v4().simple());
        let database = jdbc(&postgres.create_database(&name)?)?;
        std::fs::create_dir(folder.path().join("warehouse"))?;
        let site = site(&database, &folder.path().join("warehouse").display().to_string(), tls)?;
        for file in ["hive-site.xml", "metastore-site.xml"] {
            std::fs::write(folder.path().join(file), &site)?;
        }
        std::fs::write(folder.path().join("log4j.properties"), LOGGING)?;
        let jars = |version: HiveVersion| installed(&format!("{version}/jars"));
        let class_path = [folder.path().display().to_string(), jars(version)?.join("*").display().to_string()];
        // Spark 3 brings no driver for Postgres.
        let driver = postgres_driver()?.display().to_string();
        let class_path = class_path.join(":") + ":" + &driver;
        make_tables(version, &database, &class_path, &folder)?;
        let mut command = java()?;
        for module in ["java.net", "java.lang", "java.util", "java.util.concurrent", "java.nio", "sun.nio.ch"] {
            command.arg(format!("--add-opens=java.base/{module}=ALL-UNNAMED"));
        }
        command.args(["-cp", &class_path]);
        command.args(["org.apache.hadoop.hive.metastore.HiveMetaStore", "-p", &port.number().to_string()]);
        command.current_dir(folder.path());
        let number = port.number();
        let ready = Box::new(move || TcpStream::connect((Ipv4Addr::LOCALHOST, number)).is_ok());
        let log = folder.path().join("server.log");
        let leftovers = vec![folder.path().to_owned()];
        let server = Process::start("Hive Metastore", command, &log, "TERM", leftovers, ready)?;
        Ok(Self { server, port, database, folder })
    }

    /// Its address, `thrift://…`.
    pub fn uri(&self) -> String {
        format!("thrift://127.0.0.1:{}", self.port.number())
    }

    /// The address of its database, for programs in Java.
    pub fn jdbc_url(&self) -> &str {
        &self.database
    }

    /// Where databases have their folders.
    pub fn warehouse(&self) -> PathBuf {
        self.folder.path().join("warehouse")
    }

    /// The server process, to be stopped, killed, frozen or started again.
    pub fn server(&mut self) -> &mut Process {
        &mut self.server
    }
}

fn java() -> anyhow::Result<Command> {
    let mut command = Command::new(installed("spark-3/java/bin/java")?);
    command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]);
    Ok(command)
}

/// Makes the tables of all classes of the model. The service would make each when it is first needed, in the middle of a transaction, and wait
/// for itself, or fail.
fn make_tables(version: HiveVersion, database: &str, class_path: &str, folder: &TempDir) -> anyhow::Result<()> {
    let properties = folder.path().join("tables.properties");
    let text = format!(
        "javax.jdo.PersistenceManagerFactoryClass=org.datanucleus.api.jdo.JDOPersistenceManagerFactory\n\
        javax.jdo.option.ConnectionURL={database}\njavax.jdo.option.ConnectionDriverName=org.postgresql.Driver\n\
        datanucleus.schema.autoCreateAll=true\ndatanucleus.identifierFactory=datanucleus1\n\
        datanucleus.rdbms.useLegacyNativeValueStrategy=true\n"
    );
    std::fs::write(&properties, text)?;
    let mut tool = java()?;
    tool.args(["-cp", class_path, "org.datanucleus.store.schema.SchemaTool", "-create", "-api", "JDO", "-props"]);
    tool.arg(properties).arg(installed(&format!("{version}/package.jdo"))?).current_dir(folder.path());
    let made = tool.output()?;
    let told = String::from_utf8_lossy(&made.stdout).into_owned() + &String::from_utf8_lossy(&made.stderr);
    ensure!(made.status.success(), "the tables of {version} were not made:\n{told}");
    Ok(())
}

/// The JDBC driver for Postgres.
///
/// # Errors
/// When it is not installed.
pub fn postgres_driver() -> anyhow::Result<PathBuf> {
    let jars = installed("hive-3/jars")?;
    let is_driver = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("postgresql-"))
    };
    let mut files = std::fs::read_dir(&jars)?.flatten().map(|entry| entry.path());
    files.find(is_driver).with_context(|| format!("{} has no driver for Postgres: run tests/set-up", jars.display()))
}

/// `postgres://user@host:port/name` for Java.
fn jdbc(url: &str) -> anyhow::Result<String> {
    let (user, place) = url.strip_prefix("postgres://").and_then(|rest| rest.split_once('@')).context("an address")?;
    Ok(format!("jdbc:postgresql://{place}?user={user}"))
}

fn site(database: &str, warehouse: &str, tls: Option<&KeyStore>) -> anyhow::Result<String> {
    let warehouse = format!("file://{warehouse}");
    let no_tasks = "org.apache.hadoop.hive.metastore.events.EventCleanerTask";
    let mut settings = vec![
        ("javax.jdo.option.ConnectionURL", database),
        ("javax.jdo.option.ConnectionDriverName", "org.postgresql.Driver"),
        ("javax.jdo.option.ConnectionUserName", "lake"),
        ("javax.jdo.option.ConnectionPassword", "unused"),
        ("hive.metastore.warehouse.dir", &warehouse),
        ("hive.metastore.warehouse.external.dir", &warehouse),
        ("hive.metastore.uris", ""),
        // Its logger of 2.3 is not among Spark's jars.
        ("hive.async.log.enabled", "false"),
        // The tool that made the tables wrote no version.
        ("datanucleus.schema.autoCreateAll", "true"),
        ("hive.metastore.schema.verification", "false"),
        // From 3 on: what else it would do beside needs all of Hive, or tables that are not made.
        ("metastore.thrift.bind.host", "127.0.0.1"),
        ("metastore.task.threads.always", no_tasks),
        ("metastore.task.threads.remote", no_tasks),
        ("metastore.expression.proxy", "org.apache.hadoop.hive.metastore.DefaultPartitionExpressionProxy"),
        ("hive.metastore.event.db.notification.api.auth", "false"),
    ];
    let file = tls.map(|store| store.file.display().to_string()).unwrap_or_default();
    if let Some(store) = tls {
        settings.extend([
            ("hive.metastore.use.SSL", "true"),
            ("hive.metastore.keystore.path", file.as_str()),
            ("hive.metastore.keystore.password", store.password.as_str()),
        ]);
    }
    let mut text = "<configuration>\n".to_owned();
    for (name, value) in settings {
        let value = value.replace('&', "&amp;");
        writeln!(text, "<property><name>{name}</name><value>{value}</value></property>")?;
    }
    Ok(text + "</configuration>\n")
}
