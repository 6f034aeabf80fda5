//! The simulated HQ in memory: applies turns and answers as HQ's real databases, blob store and user service do.
//!
//! Every answer is taken under one lock together with the database's clock, which orders it as in the real one ([`lake_hq::clock`]): a greater
//! `observed_us` of one process never means an older state, also when the database fails over to a machine whose clock is behind.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::DateTime;
use lake_hq::clock::Clock;
use lake_hq::scan::{ScanScope, ScannedKeys, ShardEstimate};
use lake_hq::source::{
    Blob, BlobReference, BlobStore, CaseRows, Columns, FormRows, Hq, HqDatabase, LOCATIONS_OF_TYPE_MAX, LocationKeys,
    LocationRow, LocationRows, LocationStep, LocationTypeRow, Observation, ReadFrom, SourceError, TakeTreeRow,
    TreeExtent, TreeRow, UserDirectory, location_type_key,
};
use serde_json::Value;

use crate::database_clock::DatabaseClock;
use crate::turn::{Mutation, Table, Turn};

mod compare;
mod scan;

/// Rows of a table by the value of their shard column (for locations and their types: by domain).
type Rows = HashMap<String, Vec<Columns>>;

#[derive(Default)]
struct Stores {
    tables: [Rows; Table::ALL.len()],
    blobs: HashMap<String, Bytes>,
    users: HashMap<String, Value>,
    serial: i64,
}

/// HQ's stores in memory, as one process sees them.
#[derive(Default)]
pub struct MemoryHq {
    shared: Arc<Shared>,
    /// What the process knows of the database's clock.
    clock: Clock,
}

/// What all processes see.
#[derive(Default)]
struct Shared {
    stores: RwLock<Stores>,
    clock: DatabaseClock,
}

impl MemoryHq {
    /// An HQ without anything in it.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The same HQ, as a process sees it that begins to read now.
    pub fn another_process(&self) -> Arc<Self> {
        Arc::new(Self { shared: Arc::clone(&self.shared), clock: Clock::default() })
    }

    /// Makes the turn's changes, all at once. (Its messages are the caller's to publish, afterwards.)
    pub fn apply(&self, turn: &Turn) {
        self.change(&turn.mutations);
    }

    /// Makes these changes, all at once.
    pub fn change(&self, mutations: &[Mutation]) {
        let mut stores = self.shared.stores.write().unwrap_or_else(PoisonError::into_inner);
        mutations.iter().for_each(|mutation| stores.change(mutation));
    }

    /// From now on the clock is a simulated one: the next answer is observed at this time (microseconds), each later one a microsecond
    /// after the one before.
    pub fn set_clock(&self, next_us: i64) {
        let _stores = self.shared.stores.write().unwrap_or_else(PoisonError::into_inner);
        self.shared.clock.set(next_us);
    }

    /// Lets so many microseconds pass on a simulated clock.
    pub fn pass(&self, microseconds: i64) {
        self.shared.clock.pass(microseconds);
    }

    /// The database fails over to a machine whose clock is so many microseconds behind.
    pub fn fail_over(&self, behind_us: i64) {
        let _stores = self.shared.stores.write().unwrap_or_else(PoisonError::into_inner);
        self.shared.clock.fail_over(behind_us);
    }

    /// The ports to it.
    pub fn hq(self: &Arc<Self>) -> Hq {
        Hq { database: Arc::<Self>::clone(self), blobs: Arc::<Self>::clone(self), users: Arc::<Self>::clone(self) }
    }

    fn read(&self) -> RwLockReadGuard<'_, Stores> {
        self.shared.stores.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the stores and at the database's clock, both at once.
    fn snapshot<T>(&self, look: impl FnOnce(&Stores) -> T) -> (i64, T) {
        let clock = &self.shared.clock;
        let asked = self.clock.asked(clock.own_us());
        let stores = self.read();
        let clock_us = clock.look();
        let found = look(&stores);
        drop(stores);
        (asked.answered(clock_us, clock.own_us()).observed_us, found)
    }

    fn observations<T>(&self, ids: &[String], look: impl Fn(&Stores, &str) -> Option<T>) -> Vec<Observation<T>> {
        let mut asked: Vec<&String> = ids.iter().collect();
        asked.sort_unstable();
        asked.dedup();
        let (observed_us, found) =
            self.snapshot(|stores| asked.iter().map(|id| look(stores, id)).collect::<Vec<Option<T>>>());
        let observation = |(id, rows): (&String, Option<T>)| Observation { id: id.clone(), observed_us, rows };
        asked.into_iter().zip(found).map(observation).collect()
    }
}

fn field<'a>(row: &'a Columns, name: &str) -> &'a str {
    row.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Null equals nothing, as in SQL.
fn same(row: &Columns, other: &Columns, columns: &[&str]) -> bool {
    columns
        .iter()
        .all(|name| row.get(*name) == other.get(*name) && row.get(*name).is_some_and(|value| !value.is_null()))
}

impl Stores {
    fn change(&mut self, mutation: &Mutation) {
        match mutation {
            Mutation::Put { table, row } => self.put(*table, row.clone()),
            Mutation::Remove { table, matching } => self.remove(*table, matching),
            Mutation::PutBlob { key, content, .. } => {
                self.blobs.insert(key.clone(), Bytes::copy_from_slice(content));
            }
            Mutation::RemoveBlob { key } => {
                self.blobs.remove(key);
            }
            Mutation::PutUser { document } => {
                let id = document.get("_id").and_then(Value::as_str).unwrap_or_default();
                self.users.insert(id.to_owned(), document.clone());
            }
            Mutation::RemoveUser { id } => {
                self.users.remove(id);
            }
        }
    }

    fn put(&mut self, table: Table, mut row: Columns) {
        let group = field(&row, table.shard_column().unwrap_or("domain")).to_owned();
        let rows = self.tables[table as usize].entry(group).or_default();
        let held = rows.iter_mut().find(|held| same(held, &row, table.key_columns()));
        if table.shard_column().is_some() {
            let id = match &held {
                Some(held) => held.get("id").cloned().unwrap_or_default(),
                None => {
                    self.serial += 1;
                    self.serial.into()
                }
            };
            row.insert("id".into(), id);
        }
        match held {
            Some(held) => *held = row,
            None => rows.push(row),
        }
    }

    fn remove(&mut self, table: Table, matching: &Columns) {
        let matches = |row: &Columns| matching.iter().all(|(name, value)| row.get(name) == Some(value));
        let rows = &mut self.tables[table as usize];
        match table.shard_column().and_then(|column| matching.get(column)).and_then(Value::as_str) {
            Some(group) => {
                if let Some(held) = rows.get_mut(group) {
                    held.retain(|row| !matches(row));
                }
            }
            None => {
                rows.values_mut().for_each(|held| held.retain(|row| !matches(row)));
            }
        }
    }

    fn rows(&self, table: Table, group: &str) -> &[Columns] {
        self.tables[table as usize].get(group).map_or(&[], Vec::as_slice)
    }

    fn case(&self, id: &str) -> Option<CaseRows> {
        let case = self.rows(Table::Case, id).first()?.clone();
        let mut transactions: Vec<Columns> = self
            .rows(Table::CaseTransaction, id)
            .iter()
            .filter(|row| row.get("revoked") != Some(&Value::Bool(true)))
            .cloned()
            .collect();
        transactions.sort_by_key(|row| (field(row, "server_date").to_owned(), row.get("id").and_then(Value::as_i64)));
        Some(CaseRows { case, indices: self.rows(Table::CaseIndex, id).to_vec(), transactions, ..CaseRows::default() })
    }

    fn form(&self, id: &str) -> Option<FormRows> {
        let form = self.rows(Table::Form, id).first()?.clone();
        let mut operations = self.rows(Table::FormOperation, id).to_vec();
        operations.sort_by_key(|row| (field(row, "date").to_owned(), row.get("id").and_then(Value::as_i64)));
        let is_xml = |row: &&Columns| row.get("type_code") == Some(&Value::from(2)) && field(row, "name") == "form.xml";
        let xml = self.rows(Table::BlobMeta, id).iter().find(is_xml).map(|row| BlobReference {
            key: field(row, "key").to_owned(),
            compressed: row.get("compressed_length").is_some_and(|length| !length.is_null()),
            content_length: row.get("content_length").and_then(Value::as_i64).unwrap_or_default(),
        });
        Some(FormRows { form, operations, xml, blobs: None })
    }

    fn location(&self, row: &Columns, types: &HashMap<i64, &Columns>) -> Option<LocationRow> {
        let number = |name: &str| row.get(name).and_then(Value::as_i64);
        let text = |name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
        let degrees = |name: &str| row.get(name).and_then(Value::as_str).and_then(|text| text.parse().ok());
        let instant = |name: &str| {
            let text = row.get(name).and_then(Value::as_str)?;
            DateTime::parse_from_rfc3339(text).ok().map(|instant| instant.timestamp_micros())
        };
        let kind = types.get(&number("location_type_id")?)?;
        Some(LocationRow {
            id: number("id")?,
            location_id: text("location_id")?,
            domain: text("domain")?,
            name: text("name"),
            type_name: field(kind, "name").to_owned(),
            type_code: kind.get("code").and_then(Value::as_str).map(str::to_owned),
            site_code: text("site_code")?,
            external_id: text("external_id"),
            metadata: text("metadata")?,
            latitude: degrees("latitude"),
            longitude: degrees("longitude"),
            is_archived: row.get("is_archived") == Some(&Value::Bool(true)),
            archived_on_us: instant("archived_on"),
            last_modified_us: instant("last_modified")?,
            parent_id: number("parent_id"),
        })
    }

    fn all_locations(&self) -> impl Iterator<Item = LocationRow> {
        self.tables[Table::Location as usize].keys().flat_map(|domain| self.locations(domain))
    }

    fn locations(&self, domain: &str) -> Vec<LocationRow> {
        let types: HashMap<i64, &Columns> = self
            .rows(Table::LocationType, domain)
            .iter()
            .filter_map(|row| Some((row.get("id")?.as_i64()?, row)))
            .collect();
        self.rows(Table::Location, domain).iter().filter_map(|row| self.location(row, &types)).collect()
    }

    fn location_tree(&self, domain: &str, extent: TreeExtent<'_>, take: &mut TakeTreeRow<'_>) {
        let types = self.rows(Table::LocationType, domain);
        let id_of = |row: &Columns| row.get("id").and_then(Value::as_i64);
        let type_ids: HashMap<&str, i64> =
            types.iter().filter_map(|row| Some((field(row, "name"), id_of(row)?))).collect();
        for row in types {
            let key = location_type_key(field(row, "name"), row.get("code").and_then(Value::as_str));
            id_of(row).into_iter().for_each(|id| take(TreeRow::Type { id, key }));
        }
        let rows = self.locations(domain);
        let is_asked = |row: &&LocationRow| match extent {
            TreeExtent::Whole => true,
            TreeExtent::Changed { since_us, location_ids, .. } => {
                row.last_modified_us >= since_us || location_ids.contains(&row.location_id)
            }
        };
        let count = matches!(extent, TreeExtent::Changed { count: true, .. });
        for row in rows.iter().filter(is_asked) {
            take(TreeRow::Location(row.node(type_ids.get(row.type_name.as_str()).copied().unwrap_or_default())));
        }
        if count {
            take(TreeRow::Count(rows.len() as i64));
        }
    }
}

/// Primary location of a user in a domain; retired users have none.
fn primary_location(document: &Value, domain: &str) -> Option<String> {
    if document["base_doc"].as_str() != Some("CouchUser") {
        return None;
    }
    let memberships = document["domain_memberships"].as_array().into_iter().flatten();
    let single = Some(&document["domain_membership"]).filter(|membership| membership.is_object());
    let membership = memberships.chain(single).find(|membership| membership["domain"].as_str() == Some(domain))?;
    membership["location_id"].as_str().filter(|location| !location.is_empty()).map(str::to_owned)
}

#[async_trait]
impl HqDatabase for MemoryHq {
    async fn cases(&self, ids: &[String], _from: ReadFrom) -> Result<Vec<Observation<CaseRows>>, SourceError> {
        Ok(self.observations(ids, Stores::case))
    }

    async fn forms(&self, ids: &[String], _from: ReadFrom) -> Result<Vec<Observation<FormRows>>, SourceError> {
        Ok(self.observations(ids, Stores::form))
    }

    async fn location_rows(&self, keys: LocationKeys<'_>) -> Result<LocationRows, SourceError> {
        let asked = |row: &LocationRow| match keys {
            LocationKeys::LocationIds(ids) => ids.contains(&row.location_id),
            LocationKeys::Ids(ids) => ids.contains(&row.id),
        };
        let (observed_us, rows) = self.snapshot(|stores| stores.all_locations().filter(asked).collect());
        Ok(LocationRows { observed_us, rows })
    }

    async fn location_ancestors(&self, ids: &[i64]) -> Result<Vec<LocationStep>, SourceError> {
        let stores = self.read();
        let rows: HashMap<i64, LocationRow> = stores.all_locations().map(|row| (row.id, row)).collect();
        let mut steps: BTreeMap<i64, LocationStep> = BTreeMap::new();
        for id in ids {
            let mut next = rows.get(id);
            while let Some(row) = next.filter(|row| !steps.contains_key(&row.id)) {
                let (location_id, domain) = (row.location_id.clone(), row.domain.clone());
                steps.insert(row.id, LocationStep { id: row.id, location_id, domain, parent_id: row.parent_id });
                next = row.parent_id.and_then(|id| rows.get(&id)).filter(|parent| parent.domain == row.domain);
            }
        }
        Ok(steps.into_values().collect())
    }

    async fn location_children(&self, parent_ids: &[i64]) -> Result<Vec<(i64, i64)>, SourceError> {
        let stores = self.read();
        let domains: HashMap<i64, String> = stores.all_locations().map(|row| (row.id, row.domain)).collect();
        let below = |row: LocationRow| {
            let parent_id = row.parent_id.filter(|id| parent_ids.contains(id))?;
            (domains.get(&parent_id) == Some(&row.domain)).then_some((row.id, parent_id))
        };
        Ok(stores.all_locations().filter_map(below).collect())
    }

    async fn location_tree(
        &self,
        domain: &str,
        extent: TreeExtent<'_>,
        take: &mut TakeTreeRow<'_>,
    ) -> Result<i64, SourceError> {
        let (observed_us, ()) = self.snapshot(|stores| stores.location_tree(domain, extent, take));
        Ok(observed_us)
    }

    async fn location_types(&self, _since_us: i64) -> Result<Vec<LocationTypeRow>, SourceError> {
        let stores = self.read();
        let row = |row: &Columns| {
            Some(LocationTypeRow {
                id: row.get("id")?.as_i64()?,
                domain: field(row, "domain").to_owned(),
                name: field(row, "name").to_owned(),
                code: row.get("code").and_then(Value::as_str).map(str::to_owned),
                last_modified_us: 0,
            })
        };
        Ok(stores.tables[Table::LocationType as usize].values().flatten().filter_map(row).collect())
    }

    async fn locations_of_type(&self, type_id: i64, after: i64) -> Result<Vec<i64>, SourceError> {
        let stores = self.read();
        let rows = stores.tables[Table::Location as usize].values().flatten();
        let of_type = rows.filter(|row| row.get("location_type_id").and_then(Value::as_i64) == Some(type_id));
        let ids = of_type.filter_map(|row| row.get("id").and_then(Value::as_i64)).filter(|id| *id > after);
        let mut ids: Vec<i64> = ids.collect();
        ids.sort_unstable();
        ids.truncate(LOCATIONS_OF_TYPE_MAX);
        Ok(ids)
    }

    async fn scan_estimates(&self, scope: &ScanScope) -> Result<Vec<ShardEstimate>, SourceError> {
        let documents = scan::keys(&self.read().tables, scope).len() as u64;
        Ok(vec![ShardEstimate { shard: scan::SHARD.into(), documents }])
    }

    async fn scan_keys(
        &self,
        scope: &ScanScope,
        shard: &str,
        after: i64,
        keys_max: usize,
    ) -> Result<Option<ScannedKeys>, SourceError> {
        if shard != scan::SHARD {
            return Ok(None);
        }
        let mut keys = scan::keys(&self.read().tables, scope);
        keys.retain(|(key, _)| *key > after);
        let finished = keys.len() < keys_max.max(1);
        keys.truncate(keys_max.max(1));
        Ok(Some(ScannedKeys { reached: keys.last().map_or(after, |(key, _)| *key), keys, finished }))
    }

    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[async_trait]
impl BlobStore for MemoryHq {
    async fn get(&self, blob: &BlobReference) -> Result<Blob, SourceError> {
        Ok(self.read().blobs.get(&blob.key).cloned().map_or(Blob::Missing, Blob::Found))
    }

    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[async_trait]
impl UserDirectory for MemoryHq {
    async fn locations(
        &self,
        domain: &str,
        user_ids: &[String],
    ) -> Result<HashMap<String, Option<String>>, SourceError> {
        let stores = self.read();
        let location = |id: &String| stores.users.get(id).and_then(|document| primary_location(document, domain));
        Ok(user_ids.iter().map(|id| (id.clone(), location(id))).collect())
    }

    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}
