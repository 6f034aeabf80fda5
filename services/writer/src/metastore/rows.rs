//! Translates rows of either database into the values of the port.

use std::borrow::Cow;

use lake_proto::queue::v1::{Lineage, Quarantined};
use lake_shared::identity::{Kind, Space, TableKey};
use sqlx::{ColumnIndex, Decode, Row, Type};

use super::{
    Lease, QuarantineGroup, QuarantineRecord, RecordedDelays, RecordedState, RememberedTombstone, Replayed,
    StoredTombstone, TableRecord,
};
use crate::order_guard::TombstoneOrder;

/// Text as a database can store it: Postgres refuses the character NUL.
pub(super) fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\u{0}') { Cow::Owned(text.replace('\u{0}', "\u{fffd}")) } else { Cow::Borrowed(text) }
}

/// A database row of either kind.
pub(super) trait Fields {
    fn text(&self, name: &'static str) -> Result<String, sqlx::Error>;
    fn number(&self, name: &'static str) -> Result<i64, sqlx::Error>;
    fn maybe(&self, name: &'static str) -> Result<Option<i64>, sqlx::Error>;
    fn maybe_text(&self, name: &'static str) -> Result<Option<String>, sqlx::Error>;
    fn bytes(&self, name: &'static str) -> Result<Vec<u8>, sqlx::Error>;
}

impl<R: Row> Fields for R
where
    for<'r> String: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<i64>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Option<String>: Decode<'r, R::Database> + Type<R::Database>,
    for<'r> Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
    &'static str: ColumnIndex<R>,
{
    fn text(&self, name: &'static str) -> Result<String, sqlx::Error> {
        self.try_get(name)
    }
    fn number(&self, name: &'static str) -> Result<i64, sqlx::Error> {
        self.try_get(name)
    }
    fn maybe(&self, name: &'static str) -> Result<Option<i64>, sqlx::Error> {
        self.try_get(name)
    }
    fn maybe_text(&self, name: &'static str) -> Result<Option<String>, sqlx::Error> {
        self.try_get(name)
    }
    fn bytes(&self, name: &'static str) -> Result<Vec<u8>, sqlx::Error> {
        self.try_get(name)
    }
}

pub(super) fn corrupt(what: String) -> sqlx::Error {
    sqlx::Error::Decode(what.into())
}

pub(super) fn kind(name: &str) -> Result<Kind, sqlx::Error> {
    Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| corrupt(format!("{name} is no kind")))
}

pub(super) fn space(row: &impl Fields) -> Result<Space, sqlx::Error> {
    Ok(Space { domain: row.text("domain")?.into(), kind: kind(&row.text("kind")?)? })
}

pub(super) fn table(row: &impl Fields) -> Result<TableRecord, sqlx::Error> {
    Ok(TableRecord {
        key: TableKey { space: space(row)?, document_type: row.text("type")?.into() },
        name: row.text("name")?,
        path: row.text("path")?,
        location: row.text("location")?,
        state: RecordedState {
            version: row.maybe("version")?,
            schema: row.maybe_text("schema")?,
            rows: row.number("row_count")?,
            files: row.number("files")?,
            bytes: row.number("bytes")?,
            newest_published_us: row.maybe("newest_published_us")?,
            newest_fetched_us: row.maybe("newest_fetched_us")?,
            delays: delays(row)?,
            last_commit_us: row.maybe("last_commit_us")?,
        },
        created_us: row.number("created_us")?,
    })
}

fn delays(row: &impl Fields) -> Result<Option<RecordedDelays>, sqlx::Error> {
    let Some(p50_us) = row.maybe("delay_p50_us")? else { return Ok(None) };
    let percentile = |name| row.maybe(name).map(|us| us.unwrap_or(p50_us));
    let (p95_us, p99_us) = (percentile("delay_p95_us")?, percentile("delay_p99_us")?);
    Ok(Some(RecordedDelays { p50_us, p95_us, p99_us, rows: row.maybe("delay_rows")?.unwrap_or_default() }))
}

/// Domain, kind and type of a table as they are stored.
pub(super) fn stored_key(key: &TableKey) -> (String, &'static str, String) {
    let domain = storable(key.space.domain.as_str()).into_owned();
    (domain, key.space.kind.name(), storable(key.document_type.as_str()).into_owned())
}

pub(super) fn id_hash(row: &impl Fields) -> Result<u128, sqlx::Error> {
    let bytes = row.bytes("id_hash")?;
    let bytes = <[u8; 16]>::try_from(bytes.as_slice()).map_err(|_| corrupt("an id hash has not 16 bytes".into()))?;
    Ok(u128::from_be_bytes(bytes))
}

pub(super) fn tombstone(row: &impl Fields) -> Result<StoredTombstone, sqlx::Error> {
    let order = TombstoneOrder { version_us: row.maybe("version_us")?, observed_us: row.number("observed_us")? };
    Ok(StoredTombstone { id_hash: id_hash(row)?, id: row.text("id")?, order, reason: row.text("reason")? })
}

pub(super) fn remembered(row: &impl Fields) -> Result<RememberedTombstone, sqlx::Error> {
    Ok(RememberedTombstone { space: space(row)?, tombstone: tombstone(row)?, remembered_us: row.number("at_us")? })
}

pub(super) fn quarantined(row: &impl Fields) -> Result<QuarantineRecord, sqlx::Error> {
    let lineage = Lineage {
        topic: row.text("topic")?,
        partition: i32::try_from(row.number("partition_id")?).unwrap_or(-1),
        offset: row.number("offset_id")?,
        published_us: row.number("published_us")?,
        fetched_us: row.number("fetched_us")?,
    };
    let (kind_name, at_us, first_us) = (row.text("kind")?, row.number("at_us")?, row.number("first_us")?);
    let replayed = Replayed {
        at_us: row.number("replayed_us")?,
        attempts: row.number("replayed_attempts")?,
        observed_us: row.maybe("replayed_observed_us")?,
        refused: row.text("replay_refused")?,
    };
    Ok(QuarantineRecord {
        fingerprint: row.text("fingerprint")?,
        stage: row.text("stage")?,
        entry: Quarantined {
            reason: row.text("reason")?,
            detail: row.text("detail")?,
            domain: row.text("domain")?,
            kind: kind(&kind_name).map_or(0, |kind| kind.to_proto() as i32),
            r#type: row.text("type")?,
            id: row.text("document_id")?,
            payload: row.bytes("payload")?.into(),
            lineage: (lineage != Lineage::default()).then_some(lineage),
            quarantined_us: at_us,
        },
        attempts: row.number("attempts")?,
        payload_bytes: row.number("payload_bytes")?,
        // A writer of an earlier version keeps none.
        first_us: if first_us == 0 { at_us } else { first_us },
        replayed: (replayed.at_us > 0).then_some(replayed),
    })
}

pub(super) fn quarantine_group(row: &impl Fields) -> Result<QuarantineGroup, sqlx::Error> {
    Ok(QuarantineGroup {
        reason: row.text("reason")?,
        stage: row.text("stage")?,
        domain: row.text("domain")?,
        entries: row.number("entries")?,
        payload_bytes: row.number("payload_bytes")?,
        oldest_us: row.number("oldest_us")?,
        newest_us: row.number("newest_us")?,
        replayed: row.number("replayed")?,
    })
}

pub(super) fn lease(row: &impl Fields) -> Result<Lease, sqlx::Error> {
    Ok(Lease {
        name: row.text("name")?,
        owner: row.text("owner")?,
        address: row.text("address")?,
        epoch: row.number("epoch")?,
        acquired_us: row.number("acquired_us")?,
        expires_us: row.number("expires_us")?,
        wanted_us: row.number("wanted_us")?,
    })
}
