//! Names of columns, made of source paths: `/form/meta/userID` is `form__meta__userID`, `+month` is `month`.
//!
//! A name holds letters and digits of any script and `_ @ # -`. It is at most [`COLUMN_NAME_LENGTH_MAX`] bytes and unique
//! within its table regardless of case, as most readers fold it. Names that had to be changed end in a fingerprint of their path.

use lake_shared::escaped_names;

/// Longest column name, in bytes.
pub const COLUMN_NAME_LENGTH_MAX: usize = 120;

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
    if name.is_empty() || name != plain || name.len() > COLUMN_NAME_LENGTH_MAX {
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
