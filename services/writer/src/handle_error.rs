//! Why a request to a writer was not done.

use std::fmt;

use lake_shared::identity::{Space, TableKey};

use crate::catalog::registrar::RegistrarError;
use crate::metastore::{Lease, MetastoreError};
use crate::table_store::StoreError;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// Another writer holds the lease, or none. Ask the holder.
    #[error("this writer does not hold the lease; {}", Advice(.holder.as_ref()))]
    NotLeaseHolder {
        /// The lease as the metastore has it.
        holder: Option<Lease>,
    },
    /// The writer stops, or has lost the lease. What was asked for may have been done in part.
    #[error("this writer is stopping; ask the writer that takes the lease next")]
    Stopping,
    /// Too many requests of this sort wait already.
    #[error("too many {0} are waiting; try again when some of them have ended")]
    Busy(&'static str),
    /// The metastore has no such table.
    #[error("there is no table {0}; list the tables to see which there are")]
    UnknownTable(TableKey),
    /// The metastore has no tables of the space.
    #[error("there are no tables of {0}; list the tables to see which there are")]
    UnknownSpace(Space),
    /// The metastore could not be asked.
    #[error(transparent)]
    Metastore(MetastoreError),
    /// The quarantine did not do it.
    #[error(transparent)]
    Quarantine(Box<dyn std::error::Error + Send + Sync>),
    /// The catalog could not be used.
    #[error(transparent)]
    Catalog(RegistrarError),
    /// The store did not do it: the table cannot be used, or passing trouble.
    #[error(transparent)]
    Store(StoreError),
}

/// Which writer to ask instead.
struct Advice<'a>(Option<&'a Lease>);

impl fmt::Display for Advice<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(Lease { owner, address, .. }) if address.is_empty() => {
                write!(formatter, "{owner} holds it, at an address that is not configured (key `lease.address`)")
            }
            Some(Lease { owner, address, .. }) => write!(formatter, "ask {address}, where {owner} holds it"),
            None => formatter.write_str("no writer holds it now, ask again in a moment"),
        }
    }
}
