//! What an operator sees who makes a mistake in the configuration: one line that names the key and what to do, exit code 64, and never a secret.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::path::PathBuf;

use lake_tests::invocation::{self, Outcome, check_config};
use tempfile::TempDir;

const SERVICES: [&str; 4] = ["fetcher", "enricher", "writer", "lake"];
/// In every address and key of the configurations below; must never be shown.
const SECRET: &str = "hunter2";

const HQ: &str = r#"
[hq.database]
url = "postgres://hq:hunter2@db/hq_main"
[[hq.database.shards]]
name = "p1"
first = 0
last = 511
url = "postgres://hq:hunter2@db/hq_p1"
[[hq.database.shards]]
name = "p2"
first = 512
last = 1023
url = "postgres://hq:hunter2@db/hq_p2"
[[hq.blobs.stores]]
s3_bucket = "blobdb"
endpoint = "https://s3"
access_key_id = "key"
secret_access_key = "hunter2"
[hq.users]
kind = "elasticsearch"
url = "http://hq:hunter2@es:9200"
index = "users"
"#;

const KAFKA: &str = r#"
[kafka]
bootstrap_servers = ["kafka:9092"]
sasl_password = "hunter2"
[kafka.properties]
"sasl.username" = "hq"
[take]
domains = "everything"
"#;

const QUEUE: &str = r#"
[queue]
servers = ["nats://lake:hunter2@nats:4222"]
"#;

const STORE: &str = r#"
[store]
root = "s3://lake/tables"
[store.s3]
endpoint = "https://s3"
access_key_id = "key"
secret_access_key = "hunter2"
[metastore]
url = "postgres://lake:hunter2@db/lake"
"#;

const COMMON: &str = "[telemetry]\nlog_format = \"text\"\n[process]\nthreads = 2\n";

/// A configuration that can be used.
fn valid(service: &str) -> String {
    let parts: &[&str] = match service {
        "fetcher" => &[COMMON, HQ, KAFKA, QUEUE],
        "enricher" => &[COMMON, HQ, QUEUE, "[enricher]\nworkers = 2\n"],
        "writer" => &[COMMON, QUEUE, STORE],
        _ => &[COMMON, HQ, KAFKA, STORE],
    };
    parts.concat()
}

/// A folder for configuration files.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, text: &str) -> PathBuf {
        let file = self.0.path().join("service.toml");
        std::fs::write(&file, text).unwrap();
        file
    }

    fn check(&self, service: &str, text: &str, variables: &[(&str, &str)]) -> Outcome {
        check_config(service, &self.write(text), variables).unwrap()
    }

    /// Replaces a part of the valid configuration, which must be refused with these words.
    fn refuse(&self, service: &str, part: &str, by: &str, words: &[&str]) {
        let text = valid(service);
        assert!(text.contains(part), "{service} has no {part}");
        assert_refused(service, &self.check(service, &text.replacen(part, by, 1), &[]), words);
    }
}

fn assert_refused(service: &str, outcome: &Outcome, words: &[&str]) {
    let told = &outcome.stderr;
    assert_eq!(outcome.code, Some(64), "{service} should say {words:?}, but: {outcome:?}");
    assert!(outcome.stdout.is_empty(), "{outcome:?}");
    assert!(told.starts_with(&format!("{service}: ")) && told.ends_with('\n'), "{told}");
    assert_eq!(told.lines().count(), 1, "one line: {told}");
    assert!(!told.contains(SECRET), "a secret is shown: {told}");
    for word in words {
        assert!(told.contains(word), "{service} should say {word:?}, but: {told}");
    }
}

#[test]
fn what_is_valid_is_taken() {
    let files = Files::new();
    for service in SERVICES {
        let outcome = files.check(service, &valid(service), &[]);
        assert_eq!((outcome.code, &*outcome.stdout), (Some(0), "configuration is valid\n"), "{outcome:?}");
        assert!(outcome.stderr.is_empty(), "{outcome:?}");
    }
}

#[test]
fn unknown_keys_are_named_with_those_that_are_known() {
    let files = Files::new();
    for service in SERVICES {
        files.refuse(
            service,
            "[telemetry]",
            "surprise = 1\n[telemetry]",
            &["unknown key `surprise`; known here: telemetry"],
        );
        files.refuse(
            service,
            "[telemetry]",
            "[telemetry]\nlog_levl = \"hunter2\"",
            &["service.toml", "unknown key `telemetry.log_levl`; known here: http_address, log_format, log_filter"],
        );
    }
    files.refuse("fetcher", "first = 0", "first = 0\nhost = \"hunter2\"", &["unknown key `hq.database.shards.0.host`"]);
    files.refuse("enricher", "index =", "indx =", &["`hq.users.indx`", "known here: url, index"]);
}

#[test]
fn missing_keys_are_named_with_the_variable_that_may_give_them() {
    let files = Files::new();
    for (service, part, key, variable) in [
        ("fetcher", "bootstrap_servers = [\"kafka:9092\"]", "kafka.bootstrap_servers", "LAKE_KAFKA__BOOTSTRAP_SERVERS"),
        ("fetcher", "domains = \"everything\"", "take.domains", "LAKE_TAKE__DOMAINS"),
        ("enricher", "url = \"postgres://hq:hunter2@db/hq_main\"", "hq.database.url", "LAKE_HQ__DATABASE__URL"),
        ("writer", "root = \"s3://lake/tables\"", "store.root", "LAKE_STORE__ROOT"),
        ("lake", "url = \"postgres://lake:hunter2@db/lake\"", "metastore.url", "LAKE_METASTORE__URL"),
    ] {
        files.refuse(service, part, "", &[&format!("missing key `{key}`"), &format!("set {variable}")]);
    }
    files.refuse("lake", "last = 511", "", &["missing key `hq.database.shards.0.last`; add it to the file"]);
    for service in SERVICES {
        let outcome = invocation::run(service, &["check-config"], &[]).unwrap();
        assert_refused(service, &outcome, &["no --config given", "missing key"]);
    }
}

#[test]
fn wrong_types_are_told_in_words_of_the_file() {
    let files = Files::new();
    for service in SERVICES {
        files.refuse(
            service,
            "threads = 2",
            "threads = \"hunter2\"",
            &["`process.threads`", "a whole number, found a text"],
        );
        files.refuse(service, "threads = 2", "threads = -1", &["`process.threads`", "expected a whole number"]);
        files.refuse(
            service,
            "\"text\"",
            "\"hunter\"",
            &["`telemetry.log_format`", "`hunter` is not one of json, text"],
        );
        files.refuse(service, "[process]\nthreads = 2", "process = 7", &["process"]);
    }
    files.refuse("fetcher", "[\"kafka:9092\"]", "\"hunter2\"", &["`kafka.bootstrap_servers`", "a list, found a text"]);
    files.refuse("fetcher", "\"everything\"", "3", &["`take.domains`", "\"everything\" or a list of names"]);
    files.refuse("writer", "\"s3://lake/tables\"", "[]", &["`store.root`", "a text, found a list"]);
}

#[test]
fn files_that_cannot_be_read_or_parsed_are_named() {
    let files = Files::new();
    for service in SERVICES {
        for path in [files.0.path().join("nowhere.toml"), files.0.path().to_owned()] {
            let outcome = check_config(service, &path, &[]).unwrap();
            assert_refused(service, &outcome, &[path.to_str().unwrap(), "cannot be read", "check --config"]);
        }
        for broken in ["password = \"hunter2\n", "hunter2 = [1,\n", "a = 1 hunter2\n", "[telemetry\nhunter2 = 1\n"] {
            let outcome = files.check(service, broken, &[]);
            assert_refused(service, &outcome, &["service.toml", "TOML parse error at line 1, column "]);
        }
        let twice = format!("{}{COMMON}", valid(service));
        assert_refused(service, &files.check(service, &twice, &[]), &["duplicate key", "telemetry"]);
    }
}

#[test]
fn log_filters_that_would_log_nothing_are_refused() {
    let files = Files::new();
    for service in SERVICES {
        for filter in ["loud", "info,lake_shared=loud", "inf"] {
            let line = format!("log_filter = \"{filter}\"\nlog_format");
            files.refuse(service, "log_format", &line, &["key `telemetry.log_filter`", "info,lake_writer=debug"]);
        }
        let outcome = files.check(service, &valid(service), &[("LAKE_LOG", "loud")]);
        assert_refused(service, &outcome, &["variable `LAKE_LOG`", "`loud` is not a level"]);
        for filter in ["debug", "off", "info,lake_shared=debug", "warn,[fetch]=trace", "INFO"] {
            let outcome = files.check(service, &valid(service), &[("LAKE_LOG", filter)]);
            assert_eq!(outcome.code, Some(0), "{filter}: {outcome:?}");
        }
    }
}

#[test]
fn variables_win_over_the_file() {
    let files = Files::new();
    for service in SERVICES {
        let wrong = valid(service).replace("threads = 2", "threads = \"two\"");
        let outcome = files.check(service, &wrong, &[("LAKE_PROCESS__THREADS", "3")]);
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        let outcome = files.check(service, &valid(service), &[("LAKE_PROCESS__THREADS", SECRET)]);
        assert_refused(service, &outcome, &["environment", "`process.threads`", "expected a whole number"]);
        let outcome = files.check(service, &valid(service), &[("LAKE_PROCESS__THREDS", SECRET)]);
        assert_refused(service, &outcome, &["environment", "unknown key `process.threds`", "known here: "]);
        let outcome = files.check(service, &valid(service), &[("LAKE_SURPRISE", SECRET)]);
        assert_refused(service, &outcome, &["environment", "unknown key `surprise`"]);

        let file = files.write(&valid(service));
        let named = [("LAKE_CONFIG", file.to_str().unwrap())];
        let outcome = invocation::run(service, &["check-config"], &named).unwrap();
        assert_eq!(outcome.code, Some(0), "LAKE_CONFIG names the file: {outcome:?}");
    }
    let lists = [("LAKE_TAKE__DOMAINS", r#"["a", "b"]"#), ("LAKE_QUEUE__SERVERS", r#"["nats://a", "nats://b"]"#)];
    let outcome = files.check("fetcher", &valid("fetcher"), &lists);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    let outcome = files.check("fetcher", &valid("fetcher"), &[("LAKE_QUEUE__SERVERS", "nats://hunter2")]);
    assert_refused("fetcher", &outcome, &["`queue.servers`", "a list", r#"["one", "two"]"#]);
    let outcome = files.check("writer", &valid("writer"), &[("LAKE_STORE__S3__SECRET_ACCESS_KEY", "12345")]);
    assert_refused("writer", &outcome, &["`store.s3.secret_access_key`", "put double quotes around it"]);
    assert!(!outcome.stderr.contains("LAKE_STORE"), "{outcome:?}");
    let outcome = files.check("writer", &valid("writer"), &[("LAKE_STORE__S3__SECRET_ACCESS_KEY", r#""12345""#)]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
}

#[test]
fn shard_ranges_must_cover_every_shard_once() {
    let files = Files::new();
    for service in ["fetcher", "enricher", "lake"] {
        for (part, by, words) in [
            ("first = 512", "first = 600", "shards 512 to 599 belong to no database"),
            ("first = 512", "first = 500", "shard 500 belongs to both p1 and p2"),
            ("first = 0", "first = 1", "shards 0 to 0 belong to no database"),
            ("first = 0", "first = 900", "first shard 900 is greater than last shard 511"),
            ("last = 1023", "last = 1024", "the last of 1024 shards is 1023"),
            ("last = 1023", "last = 1000", "belong to no database"),
        ] {
            files.refuse(service, part, by, &["key `hq.database.shards`", words]);
        }
        let odd = "shard_count = 1000\n[[hq.database.shards]]";
        files.refuse(service, "[[hq.database.shards]]", odd, &["shard_count is 1000, but must be a power of two"]);
    }
}

#[test]
fn addresses_of_hq_must_be_usable() {
    let files = Files::new();
    for service in ["fetcher", "enricher", "lake"] {
        for (part, by, words) in [
            (
                "postgres://hq:hunter2@db/hq_main",
                "mysql://hq:hunter2@db/hq",
                "key `hq.database.url`: it is not of the form",
            ),
            ("postgres://hq:hunter2@db/hq_p2", "db hunter2", "key `hq.database.shards.1.url`: it is not of the form"),
            ("http://hq:hunter2@es:9200", "es:hunter2", "key `hq.users.url`: it is not of the form"),
            ("s3_bucket = \"blobdb\"\n", "", "key `hq.blobs.stores.0`: it needs either folder or s3_bucket"),
            (
                "s3_bucket",
                "folder = \"/mnt\"\ns3_bucket",
                "key `hq.blobs.stores.0`: it needs either folder or s3_bucket",
            ),
            ("access_key_id = \"key\"\n", "", "access_key_id and secret_access_key go together"),
            ("https://s3", "http://s3", "set allow_http = true"),
        ] {
            files.refuse(service, part, by, &[words]);
        }
        let text = valid(service).replacen("[[hq.blobs.stores]]", "[hq.blobs]\nstores = []\n[[ignored]]", 1);
        let outcome = files.check(service, &text.replacen("[[ignored]]\ns3_bucket = \"blobdb\"", "", 1), &[]);
        assert_eq!(outcome.code, Some(64), "{outcome:?}");
    }
}

#[test]
fn kafka_and_queue_must_be_usable() {
    let files = Files::new();
    for service in ["fetcher", "lake"] {
        files.refuse(service, "[\"kafka:9092\"]", "[]", &["key `kafka.bootstrap_servers`", "no broker is named"]);
        let misspelt = "\"sasl.pasword\" = \"hunter2\"\n\"sasl.username\"";
        files.refuse(
            service,
            "\"sasl.username\"",
            misspelt,
            &["key `kafka.properties`: `sasl.pasword` is no property"],
        );
        let wrong = "\"session.timeout.ms\" = \"hunter2\"\n\"sasl.username\"";
        files.refuse(service, "\"sasl.username\"", wrong, &["`session.timeout.ms` cannot have that value"]);
    }
    for service in ["fetcher", "enricher", "writer"] {
        let address = "nats://lake:hunter2@nats:4222";
        files.refuse(service, &format!("[\"{address}\"]"), "[]", &["key `queue.servers`", "no server is named"]);
        files.refuse(
            service,
            address,
            "nats://lake:hunter2@na ts:4222",
            &["key `queue.servers`", "not an address like"],
        );
        files.refuse(service, "[queue]", "[queue]\ntoken = \"hunter2\"", &["section `queue`", "more than one login"]);
        let lonely = "\nservers = [\"nats://nats\"]\nuser = \"lake\" #";
        files.refuse(service, "\nservers =", lonely, &["section `queue`", "give user and password"]);
    }
}

#[test]
fn the_lake_must_have_a_usable_place() {
    let files = Files::new();
    for service in ["writer", "lake"] {
        let root = "\"s3://lake/tables\"";
        for (by, words) in [
            ("\"\"", "key `store.root`: it is empty"),
            ("\"ftp://host/x\"", "the scheme ftp is not supported; give a folder, file:///folder, s3://bucket/prefix"),
            ("\"s3://\"", "key `store.root`"),
        ] {
            files.refuse(service, root, by, &[words]);
        }
        let s3 = |by: &str, words: &[&str]| {
            let text = valid(service);
            let (before, store) = text.split_once("[store.s3]").unwrap();
            let text = format!("{before}[store.s3]{}", store.replacen("https://s3", by, 1));
            assert_refused(service, &files.check(service, &text, &[]), words);
        };
        s3("http://s3", &["key `store.s3.endpoint`", "set store.s3.allow_http = true"]);
        s3("s3 hunter2", &["key `store.s3.endpoint`", "it is not of the form https://host:port"]);
        for url in ["mysql://lake:hunter2@db/lake", "hunter2", "sqlite:", "postgres://lake:hunter2@db:port/lake"] {
            let words = ["key `metastore.url`: it is neither postgres://user:password@host:port/database nor sqlite:"];
            files.refuse(service, "postgres://lake:hunter2@db/lake", url, &words);
        }
    }
}

#[test]
fn rules_about_rows_are_checked() {
    let files = Files::new();
    files.refuse("enricher", "workers = 2", "workers = 0", &["enricher.workers must be at least 1"]);
    let rule = "workers = 2\n[[enricher.transforms]]\nactions = [{ drop = \"/_id\" }]";
    files.refuse("enricher", "workers = 2", rule, &["enricher.transforms[0]", "no action may change /_id"]);
    let rule = "workers = 2\n[[enricher.transforms]]\nkind = \"user\"\nactions = []";
    files.refuse("enricher", "workers = 2", rule, &["kind must be case, form or location"]);
    files.refuse(
        "fetcher",
        "[take]",
        "[fetch]\nmax_records = 0\n[take]",
        &["key `fetch.max_records`: must be 1 to 5000"],
    );
    files.refuse(
        "writer",
        "[store]",
        "[tables]\ntarget_file_bytes = 0\n[store]",
        &["`tables.target_file_bytes`", "at least 1"],
    );
}

#[test]
fn a_wrong_command_line_ends_with_the_same_code() {
    for service in SERVICES {
        for (arguments, words) in [
            (vec!["surf"], "unrecognized subcommand 'surf'"),
            (vec!["serve", "--confg", "x"], "unexpected argument '--confg'"),
            (vec![], "Usage: "),
        ] {
            let outcome = invocation::run(service, &arguments, &[]).unwrap();
            assert_eq!(outcome.code, Some(64), "{outcome:?}");
            assert!(outcome.stderr.contains(words), "{outcome:?}");
        }
        let outcome = invocation::run(service, &["--help"], &[]).unwrap();
        assert!(outcome.code == Some(0) && outcome.stdout.contains("check-config"), "{outcome:?}");
        let outcome = invocation::run(service, &["version"], &[]).unwrap();
        assert!(outcome.code == Some(0) && outcome.stdout.starts_with(&format!("{service} ")), "{outcome:?}");
    }
}
