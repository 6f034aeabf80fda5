//! The registrar on a catalog in memory that can be made to fail.
#![allow(clippy::unwrap_used, reason = "tests")]

use async_trait::async_trait;
use lake_shared::escaped_names;
use lake_shared::identity::{Kind, Space};

use super::super::{HeldDatabase, Mark};
use super::*;
use crate::metastore::sqlite::SqliteMetastore;
use crate::metastore::steering::OperationTarget;
use crate::metastore::{NewTable, RecordedState};

const ADDRESS: &str = "s3://bucket/lake/";
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Fake {
    databases: BTreeMap<String, String>,
    tables: BTreeMap<CatalogName, HeldTable>,
    is_down: bool,
    refuses: Option<CatalogName>,
    calls: u32,
}

#[derive(Default)]
struct FakeCatalog(Mutex<Fake>);

impl FakeCatalog {
    fn set<T>(&self, change: impl FnOnce(&mut Fake) -> T) -> T {
        change(&mut self.0.lock().unwrap())
    }

    fn ask<T>(&self, answer: impl FnOnce(&mut Fake) -> T) -> Result<T, CatalogError> {
        self.set(|fake| {
            fake.calls += 1;
            if fake.is_down {
                return Err(CatalogError::Unreachable { addresses: "here".into(), source: "refused".into() });
            }
            Ok(answer(fake))
        })
    }

    fn change(&self, name: &CatalogName, change: impl FnOnce(&mut Fake)) -> Result<(), CatalogError> {
        self.ask(|fake| {
            if fake.refuses.as_ref() == Some(name) {
                return Err(CatalogError::Refused { action: format!("change {name}"), reason: "no".into() });
            }
            change(fake);
            Ok(())
        })?
    }
}

#[async_trait]
impl Catalog for FakeCatalog {
    fn addresses(&self) -> Vec<String> {
        vec!["here".into()]
    }

    async fn databases(&self) -> Result<Vec<HeldDatabase>, CatalogError> {
        let held = |(name, root): (&String, &String)| HeldDatabase { name: name.clone(), root: Some(root.clone()) };
        self.ask(|fake| fake.databases.iter().map(held).collect())
    }

    async fn tables(&self, database: &str) -> Result<Vec<HeldTable>, CatalogError> {
        self.ask(|fake| fake.tables.values().filter(|table| table.name.database == database).cloned().collect())
    }

    async fn create_database(&self, database: &str, root: &str) -> Result<(), CatalogError> {
        self.ask(|fake| drop(fake.databases.insert(database.into(), root.into())))
    }

    async fn create_table(&self, table: &Registration) -> Result<(), CatalogError> {
        if self.set(|fake| fake.tables.contains_key(&table.name)) {
            let (action, reason) = (format!("create {}", table.name), "it already exists".into());
            return Err(CatalogError::Refused { action, reason });
        }
        self.change(&table.name, |fake| {
            assert!(fake.databases.contains_key(&table.name.database), "the database comes first");
            fake.tables.insert(table.name.clone(), differences::as_registered(table));
        })
    }

    async fn alter_table(&self, table: &Registration) -> Result<(), CatalogError> {
        self.change(&table.name, |fake| {
            let there = fake.tables.insert(table.name.clone(), differences::as_registered(table));
            assert!(there.is_some());
        })
    }

    async fn drop_table(&self, name: &CatalogName, root: &str) -> Result<(), CatalogError> {
        self.change(name, |fake| {
            let there = fake.tables.remove(name).and_then(|table| table.mark);
            assert!(there.is_none_or(|mark| mark.root == root));
        })
    }
}

struct Lake {
    metastore: Arc<dyn Metastore>,
    catalog: Arc<FakeCatalog>,
    changes: TableChanges,
}

impl Lake {
    async fn new() -> Self {
        let metastore = SqliteMetastore::memory();
        metastore.migrate().await.unwrap();
        Self { metastore: Arc::new(metastore), catalog: Arc::default(), changes: TableChanges::default() }
    }

    fn registrar(&self, options: CatalogOptions) -> Arc<Registrar> {
        let catalog: Arc<dyn Catalog> = Arc::<FakeCatalog>::clone(&self.catalog);
        let (metastore, changes) = (Arc::clone(&self.metastore), self.changes.clone());
        Arc::new(Registrar::new(Some(catalog), metastore, options, ADDRESS, changes))
    }

    /// A table that has had a commit with this schema.
    async fn table(&self, domain: &str, document_type: &str, schema: &str) {
        let space = Space { domain: domain.into(), kind: Kind::Case };
        let key = TableKey { space, document_type: document_type.into() };
        let path = escaped_names::table_path(&key);
        let new = NewTable { location: format!("{ADDRESS}{path}"), path, suffix: String::new(), key: key.clone() };
        let record = self.metastore.register_tables(&[new]).await.unwrap().remove(0);
        let version = Some(record.state.version.map_or(0, |version| version + 1));
        let state = RecordedState { version, schema: Some(schema.into()), ..RecordedState::default() };
        assert!(self.metastore.record_commits(&[(key, state)]).await.unwrap());
        self.changes.tell();
    }

    fn names(&self) -> Vec<String> {
        self.catalog.set(|fake| fake.tables.keys().map(ToString::to_string).collect())
    }
}

fn name(database: &str, table: &str) -> CatalogName {
    CatalogName { database: database.into(), table: table.into() }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn the_catalog_becomes_what_the_lake_has() {
    let lake = Lake::new().await;
    lake.table("demo", "person", "{}").await;
    lake.table("other", "house", "{}").await;
    let registrar = lake.registrar(CatalogOptions::default());
    let synced = registrar.round(true).await.unwrap();
    assert_eq!((synced.created, synced.failed), (2, 0));
    assert_eq!(lake.names(), ["demo.case_sql_person", "other.case_sql_house"]);
    let person = lake.catalog.set(|fake| fake.tables[&name("demo", "case_sql_person")].clone());
    assert_eq!(person.location, "s3a://bucket/lake/demo/case-sql/person");
    assert_eq!(person.mark, Some(Mark { root: "s3://bucket/lake".into(), table: "demo/case-sql/person".into() }));
    let status = registrar.status();
    assert!(status.registered == 2 && status.entries.is_empty() && status.last_success_us.is_some(), "{status:?}");

    // Nothing new: not one call but those that read.
    assert_eq!(registrar.round(false).await.unwrap(), Synced::default());
    let space = Space { domain: "other".into(), kind: Kind::Case };
    lake.metastore.drop_tables(&OperationTarget::space(space), "ann").await.unwrap();
    assert_eq!(registrar.round(false).await.unwrap().dropped, 1);
    assert_eq!(lake.names(), ["demo.case_sql_person"]);
}

#[tokio::test]
async fn a_dropped_project_is_found_by_a_writer_that_begins_anew() {
    let lake = Lake::new().await;
    lake.table("demo", "person", "{}").await;
    lake.registrar(CatalogOptions::default()).round(true).await.unwrap();
    // In a database that others had made.
    lake.catalog.set(|fake| fake.databases.insert("demo".into(), "others".into()));
    let space = Space { domain: "demo".into(), kind: Kind::Case };
    lake.metastore.drop_tables(&OperationTarget::space(space), "ann").await.unwrap();
    assert_eq!(lake.registrar(CatalogOptions::default()).round(true).await.unwrap().dropped, 1);
    assert_eq!(lake.names(), Vec::<String>::new());
}

#[tokio::test]
async fn columns_follow_the_table_where_they_are_wanted() {
    let lake = Lake::new().await;
    lake.table("demo", "person", "{}").await;
    let registrar = lake.registrar(CatalogOptions { columns: true, ..CatalogOptions::default() });
    registrar.round(true).await.unwrap();
    let columns = || lake.catalog.set(|fake| fake.tables[&name("demo", "case_sql_person")].columns.clone());
    let before = columns();
    lake.table("demo", "person", "{\"fields\":[]}").await;
    assert_eq!(registrar.round(false).await.unwrap().altered, 1);
    assert!(!before.is_empty() && columns() != before);
    assert_eq!(lake.registrar(CatalogOptions::default()).round(true).await.unwrap().altered, 1);
    assert_eq!(columns(), "");
}

#[tokio::test]
async fn a_refusal_concerns_its_table_alone_and_is_kept() {
    let lake = Lake::new().await;
    lake.table("demo", "person", "{}").await;
    lake.table("demo", "house", "{}").await;
    lake.catalog.set(|fake| fake.refuses = Some(name("demo", "case_sql_house")));
    let registrar = lake.registrar(CatalogOptions::default());
    let synced = registrar.round(true).await.unwrap();
    assert_eq!((synced.created, synced.failed), (1, 1));
    let status = registrar.status();
    assert_eq!((status.registered, status.entries.len()), (1, 1));
    assert!(status.entries[0].error.contains("no") && status.last_success_us.is_none(), "{status:?}");
    let record = lake.metastore.table_named("demo_case_sql_house").await.unwrap().unwrap();
    let entry = registrar.entry(&record).unwrap();
    assert!(entry.difference == Some(Difference::Create) && !entry.error.is_empty(), "{entry:?}");
    lake.catalog.set(|fake| fake.refuses = None);
    assert_eq!(registrar.round(false).await.unwrap().failed, 0);
    assert_eq!(registrar.entry(&record).unwrap().difference, None);
}

#[tokio::test]
async fn an_outage_is_waited_out_and_changes_are_followed() {
    let lake = Lake::new().await;
    lake.table("demo", "person", "{}").await;
    lake.catalog.set(|fake| fake.is_down = true);
    let registrar = lake.registrar(CatalogOptions::default());
    let running = tokio::spawn(Arc::clone(&registrar).run(CancellationToken::new()));
    until("the outage is told", || registrar.status().trouble.is_some()).await;
    until("it is tried again", || lake.catalog.set(|fake| fake.calls > 1)).await;
    let status = registrar.status();
    assert_eq!((status.registered, status.pending().count()), (0, 1), "{status:?}");
    lake.catalog.set(|fake| fake.is_down = false);
    until("it catches up", || lake.names().len() == 1).await;
    until("the trouble is over", || registrar.status().trouble.is_none()).await;
    lake.table("demo", "house", "{}").await;
    until("a new table follows", || lake.names().len() == 2).await;
    // What others do to the catalog is found by the next full comparison, here that of a writer that takes over.
    lake.catalog.set(|fake| fake.tables.clear());
    let next = tokio::spawn(lake.registrar(CatalogOptions::default()).run(CancellationToken::new()));
    until("the drift is repaired", || lake.names().len() == 2).await;
    next.abort();
    running.abort();
}

#[tokio::test]
async fn a_name_that_others_took_since_it_was_read_is_told_as_taken() {
    let lake = Lake::new().await;
    lake.table("demo", "person", "{}").await;
    let registrar = lake.registrar(CatalogOptions::default());
    let running = tokio::spawn(Arc::clone(&registrar).run(CancellationToken::new()));
    until("the first is there", || lake.names().len() == 1).await;
    lake.catalog.set(|fake| {
        let house = name("demo", "case_sql_house");
        let theirs =
            HeldTable { name: house.clone(), mark: None, ..fake.tables[&name("demo", "case_sql_person")].clone() };
        fake.tables.insert(house, theirs);
    });
    lake.table("demo", "house", "{}").await;
    let is_taken = || registrar.status().entries.iter().any(|entry| entry.difference == Some(Difference::Taken));
    until("it is told as taken", is_taken).await;
    let theirs = lake.catalog.set(|fake| fake.tables[&name("demo", "case_sql_house")].clone());
    assert!(theirs.mark.is_none() && registrar.status().pending().count() == 0, "{theirs:?}");
    running.abort();
}

#[tokio::test]
async fn a_plan_is_kept_to() {
    let lake = Lake::new().await;
    lake.table("demo", "person", "{}").await;
    let registrar = lake.registrar(CatalogOptions::default());
    let planned = registrar.sync(&Consent::DryRun).await.unwrap();
    assert_eq!((planned.created, planned.done, lake.names().len()), (1, false, 0));
    lake.table("demo", "house", "{}").await;
    let stale = registrar.sync(&Consent::ToPlan(planned.plan)).await;
    assert!(matches!(stale, Err(RegistrarError::StalePlan(_))), "{stale:?}");
    assert_eq!(lake.names().len(), 0);
    let (differing, registered) = registrar.diff().await.unwrap();
    assert_eq!((differing.len(), registered), (2, 0));
    let planned = registrar.sync(&Consent::DryRun).await.unwrap();
    let synced = registrar.sync(&Consent::ToPlan(planned.plan)).await.unwrap();
    assert_eq!((synced.created, synced.done, lake.names().len()), (2, true, 2));
}

#[tokio::test]
async fn without_a_catalog_nothing_is_to_be_had() {
    let lake = Lake::new().await;
    let metastore = Arc::clone(&lake.metastore);
    let registrar = Registrar::new(None, metastore, CatalogOptions::default(), ADDRESS, TableChanges::default());
    assert!(matches!(registrar.diff().await, Err(RegistrarError::NoCatalog)));
    let status = registrar.status();
    assert!(status.addresses.is_empty() && status.entries.is_empty() && status.registered == 0, "{status:?}");
}
