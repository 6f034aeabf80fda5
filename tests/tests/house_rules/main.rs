//! Rules of this house that are checked instead of remembered: sizes of files and functions, names and circles of modules, arrows between
//! crates, and that everything an operator meets is documented. Each failure says what to do.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod circles;
mod dependencies;
mod documentation;
mod imports;
mod length;
mod links;
mod modules;
mod sources;
mod unrun_tests;

use crate::imports::CrateModules;
use crate::sources::{Source, read, sources_below};

/// Folders with Rust sources of the project.
const ALL_SOURCES: [&str; 3] = ["proto", "services", "tests"];

/// Folders with sources of crates, as seen from the project's root.
const CRATES: [&str; 8] = [
    "proto/src",
    "services/shared/src",
    "services/hq/src",
    "services/fetcher/src",
    "services/enricher/src",
    "services/writer/src",
    "services/lake/src",
    "tests/simulated-hq/src",
];

/// Documents the metrics and the reasons of the quarantine.
const OPERATE: &str = "deploy/guide/operate.md";

/// Texts whose links must lead somewhere.
const TEXTS: [&str; 10] = [
    "README.md",
    "services/README.md",
    "tests/benches/README.md",
    "deploy/guide/README.md",
    OPERATE,
    "deploy/guide/configure.md",
    "deploy/guide/deploy.md",
    "deploy/guide/readers.md",
    "deploy/guide/migrate.md",
    "deploy/guide/trust.md",
];

/// Storeys of the engine, from the ground up: a module may import only modules of storeys below its own. The last one is the face, `mod.rs`.
const ENGINE: &str = "table_store::delta";
const ENGINE_STOREYS: &[&[&str]] = &[
    &["clock", "options", "table_number"],
    &["error"],
    &["permanent_error"],
    &["files"],
    &["log"],
    &["space"],
    &["upsert", "compact", "upkeep", "inspect"],
    &[imports::FACE],
];

/// What the manifests say `test = false` of, so that no empty program of tests is linked.
const UNTESTED: [&str; 6] = [
    "proto/src",
    "tests/src",
    "services/fetcher/src/main.rs",
    "services/enricher/src/main.rs",
    "services/writer/src/main.rs",
    "tests/simulated-hq/src/main.rs",
];

/// It only ever gets shorter: an entry without a circle fails the test.
const CIRCLES_ALLOWED: &[Allowed] = &[Allowed {
    within: "services/hq/src",
    modules: &["xform::document", "xform::entity"],
    reason: "an entity may hold elements: the two call each other on nested input",
}];

/// Modules that may import each other in a circle for now.
#[derive(Clone, Copy)]
struct Allowed {
    /// Folder of the crate.
    within: &'static str,
    modules: &'static [&'static str],
    reason: &'static str,
}

/// Fails with the list, unless it is empty.
fn assert_none(found: &[String], what_to_do: &str) {
    assert!(found.is_empty(), "{what_to_do}\n  {}", found.join("\n  "));
}

fn all_sources() -> Vec<Source> {
    ALL_SOURCES.iter().flat_map(|folder| sources_below(folder)).collect()
}

#[test]
fn no_file_is_too_long() {
    let advice = format!("split these files, none may have more than {} lines:", length::FILE_LINES_MAX);
    assert_none(&length::long_files(&all_sources()), &advice);
}

#[test]
fn no_function_is_too_long() {
    let advice = format!("split these functions, none may have more than {} lines:", length::FUNCTION_LINES_MAX);
    assert_none(&length::long_functions(&all_sources()), &advice);
}

#[test]
fn no_module_is_named_for_nothing() {
    let advice = "name these modules for the thing in them:";
    assert_none(&modules::named_for_nothing(&all_sources()), advice);
}

#[test]
fn no_folder_has_too_many_files() {
    let sources: Vec<Source> = ["proto", "services"].iter().flat_map(|folder| sources_below(folder)).collect();
    let advice = format!("give these folders rooms, none may have more than {} files:", modules::FILES_MAX);
    assert_none(&modules::crowded_folders(&sources), &advice);
}

#[test]
fn no_modules_import_each_other_in_a_circle() {
    let mut allowed = CIRCLES_ALLOWED.to_vec();
    let mut found = Vec::new();
    for folder in CRATES {
        for circle in circles::circles(&CrateModules::of(folder, &sources_below(folder)).imports()) {
            let known = allowed.iter().position(|known| known.within == folder && *known.modules == circle.modules[..]);
            match known {
                Some(position) => drop(allowed.remove(position)),
                None => found.push(format!("{folder}: {circle}")),
            }
        }
    }
    assert_none(&found, "cut one import of each circle, for instance by moving what both need to a module of its own:");
    let gone = allowed.iter().map(|gone| format!("{}: {} ({})", gone.within, gone.modules.join(", "), gone.reason));
    assert_none(&gone.collect::<Vec<_>>(), "these circles are cut, or have other modules now: correct CIRCLES_ALLOWED");
}

#[test]
fn the_engine_imports_only_what_stands_below() {
    let folder = "services/writer/src";
    let engine = CrateModules::of(folder, &sources_below(folder));
    let advice = "these imports go up or to the side, see ENGINE_STOREYS; move what is needed down:";
    assert_none(&circles::upward(&engine, ENGINE, ENGINE_STOREYS), advice);
}

#[test]
fn services_depend_only_on_what_they_may() {
    assert_none(&dependencies::forbidden(&dependencies::packages()), "remove these dependencies:");
}

#[test]
fn every_metric_is_documented() {
    let sources = sources_below("services");
    let advice = "name these metrics by constants, so that they can be found:";
    assert_none(&documentation::metrics_without_constant(&sources), advice);
    let metrics = documentation::metric_names(&sources);
    assert!(metrics.len() > 40, "{metrics:?}");
    let documented = documentation::first_cells(&read(OPERATE), "Metrics");
    let advice = format!("correct the table of metrics in {OPERATE}:");
    assert_none(&documentation::differences(&metrics, &documented), &advice);
}

#[test]
fn every_reason_of_the_quarantine_is_documented() {
    let reasons = documentation::reasons();
    let documented = documentation::rows(&read(OPERATE), "Quarantine");
    let advice = format!("correct the table of reasons in {OPERATE}:");
    assert_none(&documentation::reason_differences(&reasons, &documented), &advice);
}

#[test]
fn every_link_leads_somewhere() {
    let dead: Vec<String> = TEXTS.iter().flat_map(|text| links::dead(text, &read(text), &sources::root())).collect();
    assert_none(&dead, "correct these links:");
}

#[test]
fn every_test_is_run() {
    let sources = all_sources();
    let advice = "rustdoc is not run: say ```text, or make a unit test of this code:";
    assert_none(&unrun_tests::in_doc_comments(&sources), advice);
    let advice = "take `test = false` out of the manifest, and the path out of UNTESTED:";
    assert_none(&unrun_tests::in_untested_targets(&sources, &UNTESTED), advice);
}

#[test]
fn the_longest_programs_of_tests_exist() {
    let run = read("tests/run");
    let longest = run.lines().find_map(|line| line.strip_prefix("longest=(")?.strip_suffix(')')).unwrap();
    let exists = |name: &str| {
        let of_system = sources::root().join("tests/tests").join(name);
        let of_crate = sources::root().join("services").join(name.trim_start_matches("lake_"));
        of_system.is_dir() || of_system.with_extension("rs").is_file() || of_crate.is_dir()
    };
    let gone: Vec<String> = longest.split(' ').filter(|name| !exists(name)).map(str::to_owned).collect();
    assert_none(&gone, "correct the list of the longest programs in tests/run:");
}
