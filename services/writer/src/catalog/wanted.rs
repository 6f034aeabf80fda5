//! The tables of the lake as the catalog should have them.

use std::collections::{BTreeMap, HashMap};

use lake_shared::identity::TableKey;
use object_store::path::Path;
use url::Url;

use super::columns::Columns;
use super::options::CatalogOptions;
use super::{CatalogName, Mark, Registration, naming};
use crate::metastore::{Metastore, MetastoreError, TableRecord};

/// Where the lake is: as it is marked, and as readers of the catalog open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Roots {
    /// The mark.
    pub(super) mark: String,
    /// For readers.
    pub(super) readers: String,
}

impl Roots {
    /// Of a lake whose root has this address.
    pub(super) fn new(options: &CatalogOptions, address: &str) -> Self {
        let mark = address.trim_end_matches('/').to_owned();
        let readers = options.root.clone().unwrap_or_else(|| for_hadoop(&mark));
        Self { readers: readers.trim_end_matches('/').to_owned(), mark }
    }
}

/// An address as Spark and Hive write it: `s3a` for S3, and no escaped characters, as Hadoop takes `%20` for three characters.
fn for_hadoop(address: &str) -> String {
    let Ok(url) = Url::parse(address) else { return address.to_owned() };
    let scheme = if url.scheme() == "s3" { "s3a" } else { url.scheme() };
    let path = Path::from_url_path(url.path()).map_or_else(|_| url.path().to_owned(), |path| format!("/{path}"));
    format!("{scheme}://{}{path}", url.host_str().unwrap_or_default())
}

/// Reads what the lake has.
pub(super) struct LakeTables {
    options: CatalogOptions,
    roots: Roots,
    /// Columns by table, with the version of the table at which they were read: schemas are large.
    columns: HashMap<TableKey, (Option<i64>, Option<Columns>)>,
}

impl LakeTables {
    pub(super) fn new(options: CatalogOptions, roots: Roots) -> Self {
        Self { options, roots, columns: HashMap::new() }
    }

    /// The tables that the catalog should have, with the tables of the lake that they are: those that have had a commit, as a folder without a log
    /// is no table for readers.
    pub(super) async fn wanted(
        &mut self,
        metastore: &dyn Metastore,
    ) -> Result<BTreeMap<CatalogName, (TableKey, Registration)>, MetastoreError> {
        let tables = metastore.tables(None).await?;
        if self.options.columns {
            for table in &tables {
                let is_known = self.columns.get(&table.key).is_some_and(|(version, _)| *version == table.state.version);
                if !is_known {
                    let schema = metastore.table(&table.key).await?.and_then(|record| record.state.schema);
                    let columns = schema.as_deref().map(Columns::of_schema);
                    self.columns.insert(table.key.clone(), (table.state.version, columns));
                }
            }
        }
        let has_commit = |table: &&TableRecord| table.state.version.is_some();
        Ok(tables.iter().filter(has_commit).map(|table| self.registration(table)).collect())
    }

    fn registration(&self, table: &TableRecord) -> (CatalogName, (TableKey, Registration)) {
        let name = naming::catalog_name(&self.options, &table.key, &table.name);
        let registration = Registration {
            name: name.clone(),
            mark: Mark { root: self.roots.mark.clone(), table: table.key.to_string() },
            location: format!("{}/{}", self.roots.readers, table.path),
            columns: self.columns.get(&table.key).and_then(|(_, columns)| columns.clone()),
        };
        (name, (table.key.clone(), registration))
    }

    /// The databases of what was dropped from the lake: tables of theirs may still be in the catalog.
    pub(super) async fn databases_of_dropped(&self, metastore: &dyn Metastore) -> Result<Vec<String>, MetastoreError> {
        let dropped = metastore.dropped(None).await?;
        let domains = dropped.iter().map(|record| record.target.space.domain.as_str());
        Ok(domains.map(|domain| naming::project_database(&self.options, domain)).collect())
    }

    /// The mark of this lake.
    pub(super) fn mark(&self) -> &str {
        &self.roots.mark
    }

    /// The one database, used or not.
    pub(super) fn one_database(&self) -> String {
        self.options.database.to_lowercase()
    }

    /// The name of a table in the catalog.
    pub(super) fn name_of(options: &CatalogOptions, table: &TableRecord) -> CatalogName {
        naming::catalog_name(options, &table.key, &table.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_of_a_catalog_write_addresses_as_hadoop_does() {
        let readers = |address: &str| Roots::new(&CatalogOptions::default(), address).readers;
        assert_eq!(readers("s3://bucket/some%20where/"), "s3a://bucket/some where");
        assert_eq!(readers("s3://bucket/"), "s3a://bucket");
        assert_eq!(readers("file:///srv/l%C3%A9/"), "file:///srv/lé");
        let options = CatalogOptions { root: Some("oss://other/".into()), ..CatalogOptions::default() };
        let roots = Roots::new(&options, "s3://bucket/lake/");
        assert_eq!((roots.mark.as_str(), roots.readers.as_str()), ("s3://bucket/lake", "oss://other"));
    }
}
