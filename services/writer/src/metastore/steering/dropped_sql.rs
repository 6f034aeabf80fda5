//! The statements about dropped tables, once for both databases.

/// Adds them to an adapter that has the statements of [`crate::metastore::sql`].
macro_rules! dropped_statements {
    ($adapter:ident, $database:ty) => {
        impl $adapter {
            /// Adds ` AND …` for what a target stands for: one table, or a space with its tables.
            fn push_target(query: &mut sqlx::QueryBuilder<$database>, target: &OperationTarget) {
                query.push(" AND domain = ").push_bind(storable(target.space.domain.as_str()).into_owned());
                query.push(" AND kind = ").push_bind(target.space.kind.name());
                if let Some(document_type) = &target.document_type {
                    query.push(" AND type = ").push_bind(storable(document_type.as_str()).into_owned());
                }
            }

            async fn drops(&self, target: &OperationTarget, asked_by: &str) -> Result<(), sql::Failure> {
                let (domain, kind) = steering::rows::stored_space(Some(&target.space));
                let mut transaction = self.begin().await?;
                if target.document_type.is_none() {
                    let space = Self::statement(
                        "INSERT INTO lake_dropped (domain, kind, type, whole_space, name, path, since_us, asked_by, files_gone) \
                         VALUES ($1, $2, '', 1, '', '', {now}, $3, 1) ON CONFLICT (domain, kind, type, whole_space) DO NOTHING",
                    );
                    let kept = sqlx::query(space).bind(domain).bind(kind).bind(storable(asked_by).into_owned());
                    kept.execute(&mut *transaction).await?;
                }
                let now = Self::statement("{now}").0;
                let mut tables = sqlx::QueryBuilder::<$database>::new(
                    "INSERT INTO lake_dropped (domain, kind, type, whole_space, name, path, since_us, asked_by) \
                     SELECT domain, kind, type, 0, name, path, ",
                );
                tables.push(now).push(", ").push_bind(storable(asked_by).into_owned()).push(" FROM lake_table WHERE 1 = 1");
                Self::push_target(&mut tables, target);
                tables.push(
                    " ON CONFLICT (domain, kind, type, whole_space) DO UPDATE SET name = excluded.name, path = excluded.path, \
                     files_gone = 0",
                );
                tables.build().execute(&mut *transaction).await?;
                let mut gone = sqlx::QueryBuilder::<$database>::new("DELETE FROM lake_table WHERE 1 = 1");
                Self::push_target(&mut gone, target);
                gone.build().execute(&mut *transaction).await?;
                Ok(transaction.commit().await?)
            }

            async fn files_are_gone(&self, target: &OperationTarget) -> Result<(), sql::Failure> {
                let mut transaction = self.begin().await?;
                let mut query = sqlx::QueryBuilder::<$database>::new("UPDATE lake_dropped SET files_gone = 1 WHERE 1 = 1");
                Self::push_target(&mut query, target);
                query.build().execute(&mut *transaction).await?;
                Ok(transaction.commit().await?)
            }

            async fn list_dropped(&self, space: Option<&Space>) -> Result<Vec<DroppedRecord>, sqlx::Error> {
                let mut query = sqlx::QueryBuilder::<$database>::new("SELECT * FROM lake_dropped WHERE 1 = 1");
                if let Some(space) = space {
                    Self::push_target(&mut query, &OperationTarget::space(space.clone()));
                }
                query.push(" ORDER BY domain, kind, whole_space DESC, type");
                query.build().fetch_all(&self.pool).await?.iter().map(steering::rows::dropped).collect()
            }

            async fn allows(&self, target: &OperationTarget) -> Result<u64, sql::Failure> {
                let mut transaction = self.begin().await?;
                let mut query = sqlx::QueryBuilder::<$database>::new("DELETE FROM lake_dropped WHERE files_gone = 1");
                Self::push_target(&mut query, target);
                if target.document_type.is_some() {
                    query.push(" AND whole_space = 0");
                }
                let allowed = query.build().execute(&mut *transaction).await?.rows_affected();
                transaction.commit().await?;
                Ok(allowed)
            }
        }
    };
}
pub(in crate::metastore) use dropped_statements;
