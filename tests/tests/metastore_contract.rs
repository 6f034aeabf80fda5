//! The metastore's contract on a real Postgres; the writer's own tests run it on SQLite.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use lake_tests::parts::Postgres;
use lake_writer::metastore::postgres::PostgresMetastore;
use lake_writer::metastore::{Metastore, connect, contract};

#[tokio::test]
async fn postgres_keeps_the_contract() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.create_database("metastore").unwrap();
    let metastore = PostgresMetastore::new(&url.into(), 4).unwrap();
    metastore.migrate().await.unwrap();
    metastore.migrate().await.unwrap();
    contract::holds(&metastore).await;
}

/// An older writer that starts beside a newer one says so at once, and holds up no other.
#[tokio::test]
async fn tables_of_a_newer_version_are_refused_and_nothing_stays_locked() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.create_database("metastore").unwrap();
    let [older, other] = [(); 2].map(|()| PostgresMetastore::new(&url.clone().into(), 4).unwrap());
    older.migrate().await.unwrap();
    let database = sqlx::PgPool::connect(&url).await.unwrap();
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'newer', TRUE, ''::BYTEA, 0)";
    sqlx::query(newer).execute(&database).await.unwrap();
    for metastore in [&older, &older, &other] {
        let error = connect::migrate_when_there(metastore).await.unwrap_err();
        let text = lake_shared::error_chain::Chain(&error).to_string();
        assert!(text.contains("newer version of CommCare Lake") && text.contains("9999"), "{text}");
    }
    sqlx::query("DELETE FROM _sqlx_migrations WHERE version = 9999").execute(&database).await.unwrap();
    connect::migrate_when_there(&other).await.unwrap();
}
