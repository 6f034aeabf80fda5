//! Batches over many tables: committed beside each other, and never otherwise than one after the other.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::time::Duration;

use lake_test_kit::table_file::TableFile;
use lake_test_kit::waiting::Interrupted;

use super::lake::{
    Lake, NewRow, batch, new_row, numbered, numbered_id, read_all, small, space, table, tombstone, until,
};
use super::log::Log;
use crate::table_store::delta::{DeletionVectors, DeltaOptions};
use crate::table_store::{Applied, SpaceBatch, TableStore};

/// What the lake has to hold: id to type and version.
type Rows = BTreeMap<String, (String, i64)>;

fn type_name(number: usize) -> String {
    format!("t{number:03}")
}

/// One batch as the source says it: rows and ids that are gone, all of one version.
struct Said {
    version_us: i64,
    rows: BTreeMap<String, Vec<String>>,
    gone: Vec<String>,
}

impl Said {
    fn new(version_us: i64) -> Self {
        Self { version_us, rows: BTreeMap::new(), gone: Vec::new() }
    }

    /// Rows of these numbers, each in the table that `of` names.
    fn rows(mut self, numbers: impl IntoIterator<Item = usize>, of: impl Fn(usize) -> usize) -> Self {
        for number in numbers {
            self.rows.entry(type_name(of(number))).or_default().push(numbered_id(number));
        }
        self
    }

    fn gone(mut self, numbers: impl IntoIterator<Item = usize>) -> Self {
        self.gone.extend(numbers.into_iter().map(numbered_id));
        self
    }

    fn batch(&self) -> SpaceBatch {
        let text = self.version_us.to_string();
        let row = |id: &String| new_row(id, self.version_us, &[("/name", id), ("/text", &text)]);
        let rows: Vec<(&str, Vec<NewRow>)> =
            self.rows.iter().map(|(name, ids)| (name.as_str(), ids.iter().map(row).collect())).collect();
        let gone = self.gone.iter().map(|id| tombstone(id, Some(self.version_us), self.version_us));
        batch(&rows, gone.collect())
    }

    fn enter(&self, map: &mut Rows) {
        for (name, ids) in &self.rows {
            map.extend(ids.iter().map(|id| (id.clone(), (name.clone(), self.version_us))));
        }
        for id in &self.gone {
            map.remove(id);
        }
    }
}

async fn assert_holds(lake: &Lake, tables: usize, map: &Rows) {
    let names: Vec<String> = (0..tables).map(type_name).collect();
    let read = read_all(lake, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let read: Rows = read
        .into_iter()
        .map(|(id, (name, row))| {
            assert_eq!(row["/text"], row["+_lake_version"], "{id}");
            (id, (name, row["+_lake_version"].parse().unwrap()))
        })
        .collect();
    assert!(read == *map, "read but not said: {:?}; said but not read: {:?}", less(&read, map), less(map, &read));
}

fn less<'a>(rows: &'a Rows, others: &Rows) -> Vec<(&'a String, &'a (String, i64))> {
    rows.iter().filter(|(id, row)| others.get(*id) != Some(row)).collect()
}

fn versions(lake: &Lake, tables: usize) -> Vec<u64> {
    (0..tables).map(|number| Log::of(lake, &type_name(number)).latest()).collect()
}

fn changed(applied: &Applied) -> BTreeSet<String> {
    let names: BTreeSet<String> = applied.tables.iter().map(|table| table.table.document_type.to_string()).collect();
    assert_eq!(names.len(), applied.tables.len());
    names
}

/// The metastore knows the last version, the schema and the number of rows of every table.
async fn assert_recorded(lake: &Lake, tables: usize, map: &Rows) {
    let records = lake.metastore.tables(Some(&space())).await.unwrap();
    let records: HashMap<String, _> =
        records.into_iter().map(|record| (record.key.document_type.to_string(), record.state)).collect();
    for number in 0..tables {
        let (name, state) = (type_name(number), &records[&type_name(number)]);
        assert_eq!(state.version, Some(Log::of(lake, &name).latest() as i64), "{name}");
        assert_eq!(state.rows as usize, map.values().filter(|(of, _)| *of == name).count(), "{name}");
        let recorded = lake.metastore.table(&table(&name)).await.unwrap().unwrap();
        assert!(recorded.state.schema.unwrap().contains("/text"), "{name}");
    }
}

async fn equals_a_map(options: DeltaOptions) {
    let (lake, mut map) = (Lake::new().await, Rows::new());
    let store = lake.open(options);
    // Eight rows each in a hundred tables.
    let first = Said::new(1).rows(0..800, |n| n % 100);
    first.enter(&mut map);
    let applied = store.apply(first.batch()).await.unwrap();
    assert!(applied.tables.iter().all(|table| (table.version, table.rows_upserted, table.rows_total) == (0, 8, 8)));
    assert_eq!(applied.tables.len(), 100);
    assert_holds(&lake, 100, &map).await;
    // Two of the old rows and a new one each, one leaves; in the first five tables rows also move in a ring, and one moves to a table that
    // is new.
    let ring = |n: usize| if n < 5 { (n + 1) % 5 } else { n % 100 };
    let second =
        Said::new(2).rows((0..200).filter(|n| *n != 50).chain(800..900), ring).rows([50], |_| 100).gone(300..400);
    second.enter(&mut map);
    let applied = store.apply(second.batch()).await.unwrap();
    assert_eq!(changed(&applied).len(), 101);
    let counted =
        applied.tables.iter().fold((0, 0), |(in_, out), table| (in_ + table.rows_upserted, out + table.rows_deleted));
    assert_eq!(counted, (300, 100));
    let after = versions(&lake, 101);
    for (number, version) in after.iter().enumerate() {
        // Tables with a move: rows enter with one commit, others may leave with another.
        let most = if number < 5 || number == 50 { 2 } else { 1 };
        assert!((1..=most).contains(version) || number == 100 && *version == 0, "{number}: {version}");
    }
    assert_holds(&lake, 101, &map).await;
    assert_recorded(&lake, 101, &map).await;
    for said in [&second, &first, &second] {
        assert!(store.apply(said.batch()).await.unwrap().tables.is_empty());
    }
    drop(store);
    let store = lake.open(small());
    assert!(store.apply(second.batch()).await.unwrap().tables.is_empty());
    assert_eq!(versions(&lake, 101), after);
}

#[tokio::test]
async fn a_batch_over_many_tables_equals_a_map() {
    equals_a_map(small()).await;
}

#[tokio::test]
async fn a_batch_over_many_tables_with_deletion_vectors_equals_a_map() {
    equals_a_map(DeltaOptions { deletion_vectors: DeletionVectors::On, ..small() }).await;
}

#[tokio::test]
async fn one_table_that_fails_does_not_undo_the_others() {
    let (lake, mut map) = (Lake::new().await, Rows::new());
    let store = lake.open(small());
    for (version_us, rows, gone) in [(1, 120, 500), (2, 100, 110)] {
        let said = Said::new(version_us).rows(0..rows, |n| n % 40).gone([gone]);
        let broken = type_name(7 * version_us as usize);
        *lake.faults.broken.lock().unwrap() = Some(format!("/{broken}/"));
        store.apply(said.batch()).await.unwrap_err();
        said.enter(&mut map);
        let version = version_us as u64 - 1;
        let others = |lake: &Lake| {
            let names = (0..40).map(type_name).filter(|name| *name != broken);
            names.map(|name| Log::of(lake, &name).latest()).collect::<Vec<_>>()
        };
        assert_eq!(others(&lake), vec![version; 39], "the others are committed");
        *lake.faults.broken.lock().unwrap() = None;
        let applied = store.apply(said.batch()).await.unwrap();
        assert_eq!(changed(&applied), BTreeSet::from([broken.clone()]), "only what was missing");
        assert_eq!(versions(&lake, 40), vec![version; 40], "once each");
        assert_holds(&lake, 40, &map).await;
        assert_recorded(&lake, 40, &map).await;
    }
}

#[tokio::test]
async fn a_table_that_waits_does_not_hold_up_the_others() {
    let lake = Lake::new().await;
    let (store, gate) = lake.open_gated(small());
    let said = Said::new(1).rows(0..40, |n| n);
    gate.hold_next(TableFile::Commit);
    let watching = async {
        gate.held().await;
        let is_committed =
            |n: &usize| lake.table_folder(&type_name(*n)).join("_delta_log").join(format!("{:020}.json", 0)).exists();
        until("39 tables", || (0..40).filter(is_committed).count() >= 39).await;
        gate.release();
    };
    let both = async { tokio::join!(store.apply(said.batch()), watching) };
    let (applied, ()) = tokio::time::timeout(Duration::from_secs(120), both).await.expect("they wait for each other");
    assert_eq!(applied.unwrap().tables.len(), 40);
}

#[tokio::test]
async fn a_store_that_fails_altogether_is_not_asked_for_every_table() {
    let lake = Lake::new().await;
    let store = lake.open(small());
    let said = Said::new(1).rows(0..200, |n| n);
    *lake.faults.broken.lock().unwrap() = Some("/case-sql/t".to_owned());
    store.apply(said.batch()).await.unwrap_err();
    let failed = lake.faults.refused.load(std::sync::atomic::Ordering::Relaxed);
    assert!((1..200).contains(&failed), "{failed}");
    *lake.faults.broken.lock().unwrap() = None;
    assert_eq!(store.apply(said.batch()).await.unwrap().tables.len(), 200);
}

#[tokio::test]
async fn foreign_commits_in_some_of_many_tables_are_followed() {
    let (lake, mut map) = (Lake::new().await, Rows::new());
    let store = lake.open(small());
    let first = Said::new(1).rows(0..90, |n| n % 30);
    let foreign = Said::new(3).rows(0..8, |n| n).rows(90..98, |n| n % 30);
    let second = Said::new(2).rows((0..60).filter(|n| *n != 29), |n| n % 30).rows([29], |_| 0).gone([89]);
    // Newer than what comes later, so it stays.
    for said in [&first, &second, &foreign] {
        said.enter(&mut map);
    }
    store.apply(first.batch()).await.unwrap();
    lake.open_elsewhere(small()).apply(foreign.batch()).await.unwrap();
    let applied = store.apply(second.batch()).await.unwrap();
    assert_eq!(changed(&applied).len(), 30);
    assert_holds(&lake, 30, &map).await;
    let latest = versions(&lake, 30);
    assert!((1..29).all(|number| latest[number] == if number < 8 { 2 } else { 1 }), "{latest:?}");
    assert!(store.apply(second.batch()).await.unwrap().tables.is_empty());
    assert_recorded(&lake, 30, &map).await;
}

/// Applies with so many polls. Answers the polls that it took, if it was done.
async fn apply_within(polls: u32, applying: impl Future<Output = Applied>) -> Option<u32> {
    let mut interrupted = Interrupted { future: Box::pin(applying), polls_left: polls };
    let done = (&mut interrupted).await.is_some();
    done.then_some(polls - interrupted.polls_left)
}

#[tokio::test]
async fn a_batch_that_is_abandoned_anywhere_is_completed_by_the_next() {
    const TABLES: usize = 24;
    const ROUNDS: u32 = 12;
    let (lake, mut map) = (Lake::new().await, Rows::new());
    let store = lake.open(small());
    let (mut polls_needed, mut abandoned) = (0, 0);
    for round in 0..ROUNDS {
        // Rows move between the first three tables, and between the last four.
        let turn = round as usize;
        let of = move |n: usize| match n % TABLES {
            table @ 0..3 => (table + turn) % 3,
            23 => 20 + turn % 4,
            table => table,
        };
        let said = Said::new(i64::from(round) + 1)
            .rows((0..120).filter(|n| n % 7 != turn % 7), of)
            .gone([turn % 17 * 7 + turn % 7]);
        let polls = if round < 2 { u32::MAX } else { polls_needed * (round - 1) / (ROUNDS - 1) };
        said.enter(&mut map);
        let applying = async { store.apply(said.batch()).await.unwrap() };
        match apply_within(polls, applying).await {
            Some(needed) => polls_needed = polls_needed.max(needed),
            None => abandoned += 1,
        }
        store.apply(said.batch()).await.unwrap();
        assert_holds(&lake, TABLES, &map).await;
        assert!(store.apply(said.batch()).await.unwrap().tables.is_empty(), "round {round}, {polls} polls");
    }
    assert!(abandoned > 3, "{abandoned}");
    // Tables without a move got one commit a round, whatever was abandoned in between.
    assert_eq!(versions(&lake, TABLES)[3..20], [u64::from(ROUNDS) - 1; 17]);
}

#[tokio::test]
async fn a_schema_is_told_when_it_is_new() {
    let lake = Lake::new().await;
    let schema = async || lake.metastore.table(&table("t")).await.unwrap().unwrap().state.schema.unwrap();
    let tamper = async || {
        let mut state = lake.metastore.tables(Some(&space())).await.unwrap().remove(0).state;
        state.schema = Some("tampered".into());
        lake.metastore.record_commits(&[(table("t"), state)]).await.unwrap();
    };
    let rows = |version_us, field| batch(&[("t", vec![new_row("a", version_us, &[(field, "x")])])], vec![]);
    let store = lake.open(small());
    store.apply(rows(1, "/one")).await.unwrap();
    assert!(schema().await.contains("/one"));
    tamper().await;
    store.apply(rows(2, "/one")).await.unwrap();
    assert_eq!(schema().await, "tampered", "it is the same as before, so it is not told");
    store.apply(rows(3, "/two")).await.unwrap();
    assert!(schema().await.contains("/two"));
    tamper().await;
    drop(store);
    lake.open(small()).apply(rows(4, "/one")).await.unwrap();
    assert!(schema().await.contains("/two"), "a start tells it again");
}

#[tokio::test]
async fn a_commit_that_the_metastore_missed_is_told_by_the_next_start() {
    let lake = Lake::new().await;
    let state = async || lake.metastore.tables(Some(&space())).await.unwrap().remove(0).state;
    let of = |ids: std::ops::Range<usize>, version_us| batch(&[("t", numbered(ids, version_us))], vec![]);
    let store = lake.open(small());
    store.apply(of(0..3, 1)).await.unwrap();
    let before = state().await;
    store.apply(of(0..5, 2)).await.unwrap();
    let after = state().await;
    drop(store);
    // As if the process had ended before it told.
    lake.metastore.record_commits(&[(table("t"), before)]).await.unwrap();
    let store = lake.open(small());
    assert!(store.apply(of(0..5, 2)).await.unwrap().tables.is_empty(), "all is done already");
    let told = state().await;
    assert_eq!((told.version, told.rows, told.files, told.bytes), (Some(1), 5, after.files, after.bytes));
}
