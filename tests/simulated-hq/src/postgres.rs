//! HQ's databases as real Postgres databases: one transaction per database for each group of mutations, with set-based statements.
//!
//! Applying the same mutations again changes nothing, so a group that failed half-way may be repeated.

use std::fmt::Write;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use lake_hq::source::Columns;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tracing::debug;

use crate::batch::{DatabaseBatch, MatchShape, TableBatch, by_shape, identity};
use crate::schema;
use crate::sharding::ShardMap;
use crate::turn::{Mutation, Table};

/// Rows per statement; bounds the memory of a statement, not the size of a transaction.
const ROWS_PER_STATEMENT: usize = 2_000;

/// HQ's main database and its shard databases.
#[derive(Clone, Debug)]
pub struct PostgresSink {
    main: PgPool,
    shards: Vec<PgPool>,
    map: ShardMap,
}

impl PostgresSink {
    /// Connects to the main database and to the database of each inclusive shard range `(first, last, url)`. Without ranges, everything
    /// is in the main database, as in small installations of HQ.
    ///
    /// # Errors
    ///
    /// When the ranges are no shard map, or a database does not answer.
    pub async fn connect(main_url: &str, shards: Vec<(u32, u32, String)>) -> Result<Self> {
        let map = ShardMap::new(shards.iter().map(|&(first, last, _)| (first, last)).collect())?;
        let main = connect(main_url).await.context("connect to the main database")?;
        let shards = try_join_all(shards.iter().map(|(first, last, url)| async move {
            connect(url).await.with_context(|| format!("connect to the database of shards {first}-{last}"))
        }));
        Ok(Self { main, shards: shards.await?, map })
    }

    /// Creates HQ's tables where they are missing.
    ///
    /// # Errors
    ///
    /// When a database does not answer or refuses.
    pub async fn create_schema(&self) -> Result<()> {
        if self.shards.is_empty() {
            return schema::create(&self.main, &[schema::MAIN, schema::SHARD]).await;
        }
        schema::create(&self.main, &[schema::MAIN]).await?;
        try_join_all(self.shards.iter().map(|shard| schema::create(shard, &[schema::SHARD]))).await?;
        Ok(())
    }

    /// The main database.
    pub fn main(&self) -> &PgPool {
        &self.main
    }

    /// The database that has the rows of this case, form or blob parent.
    pub fn database_of(&self, id: &str) -> &PgPool {
        self.map.database(id).map_or(&self.main, |place| &self.shards[place])
    }

    /// Does what concerns tables; blobs and users are passed over. On return everything is committed.
    ///
    /// # Errors
    ///
    /// When a database does not answer or refuses; other databases may have committed. It is safe to repeat.
    pub async fn apply(&self, mutations: &[Mutation]) -> Result<()> {
        let (main, shards) = self.batches(mutations);
        let targets = std::iter::once((&self.main, "main".to_owned(), main)).chain(
            self.shards
                .iter()
                .zip(self.map.ranges())
                .zip(shards)
                .map(|((pool, (first, last)), batch)| (pool, format!("shards {first}-{last}"), batch)),
        );
        let writes = targets.filter(|(.., batch)| !batch.is_empty()).map(|(pool, name, batch)| async move {
            write(pool, &batch).await.with_context(|| format!("write to the database {name}"))
        });
        try_join_all(writes).await?;
        Ok(())
    }

    /// Keeps account of a life that is played on these databases, so that it can be resumed: adds to its turns.
    ///
    /// # Errors
    ///
    /// When the main database does not answer or refuses.
    pub async fn add_turns(&self, life: &str, turns: u64) -> Result<()> {
        let statement = "insert into simulated_hq_life (name, turns) values ($1, $2) \
                         on conflict (name) do update set turns = simulated_hq_life.turns + excluded.turns";
        let turns = i64::try_from(turns).context("count turns")?;
        sqlx::query(statement).bind(life).bind(turns).execute(&self.main).await.context("add to the life's turns")?;
        Ok(())
    }

    /// How many turns of the life were played on these databases; `None` where it never began.
    ///
    /// # Errors
    ///
    /// When the main database does not answer or has no schema.
    pub async fn turns(&self, life: &str) -> Result<Option<u64>> {
        let statement = "select turns from simulated_hq_life where name = $1";
        let turns: Option<i64> = sqlx::query_scalar(statement)
            .bind(life)
            .fetch_optional(&self.main)
            .await
            .context("read the life's turns")?;
        turns.map(|turns| u64::try_from(turns).context("read the life's turns")).transpose()
    }

    fn batches(&self, mutations: &[Mutation]) -> (DatabaseBatch, Vec<DatabaseBatch>) {
        let mut main = DatabaseBatch::default();
        let mut shards = vec![DatabaseBatch::default(); self.shards.len()];
        let place = |table: Table, columns: &Columns| {
            let id = table.shard_column().and_then(|column| columns.get(column)?.as_str());
            (table.shard_column().is_some(), id.and_then(|id| self.map.database(id)))
        };
        for mutation in mutations {
            match mutation {
                Mutation::Put { table, row } => match place(*table, row) {
                    (true, Some(shard)) => shards[shard].put(*table, row.clone()),
                    _ => main.put(*table, row.clone()),
                },
                Mutation::Remove { table, matching } => match place(*table, matching) {
                    (true, Some(shard)) => shards[shard].remove(*table, matching.clone()),
                    // A removal that does not name the id concerns all shards.
                    (true, None) if !shards.is_empty() => {
                        shards.iter_mut().for_each(|shard| shard.remove(*table, matching.clone()));
                    }
                    _ => main.remove(*table, matching.clone()),
                },
                Mutation::PutBlob { .. }
                | Mutation::RemoveBlob { .. }
                | Mutation::PutUser { .. }
                | Mutation::RemoveUser { .. } => {}
            }
        }
        (main, shards)
    }
}

async fn connect(url: &str) -> Result<PgPool> {
    let options = PgConnectOptions::from_str(url).context("the address is no postgres:// URL")?;
    let options = options.application_name("simulated-hq").options([("client_min_messages", "warning")]);
    let pool = PgPoolOptions::new().max_connections(3).acquire_timeout(Duration::from_secs(10));
    Ok(pool.connect_with(options).await?)
}

async fn write(database: &PgPool, batch: &DatabaseBatch) -> Result<()> {
    let mut transaction = database.begin().await.context("begin")?;
    for (table, work) in batch.tables() {
        remove(&mut transaction, table, work).await?;
    }
    for (table, work) in batch.tables() {
        put(&mut transaction, table, work).await?;
    }
    transaction.commit().await.context("commit")
}

async fn remove(database: &mut PgConnection, table: Table, work: &TableBatch) -> Result<()> {
    for (shape, rows) in work.removals() {
        let gone = run(database, table, &removal_statement(table, &shape), &rows).await?;
        debug!(table = table.name(), gone, "rows removed");
    }
    Ok(())
}

async fn put(database: &mut PgConnection, table: Table, work: &TableBatch) -> Result<()> {
    for (columns, rows) in work.puts() {
        let (keyed, unkeyed): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| has_unique_key(table, row));
        if !keyed.is_empty() {
            run(database, table, &upsert_statement(table, &columns), &keyed).await?;
        }
        // No constraint finds the row to replace, or the same row from an earlier try: it has to go first.
        let identities: Vec<Columns> = unkeyed.iter().map(|row| identity(table, row)).collect();
        for (shape, same) in by_shape(&identities) {
            run(database, table, &removal_statement(table, &shape), &same).await?;
        }
        if !unkeyed.is_empty() {
            run(database, table, &insert_statement(table, &columns), &unkeyed).await?;
        }
    }
    Ok(())
}

/// Whether a unique constraint of the table's key columns identifies this row (a null is equal to nothing).
fn has_unique_key(table: Table, row: &Columns) -> bool {
    table != Table::FormOperation
        && table.key_columns().iter().all(|&column| row.get(column).is_some_and(|value| !value.is_null()))
}

async fn run(database: &mut PgConnection, table: Table, statement: &str, rows: &[&Columns]) -> Result<u64> {
    let mut affected = 0;
    for rows in rows.chunks(ROWS_PER_STATEMENT) {
        let rows = serde_json::to_string(rows).context("write rows as JSON")?;
        let outcome = sqlx::query(AssertSqlSafe(statement)).bind(rows).execute(&mut *database).await;
        affected += outcome.with_context(|| format!("write rows of {}", table.name()))?.rows_affected();
    }
    Ok(affected)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn list(columns: &[String]) -> String {
    columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", ")
}

fn insert_statement(table: Table, columns: &[String]) -> String {
    let (table, columns) = (table.name(), list(columns));
    format!("insert into {table} ({columns}) select {columns} from json_populate_recordset(null::{table}, $1::json)")
}

fn upsert_statement(table: Table, columns: &[String]) -> String {
    let key = table.key_columns();
    let mut statement = insert_statement(table, columns);
    let assignments: Vec<String> = columns
        .iter()
        .filter(|column| !key.contains(&column.as_str()))
        .map(|column| format!("{0} = excluded.{0}", quoted(column)))
        .collect();
    let action =
        if assignments.is_empty() { "nothing".to_owned() } else { format!("update set {}", assignments.join(", ")) };
    // Writing to a String cannot fail.
    let _ = write!(statement, " on conflict ({}) do {action}", key.join(", "));
    statement
}

fn removal_statement(table: Table, shape: &MatchShape) -> String {
    let conditions: Vec<String> = shape
        .iter()
        .map(|(column, is_null)| (quoted(column), is_null))
        .map(
            |(column, is_null)| {
                if *is_null { format!("t.{column} is null") } else { format!("t.{column} = r.{column}") }
            },
        )
        .collect();
    let conditions = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" and ") };
    let name = table.name();
    let removal =
        format!("delete from {name} t using json_populate_recordset(null::{name}, $1::json) r where {conditions}");
    if table != Table::BlobMeta {
        return removal;
    }
    // HQ logs removed blobs.
    let logged = "id, domain, parent_id, name, key, type_code, created_on";
    format!(
        "with gone as ({removal} returning t.*) insert into blobs_deletedblobmeta ({logged}, deleted_on) \
         select distinct on (id) {logged}, now() from gone on conflict (id) do nothing"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upserts_replace_all_but_the_key() {
        assert_eq!(
            upsert_statement(Table::CaseIndex, &["case_id".into(), "identifier".into(), "referenced_id".into()]),
            "insert into form_processor_commcarecaseindexsql (\"case_id\", \"identifier\", \"referenced_id\") \
             select \"case_id\", \"identifier\", \"referenced_id\" \
             from json_populate_recordset(null::form_processor_commcarecaseindexsql, $1::json) \
             on conflict (case_id, identifier) do update set \"referenced_id\" = excluded.\"referenced_id\""
        );
        assert!(upsert_statement(Table::Case, &["case_id".into()]).ends_with("do nothing"));
    }

    #[test]
    fn removals_compare_nulls() {
        assert_eq!(
            removal_statement(Table::CaseTransaction, &vec![("case_id".into(), false), ("form_id".into(), true)]),
            "delete from form_processor_casetransaction t \
             using json_populate_recordset(null::form_processor_casetransaction, $1::json) r \
             where t.\"case_id\" = r.\"case_id\" and t.\"form_id\" is null"
        );
    }
}
