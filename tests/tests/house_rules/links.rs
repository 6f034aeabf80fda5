//! Links of the project's texts to its own files and to headings in them.

use std::path::Path;

/// Links of a text to files or headings that are not there. `path` is the text's own, as seen from `root`.
pub fn dead(path: &str, text: &str, root: &Path) -> Vec<String> {
    let folder = root.join(path).parent().unwrap().to_owned();
    let leads_somewhere = |target: &str| {
        let (file, heading) = target.split_once('#').map_or((target, None), |(file, heading)| (file, Some(heading)));
        let file = if file.is_empty() { root.join(path) } else { folder.join(file) };
        match heading {
            None => file.exists(),
            Some(heading) if file == root.join(path) => has_heading(text, heading),
            Some(heading) => std::fs::read_to_string(file).is_ok_and(|text| has_heading(&text, heading)),
        }
    };
    let dead = targets(text).filter(|target| !leads_somewhere(target));
    dead.map(|target| format!("{path}: {target}")).collect()
}

/// Targets within the project.
fn targets(text: &str) -> impl Iterator<Item = &str> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    targets.filter(|target| !target.contains("://"))
}

/// Whether a text has a heading with this anchor.
fn has_heading(text: &str, anchor: &str) -> bool {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings.map(|line| line.trim_start_matches('#').trim()).any(|heading| slug(heading) == anchor)
}

/// The anchor that GitHub gives a heading.
fn slug(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn files_and_headings_are_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("guide")).unwrap();
    std::fs::write(folder.path().join("guide/other.md"), "# Other\n\n## What goes wrong\n").unwrap();
    let text = "# `[hq.database]`\n\n[a](other.md) [b](other.md#what-goes-wrong) [c](#hqdatabase) [d](https://example.org/x) [e](../guide)\n\
                [gone](gone.rs) [no heading](other.md#nothing) [nor here](#nothing)\n";
    let found = dead("guide/this.md", text, folder.path());
    assert_eq!(found, ["gone.rs", "other.md#nothing", "#nothing"].map(|target| format!("guide/this.md: {target}")));
}
