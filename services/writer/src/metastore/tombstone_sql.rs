//! The statements about tombstones, once for both databases.

/// The order of a tombstone as columns: the rule of [`crate::order_guard::TombstoneOrder::replaces`] in SQL. By when it was observed, then by
/// its version, of which an absent one is the greatest.
macro_rules! order {
    ($of:literal) => {
        concat!($of, "observed_us, ", $of, "version_us IS NULL, COALESCE(", $of, "version_us, 0)")
    };
}

/// The order of a tombstone.
pub(super) const ORDER: &str = order!("");

/// Whether the tombstone that is given replaces the one that is there.
pub(super) const IS_NEWER: &str = concat!("(", order!("excluded."), ") > (", order!("tombstone."), ")");

/// Statements that ask the clock are made once per call from a constant text, as in [`super::sql`].
macro_rules! tombstone_statements {
    ($adapter:ident, $database:ty, $now:literal) => {
        impl $adapter {
            async fn remember(
                &self,
                space: &lake_shared::identity::Space,
                tombstones: &[$crate::metastore::StoredTombstone],
            ) -> Result<(), sql::Failure> {
                let mut transaction = self.begin().await?;
                // 8 values a row; both databases take many more, SQLite's limit is 32,766.
                for chunk in tombstones.chunks(1_000) {
                    let mut query = sqlx::QueryBuilder::<$database>::new(
                        "INSERT INTO tombstone (domain, kind, id_hash, id, version_us, observed_us, reason, at_us) ",
                    );
                    query.push_values(chunk, |mut row, tombstone| {
                        row.push_bind(storable(space.domain.as_str()).into_owned())
                            .push_bind(space.kind.name())
                            .push_bind(tombstone.id_hash.to_be_bytes().to_vec())
                            .push_bind(storable(&tombstone.id).into_owned())
                            .push_bind(tombstone.order.version_us)
                            .push_bind(tombstone.order.observed_us)
                            .push_bind(storable(&tombstone.reason).into_owned())
                            .push($now);
                    });
                    query.push(
                        " ON CONFLICT (domain, kind, id_hash) DO UPDATE SET id = excluded.id, \
                         version_us = excluded.version_us, observed_us = excluded.observed_us, reason = excluded.reason, \
                         at_us = excluded.at_us WHERE ",
                    );
                    query.push($crate::metastore::tombstone_sql::IS_NEWER).build().execute(&mut *transaction).await?;
                }
                Ok(transaction.commit().await?)
            }

            fn tombstones_where(space: &lake_shared::identity::Space) -> sqlx::QueryBuilder<$database> {
                let mut query = sqlx::QueryBuilder::<$database>::new(
                    "SELECT id_hash, id, version_us, observed_us, reason FROM tombstone WHERE domain = ",
                );
                query.push_bind(storable(space.domain.as_str()).into_owned());
                query.push(" AND kind = ").push_bind(space.kind.name());
                query
            }

            /// The first ones behind an id; `within_us`: only those that were remembered within so many microseconds.
            async fn tombstone_page(
                &self,
                space: &lake_shared::identity::Space,
                within_us: Option<i64>,
                behind: Option<$crate::key_index::IdHash>,
                limit: u32,
            ) -> Result<Vec<$crate::metastore::StoredTombstone>, sqlx::Error> {
                let mut query = Self::tombstones_where(space);
                if let Some(within_us) = within_us {
                    query.push(" AND at_us >= ").push($now).push(" - ").push_bind(within_us);
                }
                if let Some(behind) = behind {
                    query.push(" AND id_hash > ").push_bind(behind.to_be_bytes().to_vec());
                }
                query.push(" ORDER BY id_hash LIMIT ").push_bind(i64::from(limit));
                let found = query.build().fetch_all(&self.pool).await?;
                found.iter().map(rows::tombstone).collect()
            }

            async fn look_up_tombstones(
                &self,
                space: &lake_shared::identity::Space,
                ids: &[$crate::key_index::IdHash],
            ) -> Result<Vec<$crate::metastore::StoredTombstone>, sqlx::Error> {
                let mut tombstones = Vec::new();
                for chunk in ids.chunks(5_000) {
                    let mut query = Self::tombstones_where(space);
                    query.push(" AND id_hash IN (");
                    let mut list = query.separated(", ");
                    for id in chunk {
                        list.push_bind(id.to_be_bytes().to_vec());
                    }
                    let found = query.push(")").build().fetch_all(&self.pool).await?;
                    for row in &found {
                        tombstones.push(rows::tombstone(row)?);
                    }
                }
                Ok(tombstones)
            }

            /// By the primary key.
            async fn look_up_tombstones_in_spaces(
                &self,
                ids: &[(lake_shared::identity::Space, $crate::key_index::IdHash)],
            ) -> Result<Vec<$crate::metastore::RememberedTombstone>, sqlx::Error> {
                let mut tombstones = Vec::new();
                for chunk in ids.chunks(1_000) {
                    let mut query = sqlx::QueryBuilder::<$database>::new(
                        "SELECT domain, kind, id_hash, id, version_us, observed_us, reason, at_us FROM tombstone \
                         WHERE (domain, kind, id_hash) IN (",
                    );
                    query.push_values(chunk, |mut row, (space, id)| {
                        row.push_bind(storable(space.domain.as_str()).into_owned())
                            .push_bind(space.kind.name())
                            .push_bind(id.to_be_bytes().to_vec());
                    });
                    let found = query.push(")").build().fetch_all(&self.pool).await?;
                    for row in &found {
                        tombstones.push(rows::remembered(row)?);
                    }
                }
                Ok(tombstones)
            }

            /// In portions, so that no transaction is long.
            async fn forget_old(&self, space: &lake_shared::identity::Space, older_than_us: i64) -> Result<u64, sql::Failure> {
                let mut forgotten = 0;
                loop {
                    let mut transaction = self.begin().await?;
                    let statement = Self::statement(
                        "DELETE FROM tombstone WHERE domain = $1 AND kind = $2 AND id_hash IN (SELECT id_hash FROM tombstone \
                         WHERE domain = $1 AND kind = $2 AND at_us < {now} - $3 LIMIT 10000) AND at_us < {now} - $3",
                    );
                    let done = sqlx::query(statement)
                        .bind(storable(space.domain.as_str()).into_owned())
                        .bind(space.kind.name())
                        .bind(older_than_us)
                        .execute(&mut *transaction)
                        .await?;
                    transaction.commit().await?;
                    forgotten += done.rows_affected();
                    if done.rows_affected() == 0 {
                        return Ok(forgotten);
                    }
                }
            }

            /// Forgets the oldest tombstones of a space beyond a number, in portions.
            async fn keep_tombstones_within(
                &self,
                space: &lake_shared::identity::Space,
                count_max: i64,
            ) -> Result<u64, sql::Failure> {
                let count = "SELECT COUNT(*) FROM tombstone WHERE domain = $1 AND kind = $2";
                let domain = || storable(space.domain.as_str()).into_owned();
                let count = sqlx::query_scalar::<$database, i64>(count).bind(domain()).bind(space.kind.name());
                let beyond = count.fetch_one(&self.pool).await?.saturating_sub(count_max);
                let mut forgotten = 0;
                while forgotten < beyond {
                    let mut transaction = self.begin().await?;
                    let oldest = "DELETE FROM tombstone WHERE domain = $1 AND kind = $2 AND id_hash IN (SELECT id_hash FROM tombstone \
                         WHERE domain = $1 AND kind = $2 ORDER BY at_us LIMIT $3)";
                    let oldest = sqlx::query(oldest).bind(domain()).bind(space.kind.name());
                    let oldest = oldest.bind((beyond - forgotten).min(10_000)).execute(&mut *transaction).await?;
                    transaction.commit().await?;
                    if oldest.rows_affected() == 0 {
                        break;
                    }
                    forgotten += i64::try_from(oldest.rows_affected()).unwrap_or(i64::MAX);
                }
                Ok(forgotten.unsigned_abs())
            }

            /// Forgets tombstones that are still those that were seen.
            async fn forget(
                &self,
                space: &lake_shared::identity::Space,
                tombstones: &[($crate::key_index::IdHash, $crate::order_guard::TombstoneOrder)],
            ) -> Result<(), sql::Failure> {
                // 5 values a row.
                for chunk in tombstones.chunks(5_000) {
                    let mut transaction = self.begin().await?;
                    let mut query = sqlx::QueryBuilder::<$database>::new("DELETE FROM tombstone WHERE domain = ");
                    query.push_bind(storable(space.domain.as_str()).into_owned());
                    query.push(" AND kind = ").push_bind(space.kind.name());
                    // Once more by id alone: so both databases find the rows by the index.
                    query.push(" AND id_hash IN (");
                    let mut list = query.separated(", ");
                    for (id, _) in chunk {
                        list.push_bind(id.to_be_bytes().to_vec());
                    }
                    query.push(") AND (id_hash, ").push($crate::metastore::tombstone_sql::ORDER).push(") IN (");
                    query.push_values(chunk, |mut row, (id, order)| {
                        row.push_bind(id.to_be_bytes().to_vec())
                            .push_bind(order.observed_us)
                            .push_bind(order.version_us.is_none())
                            .push_bind(order.version_us.unwrap_or_default());
                    });
                    query.push(")").build().execute(&mut *transaction).await?;
                    transaction.commit().await?;
                }
                Ok(())
            }
        }
    };
}
pub(super) use tombstone_statements;
