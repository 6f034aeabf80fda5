//! Which modules of a crate use which others, read from `use` items and from paths in code.
//!
//! A name that a module has from another one (`pub use self::state::State;`) leads to the module that it is from. Tests may use what they
//! like, so they are left out. What is named in the text of an attribute or made by a macro is not seen.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, UseTree};

use crate::sources::Source;

/// The name of a module's own file (`mod.rs`) among its children.
pub const FACE: &str = "mod";

/// A module by its path in the crate; the root is empty.
pub type ModulePath = Vec<String>;

/// One use of a module by another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    pub from: ModulePath,
    pub to: ModulePath,
    /// The path in the code, and in which file and line it is.
    pub code: String,
}

/// The modules of a crate and all paths in them.
pub struct CrateModules {
    modules: BTreeSet<ModulePath>,
    mentions: Vec<Mention>,
    /// What the `use` items of a module name: its name there, and the path that it stands for.
    used_names: BTreeMap<(ModulePath, String), (ModulePath, Vec<String>)>,
}

/// A path in the code.
struct Mention {
    /// Module of the file.
    file: ModulePath,
    /// Module in which the path is, which may be inside the file.
    inside: ModulePath,
    segments: Vec<String>,
    place: String,
}

impl CrateModules {
    /// Reads a crate whose sources are below `folder`.
    pub fn of(folder: &str, sources: &[Source]) -> Self {
        let in_crate: Vec<(ModulePath, &Source)> = sources
            .iter()
            .filter(|source| !source.is_test())
            .map(|source| (module_path(folder, source), source))
            .collect();
        let mut of_tests = BTreeSet::new();
        for (module, source) in &in_crate {
            let declared = source.syntax.items.iter().filter_map(|item| match item {
                syn::Item::Mod(declared) if is_for_tests(&declared.attrs) => Some(declared.ident.to_string()),
                _ => None,
            });
            of_tests.extend(declared.map(|name| child(module, &name)));
        }
        let is_of_tests = |module: &ModulePath| of_tests.iter().any(|tests| module.starts_with(tests));
        let in_crate: Vec<_> = in_crate.into_iter().filter(|(module, _)| !is_of_tests(module)).collect();
        let modules = in_crate.iter().map(|(module, _)| module.clone()).collect();
        let mut read = Self { modules, mentions: Vec::new(), used_names: BTreeMap::new() };
        for (module, source) in in_crate {
            let mut mentions = Mentions { module: &module, source, inside: module.clone(), into: &mut read };
            mentions.visit_file(&source.syntax);
        }
        read
    }

    /// Whether the crate has such a module.
    pub fn has(&self, module: &ModulePath) -> bool {
        self.modules.contains(module)
    }

    /// All uses of one module by another, each pair once.
    pub fn imports(&self) -> Vec<Import> {
        let mut found: BTreeMap<(ModulePath, ModulePath), String> = BTreeMap::new();
        for Mention { file, inside, segments, place } in &self.mentions {
            if let Some(to) = self.resolve(inside, segments, 0).filter(|to| to != file) {
                let code = || format!("{} in {place}", segments.join("::"));
                found.entry((file.clone(), to)).or_insert_with(code);
            }
        }
        found.into_iter().map(|((from, to), code)| Import { from, to, code }).collect()
    }

    /// The module that a path leads to; `None` for another crate or for something in the same module.
    fn resolve(&self, inside: &ModulePath, segments: &[String], depth: usize) -> Option<ModulePath> {
        let (first, mut rest) = segments.split_first()?;
        let mut at = inside.clone();
        match first.as_str() {
            "crate" => at.clear(),
            "self" => {}
            "super" => drop(at.pop()?),
            name if self.modules.contains(&child(inside, name)) => rest = segments,
            _ => return None,
        }
        while let Some((next, behind)) = rest.split_first() {
            if next == "super" {
                at.pop()?;
            } else if self.modules.contains(&child(&at, next)) {
                at.push(next.clone());
            } else {
                return Some(self.origin(&at, next, behind, depth).unwrap_or(at));
            }
            rest = behind;
        }
        Some(at)
    }

    /// Where a name comes from that a module has from elsewhere in the crate.
    fn origin(&self, module: &ModulePath, name: &str, behind: &[String], depth: usize) -> Option<ModulePath> {
        let (inside, path) = self.used_names.get(&(module.clone(), name.to_owned()))?;
        let path: Vec<String> = path.iter().chain(behind).cloned().collect();
        // Names that stand for each other in a circle do not compile; the limit is for what is misread here.
        if depth < 8 { self.resolve(inside, &path, depth + 1) } else { None }
    }
}

fn child(module: &ModulePath, name: &str) -> ModulePath {
    module.iter().map(String::as_str).chain([name]).map(str::to_owned).collect()
}

fn module_path(folder: &str, source: &Source) -> ModulePath {
    let path = source.path.strip_prefix(folder).unwrap().with_extension("");
    let mut parts: ModulePath = path.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    let is_root = parts.len() == 1 && matches!(parts[0].as_str(), "lib" | "main");
    if is_root || parts.last().is_some_and(|name| name == FACE) {
        parts.pop();
    }
    parts
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    let cfg = attributes.iter().filter(|attribute| attribute.path().is_ident("cfg"));
    cfg.filter_map(|attribute| attribute.meta.require_list().ok())
        .any(|list| paths_in(list.tokens.clone()).iter().any(|path| path == &["test"]))
}

/// Collects the paths of one file.
struct Mentions<'a> {
    module: &'a ModulePath,
    source: &'a Source,
    inside: ModulePath,
    into: &'a mut CrateModules,
}

impl Mentions<'_> {
    fn add(&mut self, segments: Vec<String>, line: usize) {
        let place = format!("{}:{line}", self.source.path.display());
        let (file, inside) = (self.module.clone(), self.inside.clone());
        self.into.mentions.push(Mention { file, inside, segments, place });
    }

    fn add_use(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: String| before.iter().cloned().chain([name]).collect::<Vec<String>>();
        let (name, known_as, line) = match tree {
            UseTree::Path(path) => return self.add_use(&path.tree, &with(path.ident.to_string())),
            UseTree::Group(group) => return group.items.iter().for_each(|tree| self.add_use(tree, before)),
            UseTree::Glob(glob) => return self.add(before.to_vec(), glob.star_token.span.start().line),
            UseTree::Name(name) => (name.ident.to_string(), name.ident.to_string(), name.ident.span().start().line),
            UseTree::Rename(name) => (name.ident.to_string(), name.rename.to_string(), name.ident.span().start().line),
        };
        // `use a::{self}` names `a`.
        let path = if name == "self" && !before.is_empty() { before.to_vec() } else { with(name) };
        let known_as = if known_as == "self" { before.last().cloned().unwrap_or_default() } else { known_as };
        self.into.used_names.insert((self.inside.clone(), known_as), (self.inside.clone(), path.clone()));
        self.add(path, line);
    }
}

impl<'ast> Visit<'ast> for Mentions<'_> {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        let attributes: &[Attribute] = match item {
            syn::Item::Mod(item) => &item.attrs,
            syn::Item::Fn(item) => &item.attrs,
            syn::Item::Impl(item) => &item.attrs,
            syn::Item::Use(item) => &item.attrs,
            _ => &[],
        };
        if !is_for_tests(attributes) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        self.inside.push(module.ident.to_string());
        visit::visit_item_mod(self, module);
        self.inside.pop();
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.add_use(&item.tree, &[]);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if path.leading_colon.is_none()
            && let Some(first) = path.segments.first()
        {
            let line = first.ident.span().start().line;
            self.add(path.segments.iter().map(|segment| segment.ident.to_string()).collect(), line);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let line = call.path.segments.first().map_or(0, |segment| segment.ident.span().start().line);
        for path in paths_in(call.tokens.clone()) {
            self.add(path, line);
        }
        visit::visit_macro(self, call);
    }

    // `pub(super)` uses nothing.
    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {}

    fn visit_attribute(&mut self, _: &'ast Attribute) {}
}

/// All paths `a::b::c` in the tokens of a macro or attribute, those within brackets too.
pub fn paths_in(tokens: TokenStream) -> Vec<Vec<String>> {
    let mut paths: Vec<Vec<String>> = Vec::new();
    // Colons since the last name, which begins a path where there are not two.
    let mut colons = 0;
    for token in tokens {
        match token {
            TokenTree::Ident(name) => {
                match paths.last_mut().filter(|_| colons == 2) {
                    Some(path) => path.push(name.to_string()),
                    None => paths.push(vec![name.to_string()]),
                }
                colons = 0;
            }
            TokenTree::Punct(mark) if mark.as_char() == ':' => colons += 1,
            // After any other mark a path begins anew; so many colons join nothing.
            TokenTree::Punct(_) | TokenTree::Literal(_) => colons = 3,
            TokenTree::Group(group) => {
                paths.extend(paths_in(group.stream()));
                colons = 3;
            }
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imports(files: &[(&str, &str)]) -> Vec<String> {
        let sources: Vec<Source> =
            files.iter().map(|(path, text)| Source::new(format!("c/src/{path}"), text)).collect();
        let found = CrateModules::of("c/src", &sources).imports();
        found.iter().map(|import| format!("{} -> {}", import.from.join("::"), import.to.join("::"))).collect()
    }

    #[test]
    fn uses_paths_and_macros_are_seen() {
        let files = [
            ("lib.rs", "pub mod a; pub mod b; mod c; mod d; mod e;"),
            ("a.rs", "use crate::b::{self, B}; fn f() { super::c::run(); log!(\"{}\", crate::d::D); }"),
            ("b.rs", "use std::fmt; pub(super) struct B; fn f(x: crate::e::E<crate::c::C>) {}"),
            ("c.rs", ""),
            ("d.rs", "fn f() { let c = c::run(); }"),
            ("e.rs", "use super::{a as first, b::*};"),
        ];
        assert_eq!(imports(&files), ["a -> b", "a -> c", "a -> d", "b -> c", "b -> e", "e -> a", "e -> b"]);
    }

    #[test]
    fn a_name_leads_to_where_it_is_from() {
        let files = [
            ("lib.rs", "mod space; mod other;"),
            ("space/mod.rs", "mod state; mod load; pub use self::state::State; pub use state as known;"),
            ("space/state.rs", ""),
            ("space/load.rs", "use super::State;"),
            ("other.rs", "use crate::space::known::X; mod inner { fn f() { super::super::space::State::new(); } }"),
        ];
        assert_eq!(imports(&files), ["other -> space::state", "space -> space::state", "space::load -> space::state"]);
    }

    #[test]
    fn tests_may_use_what_they_like() {
        let files = [
            ("lib.rs", "mod a; mod b; #[cfg(test)] mod probe;"),
            ("a.rs", "#[cfg(test)] mod tests { use crate::b::B; }\n#[cfg(test)] use crate::b::B;"),
            ("b.rs", "impl B { #[cfg(any(test, unix))] fn f() { crate::a::g() } }"),
            ("b_tests.rs", "use crate::a::A;"),
            ("probe.rs", "use crate::a::A;"),
        ];
        assert_eq!(imports(&files), Vec::<String>::new());
    }

    #[test]
    fn tokens_hold_paths() {
        let paths = paths_in("a::b, c: d::<e>, x ; { f::g(h) }".parse().unwrap());
        let paths: Vec<String> = paths.iter().map(|path| path.join("::")).collect();
        assert_eq!(paths, ["a::b", "c", "d", "e", "x", "f::g", "h"]);
    }
}
