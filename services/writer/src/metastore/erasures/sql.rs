//! The statements about erased records, and the port, once for both databases.

/// Adds them to an adapter that has the statements of [`crate::metastore::sql`] and of [`crate::metastore::steering`].
macro_rules! erasures_adapter {
    ($adapter:ident, $database:ty) => {
        impl $adapter {
            async fn insert_erasures(
                &self,
                space: &Space,
                hashes: &[String],
                asked_by: &str,
                operation_id: &str,
            ) -> Result<(), sql::Failure> {
                let mut transaction = self.begin().await?;
                for hash in hashes {
                    let text = Self::statement(
                        "INSERT INTO lake_erasure (id_hash, domain, kind, since_us, asked_by, operation_id) \
                         VALUES ($1, $2, $3, {now}, $4, $5) ON CONFLICT (id_hash) DO UPDATE SET \
                         since_us = CASE WHEN lake_erasure.allowed_us IS NULL THEN lake_erasure.since_us ELSE excluded.since_us END, \
                         asked_by = excluded.asked_by, operation_id = excluded.operation_id, erased_us = NULL, report = '{}', \
                         allowed_us = NULL, allowed_by = '' \
                         WHERE lake_erasure.operation_id <> excluded.operation_id OR lake_erasure.allowed_us IS NOT NULL",
                    );
                    sqlx::query(text)
                        .bind(hash.clone())
                        .bind(storable(space.domain.as_str()).into_owned())
                        .bind(space.kind.name())
                        .bind(storable(asked_by).into_owned())
                        .bind(operation_id.to_owned())
                        .execute(&mut *transaction)
                        .await?;
                }
                Ok(transaction.commit().await?)
            }

            async fn masks_ids(&self, space: &Space, ids: &[String]) -> Result<u64, sql::Failure> {
                let masks = $crate::metastore::erasures::masked::Masks::of(space, ids);
                let mut transaction = self.begin().await?;
                let mut changed = 0;
                // Those that erase and allow records forget their ids when they end.
                let operations = sqlx::query(
                    "SELECT id, details, reason FROM lake_operation WHERE kind NOT IN ('erase_records', 'allow_records') \
                     AND (details <> '' OR reason <> '')",
                );
                for row in operations.fetch_all(&mut *transaction).await? {
                    let (id, details, reason) = (row.text("id")?, row.text("details")?, row.text("reason")?);
                    let (other_details, other_reason) = (masks.masked(&details), masks.masked(&reason));
                    if other_details.is_none() && other_reason.is_none() {
                        continue;
                    }
                    let text = Self::statement("UPDATE lake_operation SET details = $2, reason = $3 WHERE id = $1");
                    let update = sqlx::query(text).bind(id).bind(other_details.unwrap_or(details));
                    update.bind(other_reason.unwrap_or(reason)).execute(&mut *transaction).await?;
                    changed += 1;
                }
                for row in sqlx::query("SELECT id, target FROM lake_audit").fetch_all(&mut *transaction).await? {
                    let (id, target) = (row.text("id")?, row.text("target")?);
                    let Some(masked) = masks.masked(&target) else { continue };
                    let text = Self::statement("UPDATE lake_audit SET target = $2 WHERE id = $1");
                    sqlx::query(text).bind(id).bind(masked).execute(&mut *transaction).await?;
                    changed += 1;
                }
                for chunk in ids.chunks(1_000) {
                    let mut query = sqlx::QueryBuilder::<$database>::new(
                        "DELETE FROM lake_difference WHERE operation_id IN (SELECT id FROM lake_operation WHERE domain = ",
                    );
                    query.push_bind(storable(space.domain.as_str()).into_owned());
                    query.push(" AND target_kind = ").push_bind(space.kind.name()).push(")");
                    Self::push_among(&mut query, "id", chunk.iter().map(|id| storable(id).into_owned()));
                    changed += query.build().execute(&mut *transaction).await?.rows_affected();
                }
                transaction.commit().await?;
                Ok(changed)
            }

            async fn erasures_end(&self, operation_id: &str, report: &str) -> Result<(), sql::Failure> {
                let mut transaction = self.begin().await?;
                let text = Self::statement("UPDATE lake_erasure SET erased_us = {now}, report = $2 WHERE operation_id = $1");
                let ended = sqlx::query(text).bind(operation_id.to_owned()).bind(report.to_owned());
                ended.execute(&mut *transaction).await?;
                Ok(transaction.commit().await?)
            }

            async fn lets_in(&self, space: &Space, hashes: &[String], allowed_by: &str) -> Result<u64, sql::Failure> {
                let mut transaction = self.begin().await?;
                let mut let_in = 0;
                for hash in hashes {
                    let text = Self::statement(
                        "UPDATE lake_erasure SET allowed_us = {now}, allowed_by = $4 \
                         WHERE id_hash = $1 AND domain = $2 AND kind = $3 AND allowed_us IS NULL",
                    );
                    let updated = sqlx::query(text)
                        .bind(hash.clone())
                        .bind(storable(space.domain.as_str()).into_owned())
                        .bind(space.kind.name())
                        .bind(storable(allowed_by).into_owned())
                        .execute(&mut *transaction)
                        .await?;
                    let_in += updated.rows_affected();
                }
                transaction.commit().await?;
                Ok(let_in)
            }

            async fn list_kept_out(&self, space: &Space) -> Result<Vec<String>, sqlx::Error> {
                let text = Self::statement(
                    "SELECT id_hash FROM lake_erasure WHERE domain = $1 AND kind = $2 AND allowed_us IS NULL",
                );
                let asked = sqlx::query(text).bind(storable(space.domain.as_str()).into_owned()).bind(space.kind.name());
                asked.fetch_all(&self.pool).await?.iter().map(|row| row.text("id_hash")).collect()
            }

            async fn find_erasures(&self, hashes: &[String]) -> Result<Vec<ErasureRecord>, sqlx::Error> {
                let mut found = Vec::new();
                for chunk in hashes.chunks(1_000) {
                    let mut query = sqlx::QueryBuilder::<$database>::new("SELECT * FROM lake_erasure WHERE 1 = 1");
                    Self::push_among(&mut query, "id_hash", chunk.iter().cloned());
                    for row in query.build().fetch_all(&self.pool).await? {
                        found.push($crate::metastore::erasures::rows::record(&row)?);
                    }
                }
                Ok(found)
            }

            async fn erasure_page(
                &self,
                domains: Option<&[String]>,
                behind: Option<&Behind>,
                limit: u32,
            ) -> Result<Vec<ErasureRecord>, sqlx::Error> {
                let mut query = sqlx::QueryBuilder::<$database>::new("SELECT * FROM lake_erasure WHERE 1 = 1");
                if let Some(domains) = domains {
                    Self::push_among(&mut query, "domain", domains.iter().map(|domain| storable(domain).into_owned()));
                }
                if let Some(behind) = behind {
                    query.push(" AND (since_us < ").push_bind(behind.at_us);
                    query.push(" OR (since_us = ").push_bind(behind.at_us);
                    query.push(" AND id_hash > ").push_bind(behind.id.clone()).push("))");
                }
                query.push(" ORDER BY since_us DESC, id_hash LIMIT ").push_bind(i64::from(limit));
                query.build().fetch_all(&self.pool).await?.iter().map($crate::metastore::erasures::rows::record).collect()
            }
        }

        #[async_trait::async_trait]
        impl Erasures for $adapter {
            async fn keep_out(
                &self,
                space: &Space,
                hashes: &[String],
                asked_by: &str,
                operation_id: &str,
            ) -> Result<(), MetastoreError> {
                let kept = self.insert_erasures(space, hashes, asked_by, operation_id).await;
                kept.map_err(failed(|| format!("keep records out of {space}")))
            }

            async fn mask_ids(&self, space: &Space, ids: &[String]) -> Result<u64, MetastoreError> {
                let masked = self.masks_ids(space, ids).await;
                masked.map_err(failed(|| format!("remove ids of erased records of {space}")))
            }

            async fn records_erased(&self, operation_id: &str, report: &str) -> Result<(), MetastoreError> {
                let ended = self.erasures_end(operation_id, report).await;
                ended.map_err(failed(|| format!("keep that the records of operation {operation_id} are erased")))
            }

            async fn let_in(&self, space: &Space, hashes: &[String], allowed_by: &str) -> Result<u64, MetastoreError> {
                let let_in = self.lets_in(space, hashes, allowed_by).await;
                let_in.map_err(failed(|| format!("let erased records into {space} again")))
            }

            async fn kept_out(&self, space: &Space) -> Result<Vec<String>, MetastoreError> {
                self.list_kept_out(space).await.map_err(failed(|| format!("list what is kept out of {space}")))
            }

            async fn erasures_of(&self, hashes: &[String]) -> Result<Vec<ErasureRecord>, MetastoreError> {
                self.find_erasures(hashes).await.map_err(failed(|| "look for erased records".into()))
            }

            async fn erasures(
                &self,
                domains: Option<&[String]>,
                behind: Option<&Behind>,
                limit: u32,
            ) -> Result<Vec<ErasureRecord>, MetastoreError> {
                self.erasure_page(domains, behind, limit).await.map_err(failed(|| "list erased records".into()))
            }
        }
    };
}
pub(in crate::metastore) use erasures_adapter;
