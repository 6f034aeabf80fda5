//! The HQ of the benchmark: a main and two shard databases with HQ's own tables, filled with COPY, and its topics on Kafka.

use std::time::{Duration, Instant};

use anyhow::Context;
use chrono::Utc;
use lake_simulated_hq::kafka::KafkaSink;
use lake_simulated_hq::schema;
use lake_simulated_hq::sharding::ShardMap;
use lake_tests::parts::{Kafka, Postgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::cases::{OWNERS, Programme, case_id, domain_name, instant, owner_id};

/// Name, first and last shard of the shard databases.
pub const SHARDS: [(&str, u32, u32); 2] = [("hq_p1", 0, 511), ("hq_p2", 512, 1023)];
/// HQ's main database.
pub const MAIN: &str = "hq_main";
const PARTITIONS: i32 = 4;
/// Cases of one COPY, and messages that are published at once.
const PORTION: u64 = 10_000;
/// How often in a second changes are made.
const BEATS_A_SECOND: u64 = 20;

const COPIES: [&str; 3] = [
    "copy form_processor_commcarecasesql (case_id, domain, type, name, owner_id, opened_on, opened_by, modified_on, \
     server_modified_on, modified_by, closed, deleted, external_id, location_id, case_json) from stdin",
    "copy form_processor_commcarecaseindexsql (case_id, domain, identifier, referenced_id, referenced_type, relationship_id) from stdin",
    "copy form_processor_casetransaction (case_id, form_id, server_date, type, revoked) from stdin",
];

/// See the module.
pub struct Hq {
    programme: Programme,
    shards: Vec<PgConnection>,
    map: ShardMap,
    kafka: KafkaSink,
}

/// What a case takes, on average.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Its properties, as HQ stores them, bytes.
    pub properties: f64,
    /// Its row in HQ, as text, bytes.
    pub row: f64,
}

impl Hq {
    /// Makes databases, tables, locations and topics.
    pub async fn create(postgres: &Postgres, kafka: &Kafka, programme: Programme) -> anyhow::Result<Self> {
        let mut main = PgConnection::connect(&postgres.create_database(MAIN)?).await?;
        sqlx::raw_sql(schema::MAIN).execute(&mut main).await?;
        for domain in 0..programme.domains {
            sqlx::raw_sql(AssertSqlSafe(locations(domain))).execute(&mut main).await.context("make locations")?;
        }
        let mut shards = Vec::new();
        for (name, ..) in SHARDS {
            let mut shard = PgConnection::connect(&postgres.create_database(name)?).await?;
            sqlx::raw_sql(schema::SHARD).execute(&mut shard).await?;
            shards.push(shard);
        }
        let map = ShardMap::new(SHARDS.iter().map(|&(_, first, last)| (first, last)).collect())?;
        let kafka = KafkaSink::new(&kafka.bootstrap(), &[])?;
        kafka.create_topics(PARTITIONS, 1).await?;
        Ok(Self { programme, shards, map, kafka })
    }

    /// Puts so many cases into the databases.
    pub async fn fill(&mut self, cases: u64) -> anyhow::Result<Sizes> {
        let now = Utc::now();
        let mut bytes = 0;
        for first in (0..cases).step_by(PORTION as usize) {
            let mut lines: Vec<[String; 3]> = vec![<[String; 3]>::default(); self.shards.len()];
            for case in first..cases.min(first + PORTION) {
                let shard = self.map.database(&case_id(case)).unwrap_or_default();
                self.programme.copy_lines(case, now, &mut lines[shard]);
            }
            bytes += lines.iter().map(|lines| lines[0].len()).sum::<usize>();
            for (shard, lines) in self.shards.iter_mut().zip(lines) {
                for (statement, lines) in COPIES.into_iter().zip(lines) {
                    let mut copy = shard.copy_in_raw(statement).await?;
                    copy.send(lines.into_bytes()).await?;
                    copy.finish().await.context("fill HQ")?;
                }
            }
        }
        for shard in &mut self.shards {
            // Otherwise the server does it while something is measured.
            sqlx::raw_sql("vacuum analyze").execute(&mut *shard).await?;
        }
        let properties: usize = (0..cases.min(1_000)).map(|case| self.programme.case_json(case, 0).len()).sum();
        Ok(Sizes {
            properties: properties as f64 / cases.clamp(1, 1_000) as f64,
            row: bytes as f64 / cases.max(1) as f64,
        })
    }

    /// Publishes a message about each of so many cases.
    pub async fn announce(&self, cases: u64) -> anyhow::Result<()> {
        for first in (0..cases).step_by(PORTION as usize) {
            let messages: Vec<_> =
                (first..cases.min(first + PORTION)).map(|case| self.programme.message(case, Utc::now())).collect();
            self.kafka.publish(&messages).await?;
        }
        Ok(())
    }

    /// Changes so many cases in a second, as long as said, and publishes a message about each just after; each case changes once. Gives
    /// their number and how far the player fell behind at worst.
    pub async fn play(&mut self, rate: u64, seconds: u64) -> anyhow::Result<(u64, Duration)> {
        let began = Instant::now();
        let mut behind = Duration::ZERO;
        let mut changed = 0;
        for beat in 0..seconds * BEATS_A_SECOND {
            let due = began + Duration::from_secs_f64(beat as f64 / BEATS_A_SECOND as f64);
            behind = behind.max(due.elapsed());
            tokio::time::sleep_until(due.into()).await;
            let until = (beat + 1) * rate / BEATS_A_SECOND;
            self.change(changed..until).await?;
            changed = until;
        }
        Ok((changed, behind))
    }

    async fn change(&mut self, cases: std::ops::Range<u64>) -> anyhow::Result<()> {
        let now = instant(Utc::now());
        let mut of_shards = vec![(Vec::new(), Vec::new()); self.shards.len()];
        for case in cases.clone() {
            let id = case_id(case);
            let (ids, properties) = &mut of_shards[self.map.database(&id).unwrap_or_default()];
            ids.push(id);
            properties.push(self.programme.case_json(case, 1));
        }
        let writes = self.shards.iter_mut().zip(of_shards).map(|(shard, (ids, properties))| {
            let now = &now;
            async move {
                let mut transaction = shard.begin().await?;
                sqlx::query(
                    "update form_processor_commcarecasesql as held
                     set case_json = new.properties, server_modified_on = $3::timestamptz, modified_on = $3::timestamptz
                     from unnest($1::text[], $2::text[]) as new (id, properties) where held.case_id = new.id",
                )
                .bind(&ids)
                .bind(&properties)
                .bind(now)
                .execute(&mut *transaction)
                .await?;
                sqlx::query(
                    "insert into form_processor_casetransaction (case_id, form_id, server_date, type, revoked)
                     select id, gen_random_uuid()::text, $2::timestamptz, 1, false from unnest($1::text[]) as id",
                )
                .bind(&ids)
                .bind(now)
                .execute(&mut *transaction)
                .await?;
                transaction.commit().await
            }
        });
        futures::future::try_join_all(writes).await.context("change cases in HQ")?;
        let messages: Vec<_> = cases.map(|case| self.programme.message(case, Utc::now())).collect();
        self.kafka.publish(&messages).await
    }
}

/// Three levels, and the last one owns the cases.
fn locations(domain: u64) -> String {
    let name = domain_name(domain);
    let mut sql = String::new();
    let owner_prefix = owner_id(domain, 0);
    let owner_prefix = owner_prefix.trim_end_matches('0');
    for (level, (code, count, above)) in
        [("state", 2, 0), ("district", 10, 2), ("supervisor", OWNERS, 10)].into_iter().enumerate()
    {
        let prefix = if code == "supervisor" { owner_prefix.to_owned() } else { format!("{code}-{domain}-") };
        let above_prefix = format!("{}-{domain}-", if level == 1 { "state" } else { "district" });
        let parent_type = if level == 0 {
            "null".to_owned()
        } else {
            let above_code = if level == 1 { "state" } else { "district" };
            format!("(select id from locations_locationtype where domain = '{name}' and code = '{above_code}')")
        };
        let parent = if level == 0 {
            "null".to_owned()
        } else {
            format!("(select id from locations_sqllocation where location_id = '{above_prefix}' || n % {above})")
        };
        sql.push_str(&format!(
            "insert into locations_locationtype (domain, name, code, parent_type_id, administrative, shares_cases, view_descendants,
               expand_from_root, has_users, emergency_level, understock_threshold, overstock_threshold, last_modified)
             values ('{name}', '{code}', '{code}', {parent_type}, false, true, false, false, true, 0, 0, 0, now());
             insert into locations_sqllocation (domain, name, location_id, location_type_id, site_code, metadata, created_at,
               last_modified, is_archived, parent_id, stocks_all_products, user_id)
             select '{name}', '{code} ' || n, '{prefix}' || n,
               (select id from locations_locationtype where domain = '{name}' and code = '{code}'), '{prefix}' || n, '{{}}', now(),
               now(), false, {parent}, true, '' from generate_series(0, {last}) as n;\n",
            last = count - 1,
        ));
    }
    sql
}
