//! The statements about policies of tables, once for both databases.

/// Adds them to an adapter that has the statements of [`crate::metastore::sql`].
macro_rules! policy_statements {
    ($adapter:ident, $database:ty) => {
        impl $adapter {
            async fn keep_policy(&self, table: &str, policy: &TablePolicy, asked_by: &str) -> Result<(), sqlx::Error> {
                let table = storable(table).into_owned();
                if *policy == TablePolicy::default() {
                    sqlx::query("DELETE FROM lake_policy WHERE table_name = $1").bind(table).execute(&self.pool).await?;
                    return Ok(());
                }
                let text = Self::statement(
                    "INSERT INTO lake_policy (table_name, deletion_vectors, compaction, retention_hours, since_us, asked_by) \
                     VALUES ($1, $2, $3, $4, {now}, $5) ON CONFLICT (table_name) DO UPDATE SET \
                     deletion_vectors = excluded.deletion_vectors, compaction = excluded.compaction, \
                     retention_hours = excluded.retention_hours, since_us = excluded.since_us, asked_by = excluded.asked_by",
                );
                let hours = policy.retention_hours.map(|hours| i64::try_from(hours).unwrap_or(i64::MAX));
                sqlx::query(text)
                    .bind(table)
                    .bind(policy.deletion_vectors.map(DeletionVectors::name))
                    .bind(policy.compaction.map(i64::from))
                    .bind(hours)
                    .bind(storable(asked_by).into_owned())
                    .execute(&self.pool)
                    .await?;
                Ok(())
            }

            async fn kept_policies(&self) -> Result<Vec<PolicyRecord>, sqlx::Error> {
                let found = sqlx::query("SELECT * FROM lake_policy ORDER BY table_name").fetch_all(&self.pool).await?;
                found.iter().map(steering::rows::policy).collect()
            }
        }
    };
}
pub(in crate::metastore) use policy_statements;
