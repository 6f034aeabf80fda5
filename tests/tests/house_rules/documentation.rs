//! What an operator meets, against the tables of the guide.

use std::collections::BTreeSet;

use lake_shared::quarantine::Reason;
use proc_macro2::TokenTree;
use syn::visit::{self, Visit};
use syn::{Expr, Lit};

use crate::sources::Source;

/// Names of all metrics: the constants that begin with `lake_`.
pub fn metric_names(sources: &[Source]) -> BTreeSet<String> {
    let mut names = Constants::default();
    sources.iter().filter(|source| !source.is_test()).for_each(|source| names.visit_file(&source.syntax));
    names.0
}

#[derive(Default)]
struct Constants(BTreeSet<String>);

impl<'ast> Visit<'ast> for Constants {
    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        if let Expr::Lit(literal) = &*item.expr
            && let Lit::Str(text) = &literal.lit
            && text.value().starts_with("lake_")
        {
            self.0.insert(text.value());
        }
    }
}

/// Metrics that are named by a text where they are counted.
pub fn metrics_without_constant(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let mut calls = MetricCalls::default();
        calls.visit_file(&source.syntax);
        let place = |(line, name)| format!("{}:{line}: {name}", source.path.display());
        found.extend(calls.0.into_iter().map(place));
    }
    found
}

#[derive(Default)]
struct MetricCalls(Vec<(usize, String)>);

impl<'ast> Visit<'ast> for MetricCalls {
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let name = call.path.segments.last().map(|segment| segment.ident.to_string()).unwrap_or_default();
        if ["counter", "gauge", "histogram"].contains(&name.as_str())
            && let Some(TokenTree::Literal(text)) = call.tokens.clone().into_iter().next()
        {
            self.0.push((text.span().start().line, text.to_string()));
        }
        visit::visit_macro(self, call);
    }
}

/// The cells of the tables in one chapter of a Markdown text, without their headings.
pub fn rows(markdown: &str, chapter: &str) -> Vec<Vec<String>> {
    let inside = markdown.split("\n## ").find_map(|text| text.strip_prefix(chapter)?.strip_prefix('\n'));
    let lines = inside.unwrap_or_default().lines().filter_map(|line| line.strip_prefix("| `")?.strip_suffix(" |"));
    lines.map(|line| line.replacen("` |", " |", 1).split(" | ").map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// What the first cells name, which is written as code.
pub fn first_cells(markdown: &str, chapter: &str) -> BTreeSet<String> {
    rows(markdown, chapter).into_iter().filter_map(|cells| cells.into_iter().next()).collect()
}

/// Names that the code has and the guide has not, and the other way round.
pub fn differences(in_code: &BTreeSet<String>, documented: &BTreeSet<String>) -> Vec<String> {
    let missing = in_code.difference(documented).map(|name| format!("`{name}` is not documented"));
    let stale = documented.difference(in_code).map(|name| format!("`{name}` is documented, but not in the code"));
    missing.chain(stale).collect()
}

/// A reason of the quarantine, as the services tell it.
#[derive(Clone, Copy)]
pub struct ToldReason {
    pub code: &'static str,
    pub meaning: &'static str,
    pub next_step: &'static str,
}

/// All reasons of all services.
pub fn reasons() -> Vec<ToldReason> {
    let told =
        |reason: &Reason| ToldReason { code: reason.code(), meaning: reason.meaning(), next_step: reason.next_step() };
    Reason::ALL.iter().map(told).collect()
}

/// Where the guide says something else of a reason than the services do, or says it of a reason that there is not. A row of the guide has the
/// code, the services that give the reason, its meaning and the next step.
pub fn reason_differences(reasons: &[ToldReason], documented: &[Vec<String>]) -> Vec<String> {
    let mut found = Vec::new();
    for &ToldReason { code, meaning, next_step } in reasons {
        let row = documented.iter().find(|row| row.first().is_some_and(|first| first == code));
        let is_told = row.is_some_and(|row| row.len() == 4 && row[2] == meaning && row[3] == next_step);
        if !is_told {
            found.push(format!("write | `{code}` | <service> | {meaning} | {next_step} |"));
        }
    }
    let in_code: BTreeSet<String> = reasons.iter().map(|reason| reason.code.to_owned()).collect();
    let documented = documented.iter().filter_map(|row| row.first());
    found.extend(
        documented
            .filter(|code| !in_code.contains(*code))
            .map(|code| format!("remove `{code}`, there is no such reason")),
    );
    found
}

#[test]
fn metrics_are_found_by_their_constants() {
    let sources = [
        Source::new(
            "services/a/src/metric_names.rs",
            "pub const ROWS: &str = \"lake_a_rows\"; const OTHER: &str = \"other\"; const MOST: usize = 3;",
        ),
        Source::new("services/a/src/inner.rs", "fn f() { const DEEP: &str = \"lake_a_deep\"; }"),
        Source::new("services/a/src/inner_tests.rs", "const ONLY: &str = \"lake_only_in_tests\";"),
    ];
    assert_eq!(metric_names(&sources), ["lake_a_deep", "lake_a_rows"].map(str::to_owned).into());
}

#[test]
fn metrics_named_by_a_text_are_found() {
    let text = "fn f() {\n metrics::counter!(names::ROWS, \"kind\" => \"case\").increment(1);\n gauge!(\"lake_x\").set(1.0);\n}";
    assert_eq!(metrics_without_constant(&[Source::new("a.rs", text)]), ["a.rs:3: \"lake_x\""]);
}

#[test]
fn tables_are_read_chapter_by_chapter() {
    let markdown = "# T\n\n## Metrics\n\n| metric | type |\n|---|---|\n| `a` | gauge `x`, `y` |\n\ntext\n\n| `b` | counter |\n\n## Other\n\n| `c` | d |\n";
    assert_eq!(first_cells(markdown, "Metrics"), ["a", "b"].map(str::to_owned).into());
    assert_eq!(rows(markdown, "Metrics")[0], ["a", "gauge `x`, `y`"]);
    assert_eq!(first_cells(markdown, "Nothing"), BTreeSet::new());
    let in_code = ["a", "z"].map(str::to_owned).into();
    assert_eq!(
        differences(&in_code, &first_cells(markdown, "Metrics")),
        ["`z` is not documented", "`b` is documented, but not in the code",]
    );
}

#[test]
fn reasons_are_told_as_the_services_tell_them() {
    let reasons = [
        ToldReason { code: "a", meaning: "It is so.", next_step: "Do this." },
        ToldReason { code: "b", meaning: "It is other.", next_step: "Do that." },
    ];
    let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
    let good = [row(["a", "writer", "It is so.", "Do this."]), row(["b", "writer", "It is other.", "Do that."])];
    assert_eq!(reason_differences(&reasons, &good), Vec::<String>::new());
    let bad = [row(["a", "writer", "It was so.", "Do this."]), row(["c", "writer", "?", "?"])];
    assert_eq!(
        reason_differences(&reasons, &bad),
        [
            "write | `a` | <service> | It is so. | Do this. |",
            "write | `b` | <service> | It is other. | Do that. |",
            "remove `c`, there is no such reason",
        ]
    );
}
