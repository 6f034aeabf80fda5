//! Changed locations through fetcher and enricher, from a real Postgres: exactly which rows come out, and what they hold.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::Array;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lake_enricher::options::EnricherOptions;
use lake_enricher::rows::message::read_ipc;
use lake_fetcher::allow_list::TakeConfig;
use lake_fetcher::change_feed::memory::MemoryFeed;
use lake_fetcher::options::FetchOptions;
use lake_fetcher::pipeline::Fetcher;
use lake_hq::documents::case::CaseOptions;
use lake_hq::source::{HqDatabase, LocationTypeRow, TreeExtent, TreeRow};
use lake_proto::queue::v1::RowBatch;
use lake_shared::queue::memory::{MemoryQueue, MemoryQueueOptions};
use lake_shared::queue::{ConsumerOptions, Queue, Stream};
use lake_shared::wire;
use lake_tests::location_hq::{DOMAIN, LocationHq};
use lake_tests::parts::wait_until;
use serde_json::json;
use sqlx::Row;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// Cells that are not NULL, by source path.
type Cells = BTreeMap<String, String>;

/// What came out.
#[derive(Clone, Debug, Default)]
struct Out {
    rows: Vec<(String, Cells)>,
    tombstones: Vec<String>,
    paths: BTreeSet<String>,
}

impl Out {
    fn add(&mut self, payload: &bytes::Bytes) {
        let message: RowBatch = wire::decode(payload).unwrap();
        self.tombstones.extend(message.tombstones.into_iter().map(|tombstone| tombstone.id));
        let batches = if message.arrow_ipc.is_empty() { Vec::new() } else { read_ipc(&message.arrow_ipc).unwrap() };
        for batch in batches {
            let names: Vec<String> = batch.schema().fields().iter().map(|field| field.name().clone()).collect();
            self.paths.extend(names.iter().cloned());
            for row in 0..batch.num_rows() {
                let mut cells = Cells::new();
                for (name, column) in names.iter().zip(batch.columns()) {
                    // Showing a zone would need a database of them; lineage and times are others' tests.
                    if column.is_valid(row) && !column.data_type().is_temporal() && !name.starts_with("+_lake") {
                        let options = FormatOptions::default();
                        let shown = ArrayFormatter::try_new(column, &options).unwrap().value(row).to_string();
                        cells.insert(name.clone(), shown);
                    }
                }
                self.rows.push((cells["/_id"].clone(), cells));
            }
        }
    }

    /// Ids of the rows; each must have come once.
    #[track_caller]
    fn ids(&self) -> BTreeSet<&str> {
        let ids: BTreeSet<&str> = self.rows.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(ids.len(), self.rows.len(), "a location came twice");
        ids
    }
}

/// HQ, a fetcher and an enricher.
struct Lake {
    hq: LocationHq,
    feed: Arc<MemoryFeed>,
    out: Arc<Mutex<Out>>,
    shutdown: CancellationToken,
}

impl Lake {
    /// 3,281 locations on six levels.
    async fn start() -> Self {
        let hq = LocationHq::start(&[5, 5, 5, 5, 4]).await.unwrap();
        hq.run("alter database commcarehq set log_statement = 'all'").await.unwrap();
        let (feed, shutdown, out) = (Arc::new(MemoryFeed::default()), CancellationToken::new(), Arc::default());
        let queue: Arc<dyn Queue> = MemoryQueue::new(MemoryQueueOptions::default());
        let ports = hq.hq().await.unwrap();
        // What is announced together must be one batch, also where it takes a while to say.
        let options = FetchOptions { linger_ms: 500, ..FetchOptions::default() };
        let (take, case_options) = (TakeConfig::EVERYTHING, CaseOptions::default());
        let fetcher = Fetcher::new(ports.clone(), Arc::clone(&queue), take, case_options, options);
        tokio::spawn(lake_fetcher::pipeline::run(feed.clone(), Arc::new(fetcher), shutdown.clone()));
        let options = EnricherOptions::default();
        tokio::spawn(lake_enricher::pipeline::run(
            Arc::clone(&queue),
            ports,
            options,
            Arc::default(),
            shutdown.clone(),
        ));
        let lake = Self { hq, feed, out, shutdown };
        tokio::spawn(take_rows(queue, Arc::clone(&lake.out)));
        lake
    }

    /// Says that these changed, as one batch of messages, and waits until all that comes of it is out.
    async fn announce(&self, ids: &[String], is_deletion: bool) -> Out {
        *self.out.lock().unwrap() = Out::default();
        for id in ids {
            let message = json!({
                "document_id": id, "domain": DOMAIN, "document_type": "Location", "document_subtype": null,
                "data_source_type": "sql", "data_source_name": "location", "is_deletion": is_deletion,
            });
            self.feed.publish("location", message.to_string());
        }
        let done = async || Ok(self.feed.unfinished() == 0);
        wait_until("all that came of the messages is out", PATIENCE, done).await.unwrap();
        self.out.lock().unwrap().clone()
    }

    async fn id(&self, number: i64) -> String {
        self.hq.id_of(number).await.unwrap()
    }

    async fn locations(&self) -> HashMap<i64, Known> {
        let sql = "select l.id::bigint, l.location_id, l.name, l.site_code, t.name, l.is_archived, l.parent_id::bigint,
                     l.latitude::float8, l.longitude::float8, t.code
                   from locations_sqllocation l join locations_locationtype t on t.id = l.location_type_id";
        let rows = sqlx::query(sql).fetch_all(&self.hq.database).await.unwrap();
        let known = |row: sqlx::postgres::PgRow| {
            let known = Known {
                id: row.get(1),
                name: row.get(2),
                site_code: row.get(3),
                type_name: row.get(4),
                is_archived: row.get(5),
                parent: row.get(6),
                degrees: row.get::<Option<f64>, _>(7).zip(row.get(8)),
                type_code: row.get(9),
            };
            (row.get(0), known)
        };
        rows.into_iter().map(known).collect()
    }

    /// Everything below these, and they themselves; and the cells of each, thought out anew.
    #[track_caller]
    fn assert_rows(out: &Out, all: &HashMap<i64, Known>, roots: &[i64]) {
        let lineage = |number: i64| {
            let mut way = vec![number];
            while let Some(parent) = all[&way[way.len() - 1]].parent.filter(|parent| !way.contains(parent)) {
                way.push(parent);
            }
            way
        };
        let ways: Vec<Vec<i64>> = all.keys().map(|number| lineage(*number)).collect();
        let expected: HashMap<&str, &Vec<i64>> = ways
            .iter()
            .filter(|way| way.iter().any(|number| roots.contains(number)))
            .map(|way| (all[&way[0]].id.as_str(), way))
            .collect();
        assert_eq!(out.ids(), expected.keys().copied().collect::<BTreeSet<_>>());
        for (id, cells) in &out.rows {
            let way: Vec<&Known> = expected[id.as_str()].iter().map(|number| &all[number]).collect();
            for (path, value) in cells_of(&way) {
                assert_eq!(cells.get(&path), Some(&value), "{path} of {id}");
            }
            let places = cells.keys().filter(|path| path.starts_with("+level")).count();
            assert_eq!(places, place_cells(&way).len(), "{id} has places that are not its own: {cells:?}");
        }
    }
}

impl Drop for Lake {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

async fn take_rows(queue: Arc<dyn Queue>, out: Arc<Mutex<Out>>) {
    let options = ConsumerOptions {
        durable_name: "test".into(),
        in_flight_max: 100,
        acknowledge_within: Duration::from_secs(30),
    };
    let mut consumer = queue.consumer(Stream::Rows, options).await.unwrap();
    while let Some(delivery) = consumer.next().await {
        let delivery = delivery.unwrap();
        out.lock().unwrap().add(&delivery.payload);
        delivery.receipt.acknowledge().await.unwrap();
    }
}

/// A location as the database has it.
struct Known {
    id: String,
    name: String,
    site_code: String,
    type_name: String,
    type_code: String,
    is_archived: bool,
    parent: Option<i64>,
    degrees: Option<(f64, f64)>,
}

/// What a row has of itself; `way` begins with it and ends at the root.
fn cells_of(way: &[&Known]) -> Cells {
    let lineage: Vec<&str> = way[1..].iter().map(|above| above.id.as_str()).collect();
    let own = way[0];
    let mut cells = place_cells(way);
    for (path, value) in [
        ("/name", own.name.clone()),
        ("/site_code", own.site_code.clone()),
        ("/location_type", own.type_name.clone()),
        ("/is_archived", own.is_archived.to_string()),
        ("/lineage", json!(lineage).to_string()),
    ] {
        cells.insert(path.into(), value);
    }
    cells
}

/// The columns of the types; the nearest of a type wins.
fn place_cells(way: &[&Known]) -> Cells {
    let mut cells = Cells::new();
    for above in way.iter().rev() {
        cells.retain(|path, _| !path.starts_with(&format!("+{}_", above.type_code)));
        let mut put = |what: &str, value: String| cells.insert(format!("+{}_{what}", above.type_code), value);
        put("id", above.id.clone());
        put("name", above.name.clone());
        put("site_code", above.site_code.clone());
        put("is_archived", above.is_archived.to_string());
        if let Some((latitude, longitude)) = above.degrees {
            put("latitude", latitude.to_string());
            put("longitude", longitude.to_string());
        }
    }
    cells
}

fn below(all: &HashMap<i64, Known>, root: i64) -> Vec<i64> {
    let mut numbers = vec![root];
    let mut next = 0;
    while next < numbers.len() {
        let parent = Some(numbers[next]);
        numbers.extend(all.iter().filter(|(_, known)| known.parent == parent).map(|(number, _)| *number));
        next += 1;
    }
    numbers
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_location_and_all_below_come_out_once_and_right() {
    let mut lake = Lake::start().await;
    let level = |level: usize| lake.hq.levels[level].0;
    let (region, district, block, leaf) = (level(1), level(2), level(3), level(5));

    let before = lake.hq.server.server().log().len();
    let all = lake.locations().await;
    let out = lake.announce(&[lake.id(1).await], false).await;
    assert_eq!(out.rows.len(), 3_281);
    Lake::assert_rows(&out, &all, &[1]);
    assert!(out.paths.contains("+clinic_id") && out.paths.contains("+clinic_is_archived"), "a type without location");
    let log = lake.hq.server.server().log().split_off(before);
    let statements =
        log.lines().filter(|line| line.contains(" execute ") && line.contains("from locations_sqllocation"));
    // Eight chunks with what is below each, the tree of the enricher, and the beginning; and the test's own look.
    let statements = statements.count();
    assert!((10..=25).contains(&statements), "{statements} statements");

    let rename = |number: i64, name: &str| {
        format!("update locations_sqllocation set name = '{name}', last_modified = now() where id = {number}")
    };
    lake.hq.run(&rename(leaf, "A new leaf")).await.unwrap();
    let out = lake.announce(&[lake.id(leaf).await], false).await;
    Lake::assert_rows(&out, &lake.locations().await, &[leaf]);
    assert_eq!(out.rows.len(), 1);

    // HQ stamps and publishes the moved location alone.
    lake.hq
        .run(&format!(
            "update locations_sqllocation set parent_id = {}, last_modified = now() where id = {district}",
            region + 4
        ))
        .await
        .unwrap();
    let out = lake.announce(&[lake.id(district).await], false).await;
    Lake::assert_rows(&out, &lake.locations().await, &[district]);
    assert_eq!(out.rows.len(), 1 + 5 + 25 + 100);

    // Subtrees that overlap, in one batch: once.
    for (number, name) in [(block, "Block"), (district, "District"), (leaf, "Leaf"), (region, "Region")] {
        lake.hq.run(&rename(number, name)).await.unwrap();
    }
    let ids = [lake.id(block).await, lake.id(leaf).await, lake.id(district).await, lake.id(region).await];
    let out = lake.announce(&ids, false).await;
    Lake::assert_rows(&out, &lake.locations().await, &[district, region]);

    // A type that is renamed keeps its columns.
    lake.hq.run("update locations_locationtype set name = 'Ward' where name = 'Level 5'").await.unwrap();
    let out = lake.announce(&[lake.id(leaf).await], false).await;
    Lake::assert_rows(&out, &lake.locations().await, &[leaf]);
    assert!(out.paths.contains("+level_5_id") && !out.paths.iter().any(|path| path.starts_with("+Ward")));

    // A change of type names columns of all below anew.
    lake.hq
        .run(&format!(
            "update locations_sqllocation set last_modified = now(), location_type_id =
                (select id from locations_locationtype where code = 'level_5') where id = {district}"
        ))
        .await
        .unwrap();
    let out = lake.announce(&[lake.id(district).await], false).await;
    Lake::assert_rows(&out, &lake.locations().await, &[district]);
}

#[tokio::test(flavor = "multi_thread")]
async fn archived_deleted_and_misplaced_locations() {
    let lake = Lake::start().await;
    let level = |level: usize| lake.hq.levels[level].0;
    let (district, block) = (level(2), level(3));
    let all = lake.locations().await;
    let ids_of = |numbers: &[i64]| numbers.iter().map(|number| all[number].id.clone()).collect::<Vec<String>>();
    let in_sql = |numbers: &[i64]| numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
    lake.announce(&[lake.id(1).await], false).await;

    // HQ archives and publishes the location and everything below it.
    let archived = below(&all, district);
    lake.hq
        .run(&format!(
            "update locations_sqllocation set is_archived = true, archived_on = now(), last_modified = now() where id in ({})",
            in_sql(&archived)
        ))
        .await
        .unwrap();
    let out = lake.announce(&ids_of(&archived), false).await;
    assert_eq!((out.rows.len(), out.tombstones.len()), (131, 0));
    Lake::assert_rows(&out, &lake.locations().await, &[district]);
    assert!(out.rows.iter().all(|(_, cells)| cells["+level_2_is_archived"] == "true"));

    // HQ deletes and publishes a location and everything below it.
    let deleted = below(&all, block);
    lake.hq.run(&format!("delete from locations_sqllocation where id in ({})", in_sql(&deleted))).await.unwrap();
    let mut out = lake.announce(&ids_of(&deleted), true).await;
    out.tombstones.sort_unstable();
    let mut expected = ids_of(&deleted);
    expected.sort_unstable();
    assert_eq!((out.rows.len(), out.tombstones), (0, expected));

    // The delete message of a location that is there, and of one that nobody ever had; and what is left above is as it was.
    let there = lake.id(district).await;
    let out = lake.announce(&[there, "never there".into()], true).await;
    assert_eq!(out.tombstones, ["never there"]);
    Lake::assert_rows(&out, &lake.locations().await, &[district]);
    assert_eq!(out.rows.len(), 131 - deleted.len());

    // A circle that HQ's code would not have made, below the root: its members and what hangs on them come out once.
    let (one, other) = (level(2) + 7, level(3) + 7 * 5);
    lake.hq
        .run(&format!("update locations_sqllocation set parent_id = {other}, last_modified = now() where id = {one}"))
        .await
        .unwrap();
    let out = lake.announce(&[lake.id(other).await, lake.id(one).await], false).await;
    assert_eq!(out.ids().len(), 131);
    Lake::assert_rows(&out, &lake.locations().await, &[one, other]);
}

fn shown(row: TreeRow<'_>) -> String {
    match row {
        TreeRow::Type { key, .. } => format!("type {key}"),
        TreeRow::Location(node) => format!("{} {} {:?}", node.id, node.type_key, node.parent_id),
        TreeRow::Count(count) => format!("{count} in all"),
    }
}

async fn tree(hq: &dyn HqDatabase, domain: &str, extent: TreeExtent<'_>) -> Vec<String> {
    let mut rows = Vec::new();
    let before = chrono::Utc::now().timestamp_micros();
    let observed_us = hq.location_tree(domain, extent, &mut |row| rows.push(shown(row))).await.unwrap();
    assert!(observed_us >= before);
    rows.sort_unstable();
    rows
}

#[tokio::test]
async fn trees_and_ways_are_read_as_hq_has_them() {
    let hq = LocationHq::start(&[2, 1]).await.unwrap();
    // Another domain, with a type and a parent of the first one by error, and a circle.
    hq.run(
        "insert into locations_sqllocation (id, domain, name, location_id, location_type_id, site_code, metadata, created_at, last_modified,
           is_archived, parent_id, stocks_all_products, user_id)
         select 10 + n, 'other', null, 'other' || n, 2, 'o' || n, '{}', now(), '2026-01-05T10:11:12Z', true,
           (array[2, 13, 12, 12])[n + 1], true, '' from generate_series(0, 3) n",
    )
    .await
    .unwrap();
    let database = hq.hq().await.unwrap().database;
    let read = async |domain, extent| tree(&*database, domain, extent).await;
    let types = ["type clinic", "type level_0", "type level_1", "type level_2"];
    let nodes = ["1 level_0 None", "2 level_1 Some(1)", "3 level_1 Some(1)", "4 level_2 Some(2)", "5 level_2 Some(3)"];
    assert_eq!(read(DOMAIN, TreeExtent::Whole).await, [&nodes[..], &types[..]].concat());
    let others = ["10 level_0 Some(2)", "11 level_0 Some(13)", "12 level_0 Some(12)", "13 level_0 Some(12)"];
    assert_eq!(read("other", TreeExtent::Whole).await, others);
    assert!(read("no\0body", TreeExtent::Whole).await.is_empty());

    let (ids, stamp) = ([hq.id_of(2).await.unwrap(), "other1".into(), "no\0body".into()], 1_735_689_600_000_000);
    let changed = |since_us, rows_max, count| TreeExtent::Changed { since_us, location_ids: &ids, rows_max, count };
    assert_eq!(read(DOMAIN, changed(stamp + 1, 9, false)).await, [&nodes[1..2], &types[..]].concat());
    let counted = [&nodes[..4], &["5 in all"], &nodes[4..], &types[..]].concat();
    assert_eq!(read(DOMAIN, changed(stamp, 9, true)).await, counted);
    assert_eq!(read(DOMAIN, changed(stamp, 3, false)).await.len(), 3 + types.len());

    let mut types = database.location_types(i64::MIN).await.unwrap();
    types.sort_by_key(|row| row.id);
    let known = |row: &LocationTypeRow| (row.id, row.name.clone(), row.code.clone());
    let level = |id: i64| (id, format!("Level {}", id - 2), Some(format!("level_{}", id - 2)));
    let clinic = (1, "clinic".to_owned(), Some("clinic".to_owned()));
    assert_eq!(types.iter().map(known).collect::<Vec<_>>(), [clinic, level(2), level(3), level(4)]);
    assert!(types.iter().all(|row| row.domain == DOMAIN && row.last_modified_us > stamp));
    // The year 2096.
    assert_eq!(database.location_types(4_000_000_000_000_000).await.unwrap(), []);
    assert_eq!(database.locations_of_type(2, 1).await.unwrap(), [10, 11, 12, 13]);
    assert_eq!(database.locations_of_type(2, 13).await.unwrap(), [0_i64; 0]);

    let ways = async |ids: &[i64]| {
        let mut ids: Vec<i64> = database.location_ancestors(ids).await.unwrap().iter().map(|step| step.id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ways(&[4, 2, 99]).await, [1, 2, 4]);
    assert_eq!(ways(&[10, 11]).await, [10, 11, 12, 13]);
    let mut children = database.location_children(&[1, 2, 12]).await.unwrap();
    children.sort_unstable();
    assert_eq!(children, [(2, 1), (3, 1), (4, 2), (12, 12), (13, 12)]);
}
