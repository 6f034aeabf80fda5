//! Circles of modules, and storeys that import only what stands below.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::imports::{CrateModules, FACE, Import, ModulePath};

/// Children of one module that import each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Circle {
    /// The module that they are in; empty for the crate's root.
    pub parent: String,
    /// All modules of the knot, by name.
    pub modules: Vec<String>,
    /// An import for each pair of them.
    pub imports: Vec<String>,
}

impl fmt::Display for Circle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n    {}", self.modules.join(", "), self.imports.join("\n    "))
    }
}

/// Edges between the children of one module: from, to, and the import with the place that it is in.
type Edges<'a> = BTreeMap<&'a str, BTreeMap<&'a str, &'a str>>;

/// The circles among the children of each module, whatever is deeper in a child counting as the child. A module and its own children may
/// import each other, as `mod.rs` and its folder are one thing.
pub fn circles(imports: &[Import]) -> Vec<Circle> {
    let mut levels: BTreeMap<&[String], Edges> = BTreeMap::new();
    for Import { from, to, code } in imports {
        let shared = from.iter().zip(to).take_while(|(one, other)| one == other).count();
        if let (Some(one), Some(other)) = (from.get(shared), to.get(shared)) {
            levels.entry(&from[..shared]).or_default().entry(one).or_default().entry(other).or_insert(code);
        }
    }
    let of_level = |(parent, edges): (&[String], Edges)| {
        let knots = knots(&edges).into_iter().map(|knot| circle(parent.join("::"), &knot, &edges));
        knots.collect::<Vec<_>>()
    };
    levels.into_iter().flat_map(of_level).collect()
}

fn circle(parent: String, knot: &BTreeSet<&str>, edges: &Edges) -> Circle {
    let mut imports = Vec::new();
    for from in knot {
        let inside = edges[from].iter().filter(|(to, _)| knot.contains(*to));
        imports.extend(inside.map(|(to, code)| format!("{from} imports {to}: {code}")));
    }
    Circle { parent, modules: knot.iter().map(|name| (*name).to_owned()).collect(), imports }
}

/// Sets of at least two modules each of which reaches all the others.
fn knots<'a>(edges: &Edges<'a>) -> Vec<BTreeSet<&'a str>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> = edges.keys().map(|from| (*from, reachable(from, edges))).collect();
    let mut knots = BTreeSet::new();
    for (from, reaches) in &reached {
        if reaches.contains(from) {
            let back = |to: &&&str| reached.get(**to).is_some_and(|reaches| reaches.contains(from));
            knots.insert(reaches.iter().filter(back).copied().collect::<BTreeSet<&str>>());
        }
    }
    knots.into_iter().collect()
}

fn reachable<'a>(from: &str, edges: &Edges<'a>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next = vec![from];
    while let Some(module) = next.pop() {
        for to in edges.get(module).into_iter().flat_map(BTreeMap::keys) {
            if reached.insert(*to) {
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
    fn a_circle_through_three_modules_is_found_with_its_imports() {
        let files = [
            ("lib.rs", "mod a; mod b; mod c; mod d;"),
            ("a.rs", "use crate::b::B;"),
            ("b/mod.rs", "mod deep;"),
            ("b/deep.rs", "fn f() { crate::c::run() }"),
            ("c.rs", "use super::a::A; use super::d::D;"),
            ("d.rs", ""),
        ];
        let found = circles(&crate_of(&files).imports());
        assert_eq!(found.len(), 1, "{found:#?}");
        assert_eq!((found[0].parent.as_str(), &found[0].modules[..]), ("", &["a", "b", "c"].map(str::to_owned)[..]));
        assert_eq!(
            found[0].imports,
            [
                "a imports b: crate::b::B in c/src/a.rs:1",
                "b imports c: crate::c::run in c/src/b/deep.rs:1",
                "c imports a: super::a::A in c/src/c.rs:1",
            ]
        );
    }

    #[test]
    fn circles_are_looked_for_in_each_folder() {
        let files = [
            ("lib.rs", "mod a;"),
            ("a/mod.rs", "mod x; mod y; mod z; pub use x::X;"),
            ("a/x.rs", "use super::y::Y;"),
            ("a/y.rs", "use super::X;"),
            ("a/z.rs", "use super::X;"),
        ];
        let found = circles(&crate_of(&files).imports());
        assert_eq!(found.iter().map(|circle| circle.modules.join(" ")).collect::<Vec<_>>(), ["x y"]);
        assert_eq!(found[0].parent, "a");
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
