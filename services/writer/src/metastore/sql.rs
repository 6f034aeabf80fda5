//! The statements about tables and the quarantine, and the port, once for both databases: there they differ only in how they tell the time.
//! Those about tombstones are in [`super::tombstone_sql`], those about the lease in [`super::lease_sql`].

/// Statements that ask the clock are made once per call from a constant text; `{now}` is the only thing replaced in them.
macro_rules! metastore_adapter {
    ($adapter:ident, $database:ty, $now:literal) => {
        impl $adapter {
            fn statement(text: &'static str) -> sqlx::AssertSqlSafe<String> {
                sqlx::AssertSqlSafe(text.replace("{now}", $now))
            }

            /// Inserts tables under names of one kind, those left out whose name or key is taken.
            async fn insert_tables(
                transaction: &mut sqlx::Transaction<'_, $database>,
                tables: &[$crate::metastore::NewTable],
                place_of: fn(&$crate::metastore::NewTable) -> (String, String),
            ) -> Result<(), sqlx::Error> {
                let mut named: Vec<_> = tables.iter().map(|table| (place_of(table), table)).collect();
                // In one order in all writers, so that no two of them wait for each other. Of two tables with one name the first one gets it.
                named.sort_by(|one, other| one.0.cmp(&other.0));
                let mut query = sqlx::QueryBuilder::<$database>::new(
                    "INSERT INTO lake_table (name, domain, kind, type, path, location, created_us) ",
                );
                query.push_values(named, |mut row, ((name, suffix), table)| {
                    row.push_bind(name)
                        .push_bind(storable(table.key.space.domain.as_str()).into_owned())
                        .push_bind(table.key.space.kind.name())
                        .push_bind(storable(table.key.document_type.as_str()).into_owned())
                        .push_bind(format!("{}{suffix}", table.path))
                        .push_bind(format!("{}{suffix}", table.location))
                        .push($now);
                });
                query.push(" ON CONFLICT DO NOTHING").build().execute(&mut **transaction).await.map(drop)
            }

            /// Those of the tables that are registered, by domain, kind and type as they are stored.
            async fn registered(
                transaction: &mut sqlx::Transaction<'_, $database>,
                tables: &[$crate::metastore::NewTable],
            ) -> Result<std::collections::HashMap<(String, &'static str, String), $crate::metastore::TableRecord>, sqlx::Error> {
                let mut query =
                    sqlx::QueryBuilder::<$database>::new("SELECT * FROM lake_table WHERE (domain, kind, type) IN (");
                query.push_values(tables, |mut row, table| {
                    row.push_bind(storable(table.key.space.domain.as_str()).into_owned())
                        .push_bind(table.key.space.kind.name())
                        .push_bind(storable(table.key.document_type.as_str()).into_owned());
                });
                let found = query.push(")").build().fetch_all(&mut **transaction).await?;
                let records = found.iter().map(|row| {
                    let record = rows::table(row)?;
                    Ok((rows::stored_key(&record.key), record))
                });
                records.collect()
            }

            async fn register(
                &self,
                tables: &[$crate::metastore::NewTable],
            ) -> Result<Vec<$crate::metastore::TableRecord>, sql::Failure> {
                let mut records = Vec::with_capacity(tables.len());
                let mut transaction = self.begin().await?;
                // 6 values a row.
                for chunk in tables.chunks(1_000) {
                    Self::insert_tables(&mut transaction, chunk, |table| (escaped_names::table_name(&table.key), String::new())).await?;
                    let mut registered = Self::registered(&mut transaction, chunk).await?;
                    let is_missing = |table: &&$crate::metastore::NewTable| !registered.contains_key(&rows::stored_key(&table.key));
                    // Another table has their name. Tables whose paths differ only by case have the same name, so a name of its own
                    // brings a path of its own.
                    let nameless: Vec<_> = chunk.iter().filter(is_missing).cloned().collect();
                    if !nameless.is_empty() {
                        Self::insert_tables(&mut transaction, &nameless, |table| (escaped_names::table_name_unique(&table.key), table.suffix.clone())).await?;
                        registered.extend(Self::registered(&mut transaction, &nameless).await?);
                    }
                    for table in chunk {
                        let record = registered.get(&rows::stored_key(&table.key));
                        records.push(record.cloned().ok_or(sqlx::Error::RowNotFound)?);
                    }
                }
                transaction.commit().await?;
                Ok(records)
            }

            async fn record(
                &self,
                states: &[(lake_shared::identity::TableKey, $crate::metastore::RecordedState)],
            ) -> Result<bool, sql::Failure> {
                let mut transaction = self.begin().await?;
                let mut recorded = 0;
                // The schema of a wide table has hundreds of kilobytes.
                for chunk in states.chunks(100) {
                    let mut query = sqlx::QueryBuilder::<$database>::new(
                        "UPDATE lake_table SET version = given.column4, schema = COALESCE(given.column5, schema), \
                         row_count = given.column6, files = given.column7, bytes = given.column8, \
                         newest_published_us = CASE WHEN newest_published_us IS NULL OR newest_published_us < given.column9 \
                         THEN given.column9 ELSE newest_published_us END, \
                         newest_fetched_us = CASE WHEN newest_fetched_us IS NULL OR newest_fetched_us < given.column10 \
                         THEN given.column10 ELSE newest_fetched_us END, delay_p50_us = COALESCE(given.column11, delay_p50_us), \
                         delay_p95_us = COALESCE(given.column12, delay_p95_us), delay_p99_us = COALESCE(given.column13, delay_p99_us), \
                         delay_rows = COALESCE(given.column14, delay_rows), last_commit_us = ",
                    );
                    query.push($now).push(" FROM (");
                    query.push_values(chunk, |mut row, (key, state)| {
                        row.push_bind(storable(key.space.domain.as_str()).into_owned())
                            .push_bind(key.space.kind.name())
                            .push_bind(storable(key.document_type.as_str()).into_owned())
                            .push_bind(state.version)
                            .push_bind(state.schema.clone())
                            .push_bind(state.rows)
                            .push_bind(state.files)
                            .push_bind(state.bytes)
                            .push_bind(state.newest_published_us)
                            .push_bind(state.newest_fetched_us)
                            .push_bind(state.delays.map(|delays| delays.p50_us))
                            .push_bind(state.delays.map(|delays| delays.p95_us))
                            .push_bind(state.delays.map(|delays| delays.p99_us))
                            .push_bind(state.delays.map(|delays| delays.rows));
                    });
                    query.push(") AS given WHERE domain = given.column1 AND kind = given.column2 AND type = given.column3");
                    recorded += query.build().execute(&mut *transaction).await?.rows_affected();
                }
                transaction.commit().await?;
                Ok(recorded == states.len() as u64)
            }
        }

        #[async_trait::async_trait]
        impl $crate::metastore::Metastore for $adapter {
            async fn migrate(&self) -> Result<(), MetastoreError> {
                self.apply_migrations().await
            }

            fn fenced(&self, fence: Fence) -> std::sync::Arc<dyn $crate::metastore::Metastore> {
                std::sync::Arc::new(self.with_fence(fence))
            }

            fn fence(&self) -> Option<&Fence> {
                self.fence.as_ref()
            }

            async fn check(&self) -> Result<(), MetastoreError> {
                let asked = sqlx::query("SELECT 1").execute(&self.pool).await;
                asked.map(drop).map_err(failed(|| "reach the database".into()))
            }

            async fn tables(&self, space: Option<&Space>) -> Result<Vec<TableRecord>, MetastoreError> {
                let mut query = sqlx::QueryBuilder::<$database>::new(
                    "SELECT name, domain, kind, type, path, location, NULL AS schema, version, row_count, files, bytes, \
                     newest_published_us, newest_fetched_us, last_commit_us, created_us, delay_p50_us, delay_p95_us, \
                     delay_p99_us, delay_rows FROM lake_table",
                );
                if let Some(space) = space {
                    query.push(" WHERE domain = ").push_bind(storable(space.domain.as_str()).into_owned());
                    query.push(" AND kind = ").push_bind(space.kind.name());
                }
                let found = query.push(" ORDER BY name").build().fetch_all(&self.pool).await;
                found
                    .and_then(|found| found.iter().map(rows::table).collect())
                    .map_err(failed(|| "list tables".into()))
            }

            async fn table(&self, key: &TableKey) -> Result<Option<TableRecord>, MetastoreError> {
                let (domain, kind, document_type) = rows::stored_key(key);
                let found = sqlx::query("SELECT * FROM lake_table WHERE domain = $1 AND kind = $2 AND type = $3")
                    .bind(domain)
                    .bind(kind)
                    .bind(document_type)
                    .fetch_optional(&self.pool)
                    .await;
                found
                    .and_then(|found| found.map(|row| rows::table(&row)).transpose())
                    .map_err(failed(|| format!("look up table {key}")))
            }

            async fn spaces(&self) -> Result<BTreeSet<Space>, MetastoreError> {
                let found = sqlx::query("SELECT DISTINCT domain, kind FROM lake_table").fetch_all(&self.pool).await;
                found
                    .and_then(|found| found.iter().map(rows::space).collect())
                    .map_err(failed(|| "list spaces".into()))
            }

            async fn register_tables(&self, tables: &[NewTable]) -> Result<Vec<TableRecord>, MetastoreError> {
                let Some(first) = tables.first() else { return Ok(Vec::new()) };
                let registered = self.register(tables).await;
                registered.map_err(failed(|| format!("register {} tables, {} and so on", tables.len(), first.key)))
            }

            async fn record_commits(&self, states: &[(TableKey, RecordedState)]) -> Result<bool, MetastoreError> {
                let Some((first, _)) = states.first() else { return Ok(true) };
                let recorded = self.record(states).await;
                recorded.map_err(failed(|| format!("record commits of {} tables, {first} and so on", states.len())))
            }

            async fn tombstones(
                &self,
                space: &Space,
                behind: Option<IdHash>,
                limit: u32,
            ) -> Result<Vec<StoredTombstone>, MetastoreError> {
                let page = self.tombstone_page(space, None, behind, limit).await;
                page.map_err(failed(|| format!("list tombstones of {space}")))
            }

            async fn tombstones_since(
                &self,
                space: &Space,
                within_us: i64,
                behind: Option<IdHash>,
                limit: u32,
            ) -> Result<Vec<StoredTombstone>, MetastoreError> {
                let page = self.tombstone_page(space, Some(within_us), behind, limit).await;
                page.map_err(failed(|| format!("list new tombstones of {space}")))
            }

            async fn tombstones_of(&self, space: &Space, ids: &[IdHash]) -> Result<Vec<StoredTombstone>, MetastoreError> {
                let looked_up = self.look_up_tombstones(space, ids).await;
                looked_up.map_err(failed(|| format!("look up tombstones of {space}")))
            }

            async fn tombstones_in_spaces(&self, ids: &[(Space, IdHash)]) -> Result<Vec<RememberedTombstone>, MetastoreError> {
                let found = self.look_up_tombstones_in_spaces(ids).await;
                found.map_err(failed(|| format!("look up tombstones of {} ids", ids.len())))
            }

            async fn remember_tombstones(&self, space: &Space, tombstones: &[StoredTombstone]) -> Result<(), MetastoreError> {
                self.remember(space, tombstones).await.map_err(failed(|| format!("remember tombstones of {space}")))
            }

            async fn forget_tombstones(
                &self,
                space: &Space,
                tombstones: &[(IdHash, TombstoneOrder)],
            ) -> Result<(), MetastoreError> {
                self.forget(space, tombstones).await.map_err(failed(|| format!("forget tombstones of {space}")))
            }

            async fn forget_old_tombstones(&self, space: &Space, older_than_us: i64) -> Result<u64, MetastoreError> {
                let forgotten = self.forget_old(space, older_than_us).await;
                forgotten.map_err(failed(|| format!("forget old tombstones of {space}")))
            }

            async fn limit_tombstones(&self, space: &Space, count_max: i64) -> Result<u64, MetastoreError> {
                let forgotten = self.keep_tombstones_within(space, count_max).await;
                forgotten.map_err(failed(|| format!("forget the oldest tombstones of {space}")))
            }

            async fn quarantine(&self, stage: &str, entry: &Quarantined) -> Result<(), MetastoreError> {
                self.store_quarantined(stage, entry).await.map_err(failed(|| "store a quarantine entry".into()))
            }

            async fn quarantined(
                &self,
                filter: &QuarantineFilter,
                limit: u32,
                offset: u32,
            ) -> Result<Vec<QuarantineRecord>, MetastoreError> {
                let mut query = Self::select_quarantined(filter, u32::MAX);
                query.push(" ORDER BY at_us DESC, fingerprint LIMIT ").push_bind(i64::from(limit));
                query.push(" OFFSET ").push_bind(i64::from(offset));
                let found = query.build().fetch_all(&self.pool).await;
                found
                    .and_then(|found| found.iter().map(rows::quarantined).collect())
                    .map_err(failed(|| "list the quarantine".into()))
            }

            async fn quarantine_page(
                &self,
                filter: &QuarantineFilter,
                behind: Option<&Behind>,
                limit: u32,
            ) -> Result<Vec<QuarantineRecord>, MetastoreError> {
                let page = self.quarantine_behind(filter, behind, limit).await;
                page.map_err(failed(|| "list the quarantine".into()))
            }

            async fn quarantine_entry(
                &self,
                fingerprint: &str,
                payload_bytes_max: u32,
            ) -> Result<Option<QuarantineRecord>, MetastoreError> {
                let found = self.quarantine_one(fingerprint, payload_bytes_max).await;
                found.map_err(failed(|| format!("read quarantine entry {fingerprint}")))
            }

            async fn quarantine_groups(
                &self,
                filter: &QuarantineFilter,
                limit: u32,
            ) -> Result<Vec<QuarantineGroup>, MetastoreError> {
                let groups = self.grouped_quarantine(filter, limit).await;
                groups.map_err(failed(|| "count the quarantine".into()))
            }

            async fn mark_replayed(&self, marks: &[ReplayMark]) -> Result<(), MetastoreError> {
                let marked = self.set_replayed(marks).await;
                marked.map_err(failed(|| format!("keep that {} quarantine entries are read again", marks.len())))
            }

            async fn quarantined_count(&self, filter: &QuarantineFilter) -> Result<u64, MetastoreError> {
                let mut query = sqlx::QueryBuilder::<$database>::new("SELECT COUNT(*) FROM quarantine WHERE 1 = 1");
                Self::push_filter(&mut query, filter);
                let count = query.build_query_scalar::<i64>().fetch_one(&self.pool).await;
                count.map(i64::unsigned_abs).map_err(failed(|| "count the quarantine".into()))
            }

            async fn limit_quarantine(&self, bounds: &QuarantineBounds) -> Result<u64, MetastoreError> {
                self.keep_quarantine_within(bounds).await.map_err(failed(|| "remove old quarantine entries".into()))
            }

            async fn release(&self, entries: &[(String, i64)]) -> Result<u64, MetastoreError> {
                let removed = self.remove_quarantined(entries).await;
                removed.map_err(failed(|| format!("remove {} quarantine entries", entries.len())))
            }

            async fn acquire_lease(
                &self,
                name: &str,
                owner: &str,
                address: &str,
                for_us: i64,
            ) -> Result<Option<Lease>, MetastoreError> {
                self.acquire(name, owner, address, for_us).await.map_err(failed(|| format!("acquire lease {name}")))
            }

            async fn renew_lease(&self, lease: &Lease, for_us: i64) -> Result<Option<Lease>, MetastoreError> {
                self.renew(lease, for_us).await.map_err(failed(|| format!("renew lease {}", lease.name)))
            }

            async fn lease(&self, name: &str) -> Result<Option<Lease>, MetastoreError> {
                self.held(name).await.map_err(failed(|| format!("read lease {name}")))
            }

            async fn release_lease(&self, lease: &Lease) -> Result<(), MetastoreError> {
                self.give_back(lease).await.map_err(failed(|| format!("release lease {}", lease.name)))
            }
        }
    };
}
pub(super) use metastore_adapter;

/// What ends a call: an error of the database, or a lost lease.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Names what was tried when a call failed.
pub(super) fn failed<E: Into<Failure>>(action: impl FnOnce() -> String) -> impl FnOnce(E) -> super::MetastoreError {
    move |source| super::MetastoreError { action: action(), source: source.into() }
}
