//! Cases with many transactions, and cases with a long text.

use lake_simulated_hq::turn::ChangeMessage;
use lake_tests::system::RealParts;
use serde_json::json;
use sqlx::PgPool;

use super::words;

/// How often some of the cases change after all are in the lake, so that files pile up and are compacted.
pub const ROUNDS_OF_CHANGES: u64 = 12;
/// Every so-manieth case changes in a round.
const CHANGED_IN_A_ROUND: u64 = 100;
/// Cases that are put into HQ at once.
const PORTION: usize = 500;

/// Puts so many cases into HQ, each with so many transactions; the answer are the messages about them.
pub async fn with_transactions(parts: &RealParts, cases: u64, transactions: u64) -> anyhow::Result<Vec<ChangeMessage>> {
    let ids: Vec<String> = (0..cases).map(|number| format!("case-{number}")).collect();
    insert(parts, &ids, "{}").await?;
    for id in &ids {
        sqlx::query(
            "insert into form_processor_casetransaction (case_id, form_id, server_date, client_date, type, revoked, sync_log_id)
             select $1, md5($1 || n), now() - n * interval '1 minute', now() - n * interval '1 minute', 1, false, md5('sync' || n)
             from generate_series(1, $2::bigint) as n",
        )
        .bind(id)
        .bind(i64::try_from(transactions)?)
        .execute(parts.hq.postgres.database_of(id))
        .await?;
    }
    Ok(ids.iter().map(|id| message("case-sql", "person", id)).collect())
}

/// Puts so many cases into HQ, all with the same text of so many bytes in a property; the answer are the messages about them.
pub async fn with_equal_texts(parts: &RealParts, cases: u64, bytes: usize) -> anyhow::Result<Vec<ChangeMessage>> {
    let ids: Vec<String> = (0..cases).map(text_id).collect();
    insert(parts, &ids, &json!({"history": words::text(7, bytes), "visits": "0"}).to_string()).await?;
    Ok(ids.iter().map(|id| message("case-sql", "person", id)).collect())
}

/// Changes a property of some of them.
pub async fn change_some(parts: &RealParts, cases: u64, round: u64) -> anyhow::Result<Vec<ChangeMessage>> {
    let ids: Vec<String> = (0..cases).filter(|number| number % CHANGED_IN_A_ROUND == round).map(text_id).collect();
    for (pool, ids) in by_database(parts, &ids) {
        sqlx::query(
            "update form_processor_commcarecasesql set server_modified_on = now(),
             case_json = replace(case_json, '\"visits\":\"0\"', '\"visits\":\"' || $2 || '\"') where case_id = any($1)",
        )
        .bind(&ids)
        .bind((round + 1).to_string())
        .execute(pool)
        .await?;
    }
    Ok(ids.iter().map(|id| message("case-sql", "person", id)).collect())
}

fn text_id(number: u64) -> String {
    format!("text-{number}")
}

/// HQ's message about a document.
pub fn message(topic: &'static str, document_type: &str, id: &str) -> ChangeMessage {
    let value = json!({
        "document_id": id,
        "document_subtype": document_type,
        "domain": "peaks",
        "is_deletion": false,
        "publish_timestamp": chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
    });
    ChangeMessage { topic, key: Some(id.to_owned()), value: value.to_string().into_bytes() }
}

async fn insert(parts: &RealParts, ids: &[String], case_json: &str) -> anyhow::Result<()> {
    for portion in ids.chunks(PORTION) {
        for (pool, ids) in by_database(parts, portion) {
            sqlx::query(
                "insert into form_processor_commcarecasesql (case_id, domain, type, name, owner_id, modified_on, server_modified_on,
                   modified_by, closed, deleted, case_json)
                 select id, 'peaks', 'person', id, 'nobody', now(), now(), 'somebody', false, false, $2 from unnest($1::text[]) as id",
            )
            .bind(&ids)
            .bind(case_json)
            .execute(pool)
            .await?;
        }
    }
    Ok(())
}

/// Ids by the database that has them.
fn by_database<'p>(parts: &'p RealParts, ids: &[String]) -> Vec<(&'p PgPool, Vec<String>)> {
    let mut databases: Vec<(&PgPool, Vec<String>)> = Vec::new();
    for id in ids {
        let pool = parts.hq.postgres.database_of(id);
        match databases.iter_mut().find(|(known, _)| std::ptr::eq(*known, pool)) {
            Some((_, ids)) => ids.push(id.clone()),
            None => databases.push((pool, vec![id.clone()])),
        }
    }
    databases
}
