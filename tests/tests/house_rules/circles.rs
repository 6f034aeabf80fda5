//! Circles of modules, and storeys that import only what stands below.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::imports::{CrateModules, FACE, Import, ModulePath};

/// Modules that import each other, directly or by way of others of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circle {
    /// All modules of the knot, by path.
    pub modules: Vec<String>,
    /// An import for each pair of them.
    pub imports: Vec<String>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n    {}", self.modules.join(", "), self.imports.join("\n    "))
    }
}

/// Edges between modules: from, to, and the import with the place that it is in.
type Edges<'a> = BTreeMap<String, BTreeMap<String, &'a str>>;

/// The circles among the files of a crate, and among its top-level modules, where whatever is deeper in a folder counts as the folder. A module
/// and those inside it may import each other, as `mod.rs` and its folder are one thing.
pub fn circles(imports: &[Import]) -> Vec<Circle> {
    let (mut files, mut top_level) = (Edges::new(), Edges::new());
    for Import { from, to, code } in imports {
        if !from.starts_with(to) && !to.starts_with(from) {
            files.entry(from.join("::")).or_default().entry(to.join("::")).or_insert(code);
        }
        if let (Some(one), Some(other)) = (from.first(), to.first())
            && one != other
        {
            top_level.entry(one.clone()).or_default().entry(other.clone()).or_insert(code);
        }
    }
    let mut found = circles_of(&files);
    for circle in circles_of(&top_level) {
        if found.iter().all(|known| known.modules != circle.modules) {
            found.push(circle);
        }
    }
    found
}

fn circles_of(edges: &Edges) -> Vec<Circle> {
    let circle = |knot: BTreeSet<String>| {
        let mut imports = Vec::new();
        for from in &knot {
            let inside = edges[from].iter().filter(|(to, _)| knot.contains(*to));
            imports.extend(inside.map(|(to, code)| format!("{from} imports {to}: {code}")));
        }
        Circle { modules: knot.into_iter().collect(), imports }
    };
    knots(edges).into_iter().map(circle).collect()
}

/// Sets of at least two modules each of which reaches all the others.
fn knots(edges: &Edges) -> BTreeSet<BTreeSet<String>> {
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        edges.keys().map(|from| (from, reachable(from, edges))).collect();
    let mut knots = BTreeSet::new();
    for (from, reaches) in &reached {
        if reaches.contains(from) {
            let back = |to: &&&String| reached.get(**to).is_some_and(|reaches| reaches.contains(from));
            knots.insert(reaches.iter().filter(back).map(|to| (*to).clone()).collect());
        }
    }
    knots
}

fn reachable<'a>(from: &'a String, edges: &'a Edges) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        for to in edges.get(module).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(to) {
                next.push(to);
            }
        }
    }
    reached
}

/// Imports within a module that go to the same storey or a higher one, and children of the module that are on no storey.
pub fn upward(modules: &CrateModules, module: &str, storeys: &[&[&str]]) -> Vec<String> {
    let module: ModulePath = module.split("::").map(str::to_owned).collect();
    let mut found = Vec::new();
    for name in storeys.iter().copied().flatten().filter(|name| **name != FACE) {
        let path = module.iter().cloned().chain([(*name).to_owned()]).collect();
        if !modules.has(&path) {
            found.push(format!("there is no {}", path.join("::")));
        }
    }
    let storey = |name: &str| storeys.iter().position(|names| names.contains(&name));
    let mut homeless = BTreeSet::new();
    for import in modules.imports() {
        let (Some(from), Some(to)) = (child_of(&module, &import.from), child_of(&module, &import.to)) else { continue };
        match (storey(from), storey(to)) {
            _ if from == to => {}
            (Some(own), Some(other)) if other < own => {}
            (Some(_), Some(_)) => found.push(format!("{from} imports {to}: {}", import.code)),
            _ => homeless.extend([from, to].into_iter().filter(|name| storey(name).is_none()).map(str::to_owned)),
        }
    }
    found.extend(homeless.into_iter().map(|name| format!("{name} is on no storey")));
    found
}

/// Which child of `module` a path leads into; the module's own file is [`FACE`].
fn child_of<'a>(module: &ModulePath, path: &'a ModulePath) -> Option<&'a str> {
    let below = path.strip_prefix(&module[..])?;
    Some(below.first().map_or(FACE, String::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::Source;

    fn crate_of(files: &[(&str, &str)]) -> CrateModules {
        let sources: Vec<Source> =
            files.iter().map(|(path, text)| Source::new(format!("c/src/{path}"), text)).collect();
        CrateModules::of("c/src", &sources)
    }

    #[test]
    fn a_circle_through_three_files_is_found_with_its_imports() {
        let files = [
            ("lib.rs", "mod x;"),
            ("x/mod.rs", "mod a; mod b; mod c; mod d; pub use self::a::A;"),
            ("x/a.rs", "use super::b::deep::B;"),
            ("x/b/mod.rs", "mod deep;"),
            ("x/b/deep.rs", "fn f() { crate::x::c::run() }"),
            ("x/c.rs", "use crate::x::A; use super::d::D;"),
            ("x/d.rs", ""),
        ];
        let found = circles(&crate_of(&files).imports());
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].modules, ["x::a", "x::b::deep", "x::c"]);
        assert_eq!(
            found[0].imports,
            [
                "x::a imports x::b::deep: super::b::deep::B in c/src/x/a.rs:1",
                "x::b::deep imports x::c: crate::x::c::run in c/src/x/b/deep.rs:1",
                "x::c imports x::a: crate::x::A in c/src/x/c.rs:1",
            ]
        );
    }

    #[test]
    fn folders_count_as_one_at_the_top_level_only() {
        let tree = |top: &str| {
            let files = [
                ("lib.rs".to_owned(), "mod a; mod b; mod x;"),
                ("x/mod.rs".to_owned(), "mod a; mod b;"),
                (format!("{top}a/mod.rs"), "mod low; mod high;"),
                (format!("{top}a/low.rs"), ""),
                (format!("{top}a/high.rs"), "use super::super::b::B;"),
                (format!("{top}b.rs"), "use super::a::low::Low;"),
            ];
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
            circles(&crate_of(&files).imports())
        };
        let found = tree("");
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!(found[0].modules, ["a", "b"]);
        assert_eq!(tree("x/"), []);
    }

    #[test]
    fn a_module_and_its_children_are_no_circle() {
        let files =
            [("lib.rs", "mod a; mod b;"), ("a/mod.rs", "mod x; use x::X;"), ("a/x.rs", "use super::A;"), ("b.rs", "")];
        assert_eq!(circles(&crate_of(&files).imports()), []);
    }

    #[test]
    fn storeys_look_down_only() {
        let storeys: &[&[&str]] = &[&["files"], &["log"], &["upsert", "compact"], &[FACE]];
        let tree = |log: &str, upsert: &str| {
            let files = [
                ("lib.rs", "mod e;"),
                ("e/mod.rs", "mod files; mod log; mod upsert; mod compact; use self::upsert::U; pub struct Face;"),
                ("e/files.rs", ""),
                ("e/log/mod.rs", log),
                ("e/upsert.rs", upsert),
                ("e/compact.rs", "use super::log::Log; use super::files::F;"),
            ];
            upward(&crate_of(&files), "e", storeys)
        };
        assert_eq!(tree("use super::files::F;", "use super::log::Log;"), Vec::<String>::new());
        let to_the_side = "upsert imports compact: super::compact::C in c/src/e/upsert.rs:1";
        assert_eq!(tree("", "use super::compact::C;"), [to_the_side]);
        let up = "log imports upsert: super::upsert::U in c/src/e/log/mod.rs:1";
        assert_eq!(tree("use super::upsert::U;", ""), [up]);
        assert_eq!(tree("use crate::e::Face;", ""), ["log imports mod: crate::e::Face in c/src/e/log/mod.rs:1"]);
    }

    #[test]
    fn what_is_on_no_storey_and_what_is_missing_are_told() {
        let files = [
            ("lib.rs", "mod e;"),
            ("e/mod.rs", "mod files; mod attic; use attic::A;"),
            ("e/files.rs", ""),
            ("e/attic.rs", ""),
        ];
        let found = upward(&crate_of(&files), "e", &[&["files"], &["log"], &[FACE]]);
        assert_eq!(found, ["there is no e::log", "attic is on no storey"]);
    }
}
