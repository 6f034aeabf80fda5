//! Arrows between the crates: `proto ← shared ← hq ← {fetcher, enricher}`, `shared ← writer`, `lake` above all of them, and `proto ← lakectl`.

use serde_json::Value;

use crate::sources::root;

/// A crate of the workspace.
pub struct Package {
    pub name: String,
    /// What it is built from.
    pub dependencies: Vec<String>,
    /// What only its tests use.
    pub for_tests: Vec<String>,
}

/// Which crates of the workspace a crate may depend on. `lake-tests` may depend on all of them.
const MAY_DEPEND_ON: [(&str, &[&str]); 10] = [
    ("lake-proto", &[]),
    ("lake-shared", &["lake-proto"]),
    ("lake-hq", &["lake-proto", "lake-shared"]),
    ("lake-fetcher", &["lake-proto", "lake-shared", "lake-hq"]),
    ("lake-enricher", &["lake-proto", "lake-shared", "lake-hq"]),
    ("lake-writer", &["lake-proto", "lake-shared"]),
    // A client of the interface alone, as any other.
    ("lakectl", &["lake-proto"]),
    (
        "lake",
        &["lake-proto", "lake-shared", "lake-hq", "lake-fetcher", "lake-enricher", "lake-writer", "lake-simulated-hq"],
    ),
    // Never on the writer: its own tests use the kit, and would meet their types twice.
    ("lake-test-kit", &["lake-proto", "lake-shared"]),
    // It describes HQ's tables and documents in the words of the crate that reads them.
    ("lake-simulated-hq", &["lake-proto", "lake-shared", "lake-hq"]),
];

/// Libraries that only these crates know, beside the tests of the whole system and the simulated HQ.
const KNOWN_BY_ONE: [(&str, &str); 4] = [
    ("deltalake", "lake-writer"),
    ("buoyant_kernel", "lake-writer"),
    ("rdkafka", "lake-fetcher"),
    ("async-nats", "lake-shared"),
];

/// Crates that stand in for HQ and for readers, so they may know any library.
const OUTSIDE: [&str; 2] = ["lake-tests", "lake-simulated-hq"];

/// What any crate may use in its tests.
const FOR_ALL_TESTS: [&str; 2] = ["lake-test-kit", "lake-simulated-hq"];

/// The crates of the workspace, as cargo sees them.
pub fn packages() -> Vec<Package> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let arguments = ["metadata", "--no-deps", "--offline", "--format-version", "1"];
    let output = std::process::Command::new(cargo).args(arguments).current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let name = |value: &Value| value["name"].as_str().unwrap().to_owned();
    let package = |package: &Value| {
        let dependencies = package["dependencies"].as_array().unwrap();
        let (for_tests, dependencies): (Vec<&Value>, Vec<&Value>) =
            dependencies.iter().partition(|dependency| dependency["kind"] == "dev");
        let names = |dependencies: Vec<&Value>| dependencies.into_iter().map(name).collect();
        Package { name: name(package), dependencies: names(dependencies), for_tests: names(for_tests) }
    };
    metadata["packages"].as_array().unwrap().iter().map(package).collect()
}

/// Dependencies against the arrows.
pub fn forbidden(packages: &[Package]) -> Vec<String> {
    let in_workspace: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
    let mut found = Vec::new();
    for Package { name, dependencies, for_tests } in packages {
        let allowed = MAY_DEPEND_ON.iter().find(|(package, _)| package == name).map(|(_, allowed)| *allowed);
        if allowed.is_none() && name != "lake-tests" {
            found.push(format!("{name} is not in MAY_DEPEND_ON: say which crates it may depend on"));
        }
        for dependency in
            dependencies.iter().chain(for_tests.iter().filter(|name| !FOR_ALL_TESTS.contains(&name.as_str())))
        {
            let is_ours = in_workspace.contains(&dependency.as_str());
            if is_ours && allowed.is_some_and(|allowed| !allowed.contains(&dependency.as_str())) {
                found.push(format!("{name} must not depend on {dependency}"));
            }
            let owner = KNOWN_BY_ONE.iter().find(|(library, _)| library == dependency).map(|(_, owner)| *owner);
            if owner.is_some_and(|owner| owner != name && !OUTSIDE.contains(&name.as_str())) {
                found.push(format!("{name} must not depend on {dependency}, only {} does", owner.unwrap_or_default()));
            }
        }
    }
    found
}

#[test]
fn services_and_libraries_are_told_apart() {
    let package = |name: &str, dependencies: &[&str]| Package {
        name: name.to_owned(),
        dependencies: dependencies.iter().map(|name| (*name).to_owned()).collect(),
        for_tests: Vec::new(),
    };
    let mut packages = vec![
        package("lake-proto", &[]),
        package("lake-shared", &["lake-proto", "async-nats", "serde"]),
        package("lake-hq", &["lake-shared"]),
        package("lake-fetcher", &["lake-hq", "rdkafka"]),
        package("lake-writer", &["lake-shared", "deltalake"]),
        package("lake-test-kit", &["lake-shared"]),
        package("lake-tests", &["lake-test-kit", "lake-writer", "lake-fetcher", "deltalake", "rdkafka"]),
    ];
    assert_eq!(forbidden(&packages), Vec::<String>::new());
    packages.push(package("lake-enricher", &["lake-fetcher", "deltalake"]));
    packages.push(package("lake-new", &[]));
    for kit in ["lake-test-kit", "lake-writer"] {
        let for_tests = vec![kit.to_owned()];
        packages.push(Package { for_tests, ..package("lake-hq", &["lake-test-kit"]) });
    }
    assert_eq!(
        forbidden(&packages),
        [
            "lake-enricher must not depend on lake-fetcher",
            "lake-enricher must not depend on deltalake, only lake-writer does",
            "lake-new is not in MAY_DEPEND_ON: say which crates it may depend on",
            "lake-hq must not depend on lake-test-kit",
            "lake-hq must not depend on lake-test-kit",
            "lake-hq must not depend on lake-writer",
        ]
    );
}
