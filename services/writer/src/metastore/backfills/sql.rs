//! The statements about backfills, and the port, once for both databases.

/// Adds them to an adapter that has the statements of [`crate::metastore::sql`] and of [`crate::metastore::steering`].
macro_rules! backfills_adapter {
    ($adapter:ident, $database:ty, $skip_locked:literal) => {
        impl $adapter {
            /// Begins the next operation of a kind that has a runner of its own.
            async fn begin_next_apart(
                &self,
                kind: steering::OperationKind,
            ) -> Result<Option<OperationRecord>, sql::Failure> {
                let mut transaction = self.begin().await?;
                let next = Self::statement(concat!(
                    "UPDATE lake_operation SET state = 'running', attempts = attempts + 1, epoch = $1, heartbeat_us = {now}, \
                     since_us = CASE WHEN state = 'running' THEN since_us ELSE {now} END, started_us = COALESCE(started_us, {now}), \
                     rate_milli = NULL \
                     WHERE id = (SELECT id FROM lake_operation WHERE kind = $2 \
                     AND (state = 'pending' OR (state = 'running' AND epoch <> $1)) ORDER BY created_us, id LIMIT 1",
                    $skip_locked,
                    ") RETURNING *"
                ));
                let begun = sqlx::query(next).bind(self.epoch()).bind(kind.code()).fetch_optional(&mut *transaction).await?;
                transaction.commit().await?;
                Ok(begun.map(|row| steering::rows::operation(&row)).transpose()?)
            }

            async fn tell_backfill(&self, id: &str, progress: &BackfillProgress) -> Result<Wish, sql::Failure> {
                let mut transaction = self.begin().await?;
                let text = Self::statement(
                    "UPDATE lake_operation SET done = $2, total = $3, rate_milli = $4, heartbeat_us = {now} \
                     WHERE id = $1 AND state = 'running' RETURNING cancel_requested, paused",
                );
                let row = sqlx::query(text)
                    .bind(id.to_owned())
                    .bind(progress.done)
                    .bind(progress.total)
                    .bind(progress.per_second.map(|rate| (rate * 1_000.0) as i64))
                    .fetch_optional(&mut *transaction)
                    .await?;
                transaction.commit().await?;
                // One that is not there any more has nobody who waits for it.
                let Some(row) = row else { return Ok(Wish::End) };
                Ok(match (row.number("cancel_requested")?, row.number("paused")?) {
                    (0, 0) => Wish::GoOn,
                    (0, _) => Wish::Rest,
                    _ => Wish::End,
                })
            }

            /// Changes a backfill, and answers it as it is then.
            async fn steer_backfill(&self, text: &'static str, id: &str) -> Result<Option<OperationRecord>, sqlx::Error> {
                sqlx::query(Self::statement(text)).bind(id.to_owned()).execute(&self.pool).await?;
                let found = self.found_operation("id", id).await?;
                Ok(found.filter(|record| record.asked.kind == steering::OperationKind::Backfill))
            }

            async fn rests(&self, id: &str) -> Result<bool, sql::Failure> {
                let mut transaction = self.begin().await?;
                let text = Self::statement(
                    "UPDATE lake_operation SET state = 'paused', since_us = {now}, rate_milli = NULL \
                     WHERE id = $1 AND state = 'running' AND paused = 1",
                );
                let rested = sqlx::query(text).bind(id.to_owned()).execute(&mut *transaction).await?.rows_affected();
                transaction.commit().await?;
                Ok(rested > 0)
            }

            async fn insert_parts(&self, id: &str, parts: &[BackfillPart]) -> Result<(), sql::Failure> {
                let mut transaction = self.begin().await?;
                for chunk in parts.chunks(500) {
                    let mut query = sqlx::QueryBuilder::<$database>::new(
                        "INSERT INTO lake_backfill_part (operation_id, part, number, estimate, reached, documents, finished, refused) ",
                    );
                    query.push_values(chunk, |mut row, part| {
                        row.push_bind(id.to_owned())
                            .push_bind(storable(&part.part).into_owned())
                            .push_bind(part.number)
                            .push_bind(part.estimate)
                            .push_bind(part.reached)
                            .push_bind(part.documents)
                            .push_bind(i64::from(part.finished))
                            .push_bind(storable(&part.refused).into_owned());
                    });
                    query.push(" ON CONFLICT (operation_id, part) DO NOTHING").build().execute(&mut *transaction).await?;
                }
                Ok(transaction.commit().await?)
            }

            async fn list_parts(&self, id: &str) -> Result<Vec<BackfillPart>, sqlx::Error> {
                let text = Self::statement("SELECT * FROM lake_backfill_part WHERE operation_id = $1 ORDER BY number, part");
                let found = sqlx::query(text).bind(id.to_owned()).fetch_all(&self.pool).await?;
                let part = |row: &<$database as sqlx::Database>::Row| -> Result<BackfillPart, sqlx::Error> {
                    Ok(BackfillPart {
                        part: row.text("part")?,
                        number: row.number("number")?,
                        estimate: row.number("estimate")?,
                        reached: row.number("reached")?,
                        documents: row.number("documents")?,
                        finished: row.number("finished")? != 0,
                        refused: row.text("refused")?,
                    })
                };
                found.iter().map(part).collect()
            }

            async fn keep_stretch(&self, stretch: &StretchRead) -> Result<bool, sqlx::Error> {
                let text = Self::statement(
                    "UPDATE lake_backfill_part SET reached = $4, documents = documents + $5, finished = $6, refused = $7 \
                     WHERE operation_id = $1 AND part = $2 AND reached = $3 AND finished = 0 AND refused = ''",
                );
                let kept = sqlx::query(text)
                    .bind(storable(&stretch.operation_id).into_owned())
                    .bind(storable(&stretch.part).into_owned())
                    .bind(stretch.after)
                    .bind(stretch.reached)
                    .bind(stretch.documents)
                    .bind(i64::from(stretch.finished))
                    .bind(storable(&stretch.refused).into_owned())
                    .execute(&self.pool)
                    .await?;
                Ok(kept.rows_affected() > 0)
            }

            async fn list_taken(&self) -> Result<Vec<TakenEntry>, sqlx::Error> {
                let found = sqlx::query("SELECT * FROM lake_taken ORDER BY list, entry").fetch_all(&self.pool).await?;
                let entry = |row: &<$database as sqlx::Database>::Row| -> Result<TakenEntry, sqlx::Error> {
                    Ok(TakenEntry { list: row.text("list")?, entry: row.text("entry")?, since_us: row.number("since_us")? })
                };
                found.iter().map(entry).collect()
            }

            async fn sync_taken(
                &self,
                entries: &[(&'static str, String)],
            ) -> Result<Vec<(&'static str, String)>, sql::Failure> {
                let known = self.list_taken().await?;
                let mut transaction = self.begin().await?;
                let mut new = Vec::new();
                for (list, entry) in entries {
                    let entry = storable(entry).into_owned();
                    if known.iter().any(|of| of.list == *list && of.entry == entry) {
                        continue;
                    }
                    let text = Self::statement(
                        "INSERT INTO lake_taken (list, entry, since_us) VALUES ($1, $2, {now}) ON CONFLICT (list, entry) DO NOTHING",
                    );
                    sqlx::query(text).bind(*list).bind(entry.clone()).execute(&mut *transaction).await?;
                    new.push((*list, entry));
                }
                for TakenEntry { list, entry, .. } in known {
                    if entries.iter().any(|(of, name)| *of == list && storable(name) == entry) {
                        continue;
                    }
                    let text = Self::statement("DELETE FROM lake_taken WHERE list = $1 AND entry = $2");
                    sqlx::query(text).bind(list).bind(entry).execute(&mut *transaction).await?;
                }
                transaction.commit().await?;
                Ok(new)
            }

            async fn list_backfills(&self) -> Result<Vec<OperationRecord>, sqlx::Error> {
                let text = Self::statement(
                    "SELECT * FROM lake_operation WHERE kind = 'backfill' AND dry_run = 0 AND state NOT IN ('failed', 'cancelled') \
                     ORDER BY created_us DESC, id LIMIT 10000",
                );
                sqlx::query(text).fetch_all(&self.pool).await?.iter().map(steering::rows::operation).collect()
            }
        }

        #[async_trait::async_trait]
        impl Backfills for $adapter {
            async fn begin_backfill(&self) -> Result<Option<OperationRecord>, MetastoreError> {
                let begun = self.begin_next_apart(steering::OperationKind::Backfill).await;
                begun.map_err(failed(|| "begin the next backfill".into()))
            }

            async fn backfill_goes_on(&self, id: &str, progress: &BackfillProgress) -> Result<Wish, MetastoreError> {
                self.tell_backfill(id, progress).await.map_err(failed(|| format!("report on backfill {id}")))
            }

            async fn pause_backfill(&self, id: &str) -> Result<Option<OperationRecord>, MetastoreError> {
                let text = "UPDATE lake_operation SET paused = 1, \
                            since_us = CASE WHEN state = 'pending' THEN {now} ELSE since_us END, \
                            state = CASE WHEN state = 'pending' THEN 'paused' ELSE state END \
                            WHERE id = $1 AND kind = 'backfill' AND state IN ('pending', 'running')";
                self.steer_backfill(text, id).await.map_err(failed(|| format!("pause backfill {id}")))
            }

            async fn resume_backfill(&self, id: &str) -> Result<Option<OperationRecord>, MetastoreError> {
                let text = "UPDATE lake_operation SET paused = 0, \
                            since_us = CASE WHEN state = 'paused' THEN {now} ELSE since_us END, \
                            state = CASE WHEN state = 'paused' THEN 'pending' ELSE state END \
                            WHERE id = $1 AND kind = 'backfill' AND state IN ('pending', 'running', 'paused')";
                self.steer_backfill(text, id).await.map_err(failed(|| format!("resume backfill {id}")))
            }

            async fn rest_backfill(&self, id: &str) -> Result<bool, MetastoreError> {
                self.rests(id).await.map_err(failed(|| format!("let backfill {id} rest")))
            }

            async fn keep_backfill_parts(&self, id: &str, parts: &[BackfillPart]) -> Result<(), MetastoreError> {
                self.insert_parts(id, parts).await.map_err(failed(|| format!("keep the parts of backfill {id}")))
            }

            async fn backfill_parts(&self, id: &str) -> Result<Vec<BackfillPart>, MetastoreError> {
                self.list_parts(id).await.map_err(failed(|| format!("list the parts of backfill {id}")))
            }

            async fn stretch_was_read(&self, stretch: &StretchRead) -> Result<bool, MetastoreError> {
                let kept = self.keep_stretch(stretch).await;
                kept.map_err(failed(|| format!("keep how far backfill {} is", stretch.operation_id)))
            }

            async fn note_taken(
                &self,
                entries: &[(&'static str, String)],
            ) -> Result<Vec<(&'static str, String)>, MetastoreError> {
                self.sync_taken(entries).await.map_err(failed(|| "keep what is taken".into()))
            }

            async fn taken(&self) -> Result<Vec<TakenEntry>, MetastoreError> {
                self.list_taken().await.map_err(failed(|| "list what is taken".into()))
            }

            async fn backfills_asked(&self) -> Result<Vec<OperationRecord>, MetastoreError> {
                self.list_backfills().await.map_err(failed(|| "list backfills".into()))
            }
        }
    };
}
pub(in crate::metastore) use backfills_adapter;
