//! The files in `deploy/`, `docker-compose.yml` and the tables of `deploy/guide/configure.md` hold together: with each other, with the
//! binaries, and with the rules of their formats.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Command, Output};

use lake_tests::invocation::{check_config, run};
use lake_tests::parts::{binary_path, parts_dir};
use serde::Deserialize;

const SERVICES: [&str; 4] = ["fetcher", "enricher", "writer", "lake"];

/// Documents every key with its default.
const GUIDE: &str = "deploy/guide/configure.md";

fn root() -> PathBuf {
    lake_tests::package_file("..").canonicalize().unwrap()
}

fn sample(service: &str) -> PathBuf {
    root().join(format!("deploy/config/{service}.toml"))
}

/// Runs one of the programs that `tests/set-up` installs, in the project's folder.
fn installed(program: &str, arguments: &[&str]) -> Output {
    let program = parts_dir().unwrap().join("python/bin").join(program);
    assert!(program.exists(), "{} is missing: run tests/set-up", program.display());
    Command::new(program).args(arguments).current_dir(root()).output().unwrap()
}

fn assert_success(what: &str, output: &Output) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{what}:\n{}{}", text(&output.stdout), text(&output.stderr));
}

#[derive(Debug, Deserialize)]
struct LakeService {
    command: Vec<String>,
    environment: BTreeMap<String, String>,
    config: Option<String>,
}

/// What the compose file runs of the lake.
fn compose_services() -> BTreeMap<String, LakeService> {
    let output = installed("python", &["tests/deployment/check_compose.py", "."]);
    assert_success("docker-compose.yml", &output);
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_compose_file_is_valid_and_holds_together() {
    let arguments = ["--builtin-schema", "vendor.compose-spec", "docker-compose.yml"];
    assert_success("docker-compose.yml", &installed("check-jsonschema", &arguments));
    let services = compose_services();
    let binaries: BTreeSet<&str> = services.values().map(|service| &*service.command[0]).collect();
    assert_eq!(binaries, ["enricher", "fetcher", "hq-sim", "lake", "writer"].into());
}

#[test]
fn the_dockerfile_has_no_lint() {
    assert_success("hadolint", &installed("hadolint", &["deploy/docker/Dockerfile"]));
}

#[test]
fn the_services_of_the_compose_file_take_their_configuration() {
    for (name, service) in compose_services() {
        let Some(config) = &service.config else { continue };
        let variables: Vec<(&str, &str)> = service.environment.iter().map(|(key, value)| (&**key, &**value)).collect();
        let outcome = check_config(&service.command[0], &root().join(config), &variables).unwrap();
        assert_eq!(outcome.code, Some(0), "{name}: {}", outcome.stderr);
    }
}

#[test]
fn the_program_of_the_image_is_each_service_by_its_name() {
    let folder = tempfile::tempdir().unwrap();
    for service in ["fetcher", "enricher", "writer"] {
        let name = folder.path().join(service);
        std::os::unix::fs::symlink(binary_path("lake").unwrap(), &name).unwrap();
        let said = |arguments: &[&str]| {
            let output = Command::new(&name).args(arguments).output().unwrap();
            assert!(output.status.success(), "{service}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        assert!(said(&["version"]).starts_with(service));
        let config = sample(service).display().to_string();
        assert_eq!(said(&["check-config", "--config", &config]), "configuration is valid\n");
    }
}

#[test]
fn the_simulated_hq_knows_its_options() {
    for (name, service) in compose_services() {
        if service.command[0] != "hq-sim" {
            continue;
        }
        let arguments: Vec<&str> = service.command[1..].iter().map(String::as_str).chain(["--help"]).collect();
        let outcome = run("hq-sim", &arguments, &[]).unwrap();
        assert_eq!(outcome.code, Some(0), "{name}: {}", outcome.stderr);
        for variable in service.environment.keys() {
            assert!(outcome.stdout.contains(&format!("[env: {variable}")), "{name}: {variable} is no option of hq-sim");
        }
    }
}

#[test]
fn samples_are_valid_as_they_are_and_with_every_default_written_out() {
    let folder = tempfile::tempdir().unwrap();
    for service in SERVICES {
        let outcome = check_config(service, &sample(service), &[]).unwrap();
        assert_eq!((outcome.code, &*outcome.stdout), (Some(0), "configuration is valid\n"), "{}", outcome.stderr);
        let text = std::fs::read_to_string(sample(service)).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| commented_key(line).unwrap_or(line)).collect();
        let file = folder.path().join(format!("{service}.toml"));
        std::fs::write(&file, lines.join("\n")).unwrap();
        let outcome = check_config(service, &file, &[]).unwrap();
        assert_eq!(outcome.code, Some(0), "{service}: {}", outcome.stderr);
    }
}

/// `key = value` of a line `#key = value`; prose has exactly one blank after the `#`.
fn commented_key(line: &str) -> Option<&str> {
    let text = line.strip_prefix('#')?;
    let is_prose = text.is_empty() || (text.starts_with(' ') && !text.starts_with("  "));
    (!is_prose).then_some(text)
}

/// One section of the configuration, as the guide documents it.
struct Documented {
    section: String,
    services: Vec<&'static str>,
    /// Key and default, as they are written.
    keys: Vec<(String, String)>,
}

fn documented() -> Vec<Documented> {
    let text = std::fs::read_to_string(root().join(GUIDE)).unwrap();
    let mut sections: Vec<Documented> = Vec::new();
    for line in text.lines() {
        if let Some(section) = line.strip_prefix("## `[").and_then(|rest| rest.strip_suffix("]`")) {
            sections.push(Documented { section: section.to_owned(), services: Vec::new(), keys: Vec::new() });
            continue;
        }
        let Some(section) = sections.last_mut() else { continue };
        if let Some(who) = line.strip_prefix("Services: ") {
            section.services = SERVICES.into_iter().filter(|service| who == "all" || who.contains(service)).collect();
        } else if let Some(row) = line.strip_prefix("| `") {
            let mut cells = row.split(" | ");
            let key = cells.next().unwrap().trim_end_matches('`').to_owned();
            section.keys.push((key, cells.next().unwrap().trim_matches('`').to_owned()));
        }
    }
    assert_eq!(sections.len(), 20, "sections in {GUIDE}");
    assert!(sections.iter().all(|section| !section.services.is_empty()), "a section in {GUIDE} names no service");
    sections
}

/// What a binary says it knows in a section: it is asked by a key that it does not know.
fn known(service: &str, section: &str, more: &[(&str, &str)]) -> BTreeSet<String> {
    let variable = format!("LAKE_{}__NONSENSE", section.to_ascii_uppercase().replace('.', "__"));
    let variables: Vec<_> = more.iter().copied().chain([(&*variable, "1")]).collect();
    known_where(service, &variables)
}

/// The keys that a binary says it knows where these variables give it one that it does not know.
fn known_where(service: &str, variables: &[(&str, &str)]) -> BTreeSet<String> {
    let outcome = check_config(service, &sample(service), variables).unwrap();
    let (_, keys) = outcome.stderr.trim_end().split_once("known here: ").expect(&outcome.stderr);
    keys.split(", ").map(str::to_owned).collect()
}

/// The keys of an inner section, as the outer one's table tells them.
fn within(inner: &str, keys: BTreeSet<String>) -> Vec<String> {
    keys.into_iter().map(|key| format!("{inner}.{key}")).collect()
}

#[test]
fn the_guide_documents_exactly_the_keys_that_the_binaries_know() {
    let sections = documented();
    for Documented { section, services, keys } in &sections {
        for service in services {
            let mut real = known(service, section, &[]);
            if section == "hq.users" {
                real.extend(known(service, section, &[("LAKE_HQ__USERS__KIND", "couchdb")]));
                real.insert("kind".to_owned());
            }
            for (inner, of) in [
                ("caches", "enricher"),
                ("s3", "store"),
                ("gcs", "store"),
                ("azure", "store"),
                ("hdfs", "store"),
                ("tls", "admin"),
            ] {
                if section == of {
                    assert!(real.remove(inner));
                    real.extend(within(inner, known(service, &format!("{of}.{inner}"), &[])));
                }
            }
            if section == "admin" {
                let of_token = known_where(service, &[("LAKE_ADMIN__TOKENS", "[{nonsense=1}]")]);
                real.extend(within("tokens", of_token));
            }
            let told: BTreeSet<String> = keys.iter().map(|(key, _)| key.clone()).collect();
            assert_eq!(told, real, "{GUIDE} against {service}, section [{section}]");
        }
    }
    for service in SERVICES {
        let outcome = check_config(service, &sample(service), &[("LAKE_NONSENSE", "1")]).unwrap();
        let (_, real) = outcome.stderr.trim_end().split_once("known here: ").unwrap();
        let told: BTreeSet<&str> = sections
            .iter()
            .filter(|section| section.services.contains(&service))
            .filter_map(|section| section.section.split('.').next())
            .collect();
        assert_eq!(told, real.split(", ").collect(), "sections of {service}");
    }
}

#[test]
fn the_samples_show_the_defaults_that_the_guide_tells() {
    for Documented { section, services, keys } in documented() {
        let text = std::fs::read_to_string(sample(services[0])).unwrap();
        let mut inside = String::new();
        let mut shown = 0;
        for line in text.lines() {
            if let Some(head) = line.trim_start_matches('#').strip_prefix('[') {
                inside = head.trim_matches(['[', ']']).to_owned();
                continue;
            }
            let Some((key, value)) = commented_key(line).and_then(|line| line.split_once(" = ")) else { continue };
            let full = format!("{inside}.{key}");
            let told = keys.iter().find(|(told, _)| format!("{section}.{told}") == full);
            let Some((_, default)) = told else { continue };
            assert!(default == "–" || default == value, "{full}: {value} in the sample, {default} in {GUIDE}");
            shown += 1;
        }
        let defaults =
            keys.iter().filter(|(_, default)| !matches!(&**default, "–" | "*required*" | "[]" | "{}")).count();
        assert!(shown + 3 >= defaults, "[{section}]: {shown} of {defaults} defaults are shown in {}.toml", services[0]);
    }
}
