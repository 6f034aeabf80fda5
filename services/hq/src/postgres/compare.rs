//! Sums over documents, made by HQ's databases: what stands for each is computed in SQL as [`lake_shared::comparison`] does it, so one row leaves the
//! database for each bucket. In stretches by primary key, as [`super::scan`] reads them: every statement is short and has its turn.

use std::sync::Arc;

use lake_shared::comparison::{BucketSum, SEPARATOR, time_columns, valid_bucket_count};
use lake_shared::identity::{DocumentType, FORM_DESIGNER_PREFIX, Kind};
use sqlx::Row;
use sqlx::postgres::PgRow;

use super::database::Database;
use super::key::Key;
use super::scan::{self, Way};
use crate::scan::ScanScope;
use crate::scan::compared::{Compared, ComparedScope, ComparedStretch, DocumentState, NumberedSum};
use crate::source::{Hindrance, SourceError};

/// Documents that are looked at for a few of them.
const LOOKED_AT_ONCE: usize = 200_000;

/// What is read of a stretch.
#[derive(Clone, Copy)]
enum Wanted {
    Sums,
    /// The documents of some buckets.
    States,
}

/// Microseconds since 1970 of a column, exactly in every version of Postgres: before 14 `extract` answers with a floating-point number.
fn microseconds(column: &str) -> String {
    let utc = format!("({column} at time zone 'UTC')");
    format!(
        "case when isfinite({column}) then extract(epoch from date_trunc('minute', {utc}))::bigint * 1000000 \
         + extract(microseconds from {utc})::bigint end"
    )
}

/// What is compared of a document of a kind: its id, type and times.
fn columns(kind: Kind) -> String {
    let table = scan::table(kind);
    let document_type = match (kind, table.document_type) {
        (Kind::Form, Some(column)) => {
            let (prefix, length) = (FORM_DESIGNER_PREFIX, FORM_DESIGNER_PREFIX.len());
            format!(
                "case when left({column}, {length}) = '{prefix}' then substr({column}, {}) else {column} end",
                length + 1
            )
        }
        (_, Some(column)) => column.to_owned(),
        (_, None) => format!("'{}'", DocumentType::location()),
    };
    let [first, second] = time_columns(kind).map(|column| column.map_or_else(|| "null::bigint".into(), microseconds));
    format!(
        "{}::text as document_id, ({document_type})::text as document_type, ({first}) as first_us, ({second}) as second_us",
        table.id
    )
}

/// The conditions of a scope, and the number of the next parameter.
fn conditions(scope: &ScanScope) -> (String, usize) {
    let (conditions, next) = scan::table(scope.kind).conditions(scope);
    // What a scan meets, the document rules judge; here nobody does.
    let also = match scope.kind {
        Kind::Form => " and deleted_on is null",
        Kind::Case | Kind::Location => "",
    };
    (conditions + also, next)
}

/// The documents of a stretch, with key and bucket.
fn documents(scope: &ComparedScope, way: Way, bucket_count: u32, wanted: Wanted) -> String {
    let table = scan::table(scope.scan.kind);
    let (id, (conditions, next)) = (table.id, conditions(&scope.scan));
    let mask = valid_bucket_count(bucket_count) - 1;
    let bucket = format!("('x' || substr(md5({id}), 1, 6))::bit(24)::int & {mask}");
    let [after, up_to, from_id, until_id, limit] = [next, next + 1, next + 2, next + 3, next + 4];
    let of_buckets = match wanted {
        Wanted::Sums => String::new(),
        Wanted::States => format!(" and ({bucket}) = any(${}::int[])", next + 5),
    };
    format!(
        "select id::bigint as key, ({bucket}) as bucket, {} from {} where {conditions} and id > ${after}::bigint and id <= ${up_to}::bigint \
         and (${from_id}::text = '' or {id}::text collate \"C\" >= ${from_id}::text) \
         and (${until_id}::text = '' or {id}::text collate \"C\" < ${until_id}::text){of_buckets} order by {} limit ${limit}",
        columns(scope.scan.kind),
        table.name,
        way.order()
    )
}

fn statement(scope: &ComparedScope, way: Way, bucket_count: u32, wanted: Wanted) -> Arc<str> {
    let documents = documents(scope, way, bucket_count, wanted);
    match wanted {
        Wanted::States => documents.into(),
        Wanted::Sums => {
            let separator = u32::from(SEPARATOR);
            let time = |name: &str| format!("coalesce({name}::text, '')");
            let text = ["document_id".to_owned(), "document_type".to_owned(), time("first_us"), time("second_us")]
                .join(&format!(" || chr({separator}) || "));
            format!(
                "select bucket, count(*)::bigint, sum(fingerprint)::text, max(key) from (select key, bucket, \
                 ('x' || substr(md5({text}), 1, 16))::bit(64)::bigint as fingerprint from ({documents}) as documents) as fingerprints \
                 group by bucket"
            )
            .into()
        }
    }
}

/// The sum of a bucket, and its last key.
fn sum(row: &PgRow) -> Result<(NumberedSum, i64), sqlx::Error> {
    let (bucket, documents): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
    let sum: i128 = row.try_get::<&str, _>(2)?.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    // Modulo 2^64, as the sums of the lake are.
    let sum = BucketSum { documents: documents.unsigned_abs(), sum: sum as u64 };
    Ok(((bucket.unsigned_abs(), sum), row.try_get(3)?))
}

/// A document, whose columns begin with this one.
fn state(row: &PgRow, first: usize) -> Result<DocumentState, sqlx::Error> {
    Ok(DocumentState {
        id: row.try_get(first)?,
        document_type: row.try_get::<Option<String>, _>(first + 1)?.unwrap_or_default().into(),
        times_us: [row.try_get(first + 2)?, row.try_get(first + 3)?],
    })
}

/// Sums of a stretch; see [`crate::scan::compared::HqComparison::sum_stretch`].
pub(super) async fn sums(
    database: &Database,
    scope: &ComparedScope,
    stretch: ComparedStretch<'_>,
) -> Result<Compared<NumberedSum>, SourceError> {
    let mut way = scan::way(database, &scope.scan, stretch.documents_max).await?;
    loop {
        match sums_of(database, scope, stretch, way).await {
            Err(error) if is_too_slow(&error) && way != way.shorter() => way = shorter(way, &error),
            outcome => return outcome,
        }
    }
}

/// Documents of a stretch; see [`crate::scan::compared::HqComparison::stretch_states`].
pub(super) async fn states(
    database: &Database,
    scope: &ComparedScope,
    stretch: ComparedStretch<'_>,
    buckets: &[u32],
) -> Result<Compared<DocumentState>, SourceError> {
    let buckets: Vec<i32> = buckets.iter().filter_map(|bucket| i32::try_from(*bucket).ok()).collect();
    let mut way = scan::way(database, &scope.scan, LOOKED_AT_ONCE.max(stretch.documents_max)).await?;
    loop {
        match states_of(database, scope, stretch, &buckets, way).await {
            Err(error) if is_too_slow(&error) && way != way.shorter() => way = shorter(way, &error),
            outcome => return outcome,
        }
    }
}

fn is_too_slow(error: &SourceError) -> bool {
    matches!(error, SourceError::AskLess { hindrance: Hindrance::TooSlow, .. })
}

fn shorter(way: Way, error: &SourceError) -> Way {
    tracing::info!(%error, ?way, "a shorter stretch is compared");
    way.shorter()
}

async fn sums_of(
    database: &Database,
    scope: &ComparedScope,
    stretch: ComparedStretch<'_>,
    way: Way,
) -> Result<Compared<NumberedSum>, SourceError> {
    let ComparedStretch { after, documents_max, bucket_count, .. } = stretch;
    let kind = scope.scan.kind;
    let mut snapshot = database.snapshot(&format!("sum up {kind}s")).await?;
    let (up_to, limit) = (way.up_to(after), limit(documents_max));
    let (mut found, mut last_found, mut documents) = (Vec::new(), after, 0);
    let key = Key::Compared { scope, after, up_to, limit, buckets: None };
    snapshot
        .read(&statement(scope, way, bucket_count, Wanted::Sums), key, |row| {
            let (of_bucket, last) = sum(row)?;
            documents += of_bucket.1.documents;
            last_found = last_found.max(last);
            found.push(of_bucket);
            Ok(())
        })
        .await?;
    let last = scan::last_key(&mut snapshot, scan::table(kind).name, after).await?;
    snapshot.finish().await;
    let is_full = documents >= limit.unsigned_abs();
    let (reached, finished) = scan::reached(is_full.then_some(last_found), after, up_to, last);
    Ok(Compared { found, reached, finished })
}

async fn states_of(
    database: &Database,
    scope: &ComparedScope,
    stretch: ComparedStretch<'_>,
    buckets: &[i32],
    way: Way,
) -> Result<Compared<DocumentState>, SourceError> {
    let ComparedStretch { after, documents_max, bucket_count, .. } = stretch;
    let kind = scope.scan.kind;
    let mut snapshot = database.snapshot(&format!("compare {kind}s")).await?;
    let (up_to, limit) = (way.up_to(after), limit(documents_max));
    let (mut found, mut last_found) = (Vec::new(), after);
    let key = Key::Compared { scope, after, up_to, limit, buckets: Some(buckets) };
    snapshot
        .read(&statement(scope, way, bucket_count, Wanted::States), key, |row| {
            last_found = row.try_get(0)?;
            found.push(state(row, 2)?);
            Ok(())
        })
        .await?;
    let last = scan::last_key(&mut snapshot, scan::table(kind).name, after).await?;
    snapshot.finish().await;
    let is_full = found.len() as u64 >= limit.unsigned_abs();
    let (reached, finished) = scan::reached(is_full.then_some(last_found), after, up_to, last);
    Ok(Compared { found, reached, finished })
}

fn limit(documents_max: usize) -> i64 {
    i64::try_from(documents_max.max(1)).unwrap_or(i64::MAX)
}

/// Documents by their ids; see [`crate::scan::compared::HqComparison::read_states`].
pub(super) async fn read(
    database: &Database,
    scope: &ScanScope,
    ids: &[String],
) -> Result<Vec<DocumentState>, SourceError> {
    let mut snapshot = database.snapshot(&format!("compare {} {}s", ids.len(), scope.kind)).await?;
    let (table, (conditions, next)) = (scan::table(scope.kind), conditions(scope));
    let text = format!(
        "select {} from {} where {conditions} and {} = any(${next}::text[])",
        columns(scope.kind),
        table.name,
        table.id
    );
    let mut found = Vec::new();
    snapshot
        .read(&text.into(), Key::IdsOf(scope, ids), |row| {
            found.push(state(row, 0)?);
            Ok(())
        })
        .await?;
    snapshot.finish().await;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope(kind: Kind, types: Option<&[&str]>) -> ComparedScope {
        let types = types.map(|types| types.iter().map(|&name| name.to_owned()).collect());
        ComparedScope::whole(ScanScope { domain: "d".into(), kind, types, from_us: None, until_us: None })
    }

    #[test]
    fn parameters_are_numbered_as_they_are_bound() {
        let typed = scope(Kind::Case, Some(&["t"]));
        let text = statement(&typed, Way::ByKey { span: 9 }, 128, Wanted::States);
        for part in [
            "domain = $1 and not deleted and type = any($2::text[])",
            "id > $3::bigint and id <= $4::bigint",
            "$5::text = '' or case_id::text collate \"C\" >= $5::text",
            "$6::text = '' or case_id::text collate \"C\" < $6::text",
            "::int & 127) = any($8::int[]) order by id limit $7",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let plain = statement(&scope(Kind::Form, None), Way::ByProject, 128, Wanted::Sums);
        assert!(plain.contains("state = 1 and deleted_on is null and id > $2::bigint"), "{plain}");
        assert!(plain.contains("order by (id + 0) limit $6) as documents") && !plain.contains("$7"), "{plain}");
    }

    #[test]
    fn every_kind_has_its_columns() {
        assert!(columns(Kind::Case).contains("(type)::text as document_type"));
        assert!(columns(Kind::Form).contains("substr(xmlns, 34)"), "{}", columns(Kind::Form));
        assert!(columns(Kind::Location).contains("('Location')::text"));
        assert!(columns(Kind::Location).ends_with("(null::bigint) as second_us"));
    }
}
