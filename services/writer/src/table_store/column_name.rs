//! Names of columns, made of source paths: `/form/meta/userID` is `form__meta__userID`, `+month` is `month`.
//!
//! A name holds letters and digits of any script and `_ @ # -`. It is at most [`COLUMN_NAME_LENGTH_MAX`] bytes and unique
//! within its table regardless of case, as most readers fold it. Names that had to be changed end in a fingerprint of their path; so do fields that
//! have the name of a column that the lake, Delta or Spark gives to a table by itself.

use lake_shared::escaped_names;

/// Longest column name, in bytes.
pub const COLUMN_NAME_LENGTH_MAX: usize = 120;

/// Begins the names of the lake's own columns.
const OWN_START: &str = "_lake_";

/// Columns that Delta's change data feed and Spark add to what they read: Delta refuses the change data feed where a table has one of the
/// first three, and Spark's column would be hidden.
const RESERVED: [&str; 4] = ["_change_type", "_commit_version", "_commit_timestamp", "_metadata"];

/// The name a path has on its own, before other columns of the table are looked at.
pub fn natural(path: &str) -> String {
    let plain = match path.strip_prefix('+') {
        Some(name) => name.to_owned(),
        None => {
            let pointer = path.strip_prefix('/').unwrap_or(path);
            pointer.split('/').map(unescaped).collect::<Vec<_>>().join("__")
        }
    };
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '_' | '@' | '#' | '-');
    let name: String = plain.chars().map(|c| if allowed(c) { c } else { '_' }).collect();
    let is_field = !path.starts_with('+');
    if name.is_empty() || name != plain || name.len() > COLUMN_NAME_LENGTH_MAX || is_field && is_reserved(&name) {
        return with_fingerprint(&name, path, 8);
    }
    name
}

/// A name for a path that no name in `taken` equals. `taken` answers for lower-case names.
pub fn unique(path: &str, taken: impl Fn(&str) -> bool) -> String {
    let name = natural(path);
    let mut candidates = std::iter::once(name.clone())
        .chain([8, 16, 32].into_iter().map(|digits| with_fingerprint(&name, path, digits)))
        .chain((2..).map(|number: u64| with_fingerprint(&name, &format!("{path}\u{0}{number}"), 32)));
    // The last part of the chain never ends and never repeats.
    candidates.find(|candidate| !taken(&candidate.to_lowercase())).unwrap_or(name)
}

/// Whether a field of HQ must not have this name, in whatever case.
fn is_reserved(name: &str) -> bool {
    let name = name.to_lowercase();
    name.starts_with(OWN_START) || RESERVED.contains(&name.as_str())
}

fn unescaped(segment: &str) -> String {
    segment.replace("~1", "/").replace("~0", "~")
}

fn with_fingerprint(name: &str, path: &str, digits: usize) -> String {
    let fingerprint = escaped_names::fingerprint(path);
    let room = COLUMN_NAME_LENGTH_MAX - 2 - digits;
    let end = (0..=room.min(name.len())).rev().find(|&at| name.is_char_boundary(at)).unwrap_or(0);
    format!("{}__{}", &name[..end], &fingerprint[..digits])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_paths_keep_their_words() {
        for (path, name) in [
            ("/_id", "_id"),
            ("+month", "month"),
            ("/form/meta/userID", "form__meta__userID"),
            ("/form/@xmlns", "form__@xmlns"),
            ("/form/a/#text", "form__a__#text"),
            ("/नाम", "नाम"),
            ("+_lake_version", "_lake_version"),
        ] {
            assert_eq!(natural(path), name);
        }
    }

    #[test]
    fn changed_names_carry_a_fingerprint() {
        for path in ["/a b", "/a.b", "/a~1b", "/", "+", "/a\u{0}", "/a;b", "/a,b", "/🙂"] {
            let name = natural(path);
            let (_, digits) = name.rsplit_once("__").expect("a fingerprint");
            assert_eq!(digits, &escaped_names::fingerprint(path)[..8], "{path} became {name}");
        }
        assert_ne!(natural("/a b"), natural("/a.b"));
        for path in
            ["/_change_type", "/_Commit_Version", "/_commit_timestamp", "/_METADATA", "/_lake_overflow", "/_LAKE_x"]
        {
            let digits = &escaped_names::fingerprint(path)[..8];
            assert_eq!(
                natural(path),
                format!("{}__{digits}", &path[1..]),
                "a field must not pass for a column of others"
            );
        }
        assert_eq!([natural("/form/_metadata"), natural("/_delta_log")], ["form___metadata", "_delta_log"]);
        let long = natural(&format!("/{}", "é".repeat(5_000)));
        assert!(long.len() <= COLUMN_NAME_LENGTH_MAX, "{}", long.len());
    }

    #[test]
    fn names_that_differ_only_by_case_are_told_apart() {
        let mut taken = HashSet::new();
        for path in ["/Name", "/name", "/NAME", "/a/b", "/a__b", "/ÄÖ", "/äö"] {
            let name = unique(path, |name| taken.contains(name));
            assert!(taken.insert(name.to_lowercase()), "{path} became {name}");
        }
        assert!(taken.contains("name") && taken.contains("a__b"));
    }

    proptest! {
        #[test]
        fn any_path_has_a_short_plain_unique_name(paths in prop::collection::hash_set("[/+]\\PC{0,60}", 0..40)) {
            let mut taken = HashSet::new();
            for path in &paths {
                let name = unique(path, |name| taken.contains(name));
                prop_assert!(!name.is_empty() && name.len() <= COLUMN_NAME_LENGTH_MAX);
                prop_assert!(name.chars().all(|c| c.is_alphanumeric() || "_@#-".contains(c)), "{}", name);
                prop_assert!(taken.insert(name.to_lowercase()));
            }
        }
    }
}
