//! The metastore's contract on a real Postgres; the writer's own tests run it on SQLite.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::time::Duration;

use lake_shared::identity::{Kind, Space};
use lake_tests::certificates::Certificates;
use lake_tests::parts::{Postgres, wait_until};
use lake_writer::boot_clock::BootInstant;
use lake_writer::metastore::fence::Fence;
use lake_writer::metastore::postgres::PostgresMetastore;
use lake_writer::metastore::{Metastore, StoredTombstone, connect, contract};
use lake_writer::order_guard::TombstoneOrder;
use sqlx::PgPool;

#[tokio::test]
async fn postgres_keeps_the_contract() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.create_database("metastore").unwrap();
    let metastore = PostgresMetastore::new(&url.into(), 4).unwrap();
    metastore.migrate().await.unwrap();
    metastore.migrate().await.unwrap();
    contract::holds(&metastore).await;
}

/// The address says how the connection is encrypted, as for every program that uses libpq.
#[tokio::test]
async fn connections_are_encrypted_and_the_server_is_known() {
    let (certificates, others) = (Certificates::make().unwrap(), Certificates::make().unwrap());
    let postgres = Postgres::start_with_tls(&certificates).unwrap();
    let url = postgres.create_database("metastore").unwrap();
    let open = |query: &str| PostgresMetastore::new(&format!("{url}?{query}").into(), 2).unwrap();
    let root = |of: &Certificates| format!("sslmode=verify-full&sslrootcert={}", of.file("ca.pem").display());
    let metastore = open(&root(&certificates));
    metastore.migrate().await.unwrap();
    assert_eq!(metastore.tables(None).await.unwrap(), []);
    for (wrong, reason) in [(root(&others), "certificate"), ("sslmode=disable".to_owned(), "no encryption")] {
        let error = open(&wrong).migrate().await.unwrap_err();
        let text = lake_shared::error_chain::Chain(&error).to_string();
        assert!(text.contains(reason), "{text}");
    }
}

/// An older writer that starts beside a newer one says so at once, and holds up no other.
#[tokio::test]
async fn tables_of_a_newer_version_are_refused_and_nothing_stays_locked() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.create_database("metastore").unwrap();
    let [older, other] = [(); 2].map(|()| PostgresMetastore::new(&url.clone().into(), 4).unwrap());
    older.migrate().await.unwrap();
    let database = PgPool::connect(&url).await.unwrap();
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

/// Connections that wait for another one.
async fn until_waiting(database: &PgPool, count: i64) {
    let asked = "SELECT COUNT(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    let waiting = wait_until("connections wait for a lock", Duration::from_secs(60), async || {
        Ok(sqlx::query_scalar::<_, i64>(asked).fetch_one(database).await? == count)
    });
    waiting.await.unwrap();
}

/// A write under the lease is in the middle of its transaction: who takes the lease waits for it, and sees what it wrote.
#[tokio::test]
async fn a_write_under_way_ends_before_the_lease_is_taken_and_holds_up_no_renewal() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.create_database("metastore").unwrap();
    // One connection for all but the lease.
    let metastore = PostgresMetastore::new(&url.clone().into(), 1).unwrap();
    let successor = PostgresMetastore::new(&url.clone().into(), 1).unwrap();
    metastore.migrate().await.unwrap();
    let hour_us = 3_600_000_000;
    let lease = metastore.acquire_lease("writer", "a", "", hour_us).await.unwrap().unwrap();
    let fenced = metastore.fenced(Fence::new(&lease, BootInstant::now().plus(Duration::from_secs(3_600))));
    let space = Space { domain: "demo".into(), kind: Kind::Case };
    let order = TombstoneOrder { version_us: None, observed_us: 5 };
    let tombstone = StoredTombstone { id_hash: 7, id: "seven".into(), order, reason: String::new() };

    let database = PgPool::connect(&url).await.unwrap();
    let mut blocking = database.begin().await.unwrap();
    sqlx::query("LOCK TABLE tombstone IN SHARE MODE").execute(&mut *blocking).await.unwrap();
    let writing = {
        let (space, tombstone) = (space.clone(), tombstone.clone());
        tokio::spawn(async move { fenced.remember_tombstones(&space, &[tombstone]).await })
    };
    until_waiting(&database, 1).await;
    assert!(metastore.renew_lease(&lease, hour_us).await.unwrap().is_some(), "renewing waits for nothing");
    sqlx::query("UPDATE writer_lease SET expires_us = 0").execute(&database).await.unwrap();
    let taking = {
        let successor = successor.clone();
        tokio::spawn(async move { successor.acquire_lease("writer", "b", "", hour_us).await })
    };
    until_waiting(&database, 2).await;
    blocking.rollback().await.unwrap();
    let taken = taking.await.unwrap().unwrap().unwrap();
    assert_eq!((taken.owner.as_str(), taken.epoch), ("b", lease.epoch + 1));
    writing.await.unwrap().unwrap();
    assert_eq!(successor.tombstones(&space, None, 10).await.unwrap(), [tombstone]);
}

/// Every connection of the pool is busy for as long as somebody likes.
#[tokio::test]
async fn the_lease_has_a_connection_of_its_own() {
    let postgres = Postgres::start().unwrap();
    let url = postgres.create_database("metastore").unwrap();
    let metastore = PostgresMetastore::new(&url.clone().into(), 1).unwrap();
    metastore.migrate().await.unwrap();
    let lease = metastore.acquire_lease("writer", "a", "", 3_600_000_000).await.unwrap().unwrap();
    let database = PgPool::connect(&url).await.unwrap();
    let mut blocking = database.begin().await.unwrap();
    sqlx::query("LOCK TABLE lake_table IN ACCESS EXCLUSIVE MODE").execute(&mut *blocking).await.unwrap();
    let listing = {
        let metastore = metastore.clone();
        tokio::spawn(async move { metastore.tables(None).await })
    };
    until_waiting(&database, 1).await;
    let renewed = metastore.renew_lease(&lease, 3_600_000_000).await.unwrap();
    assert!(renewed.is_some() && !listing.is_finished());
    metastore.release_lease(&lease).await.unwrap();
    assert!(metastore.acquire_lease("writer", "b", "", 1).await.unwrap().is_some() && !listing.is_finished());
    blocking.rollback().await.unwrap();
    listing.await.unwrap().unwrap();
}
