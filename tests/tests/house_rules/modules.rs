//! Names and number of modules.

use std::collections::BTreeMap;
use std::path::Path;

use syn::visit::{self, Visit};

use crate::sources::Source;

/// Names that say nothing about what is inside.
const NAMED_FOR_NOTHING: [&str; 13] = [
    "common",
    "commons",
    "helper",
    "helpers",
    "manager",
    "managers",
    "misc",
    "stuff",
    "type",
    "types",
    "util",
    "utilities",
    "utils",
];

/// Most modules in one folder. The folder's own file (`lib.rs`, `main.rs`, `mod.rs`) and tests are not counted.
pub const FILES_MAX: usize = 13;

/// Modules, whether a file, a folder or inside a file, with a name that says nothing.
pub fn named_for_nothing(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let parts = source.path.with_extension("");
        let parts = parts.iter().map(|part| part.to_string_lossy().into_owned());
        let mut inner = Inner::default();
        inner.visit_file(&source.syntax);
        let empty = parts.chain(inner.0).filter(|name| NAMED_FOR_NOTHING.contains(&name.as_str()));
        found.extend(empty.map(|name| format!("{}: `{name}`", source.path.display())));
    }
    found
}

/// Modules whose text is in the file.
#[derive(Default)]
struct Inner(Vec<String>);

impl<'ast> Visit<'ast> for Inner {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.content.is_some() {
            self.0.push(module.ident.to_string());
        }
        visit::visit_item_mod(self, module);
    }
}

/// Folders with more than [`FILES_MAX`] files.
pub fn crowded_folders(sources: &[Source]) -> Vec<String> {
    let is_own = |source: &Source| ["src/lib.rs", "src/main.rs", "mod.rs"].iter().any(|own| source.path.ends_with(own));
    let mut files: BTreeMap<&Path, usize> = BTreeMap::new();
    for source in sources.iter().filter(|source| !source.is_test() && !is_own(source)) {
        *files.entry(source.path.parent().unwrap()).or_default() += 1;
    }
    let crowded = files.into_iter().filter(|(_, count)| *count > FILES_MAX);
    crowded.map(|(folder, count)| format!("{}: {count} files", folder.display())).collect()
}

#[test]
fn files_folders_and_inner_modules_need_names() {
    let sources = [
        Source::new("services/a/src/utils.rs", ""),
        Source::new("services/a/src/common/mod.rs", ""),
        Source::new("services/a/src/queue.rs", "mod retry { mod helpers {} }\nmod names;"),
    ];
    let found = named_for_nothing(&sources);
    assert_eq!(
        found,
        [
            "services/a/src/utils.rs: `utils`",
            "services/a/src/common/mod.rs: `common`",
            "services/a/src/queue.rs: `helpers`",
        ]
    );
}

#[test]
fn own_files_and_tests_do_not_make_a_folder_crowded() {
    let file = |name: &str| Source::new(format!("services/a/src/{name}.rs"), "");
    let mut sources: Vec<Source> = (0..FILES_MAX).map(|number| file(&format!("m{number}"))).collect();
    sources.extend(["lib", "main", "mod", "tests", "m1_tests", "tests/one", "inner/mod"].map(file));
    assert!(crowded_folders(&sources).is_empty());
    sources.push(file("one_more"));
    assert_eq!(crowded_folders(&sources), ["services/a/src: 14 files"]);
}
