//! The statements about the lease, and the beginning of each transaction that writes under it, once for both databases.
//!
//! Such a transaction locks the lease against being taken, not against being renewed, until it ends: who takes the lease afterwards sees all
//! that was written under it before, and nothing is written under it later.

use std::sync::Arc;

use tokio::sync::Mutex;

/// A connection that only the lease uses, so that a renewal waits for nothing else. It is opened when it is needed, and dropped when a
/// call fails or is given up.
pub(super) type LeaseConnection<C> = Arc<Mutex<Option<C>>>;

/// `$begin` begins a transaction that writes; `$share` and `$alone` lock a selected row against being taken and against all else.
macro_rules! lease_statements {
    ($adapter:ident, $database:ty, $begin:literal, $share:literal, $alone:literal) => {
        impl $adapter {
            /// Begins a transaction that writes. It is refused when the metastore is fenced and another owner has taken the lease.
            async fn begin(&self) -> Result<sqlx::Transaction<'static, $database>, sql::Failure> {
                let mut transaction = self.pool.begin_with($begin).await?;
                if let Some(fence) = &self.fence {
                    let text = concat!("SELECT epoch FROM writer_lease WHERE name = $1 AND owner = $2 AND epoch = $3", $share);
                    let held = sqlx::query(text)
                        .bind(fence.name().to_owned())
                        .bind(fence.owner().to_owned())
                        .bind(fence.epoch())
                        .fetch_optional(&mut *transaction)
                        .await?;
                    if held.is_none() {
                        fence.set_lost();
                        return Err(LeaseLost.into());
                    }
                }
                Ok(transaction)
            }

            async fn own_or_new(
                &self,
                own: Option<<$database as sqlx::Database>::Connection>,
            ) -> Result<<$database as sqlx::Database>::Connection, sqlx::Error> {
                match own {
                    Some(connection) => Ok(connection),
                    None => self.options.connect().await,
                }
            }

            async fn acquire(
                &self,
                name: &str,
                owner: &str,
                address: &str,
                for_us: i64,
            ) -> Result<Option<$crate::metastore::Lease>, sqlx::Error> {
                let (owner, address) = (storable(owner).into_owned(), storable(address).into_owned());
                let mut own = self.lease_connection.lock().await;
                let mut connection = self.own_or_new(own.take()).await?;
                let mut transaction = connection.begin_with($begin).await?;
                let made = "INSERT INTO writer_lease (name, owner, epoch, expires_us) VALUES ($1, '', 0, 0) ON CONFLICT (name) DO NOTHING";
                sqlx::query(made).bind(name.to_owned()).execute(&mut *transaction).await?;
                let free = Self::statement(concat!(
                    "SELECT epoch FROM writer_lease WHERE name = $1 AND (owner = $2 OR expires_us <= {now})", $alone
                ));
                let free = sqlx::query(free).bind(name.to_owned()).bind(owner.clone());
                let taken = if free.fetch_optional(&mut *transaction).await?.is_some() {
                    let take = Self::statement(
                        "UPDATE writer_lease SET owner = $2, address = $3, epoch = epoch + 1, acquired_us = {now}, \
                         expires_us = {now} + $4, wanted_us = 0 WHERE name = $1 \
                         RETURNING name, owner, address, epoch, acquired_us, expires_us, wanted_us",
                    );
                    let take = sqlx::query(take).bind(name.to_owned()).bind(owner).bind(address).bind(for_us);
                    take.fetch_optional(&mut *transaction).await?
                } else {
                    let want = Self::statement("UPDATE writer_lease SET wanted_us = {now} WHERE name = $1");
                    sqlx::query(want).bind(name.to_owned()).execute(&mut *transaction).await?;
                    None
                };
                transaction.commit().await?;
                *own = Some(connection);
                taken.map(|row| rows::lease(&row)).transpose()
            }

            async fn renew(&self, lease: &$crate::metastore::Lease, for_us: i64) -> Result<Option<$crate::metastore::Lease>, sqlx::Error> {
                // A lease that expired and was not taken by another owner still belongs to this one: taking it would have changed the epoch.
                let statement = Self::statement(
                    "UPDATE writer_lease SET expires_us = {now} + $4 WHERE name = $1 AND owner = $2 AND epoch = $3 \
                     RETURNING name, owner, address, epoch, acquired_us, expires_us, wanted_us",
                );
                let mut own = self.lease_connection.lock().await;
                let mut connection = self.own_or_new(own.take()).await?;
                let row = sqlx::query(statement)
                    .bind(lease.name.clone())
                    .bind(lease.owner.clone())
                    .bind(lease.epoch)
                    .bind(for_us)
                    .fetch_optional(&mut connection)
                    .await?;
                *own = Some(connection);
                row.map(|row| rows::lease(&row)).transpose()
            }

            async fn give_back(&self, lease: &$crate::metastore::Lease) -> Result<(), sqlx::Error> {
                // The row stays, without an owner, so that the epoch goes on growing.
                let text = "UPDATE writer_lease SET owner = '', address = '', expires_us = 0 WHERE name = $1 AND owner = $2 AND epoch = $3";
                let mut own = self.lease_connection.lock().await;
                let mut connection = self.own_or_new(own.take()).await?;
                sqlx::query(text)
                    .bind(lease.name.clone())
                    .bind(lease.owner.clone())
                    .bind(lease.epoch)
                    .execute(&mut connection)
                    .await?;
                *own = Some(connection);
                Ok(())
            }

            async fn held(&self, name: &str) -> Result<Option<$crate::metastore::Lease>, sqlx::Error> {
                let statement = Self::statement(
                    "SELECT name, owner, address, epoch, acquired_us, expires_us, wanted_us FROM writer_lease \
                     WHERE name = $1 AND owner <> '' AND expires_us > {now}",
                );
                let row = sqlx::query(statement).bind(name.to_owned()).fetch_optional(&self.pool).await?;
                row.map(|row| rows::lease(&row)).transpose()
            }
        }
    };
}
pub(super) use lease_statements;
