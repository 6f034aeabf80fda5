//! The columns of a table as Spark keeps them in a catalog. Pure.
//!
//! Readers of Delta tables take the columns from the log and ignore these; they are for tools that ask the catalog alone, such as JDBC clients
//! of a Spark Thrift server. Spark cuts the schema into parts, as a parameter holds at most 4,000 characters (`spark.sql.sources.schema.*`,
//! HiveExternalCatalog).

use sha2::{Digest, Sha256};

/// Most characters of one part.
const PART_CHARACTERS_MAX: usize = 4_000;

/// Beginning of the names of Spark's parameters.
const SCHEMA: &str = "spark.sql.sources.schema";

/// Columns that are registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Changes with the columns; what is registered is compared by it.
    pub digest: String,
    /// Spark's parameters of the table.
    pub parameters: Vec<(String, String)>,
}

impl Columns {
    /// Of a Delta schema as JSON, which Spark writes in the same way.
    pub fn of_schema(schema: &str) -> Self {
        let characters: Vec<char> = schema.chars().collect();
        let parts: Vec<String> = characters.chunks(PART_CHARACTERS_MAX).map(|part| part.iter().collect()).collect();
        let mut parameters = vec![(format!("{SCHEMA}.numParts"), parts.len().to_string())];
        parameters.extend(parts.into_iter().enumerate().map(|(at, part)| (format!("{SCHEMA}.part.{at}"), part)));
        let digest = Sha256::digest(schema.as_bytes());
        let digest = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { digest, parameters }
    }

    /// Whether a parameter of a table is one of these, of whatever version.
    pub fn is_parameter(name: &str) -> bool {
        name == SCHEMA || name.strip_prefix(SCHEMA).is_some_and(|rest| rest.starts_with('.'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_schema_is_cut_into_parts_and_is_known_by_its_digest() {
        let schema = "é".repeat(PART_CHARACTERS_MAX * 2 + 1);
        let columns = Columns::of_schema(&schema);
        let names: Vec<&str> = columns.parameters.iter().map(|(name, _)| name.as_str()).collect();
        let part = |at| format!("spark.sql.sources.schema.part.{at}");
        assert_eq!(names, ["spark.sql.sources.schema.numParts", &part(0), &part(1), &part(2)]);
        assert_eq!(columns.parameters[0].1, "3");
        assert_eq!(columns.parameters[1..].iter().map(|(_, part)| part.as_str()).collect::<String>(), schema);
        assert!(
            names.iter().all(|name| Columns::is_parameter(name))
                && !Columns::is_parameter("spark.sql.sources.provider")
        );
        assert_ne!(columns.digest, Columns::of_schema("{}").digest);
    }
}
