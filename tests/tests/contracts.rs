//! The contracts in `proto/` keep the rules of their format, and break nobody who speaks the version that was published.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use lake_tests::parts::parts_dir;

/// What was published last, as `buf build` writes it.
const PUBLISHED: &str = "published.binpb";

fn proto() -> PathBuf {
    lake_tests::package_file("../proto").canonicalize().unwrap()
}

/// Runs buf in a folder of contracts: whether it is content, and what it says.
fn buf(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let program = parts_dir().unwrap().join("python/bin/buf");
    assert!(program.exists(), "{} is missing: run tests/set-up", program.display());
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

/// A copy of the contracts in which one text of one file is another one.
fn changed(file: &str, from: &str, to: &str) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for name in ["buf.yaml", PUBLISHED] {
        fs::copy(proto().join(name), copy.path().join(name)).unwrap();
    }
    for folder in ["lake/admin/v1", "lake/queue/v1", "externalscaler"] {
        fs::create_dir_all(copy.path().join(folder)).unwrap();
        for entry in fs::read_dir(proto().join(folder)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), copy.path().join(folder).join(entry.file_name())).unwrap();
        }
    }
    let path = copy.path().join(file);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{file} has no {from:?} any more");
    fs::write(path, text.replacen(from, to, 1)).unwrap();
    copy
}

#[test]
fn the_contracts_have_no_lint() {
    let (clean, said) = buf(&proto(), &["lint"]);
    assert!(clean, "{said}");
    let copy = changed("lake/admin/v1/table_service.proto", "rpc GetTable(", "rpc get_table(");
    let (clean, said) = buf(copy.path(), &["lint"]);
    assert!(!clean && said.contains("get_table"), "a name that breaks the rules is not found: {said}");
}

/// A change that is meant to break clients gets a new package (`lake.admin.v2`); one that does not is published by `buf build -o
/// published.binpb` in `proto/` along with it.
#[test]
fn the_contracts_break_no_client() {
    let against = ["breaking", "--against", PUBLISHED];
    let (kept, said) = buf(&proto(), &against);
    assert!(kept, "clients of the published contract would break:\n{said}");
    let breaking = [
        ("lake/admin/v1/table_service.proto", "string name = 1;", "string name = 99;"),
        ("lake/admin/v1/table_service.proto", "  rpc GetTable(GetTableRequest) returns (GetTableResponse);\n", ""),
        ("lake/admin/v1/operation_service.proto", "OPERATION_STATE_FAILED = 4", "OPERATION_STATE_FAILED = 40"),
        ("lake/queue/v1/queue.proto", "int64 offset = 3;", "string offset = 3;"),
    ];
    for (file, from, to) in breaking {
        let copy = changed(file, from, to);
        let (kept, said) = buf(copy.path(), &against);
        assert!(!kept && said.contains(file), "{from:?} -> {to:?} is not found: {said}");
    }
}

/// What is compared with is as new as the contracts: else a field could be added, used by clients, and taken away without a word.
#[test]
fn what_is_published_has_everything_of_the_contracts() {
    let now = tempfile::tempdir().unwrap();
    let image = now.path().join("now.binpb");
    let (built, said) = buf(&proto(), &["build", "-o", image.to_str().unwrap()]);
    assert!(built, "{said}");
    let published = proto().join(PUBLISHED);
    let (same, said) = buf(now.path(), &["breaking", published.to_str().unwrap(), "--against", "now.binpb"]);
    assert!(same, "the contracts have more than what is published; in proto/: buf build -o {PUBLISHED}\n{said}");
}
