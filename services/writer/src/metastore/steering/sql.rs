//! The statements about operations, pauses and the audit, and the port, once for both databases.

/// Adds them to an adapter that has the statements of [`crate::metastore::sql`] and [`crate::metastore::lease_sql`].
macro_rules! steering_adapter {
    ($adapter:ident, $database:ty, $skip_locked:literal) => {
        impl $adapter {
            async fn found_operation(&self, column: &'static str, value: &str) -> Result<Option<OperationRecord>, sqlx::Error> {
                let mut query = sqlx::QueryBuilder::<$database>::new("SELECT * FROM lake_operation WHERE ");
                query.push(column).push(" = ").push_bind(value.to_owned());
                query.build().fetch_optional(&self.pool).await?.map(|row| steering::rows::operation(&row)).transpose()
            }

            async fn insert_operation(&self, new: &NewOperation) -> Result<OperationRecord, sqlx::Error> {
                let insert = Self::statement(
                    "INSERT INTO lake_operation (id, request_id, kind, domain, target_kind, type, state, since_us, asked_by, created_us, \
                     of_table, dry_run, to_plan, details) \
                     VALUES ($1, $2, $3, $4, $5, $6, 'pending', {now}, $7, {now}, $8, $9, $10, $11) ON CONFLICT (request_id) DO NOTHING",
                );
                let document_type = new.target.document_type.as_ref().map_or("", |document_type| document_type.as_str());
                sqlx::query(insert)
                    .bind(uuid::Uuid::new_v4().to_string())
                    .bind(storable(&new.request_id).into_owned())
                    .bind(new.kind.code())
                    .bind(storable(new.target.space.domain.as_str()).into_owned())
                    .bind(new.target.space.kind.name())
                    .bind(storable(document_type).into_owned())
                    .bind(storable(&new.asked_by).into_owned())
                    .bind(i64::from(new.target.document_type.is_some()))
                    .bind(i64::from(new.consent == Consent::DryRun))
                    .bind(storable(new.consent.plan()).into_owned())
                    .bind(storable(&new.details).into_owned())
                    .execute(&self.pool)
                    .await?;
                let found = self.found_operation("request_id", &storable(&new.request_id)).await?;
                found.ok_or(sqlx::Error::RowNotFound)
            }

            /// Adds ` AND column IN (…)`; nothing is in an empty list.
            fn push_among(query: &mut sqlx::QueryBuilder<$database>, column: &'static str, values: impl IntoIterator<Item = String>) {
                query.push(" AND ").push(column).push(" IN (NULL");
                for value in values {
                    query.push(", ").push_bind(value);
                }
                query.push(")");
            }

            async fn operation_page(
                &self,
                filter: &OperationFilter,
                behind: Option<&Behind>,
                limit: u32,
            ) -> Result<Vec<OperationRecord>, sqlx::Error> {
                let mut query = sqlx::QueryBuilder::<$database>::new(
                    "SELECT id, request_id, kind, domain, target_kind, type, of_table, dry_run, to_plan, state, since_us, reason, attempts, \
                     done, total, rate_milli, asked_by, created_us, started_us, heartbeat_us, finished_us, cancel_requested, paused, \
                     result, plan, '' AS details FROM lake_operation WHERE 1 = 1",
                );
                if !filter.states.is_empty() {
                    Self::push_among(&mut query, "state", filter.states.iter().map(|state| state.code().to_owned()));
                }
                if let Some(domains) = &filter.domains {
                    Self::push_among(&mut query, "domain", domains.iter().map(|domain| storable(domain).into_owned()));
                }
                if let Some(behind) = behind {
                    query.push(" AND (created_us < ").push_bind(behind.at_us);
                    query.push(" OR (created_us = ").push_bind(behind.at_us);
                    query.push(" AND id > ").push_bind(behind.id.clone()).push("))");
                }
                query.push(" ORDER BY created_us DESC, id LIMIT ").push_bind(i64::from(limit));
                query.build().fetch_all(&self.pool).await?.iter().map(steering::rows::operation).collect()
            }

            /// The epoch under which is written; without a fence there is none.
            fn epoch(&self) -> i64 {
                self.fence.as_ref().map_or(0, Fence::epoch)
            }

            async fn begin_next_operation(&self) -> Result<Option<OperationRecord>, sql::Failure> {
                let mut transaction = self.begin().await?;
                let next = Self::statement(concat!(
                    "UPDATE lake_operation SET state = 'running', attempts = attempts + 1, epoch = $1, heartbeat_us = {now}, \
                     since_us = CASE WHEN state = 'running' THEN since_us ELSE {now} END, \
                     started_us = COALESCE(started_us, {now}), done = 0, total = NULL \
                     WHERE id = (SELECT id FROM lake_operation WHERE kind NOT IN ('backfill', 'reconcile') \
                     AND (state = 'pending' OR (state = 'running' AND epoch <> $1)) ORDER BY created_us, id LIMIT 1",
                    $skip_locked,
                    ") RETURNING *"
                ));
                let begun = sqlx::query(next).bind(self.epoch()).fetch_optional(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(begun.map(|row| steering::rows::operation(&row)).transpose()?)
            }

            async fn goes_on(&self, id: &str, done: i64, total: Option<i64>) -> Result<bool, sql::Failure> {
                let mut transaction = self.begin().await?;
                let text = Self::statement(
                    "UPDATE lake_operation SET done = $2, total = $3, heartbeat_us = {now} WHERE id = $1 AND state = 'running' \
                     RETURNING cancel_requested",
                );
                let row = sqlx::query(text).bind(id.to_owned()).bind(done).bind(total).fetch_optional(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(row.map(|row| row.number("cancel_requested")).transpose()?.is_some_and(|cancel| cancel != 0))
            }

            async fn ends(&self, id: &str, end: &OperationEnd) -> Result<(), sql::Failure> {
                let mut transaction = self.begin().await?;
                let text = Self::statement(
                    // The ids of erased records are kept no longer than they are needed.
                    "UPDATE lake_operation SET state = $2, reason = $3, result = $4, plan = $5, since_us = {now}, finished_us = {now}, \
                     details = CASE WHEN kind IN ('erase_records', 'allow_records') THEN '' ELSE details END, \
                     heartbeat_us = {now} WHERE id = $1 AND state = 'running'",
                );
                sqlx::query(text)
                    .bind(id.to_owned())
                    .bind(end.state.code())
                    .bind(storable(&end.reason).into_owned())
                    .bind(storable(&end.result).into_owned())
                    .bind(storable(&end.plan).into_owned())
                    .execute(&mut *transaction)
                    .await?;
                Ok(transaction.commit().await?)
            }

            async fn cancel(&self, id: &str) -> Result<Option<OperationRecord>, sqlx::Error> {
                let text = Self::statement(
                    "UPDATE lake_operation SET cancel_requested = 1, \
                     since_us = CASE WHEN state = 'running' THEN since_us ELSE {now} END, \
                     finished_us = CASE WHEN state = 'running' THEN finished_us ELSE {now} END, \
                     details = CASE WHEN state <> 'running' AND kind IN ('erase_records', 'allow_records') THEN '' ELSE details END, \
                     state = CASE WHEN state = 'running' THEN state ELSE 'cancelled' END \
                     WHERE id = $1 AND state IN ('pending', 'running', 'paused')",
                );
                sqlx::query(text).bind(id.to_owned()).execute(&self.pool).await?;
                self.found_operation("id", id).await
            }

            async fn forget_old_steering(&self, older_than_us: i64) -> Result<u64, sql::Failure> {
                let mut transaction = self.begin().await?;
                let mut forgotten = 0;
                for text in [
                    "DELETE FROM lake_operation WHERE finished_us < {now} - $1 \
                     AND NOT (kind = 'backfill' AND state = 'succeeded' AND dry_run = 0)",
                    "DELETE FROM lake_backfill_part WHERE $1 IS NOT NULL \
                     AND operation_id NOT IN (SELECT id FROM lake_operation)",
                    "DELETE FROM lake_difference WHERE $1 IS NOT NULL \
                     AND operation_id NOT IN (SELECT id FROM lake_operation)",
                    "DELETE FROM lake_audit WHERE at_us < {now} - $1",
                ] {
                    let gone = sqlx::query(Self::statement(text)).bind(older_than_us).execute(&mut *transaction).await?;
                    forgotten += gone.rows_affected();
                }
                transaction.commit().await?;
                Ok(forgotten)
            }

            async fn keep_pause(&self, space: Option<&Space>, asked_by: &str, reason: &str) -> Result<(), sqlx::Error> {
                let (domain, kind) = steering::rows::stored_space(space);
                let text = Self::statement(
                    "INSERT INTO lake_pause (domain, kind, since_us, asked_by, reason) VALUES ($1, $2, {now}, $3, $4) \
                     ON CONFLICT (domain, kind) DO NOTHING",
                );
                sqlx::query(text)
                    .bind(domain)
                    .bind(kind)
                    .bind(storable(asked_by).into_owned())
                    .bind(storable(reason).into_owned())
                    .execute(&self.pool)
                    .await
                    .map(drop)
            }

            async fn end_pause(&self, space: Option<&Space>) -> Result<(), sqlx::Error> {
                let mut query = sqlx::QueryBuilder::<$database>::new("DELETE FROM lake_pause");
                if space.is_some() {
                    let (domain, kind) = steering::rows::stored_space(space);
                    query.push(" WHERE domain = ").push_bind(domain).push(" AND kind = ").push_bind(kind);
                }
                query.build().execute(&self.pool).await.map(drop)
            }

            async fn set_in_force(&self, space: Option<&Space>) -> Result<(), sql::Failure> {
                let (domain, kind) = steering::rows::stored_space(space);
                let mut transaction = self.begin().await?;
                let text = Self::statement("UPDATE lake_pause SET in_force_us = {now} WHERE domain = $1 AND kind = $2");
                sqlx::query(text).bind(domain).bind(kind).execute(&mut *transaction).await?;
                Ok(transaction.commit().await?)
            }

            async fn write_audit(&self, record: [&str; 4]) -> Result<(), sqlx::Error> {
                let text = Self::statement(
                    "INSERT INTO lake_audit (id, at_us, asked_by, call, target, request_id) VALUES ($1, {now}, $2, $3, $4, $5)",
                );
                let mut query = sqlx::query(text).bind(uuid::Uuid::new_v4().to_string());
                for field in record {
                    query = query.bind(storable(field).into_owned());
                }
                query.execute(&self.pool).await.map(drop)
            }

            async fn audit_page(&self, behind: Option<&Behind>, limit: u32) -> Result<Vec<AuditRecord>, sqlx::Error> {
                let mut query = sqlx::QueryBuilder::<$database>::new("SELECT * FROM lake_audit");
                if let Some(behind) = behind {
                    query.push(" WHERE at_us < ").push_bind(behind.at_us);
                    query.push(" OR (at_us = ").push_bind(behind.at_us);
                    query.push(" AND id > ").push_bind(behind.id.clone()).push(")");
                }
                query.push(" ORDER BY at_us DESC, id LIMIT ").push_bind(i64::from(limit));
                query.build().fetch_all(&self.pool).await?.iter().map(steering::rows::audit).collect()
            }

            async fn tables_behind(
                &self,
                filter: &TableFilter,
                behind: &str,
                limit: u32,
            ) -> Result<Vec<TableRecord>, sqlx::Error> {
                let mut query = sqlx::QueryBuilder::<$database>::new(
                    "SELECT name, domain, kind, type, path, location, NULL AS schema, version, row_count, files, bytes, \
                     newest_published_us, newest_fetched_us, last_commit_us, created_us, delay_p50_us, delay_p95_us, \
                     delay_p99_us, delay_rows FROM lake_table WHERE name > ",
                );
                query.push_bind(storable(behind).into_owned());
                if let Some(domains) = &filter.domains {
                    Self::push_among(&mut query, "domain", domains.iter().map(|domain| storable(domain).into_owned()));
                }
                if let Some(kind) = filter.kind {
                    query.push(" AND kind = ").push_bind(kind.name());
                }
                if !filter.name_contains.is_empty() {
                    // Names hold `_`, which LIKE takes for any letter.
                    query.push(" AND name <> REPLACE(name, ").push_bind(storable(&filter.name_contains).into_owned()).push(", '')");
                }
                query.push(" ORDER BY name LIMIT ").push_bind(i64::from(limit));
                query.build().fetch_all(&self.pool).await?.iter().map(rows::table).collect()
            }

            /// What a statement counts; of these domains, or of all.
            async fn count_of(&self, select: &'static str, domains: Option<&[String]>) -> Result<u64, sqlx::Error> {
                let mut query = sqlx::QueryBuilder::<$database>::new(select);
                if let Some(domains) = domains {
                    Self::push_among(&mut query, "domain", domains.iter().map(|domain| storable(domain).into_owned()));
                }
                query.build_query_scalar::<i64>().fetch_one(&self.pool).await.map(i64::unsigned_abs)
            }

            async fn count_by_reason(&self, domains: Option<&[String]>) -> Result<Vec<(String, u64)>, sqlx::Error> {
                let mut query =
                    sqlx::QueryBuilder::<$database>::new("SELECT reason, COUNT(*) AS entries FROM quarantine WHERE 1 = 1");
                if let Some(domains) = domains {
                    Self::push_among(&mut query, "domain", domains.iter().map(|domain| storable(domain).into_owned()));
                }
                let found = query.push(" GROUP BY reason ORDER BY reason").build().fetch_all(&self.pool).await?;
                let counts = found.iter().map(|row| Ok((row.text("reason")?, row.number("entries")?.unsigned_abs())));
                counts.collect()
            }
        }

        #[async_trait::async_trait]
        impl Steering for $adapter {
            async fn ask_operation(&self, new: &NewOperation) -> Result<OperationRecord, MetastoreError> {
                self.insert_operation(new).await.map_err(failed(|| format!("keep operation {}", new.request_id)))
            }

            async fn operation(&self, id: &str) -> Result<Option<OperationRecord>, MetastoreError> {
                self.found_operation("id", id).await.map_err(failed(|| format!("read operation {id}")))
            }

            async fn requested_operation(&self, request_id: &str) -> Result<Option<OperationRecord>, MetastoreError> {
                let found = self.found_operation("request_id", &storable(request_id)).await;
                found.map_err(failed(|| format!("look for request {request_id}")))
            }

            async fn operations(
                &self,
                filter: &OperationFilter,
                behind: Option<&Behind>,
                limit: u32,
            ) -> Result<Vec<OperationRecord>, MetastoreError> {
                self.operation_page(filter, behind, limit).await.map_err(failed(|| "list operations".into()))
            }

            async fn open_operations(&self, domains: Option<&[String]>) -> Result<u64, MetastoreError> {
                let text = "SELECT COUNT(*) FROM lake_operation WHERE state IN ('pending', 'running', 'paused')";
                self.count_of(text, domains).await.map_err(failed(|| "count operations".into()))
            }

            async fn begin_operation(&self) -> Result<Option<OperationRecord>, MetastoreError> {
                self.begin_next_operation().await.map_err(failed(|| "begin the next operation".into()))
            }

            async fn operation_goes_on(&self, id: &str, done: i64, total: Option<i64>) -> Result<bool, MetastoreError> {
                self.goes_on(id, done, total).await.map_err(failed(|| format!("report on operation {id}")))
            }

            async fn end_operation(&self, id: &str, end: &OperationEnd) -> Result<(), MetastoreError> {
                self.ends(id, end).await.map_err(failed(|| format!("end operation {id}")))
            }

            async fn cancel_operation(&self, id: &str) -> Result<Option<OperationRecord>, MetastoreError> {
                self.cancel(id).await.map_err(failed(|| format!("cancel operation {id}")))
            }

            async fn forget_old_operations(&self, older_than_us: i64) -> Result<u64, MetastoreError> {
                self.forget_old_steering(older_than_us).await.map_err(failed(|| "forget old operations".into()))
            }

            async fn drop_tables(&self, target: &OperationTarget, asked_by: &str) -> Result<(), MetastoreError> {
                self.drops(target, asked_by).await.map_err(failed(|| format!("drop {target}")))
            }

            async fn dropped_files_gone(&self, target: &OperationTarget) -> Result<(), MetastoreError> {
                self.files_are_gone(target).await.map_err(failed(|| format!("keep that the files of {target} are deleted")))
            }

            async fn dropped(&self, space: Option<&Space>) -> Result<Vec<DroppedRecord>, MetastoreError> {
                self.list_dropped(space).await.map_err(failed(|| "list what was dropped".into()))
            }

            async fn allow_tables(&self, target: &OperationTarget) -> Result<u64, MetastoreError> {
                self.allows(target).await.map_err(failed(|| format!("let {target} be made anew")))
            }

            async fn pause(&self, space: Option<&Space>, asked_by: &str, reason: &str) -> Result<(), MetastoreError> {
                self.keep_pause(space, asked_by, reason).await.map_err(failed(|| "keep a pause".into()))
            }

            async fn resume(&self, space: Option<&Space>) -> Result<(), MetastoreError> {
                self.end_pause(space).await.map_err(failed(|| "end a pause".into()))
            }

            async fn pauses(&self) -> Result<Vec<PauseRecord>, MetastoreError> {
                let found = sqlx::query("SELECT * FROM lake_pause ORDER BY domain, kind").fetch_all(&self.pool).await;
                found
                    .and_then(|found| found.iter().map(steering::rows::pause).collect())
                    .map_err(failed(|| "list pauses".into()))
            }

            async fn pause_in_force(&self, space: Option<&Space>) -> Result<(), MetastoreError> {
                self.set_in_force(space).await.map_err(failed(|| "say that a pause is in force".into()))
            }

            async fn set_policy(&self, table: &str, policy: &TablePolicy, asked_by: &str) -> Result<(), MetastoreError> {
                self.keep_policy(table, policy, asked_by).await.map_err(failed(|| format!("keep the policy of {table}")))
            }

            async fn policies(&self) -> Result<Vec<PolicyRecord>, MetastoreError> {
                self.kept_policies().await.map_err(failed(|| "list the policies of tables".into()))
            }

            async fn audit(&self, asked_by: &str, call: &str, target: &str, request_id: &str) -> Result<(), MetastoreError> {
                let written = self.write_audit([asked_by, call, target, request_id]).await;
                written.map_err(failed(|| format!("write down that {asked_by} asks for {call}")))
            }

            async fn audited(&self, behind: Option<&Behind>, limit: u32) -> Result<Vec<AuditRecord>, MetastoreError> {
                self.audit_page(behind, limit).await.map_err(failed(|| "list what was asked for".into()))
            }

            async fn table_page(
                &self,
                filter: &TableFilter,
                behind: &str,
                limit: u32,
            ) -> Result<Vec<TableRecord>, MetastoreError> {
                self.tables_behind(filter, behind, limit).await.map_err(failed(|| "list tables".into()))
            }

            async fn table_named(&self, name: &str) -> Result<Option<TableRecord>, MetastoreError> {
                let found = sqlx::query("SELECT * FROM lake_table WHERE name = $1")
                    .bind(storable(name).into_owned())
                    .fetch_optional(&self.pool)
                    .await;
                found
                    .and_then(|found| found.map(|row| rows::table(&row)).transpose())
                    .map_err(failed(|| format!("look up table {name}")))
            }

            async fn table_count(&self, domains: Option<&[String]>) -> Result<u64, MetastoreError> {
                let counted = self.count_of("SELECT COUNT(*) FROM lake_table WHERE 1 = 1", domains).await;
                counted.map_err(failed(|| "count tables".into()))
            }

            async fn quarantined_by_reason(&self, domains: Option<&[String]>) -> Result<Vec<(String, u64)>, MetastoreError> {
                self.count_by_reason(domains).await.map_err(failed(|| "count the quarantine".into()))
            }
        }
    };
}
pub(in crate::metastore) use steering_adapter;
