//! The Helm chart and the kustomize base, without a cluster: what Helm, the schemas of Kubernetes and of the custom kinds, and the rules of
//! `tests/deployment/pod_rules.py` say; and the services take the configuration that they would get.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use lake_tests::invocation::check_config;
use lake_tests::parts::parts_dir;
use serde::Deserialize;

fn root() -> PathBuf {
    lake_tests::package_file("..").canonicalize().unwrap()
}

/// What a service of the chart is started with.
#[derive(Deserialize)]
struct ChartService {
    config: String,
    environment: BTreeMap<String, String>,
}

fn checked_chart() -> BTreeMap<String, ChartService> {
    let parts = parts_dir().unwrap();
    let (python, tools) = (parts.join("python/bin/python"), parts.join("tools/bin"));
    assert!(tools.join("helm").exists(), "{} has no helm: run tests/set-up", tools.display());
    let mut command = Command::new(python);
    command.args(["tests/deployment/check_kubernetes.py", "."]).arg(tools).current_dir(root());
    let output = command.output().unwrap();
    assert!(output.status.success(), "the chart:\n{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_chart_is_sound_and_its_services_take_their_configuration() {
    let services = checked_chart();
    assert_eq!(services.keys().collect::<Vec<_>>(), ["enricher", "fetcher", "writer"]);
    let folder = tempfile::tempdir().unwrap();
    for (service, ChartService { config, environment }) in services {
        let file = folder.path().join(format!("{service}.toml"));
        std::fs::write(&file, config).unwrap();
        let variables: Vec<(&str, &str)> = environment.iter().map(|(key, value)| (&**key, &**value)).collect();
        let outcome = check_config(&service, &file, &variables).unwrap();
        assert_eq!(outcome.code, Some(0), "{service}: {}", outcome.stderr);
    }
}

#[test]
fn scripts_have_no_lint() {
    let shellcheck = parts_dir().unwrap().join("tools/bin/shellcheck");
    assert!(shellcheck.exists(), "{} is missing: run tests/set-up", shellcheck.display());
    let scripts = [
        "deploy/smoke-test",
        "deploy/playground/make-certificate",
        "tests/deployment/play-pods",
        "tests/run",
        "tests/set-up",
    ];
    let output = Command::new(shellcheck).args(scripts).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
