//! What the port promises, on every version of the Hive Metastore.

use std::process::Command;

use lake_tests::certificates::Certificates;
use lake_tests::parts::{HiveMetastore, HiveVersion, KeyStore, Postgres};
use lake_writer::catalog::columns::Columns;
use lake_writer::catalog::differences::as_registered;
use lake_writer::catalog::hive::HiveCatalog;
use lake_writer::catalog::{Catalog, CatalogError, CatalogKind, CatalogName, CatalogOptions, Mark, Registration};
use tempfile::TempDir;

const ROOT: &str = "file:///lake";

fn options(uris: &[String]) -> CatalogOptions {
    CatalogOptions { kind: CatalogKind::Hive, uris: uris.to_vec(), ..CatalogOptions::default() }
}

fn name(database: &str, table: &str) -> CatalogName {
    CatalogName { database: database.into(), table: table.into() }
}

fn registration(folder: &TempDir, table: &str) -> Registration {
    Registration {
        name: name("demo", table),
        mark: Mark { root: ROOT.into(), table: format!("demo/case/{table}") },
        location: format!("file://{}/{table}", folder.path().display()),
        columns: None,
    }
}

fn is_refused(outcome: Result<(), CatalogError>) -> bool {
    matches!(outcome, Err(CatalogError::Refused { .. }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_keeps_what_the_lake_registers() {
    let postgres = Postgres::start().unwrap();
    for version in HiveVersion::ALL {
        let hive = HiveMetastore::start(version, &postgres).unwrap();
        // The first address answers nobody.
        let catalog = HiveCatalog::new(&options(&["thrift://127.0.0.1:1".into(), hive.uri()])).unwrap();
        keeps_tables(&catalog, version).await;
        leaves_alone_what_others_made(&catalog, version).await;
    }
}

async fn keeps_tables(catalog: &dyn Catalog, version: HiveVersion) {
    let folder = TempDir::new().unwrap();
    assert_eq!(catalog.tables("demo").await.unwrap(), [], "{version}: no such database");
    for _ in 0..2 {
        catalog.create_database("demo", ROOT).await.unwrap();
    }
    let databases = catalog.databases().await.unwrap();
    let root_of = |name: &str| databases.iter().find(|there| there.name == name).map(|there| there.root.as_deref());
    assert_eq!((root_of("demo"), root_of("default")), (Some(Some(ROOT)), Some(None)), "{version}");

    let wanted = registration(&folder, "person");
    for _ in 0..2 {
        catalog.create_table(&wanted).await.unwrap();
    }
    assert_eq!(catalog.tables("demo").await.unwrap(), [as_registered(&wanted)], "{version}");

    // Columns that need thirty parts, with letters of several bytes; another location; none again.
    let field =
        |number: u32| format!("{{\"name\":\"é{number}\",\"type\":\"string\",\"nullable\":true,\"metadata\":{{}}}}");
    let fields: Vec<String> = (0..2_000).map(field).collect();
    let schema = format!("{{\"type\":\"struct\",\"fields\":[{}]}}", fields.join(","));
    let with_columns = Registration { columns: Some(Columns::of_schema(&schema)), ..wanted.clone() };
    let moved = Registration { location: format!("{}-moved", wanted.location), ..wanted.clone() };
    for wanted in [with_columns, moved] {
        catalog.alter_table(&wanted).await.unwrap();
        assert_eq!(catalog.tables("demo").await.unwrap(), [as_registered(&wanted)], "{version}");
    }
    // More than are read at once.
    for number in 0..120 {
        catalog.create_table(&registration(&folder, &format!("t{number}"))).await.unwrap();
    }
    assert_eq!(catalog.tables("demo").await.unwrap().len(), 121, "{version}");
    for number in 0..120 {
        catalog.drop_table(&name("demo", &format!("t{number}")), ROOT).await.unwrap();
    }
    for _ in 0..2 {
        catalog.drop_table(&name("demo", "person"), ROOT).await.unwrap();
    }
    assert_eq!(catalog.tables("demo").await.unwrap(), [], "{version}");
    assert!(is_refused(catalog.alter_table(&wanted).await), "{version}: it is gone");
    assert!(
        is_refused(catalog.create_table(&Registration { name: name("nowhere", "x"), ..wanted }).await),
        "{version}"
    );
}

async fn leaves_alone_what_others_made(catalog: &dyn Catalog, version: HiveVersion) {
    let folder = TempDir::new().unwrap();
    let ours = registration(&folder, "house");
    let theirs = Registration { mark: Mark { root: "s3://another".into(), table: "x".into() }, ..ours.clone() };
    catalog.create_table(&theirs).await.unwrap();
    assert!(is_refused(catalog.create_table(&ours).await), "{version}");
    assert!(is_refused(catalog.alter_table(&ours).await), "{version}");
    assert!(is_refused(catalog.drop_table(&ours.name, ROOT).await), "{version}");
    assert_eq!(catalog.tables("demo").await.unwrap(), [as_registered(&theirs)], "{version}");
    let file = folder.path().join("house/kept");
    std::fs::create_dir_all(folder.path().join("house")).unwrap();
    std::fs::write(&file, "x").unwrap();
    catalog.drop_table(&theirs.name, "s3://another").await.unwrap();
    assert!(file.exists(), "{version}: files are never touched");
}

#[tokio::test]
async fn what_was_met_at_each_address_is_told() {
    let catalog = HiveCatalog::new(&options(&["thrift://127.0.0.1:1".into(), "thrift://127.0.0.1:2".into()])).unwrap();
    let Err(CatalogError::Unreachable { source, .. }) = catalog.databases().await else { panic!("nobody is there") };
    let told = source.to_string();
    assert!(told.contains("127.0.0.1:1: ") && told.contains("; 127.0.0.1:2: "), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_may_come_and_go() {
    let postgres = Postgres::start().unwrap();
    let mut hive = HiveMetastore::start(HiveVersion::Four, &postgres).unwrap();
    let catalog = HiveCatalog::new(&options(&[hive.uri()])).unwrap();
    catalog.create_database("demo", ROOT).await.unwrap();
    hive.server().kill_hard().unwrap();
    let gone = catalog.databases().await.unwrap_err();
    assert!(matches!(gone, CatalogError::Unreachable { .. }) && gone.to_string().contains("127.0.0.1"), "{gone}");
    hive.server().start_again().unwrap();
    assert_eq!(catalog.databases().await.unwrap().len(), 2);
    // One that begins anew between two calls is not noticed.
    hive.server().restart().unwrap();
    assert_eq!(catalog.databases().await.unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_with_tls_is_known_by_its_certificate() {
    let (postgres, certificates) = (Postgres::start().unwrap(), Certificates::make().unwrap());
    let folder = TempDir::new().unwrap();
    let store = KeyStore { file: folder.path().join("server.p12"), password: "changeit".into() };
    let made = Command::new("openssl")
        .args(["pkcs12", "-export", "-passout", "pass:changeit", "-out"])
        .arg(&store.file)
        .arg("-in")
        .arg(certificates.file("server.pem"))
        .arg("-inkey")
        .arg(certificates.file("server.key"))
        .status();
    assert!(made.unwrap().success());
    let hive = HiveMetastore::start_with(HiveVersion::Four, &postgres, Some(&store)).unwrap();
    let uris = [hive.uri().replace("127.0.0.1", "localhost")];
    let trusting = CatalogOptions { ca_file: Some(certificates.file("ca.pem")), ..options(&uris) };
    assert_eq!(HiveCatalog::new(&trusting).unwrap().databases().await.unwrap().len(), 1);
    let others = Certificates::make().unwrap();
    let distrusting = CatalogOptions { ca_file: Some(others.file("ca.pem")), ..options(&uris) };
    let plain = CatalogOptions { request_timeout_ms: 5_000, ..options(&uris) };
    for wrong in [distrusting, plain] {
        let refused = HiveCatalog::new(&wrong).unwrap().databases().await;
        assert!(matches!(refused, Err(CatalogError::Unreachable { .. })), "{wrong:?}: {refused:?}");
    }
    let unreadable = CatalogOptions { ca_file: Some(folder.path().join("none.pem")), ..options(&uris) };
    assert!(HiveCatalog::new(&unreadable).is_err_and(|told| told.contains("catalog.ca_file")));
}
