//! Locations, which are in the main database.
//!
//! Each method is one statement in a snapshot of its own: no transaction stays open while rows are processed. No statement
//! depends on the columns of django-mptt, which old installations still have.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sqlx::Row;
use sqlx::postgres::PgRow;

use super::database::Database;
use super::key::Key;
use super::records::storable;
use super::tables::{Table, TableNeed, find_tables, instant};
use crate::source::{
    LOCATIONS_OF_TYPE_MAX, LocationKeys, LocationNode, LocationRow, LocationRows, LocationStep, LocationTypeRow,
    SourceError, TakeTreeRow, TreeExtent, TreeRow, location_type_key,
};

const LOCATION: &str = "locations_sqllocation";
const LOCATION_TYPE: &str = "locations_locationtype";

const NEEDS: &[TableNeed] = &[
    TableNeed {
        name: LOCATION,
        columns: &[
            "id",
            "domain",
            "location_id",
            "location_type_id",
            "site_code",
            "is_archived",
            "last_modified",
            "parent_id",
        ],
        optional: false,
    },
    TableNeed { name: LOCATION_TYPE, columns: &["id", "domain", "name"], optional: false },
];

/// Name of the reader, for what it says of the tables.
const READER: &str = "locations";

/// Reads locations from the main database.
pub(super) struct LocationReader {
    database: Arc<Database>,
    statements: Mutex<Arc<Statements>>,
}

/// Chooses one of the statements.
type Choose = fn(&Statements) -> &Arc<str>;

struct Statements {
    rows_by_location_id: Arc<str>,
    rows_by_id: Arc<str>,
    ancestors: Arc<str>,
    children: Arc<str>,
    tree: Arc<str>,
    changes: Arc<str>,
    changes_and_count: Arc<str>,
    /// `$1` is microseconds.
    types: Arc<str>,
    /// `$1` is a list of two numbers: a type, and the location after which to go on.
    of_type: Arc<str>,
}

/// The earliest time that is asked for, microseconds: Postgres would refuse some that are much earlier.
const EARLIEST_US: i64 = 0;

impl LocationReader {
    /// Looks at the tables of the database and prepares the statements' texts.
    pub async fn connect(database: Arc<Database>) -> Result<Self, SourceError> {
        let statements = Statements::look(&database).await?;
        Ok(Self { database, statements: Mutex::new(Arc::new(statements)) })
    }

    /// See [`crate::source::HqDatabase::location_rows`].
    pub async fn rows(&self, keys: LocationKeys<'_>) -> Result<LocationRows, SourceError> {
        let (count, storable_ids);
        let (statement, key): (Choose, _) = match keys {
            LocationKeys::LocationIds(ids) => {
                storable_ids = storable(ids);
                count = ids.len();
                (|statements| &statements.rows_by_location_id, Key::Ids(&storable_ids))
            }
            LocationKeys::Ids(ids) => {
                count = ids.len();
                (|statements| &statements.rows_by_id, Key::Numbers(ids))
            }
        };
        let mut rows = Vec::with_capacity(count);
        let take = |row: &PgRow| {
            rows.push(location_row(row)?);
            Ok(())
        };
        let observed_us = self.read(&format!("read {count} locations"), statement, key, take).await?;
        Ok(LocationRows { observed_us, rows })
    }

    /// See [`crate::source::HqDatabase::location_ancestors`].
    pub async fn ancestors(&self, ids: &[i64]) -> Result<Vec<LocationStep>, SourceError> {
        let mut steps = Vec::new();
        let take = |row: &PgRow| {
            steps.push(LocationStep {
                id: row.try_get(0)?,
                location_id: row.try_get(1)?,
                domain: row.try_get(2)?,
                parent_id: row.try_get(3)?,
            });
            Ok(())
        };
        let action = format!("read the ways up from {} locations", ids.len());
        self.read(&action, |statements| &statements.ancestors, Key::Numbers(ids), take).await?;
        Ok(steps)
    }

    /// See [`crate::source::HqDatabase::location_children`].
    pub async fn children(&self, parent_ids: &[i64]) -> Result<Vec<(i64, i64)>, SourceError> {
        let mut children = Vec::new();
        let take = |row: &PgRow| {
            children.push((row.try_get(0)?, row.try_get(1)?));
            Ok(())
        };
        let action = format!("read what is below {} locations", parent_ids.len());
        self.read(&action, |statements| &statements.children, Key::Numbers(parent_ids), take).await?;
        Ok(children)
    }

    /// See [`crate::source::HqDatabase::location_tree`].
    pub async fn tree(
        &self,
        domain: &str,
        extent: TreeExtent<'_>,
        take: &mut TakeTreeRow<'_>,
    ) -> Result<i64, SourceError> {
        // Postgres has no NUL in text, so no domain is called like that.
        let stored = if domain.contains('\0') { "" } else { domain };
        let ids;
        let (what, statement, key): (_, Choose, _) = match extent {
            TreeExtent::Whole => ("the location tree", |statements| &statements.tree, Key::Domain(stored)),
            TreeExtent::Changed { since_us, location_ids, rows_max, count } => {
                ids = storable(location_ids);
                let limit = i64::try_from(rows_max).unwrap_or(i64::MAX);
                let statement: Choose = match count {
                    true => |statements| &statements.changes_and_count,
                    false => |statements| &statements.changes,
                };
                ("changed locations", statement, Key::Changes { domain: stored, since_us, ids: &ids, limit })
            }
        };
        let take = |row: &PgRow| {
            take(tree_row(row)?);
            Ok(())
        };
        self.read(&format!("read {what} of domain {domain}"), statement, key, take).await
    }

    /// See [`crate::source::HqDatabase::location_types`].
    pub async fn types(&self, since_us: i64) -> Result<Vec<LocationTypeRow>, SourceError> {
        let mut types = Vec::new();
        let take = |row: &PgRow| {
            types.push(LocationTypeRow {
                id: row.try_get(0)?,
                domain: row.try_get(1)?,
                name: row.try_get(2)?,
                code: row.try_get(3)?,
                last_modified_us: instant(row, 4)?.unwrap_or(0),
            });
            Ok(())
        };
        let since = Key::Since(since_us.max(EARLIEST_US));
        self.read("read location types", |statements| &statements.types, since, take).await?;
        Ok(types)
    }

    /// See [`crate::source::HqDatabase::locations_of_type`].
    pub async fn of_type(&self, type_id: i64, after: i64) -> Result<Vec<i64>, SourceError> {
        let mut ids = Vec::new();
        let take = |row: &PgRow| {
            ids.push(row.try_get(0)?);
            Ok(())
        };
        let key = [type_id, after];
        self.read("read the locations of a type", |statements| &statements.of_type, Key::Numbers(&key), take).await?;
        Ok(ids)
    }

    /// Runs one statement. The clock. Where the tables are others than before (HQ was brought to another version meanwhile), they are looked at
    /// again and the statement is tried once more; it has not given any row then.
    async fn read(
        &self,
        action: &str,
        statement: Choose,
        key: Key<'_>,
        mut take: impl FnMut(&PgRow) -> Result<(), sqlx::Error> + Send,
    ) -> Result<i64, SourceError> {
        let mut statements = Arc::clone(&self.statements.lock().unwrap_or_else(PoisonError::into_inner));
        let mut looked_again = false;
        loop {
            let mut snapshot = self.database.snapshot(action).await?;
            let observed_us = snapshot.observed_us()?;
            match snapshot.read(statement(&statements), key, &mut take).await {
                Ok(()) => {
                    snapshot.finish().await;
                    self.database.note_look(READER, &Ok(()));
                    return Ok(observed_us);
                }
                Err(failure) if looked_again || !snapshot.tables_are_others() => return Err(failure),
                Err(failure) => {
                    drop(snapshot);
                    tracing::warn!(error = %failure, "HQ's tables have changed; they are looked at again");
                    statements = Arc::new(Statements::look(&self.database).await?);
                    *self.statements.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&statements);
                }
            }
            looked_again = true;
        }
    }
}

impl Statements {
    /// Looks at the tables of the database and prepares the statements' texts.
    async fn look(database: &Database) -> Result<Self, SourceError> {
        let mut snapshot = database.snapshot("read HQ's tables").await?;
        let tables = find_tables(&mut snapshot, database.name(), NEEDS).await;
        database.note_look(READER, &tables);
        let tables = tables?;
        snapshot.finish().await;
        Ok(Self::new(&tables))
    }

    fn new(tables: &HashMap<&'static str, Table>) -> Self {
        let rows = format!("select {} from {LOCATION} l {JOIN_TYPE}", row_columns(tables));
        let types = format!("select {} from {LOCATION_TYPE} t where t.domain = $1", node_columns(tables, Shown::Type));
        let nodes = format!("select {} from {LOCATION} l {JOIN_TYPE}", node_columns(tables, Shown::Location));
        let changes = format!(
            "{types} union all ({nodes} where l.domain = $1 and (l.last_modified >= to_timestamp($2::bigint / 1000000.0) \
             or l.location_id = any($3)) limit $4)"
        );
        let count = format!("select {} from {LOCATION} l where l.domain = $1", node_columns(tables, Shown::Count));
        let saved = tables.get(LOCATION_TYPE).is_some_and(|table| table.has("last_modified"));
        let types_since = match saved {
            true => "t.last_modified >= to_timestamp($1::bigint / 1000000.0)",
            false => "$1::bigint is not null",
        };
        let type_columns = [
            ("id", "bigint"),
            ("domain", "text"),
            ("name", "text"),
            ("code", "text"),
            ("last_modified", "timestamptz"),
        ]
        .map(|(name, cast)| column(tables, "t", name, cast))
        .join(", ");
        Self {
            types: format!("select {type_columns} from {LOCATION_TYPE} t where {types_since}").into(),
            of_type: format!(
                "select l.id::bigint from {LOCATION} l where l.location_type_id = ($1::bigint[])[1] and l.id > ($1::bigint[])[2] \
                 order by l.id limit {LOCATIONS_OF_TYPE_MAX}"
            )
            .into(),
            rows_by_location_id: format!("{rows} where l.location_id = any($1)").into(),
            rows_by_id: format!("{rows} where l.id = any($1)").into(),
            // `union` drops what is there already, so a circle ends.
            ancestors: format!(
                "with recursive up (id, location_id, domain, parent_id) as (\
                 select l.id, l.location_id, l.domain, l.parent_id from {LOCATION} l where l.id = any($1) \
                 union select p.id, p.location_id, p.domain, p.parent_id from {LOCATION} p \
                 join up on p.id = up.parent_id and p.domain = up.domain) \
                 select id::bigint, location_id::text, domain::text, parent_id::bigint from up"
            )
            .into(),
            children: format!(
                "select c.id::bigint, c.parent_id::bigint from {LOCATION} c \
                 join {LOCATION} p on p.id = c.parent_id and p.domain = c.domain where c.parent_id = any($1)"
            )
            .into(),
            tree: format!("{types} union all {nodes} where l.domain = $1").into(),
            changes_and_count: format!("{changes} union all {count}").into(),
            changes: changes.into(),
        }
    }
}

const JOIN_TYPE: &str = "join locations_locationtype t on t.id = l.location_type_id";

/// A column, or null where it came to HQ later than this installation did.
fn column(tables: &HashMap<&'static str, Table>, alias: &str, name: &str, cast: &str) -> String {
    let table = if alias == "t" { LOCATION_TYPE } else { LOCATION };
    let there = tables.get(table).is_some_and(|table| table.has(name));
    if there { format!("{alias}.{name}::{cast}") } else { format!("null::{cast}") }
}

/// In the order of [`location_row`].
fn row_columns(tables: &HashMap<&'static str, Table>) -> String {
    let columns = [
        ("l", "id", "bigint"),
        ("l", "location_id", "text"),
        ("l", "domain", "text"),
        ("l", "name", "text"),
        ("t", "name", "text"),
        ("t", "code", "text"),
        ("l", "site_code", "text"),
        ("l", "external_id", "text"),
        ("l", "metadata", "text"),
        ("l", "latitude", "float8"),
        ("l", "longitude", "float8"),
        ("l", "is_archived", "boolean"),
        ("l", "archived_on", "timestamptz"),
        ("l", "last_modified", "timestamptz"),
        ("l", "parent_id", "bigint"),
    ];
    columns.map(|(alias, name, cast)| column(tables, alias, name, cast)).join(", ")
}

/// What a row of the tree's statement is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shown {
    Type,
    Location,
    Count,
}

/// In the order of [`tree_row`]. A type has no location id, and a count no type either.
fn node_columns(tables: &HashMap<&'static str, Table>, shown: Shown) -> String {
    let columns = [
        ("l", "id", "bigint"),
        ("t", "id", "bigint"),
        ("t", "name", "text"),
        ("l", "location_id", "text"),
        ("l", "name", "text"),
        ("l", "site_code", "text"),
        ("l", "latitude", "float8"),
        ("l", "longitude", "float8"),
        ("l", "is_archived", "boolean"),
        ("l", "last_modified", "timestamptz"),
        ("l", "parent_id", "bigint"),
        ("t", "code", "text"),
    ];
    let of = |(alias, name, cast)| match (shown, alias, name) {
        (Shown::Count, "l", "id") => "count(*)".to_owned(),
        (Shown::Count, ..) | (Shown::Type, "l", _) => format!("null::{cast}"),
        _ => column(tables, alias, name, cast),
    };
    columns.map(of).join(", ")
}

fn tree_row(row: &PgRow) -> Result<TreeRow<'_>, sqlx::Error> {
    let id: Option<i64> = row.try_get(0)?;
    let (Some(type_id), type_name) = (row.try_get::<Option<i64>, _>(1)?, row.try_get::<Option<&str>, _>(2)?) else {
        return Ok(TreeRow::Count(id.unwrap_or_default()));
    };
    let type_key = location_type_key(type_name.unwrap_or_default(), row.try_get::<Option<&str>, _>(11)?);
    let Some(id) = id else { return Ok(TreeRow::Type { id: type_id, key: type_key }) };
    Ok(TreeRow::Location(LocationNode {
        id,
        location_id: row.try_get(3)?,
        name: row.try_get(4)?,
        type_id,
        type_key,
        site_code: row.try_get::<Option<&str>, _>(5)?.unwrap_or_default(),
        latitude: row.try_get(6)?,
        longitude: row.try_get(7)?,
        is_archived: row.try_get::<Option<bool>, _>(8)?.unwrap_or_default(),
        last_modified_us: instant(row, 9)?.unwrap_or(0),
        parent_id: row.try_get(10)?,
    }))
}

fn location_row(row: &PgRow) -> Result<LocationRow, sqlx::Error> {
    Ok(LocationRow {
        id: row.try_get(0)?,
        location_id: row.try_get(1)?,
        domain: row.try_get(2)?,
        name: row.try_get(3)?,
        type_name: row.try_get(4)?,
        type_code: row.try_get(5)?,
        site_code: row.try_get(6)?,
        external_id: row.try_get(7)?,
        metadata: row.try_get::<Option<String>, _>(8)?.unwrap_or_default(),
        latitude: row.try_get(9)?,
        longitude: row.try_get(10)?,
        is_archived: row.try_get(11)?,
        archived_on_us: instant(row, 12)?,
        last_modified_us: instant(row, 13)?.unwrap_or(0),
        parent_id: row.try_get(14)?,
    })
}
