//! Outside names made safe, reversibly, for subjects and paths.
//!
//! A *token* holds only `A-Z a-z 0-9 _ -`; every other byte of the UTF-8 text becomes `~HH`. The empty text is `~`,
//! the text `_` is `~5F` (the token `_` is free to mean "unknown"). A token longer than [`TOKEN_LENGTH_MAX`] is cut
//! and ends in `~~` and 32 hex digits of a hash: that one form cannot be undone from the token alone, so queue messages and
//! the metastore carry the full text too.
//!
//! In paths `.` stands for `~`, as clients of object stores write `~` in more than one way: DuckDB 1.5 looks for the deletion vectors of a
//! table under `%7E`. A token has no other `.`, so paths are as reversible. A folder begins with a letter or a digit: the lake, Delta, Spark, Hive and
//! shells reserve or skip names that begin with `_` or `.`, and commands take those with `-` for options. Where a token begins otherwise, its folder
//! begins with [`FOLDER_START`], which no token has: the type `_delta_log` is in `x.-_delta_log`, the empty one in `x.-`. A `=` is escaped, so no folder
//! looks like a partition. Tables that were made before that was so keep the paths that the metastore has of them.

use uuid::Uuid;

use crate::identity::{DocumentType, Domain, Kind, Space, TableKey};

/// Longest token, in bytes: file systems allow 255 a name, subjects should stay well below 4 kB.
pub const TOKEN_LENGTH_MAX: usize = 120;

/// Begins the folders of tokens that do not begin with a letter or a digit. `.` stands before `-` in no other folder.
const FOLDER_START: &str = "x.-";

/// The token that stands for a type that is not known.
pub const UNKNOWN: &str = "_";

/// Makes a token of any text.
pub fn token(text: &str) -> String {
    if text.is_empty() {
        return "~".into();
    }
    if text == UNKNOWN {
        return "~5F".into();
    }
    let mut token = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-' {
            token.push(char::from(byte));
        } else {
            token.push_str(&format!("~{byte:02X}"));
        }
    }
    if token.len() > TOKEN_LENGTH_MAX {
        token.truncate(TOKEN_LENGTH_MAX - 34);
        // An escape sequence that was cut in two would look like another one.
        if let Some(at) = token.rfind('~').filter(|at| token.len() - at < 3) {
            token.truncate(at);
        }
        token.push_str("~~");
        token.push_str(&fingerprint(text));
    }
    token
}

/// The text that [`token`] was made of; `None` where the token is cut or was not made by it.
pub fn text(token: &str) -> Option<String> {
    if token == "~" {
        return Some(String::new());
    }
    let mut bytes = Vec::with_capacity(token.len());
    let mut rest = token.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first == b'~' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

/// 32 hex digits that identify a text; stable over versions of the software.
pub fn fingerprint(text: &str) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes()).simple().to_string()
}

/// Subject of full documents: `lake.records.<domain>.<kind>.<type>`.
pub fn records_subject(domain: &Domain, kind: Kind, document_type: Option<&DocumentType>) -> String {
    document_subject("records", domain, kind, document_type)
}

/// Subject of flattened rows: `lake.rows.<domain>.<kind>.<type>`.
pub fn rows_subject(domain: &Domain, kind: Kind, document_type: Option<&DocumentType>) -> String {
    document_subject("rows", domain, kind, document_type)
}

/// Subject of documents that the lake itself asks for: `lake.changes.<domain>.<kind>`.
pub fn changes_subject(domain: &Domain, kind: Kind) -> String {
    format!("lake.changes.{}.{kind}", token(domain.as_str()))
}

/// Subject of what came of them: `lake.reports.<domain>.<kind>`.
pub fn reports_subject(domain: &Domain, kind: Kind) -> String {
    format!("lake.reports.{}.{kind}", token(domain.as_str()))
}

fn document_subject(stage: &str, domain: &Domain, kind: Kind, document_type: Option<&DocumentType>) -> String {
    let document_type = document_type.map_or_else(|| UNKNOWN.to_owned(), |name| token(name.as_str()));
    format!("lake.{stage}.{}.{kind}.{document_type}", token(domain.as_str()))
}

/// A token as part of a path.
fn folder(text: &str) -> String {
    let plain = if text.is_empty() { String::new() } else { token(text).replace('~', ".") };
    if plain.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        plain
    } else {
        format!("{FOLDER_START}{plain}")
    }
}

/// Folder of a table below the lake's root: `<domain>/<topic>/<type>`, each a token in its form for paths.
pub fn table_path(table: &TableKey) -> String {
    format!("{}/{}", space_path(&table.space), folder(table.document_type.as_str()))
}

/// What is appended to [`table_path`] and to whatever ends in it where another table has the place: the file systems of many laptops do not
/// tell `Person` from `person`. It has the form of a token that was cut, which no other token has.
pub fn table_path_suffix(table: &TableKey) -> String {
    format!("..{}", &table_fingerprint(table)[..12])
}

/// Folder of a space, relative to the lake's root or to that of the key index.
pub fn space_path(space: &Space) -> String {
    format!("{}/{}", folder(space.domain.as_str()), space.kind.topic())
}

/// Name of a table in the metastore before it is made unique: `<domain>_<topic>_<type>`, lower case, `-` and everything
/// outside `a-z 0-9 _` as `_`, at most 128 characters.
pub fn table_name(table: &TableKey) -> String {
    let TableKey { space, document_type } = table;
    let name = format!("{}_{}_{document_type}", space.domain, space.kind.topic());
    name.to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' })
        .take(TABLE_NAME_LENGTH_MAX)
        .collect()
}

/// Longest table name, in characters: what Hive's metastore takes.
pub const TABLE_NAME_LENGTH_MAX: usize = 128;

/// The name to take where [`table_name`] is taken by another table: its beginning and a fingerprint of the full identity.
pub fn table_name_unique(table: &TableKey) -> String {
    let mut name = table_name(table);
    name.truncate(TABLE_NAME_LENGTH_MAX - 13);
    format!("{name}_{}", &table_fingerprint(table)[..12])
}

fn table_fingerprint(table: &TableKey) -> String {
    fingerprint(&format!("{}\u{0}{}\u{0}{}", table.space.domain, table.space.kind, table.document_type))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::identity::Space;

    const HOSTILE: [&str; 28] = [
        "",
        "_",
        ".",
        "..",
        "a/b",
        "a.b",
        "*",
        ">",
        "a b",
        "\u{0}\n",
        "घर",
        "http://openrosa.org/formdesigner/x",
        "_lake_root",
        "_lake_probe",
        "_delta_log",
        "_change_data",
        "_delta_index",
        "_symlink_format_manifest",
        "_temporary",
        "__HIVE_DEFAULT_PARTITION__",
        ".hidden",
        ".crc",
        "-rf",
        "month=2024-05-01",
        "=",
        "x",
        "x.-",
        "x.-_delta_log",
    ];

    /// The text that a folder of a path was made of; `None` where its token was cut, where another table has the plain path, or where it was not
    /// made here.
    fn text_of_folder(place: &str) -> Option<String> {
        let token = place.strip_prefix(FOLDER_START).unwrap_or(place).replace('.', "~");
        let text = if token.is_empty() { Some(String::new()) } else { text(&token) };
        text.filter(|text| folder(text) == place)
    }

    #[test]
    fn hostile_names_become_plain_tokens_and_come_back() {
        for hostile in HOSTILE {
            let made = token(hostile);
            assert!(made.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-~".contains(&b)), "{made}");
            assert_ne!(made, UNKNOWN);
            assert_eq!(text(&made).unwrap(), hostile);
        }
    }

    #[test]
    fn long_names_stay_short_and_distinct() {
        let (one, two) = ("é".repeat(5_000), format!("{}x", "é".repeat(5_000)));
        assert!(token(&one).len() <= TOKEN_LENGTH_MAX);
        assert_ne!(token(&one), token(&two));
        assert_eq!(text(&token(&one)), None);
    }

    #[test]
    fn table_names_are_lower_case_words() {
        let key = |domain: &str, document_type: &str| TableKey {
            space: Space { domain: domain.into(), kind: Kind::Case },
            document_type: document_type.into(),
        };
        assert_eq!(table_name(&key("demo-space", "Person")), "demo_space_case_sql_person");
        assert_ne!(table_name_unique(&key("d", "Person")), table_name_unique(&key("d", "person")));
        assert_eq!(table_path(&key("demo-space", "a/..")), "demo-space/case-sql/a.2F.2E.2E");
    }

    #[test]
    fn the_suffix_of_a_path_is_part_of_no_token() {
        let key = |document_type: &str| TableKey {
            space: Space { domain: "d".into(), kind: Kind::Case },
            document_type: document_type.into(),
        };
        let (one, other) = (table_path_suffix(&key("Person")), table_path_suffix(&key("person")));
        assert_ne!(one, other);
        assert_eq!(text(&format!("person{}", other.replace('.', "~"))), None);
        assert_ne!(folder(&format!("person{other}")), format!("person{other}"));
    }

    /// Object stores and file systems take each part of a path as it is.
    #[test]
    fn folders_are_plain_and_tell_names_apart() {
        let mut folders: Vec<String> = HOSTILE.iter().map(|hostile| folder(hostile)).collect();
        for made in &folders {
            assert!(made.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b)), "{made}");
            assert!(made.starts_with(|first: char| first.is_ascii_alphanumeric()), "{made}");
        }
        for (hostile, made) in HOSTILE.iter().zip(&folders) {
            assert_eq!(text_of_folder(made).as_deref(), Some(*hostile), "{made}");
        }
        folders.sort();
        folders.dedup();
        assert_eq!(folders.len(), HOSTILE.len());
        let long = folder(&"é".repeat(5_000));
        assert!(long.len() <= FOLDER_START.len() + TOKEN_LENGTH_MAX && long.contains(".."));
        assert_eq!(text_of_folder(&long), None);
        assert_eq!((folder("_delta_log").as_str(), folder("Person_1").as_str()), ("x.-_delta_log", "Person_1"));
    }

    #[test]
    fn what_is_no_folder_of_the_lake_has_no_text() {
        for other in ["_delta_log", ".hidden", "-a", "month=2024-05-01", "x.-person", "a.2f", "person..0123456789ab"] {
            assert_eq!(text_of_folder(other), None, "{other}");
        }
    }

    proptest! {
        /// Paths that a file system may take for one belong to tables of one name, of which only the first gets its plain path.
        #[test]
        fn paths_that_differ_by_case_have_one_name(one in "[a-zA-Z.é_=-]{0,3}", other in "[a-zA-Z.é_=-]{0,3}") {
            let key = |document_type: &str| TableKey {
                space: Space { domain: "d".into(), kind: Kind::Case },
                document_type: document_type.into(),
            };
            let (one, other) = (key(&one), key(&other));
            if table_path(&one).eq_ignore_ascii_case(&table_path(&other)) {
                prop_assert_eq!(table_name(&one), table_name(&other));
            }
        }

        #[test]
        fn every_short_text_survives(original in "[_.=a-c-]{0,4}\\PC{0,30}") {
            let (made, place) = (token(&original), folder(&original));
            prop_assert!(place.starts_with(|first: char| first.is_ascii_alphanumeric()));
            if made.len() < TOKEN_LENGTH_MAX - 2 {
                prop_assert_eq!(text(&made), Some(original.clone()));
                prop_assert_eq!(text_of_folder(&place), Some(original));
            }
        }
    }
}
