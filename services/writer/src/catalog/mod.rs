//! Where readers find the tables by name: a port, and the adapter [`hive`] for the Hive Metastore.
//!
//! The lake's own metastore says which tables there are; a catalog only follows it ([`registrar`]), beside the commits, so that an outage of the
//! catalog holds up nothing. What the catalog needs is found by comparing ([`differences`]), so nothing about it is kept: a table that the
//! lake has made in the catalog bears a mark with the lake's root, and what has no such mark is left alone.
//!
//! A table is registered without its columns: readers take them from the Delta log, and a change of the columns needs no call. For JDBC tools
//! that only ask the catalog they can be registered too ([`columns`]).

use std::fmt;

use async_trait::async_trait;

pub mod columns;
pub mod differences;
pub mod hive;
pub mod naming;
pub mod options;
pub mod registrar;
pub mod status;
mod wanted;

pub use self::options::{CatalogKind, CatalogOptions, DatabaseNaming};

/// Database and name of a table in a catalog.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CatalogName {
    /// The database, which some catalogs call a schema.
    pub database: String,
    /// The table.
    pub table: String,
}

impl fmt::Display for CatalogName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.database, self.table)
    }
}

/// By what the lake knows what it has made in a catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The root of the lake, as its writer is configured with it: several lakes can share a catalog.
    pub root: String,
    /// The table of the lake: `demo/case/person`.
    pub table: String,
}

/// A table as the catalog should have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its name.
    pub name: CatalogName,
    /// What it is marked with.
    pub mark: Mark,
    /// Where it is, as readers of the catalog open it.
    pub location: String,
    /// Its columns, where they are to be registered.
    pub columns: Option<columns::Columns>,
}

/// A table as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldTable {
    /// Its name.
    pub name: CatalogName,
    /// The mark of a lake; `None`: others have made it.
    pub mark: Option<Mark>,
    /// Where readers look for it.
    pub location: String,
    /// What its registered columns are known by; empty: it has none.
    pub columns: String,
}

/// A database as the catalog has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldDatabase {
    /// Its name.
    pub name: String,
    /// Root of the lake that has made it; `None`: others have.
    pub root: Option<String>,
}

/// Why a call of a catalog failed.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// No server answers as it should. Nothing of the call may have been done, or all of it.
    #[error("the catalog does not answer at {addresses}; is it running, and is `catalog.uris` right?")]
    Unreachable {
        /// The addresses that were tried.
        addresses: String,
        /// What the last one said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The server refuses what was asked for. Other calls may go well.
    #[error("the catalog cannot {action}: {reason}")]
    Refused {
        /// What was asked for.
        action: String,
        /// What the server says.
        reason: String,
    },
}

/// A catalog. Every call may be repeated; names are compared without regard to case, as catalogs keep them in lower case.
///
/// # Errors
///
/// [`CatalogError`], with nothing changed, or, after a lost connection, perhaps all that the call stands for.
#[async_trait]
pub trait Catalog: Send + Sync {
    /// The addresses that are tried in turn, for people.
    fn addresses(&self) -> Vec<String>;

    /// All databases.
    async fn databases(&self) -> Result<Vec<HeldDatabase>, CatalogError>;

    /// All tables and views of a database; none where there is no such database.
    async fn tables(&self, database: &str) -> Result<Vec<HeldTable>, CatalogError>;

    /// Makes a database for a lake with this root; nothing happens where there is one.
    async fn create_database(&self, database: &str, root: &str) -> Result<(), CatalogError>;

    /// Makes a table. One that is there with the same mark is altered.
    async fn create_table(&self, table: &Registration) -> Result<(), CatalogError>;

    /// Gives a table of the lake its mark, location and columns, and leaves everything else of it as it is.
    async fn alter_table(&self, table: &Registration) -> Result<(), CatalogError>;

    /// Takes a table out of the catalog if it bears this root, and never touches its files.
    async fn drop_table(&self, name: &CatalogName, root: &str) -> Result<(), CatalogError>;
}
