#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use lake_hq::locations::LocationTree;
use lake_hq::source::{LocationRow, LocationRows};
use lake_proto::queue::v1::{RowBatch, Tombstone};
use lake_shared::wire;
use serde_json::json;

use super::message::{Header, PayloadSizes, ipc_bytes, read_ipc, split};
use super::*;

fn locations(types: &[&str]) -> Arc<DomainLocations> {
    let rows = (0_i64..).zip(types).map(|(number, type_name)| LocationRow {
        id: number,
        location_id: format!("l{number}"),
        name: Some(format!("Name {number}")),
        type_name: (*type_name).into(),
        site_code: format!("site{number}"),
        latitude: Some(if number == 0 { 0.0 } else { 1.5 }),
        is_archived: number == 1,
        parent_id: number.checked_sub(1),
        ..LocationRow::default()
    });
    DomainLocations::new(LocationTree::from_rows(LocationRows { observed_us: 1, rows: rows.collect() }), 200)
}

fn table(kind: Kind, types: &[&str]) -> Table {
    Table {
        domain: "demo".into(),
        kind,
        document_type: "person".into(),
        locations: locations(types),
        case_json: CaseJson::Hidden,
    }
}

fn row<'a>(id: &'a str, location_id: Option<&'a str>, document: &'a Value) -> Row<'a> {
    Row {
        id,
        version_us: 5,
        observed_us: 6,
        lineage: None,
        month: None,
        location_id,
        incomplete: None,
        document: document.as_object().unwrap(),
    }
}

fn paths(batch: &RecordBatch) -> Vec<String> {
    batch.schema().fields().iter().map(|field| field.name().clone()).collect()
}

/// Cells of one row that are not NULL.
fn cells(batch: &RecordBatch, row: usize) -> BTreeMap<String, String> {
    let options = FormatOptions::default();
    // Showing zones would need a database of them.
    let show = |column: &ArrayRef| match column.as_primitive_opt::<TimestampMicrosecondType>() {
        Some(micros) => format!("@{}", micros.value(row)),
        None => ArrayFormatter::try_new(column, &options).unwrap().value(row).to_string(),
    };
    let valid = batch.columns().iter().zip(paths(batch)).filter(|(column, _)| column.is_valid(row));
    valid.map(|(column, path)| (path, show(column))).collect()
}

fn through_ipc(builder: RowsBuilder<'_>) -> RecordBatch {
    let batch = builder.finish().unwrap();
    let read = read_ipc(&ipc_bytes(&batch).unwrap()).unwrap();
    assert_eq!(read, std::slice::from_ref(&batch));
    batch
}

#[test]
fn a_case_has_its_columns_in_order() {
    let table = table(Kind::Case, &["state", "supervisor", "district"]);
    let mut builder = RowsBuilder::new(&table);
    builder.push(&row(
        "c1",
        None,
        &json!({"zebra": "z", "_id": "other", "domain": "other", "doc_type": "CommCareCase", "apple": "a"}),
    ));
    let batch = through_ipc(builder);
    let expected = [
        "/_id",
        "/domain",
        "+type",
        "/doc_type",
        "+month",
        "+supervisor_id",
        "/opened_on",
        "/modified_on",
        "/server_modified_on",
        "/closed_on",
        "/closed",
        "/deleted",
        "/user_id",
        "/case_id",
        "/name",
        "/owner_id",
        "/opened_by",
        "/modified_by",
        "/closed_by",
        "/external_id",
        "/location_id",
        "/backend_id",
        "/indices",
        "/actions",
        "/xform_ids",
        "+district_id",
        "+state_id",
        "+_lake_version",
        "+_lake_observed_at",
        "+_lake_topic",
        "+_lake_partition",
        "+_lake_offset",
        "+_lake_published_at",
        "+_lake_fetched_at",
        "+_lake_incomplete",
        "/apple",
        "/zebra",
    ];
    assert_eq!(paths(&batch), expected);
    assert!(batch.schema().fields().iter().all(|field| field.is_nullable()));
    let held = cells(&batch, 0);
    assert_eq!((held["/_id"].as_str(), held["/domain"].as_str(), held["+type"].as_str()), ("c1", "demo", "person"));
}

#[test]
fn thousands_of_location_types_do_not_make_thousands_of_columns() {
    let names: Vec<String> = (0..20_000).map(|number| format!("type {number}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for (kind, of_each) in [(Kind::Case, 1), (Kind::Location, 6)] {
        let table = table(kind, &names);
        let mut builder = RowsBuilder::new(&table);
        builder.push(&row("c1", Some("l2"), &json!({})));
        let batch = builder.finish().unwrap();
        assert!(batch.num_columns() <= 200 * of_each + 50, "{kind}: {}", batch.num_columns());
        let held = cells(&batch, 0);
        assert_eq!((held["+type 2_id"].as_str(), held["+type 0_id"].as_str()), ("l2", "l0"));
    }
}

#[test]
fn columns_are_typed() {
    let utc = || DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into()));
    let cases = [
        (Kind::Case, "/opened_on", utc()),
        (Kind::Case, "/closed", DataType::Boolean),
        (Kind::Case, "/indices", DataType::Utf8),
        (Kind::Case, "+month", DataType::Date32),
        (Kind::Form, "/state", DataType::Int64),
        (Kind::Form, "/date_header", utc()),
        (Kind::Form, "/history", DataType::Utf8),
        (Kind::Form, "/partial_submission", DataType::Boolean),
        (Kind::Location, "/latitude", DataType::Float64),
        (Kind::Location, "/archived_on", utc()),
        (Kind::Location, "+state_latitude", DataType::Float64),
        (Kind::Location, "+state_is_archived", DataType::Boolean),
        (Kind::Form, "+_lake_version", DataType::Int64),
        (Kind::Form, "+_lake_observed_at", utc()),
        (Kind::Form, "+_lake_partition", DataType::Int32),
        (Kind::Form, "+_lake_offset", DataType::Int64),
        (Kind::Form, "+_lake_published_at", utc()),
        (Kind::Form, "+_lake_fetched_at", utc()),
        (Kind::Form, "+_lake_topic", DataType::Utf8),
    ];
    for (kind, path, data_type) in cases {
        let table = table(kind, &["state"]);
        let mut builder = RowsBuilder::new(&table);
        builder.push(&row("x", None, &json!({})));
        assert_eq!(through_ipc(builder).schema().field_with_name(path).unwrap().data_type(), &data_type, "{path}");
    }
}

#[test]
fn every_cell_arrives_in_its_row() {
    let table = table(Kind::Case, &["state", "supervisor"]);
    let lineage =
        Lineage { topic: "case-sql".into(), partition: 3, offset: 9, published_us: 1_000_000, fetched_us: 2_000_000 };
    let mut builder = RowsBuilder::new(&table);
    builder.push(&row("c0", None, &json!({"a": "0"})));
    let full =
        json!({"a": "", "b": 7, "opened_on": "1970-01-01T00:00:01Z", "closed": true, "actions": [], "state_id": "x"});
    let month = NaiveDate::from_ymd_opt(2026, 2, 1);
    builder.push(&Row { month, lineage: Some(&lineage), ..row("c1", Some("l1"), &full) });
    builder.push(&row("c2", Some("gone"), &json!({"b": null, "closed": false})));
    let batch = through_ipc(builder);
    let common = |id: &str| {
        let pairs = [
            ("/_id", id),
            ("/domain", "demo"),
            ("+type", "person"),
            ("+_lake_version", "5"),
            ("+_lake_observed_at", "@6"),
        ];
        pairs.map(|(path, cell)| (path.to_owned(), cell.to_owned())).into_iter().collect::<BTreeMap<_, _>>()
    };
    let with = |id: &str, more: &[(&str, &str)]| {
        let mut cells = common(id);
        cells.extend(more.iter().map(|(path, cell)| ((*path).to_owned(), (*cell).to_owned())));
        cells
    };
    assert_eq!(cells(&batch, 0), with("c0", &[("/a", "0")]));
    assert_eq!(
        cells(&batch, 1),
        with(
            "c1",
            &[
                ("/a", ""),
                ("/b", "7"),
                ("/opened_on", "@1000000"),
                ("/closed", "true"),
                ("/actions", "[]"),
                ("+month", "2026-02-01"),
                ("+state_id", "l0"),
                ("+supervisor_id", "l1"),
                ("+_lake_topic", "case-sql"),
                ("+_lake_partition", "3"),
                ("+_lake_offset", "9"),
                ("+_lake_published_at", "@1000000"),
                ("+_lake_fetched_at", "@2000000"),
            ]
        )
    );
    assert_eq!(cells(&batch, 2), with("c2", &[("/closed", "false")]));
}

#[test]
fn a_location_shows_all_its_ancestors() {
    let table = table(Kind::Location, &["state", "district", "supervisor"]);
    let mut builder = RowsBuilder::new(&table);
    builder.push(&row("l1", Some("l1"), &json!({"name": "self"})));
    builder.push(&row("gone", Some("gone"), &json!({})));
    let batch = through_ipc(builder);
    let added: Vec<_> =
        cells(&batch, 0).into_iter().filter(|(path, _)| path.starts_with('+') && !path.starts_with("+_lake")).collect();
    let expected = [
        ("+district_id", "l1"),
        ("+district_is_archived", "true"),
        ("+district_latitude", "1.5"),
        ("+district_name", "Name 1"),
        ("+district_site_code", "site1"),
        ("+state_id", "l0"),
        ("+state_is_archived", "false"),
        ("+state_name", "Name 0"),
        ("+state_site_code", "site0"),
        ("+type", "person"),
    ];
    assert_eq!(added, expected.map(|(path, cell)| (path.to_owned(), cell.to_owned())));
    assert!(paths(&batch).contains(&"+supervisor_name".to_owned()) && paths(&batch).contains(&"+month".to_owned()));
    assert_eq!(paths(&batch).iter().filter(|path| *path == SUPERVISOR_ID).count(), 1);
    assert_eq!(cells(&batch, 1).keys().filter(|path| path.starts_with("+s") || path.starts_with("+d")).count(), 0);
}

/// The predecessor had no such column where the hierarchy has no such type.
#[test]
fn the_supervisor_is_there_without_a_type_of_that_name() {
    for types in [&[][..], &["state"]] {
        let table = table(Kind::Form, types);
        let mut builder = RowsBuilder::new(&table);
        builder.push(&row("f", Some("l0"), &json!({})));
        let batch = through_ipc(builder);
        assert!(batch.column_by_name(SUPERVISOR_ID).unwrap().is_null(0));
    }
}

#[test]
fn a_location_type_named_like_a_field_of_hq_takes_nothing_away() {
    let table = table(Kind::Case, &["user"]);
    let mut builder = RowsBuilder::new(&table);
    builder.push(&row("c", Some("l0"), &json!({"user_id": "u", "case_json": {"user_id": "property"}})));
    let held = cells(&through_ipc(builder), 0);
    assert_eq!((held["/user_id"].as_str(), held["+user_id"].as_str()), ("u", "l0"));
    assert_eq!(held["/case_json/user_id"], "property");
}

#[test]
fn types_that_drift_stay_text() {
    let table = table(Kind::Form, &[]);
    let mut builder = RowsBuilder::new(&table);
    for value in [json!("x"), json!(1), json!({"#text": "y"}), json!(["1", "2"]), json!(null), json!(true), json!({})] {
        builder.push(&row("f", None, &json!({"form": {"q": value}})));
    }
    let batch = through_ipc(builder);
    let shown: Vec<_> = (0..7).map(|row| cells(&batch, row).get("/form/q").cloned()).collect();
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(shown, [some("x"), some("1"), None, some(r#"["1","2"]"#), None, some("true"), None]);
    assert_eq!(cells(&batch, 2)["/form/q/#text"], "y");
}

#[test]
fn batches_over_the_limit_are_halved_and_keep_everything() {
    let table = table(Kind::Case, &[]);
    let mut builder = RowsBuilder::new(&table);
    // Text that cannot be compressed.
    let noise = |seed: u64| {
        (0..2_000).map(|n| lake_shared::escaped_names::fingerprint(&format!("{seed} {n}"))).collect::<String>()
    };
    for number in 0..10 {
        let text = if number == 6 { noise(number) + &noise(99) } else { noise(number)[..1_000].to_owned() };
        builder.push(&row(&number.to_string(), None, &json!({ "text": text })));
    }
    let batch = builder.finish().unwrap();
    let tombstones: Vec<_> = (0..3).map(|n| Tombstone { id: format!("t{n}"), ..Tombstone::default() }).collect();
    let header = Header { domain: "demo".into(), kind: 1, document_type: Some("person".into()) };
    let size_max = 20_000;
    // Alone, a row may be larger.
    let sizes = PayloadSizes { of_several: size_max, of_one: size_max };
    let (larger, oversized) =
        split(&header, Some(&batch), &tombstones, PayloadSizes { of_one: 200_000, ..sizes }).unwrap();
    assert!(oversized.is_empty());
    let beyond: Vec<_> =
        larger.iter().filter(|part| part.payload.len() > size_max).map(|part| part.rows.clone()).collect();
    assert_eq!(beyond, std::slice::from_ref(&(6..7)));
    let (parts, oversized) = split(&header, Some(&batch), &tombstones, sizes).unwrap();
    assert!(parts.len() > 1 && parts.iter().all(|part| part.payload.len() <= size_max));
    let mut ids = Vec::new();
    let mut dead = Vec::new();
    for part in parts {
        let message: RowBatch = wire::decode(&part.payload).unwrap();
        assert_eq!((message.domain.as_str(), message.r#type.as_deref()), ("demo", Some("person")));
        dead.extend(message.tombstones.into_iter().map(|tombstone| tombstone.id));
        if message.arrow_ipc.is_empty() {
            continue;
        }
        for rows in read_ipc(&message.arrow_ipc).unwrap() {
            ids.extend((0..rows.num_rows()).map(|row| cells(&rows, row)["/_id"].clone()));
        }
    }
    assert_eq!(ids, ["0", "1", "2", "3", "4", "5", "7", "8", "9"]);
    assert_eq!(dead, ["t0", "t1", "t2"]);
    assert_eq!((oversized.len(), oversized[0].index, oversized[0].is_tombstone), (1, 6, false));
    assert!(oversized[0].size > size_max);
}

#[test]
fn a_message_of_nothing_is_no_message() {
    assert_eq!(
        split(&Header::default(), None, &[], PayloadSizes { of_several: 100, of_one: 100 }).unwrap(),
        (vec![], vec![])
    );
}

/// Rows that share no column are the worst: the work is rows times columns, in one go each.
#[test]
fn many_columns_stay_cheap() {
    let table = table(Kind::Form, &[]);
    let began = std::time::Instant::now();
    let mut builder = RowsBuilder::new(&table);
    for number in 0..500 {
        let members: Map<String, Value> = (0..40).map(|q| (format!("q{}_{q}", number % 50), json!("answer"))).collect();
        builder.push(&row("f", None, &json!({ "form": members })));
    }
    assert!(builder.is_full(2_000) && !builder.is_full(2_001));
    let batch = builder.finish().unwrap();
    assert!(batch.num_columns() > 2_000);
    ipc_bytes(&batch).unwrap();
    // Some hundred times what it takes, so that a loaded machine does not matter; quadratic work would take minutes.
    assert!(began.elapsed().as_secs() < 10, "{:?}", began.elapsed());
}

#[test]
fn incomplete_rows_are_marked_and_bring_no_lists_that_were_not_read() {
    let table = table(Kind::Case, &["state"]);
    let mut builder = RowsBuilder::new(&table);
    let document = json!({"name": "n", "xform_ids": []});
    builder.push(&Row { incomplete: Some("record_too_large"), ..row("c", None, &document) });
    let batch = through_ipc(builder);
    let (held, paths) = (cells(&batch, 0), paths(&batch));
    assert_eq!((held["+_lake_incomplete"].as_str(), held["/xform_ids"].as_str()), ("record_too_large", "[]"));
    assert!(!paths.contains(&"/actions".into()) && !paths.contains(&"/indices".into()));
    assert!(paths.contains(&"/closed_on".into()), "HQ has none of it now");
}

/// What the fetcher leaves of a document that is too large is what is a column of its own here.
#[test]
fn own_fields_are_the_fixed_ones_without_the_lists() {
    for kind in Kind::ALL {
        let scalars = fields::fixed(kind).iter().filter(|field| field.field_type != FieldType::JsonText);
        let mut names: Vec<&str> = scalars.map(|field| field.name).collect();
        let mut own = lake_hq::documents::own_fields::names(kind).to_vec();
        // HQ's type of a case is the lake's `+type`.
        own.retain(|name| *name != "type");
        names.sort_unstable();
        own.sort_unstable();
        assert_eq!(own, names);
    }
}
