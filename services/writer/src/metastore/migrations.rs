//! The metastore's migrations, in order. They are listed here and not read by a macro: the macro builds every database driver a second
//! time, for the compiler.

use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};

use super::MetastoreError;

/// Version, description and text of one migration; its file is `<version>_<description>.sql`.
type MigrationText = (i64, &'static str, &'static str);

/// Those for Postgres.
pub(super) const POSTGRES: &[MigrationText] = &[
    (1, "metastore", include_str!("../../migrations/postgres/0001_metastore.sql")),
    (2, "lease_address", include_str!("../../migrations/postgres/0002_lease_address.sql")),
    (3, "lease_wanted", include_str!("../../migrations/postgres/0003_lease_wanted.sql")),
    (4, "quarantine_document", include_str!("../../migrations/postgres/0004_quarantine_document.sql")),
    (5, "operations", include_str!("../../migrations/postgres/0005_operations.sql")),
    (6, "delays", include_str!("../../migrations/postgres/0006_delays.sql")),
    (7, "policies", include_str!("../../migrations/postgres/0007_policies.sql")),
    (8, "backfills", include_str!("../../migrations/postgres/0008_backfills.sql")),
    (9, "quarantine_replay", include_str!("../../migrations/postgres/0009_quarantine_replay.sql")),
    (10, "comparisons", include_str!("../../migrations/postgres/0010_comparisons.sql")),
    (11, "erasures", include_str!("../../migrations/postgres/0011_erasures.sql")),
];

/// Those for SQLite.
pub(super) const SQLITE: &[MigrationText] = &[
    (1, "metastore", include_str!("../../migrations/sqlite/0001_metastore.sql")),
    (2, "lease_address", include_str!("../../migrations/sqlite/0002_lease_address.sql")),
    (3, "lease_wanted", include_str!("../../migrations/sqlite/0003_lease_wanted.sql")),
    (4, "quarantine_document", include_str!("../../migrations/sqlite/0004_quarantine_document.sql")),
    (5, "operations", include_str!("../../migrations/sqlite/0005_operations.sql")),
    (6, "delays", include_str!("../../migrations/sqlite/0006_delays.sql")),
    (7, "policies", include_str!("../../migrations/sqlite/0007_policies.sql")),
    (8, "backfills", include_str!("../../migrations/sqlite/0008_backfills.sql")),
    (9, "quarantine_replay", include_str!("../../migrations/sqlite/0009_quarantine_replay.sql")),
    (10, "comparisons", include_str!("../../migrations/sqlite/0010_comparisons.sql")),
    (11, "erasures", include_str!("../../migrations/sqlite/0011_erasures.sql")),
];

/// Runs what a database lacks of these migrations.
pub(super) fn migrator(texts: &[MigrationText]) -> Migrator {
    let migration = |&(version, description, text): &MigrationText| {
        Migration::new(version, description.into(), MigrationType::Simple, text.into_sql_str(), false)
    };
    Migrator::with_migrations(texts.iter().map(migration).collect())
}

/// Why migrations were not applied.
pub(super) fn failed(source: MigrateError) -> MetastoreError {
    let action = if is_final(&source) {
        "use its tables, which a newer version of CommCare Lake has changed; run that version"
    } else {
        "create or update its tables"
    };
    MetastoreError { action: action.into(), source: source.into() }
}

/// Whether trying again is of no use, as the database has migrations that this version does not have, or has others.
pub(super) fn is_final(error: &MigrateError) -> bool {
    matches!(error, MigrateError::VersionMissing(_) | MigrateError::VersionMismatch(_))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::path::Path;

    use super::*;

    #[test]
    fn every_file_is_listed() {
        for (folder, texts) in [("postgres", POSTGRES), ("sqlite", SQLITE)] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(folder);
            let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| {
                    (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap())
                })
                .collect();
            files.sort();
            let listed: Vec<(String, String)> = texts
                .iter()
                .map(|(version, description, text)| (format!("{version:04}_{description}.sql"), (*text).to_owned()))
                .collect();
            assert_eq!(listed, files);
        }
    }

    /// Databases remember the checksums of the migrations that they have had.
    #[test]
    fn migrations_that_were_published_never_change() {
        let checksum = |texts: &[MigrationText]| {
            let migrator = migrator(texts);
            let checksum = migrator.iter().next().unwrap().checksum[..4].to_vec();
            u32::from_be_bytes(checksum.try_into().unwrap())
        };
        assert_eq!((checksum(POSTGRES), checksum(SQLITE)), (0x7901d863, 0xd37f2c4d));
    }
}
