//! Files and functions that a reader cannot hold in mind.

use syn::visit::{self, Visit};
use syn::{Block, Signature};

use crate::sources::Source;

/// Most lines of a file.
pub const FILE_LINES_MAX: usize = 500;
/// Most lines of a function, from `fn` to its closing brace.
pub const FUNCTION_LINES_MAX: usize = 70;

/// Files with more than [`FILE_LINES_MAX`] lines.
pub fn long_files(sources: &[Source]) -> Vec<String> {
    let lengths = sources.iter().map(|source| (source, source.text.lines().count()));
    let long = lengths.filter(|(_, lines)| *lines > FILE_LINES_MAX);
    long.map(|(source, lines)| format!("{}: {lines} lines", source.path.display())).collect()
}

/// Functions with more than [`FUNCTION_LINES_MAX`] lines.
pub fn long_functions(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let mut functions = Functions::default();
        functions.visit_file(&source.syntax);
        let long = functions.0.into_iter().filter(|function| function.lines > FUNCTION_LINES_MAX);
        found.extend(long.map(|Function { name, line, lines }| {
            format!("{}:{line}: `{name}` has {lines} lines", source.path.display())
        }));
    }
    found
}

struct Function {
    name: String,
    line: usize,
    lines: usize,
}

#[derive(Default)]
struct Functions(Vec<Function>);

impl Functions {
    fn add(&mut self, signature: &Signature, block: &Block) {
        let line = signature.fn_token.span.start().line;
        let lines = block.brace_token.span.close().end().line + 1 - line;
        self.0.push(Function { name: signature.ident.to_string(), line, lines });
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.add(&function.sig, &function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.add(&function.sig, block);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

#[test]
fn a_file_may_have_exactly_so_many_lines() {
    let file = |lines: usize| Source::new("services/a/src/a.rs", &"\n".repeat(lines));
    assert!(long_files(&[file(FILE_LINES_MAX)]).is_empty());
    assert_eq!(long_files(&[file(FILE_LINES_MAX + 1)]), ["services/a/src/a.rs: 501 lines"]);
}

#[test]
fn functions_are_measured_wherever_they_are() {
    // Two lines are those of `fn` and of the closing brace.
    let body = |lines: usize| format!("{{\n{}}}", "\n".repeat(lines - 2));
    let text = |lines: usize| {
        let body = body(lines);
        format!(
            "/// Documentation\n/// counts nothing.\n#[inline]\npub async fn free() {body}\nimpl A {{ fn method(&self) {body} }}\n\
             trait T {{ fn provided() {body}\nfn required(); }}\nmod inner {{ fn nested() {body} }}"
        )
    };
    assert!(long_functions(&[Source::new("a.rs", &text(FUNCTION_LINES_MAX))]).is_empty());
    let found = long_functions(&[Source::new("a.rs", &text(FUNCTION_LINES_MAX + 1))]);
    assert_eq!(found.len(), 4, "{found:#?}");
    assert_eq!(found[0], "a.rs:4: `free` has 71 lines");
}
