//! The statements about comparisons, and the port, once for both databases.

/// Adds them to an adapter that has the statements of [`crate::metastore::sql`], [`crate::metastore::steering`] and
/// [`crate::metastore::backfills`].
macro_rules! comparisons_adapter {
    ($adapter:ident, $database:ty) => {
        impl $adapter {
            async fn replace_differences(&self, id: &str, differences: &[Difference]) -> Result<(), sql::Failure> {
                let mut transaction = self.begin().await?;
                let text = Self::statement("DELETE FROM lake_difference WHERE operation_id = $1");
                sqlx::query(text).bind(id.to_owned()).execute(&mut *transaction).await?;
                for chunk in differences.chunks(500) {
                    let mut query = sqlx::QueryBuilder::<$database>::new(
                        "INSERT INTO lake_difference (operation_id, id, class, lake_type, hq_type, lake_saved_us, hq_saved_us) ",
                    );
                    query.push_values(chunk, |mut row, difference| {
                        row.push_bind(id.to_owned())
                            .push_bind(storable(&difference.id).into_owned())
                            .push_bind(difference.class.code())
                            .push_bind(storable(&difference.lake_type).into_owned())
                            .push_bind(storable(&difference.hq_type).into_owned())
                            .push_bind(difference.lake_saved_us)
                            .push_bind(difference.hq_saved_us);
                    });
                    query.push(" ON CONFLICT (operation_id, id) DO NOTHING").build().execute(&mut *transaction).await?;
                }
                Ok(transaction.commit().await?)
            }

            async fn list_differences(
                &self,
                id: &str,
                behind: &str,
                limit: u32,
            ) -> Result<Vec<Difference>, sqlx::Error> {
                let text = Self::statement(
                    "SELECT * FROM lake_difference WHERE operation_id = $1 AND id > $2 ORDER BY id LIMIT $3",
                );
                let found = sqlx::query(text)
                    .bind(id.to_owned())
                    .bind(storable(behind).into_owned())
                    .bind(i64::from(limit))
                    .fetch_all(&self.pool)
                    .await?;
                let difference = |row: &<$database as sqlx::Database>::Row| -> Result<Difference, sqlx::Error> {
                    let code = row.text("class")?;
                    let class = DifferenceClass::ALL.into_iter().find(|class| class.code() == code);
                    Ok(Difference {
                        id: row.text("id")?,
                        class: class.ok_or_else(|| rows::corrupt(format!("{code} is no class of differences")))?,
                        lake_type: row.text("lake_type")?,
                        hq_type: row.text("hq_type")?,
                        lake_saved_us: row.maybe("lake_saved_us")?,
                        hq_saved_us: row.maybe("hq_saved_us")?,
                    })
                };
                found.iter().map(difference).collect()
            }
        }

        #[async_trait::async_trait]
        impl Comparisons for $adapter {
            async fn begin_reconcile(&self) -> Result<Option<OperationRecord>, MetastoreError> {
                let begun = self.begin_next_apart(steering::OperationKind::Reconcile).await;
                begun.map_err(failed(|| "begin the next comparison".into()))
            }

            async fn keep_differences(&self, id: &str, differences: &[Difference]) -> Result<(), MetastoreError> {
                let kept = self.replace_differences(id, differences).await;
                kept.map_err(failed(|| format!("keep what comparison {id} has found")))
            }

            async fn differences(
                &self,
                id: &str,
                behind: &str,
                limit: u32,
            ) -> Result<Vec<Difference>, MetastoreError> {
                let found = self.list_differences(id, behind, limit).await;
                found.map_err(failed(|| format!("list what comparison {id} has found")))
            }
        }
    };
}
pub(in crate::metastore) use comparisons_adapter;
