//! The metastore's contract on a real Postgres; the writer's own tests run it on SQLite.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use lake_tests::parts::Postgres;
use lake_writer::metastore::postgres::PostgresMetastore;
use lake_writer::metastore::{Metastore, contract};

#[tokio::test]
async fn postgres_keeps_the_contract() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.create_database("metastore").unwrap();
    let metastore = PostgresMetastore::new(&url.into(), 4).unwrap();
    metastore.migrate().await.unwrap();
    metastore.migrate().await.unwrap();
    contract::holds(&metastore).await;
}
