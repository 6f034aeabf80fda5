//! Names of tables in a catalog. Pure.

use lake_shared::escaped_names;
use lake_shared::identity::TableKey;

use super::CatalogName;
use super::options::{CatalogOptions, DatabaseNaming};

/// Longest name of a database or a table in the Hive Metastore, bytes.
const NAME_LENGTH_MAX: usize = escaped_names::TABLE_NAME_LENGTH_MAX;

/// Digits of the fingerprint that tells apart projects whose names are written in the same way.
const FINGERPRINT_DIGITS: usize = 8;

/// The name that a table of the lake has in the catalog. `name` is its name in the lake: unique, of `a-z 0-9 _`, at most 128 characters.
pub fn catalog_name(options: &CatalogOptions, key: &TableKey, name: &str) -> CatalogName {
    match options.databases {
        DatabaseNaming::One => CatalogName { database: options.database.to_lowercase(), table: name.to_owned() },
        DatabaseNaming::PerProject => {
            let domain = key.space.domain.as_str();
            let table = name.strip_prefix(&format!("{}_", plain(domain))).filter(|rest| !rest.is_empty());
            CatalogName { database: project_database(options, domain), table: table.unwrap_or(name).to_owned() }
        }
    }
}

/// The database of a project: its name with `_` for `-`. Where it has other characters than `a-z 0-9 -`, each of them is `_` and a fingerprint
/// follows, so that no two projects share a database.
pub fn project_database(options: &CatalogOptions, domain: &str) -> String {
    let mut name = format!("{}{}", options.database_prefix.to_lowercase(), plain(domain));
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if domain.is_empty() || !domain.chars().all(is_plain) || name.len() > NAME_LENGTH_MAX {
        name.truncate(NAME_LENGTH_MAX - FINGERPRINT_DIGITS - 1);
        name = format!("{name}_{}", &escaped_names::fingerprint(domain)[..FINGERPRINT_DIGITS]);
    }
    name
}

fn plain(domain: &str) -> String {
    let word = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    domain.to_lowercase().chars().map(word).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use lake_shared::identity::{Kind, Space};
    use proptest::prelude::*;

    use super::*;

    fn named(options: &CatalogOptions, domain: &str, document_type: &str) -> CatalogName {
        let space = Space { domain: domain.into(), kind: Kind::Case };
        let key = TableKey { space, document_type: document_type.into() };
        catalog_name(options, &key, &escaped_names::table_name(&key))
    }

    #[test]
    fn a_project_is_a_database_or_the_beginning_of_a_name() {
        let per_project = CatalogOptions::default();
        assert_eq!(named(&per_project, "demo-space", "Person").to_string(), "demo_space.case_sql_person");
        let one =
            CatalogOptions { databases: DatabaseNaming::One, database: "lake".into(), ..CatalogOptions::default() };
        assert_eq!(named(&one, "demo-space", "person").to_string(), "lake.demo_space_case_sql_person");
        let prefixed = CatalogOptions { database_prefix: "hq_".into(), ..CatalogOptions::default() };
        assert_eq!(named(&prefixed, "demo", "person").to_string(), "hq_demo.case_sql_person");
    }

    #[test]
    fn projects_that_look_alike_have_databases_of_their_own() {
        let options = CatalogOptions::default();
        let long = "x".repeat(200);
        let domains = ["a-b", "a_b", "a.b", "A-b", "", "_", "é", &long, &long[1..]];
        let databases: HashSet<String> = domains.iter().map(|domain| project_database(&options, domain)).collect();
        assert_eq!(databases.len(), domains.len());
    }

    proptest! {
        #[test]
        fn every_name_is_one_that_hive_takes(domain in "\\PC{0,150}", document_type in "\\PC{0,150}") {
            let name = named(&CatalogOptions::default(), &domain, &document_type);
            for part in [name.database, name.table] {
                prop_assert!((1..=NAME_LENGTH_MAX).contains(&part.len()), "{part}");
                prop_assert!(part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'), "{part}");
            }
        }
    }
}
