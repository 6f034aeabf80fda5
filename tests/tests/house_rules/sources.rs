//! The Rust sources of the project, parsed.

use std::path::{Path, PathBuf};

/// One source file.
pub struct Source {
    /// Its path, as seen from the project's root.
    pub path: PathBuf,
    pub text: String,
    pub syntax: syn::File,
}

impl Source {
    /// Parses a source; for checkers and their tests.
    pub fn new(path: impl Into<PathBuf>, text: &str) -> Self {
        let path = path.into();
        let syntax = syn::parse_file(text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text: text.to_owned(), syntax }
    }

    /// Whether the file holds only tests: by its place or its name.
    pub fn is_test(&self) -> bool {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        stem == "tests" || stem.ends_with("_tests") || self.path.components().any(|part| part.as_os_str() == "tests")
    }
}

/// The project's root.
pub fn root() -> PathBuf {
    lake_tests::package_file("..").canonicalize().unwrap()
}

/// A text of the project.
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap()
}

/// All sources below a folder of the project, by path.
pub fn sources_below(folder: &str) -> Vec<Source> {
    let root = root();
    let mut paths = Vec::new();
    collect(&root.join(folder), &mut paths);
    paths.sort();
    let source = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        Source::new(path.strip_prefix(&root).unwrap(), &text)
    };
    paths.into_iter().map(source).collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(&path, paths);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}
