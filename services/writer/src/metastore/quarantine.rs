//! The statements about the quarantine, once for both databases.

/// Adds them to an adapter that has the statements of [`super::sql`].
macro_rules! quarantine_statements {
    ($adapter:ident, $database:ty) => {
        impl $adapter {
            /// Adds the conditions of a filter of the quarantine.
            fn push_filter(query: &mut sqlx::QueryBuilder<$database>, filter: &$crate::metastore::QuarantineFilter) {
                let kind = filter.kind.map(|kind| kind.name().to_owned());
                let texts = [
                    (" AND stage = ", &filter.stage),
                    (" AND reason = ", &filter.reason),
                    (" AND domain = ", &filter.domain),
                    (" AND kind = ", &kind),
                    (" AND type = ", &filter.document_type),
                    (" AND document_id = ", &filter.document_id),
                    (" AND fingerprint = ", &filter.fingerprint),
                ];
                for (condition, value) in texts {
                    if let Some(value) = value {
                        query.push(condition).push_bind(storable(value).into_owned());
                    }
                }
                for (condition, instant) in [(" AND at_us >= ", filter.from_us), (" AND at_us < ", filter.until_us)] {
                    if let Some(instant) = instant {
                        query.push(condition).push_bind(instant);
                    }
                }
                if let Some(domains) = &filter.domains {
                    Self::push_among(query, "domain", domains.iter().map(|domain| storable(domain).into_owned()));
                }
                if filter.is_replayed {
                    query.push(" AND replayed_us > 0 AND replay_refused = ''");
                }
            }

            /// Entries that a filter matches, with at most so many bytes of what could not be handled; with none of them, the detail is left out as
            /// well.
            fn select_quarantined(
                filter: &$crate::metastore::QuarantineFilter,
                payload_bytes_max: u32,
            ) -> sqlx::QueryBuilder<$database> {
                let mut query = sqlx::QueryBuilder::<$database>::new("SELECT ");
                query.push(if payload_bytes_max == 0 { "'' AS detail" } else { "detail" }).push(
                    ", fingerprint, stage, reason, domain, kind, type, document_id, topic, partition_id, offset_id, \
                     published_us, fetched_us, at_us, attempts, first_us, replayed_us, replayed_attempts, replayed_observed_us, \
                     replay_refused, CAST(LENGTH(payload) AS BIGINT) AS payload_bytes, COALESCE(SUBSTR(payload, 1, CAST(",
                );
                query.push_bind(i64::from(payload_bytes_max.min(i32::MAX as u32)));
                query.push(" AS INTEGER)), payload) AS payload FROM quarantine WHERE 1 = 1");
                Self::push_filter(&mut query, filter);
                query
            }

            async fn quarantine_behind(
                &self,
                filter: &$crate::metastore::QuarantineFilter,
                behind: Option<&Behind>,
                limit: u32,
            ) -> Result<Vec<QuarantineRecord>, sqlx::Error> {
                let mut query = Self::select_quarantined(filter, 0);
                if let Some(behind) = behind {
                    query.push(" AND (at_us < ").push_bind(behind.at_us);
                    query.push(" OR (at_us = ").push_bind(behind.at_us);
                    query.push(" AND fingerprint > ").push_bind(behind.id.clone()).push("))");
                }
                query.push(" ORDER BY at_us DESC, fingerprint LIMIT ").push_bind(i64::from(limit));
                query.build().fetch_all(&self.pool).await?.iter().map(rows::quarantined).collect()
            }

            async fn quarantine_one(
                &self,
                fingerprint: &str,
                payload_bytes_max: u32,
            ) -> Result<Option<QuarantineRecord>, sqlx::Error> {
                let filter = $crate::metastore::QuarantineFilter {
                    fingerprint: Some(fingerprint.to_owned()),
                    ..$crate::metastore::QuarantineFilter::default()
                };
                let mut query = Self::select_quarantined(&filter, payload_bytes_max);
                query.build().fetch_optional(&self.pool).await?.map(|row| rows::quarantined(&row)).transpose()
            }

            async fn grouped_quarantine(
                &self,
                filter: &$crate::metastore::QuarantineFilter,
                limit: u32,
            ) -> Result<Vec<QuarantineGroup>, sqlx::Error> {
                let mut query = sqlx::QueryBuilder::<$database>::new(
                    "SELECT reason, stage, domain, COUNT(*) AS entries, CAST(SUM(LENGTH(payload)) AS BIGINT) AS payload_bytes, \
                     MIN(at_us) AS oldest_us, MAX(at_us) AS newest_us, \
                     CAST(SUM(CASE WHEN replayed_us > 0 AND replay_refused = '' AND attempts = replayed_attempts THEN 1 ELSE 0 END) \
                     AS BIGINT) AS replayed FROM quarantine WHERE 1 = 1",
                );
                Self::push_filter(&mut query, filter);
                query.push(" GROUP BY reason, stage, domain ORDER BY entries DESC, reason, stage, domain LIMIT ");
                query.push_bind(i64::from(limit));
                query.build().fetch_all(&self.pool).await?.iter().map(rows::quarantine_group).collect()
            }

            /// In portions, so that no transaction is long.
            async fn set_replayed(&self, marks: &[$crate::metastore::ReplayMark]) -> Result<(), sqlx::Error> {
                for chunk in marks.chunks(500) {
                    let mut transaction = self.pool.begin().await?;
                    for mark in chunk {
                        let text = Self::statement(
                            "UPDATE quarantine SET replayed_us = {now}, replayed_attempts = attempts, replayed_observed_us = $2, \
                             replay_refused = $3 WHERE fingerprint = $1",
                        );
                        sqlx::query(text)
                            .bind(mark.fingerprint.clone())
                            .bind(mark.observed_us)
                            .bind(storable(&mark.refused).into_owned())
                            .execute(&mut *transaction)
                            .await?;
                    }
                    transaction.commit().await?;
                }
                Ok(())
            }

            /// In portions, so that no statement has too many values; all of them or none.
            async fn remove_quarantined(&self, entries: &[(String, i64)]) -> Result<u64, sqlx::Error> {
                let mut removed = 0;
                let mut transaction = self.pool.begin().await?;
                for chunk in entries.chunks(1_000) {
                    let mut query = sqlx::QueryBuilder::<$database>::new("DELETE FROM quarantine WHERE (fingerprint, at_us) IN (");
                    query.push_values(chunk, |mut row, (fingerprint, at_us)| {
                        row.push_bind(fingerprint.clone()).push_bind(*at_us);
                    });
                    removed += query.push(")").build().execute(&mut *transaction).await?.rows_affected();
                }
                transaction.commit().await?;
                Ok(removed)
            }

            async fn store_quarantined(&self, stage: &str, entry: &lake_proto::queue::v1::Quarantined) -> Result<(), sqlx::Error> {
                let lineage = entry.lineage.clone().unwrap_or_default();
                let kind = lake_shared::identity::Kind::from_proto(entry.kind);
                // Of a record that is kept out nothing is stored; where its kind is not known, it may be any.
                let hash = |of: lake_shared::identity::Kind| {
                    let space = lake_shared::identity::Space { domain: entry.domain.as_str().into(), kind: kind.unwrap_or(of) };
                    $crate::metastore::erasures::record_ids::erasure_hash(&space, &entry.id)
                };
                let hashes = lake_shared::identity::Kind::ALL.map(hash);
                sqlx::query(
                    "INSERT INTO quarantine (fingerprint, stage, reason, detail, domain, kind, type, document_id, payload, \
                     topic, partition_id, offset_id, published_us, fetched_us, at_us, first_us) \
                     SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $15 WHERE NOT EXISTS \
                     (SELECT 1 FROM lake_erasure WHERE id_hash IN ($16, $17, $18) AND allowed_us IS NULL) \
                     ON CONFLICT (fingerprint) DO UPDATE SET attempts = quarantine.attempts + 1, detail = excluded.detail, \
                     payload = excluded.payload, topic = excluded.topic, partition_id = excluded.partition_id, \
                     offset_id = excluded.offset_id, published_us = excluded.published_us, fetched_us = excluded.fetched_us, \
                     at_us = excluded.at_us WHERE excluded.at_us > quarantine.at_us",
                )
                .bind($crate::metastore::quarantine_fingerprint(stage, entry))
                .bind(storable(stage).into_owned())
                .bind(storable(&entry.reason).into_owned())
                .bind(storable(&entry.detail).into_owned())
                .bind(storable(&entry.domain).into_owned())
                .bind(kind.map_or("", |kind| kind.name()))
                .bind(storable(&entry.r#type).into_owned())
                .bind(storable(&entry.id).into_owned())
                .bind(entry.payload.to_vec())
                .bind(storable(&lineage.topic).into_owned())
                .bind(i64::from(lineage.partition))
                .bind(lineage.offset)
                .bind(lineage.published_us)
                .bind(lineage.fetched_us)
                .bind(entry.quarantined_us)
                .bind(hashes[0].clone())
                .bind(hashes[1].clone())
                .bind(hashes[2].clone())
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
