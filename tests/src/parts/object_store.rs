//! An S3 store with signatures and conditional puts: SeaweedFS in one process.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::FutureExt;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path as Key;
use object_store::signer::Signer;
use tempfile::TempDir;

use super::port::Port;
use super::probe::http_status;
use super::process::Process;
use super::{installed, with_fresh_ports};

const ACCESS_KEY: &str = "lake-test";
const SECRET_KEY: &str = "lake-test-secret";
const REGION: &str = "us-east-1";
/// Written and read to find out whether the store takes and gives objects yet.
const PROBE_BUCKET: &str = "readiness";
const SIGNATURE_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);

/// A running S3 store without buckets of interest. Objects survive a hard kill.
#[derive(Debug)]
pub struct ObjectStore {
    server: Process,
    ports: Ports,
    sockets: Vec<PathBuf>,
    _folder: TempDir,
}

/// SeaweedFS is five servers in one; each wants a port for HTTP and, 10,000 above, one for gRPC.
#[derive(Debug)]
struct Ports {
    s3: Port,
    master: Port,
    volume: Port,
    filer: Port,
    admin: Port,
}

impl ObjectStore {
    /// Starts an empty store, in about two seconds.
    ///
    /// # Errors
    /// When SeaweedFS is not installed, or does not come up.
    pub fn start() -> anyhow::Result<Self> {
        with_fresh_ports(Self::start_once)
    }

    fn start_once() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("lake-test-s3-").tempdir()?;
        let ports = Ports {
            s3: Port::free_pair()?,
            master: Port::free_pair()?,
            volume: Port::free_pair()?,
            filer: Port::free_pair()?,
            admin: Port::free_pair()?,
        };
        let command = server_command(&ports, folder.path())?;
        let [put, get] = [reqwest::Method::PUT, reqwest::Method::GET]
            .map(|method| signed(&endpoint(&ports), method, PROBE_BUCKET, &Key::from("probe")));
        let (put, get, s3) = (put?, get?, ports.s3.number());
        // Only an object with content lies on a volume, and reading finds volumes in another way than writing does, later after a start.
        let ready = Box::new(move || {
            http_status(s3, "PUT", &put, "content") == Some(200) && http_status(s3, "GET", &get, "") == Some(200)
        });
        let log = folder.path().join("server.log");
        let sockets = ports.sockets();
        let leftovers = sockets.iter().cloned().chain([folder.path().to_owned()]).collect();
        let server = Process::start("SeaweedFS", command, &log, "TERM", leftovers, ready)?;
        Ok(Self { server, ports, sockets, _folder: folder })
    }

    /// The address of the S3 API, as `http://127.0.0.1:<port>`.
    pub fn endpoint(&self) -> String {
        endpoint(&self.ports)
    }

    /// The access key that may do everything. Others are refused.
    pub fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// The secret that belongs to [`ObjectStore::access_key`].
    pub fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// The region to name; the store takes any.
    pub fn region(&self) -> &'static str {
        REGION
    }

    /// What a program needs in its environment to use the store: `AWS_ENDPOINT_URL`, keys, region, and leave to speak plain HTTP.
    /// The same names work as storage options of Delta libraries.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint()),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ALLOW_HTTP", "true".to_owned()),
        ]
    }

    /// Makes an empty bucket.
    ///
    /// # Errors
    /// When the store is down or refuses, for instance because the bucket exists.
    pub fn create_bucket(&self, name: &str) -> anyhow::Result<()> {
        let target = signed(&self.endpoint(), reqwest::Method::PUT, name, &Key::default())?;
        match http_status(self.ports.s3.number(), "PUT", &target, "") {
            Some(200) => Ok(()),
            Some(status) => bail!("the S3 store refuses to create bucket {name} (HTTP {status})"),
            None => bail!("the S3 store does not answer the request to create bucket {name}"),
        }
    }

    /// A client for a bucket.
    ///
    /// # Errors
    /// When `bucket` cannot be a bucket name.
    pub fn client(&self, bucket: &str) -> anyhow::Result<AmazonS3> {
        client(&self.endpoint(), bucket)
    }

    /// The server process, to be stopped, killed, frozen or started again.
    pub fn server(&mut self) -> &mut Process {
        &mut self.server
    }
}

impl Drop for ObjectStore {
    fn drop(&mut self) {
        let _ = self.server.kill_hard();
        // Killed hard, SeaweedFS leaves its sockets in /tmp; their names hold the reserved ports, so they are ours.
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

impl Ports {
    /// The Unix sockets that SeaweedFS opens in `/tmp` whatever it is told.
    fn sockets(&self) -> Vec<PathBuf> {
        let grpc = [
            ("master", &self.master),
            ("volume", &self.volume),
            ("filer", &self.filer),
            ("s3", &self.s3),
            ("admin", &self.admin),
        ];
        let grpc = grpc.map(|(server, port)| format!("{server}-grpc-{}", port.number() + 10_000));
        let http =
            [("filer", &self.filer), ("s3", &self.s3)].map(|(server, port)| format!("{server}-{}", port.number()));
        grpc.into_iter().chain(http).map(|name| PathBuf::from(format!("/tmp/seaweedfs-{name}.sock"))).collect()
    }
}

fn server_command(ports: &Ports, folder: &Path) -> anyhow::Result<Command> {
    let identities = folder.join("identities.json");
    std::fs::write(
        &identities,
        serde_json::to_vec(&serde_json::json!({"identities": [{
            "name": "lake",
            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]}))?,
    )?;
    let data = folder.join("data");
    std::fs::create_dir(&data)?;
    let mut command = Command::new(installed("python/bin/weed")?);
    // Its own settings and logs would otherwise land in the home folder of the user and in the working folder.
    command.env("HOME", folder).current_dir(folder);
    command.args(["-logtostderr=true", "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-metricsPort=0"]);
    command.arg(format!("-dir={}", data.display()));
    command.arg(format!("-s3.config={}", identities.display()));
    for (server, port) in [
        ("s3", &ports.s3),
        ("master", &ports.master),
        ("volume", &ports.volume),
        ("filer", &ports.filer),
        ("admin", &ports.admin),
    ] {
        command.arg(format!("-{server}.port={}", port.number()));
        command.arg(format!("-{server}.port.grpc={}", port.number() + 10_000));
    }
    command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]);
    // Small volumes, so that the store does not plan with the whole disk; and no reports to its makers.
    command.args(["-master.volumeSizeLimitMB=64", "-volume.max=200", "-master.telemetry=false"]);
    Ok(command)
}

fn endpoint(ports: &Ports) -> String {
    format!("http://127.0.0.1:{}", ports.s3.number())
}

fn client(endpoint: &str, bucket: &str) -> anyhow::Result<AmazonS3> {
    AmazonS3Builder::new()
        .with_endpoint(endpoint)
        .with_allow_http(true)
        .with_region(REGION)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_bucket_name(bucket)
        .build()
        .with_context(|| format!("make a client for bucket {bucket}"))
}

/// Path and query of a signed request; an empty key means the bucket itself.
fn signed(endpoint: &str, method: reqwest::Method, bucket: &str, key: &Key) -> anyhow::Result<String> {
    let client = client(endpoint, bucket)?;
    let url = client
        .signed_url(method, key, SIGNATURE_LIFETIME)
        .now_or_never()
        .context("signing with fixed keys waits for nothing")??;
    Ok(format!("{}?{}", url.path(), url.query().unwrap_or_default()))
}
