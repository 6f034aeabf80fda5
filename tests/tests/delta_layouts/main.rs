//! Every layout of a table, as all readers see it, both releases of Spark among them: whole, and by conditions that make them leave out
//! files, partitions and row groups.
//!
//! What is expected comes from what was written, so a reader and the lake cannot be wrong together.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod spark_3;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use chrono::NaiveDate;
use lake_test_kit::rows::ODD_TEXTS;
use lake_tests::engine::{
    Cell, DeletionVectors, DeltaOptions, EngineLake, LAYOUTS, NewRow, batch, bytes, partition_by, small, space,
    tombstone,
};
use lake_tests::readers::{Condition, Inquiry, Reader, Readers, Row, Snapshot, Test};
use lake_writer::table_store::TableStore;
use parquet::file::reader::{FileReader, SerializedFileReader};
use rand::SeedableRng;
use rand::rngs::StdRng;

const TYPE: &str = "person";

/// Rows are marked where the layout allows it; nothing is compacted.
fn marking(columns: &[&str]) -> DeltaOptions {
    DeltaOptions {
        partition_by: partition_by(columns),
        deletion_vectors: DeletionVectors::On,
        retention_hours: 24,
        columns_max: 100,
        target_file_bytes: bytes(1 << 30),
        small_files_max: 10_000,
        deleted_share_max: 1.0,
        overlap_max: 10_000,
        ..small()
    }
}

fn month(number: i64) -> Cell {
    Cell::Date(NaiveDate::from_ymd_opt(2024, number as u32 + 1, 1).unwrap())
}

fn row<'source>(id: &str, version_us: i64, cells: impl IntoIterator<Item = (&'source str, Cell)>) -> NewRow {
    let cells = cells.into_iter().map(|(source, cell)| (source.to_owned(), cell)).collect();
    NewRow { id: id.into(), version_us, observed_us: version_us, cells }
}

/// Id to source path to text.
type Told = BTreeMap<String, BTreeMap<String, String>>;

/// The columns of a row that are told here, by source path: what every reader must see in them.
fn told(table: &Snapshot, rows: &[Row]) -> Told {
    let of = |row: &Row| {
        let cells = row.iter().map(|(name, text)| (table.sources[name].clone(), text.clone()));
        cells.filter(|(source, _)| !source.starts_with("+_lake_") && source != "/_id").collect()
    };
    rows.iter().map(|row| (row["_id"].clone(), of(row))).collect()
}

fn expected<'rows>(rows: impl IntoIterator<Item = &'rows NewRow>) -> Told {
    let cells = |row: &NewRow| row.cells.iter().map(|(source, cell)| (source.clone(), cell.text())).collect();
    rows.into_iter().map(|row| (row.id.clone(), cells(row))).collect()
}

fn ensure_seen(
    readers: &mut Readers,
    who: &[Reader],
    table: &Path,
    version: Option<u64>,
    inquiry: &Inquiry,
    rows: &[Row],
) {
    for &reader in who {
        let started = std::time::Instant::now();
        let seen = readers.ensure_sees(reader, table, version, inquiry, rows);
        seen.unwrap_or_else(|error| panic!("{error:#}"));
        println!("{reader}: {} questions, {:?}", inquiry.questions.len(), started.elapsed());
    }
}

/// Five rounds over 600 ids; of each id the last row, or none.
async fn live(lake: &EngineLake, options: &DeltaOptions, supervisors: &[&str]) -> BTreeMap<String, NewRow> {
    let store = lake.open(options).unwrap();
    let mut held: BTreeMap<String, NewRow> = BTreeMap::new();
    for round in 0..5_i64 {
        let ids = if round == 0 { 0..600 } else { round * 90..round * 90 + 60 };
        let rows: Vec<NewRow> = ids
            .map(|id| {
                let mut cells = vec![
                    ("/visits", Cell::Number(id * 7 - 900)),
                    ("/weight", Cell::Real((id - 300) as f64 / 8.0)),
                    ("/closed", Cell::Truth(id % 3 == 0)),
                    ("/note", Cell::Text(format!("text {} {round}", id % 10))),
                    // Neither whole milliseconds nor after 1970 only.
                    ("/server_modified_on", Cell::Moment((id - 100) * 3_600_000_777 + round)),
                ];
                if id % 4 > 0 {
                    cells.push(("+month", month(id / 100)));
                }
                if id % 5 > 0 {
                    let supervisor = supervisors[(id + round) as usize % supervisors.len()];
                    cells.push(("+supervisor_id", Cell::Text(supervisor.into())));
                }
                if id % 7 == 0 {
                    cells.retain(|(source, _)| !["/visits", "/closed", "/server_modified_on"].contains(source));
                }
                row(&format!("id-{id:03}"), round, cells)
            })
            .collect();
        let leaving = (0..5).map(|n| tombstone(&format!("id-{:03}", 599 - 5 * round - n), Some(round), round));
        let leaving: Vec<_> = if round == 0 { Vec::new() } else { leaving.collect() };
        held.extend(rows.iter().map(|row| (row.id.clone(), row.clone())));
        leaving.iter().for_each(|leaving| drop(held.remove(&leaving.id)));
        store.apply(batch(&[(TYPE, rows)], leaving)).await.unwrap();
    }
    held
}

/// What the layout of a table must be, so that the test is about what it says.
type Shape = fn(&Snapshot) -> bool;

#[tokio::test(flavor = "multi_thread")]
async fn conditions_are_answered_from_every_layout() {
    let plain: &[&str] = &["anna", "Anna", "B-0_1.x"];
    let partitions = LAYOUTS[1];
    let off = DeltaOptions { deletion_vectors: DeletionVectors::Off, ..marking(&[]) };
    let purged = DeltaOptions { deleted_share_max: 0.01, ..marking(&[]) };
    // Files are closed early, and sorted into each other.
    let clustered = DeltaOptions { target_file_bytes: bytes(4_000), overlap_max: 1, ..purged.clone() };
    // Each once in both releases of Spark: rows that are hidden and not, folders that are plain and odd.
    let in_spark_3 = ["copy on write", "deletion vectors", "odd partitions"];
    let layouts: [(&str, DeltaOptions, &[&str], bool, Shape); 6] = [
        ("copy on write", off, plain, false, |table| table.hidden_rows == 0),
        ("deletion vectors", marking(&[]), plain, false, |table| table.hidden_rows > 200),
        ("compacted", purged, plain, true, |table| table.hidden_rows == 0),
        ("clustered", clustered, plain, true, |table| table.hidden_rows == 0 && table.files > 2),
        ("partitioned", marking(partitions), plain, false, |table| table.hidden_rows > 200 && table.files > 20),
        ("odd partitions", marking(partitions), &ODD_TEXTS, false, |table| table.files > 100),
    ];
    let mut readers = Readers::of_folders().unwrap();
    let columns =
        ["_id", "month", "supervisor_id", "server_modified_on", "_lake_version", "visits", "weight", "closed", "note"];
    for (name, options, supervisors, maintained, shape) in layouts {
        println!("{name}");
        let lake = EngineLake::new().await.unwrap();
        let held = live(&lake, &options, supervisors).await;
        if maintained {
            let store = lake.open(&options).unwrap();
            store.apply(batch(&[], Vec::new())).await.unwrap();
            store.maintain(&space()).await.unwrap();
        }
        let (folder, table) = (lake.table(TYPE), lake.snapshot(TYPE).await.unwrap().unwrap());
        assert_eq!(told(&table, &table.rows), expected(held.values()), "{name}");
        assert!(shape(&table), "{name}: {} files, {} hidden rows", table.files, table.hidden_rows);
        assert_eq!(table.vectors_in_escaped_folders, 0, "{name}");
        let inquiry = Inquiry::of_columns(&table, &columns, 5);
        assert!(inquiry.questions.len() > 60);
        ensure_seen(&mut readers, &Reader::QUICK, &folder, None, &inquiry, &table.rows);
        let few = Inquiry { whole: true, ..Inquiry::drawn(&mut StdRng::seed_from_u64(table.files as u64), &table, 8) };
        ensure_seen(&mut readers, &[Reader::Spark], &folder, None, &few, &table.rows);
        if in_spark_3.contains(&name) {
            let fewer = Inquiry { questions: few.questions[..4].to_vec(), ..few };
            ensure_seen(&mut readers, &[Reader::Spark3], &folder, None, &fewer, &table.rows);
        }

        // Programs that know no deletion vectors: right where there are none, and told so where there are.
        let by_pyarrow = readers.read_by_pyarrow(&folder);
        if table.hidden_rows == 0 && name != "odd partitions" && options.deletion_vectors == DeletionVectors::Off {
            by_pyarrow.unwrap().ensure_is(&table.rows).unwrap();
        } else {
            let error = format!("{:#}", by_pyarrow.unwrap_err());
            assert!(error.contains("deletionVectors"), "{name}: {error}");
        }
    }
}

/// Polars does not find the files of a table below a folder with characters that are escaped in URLs, and says so; everybody else does.
#[tokio::test(flavor = "multi_thread")]
async fn the_folder_of_a_lake_has_an_odd_name() {
    let lake = EngineLake::with_prefix("lake test 100% +=ü").await.unwrap();
    let held = live(&lake, &marking(&[]), &["anna"]).await;
    let (folder, table) = (lake.table(TYPE), lake.snapshot(TYPE).await.unwrap().unwrap());
    assert_eq!(told(&table, &table.rows), expected(held.values()));
    assert!(table.hidden_rows > 200, "{} hidden rows", table.hidden_rows);
    let inquiry = Inquiry::drawn(&mut StdRng::seed_from_u64(1), &table, 8);
    let mut readers = Readers::of_folders().unwrap();
    let others = [Reader::DuckDb, Reader::DataFusion, Reader::Spark, Reader::Spark3];
    ensure_seen(&mut readers, &others, &folder, None, &inquiry, &table.rows);
    let error = format!("{:#}", readers.read(Reader::Polars, &folder, None).unwrap_err());
    assert!(error.contains("No such file"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_partitions_with_odd_values() {
    let lake = EngineLake::new().await.unwrap();
    let options = marking(LAYOUTS[1]);
    let store = lake.open(&options).unwrap();
    let names: Vec<String> =
        ODD_TEXTS.iter().map(|name| (*name).to_owned()).chain((0..227).map(|n| format!("s{n}"))).collect();
    // Eight months, one of them NULL, times 250 supervisors, one of them NULL; two rows each.
    let of = |id: usize, version| {
        let (partition, mut cells) = (id / 2, vec![("/visits", Cell::Number(id as i64))]);
        cells.extend((partition % 8 > 0).then(|| ("+month", month(partition as i64 % 8))));
        cells.extend(names.get(partition / 8).map(|name| ("+supervisor_id", Cell::Text(name.clone()))));
        row(&format!("id-{id:04}"), version, cells)
    };
    let mut rows: Vec<NewRow> = (0..4_000).map(|id| of(id, 1)).collect();
    store.apply(batch(&[(TYPE, rows.clone())], Vec::new())).await.unwrap();
    let again: Vec<NewRow> = (0..4_000).step_by(16).map(|id| of(id, 2)).collect();
    again.iter().enumerate().for_each(|(n, row)| rows[n * 16] = row.clone());
    store.apply(batch(&[(TYPE, again)], Vec::new())).await.unwrap();

    let (folder, table) = (lake.table(TYPE), lake.snapshot(TYPE).await.unwrap().unwrap());
    assert_eq!(told(&table, &table.rows), expected(&rows));
    assert!(table.files > 2_000 && table.hidden_rows > 200, "{} files, {}", table.files, table.hidden_rows);
    let (is, null) = (|name: &str| Condition::is("supervisor_id", "string", name), Test::Null([]));
    let mut questions: Vec<Vec<Condition>> = vec![
        vec![Condition::new("supervisor_id", "string", null.clone())],
        vec![Condition::new("month", "date", null.clone())],
        vec![Condition::new("month", "date", null), is("a/b")],
        vec![Condition::is("month", "date", "2024-03-01"), is("s7")],
        vec![Condition::is("month", "date", "2024-03-01")],
        vec![Condition::is("_lake_version", "long", "2")],
    ];
    let few = Inquiry { whole: true, questions: questions.clone(), columns: Vec::new() };
    questions.extend(ODD_TEXTS.iter().map(|name| vec![is(name)]));
    let all = Inquiry { questions, ..few.clone() };
    let mut readers = Readers::of_folders().unwrap();
    ensure_seen(&mut readers, &Reader::QUICK, &folder, None, &all, &table.rows);
    ensure_seen(&mut readers, &Reader::SPARKS, &folder, None, &few, &table.rows);
}

/// Names of folders are cut where a file system would not take them, and one text is what Hive calls NULL. Polars takes the values of
/// partition columns from the folders' names, whoever wrote them; everybody else reads the log.
#[tokio::test(flavor = "multi_thread")]
async fn values_that_folders_cannot_tell_are_right_in_all_readers_but_polars() {
    let lake = EngineLake::new().await.unwrap();
    let store = lake.open(&marking(&["supervisor_id"])).unwrap();
    let names = ["x".repeat(300), "ü/".repeat(150), "x".repeat(299) + "y", "__HIVE_DEFAULT_PARTITION__".into()];
    let of = |id: usize| {
        row(&format!("id-{id}"), 1, names.get(id % 5).map(|name| ("+supervisor_id", Cell::Text(name.clone()))))
    };
    let rows: Vec<NewRow> = (0..50).map(of).collect();
    store.apply(batch(&[(TYPE, rows.clone())], Vec::new())).await.unwrap();
    let (folder, table) = (lake.table(TYPE), lake.snapshot(TYPE).await.unwrap().unwrap());
    assert_eq!(told(&table, &table.rows), expected(&rows));
    let mut inquiry = Inquiry::of_columns(&table, &["_id", "supervisor_id"], 3);
    inquiry.questions.extend(names.iter().map(|name| vec![Condition::is("supervisor_id", "string", name)]));
    let mut readers = Readers::of_folders().unwrap();
    let right = [Reader::DuckDb, Reader::DataFusion, Reader::Spark, Reader::Spark3];
    ensure_seen(&mut readers, &right, &folder, None, &inquiry, &table.rows);
    let polars = readers.read(Reader::Polars, &folder, None).map(|content| content.sorted().unwrap());
    println!("Polars: {:?}", polars.as_ref().map(|rows| rows.len()));
    assert!(polars.is_ok_and(|rows| rows != table.rows), "Polars reads them now: take it into the readers above");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_columns_and_names_that_collide() {
    let lake = EngineLake::new().await.unwrap();
    let options = DeltaOptions { columns_max: 2_000, ..marking(&[]) };
    let store = lake.open(&options).unwrap();
    let colliding =
        ["/Name", "/name", "/NAME", "/n\u{e4}me", "/N\u{c4}ME", "/a/b", "/a__b", "/A/B", "/domain", "/Domain"];
    let sources: Vec<String> = colliding
        .iter()
        .map(|name| (*name).to_owned())
        .chain((0..2_040).map(|n| format!("/group/question_{n}")))
        .collect();
    let of = |id: usize, version: i64, step: usize| NewRow {
        id: format!("id-{id:03}"),
        version_us: version,
        observed_us: version,
        cells: sources
            .iter()
            .enumerate()
            .skip(id % step)
            .step_by(step)
            .map(|(n, source)| (source.clone(), Cell::Text(format!("{n}.{id}.{version}"))))
            .collect(),
    };
    // The names that collide first, so that they have columns; then everything, then narrower.
    let first = NewRow {
        cells: colliding.iter().map(|name| ((*name).to_owned(), Cell::Text("first".into()))).collect(),
        ..of(0, 0, 1)
    };
    store.apply(batch(&[(TYPE, vec![first])], Vec::new())).await.unwrap();
    let mut rows: Vec<NewRow> = (0..40).map(|id| of(id, 1, if id == 0 { 1 } else { 3 })).collect();
    store.apply(batch(&[(TYPE, rows.clone())], Vec::new())).await.unwrap();
    for (version, ids) in [(2, 3..9), (3, 7..11)] {
        let again: Vec<NewRow> = ids.clone().map(|id| of(id, version, 97)).collect();
        rows[ids].clone_from_slice(&again);
        store.apply(batch(&[(TYPE, again)], Vec::new())).await.unwrap();
    }
    let (folder, table) = (lake.table(TYPE), lake.snapshot(TYPE).await.unwrap().unwrap());
    assert_eq!(table.kinds.len(), 2_000);
    let lower: std::collections::BTreeSet<String> = table.kinds.keys().map(|name| name.to_lowercase()).collect();
    assert_eq!(lower.len(), 2_000, "names that differ by case alone");
    let overflow = table.sources.iter().find(|(_, source)| *source == "+_lake_overflow").unwrap().0;
    let mut found = told(&table, &table.rows);
    for row in &table.rows {
        let beyond = row.get(overflow).map_or_else(BTreeMap::new, |json| serde_json::from_str(json).unwrap());
        assert!(row["_id"] != "id-000" || beyond.len() > 50, "{} fields found no column", beyond.len());
        found.get_mut(&row["_id"]).unwrap().extend(beyond);
    }
    assert_eq!(found, expected(&rows));
    assert!(table.hidden_rows > 5);
    let name_of = |source: &str| table.sources.iter().find(|(_, held)| *held == source).unwrap().0.as_str();
    let asked: Vec<&str> = colliding.into_iter().map(name_of).chain(["_id", "group__question_1500"]).collect();
    let inquiry = Inquiry::of_columns(&table, &asked, 1);
    let few = Inquiry { questions: inquiry.questions.iter().step_by(6).cloned().collect(), ..inquiry.clone() };
    let mut readers = Readers::of_folders().unwrap();
    ensure_seen(&mut readers, &Reader::QUICK, &folder, None, &inquiry, &table.rows);
    ensure_seen(&mut readers, &[Reader::Spark], &folder, None, &few, &table.rows);
    let whole = Inquiry { whole: true, ..Inquiry::default() };
    ensure_seen(&mut readers, &Reader::QUICK, &folder, None, &whole, &table.rows);
    ensure_seen(&mut readers, &[Reader::Spark3], &folder, None, &whole, &table.rows);
}

/// What delta-rs would cast in silence ('12' to 12, 2^53+1 to a neighbour, 'yes' to true) becomes a column of text, whose every value is as it
/// came; the versions before it have the old types.
#[tokio::test(flavor = "multi_thread")]
async fn a_type_changes_and_the_past_keeps_the_old_one() {
    for (columns, deletion_vectors) in
        [(&[] as &[&str], DeletionVectors::On), (&["supervisor_id"], DeletionVectors::On), (&[], DeletionVectors::Off)]
    {
        let lake = EngineLake::new().await.unwrap();
        let options = DeltaOptions { deletion_vectors, ..marking(columns) };
        let store = lake.open(&options).unwrap();
        let cells = |id: i64| {
            vec![
                ("/long", Cell::Number(id)),
                ("/double", Cell::Real(id as f64 / 4.0 + 0.125)),
                ("/boolean", Cell::Truth(id % 2 == 0)),
                ("/same", Cell::Number(-id)),
                ("+supervisor_id", Cell::Text(["anna", "a b"][(id % 2) as usize].into())),
            ]
        };
        let mut held: BTreeMap<String, NewRow> = BTreeMap::new();
        let mut past: Vec<(Snapshot, Told)> = Vec::new();
        let odd = |id: &str, version, source, cell| {
            vec![row(id, version, [(source, cell), ("+supervisor_id", Cell::Text("anna".into()))])]
        };
        let steps: Vec<Vec<NewRow>> = vec![
            (0..60).map(|id| row(&format!("id-{id:02}"), 0, cells(id))).collect(),
            (10..20).map(|id| row(&format!("id-{id:02}"), 1, cells(id + 100))).collect(),
            odd("id-03", 2, "/long", Cell::Text("12".into())),
            odd("id-04", 3, "/long", Cell::Text("007".into())),
            odd("id-05", 4, "/double", Cell::Number((1 << 53) + 1)),
            odd("id-06", 5, "/boolean", Cell::Text("yes".into())),
            (20..25).map(|id| row(&format!("id-{id:02}"), 6, cells(id + 200))).collect(),
        ];
        for step in steps {
            held.extend(step.iter().map(|row| (row.id.clone(), row.clone())));
            store.apply(batch(&[(TYPE, step)], Vec::new())).await.unwrap();
            past.push((lake.snapshot(TYPE).await.unwrap().unwrap(), expected(held.values())));
        }
        let kinds = |at: usize| ["long", "double", "boolean", "same"].map(|name| past[at].0.kinds[name].as_str());
        assert_eq!(kinds(1), ["long", "double", "boolean", "long"]);
        assert_eq!(kinds(6), ["string", "string", "string", "long"], "{options:?}");
        let folder = lake.table(TYPE);
        let mut readers = Readers::of_folders().unwrap();
        for (at, (table, expected)) in past.iter().enumerate() {
            assert_eq!(&told(table, &table.rows), expected, "step {at}");
            let inquiry = Inquiry::of_columns(table, &["_id", "long", "double", "boolean", "same", "supervisor_id"], 2);
            let whole =
                Inquiry { questions: inquiry.questions.iter().step_by(6).cloned().collect(), ..inquiry.clone() };
            let version = (at < past.len() - 1).then_some(table.version);
            ensure_seen(&mut readers, &Reader::QUICK, &folder, version, &inquiry, &table.rows);
            // Before the changes, between them, and now.
            if at == 3 || [1, 6].contains(&at) && columns.is_empty() {
                ensure_seen(&mut readers, &[Reader::Spark], &folder, version, &whole, &table.rows);
            }
            if [3, 6].contains(&at) && columns.is_empty() && deletion_vectors == DeletionVectors::On {
                ensure_seen(&mut readers, &[Reader::Spark3], &folder, version, &whole, &table.rows);
            }
        }
    }
}

/// Readers leave out row groups by their statistics, and must still know the place of each row that a vector hides.
#[tokio::test(flavor = "multi_thread")]
async fn vectors_hide_rows_over_the_borders_of_row_groups() {
    const ROWS: usize = 140_000;
    let lake = EngineLake::new().await.unwrap();
    let store = lake.open(&marking(&[])).unwrap();
    let of = |id: usize, version: i64| {
        // In the order of ids within the file, as the months are.
        row(&format!("id-{id:06}"), version, [("/n", Cell::Number(id as i64)), ("+month", month((id / 70_000) as i64))])
    };
    store.apply(batch(&[(TYPE, (0..ROWS).map(|id| of(id, 1)).collect())], Vec::new())).await.unwrap();
    let (folder, first) = (lake.table(TYPE), lake.snapshot(TYPE).await.unwrap().unwrap());
    let file = SerializedFileReader::new(File::open(first.used.iter().next().unwrap()).unwrap()).unwrap();
    let groups: Vec<usize> = file.metadata().row_groups().iter().map(|group| group.num_rows() as usize).collect();
    println!("row groups of {groups:?} rows");
    assert!(groups.len() > 1 && first.files == 1);
    let borders: Vec<usize> = groups
        .iter()
        .scan(0, |sum, rows| {
            *sum += rows;
            Some(*sum)
        })
        .filter(|&sum| sum < ROWS)
        .collect();
    let near = |id: usize| borders.iter().any(|&border| (border - 2..border + 2).contains(&id));
    let changed: Vec<NewRow> = (0..ROWS).filter(|&id| id % 997 == 3 || near(id)).map(|id| of(id, 2)).collect();
    let gone = |id: usize| id % 1_009 == 7 && !near(id) && id % 997 != 3;
    let leaving = (0..ROWS).filter(|&id| gone(id)).map(|id| tombstone(&format!("id-{id:06}"), Some(2), 2)).collect();
    store.apply(batch(&[(TYPE, changed.clone())], leaving)).await.unwrap();

    let table = lake.snapshot(TYPE).await.unwrap().unwrap();
    assert!(table.hidden_rows > 270 && table.files == 2, "{} hidden rows, {} files", table.hidden_rows, table.files);
    let mut wanted = expected((0..ROWS).filter(|&id| !gone(id)).map(|id| of(id, 1)).collect::<Vec<_>>().iter());
    wanted.extend(expected(&changed));
    assert!(told(&table, &table.rows) == wanted, "the files hold something else");
    let (long, border) = (|value: usize| value.to_string(), borders[0]);
    let mut questions = vec![
        vec![Condition::new("_id", "string", Test::NotNull([]))],
        vec![Condition::is("_lake_version", "long", "2")],
        vec![Condition::is("_lake_version", "long", "1"), Condition::is("month", "date", "2024-02-01")],
        vec![Condition::new("n", "long", Test::Within([long(border - 9), long(border + 9)]))],
        vec![Condition::new("n", "long", Test::From([long(ROWS - 900)]))],
        vec![Condition::new(
            "_id",
            "string",
            Test::Within([format!("id-{:06}", border - 3), format!("id-{border:06}")]),
        )],
        vec![Condition::is("n", "long", &long((0..ROWS).find(|&id| gone(id)).unwrap()))],
    ];
    questions.extend(
        [border - 3, border - 1, border, border + 5]
            .map(|id| vec![Condition::is("_id", "string", &format!("id-{id:06}"))]),
    );
    let columns =
        ["_id", "n", "month", "_lake_version"].map(|name| (name.to_owned(), table.kinds[name].clone())).to_vec();
    let inquiry = Inquiry { whole: false, questions, columns };
    let mut readers = Readers::of_folders().unwrap();
    ensure_seen(&mut readers, &Reader::QUICK, &folder, None, &inquiry, &table.rows);
    ensure_seen(&mut readers, &Reader::SPARKS, &folder, None, &inquiry, &table.rows);
    ensure_seen(&mut readers, &Reader::QUICK, &folder, Some(first.version), &inquiry, &first.rows);
}
