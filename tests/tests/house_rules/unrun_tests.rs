//! Tests that `tests/run` would not run: in doc comments, and in targets whose manifest says `test = false`.

use std::path::Path;

use crate::sources::Source;

/// Doc comments with code that rustdoc would run as a test.
pub fn in_doc_comments(sources: &[Source]) -> Vec<String> {
    let of = |source: &Source| {
        let path = source.path.display().to_string();
        let mut fence_open = false;
        let lines = source.text.lines().enumerate().filter_map(move |(number, line)| {
            let comment = line.trim_start().strip_prefix("///").or_else(|| line.trim_start().strip_prefix("//!"))?;
            let language = comment.trim().strip_prefix("```")?;
            fence_open = !fence_open;
            (fence_open && language != "text").then(|| format!("{path}:{}", number + 1))
        });
        lines.collect::<Vec<_>>()
    };
    sources.iter().flat_map(of).collect()
}

/// Sources with tests among those of a target that is not tested: all below a folder for a library, one file for a program.
pub fn in_untested_targets(sources: &[Source], untested: &[&str]) -> Vec<String> {
    let is_untested = |path: &Path| untested.iter().any(|target| path.starts_with(target));
    let has_tests =
        |source: &&Source| ["#[test]", "#[tokio::test", "#[cfg(test)]"].iter().any(|sign| source.text.contains(sign));
    let found = sources.iter().filter(|source| is_untested(&source.path)).filter(has_tests);
    found.map(|source| source.path.display().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::{in_doc_comments, in_untested_targets};
    use crate::sources::Source;

    #[test]
    fn code_in_doc_comments_is_found_unless_it_is_text() {
        let text = "/// Says:\n/// ```\n/// f();\n/// ```\n/// ```text\n/// f\n/// ```\npub fn f() {}\n";
        assert_eq!(in_doc_comments(&[Source::new("a/src/lib.rs", text)]), ["a/src/lib.rs:2"]);
    }

    #[test]
    fn tests_of_an_untested_target_are_found() {
        let with_test = |path: &str| Source::new(path, "#[test]\nfn f() {}\n");
        let sources = [with_test("a/src/main.rs"), with_test("a/src/lib.rs"), with_test("b/src/c/d.rs")];
        assert_eq!(in_untested_targets(&sources, &["a/src/main.rs", "b/src"]), ["a/src/main.rs", "b/src/c/d.rs"]);
    }
}
