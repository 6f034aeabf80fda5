//! The alert rules and dashboards that the chart ships and `docker-compose.yml` provisions: rules fire when they should, name commands that `lakectl`
//! knows, and everything that rules and panels ask for is told by services at work, as a real Prometheus sees them.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use lake_simulated_hq::life::{Life, LifeOptions};
use lake_tests::invocation::run;
use lake_tests::parts::{Port, Prometheus, parts_dir, wait_until};
use lake_tests::system::{RealParts, Running};
use serde::Deserialize;
use serde_json::Value;

const RULES: &str = "deploy/helm/commcare-lake/files/alerts.yml";
const HISTORIES: &str = "tests/deployment/alerts_test.yml";
const DASHBOARDS: [&str; 2] = ["operator", "engineer"];
/// Changes of the life that is played; with them every metric is told.
const CHANGES: u64 = 6_000;
/// How long that may take.
const TOLD_WITHIN: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
struct Rules {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

#[derive(Deserialize)]
struct Rule {
    alert: String,
    expr: String,
    labels: Labels,
    annotations: Annotations,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Labels {
    severity: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Annotations {
    question: String,
    summary: String,
    command: String,
}

fn root() -> PathBuf {
    lake_tests::package_file("..").canonicalize().unwrap()
}

fn rules() -> Vec<Rule> {
    let text = std::fs::read_to_string(root().join(RULES)).unwrap();
    let rules: Rules = serde_norway::from_str(&text).unwrap();
    rules.groups.into_iter().flat_map(|group| group.rules).collect()
}

fn promtool(arguments: &[&str]) -> Output {
    let program = parts_dir().unwrap().join("tools/bin/promtool");
    assert!(program.exists(), "{} is missing: run tests/set-up", program.display());
    let output = Command::new(program).args(arguments).current_dir(root()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "promtool {arguments:?}:\n{}{}", text(&output.stdout), text(&output.stderr));
    output
}

/// The expressions of a dashboard's panels.
fn panel_queries(dashboard: &str) -> Vec<String> {
    let file = root().join(format!("deploy/helm/commcare-lake/files/dashboards/{dashboard}.json"));
    let dashboard: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// Names of metrics in an expression, as `/metrics` tells them.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|character: char| !character.is_ascii_alphanumeric() && character != '_');
    let metrics = words.filter(|word| word.starts_with("lake_"));
    metrics.map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned()).collect()
}

#[test]
fn every_alert_fires_when_it_should_and_says_what_to_do() {
    promtool(&["check", "rules", RULES]);
    promtool(&["test", "rules", HISTORIES]);
    let histories = std::fs::read_to_string(root().join(HISTORIES)).unwrap();
    for Rule { alert, labels, annotations, .. } in rules() {
        assert!(histories.contains(&format!("alertname=\"{alert}\"")), "{alert} fires in no history of {HISTORIES}");
        assert!(matches!(&*labels.severity, "critical" | "warning"), "{alert}: severity {}", labels.severity);
        assert!(annotations.question.ends_with('?') && annotations.summary.ends_with('.'), "{alert}");
        // With --help everything before it is parsed, and nobody is asked.
        let words = annotations.command.strip_prefix("lakectl ").unwrap().split(' ').chain(["--help"]);
        let outcome = run("lakectl", &words.collect::<Vec<_>>(), &[]).unwrap();
        assert_eq!(outcome.code, Some(0), "{alert}: {}: {}", annotations.command, outcome.stderr);
    }
}

/// One of each service, at work on a life with everything in it that is told.
struct LoadedLake {
    _parts: RealParts,
    services: Vec<Running>,
    prometheus: Prometheus,
}

impl LoadedLake {
    async fn start() -> anyhow::Result<Self> {
        let parts = RealParts::start().await?;
        let admin = Port::free()?;
        let slow =
            "[fetch]\ndomain_records_per_second = 20\ndomain_burst_records = 20\n[take]\ndomains = \"everything\"\n";
        let busy = format!(
            "[maintenance]\ncompact_every_seconds = 1\n[tables]\nsmall_files_max = 2\ntiny_file_bytes = 0\ndeletion_vectors = \"on\"\nmetrics_tables_max = 2\n[admin]\naddress = \"127.0.0.1:{}\"\n",
            admin.number()
        );
        let fetcher = [parts.kafka_section(), parts.hq_section(), parts.queue_section(), slow.to_owned()].concat();
        let enricher = [parts.hq_section(), parts.queue_section()].concat();
        let writer = [parts.queue_section(), parts.store_section("s3://lake/tables"), busy].concat();
        let credentials =
            parts.store.environment().into_iter().filter(|(name, _)| name.contains("ACCESS_KEY")).collect();
        let folder = parts.folder.path();
        let services = vec![
            Running::start("writer", "writer", &writer, credentials, folder).await?,
            Running::start("enricher", "enricher", &enricher, Vec::new(), folder).await?,
            Running::start("fetcher", "fetcher", &fetcher, Vec::new(), folder).await?,
        ];
        let targets: Vec<String> = services.iter().map(|service| service.url().replace("http://", "")).collect();
        let prometheus = Prometheus::start(&targets)?;
        let mut life = Life::new(LifeOptions { seed: 21, domains: 3, sabotage: true, ..LifeOptions::default() });
        let opening = life.opening();
        parts.hq.apply(&opening).await?;
        parts.play(&mut life, CHANGES, |_| {}).await?;
        Ok(Self { _parts: parts, services, prometheus })
    }

    /// All that `/metrics` tells of all services.
    async fn told(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut told = BTreeSet::new();
        for service in &self.services {
            let text = reqwest::get(format!("{}/metrics", service.url())).await?.text().await?;
            let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
            told.extend(types.filter_map(|line| line.split(' ').next()).map(str::to_owned));
        }
        Ok(told)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_rules_and_panels_ask_for_is_told() -> anyhow::Result<()> {
    let queries: Vec<String> = DASHBOARDS.into_iter().flat_map(panel_queries).collect();
    let expressions: Vec<String> = rules().into_iter().map(|rule| rule.expr).collect();
    let wanted: BTreeSet<String> = queries.iter().chain(&expressions).flat_map(|text| metrics_of(text)).collect();
    assert!(queries.len() > 60 && wanted.len() > 40, "{} queries, {} metrics", queries.len(), wanted.len());
    let lake = LoadedLake::start().await?;
    wait_until("every metric is told", TOLD_WITHIN, async || {
        let told = lake.told().await?;
        let missing: Vec<&String> = wanted.difference(&told).collect();
        anyhow::ensure!(missing.is_empty(), "nobody tells {missing:?}");
        Ok(true)
    })
    .await?;
    // Grafana's variables as it would fill them in.
    let filled = |query: &String| query.replace("$__rate_interval", "1m").replace("$instance", ".*");
    for query in queries.iter().map(filled) {
        wait_until("the panel shows something", TOLD_WITHIN, async || {
            anyhow::ensure!(!lake.prometheus.query(&query).await?.is_empty(), "{query} gives nothing");
            Ok(true)
        })
        .await?;
    }
    for expression in &expressions {
        lake.prometheus.query(expression).await?;
    }
    Ok(())
}
