//! A file system of Hadoop: a name node and a data node.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use tempfile::TempDir;

use super::port::Port;
use super::probe::http_body;
use super::process::Process;
use super::{installed, with_fresh_ports};

/// What the name node tells of itself when files can be written.
const STATE: &str = "/jmx?qry=Hadoop:service=NameNode,name=FSNamesystemState";

/// A running file system, empty at the start. Files survive a hard kill.
#[derive(Debug)]
pub struct Hdfs {
    name_node: Process,
    data_node: Process,
    ports: Ports,
    _folder: TempDir,
}

#[derive(Debug)]
struct Ports {
    name_node: Port,
    name_node_http: Port,
    data_node: Port,
    data_node_http: Port,
    data_node_ipc: Port,
}

impl Hdfs {
    /// Starts an empty file system, in about eight seconds.
    ///
    /// # Errors
    /// When Hadoop or Java is not installed, or it does not come up.
    pub fn start() -> anyhow::Result<Self> {
        with_fresh_ports(Self::start_once)
    }

    fn start_once() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("lake-test-hdfs-").tempdir()?;
        let ports = Ports {
            name_node: Port::free()?,
            name_node_http: Port::free()?,
            data_node: Port::free()?,
            data_node_http: Port::free()?,
            data_node_ipc: Port::free()?,
        };
        configure(&ports, folder.path())?;
        let formatted = java(folder.path())?
            .args(["org.apache.hadoop.hdfs.server.namenode.NameNode", "-format", "-nonInteractive"])
            .stdin(Stdio::null())
            .output()
            .context("run java: run tests/set-up if it is missing")?;
        if !formatted.status.success() {
            bail!("HDFS cannot be formatted: {}", String::from_utf8_lossy(&formatted.stderr).trim());
        }
        let leftovers = vec![folder.path().to_owned()];
        let http = ports.name_node_http.number();
        let state = move || http_body(http, STATE).unwrap_or_default();
        let mut name_node = java(folder.path())?;
        name_node.arg("org.apache.hadoop.hdfs.server.namenode.NameNode");
        let answers = Box::new(move || !state().is_empty());
        let log = folder.path().join("name-node.log");
        let name_node = Process::start("HDFS name node", name_node, &log, "TERM", leftovers.clone(), answers)?;
        let mut data_node = java(folder.path())?;
        data_node.arg("org.apache.hadoop.hdfs.server.datanode.DataNode");
        let takes_files = Box::new(move || {
            let state = state();
            state.contains("\"NumLiveDataNodes\" : 1") && state.contains("\"FSState\" : \"Operational\"")
        });
        let log = folder.path().join("data-node.log");
        let data_node = Process::start("HDFS data node", data_node, &log, "TERM", leftovers, takes_files)?;
        Ok(Self { name_node, data_node, ports, _folder: folder })
    }

    /// The address of a folder, as `hdfs://127.0.0.1:<port>/<folder>`.
    pub fn url(&self, folder: &str) -> String {
        format!("hdfs://127.0.0.1:{}/{folder}", self.ports.name_node.number())
    }

    /// Kills both nodes hard and starts them again on the same ports and data.
    ///
    /// # Errors
    /// When one of them does not come up again.
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.data_node.kill_hard()?;
        self.name_node.restart()?;
        self.data_node.start_again()
    }
}

fn configure(ports: &Ports, folder: &Path) -> anyhow::Result<()> {
    let at = |port: &Port| format!("127.0.0.1:{}", port.number());
    let place = |name: &str| format!("file://{}", folder.join(name).display());
    let properties = [
        ("fs.defaultFS", format!("hdfs://{}", at(&ports.name_node))),
        ("dfs.namenode.rpc-address", at(&ports.name_node)),
        ("dfs.namenode.http-address", at(&ports.name_node_http)),
        ("dfs.datanode.address", at(&ports.data_node)),
        ("dfs.datanode.http.address", at(&ports.data_node_http)),
        ("dfs.datanode.ipc.address", at(&ports.data_node_ipc)),
        ("dfs.namenode.name.dir", place("names")),
        ("dfs.datanode.data.dir", place("blocks")),
        ("hadoop.tmp.dir", folder.join("tmp").display().to_string()),
        ("dfs.permissions.enabled", "false".to_owned()),
        ("dfs.replication", "1".to_owned()),
        ("dfs.namenode.safemode.extension", "0".to_owned()),
        // What a data node that was killed left open is given up within seconds, and it is missed as soon.
        ("dfs.namenode.heartbeat.recheck-interval", "1000".to_owned()),
        ("dfs.heartbeat.interval", "1".to_owned()),
        ("dfs.namenode.datanode.registration.ip-hostname-check", "false".to_owned()),
    ];
    let properties =
        properties.map(|(name, value)| format!("<property><name>{name}</name><value>{value}</value></property>"));
    let text = format!("<configuration>{}</configuration>", properties.join("\n"));
    // Each of Hadoop's parts reads another one of them.
    for name in ["core-site.xml", "hdfs-site.xml"] {
        std::fs::write(folder.join(name), &text)?;
    }
    Ok(())
}

fn java(configuration: &Path) -> anyhow::Result<Command> {
    let jars = installed("hdfs/jars")?;
    let mut command = Command::new("java");
    command.args(["-Xmx256m", "-Xms64m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]);
    command.arg("-cp").arg(format!("{}:{}", configuration.display(), jars.join("*").display()));
    command.current_dir(configuration);
    Ok(command)
}
