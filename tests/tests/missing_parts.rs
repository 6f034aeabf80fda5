//! Services whose servers are not there, or do not let them in: they wait with back-off and say for what, they are alive meanwhile, they end
//! at once when told to, and what waiting does not mend ends them with one clear line. No secret is shown.
//!
//! A wrong password: HQ's databases end the service (code 1), since somebody has to act; the metastore, which is often created beside the
//! writer, is asked again and again, with a line for each try.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use lake_simulated_hq::postgres::PostgresSink;
use lake_tests::invocation::run;
use lake_tests::parts::{Launch, Nats, Port, Postgres, Service, wait_until};
use reqwest::StatusCode;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);
/// In every address and key; must never be shown.
const SECRET: &str = "hunter2";

/// Addresses at which nothing listens, and a folder for files.
struct Nowhere {
    ports: [Port; 6],
    folder: TempDir,
}

impl Nowhere {
    fn new() -> Self {
        Self { ports: std::array::from_fn(|_| Port::free().unwrap()), folder: tempfile::tempdir().unwrap() }
    }

    fn port(&self, place: usize) -> u16 {
        self.ports[place].number()
    }

    fn hq(&self) -> String {
        format!(
            "[hq.database]\nurl = \"postgres://hq:{SECRET}@127.0.0.1:{}/hq_main\"\n\
             [[hq.blobs.stores]]\ns3_bucket = \"blobdb\"\nendpoint = \"http://127.0.0.1:{}\"\naccess_key_id = \"key\"\n\
             secret_access_key = \"{SECRET}\"\nallow_http = true\n\
             [hq.users]\nkind = \"elasticsearch\"\nurl = \"http://hq:{SECRET}@127.0.0.1:{}\"\nindex = \"users\"\n",
            self.port(0),
            self.port(0),
            self.port(0),
        )
    }

    fn kafka(&self) -> String {
        format!("[kafka]\nbootstrap_servers = [\"127.0.0.1:{}\"]\n[take]\ndomains = \"everything\"\n", self.port(1))
    }

    fn queue(&self) -> String {
        format!("[queue]\nservers = [\"nats://lake:{SECRET}@127.0.0.1:{}\"]\n", self.port(2))
    }

    fn bucket(&self) -> String {
        format!(
            "[store]\nroot = \"s3://lake/tables\"\n[store.s3]\nendpoint = \"http://127.0.0.1:{}\"\naccess_key_id = \"key\"\n\
             secret_access_key = \"{SECRET}\"\nallow_http = true\n",
            self.port(3),
        )
    }

    fn folder_store(&self) -> String {
        format!("[store]\nroot = \"{}\"\n", self.folder.path().join("lake").display())
    }

    fn postgres_metastore(&self) -> String {
        format!("[metastore]\nurl = \"postgres://lake:{SECRET}@127.0.0.1:{}/lake\"\n", self.port(4))
    }

    fn sqlite_metastore(&self) -> String {
        format!("[metastore]\nurl = \"sqlite:{}\"\n", self.folder.path().join("metastore.sqlite").display())
    }

    /// Writes a configuration and gives its path.
    fn config(&self, sections: &[String]) -> String {
        let file = self.folder.path().join("service.toml");
        let telemetry = format!(
            "[telemetry]\nhttp_address = \"127.0.0.1:{}\"\nlog_filter = \"info,object_store=warn\"\n",
            self.port(5)
        );
        std::fs::write(&file, format!("{telemetry}{}", sections.concat())).unwrap();
        file.to_str().unwrap().to_owned()
    }

    async fn get(&self, path: &str) -> anyhow::Result<(StatusCode, String)> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(10)).build()?;
        let answer = client.get(format!("http://127.0.0.1:{}{path}", self.port(5))).send().await?;
        Ok((answer.status(), answer.text().await?))
    }
}

fn serve(binary: &str, config: &str) -> Service {
    Launch::new(binary).args(["serve", "--config", config]).start().unwrap()
}

/// Lines of the log at warning or above that contain all these words.
fn warnings(service: &Service, words: &[&str]) -> Vec<Value> {
    let log = service.log();
    assert!(!log.contains(SECRET), "a secret is shown: {log}");
    let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).expect(line));
    let severe = lines.filter(|line| line["level"] == "WARN" || line["level"] == "ERROR");
    severe.filter(|line| words.iter().all(|word| line.to_string().contains(word))).collect()
}

async fn told(service: &Service, times: usize, words: &[&str]) {
    let what = format!("{words:?} is told");
    let outcome = wait_until(&what, PATIENCE, async || Ok(warnings(service, words).len() >= times)).await;
    outcome.unwrap_or_else(|error| panic!("{error:#}\n{}", service.log()));
}

/// Ends well, and does not use up its grace time.
fn end(service: &mut Service) {
    let status = service.process().terminate_within(Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(0), "{}", service.log());
}

/// Runs `serve`, which must give up with one last line that is no log line.
fn gives_up(binary: &str, config: &str, words: &[&str]) {
    let outcome = run(binary, &["serve", "--config", config], &[]).unwrap();
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(!outcome.stderr.contains(SECRET), "a secret is shown: {outcome:?}");
    let plain: Vec<&str> = outcome.stderr.lines().filter(|line| !line.starts_with('{')).collect();
    let [line] = plain[..] else { panic!("not one line: {outcome:?}") };
    assert!(line.starts_with(&format!("{binary}: ")) && words.iter().all(|word| line.contains(word)), "{line}");
}

#[tokio::test]
async fn services_wait_for_their_parts_and_end_when_told_to() {
    for binary in ["fetcher", "enricher", "writer", "lake"] {
        let nowhere = Nowhere::new();
        let (sections, key, place) = match binary {
            "fetcher" => (vec![nowhere.hq(), nowhere.kafka(), nowhere.queue()], "check the section [hq]", 0),
            "enricher" => (vec![nowhere.hq(), nowhere.queue()], "check the section [hq]", 0),
            "writer" => (vec![nowhere.queue(), nowhere.bucket(), nowhere.postgres_metastore()], "metastore.url", 4),
            _ => {
                let sections = vec![nowhere.hq(), nowhere.kafka(), nowhere.bucket(), nowhere.postgres_metastore()];
                (sections, "metastore.url", 4)
            }
        };
        let config = nowhere.config(&sections);
        let address = format!("127.0.0.1:{}", nowhere.port(place));
        let mut service = serve(binary, &config);
        told(&service, 4, &[key, &address, "refused"]).await;
        let waits: Vec<u64> =
            warnings(&service, &[key]).iter().map(|line| line["wait_ms"].as_u64().expect("wait_ms")).collect();
        assert!(waits[0] <= 100 && waits[3] > waits[0], "{binary} waits {waits:?} ms");

        assert_eq!(nowhere.get("/live").await.unwrap(), (StatusCode::OK, "live\n".to_owned()), "{binary}");
        let (status, body) = nowhere.get("/ready").await.unwrap();
        assert!(status == StatusCode::SERVICE_UNAVAILABLE && body.starts_with("starting"), "{binary}: {status} {body}");
        let outcome = run(binary, &["health", "--config", &config], &[]).unwrap();
        assert!(outcome.code == Some(1) && outcome.stderr.contains("not ready: starting"), "{outcome:?}");
        end(&mut service);

        let outcome = run(binary, &["health", "--config", &config], &[]).unwrap();
        assert!(outcome.code == Some(1) && outcome.stderr.contains("is the service running?"), "{outcome:?}");
    }
}

#[tokio::test]
async fn a_writer_waits_for_its_bucket() {
    let nowhere = Nowhere::new();
    let config = nowhere.config(&[nowhere.queue(), nowhere.bucket(), nowhere.sqlite_metastore()]);
    let mut service = serve("writer", &config);
    let address = format!("127.0.0.1:{}", nowhere.port(3));
    told(&service, 2, &["check store.root and store.s3", "s3://lake/tables", &address]).await;
    end(&mut service);
}

#[tokio::test]
async fn a_writer_waits_for_its_queue() {
    let nowhere = Nowhere::new();
    let config = nowhere.config(&[nowhere.queue(), nowhere.folder_store(), nowhere.sqlite_metastore()]);
    let mut service = serve("writer", &config);
    let address = format!("127.0.0.1:{}", nowhere.port(2));
    told(&service, 2, &["correct queue.servers", &address, "wait_ms"]).await;
    end(&mut service);
}

/// HQ's tables on a real server, without a row; the section `[hq]` that reads them, with blobs in a folder.
async fn empty_hq(postgres: &Postgres, folder: &Path) -> String {
    let url = postgres.create_database("hq_main").unwrap();
    PostgresSink::connect(&url, Vec::new()).await.unwrap().create_schema().await.unwrap();
    format!("[hq.database]\nurl = \"{url}\"\n[[hq.blobs.stores]]\nfolder = \"{}\"\n", folder.display())
}

#[tokio::test]
async fn a_fetcher_waits_for_kafka() {
    let (postgres, nats) = (Postgres::start().unwrap(), Nats::start().unwrap());
    let nowhere = Nowhere::new();
    let hq = empty_hq(&postgres, nowhere.folder.path()).await;
    let queue = format!(
        "[queue]\nservers = [\"{}\"]\nstream_size_bytes_max = 16777216\nquarantine_size_bytes_max = 16777216\n",
        nats.url()
    );
    let config = nowhere.config(&[hq, nowhere.kafka(), queue]);
    let mut service = serve("fetcher", &config);
    let address = format!("127.0.0.1:{}", nowhere.port(1));
    told(&service, 1, &["check kafka.bootstrap_servers", &address]).await;
    assert_eq!(nowhere.get("/live").await.unwrap().0, StatusCode::OK);
    // A machine that is busy may need longer for this than the service gives it.
    wait_until("it is said that Kafka alone is missing", PATIENCE, async || {
        let (status, body) = nowhere.get("/ready").await?;
        let is_said = body.lines().count() == 1 && body.starts_with("kafka: no broker answers");
        anyhow::ensure!(status == StatusCode::SERVICE_UNAVAILABLE && is_said, "{status}: {body}");
        Ok(true)
    })
    .await
    .unwrap();
    let status = service.process().terminate_within(Duration::from_secs(10)).unwrap();
    assert_eq!(status.code(), Some(0), "{}", service.log());
}

/// Gives the role `lake` a password, and asks for it from now on.
async fn ask_for_passwords(postgres: &Postgres) {
    let mut connection = PgConnection::connect(&postgres.url("postgres")).await.unwrap();
    let (file,): (String,) = sqlx::query_as("show hba_file").fetch_one(&mut connection).await.unwrap();
    for statement in [
        "alter role lake password 'right'".to_owned(),
        format!("copy (select 'host all all 127.0.0.1/32 scram-sha-256') to '{file}'"),
        "select pg_reload_conf()".to_owned(),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
    let url = postgres.url("postgres");
    let asks = async || Ok(PgConnection::connect(&url).await.is_err());
    wait_until("Postgres asks for passwords", PATIENCE, asks).await.unwrap();
}

#[tokio::test]
async fn a_wrong_password_is_told() {
    let postgres = Postgres::start().unwrap();
    let nowhere = Nowhere::new();
    let hq = empty_hq(&postgres, nowhere.folder.path()).await;
    ask_for_passwords(&postgres).await;
    let with_password = |url: String| url.replace("lake@", &format!("lake:{SECRET}@"));

    let hq = with_password(hq);
    let words = ["main database", "password authentication failed", "check user, password and pg_hba.conf"];
    let config = nowhere.config(&[hq.clone(), nowhere.kafka(), nowhere.queue()]);
    gives_up("fetcher", &config, &words);
    let config = nowhere.config(&[hq.clone(), nowhere.queue()]);
    gives_up("enricher", &config, &words);
    let metastore = format!("[metastore]\nurl = \"{}\"\n", with_password(postgres.url("lake_metastore")));
    let config = nowhere.config(&[nowhere.queue(), nowhere.folder_store(), metastore]);
    let mut service = serve("writer", &config);
    told(&service, 2, &["check metastore.url", "password authentication failed for user"]).await;
    end(&mut service);

    let right = hq.replace(SECRET, "right").replace("hq_main", "hq_other");
    let config = nowhere.config(&[right, nowhere.kafka(), nowhere.queue()]);
    gives_up("fetcher", &config, &["hq_other", "does not exist", "check the database's name in the address"]);
}

#[tokio::test]
async fn what_waiting_does_not_mend_ends_a_service() {
    let nowhere = Nowhere::new();
    let file = nowhere.folder.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let store = format!("[store]\nroot = \"{}\"\n", file.join("lake").display());
    let config = nowhere.config(&[nowhere.queue(), store, nowhere.sqlite_metastore()]);
    gives_up("writer", &config, &["a file/lake", "the folder cannot be created", "s3://bucket/prefix"]);

    let taken = TcpListener::bind(("127.0.0.1", nowhere.port(5))).unwrap();
    let config = nowhere.config(&[nowhere.queue(), nowhere.folder_store(), nowhere.sqlite_metastore()]);
    let address = taken.local_addr().unwrap().to_string();
    gives_up("writer", &config, &["telemetry.http_address", &address, "choose a free address"]);
}
