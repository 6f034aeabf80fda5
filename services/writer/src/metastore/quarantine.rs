//! The statements about the quarantine, once for both databases.

/// Adds them to an adapter that has the statements of [`super::sql`].
macro_rules! quarantine_statements {
    ($adapter:ident, $database:ty) => {
        impl $adapter {
            /// Conditions of a filter of the quarantine.
            fn filtered(
                select: &'static str,
                filter: &$crate::metastore::QuarantineFilter,
            ) -> sqlx::QueryBuilder<$database> {
                let mut query = sqlx::QueryBuilder::<$database>::new(select);
                let conditions = [
                    (" AND stage = ", &filter.stage),
                    (" AND reason = ", &filter.reason),
                    (" AND domain = ", &filter.domain),
                    (" AND document_id = ", &filter.document_id),
                ];
                for (condition, value) in conditions {
                    if let Some(value) = value {
                        query.push(condition).push_bind(value.clone());
                    }
                }
                query
            }

            async fn store_quarantined(&self, stage: &str, entry: &lake_proto::queue::v1::Quarantined) -> Result<(), sqlx::Error> {
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

            /// In portions, so that no transaction is long. Who has many entries loses some before others lose any.
            async fn keep_quarantine_within(
                &self,
                bounds: &$crate::metastore::QuarantineBounds,
            ) -> Result<u64, sqlx::Error> {
                let mut dropped = 0;
                loop {
                    let old = Self::statement(
                        "DELETE FROM quarantine WHERE fingerprint IN (SELECT fingerprint FROM quarantine \
                         WHERE at_us < {now} - $1 ORDER BY at_us LIMIT 1000)",
                    );
                    let gone = sqlx::query(old).bind(bounds.age_max_us).execute(&self.pool).await?.rows_affected();
                    dropped += gone;
                    if gone == 0 {
                        break;
                    }
                }
                // The newest entry of each domain stands first, then the second of each, and so on; the end is what goes.
                let beyond = "DELETE FROM quarantine WHERE fingerprint IN (SELECT fingerprint FROM \
                     (SELECT fingerprint, ROW_NUMBER() OVER place AS entries, SUM(size) OVER place AS bytes FROM \
                     (SELECT fingerprint, at_us, LENGTH(payload) AS size, \
                     ROW_NUMBER() OVER (PARTITION BY domain ORDER BY at_us DESC, fingerprint) AS place_in_domain \
                     FROM quarantine) AS placed \
                     WINDOW place AS (ORDER BY place_in_domain, at_us DESC, fingerprint ROWS UNBOUNDED PRECEDING)) AS counted \
                     WHERE entries > $1 OR bytes > $2)";
                let beyond = sqlx::query(beyond).bind(bounds.entries_max).bind(bounds.payload_bytes_max);
                Ok(dropped + beyond.execute(&self.pool).await?.rows_affected())
            }
        }
    };
}

pub(super) use quarantine_statements;
