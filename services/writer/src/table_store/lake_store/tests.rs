#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use async_trait::async_trait;
use lake_test_kit::delegating_store::{DelegatingStore, Hooks, Request};
use object_store::memory::InMemory;
use object_store::{Error, Result};

use super::*;

/// What is odd about a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Oddity {
    /// It takes the condition of a put and does not look at it.
    Overwrites,
    /// The same where writers come at the same time.
    LosesRaces,
    /// Names that differ only by case are one.
    IgnoresCase,
    /// It does not know the condition.
    RefusesConditions,
    /// It fails this often, whatever is asked.
    Fails(u64),
    /// The answer to its first put gets lost, and a second try meets what was put.
    LosesAnswer,
}

/// A store in memory with an oddity.
#[derive(Debug)]
struct Odd {
    oddity: Oddity,
    created: Mutex<HashSet<Path>>,
    puts: AtomicU64,
    answers: AtomicU64,
}

impl Odd {
    fn store(oddity: Oddity) -> Arc<dyn ObjectStore> {
        let (created, puts, answers) = Default::default();
        DelegatingStore::over(Arc::new(InMemory::new()), Arc::new(Self { oddity, created, puts, answers }))
    }
}

#[async_trait]
impl Hooks for Odd {
    async fn before_put(&self, path: &Path, options: &mut PutOptions) -> Result<()> {
        let refusal = || Error::Generic { store: "odd", source: "501 Not Implemented".into() };
        let puts = self.puts.fetch_add(1, Ordering::Relaxed);
        match self.oddity {
            Oddity::RefusesConditions if options.mode == PutMode::Create => return Err(refusal()),
            Oddity::Fails(times) if puts < times => return Err(refusal()),
            _ => {}
        }
        let known = self.created.lock().unwrap().contains(path);
        if self.oddity == Oddity::Overwrites || self.oddity == Oddity::LosesRaces && !known {
            // As if the look at what is there and the put were two steps.
            tokio::task::yield_now().await;
            options.mode = PutMode::Overwrite;
        }
        Ok(())
    }

    fn after(&self, request: Request, path: &Path) -> Result<()> {
        if request != Request::Put {
            return Ok(());
        }
        self.created.lock().unwrap().insert(path.clone());
        let answers = self.answers.fetch_add(1, Ordering::Relaxed);
        if self.oddity == Oddity::LosesAnswer && answers == 0 {
            return Err(Error::AlreadyExists { path: path.to_string(), source: "found".into() });
        }
        Ok(())
    }

    fn stored_as(&self, request: Request, path: &Path) -> Path {
        let ignored = self.oddity == Oddity::IgnoresCase && matches!(request, Request::Put | Request::Get);
        if ignored { Path::parse(path.as_ref().to_lowercase()).unwrap() } else { path.clone() }
    }
}

/// A lake there would be written to one place and read from another.
#[test]
fn a_root_that_looks_escaped_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (name, is_refused) in [("a%20b", true), ("%C3%bc", true), ("100%", false), ("a b", false), ("50%off", false)] {
        let opened = LakeStore::open(&config(folder.path().join(name).to_str().unwrap()));
        assert_eq!(opened.is_err(), is_refused, "{name}: {opened:?}");
    }
    let error = LakeStore::open(&config("s3://bucket/a%2520b")).unwrap_err().to_string();
    assert!(error.contains("a%2520b") && error.contains("escaped"), "{error}");
}

fn odd(oddity: Oddity) -> (tempfile::TempDir, LakeStore) {
    let folder = tempfile::tempdir().unwrap();
    let store = LakeStore::open(&config(folder.path().to_str().unwrap())).unwrap();
    (folder, store.wrapped(|_| Odd::store(oddity)))
}

#[tokio::test]
async fn the_probe_finds_out_whether_case_counts() {
    let (_folder, blind) = odd(Oddity::IgnoresCase);
    blind.probe().await.unwrap();
    assert!(blind.ignores_case());
    let folder = tempfile::tempdir().unwrap();
    let sees =
        LakeStore::open(&config(folder.path().to_str().unwrap())).unwrap().wrapped(|_| Arc::new(InMemory::new()));
    sees.probe().await.unwrap();
    assert!(!sees.ignores_case());
}

/// Both a store that always overwrites and one that only loses the race.
#[tokio::test]
async fn a_store_without_exclusive_puts_is_refused_at_once_and_says_why() {
    for (oddity, winners) in [(Oddity::Overwrites, "2 of 2"), (Oddity::LosesRaces, "8 of 8")] {
        let (_folder, store) = odd(oddity);
        let error = store.probe_when_there().await.unwrap_err();
        assert!(matches!(error, LakeStoreError::NotExclusive { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(winners) && text.contains("conditional puts"), "{text}");
    }
}

/// Waiting would not help.
#[tokio::test]
async fn a_store_that_does_not_know_the_condition_is_refused_and_says_why() {
    let (_folder, store) = odd(Oddity::RefusesConditions);
    let error = store.probe_when_there().await.unwrap_err();
    assert!(matches!(error, LakeStoreError::NotConditional { .. }), "{error:?}");
    let text = Chain(&error).to_string();
    assert!(text.contains("conditional puts") && text.contains("501"), "{text}");
}

#[tokio::test]
async fn trouble_on_the_way_to_the_store_is_not_held_against_it() {
    let (_folder, store) = odd(Oddity::LosesAnswer);
    store.probe().await.unwrap();
    for times in [1, 2] {
        let (_folder, store) = odd(Oddity::Fails(times));
        let probed = store.probe().await;
        assert!(matches!(probed, Ok(()) | Err(LakeStoreError::Access { .. })), "{probed:?}");
    }
    let (_folder, store) = odd(Oddity::Fails(1_000));
    let error = store.probe().await.unwrap_err();
    assert!(error.may_pass(), "{error:?}");
}

fn config(root: &str) -> LakeStoreConfig {
    LakeStoreConfig::of_root(root)
}

#[tokio::test]
async fn a_local_folder_passes_the_probe_and_keeps_nothing_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("a lake");
    let store = LakeStore::open(&config(root.to_str().unwrap())).unwrap();
    store.probe().await.unwrap();
    store.check().await.unwrap();
    let left: Vec<_> = std::fs::read_dir(root.join("_lake_probe")).unwrap().collect();
    assert!(left.is_empty());
    assert!(store.location("d/case-sql/person").ends_with("/a%20lake/d/case-sql/person"));
}

#[test]
fn a_root_that_is_nothing_known_is_refused() {
    for root in ["", "s3://", "gs:///x", "hdfs:///x", "abfss://account.dfs.core.windows.net/x", "ftp://host/x"] {
        let error = LakeStore::open(&config(root)).unwrap_err();
        assert!(error.to_string().contains("s3://bucket/prefix"), "{error}");
    }
}

#[test]
fn a_bucket_is_opened_without_touching_it() {
    let s3 = S3Config {
        endpoint: Some("http://127.0.0.1:1".into()),
        region: Some("here".into()),
        access_key_id: Some("key".into()),
        secret_access_key: Some("secret".into()),
        allow_http: true,
        ..S3Config::default()
    };
    let store =
        LakeStore::open(&LakeStoreConfig { s3: Some(s3), ..LakeStoreConfig::of_root("s3://bucket/a/b") }).unwrap();
    assert_eq!(store.location("d/form-sql/x"), "s3://bucket/a/b/d/form-sql/x");
}

#[test]
fn every_kind_of_store_is_opened_without_touching_it() {
    let azure = AzureConfig { access_key: Some("a2V5".into()), ..AzureConfig::default() };
    let gcs = GcsConfig { anonymous: true, ..GcsConfig::default() };
    for (root, location) in [
        ("gs://bucket/a", "gs://bucket/a/d/case-sql/x"),
        ("abfss://lake@account.dfs.core.windows.net/a", "abfss://lake@account.dfs.core.windows.net/a/d/case-sql/x"),
        ("hdfs://127.0.0.1:1/a", "hdfs://127.0.0.1:1/a/d/case-sql/x"),
    ] {
        let (azure, gcs) = (Some(azure.clone()), Some(gcs.clone()));
        let config = LakeStoreConfig { azure, gcs, ..LakeStoreConfig::of_root(root) };
        assert_eq!(config.validate(), Ok(()), "{root}");
        let store = LakeStore::open(&config).unwrap();
        assert_eq!((store.location("d/case-sql/x"), store.local_folder("d")), (location.to_owned(), None));
        store.log_store("d/case-sql/x").unwrap();
    }
}

#[test]
fn an_address_in_plain_text_has_to_be_meant() {
    let plain = Some("http://127.0.0.1:1".to_owned());
    let s3 = S3Config { endpoint: plain.clone(), region: Some("here".into()), ..S3Config::default() };
    let azure = AzureConfig { endpoint: plain.clone(), access_key: Some("a2V5".into()), ..AzureConfig::default() };
    let gcs = GcsConfig { endpoint: plain, ..GcsConfig::default() };
    let config = |root: &str| LakeStoreConfig {
        s3: Some(s3.clone()),
        azure: Some(azure.clone()),
        gcs: Some(gcs.clone()),
        ..LakeStoreConfig::of_root(root)
    };
    for (root, key) in [
        ("s3://bucket/a", "store.s3.allow_http"),
        ("abfss://lake@account.dfs.core.windows.net/a", "store.azure.allow_http"),
        ("gs://bucket/a", "store.gcs.anonymous"),
    ] {
        let error = config(root).validate().unwrap_err();
        assert!(error.contains(key), "{error}");
    }
    let missing = S3Config { ca_file: Some("/nowhere/ca.pem".into()), ..S3Config::default() };
    let config = LakeStoreConfig { s3: Some(missing), ..LakeStoreConfig::of_root("s3://bucket/a") };
    assert!(config.validate().unwrap_err().contains("/nowhere/ca.pem"));
}
