//! A writer follows its tables into a Hive Metastore, and Spark 4 and 3.5 read them by name.

use chrono::NaiveDate;
use lake_test_kit::rows::{Cell, NewRow};
use lake_tests::parts::{HiveMetastore, HiveVersion, Spark, SparkRelease, postgres_driver, wait_until};
use lake_writer::catalog::hive::HiveCatalog;
use lake_writer::catalog::{Catalog, CatalogKind, CatalogOptions};

use crate::stage::{PATIENCE, Stage};

fn spark_on(release: SparkRelease, hive: &HiveMetastore) -> Spark {
    let warehouse = format!("file://{}", hive.warehouse().display());
    let settings = [
        ("spark.sql.catalogImplementation", "hive"),
        ("spark.hadoop.hive.metastore.uris", &hive.uri()),
        ("spark.sql.warehouse.dir", &warehouse),
    ];
    Spark::start_with(release, &settings).unwrap()
}

/// A Spark without a metastore service, as the predecessor's: it opens the metastore's database itself.
fn spark_on_database(hive: &HiveMetastore) -> Spark {
    let driver = postgres_driver().unwrap().display().to_string();
    let settings = [
        ("spark.sql.catalogImplementation", "hive"),
        ("spark.hadoop.javax.jdo.option.ConnectionURL", hive.jdbc_url()),
        ("spark.hadoop.javax.jdo.option.ConnectionDriverName", "org.postgresql.Driver"),
        ("spark.hadoop.javax.jdo.option.ConnectionUserName", "lake"),
        ("spark.hadoop.javax.jdo.option.ConnectionPassword", "unused"),
        ("spark.hadoop.hive.metastore.schema.verification", "false"),
        ("spark.driver.extraClassPath", &driver),
    ];
    Spark::start_with(SparkRelease::Three, &settings).unwrap()
}

/// The tables of a database, as `SHOW TABLES` lists them.
fn shown(spark: &mut Spark, database: &str) -> Vec<String> {
    let rows = spark.sql(&[&format!("SHOW TABLES IN {database}")]).unwrap();
    let mut names: Vec<String> = rows.into_iter().map(|row| row[1].clone().unwrap()).collect();
    names.sort();
    names
}

/// The number of rows, and the names in them.
fn read(spark: &mut Spark, table: &str) -> (String, Vec<String>) {
    let count = spark.sql(&[&format!("SELECT count(*) FROM {table}")]).unwrap()[0][0].clone().unwrap();
    let rows = spark.sql(&[&format!("SELECT name FROM {table} ORDER BY name")]).unwrap();
    (count, rows.into_iter().map(|row| row[0].clone().unwrap()).collect())
}

fn lines(hive: &HiveMetastore) -> String {
    format!("kind = \"hive\"\nuris = [\"{}\"]\nconnect_timeout_ms = 1000\nrequest_timeout_ms = 30000\n", hive.uri())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_are_found_by_name_and_read_in_their_newest_state() {
    let stage = Stage::start().await;
    let mut hive = HiveMetastore::start(HiveVersion::Two, &stage.postgres).unwrap();
    hive.server().stop().unwrap();
    let mut writer = stage.writer(&lines(&hive)).await;

    // Ingest does not wait for the metastore.
    stage.fill("demo-space", "person", &["a", "b", "c"], 1).await;
    stage.fill("demo-space", "house", &["h"], 1).await;
    let status = stage.until("both tables wait", |status| status["pending"] == 2 && status["error"] != "").await;
    assert!(status["error"].as_str().unwrap().contains("does not answer"), "{status}");
    assert!(status["error_since"].is_string() && status["next_action"] != "", "{status}");
    let table = stage.json("table get demo_space_case_sql_person");
    assert_eq!(table["catalog"]["name"], "demo_space.case_sql_person");
    assert_eq!((&table["catalog"]["state"], &table["rows"]), (&"to create".into(), &3.into()));

    hive.server().start_again().unwrap();
    let status = stage.until("the catalog has caught up", |status| status["pending"] == 0).await;
    assert_eq!((&status["registered"], &status["error"], &status["lag_seconds"]), (&2.into(), &"".into(), &0.0.into()));
    assert_eq!(stage.json("table get demo_space_case_sql_person")["catalog"]["state"], "registered");
    let told = writer.service.log();
    assert_eq!(told.matches("the catalog cannot be used now").count(), 1, "an outage is told once: {told}");

    // An update and a new column: a deletion vector, and no call to the metastore.
    stage.fill("demo-space", "person", &["b", "d"], 2).await;
    for release in [SparkRelease::Four, SparkRelease::Three] {
        let mut spark = spark_on(release, &hive);
        assert_eq!(shown(&mut spark, "demo_space"), ["case_sql_house", "case_sql_person"], "{release}");
        let (count, names) = read(&mut spark, "demo_space.case_sql_person");
        assert_eq!(
            (count.as_str(), names),
            ("4", ["a 1", "b 2", "c 1", "d 2"].map(str::to_owned).to_vec()),
            "{release}"
        );
        let detail = spark.sql(&["DESCRIBE DETAIL demo_space.case_sql_person"]).unwrap();
        assert!(format!("{detail:?}").contains("deletionVectors"), "{release}: {detail:?}");
    }
    let mut spark = spark_on_database(&hive);
    assert_eq!(shown(&mut spark, "demo_space"), ["case_sql_house", "case_sql_person"], "through its database");
    assert_eq!(read(&mut spark, "demo_space.case_sql_person").0, "4");
    drop(spark);

    follows_changes(&stage, &hive).await;
    writer.end().unwrap();
}

/// Drops, drift, and what others made.
async fn follows_changes(stage: &Stage, hive: &HiveMetastore) {
    let mut spark = spark_on(SparkRelease::Four, hive);
    let theirs = hive.warehouse().join("theirs");
    let statements = [
        format!("CREATE TABLE demo_space.theirs USING delta LOCATION 'file://{}' AS SELECT 1 AS x", theirs.display()),
        // Where the lake will have a table of its own.
        format!("CREATE TABLE demo_space.case_sql_tree USING delta LOCATION 'file://{}'", theirs.display()),
    ];
    spark.sql(&statements.each_ref().map(String::as_str)).unwrap();
    stage.fill("demo-space", "tree", &["t"], 1).await;
    stage.until("the name is found to be taken", |status| status["taken"] == 1).await;
    // What leaves behind the lake's back is noticed by the next comparison of everything, or when somebody asks for the difference.
    spark.sql(&["DROP TABLE demo_space.case_sql_house"]).unwrap();

    let drift = stage.lakectl("catalog diff -o name");
    assert_eq!(drift.code, Some(1), "{drift:?}");
    assert_eq!(drift.stdout, "demo_space.case_sql_house\ndemo_space.case_sql_tree\n", "{drift:?}");
    let plan = stage.json("catalog sync --dry-run");
    let figures = |operation: &serde_json::Value| {
        ["created", "altered", "dropped", "taken"].map(|name| operation["result"][name].as_i64().unwrap())
    };
    assert_eq!(figures(&plan), [1, 0, 0, 1], "{plan}");
    assert_eq!(plan["target"], "the lake");
    let stale = stage.lakectl("catalog sync --plan 0000000000000000");
    assert!(stale.code == Some(1) && stale.stdout.contains("stale"), "{stale:?}");
    let synced = stage.json(&format!("catalog sync --plan {}", plan["plan_id"].as_str().unwrap()));
    assert_eq!((&synced["state"], figures(&synced)), (&"succeeded".into(), [1, 0, 0, 1]), "{synced}");
    let status = stage.json("catalog status");
    assert_eq!((&status["pending"], &status["taken"]), (&0.into(), &1.into()), "{status}");
    let taken = &status["entries"][0];
    assert_eq!((&taken["name"], &taken["state"]), (&"demo_space.case_sql_tree".into(), &"taken".into()));
    assert_eq!(read(&mut spark, "demo_space.case_sql_house").0, "1");

    assert_eq!(stage.lakectl("table drop demo_space_case_sql_house --yes").code, Some(0));
    stage.until("the dropped table has left", |status| status["registered"] == 1 && status["pending"] == 0).await;
    let names = shown(&mut spark, "demo_space");
    assert_eq!(names, ["case_sql_person", "case_sql_tree", "theirs"], "what others made stays");
    assert_eq!(spark.sql(&["SELECT x FROM demo_space.case_sql_tree"]).unwrap(), [[Some("1".to_owned())]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_names_of_the_predecessor_and_columns_are_to_be_had() {
    let stage = Stage::start().await;
    let hive = HiveMetastore::start(HiveVersion::Three, &stage.postgres).unwrap();
    let mut writer = stage.writer(&lines(&hive)).await;
    stage.fill("demo", "person", &["a"], 1).await;
    stage.until("it is registered", |status| status["registered"] == 1 && status["pending"] == 0).await;
    writer.end().unwrap();
    drop(writer);

    // Another naming is a rename: the old name leaves.
    let one = format!("{}databases = \"one\"\ncolumns = true\n", lines(&hive));
    let mut writer = stage.writer(&one).await;
    stage.until("it has its new name", |status| status["registered"] == 1 && status["pending"] == 0).await;
    assert_eq!(stage.json("table get demo_case_sql_person")["catalog"]["name"], "default.demo_case_sql_person");
    let mut spark = spark_on(SparkRelease::Four, &hive);
    assert_eq!(shown(&mut spark, "default"), ["demo_case_sql_person"]);
    assert_eq!(shown(&mut spark, "demo"), Vec::<String>::new());
    assert_eq!(read(&mut spark, "demo_case_sql_person").0, "1");

    // A new column changes what is registered.
    let options = CatalogOptions { uris: vec![hive.uri()], kind: CatalogKind::Hive, ..CatalogOptions::default() };
    let catalog = HiveCatalog::new(&options).unwrap();
    let before = catalog.tables("default").await.unwrap().remove(0).columns;
    assert!(!before.is_empty());
    stage.fill_column("demo", "person", &["b"], 2, "/age").await;
    let registered = wait_until("the new column is registered", PATIENCE, async || {
        Ok(catalog.tables("default").await?.remove(0).columns != before)
    });
    registered.await.unwrap();
    let counted = spark.sql(&["SELECT count(age), count(*) FROM demo_case_sql_person"]).unwrap();
    assert_eq!(counted, [[Some("1".to_owned()), Some("2".to_owned())]]);

    let visit = r#"[{"day":"1","weight":"2.5"},{"day":"2"}]"#;
    let cells = [
        ("+month", Cell::Date(NaiveDate::from_ymd_opt(2024, 5, 1).unwrap())),
        ("/opened_on", Cell::Moment(1_714_550_400_120_000)),
        ("/xform_ids", Cell::Text(r#"["f1","f2"]"#.into())),
        ("/visits", Cell::Text(visit.into())),
        ("+health-post_latitude", Cell::Real(26.5)),
    ];
    let cells = cells.map(|(source, cell)| (source.to_owned(), cell)).into();
    stage.fill_rows("demo", "visit", &[NewRow { id: "v".into(), version_us: 1, observed_us: 1, cells }]).await;
    shows_what_the_predecessor_showed(&stage);
    writer.end().unwrap();
}

/// The views that `lakectl` writes have the values and types that the predecessor's tables had, in both releases of Spark.
fn shows_what_the_predecessor_showed(stage: &Stage) {
    let printed = stage.lakectl(
        "table spark-views --domain demo --contains visit --database old --array visits --location-type health-post=Health",
    );
    assert_eq!(printed.code, Some(0), "{printed:?}");
    let statements: Vec<&str> = printed.stdout.split(";\n").filter(|statement| !statement.is_empty()).collect();
    assert_eq!(statements.len(), 2, "the database and the view: {printed:?}");
    let question = "SELECT month, opened_on, xform_ids[1], size(visits), visits[0].weight, Health_latitude, typeof(xform_ids), typeof(month)
        FROM old.demo_case_sql_visit";
    let wanted =
        ["2024-05-1", "2024-05-01T08:00:00.120000Z", "f2", "2", "2.5", "26.5000000000", "array<string>", "string"];
    for release in [SparkRelease::Four, SparkRelease::Three] {
        // Its own zone changes nothing.
        let mut spark = Spark::start_with(release, &[("spark.sql.session.timeZone", "Asia/Kolkata")]).unwrap();
        spark.sql(&statements).unwrap();
        assert_eq!(spark.sql(&[question]).unwrap(), [wanted.map(|cell| Some(cell.to_owned()))], "{release}");
        let own = spark.sql(&["SHOW COLUMNS IN old.demo_case_sql_visit"]).unwrap();
        assert!(!format!("{own:?}").contains("_lake_"), "{release}: {own:?}");
    }
}
