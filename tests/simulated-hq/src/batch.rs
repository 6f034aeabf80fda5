//! What a group of mutations comes to in one database: for each table, what to remove first and what to put after that.
//!
//! Folding keeps the outcome of doing the mutations one by one, in their order, and makes set-based statements possible (Postgres
//! refuses to touch one row twice in `insert … on conflict`). Removals can go first because a removal that comes after a put drops the
//! put from the batch, and removes what the database had under the put's key as well.

use std::collections::{BTreeMap, HashMap};

use lake_hq::source::Columns;
use serde_json::Value;

use crate::turn::Table;

/// What to do in one table: removals first, then puts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TableBatch {
    removals: Vec<Columns>,
    /// In the order of their first put; `None` where a later removal took it out.
    puts: Vec<Option<Columns>>,
    by_key: HashMap<String, usize>,
    /// Puts by the value that decides their shard, since removals name it.
    by_owner: HashMap<String, Vec<usize>>,
}

impl TableBatch {
    fn put(&mut self, table: Table, row: Columns) {
        let key = identity_text(table, &row);
        if let Some(&place) = self.by_key.get(&key) {
            // The same key has the same owner, except where HQ gives a blob to another form: then both know the place.
            self.own(table, &row, place);
            self.puts[place] = Some(row);
            return;
        }
        let place = self.puts.len();
        self.own(table, &row, place);
        self.by_key.insert(key, place);
        self.puts.push(Some(row));
    }

    fn own(&mut self, table: Table, row: &Columns, place: usize) {
        if let Some(owner) = owner(table, row) {
            let places = self.by_owner.entry(owner.to_owned()).or_default();
            if !places.contains(&place) {
                places.push(place);
            }
        }
    }

    fn remove(&mut self, table: Table, matching: Columns) {
        let places: Vec<usize> = match owner(table, &matching) {
            Some(owner) => self.by_owner.get(owner).cloned().unwrap_or_default(),
            None => (0..self.puts.len()).collect(),
        };
        for place in places {
            let Some(row) = self.puts[place].take_if(|row| matches(row, &matching)) else { continue };
            self.by_key.remove(&identity_text(table, &row));
            self.removals.push(identity(table, &row));
        }
        self.removals.push(matching);
    }

    /// The removals, grouped so that one statement can do a group.
    pub fn removals(&self) -> BTreeMap<MatchShape, Vec<&Columns>> {
        by_shape(&self.removals)
    }

    /// The rows to put, grouped by their columns.
    pub fn puts(&self) -> BTreeMap<Vec<String>, Vec<&Columns>> {
        let mut groups: BTreeMap<Vec<String>, Vec<&Columns>> = BTreeMap::new();
        for row in self.puts.iter().flatten() {
            let mut columns: Vec<String> = row.keys().cloned().collect();
            columns.sort_unstable();
            groups.entry(columns).or_default().push(row);
        }
        groups
    }
}

/// The columns of a removal, each with whether it must be null.
pub type MatchShape = Vec<(String, bool)>;

/// Groups what is to be matched by the columns that must be null and those that must be equal.
pub fn by_shape(matching: &[Columns]) -> BTreeMap<MatchShape, Vec<&Columns>> {
    let mut groups: BTreeMap<MatchShape, Vec<&Columns>> = BTreeMap::new();
    for columns in matching {
        let shape = columns.iter().map(|(column, value)| (column.clone(), value.is_null())).collect();
        groups.entry(shape).or_default().push(columns);
    }
    groups
}

/// What to do in one database.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DatabaseBatch {
    tables: BTreeMap<Table, TableBatch>,
}

impl DatabaseBatch {
    /// Adds a row to insert or replace.
    pub fn put(&mut self, table: Table, row: Columns) {
        self.tables.entry(table).or_default().put(table, row);
    }

    /// Adds a removal. Removing a case or a form by its id removes its dependent rows too, as HQ's models do.
    pub fn remove(&mut self, table: Table, matching: Columns) {
        for &dependent in dependents(table) {
            if matching.len() == 1 && table.shard_column().is_some_and(|column| matching.contains_key(column)) {
                self.tables.entry(dependent).or_default().remove(dependent, matching.clone());
            }
        }
        self.tables.entry(table).or_default().remove(table, matching);
    }

    /// What to do in each table.
    pub fn tables(&self) -> impl Iterator<Item = (Table, &TableBatch)> {
        self.tables.iter().map(|(&table, batch)| (table, batch))
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }
}

/// The tables with a foreign key to this one's id.
const fn dependents(table: Table) -> &'static [Table] {
    match table {
        Table::Case => &[Table::CaseIndex, Table::CaseTransaction],
        Table::Form => &[Table::FormOperation],
        _ => &[],
    }
}

/// Whether all these columns are equal; a missing column counts as null.
fn matches(row: &Columns, matching: &Columns) -> bool {
    matching.iter().all(|(column, value)| row.get(column).unwrap_or(&Value::Null) == value)
}

fn owner(table: Table, columns: &Columns) -> Option<&str> {
    columns.get(table.shard_column()?)?.as_str()
}

/// What tells a row from others: its key columns; all of its columns where one of those is null, since a null is equal to nothing.
pub fn identity(table: Table, row: &Columns) -> Columns {
    let key = table.key_columns();
    let column = |&name: &&str| Some((name.to_owned(), row.get(name).filter(|value| !value.is_null())?.clone()));
    key.iter().map(column).collect::<Option<Columns>>().unwrap_or_else(|| row.clone())
}

fn identity_text(table: Table, row: &Columns) -> String {
    Value::Object(identity(table, row)).to_string()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn columns(value: Value) -> Columns {
        match value {
            Value::Object(columns) => columns,
            other => panic!("not an object: {other}"),
        }
    }

    fn all<K>(groups: BTreeMap<K, Vec<&Columns>>) -> Vec<Value> {
        groups.into_values().flatten().map(|row| Value::Object(row.clone())).collect()
    }

    fn table(batch: &DatabaseBatch, table: Table) -> (Vec<Value>, Vec<Value>) {
        batch
            .tables()
            .find(|(found, _)| *found == table)
            .map_or((vec![], vec![]), |(_, batch)| (all(batch.removals()), all(batch.puts())))
    }

    #[test]
    fn the_last_put_of_a_key_wins() {
        let mut batch = DatabaseBatch::default();
        batch.put(Table::Case, columns(json!({"case_id": "a", "name": "1"})));
        batch.put(Table::Case, columns(json!({"case_id": "b", "name": "2"})));
        batch.put(Table::Case, columns(json!({"case_id": "a", "name": "3"})));
        let (removals, puts) = table(&batch, Table::Case);
        assert!(removals.is_empty());
        assert_eq!(puts, [json!({"case_id": "a", "name": "3"}), json!({"case_id": "b", "name": "2"})]);
    }

    #[test]
    fn a_removal_drops_earlier_puts_and_keeps_later_ones() {
        let mut batch = DatabaseBatch::default();
        batch.put(Table::BlobMeta, columns(json!({"key": "k", "parent_id": "f", "name": "form.xml"})));
        batch.remove(Table::BlobMeta, columns(json!({"parent_id": "f"})));
        batch.put(Table::BlobMeta, columns(json!({"key": "l", "parent_id": "f", "name": "form.xml"})));
        let (removals, puts) = table(&batch, Table::BlobMeta);
        // What the database has under the dropped key may have had another parent.
        assert_eq!(removals, [json!({"key": "k"}), json!({"parent_id": "f"})]);
        assert_eq!(puts, [json!({"key": "l", "parent_id": "f", "name": "form.xml"})]);
    }

    #[test]
    fn a_row_that_changed_its_owner_is_not_removed_with_the_old_one() {
        let mut batch = DatabaseBatch::default();
        batch.put(Table::BlobMeta, columns(json!({"key": "k", "parent_id": "f"})));
        batch.put(Table::BlobMeta, columns(json!({"key": "k", "parent_id": "g"})));
        batch.remove(Table::BlobMeta, columns(json!({"parent_id": "f"})));
        assert_eq!(table(&batch, Table::BlobMeta).1, [json!({"key": "k", "parent_id": "g"})]);
        batch.remove(Table::BlobMeta, columns(json!({"parent_id": "g"})));
        assert!(table(&batch, Table::BlobMeta).1.is_empty());
    }

    #[test]
    fn removing_a_case_removes_its_dependent_rows() {
        let mut batch = DatabaseBatch::default();
        batch.put(Table::CaseIndex, columns(json!({"case_id": "a", "identifier": "parent"})));
        batch.remove(Table::Case, columns(json!({"case_id": "a"})));
        let (removals, puts) = table(&batch, Table::CaseIndex);
        assert_eq!(removals, [json!({"case_id": "a"}), json!({"case_id": "a", "identifier": "parent"})]);
        assert!(puts.is_empty());
        assert_eq!(table(&batch, Table::CaseTransaction).0, [json!({"case_id": "a"})]);
    }

    #[test]
    fn removals_are_grouped_by_what_must_be_null() {
        let mut batch = TableBatch::default();
        batch.remove(Table::CaseTransaction, columns(json!({"case_id": "a", "form_id": null})));
        batch.remove(Table::CaseTransaction, columns(json!({"case_id": "b", "form_id": "f"})));
        batch.remove(Table::CaseTransaction, columns(json!({"case_id": "c", "form_id": null})));
        let sizes: Vec<usize> = batch.removals().into_values().map(|group| group.len()).collect();
        assert_eq!(sizes, [1, 2]);
    }

    #[test]
    fn rows_with_null_in_their_key_stand_beside_each_other() {
        let mut batch = TableBatch::default();
        let row = |date| columns(json!({"case_id": "a", "form_id": null, "type": 2, "server_date": date}));
        for date in ["1", "2", "1"] {
            batch.put(Table::CaseTransaction, row(date));
        }
        assert_eq!(all(batch.puts()), [Value::Object(row("1")), Value::Object(row("2"))]);
    }
}
