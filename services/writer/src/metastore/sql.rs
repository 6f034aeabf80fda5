//! The statements, once for both databases: their dialects differ only in how they tell the time.

/// Statements that ask the clock are made once per call from a constant text; `{now}` is the only thing replaced in them.
macro_rules! metastore_adapter {
    ($adapter:ident, $database:ty, $now:literal) => {
        impl $adapter {
            fn statement(text: &'static str) -> sqlx::AssertSqlSafe<String> {
                sqlx::AssertSqlSafe(text.replace("{now}", $now))
            }

            /// Conditions of a filter of the quarantine.
            fn filtered(
                select: &'static str,
                filter: &$crate::metastore::QuarantineFilter,
            ) -> sqlx::QueryBuilder<$database> {
                let mut query = sqlx::QueryBuilder::<$database>::new(select);
                let conditions = [(" AND stage = ", &filter.stage), (" AND reason = ", &filter.reason), (" AND domain = ", &filter.domain)];
                for (condition, value) in conditions {
                    if let Some(value) = value {
                        query.push(condition).push_bind(value.clone());
                    }
                }
                query
            }

            async fn registered(
                &self,
                key: &lake_shared::identity::TableKey,
            ) -> Result<Option<$crate::metastore::TableRecord>, sqlx::Error> {
                let row = sqlx::query("SELECT * FROM lake_table WHERE domain = $1 AND kind = $2 AND type = $3")
                    .bind(storable(key.space.domain.as_str()).into_owned())
                    .bind(key.space.kind.name())
                    .bind(storable(key.document_type.as_str()).into_owned())
                    .fetch_optional(&self.pool)
                    .await?;
                row.map(|row| rows::table(&row)).transpose()
            }

            async fn register(
                &self,
                key: &lake_shared::identity::TableKey,
                path: &str,
                location: &str,
            ) -> Result<$crate::metastore::TableRecord, sqlx::Error> {
                // Tables whose paths differ only by case have the same name, so a name of its own brings a path of its own.
                let places = [
                    (names::table_name(key), String::new()),
                    (names::table_name_unique(key), names::table_path_suffix(key)),
                ];
                for (name, suffix) in places {
                    // A conflict is either this table (found below) or another one with the same name (the next name is tried).
                    let statement = Self::statement(
                        "INSERT INTO lake_table (name, domain, kind, type, path, location, created_us) \
                         VALUES ($1, $2, $3, $4, $5, $6, {now}) ON CONFLICT DO NOTHING",
                    );
                    sqlx::query(statement)
                        .bind(name)
                        .bind(storable(key.space.domain.as_str()).into_owned())
                        .bind(key.space.kind.name())
                        .bind(storable(key.document_type.as_str()).into_owned())
                        .bind(format!("{path}{suffix}"))
                        .bind(format!("{location}{suffix}"))
                        .execute(&self.pool)
                        .await?;
                    if let Some(table) = self.registered(key).await? {
                        return Ok(table);
                    }
                }
                Err(sqlx::Error::RowNotFound)
            }

            async fn record(
                &self,
                key: &lake_shared::identity::TableKey,
                state: &$crate::metastore::TableState,
            ) -> Result<(), sqlx::Error> {
                let statement = Self::statement(
                    "UPDATE lake_table SET version = $4, schema = $5, row_count = $6, files = $7, bytes = $8, \
                     newest_published_us = CASE WHEN newest_published_us IS NULL OR newest_published_us < $9 THEN $9 ELSE newest_published_us END, \
                     newest_fetched_us = CASE WHEN newest_fetched_us IS NULL OR newest_fetched_us < $10 THEN $10 ELSE newest_fetched_us END, \
                     last_commit_us = {now} WHERE domain = $1 AND kind = $2 AND type = $3",
                );
                let done = sqlx::query(statement)
                    .bind(storable(key.space.domain.as_str()).into_owned())
                    .bind(key.space.kind.name())
                    .bind(storable(key.document_type.as_str()).into_owned())
                    .bind(state.version)
                    .bind(state.schema.clone())
                    .bind(state.rows)
                    .bind(state.files)
                    .bind(state.bytes)
                    .bind(state.newest_published_us)
                    .bind(state.newest_fetched_us)
                    .execute(&self.pool)
                    .await?;
                if done.rows_affected() == 0 { Err(sqlx::Error::RowNotFound) } else { Ok(()) }
            }

            async fn remember(
                &self,
                space: &lake_shared::identity::Space,
                tombstones: &[$crate::metastore::StoredTombstone],
            ) -> Result<(), sqlx::Error> {
                let mut transaction = self.pool.begin().await?;
                // 7 values a row; both databases take many more, SQLite's limit is 32,766.
                for chunk in tombstones.chunks(1_000) {
                    let mut query = sqlx::QueryBuilder::<$database>::new(
                        "INSERT INTO tombstone (domain, kind, id_hash, id, version_us, observed_us, at_us) ",
                    );
                    query.push_values(chunk, |mut row, tombstone| {
                        row.push_bind(storable(space.domain.as_str()).into_owned())
                            .push_bind(space.kind.name())
                            .push_bind(tombstone.id_hash.to_be_bytes().to_vec())
                            .push_bind(storable(&tombstone.id).into_owned())
                            .push_bind(tombstone.order.version_us)
                            .push_bind(tombstone.order.observed_us)
                            .push($now);
                    });
                    query.push(
                        " ON CONFLICT (domain, kind, id_hash) DO UPDATE SET id = excluded.id, \
                         version_us = excluded.version_us, observed_us = excluded.observed_us, at_us = excluded.at_us",
                    );
                    query.build().execute(&mut *transaction).await?;
                }
                transaction.commit().await
            }

            async fn forget(
                &self,
                space: &lake_shared::identity::Space,
                ids: &[$crate::key_index::IdHash],
            ) -> Result<(), sqlx::Error> {
                for chunk in ids.chunks(5_000) {
                    let mut query = sqlx::QueryBuilder::<$database>::new("DELETE FROM tombstone WHERE domain = ");
                    query.push_bind(storable(space.domain.as_str()).into_owned());
                    query.push(" AND kind = ").push_bind(space.kind.name()).push(" AND id_hash IN (");
                    let mut list = query.separated(", ");
                    for id in chunk {
                        list.push_bind(id.to_be_bytes().to_vec());
                    }
                    query.push(")").build().execute(&self.pool).await?;
                }
                Ok(())
            }

            async fn put_aside(&self, stage: &str, entry: &lake_proto::queue::v1::Quarantined) -> Result<(), sqlx::Error> {
                let lineage = entry.lineage.clone().unwrap_or_default();
                let kind = lake_shared::identity::Kind::from_proto(entry.kind).map_or("", |kind| kind.name());
                sqlx::query(
                    "INSERT INTO quarantine (fingerprint, stage, reason, detail, domain, kind, type, document_id, payload, \
                     topic, partition_id, offset_id, published_us, fetched_us, at_us) \
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
                     ON CONFLICT (fingerprint) DO UPDATE SET attempts = quarantine.attempts + 1, \
                     detail = excluded.detail, at_us = excluded.at_us",
                )
                .bind($crate::metastore::quarantine_fingerprint(stage, entry))
                .bind(storable(stage).into_owned())
                .bind(storable(&entry.reason).into_owned())
                .bind(storable(&entry.detail).into_owned())
                .bind(storable(&entry.domain).into_owned())
                .bind(kind)
                .bind(storable(&entry.r#type).into_owned())
                .bind(storable(&entry.id).into_owned())
                .bind(entry.payload.to_vec())
                .bind(storable(&lineage.topic).into_owned())
                .bind(i64::from(lineage.partition))
                .bind(lineage.offset)
                .bind(lineage.published_us)
                .bind(lineage.fetched_us)
                .bind(entry.quarantined_us)
                .execute(&self.pool)
                .await
                .map(drop)
            }

            async fn acquire(&self, name: &str, owner: &str, for_us: i64) -> Result<Option<$crate::metastore::Lease>, sqlx::Error> {
                let statement = Self::statement(
                    "INSERT INTO writer_lease (name, owner, epoch, expires_us) VALUES ($1, $2, 1, {now} + $3) \
                     ON CONFLICT (name) DO UPDATE SET \
                     epoch = CASE WHEN writer_lease.owner = excluded.owner THEN writer_lease.epoch ELSE writer_lease.epoch + 1 END, \
                     owner = excluded.owner, expires_us = excluded.expires_us \
                     WHERE writer_lease.owner = excluded.owner OR writer_lease.expires_us <= {now} \
                     RETURNING name, owner, epoch, expires_us",
                );
                let row = sqlx::query(statement)
                    .bind(name.to_owned())
                    .bind(owner.to_owned())
                    .bind(for_us)
                    .fetch_optional(&self.pool)
                    .await?;
                row.map(|row| rows::lease(&row)).transpose()
            }

            async fn renew(&self, lease: &$crate::metastore::Lease, for_us: i64) -> Result<Option<$crate::metastore::Lease>, sqlx::Error> {
                // An expired lease that nobody has taken is still ours: taking it would have changed the epoch.
                let statement = Self::statement(
                    "UPDATE writer_lease SET expires_us = {now} + $4 WHERE name = $1 AND owner = $2 AND epoch = $3 \
                     RETURNING name, owner, epoch, expires_us",
                );
                let row = sqlx::query(statement)
                    .bind(lease.name.clone())
                    .bind(lease.owner.clone())
                    .bind(lease.epoch)
                    .bind(for_us)
                    .fetch_optional(&self.pool)
                    .await?;
                row.map(|row| rows::lease(&row)).transpose()
            }
        }

        #[async_trait::async_trait]
        impl $crate::metastore::Metastore for $adapter {
            async fn migrate(&self) -> Result<(), MetastoreError> {
                self.reach().await?;
                Self::MIGRATIONS.run(&self.pool).await.map_err(|source| MetastoreError {
                    action: "create or update its tables".into(),
                    source: source.into(),
                })
            }

            async fn check(&self) -> Result<(), MetastoreError> {
                let asked = sqlx::query("SELECT 1").execute(&self.pool).await;
                asked.map(drop).map_err(failed(|| "reach the database".into()))
            }

            async fn tables(&self, space: Option<&Space>) -> Result<Vec<TableRecord>, MetastoreError> {
                let mut query = sqlx::QueryBuilder::<$database>::new("SELECT * FROM lake_table");
                if let Some(space) = space {
                    query.push(" WHERE domain = ").push_bind(storable(space.domain.as_str()).into_owned());
                    query.push(" AND kind = ").push_bind(space.kind.name());
                }
                let found = query.push(" ORDER BY name").build().fetch_all(&self.pool).await;
                found
                    .and_then(|found| found.iter().map(rows::table).collect())
                    .map_err(failed(|| "list tables".into()))
            }

            async fn register_table(&self, key: &TableKey, path: &str, location: &str) -> Result<TableRecord, MetastoreError> {
                self.register(key, path, location).await.map_err(failed(|| format!("register table {key}")))
            }

            async fn record_commit(&self, key: &TableKey, state: &TableState) -> Result<(), MetastoreError> {
                self.record(key, state).await.map_err(failed(|| format!("record a commit of table {key}")))
            }

            async fn tombstones(&self, space: &Space) -> Result<Vec<StoredTombstone>, MetastoreError> {
                let found = sqlx::query("SELECT id_hash, id, version_us, observed_us FROM tombstone WHERE domain = $1 AND kind = $2")
                    .bind(storable(space.domain.as_str()).into_owned())
                    .bind(space.kind.name())
                    .fetch_all(&self.pool)
                    .await;
                found
                    .and_then(|found| found.iter().map(rows::tombstone).collect())
                    .map_err(failed(|| format!("list tombstones of {space}")))
            }

            async fn remember_tombstones(&self, space: &Space, tombstones: &[StoredTombstone]) -> Result<(), MetastoreError> {
                self.remember(space, tombstones).await.map_err(failed(|| format!("remember tombstones of {space}")))
            }

            async fn forget_tombstones(&self, space: &Space, ids: &[IdHash]) -> Result<(), MetastoreError> {
                self.forget(space, ids).await.map_err(failed(|| format!("forget tombstones of {space}")))
            }

            async fn forget_old_tombstones(&self, space: &Space, older_than_us: i64) -> Result<Vec<IdHash>, MetastoreError> {
                let statement = Self::statement(
                    "DELETE FROM tombstone WHERE domain = $1 AND kind = $2 AND at_us < {now} - $3 RETURNING id_hash",
                );
                let gone = sqlx::query(statement)
                    .bind(storable(space.domain.as_str()).into_owned())
                    .bind(space.kind.name())
                    .bind(older_than_us)
                    .fetch_all(&self.pool)
                    .await;
                gone.and_then(|gone| gone.iter().map(rows::id_hash).collect())
                    .map_err(failed(|| format!("forget old tombstones of {space}")))
            }

            async fn quarantine(&self, stage: &str, entry: &Quarantined) -> Result<(), MetastoreError> {
                self.put_aside(stage, entry).await.map_err(failed(|| "store a quarantine entry".into()))
            }

            async fn quarantined(
                &self,
                filter: &QuarantineFilter,
                limit: u32,
                offset: u32,
            ) -> Result<Vec<QuarantineRecord>, MetastoreError> {
                let mut query = Self::filtered("SELECT * FROM quarantine WHERE 1 = 1", filter);
                query.push(" ORDER BY at_us DESC, fingerprint LIMIT ").push_bind(i64::from(limit));
                query.push(" OFFSET ").push_bind(i64::from(offset));
                let found = query.build().fetch_all(&self.pool).await;
                found
                    .and_then(|found| found.iter().map(rows::quarantined).collect())
                    .map_err(failed(|| "list the quarantine".into()))
            }

            async fn quarantined_count(&self, filter: &QuarantineFilter) -> Result<u64, MetastoreError> {
                let mut query = Self::filtered("SELECT COUNT(*) FROM quarantine WHERE 1 = 1", filter);
                let count = query.build_query_scalar::<i64>().fetch_one(&self.pool).await;
                count.map(i64::unsigned_abs).map_err(failed(|| "count the quarantine".into()))
            }

            async fn release(&self, fingerprint: &str) -> Result<bool, MetastoreError> {
                let gone = sqlx::query("DELETE FROM quarantine WHERE fingerprint = $1")
                    .bind(fingerprint.to_owned())
                    .execute(&self.pool)
                    .await;
                gone.map(|gone| gone.rows_affected() > 0).map_err(failed(|| "remove a quarantine entry".into()))
            }

            async fn acquire_lease(&self, name: &str, owner: &str, for_us: i64) -> Result<Option<Lease>, MetastoreError> {
                self.acquire(name, owner, for_us).await.map_err(failed(|| format!("acquire lease {name}")))
            }

            async fn renew_lease(&self, lease: &Lease, for_us: i64) -> Result<Option<Lease>, MetastoreError> {
                self.renew(lease, for_us).await.map_err(failed(|| format!("renew lease {}", lease.name)))
            }

            async fn release_lease(&self, lease: &Lease) -> Result<(), MetastoreError> {
                // The row stays, without an owner, so that the epoch goes on growing.
                let released = sqlx::query(
                    "UPDATE writer_lease SET owner = '', expires_us = 0 WHERE name = $1 AND owner = $2 AND epoch = $3",
                )
                .bind(lease.name.clone())
                .bind(lease.owner.clone())
                .bind(lease.epoch)
                .execute(&self.pool)
                .await;
                released.map(drop).map_err(failed(|| format!("release lease {}", lease.name)))
            }
        }
    };
}
pub(super) use metastore_adapter;

/// Names what was tried when the database failed.
pub(super) fn failed(action: impl FnOnce() -> String) -> impl FnOnce(sqlx::Error) -> super::MetastoreError {
    move |source| super::MetastoreError { action: action(), source: source.into() }
}
