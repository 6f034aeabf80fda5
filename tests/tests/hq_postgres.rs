//! HQ's databases read through [`PostgresHq`], on a real server: rows, snapshots, statements, shards, trouble.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use lake_hq::documents::case::{CaseOptions, to_json};
use lake_hq::postgres::{HqPostgresConfig, PostgresHq};
use lake_hq::source::{BlobReference, HqDatabase, LocationKeys, Observation, ReadFrom, SourceError};
use lake_tests::parts::{Port, Postgres, wait_until};
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

const PATIENCE: Duration = Duration::from_secs(20);

/// As little as the adapter needs, with some columns that it has never heard of and JSON columns of the other possible types.
const RECORDS: &str = "
    create table form_processor_commcarecasesql (id serial primary key, case_id varchar(255) not null unique, domain varchar(255),
        type varchar(255), name varchar(255), modified_by varchar(255), opened_on timestamptz, server_modified_on timestamptz,
        deleted boolean, deleted_on timestamptz, case_json text, dropped int, odd_number numeric(20, 5), odd_id uuid, odd_list text[],
        \"Odd \"\"name\" json);
    alter table form_processor_commcarecasesql drop column dropped;
    create table form_processor_commcarecaseindexsql (id serial, case_id varchar(255), domain varchar(255), identifier varchar(255),
        referenced_id varchar(255), referenced_type varchar(255), relationship_id smallint);
    create table form_processor_casetransaction (id bigserial, case_id varchar(255), form_id varchar(255), sync_log_id varchar(255),
        server_date timestamptz, type smallint, revoked boolean, details text);
    create table form_processor_caseattachmentsql (id serial, case_id varchar(255), attachment_id uuid, name varchar(255),
        content_type varchar(255), content_length int, properties text);
    create table form_processor_xforminstancesql (id serial, form_id varchar(255) unique, domain varchar(255), xmlns varchar(255),
        user_id varchar(255), received_on timestamptz, server_modified_on timestamptz, deleted_on timestamptz, auth_context jsonb,
        openrosa_headers text, state smallint, partial_submission boolean, app_version integer, form_load_time timestamptz);
    create table form_processor_xformoperationsql (id serial, form_id varchar(255), operation varchar(255), date timestamptz,
        user_id varchar(255));
    create table blobs_blobmeta (id bigserial, domain varchar(255), parent_id varchar(255), name varchar(255), key varchar(255),
        type_code smallint, content_length bigint, compressed_length bigint, content_type varchar(255));";

const LOCATIONS: &str = "
    create table locations_locationtype (id serial primary key, domain varchar(255), name varchar(255), code varchar(50));
    create table locations_sqllocation (id serial primary key, domain varchar(255), name varchar(255), location_id varchar(100) unique,
        location_type_id int, site_code varchar(255), external_id varchar(255), metadata text, last_modified timestamptz,
        is_archived boolean, latitude numeric(20, 10), longitude numeric(20, 10), parent_id int);";

/// A server with one HQ in one database.
struct Installation {
    server: Postgres,
    url: String,
    admin: PgConnection,
}

impl Installation {
    async fn start() -> Self {
        let server = Postgres::start().unwrap();
        let url = server.create_database("commcarehq").unwrap();
        let mut admin = PgConnection::connect(&url).await.unwrap();
        for tables in [RECORDS, LOCATIONS] {
            sqlx::raw_sql(tables).execute(&mut admin).await.unwrap();
        }
        Self { server, url, admin }
    }

    async fn run(&mut self, sql: &str) {
        run(&mut self.admin, sql).await;
    }

    fn config(&self) -> HqPostgresConfig {
        HqPostgresConfig::of_url(self.url.as_str())
    }

    async fn hq(&self) -> PostgresHq {
        PostgresHq::connect(&self.config()).await.unwrap()
    }

    /// Waits until somebody waits for a lock.
    async fn until_blocked(&self) {
        let url = self.url.clone();
        wait_until("a reader waits for a lock", PATIENCE, async || {
            let mut connection = PgConnection::connect(&url).await?;
            let sql = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
            Ok(sqlx::query_scalar::<_, i64>(sql).fetch_one(&mut connection).await? > 0)
        })
        .await
        .unwrap();
    }
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

fn insert_case(id: &str) -> String {
    format!(
        "insert into form_processor_commcarecasesql (case_id, domain, type, modified_by, server_modified_on, deleted, case_json)
         values ('{id}', 'demo', 'person', 'u1', '2026-01-05T10:11:12.24Z', false, '{{}}');"
    )
}

fn ids(of: &[&str]) -> Vec<String> {
    of.iter().map(|id| (*id).to_owned()).collect()
}

fn by_id<T>(observations: Vec<Observation<T>>) -> HashMap<String, Observation<T>> {
    let count = observations.len();
    let by_id: HashMap<_, _> =
        observations.into_iter().map(|observation| (observation.id.clone(), observation)).collect();
    assert_eq!(by_id.len(), count, "an id was answered twice");
    by_id
}

#[tokio::test]
async fn cases_come_with_everything_that_belongs_to_them() {
    let mut installation = Installation::start().await;
    installation
        .run(
            r#"insert into form_processor_commcarecasesql (case_id, domain, type, name, modified_by, opened_on, server_modified_on, deleted,
                 case_json, odd_number, odd_id, odd_list, "Odd ""name") values
               ('C 1', 'demo', 'person', null, 'u1', '2026-01-02T10:00:00+05:30', '2026-01-05T10:11:12.24Z', false,
                '{"a": "x\u0000y", "closed": "c"}', 1.50000, '403724ef-9fe1-41f2-9083-63918c62c2ff', '{a,b}', '{"k":  1}'),
               ('c''2', 'elsewhere', '', 'n', '', 'infinity', '1969-12-31T23:59:59.999999Z', true, '', null, null, null, null);
               insert into form_processor_commcarecaseindexsql (case_id, domain, identifier, referenced_id, referenced_type, relationship_id)
               values ('C 1', 'demo', 'parent', 'h1', 'household', 1), ('other', 'demo', 'parent', 'h1', 'household', 1),
                      ('C 1', 'demo', 'host', '', 'household', 2);
               insert into form_processor_casetransaction (case_id, form_id, sync_log_id, server_date, type, revoked) values
               ('C 1', 'f2', 's', '2026-01-05T00:00:00Z', 1, false), ('C 1', 'f1', 's', '2026-01-04T00:00:00Z', 129, false),
               ('C 1', 'f0', 's', '2026-01-03T00:00:00Z', 1, true), ('C 1', null, null, '2026-01-06T00:00:00Z', 2, false);
               insert into form_processor_caseattachmentsql (case_id, attachment_id, name, content_type, content_length)
               values ('C 1', gen_random_uuid(), 'photo', 'image/jpeg', 3)"#,
        )
        .await;
    let hq = installation.hq().await;
    let before: i64 = now_us(&mut installation.admin).await;
    let asked = ids(&["C 1", "c'2", "c 1", "C 1", "nul\0", "", "x'); drop table blobs_blobmeta; --"]);
    let found = by_id(hq.cases(&asked, ReadFrom::Primary).await.unwrap());
    let after = now_us(&mut installation.admin).await;

    assert_eq!(found.len(), 6);
    assert!(found.values().all(|observation| (before..=after).contains(&observation.observed_us)));
    for missing in ["c 1", "nul\0", "", "x'); drop table blobs_blobmeta; --"] {
        assert_eq!(found[missing].rows, None, "{missing:?}");
    }
    let rows = found["C 1"].rows.as_ref().unwrap();
    assert_eq!(rows.case["opened_on"], "2026-01-02T04:30:00.000000Z");
    assert_eq!(rows.case["odd_number"], "1.50000");
    assert_eq!(rows.case["odd_list"], "{a,b}");
    assert_eq!(rows.case["Odd \"name"], "{\"k\":  1}");
    assert!(!rows.case.contains_key("dropped"));
    let document = to_json(rows, CaseOptions::default()).unwrap();
    assert_eq!(document["a"], "x\0y");
    assert_eq!(document["name"], json!(null));
    assert_eq!(document["xform_ids"], json!(["f1", "f2"]));
    assert_eq!(document["actions"].as_array().unwrap().len(), 3);
    assert_eq!(document["indices"][1]["relationship"], "extension");
    assert_eq!(document["case_attachments"]["photo"]["content_length"], 3);

    let deleted = found["c'2"].rows.as_ref().unwrap();
    assert_eq!(deleted.case["opened_on"], json!(null), "infinity");
    assert_eq!(deleted.case["server_modified_on"], "1969-12-31T23:59:59.999999Z");
    assert_eq!(to_json(deleted, CaseOptions::default()).unwrap()["doc_type"], "CommCareCase-Deleted");

    let mut config = installation.config();
    config.transactions = false;
    config.prepared_statements = true;
    let hq = PostgresHq::connect(&config).await.unwrap();
    for _ in 0..2 {
        let found = by_id(hq.cases(&asked, ReadFrom::Replica).await.unwrap());
        let rows = found["C 1"].rows.as_ref().unwrap();
        assert_eq!((rows.transactions.len(), rows.indices.len()), (0, 2));
    }
}

async fn now_us(connection: &mut PgConnection) -> i64 {
    let sql = "select (extract(epoch from clock_timestamp()) * 1000000)::bigint";
    sqlx::query_scalar(sql).fetch_one(connection).await.unwrap()
}

#[tokio::test]
async fn forms_come_with_history_and_the_place_of_their_xml() {
    let mut installation = Installation::start().await;
    installation
        .run(
            "insert into form_processor_xforminstancesql (form_id, domain, xmlns, received_on, auth_context, state, form_load_time) values
               ('f1', 'demo', 'x', '2026-01-05T10:11:12Z', '{\"doc_type\": \"A\"}', 1, '2026-01-05T10:11:13Z'),
               ('f2', 'demo', 'x', '2026-01-05T10:11:12Z', null, 2, null);
             insert into form_processor_xformoperationsql (form_id, operation, date) values
               ('f1', 'unarchive', '2026-01-07T00:00:00Z'), ('f1', 'archive', '2026-01-06T00:00:00Z');
             insert into blobs_blobmeta (domain, parent_id, name, key, type_code, content_length, compressed_length) values
               ('demo', 'f1', 'photo.jpg', 'k0', 3, 9, null), ('demo', 'f1', 'form.xml', 'k1', 2, 100, 50),
               ('demo', 'f1', 'form.xml', 'k2', 2, 100, null)",
        )
        .await;
    let hq = installation.hq().await;
    let found = by_id(hq.forms(&ids(&["f1", "f2", "f3"]), ReadFrom::Primary).await.unwrap());
    let rows = found["f1"].rows.as_ref().unwrap();
    assert_eq!(rows.xml, Some(BlobReference { key: "k1".into(), compressed: true, content_length: 100 }));
    assert_eq!(rows.form["form_load_time"], "2026-01-05T10:11:13.000000Z");
    assert_eq!(rows.form["auth_context"], "{\"doc_type\": \"A\"}");
    let history: Vec<_> = rows.operations.iter().map(|operation| operation["operation"].as_str().unwrap()).collect();
    assert_eq!(history, ["archive", "unarchive"]);
    let archived = found["f2"].rows.as_ref().unwrap();
    assert_eq!((archived.form["state"].as_i64(), &archived.xml), (Some(2), &None));
    assert_eq!(found["f3"].rows, None);
}

#[tokio::test]
async fn a_batch_of_500_costs_four_statements_and_three() {
    let mut installation = Installation::start().await;
    installation
        .run(
            "insert into form_processor_commcarecasesql (case_id, domain, type, modified_by, server_modified_on, deleted, case_json)
               select 'id' || n, 'demo', 'person', 'u', now(), false, '{}' from generate_series(1, 500) n;
             insert into form_processor_xforminstancesql (form_id, domain, xmlns, received_on, state)
               select 'id' || n, 'demo', 'x', now(), 1 from generate_series(1, 500) n;
             alter database commcarehq set log_statement = 'all'",
        )
        .await;
    let hq = installation.hq().await;
    let asked: Vec<String> = (1..=500).map(|n| format!("id{n}")).collect();
    let mut counts = BTreeMap::new();
    for (kind, limit) in [("cases", 4), ("forms", 3)] {
        let before = installation.server.server().log().len();
        let found = match kind {
            "cases" => {
                hq.cases(&asked, ReadFrom::Primary).await.unwrap().iter().filter(|one| one.rows.is_some()).count()
            }
            _ => hq.forms(&asked, ReadFrom::Primary).await.unwrap().iter().filter(|one| one.rows.is_some()).count(),
        };
        assert_eq!(found, 500);
        let log = installation.server.server().log().split_off(before);
        let ran: Vec<&str> =
            log.lines().filter(|line| line.contains(" execute ") || line.contains(" statement: ")).collect();
        let on_tables =
            ran.iter().filter(|line| line.contains(" from form_processor_") || line.contains(" from blobs_")).count();
        assert_eq!(on_tables, limit, "{log}");
        // Besides them only the beginning and the end of the transaction.
        assert_eq!(ran.len(), limit + 2, "{log}");
        counts.insert(kind, on_tables);
    }
    assert_eq!(counts, BTreeMap::from([("cases", 4), ("forms", 3)]));
}

#[tokio::test]
async fn all_statements_of_a_batch_see_one_state() {
    let mut installation = Installation::start().await;
    installation.run(&insert_case("c1")).await;
    let hq = Arc::new(installation.hq().await);
    let mut other = PgConnection::connect(&installation.url).await.unwrap();
    // The reader has the case and waits for its indices while both change.
    run(&mut other, "begin; lock table form_processor_commcarecaseindexsql in access exclusive mode").await;
    let reading = tokio::spawn({
        let hq = hq.clone();
        async move { hq.cases(&ids(&["c1"]), ReadFrom::Primary).await }
    });
    installation.until_blocked().await;
    run(
        &mut other,
        "update form_processor_commcarecasesql set name = 'new';
         insert into form_processor_commcarecaseindexsql (case_id, domain, identifier, referenced_id, referenced_type, relationship_id)
         values ('c1', 'demo', 'parent', 'h', 'h', 1);
         commit",
    )
    .await;
    let committed_us = now_us(&mut other).await;
    let seen = by_id(reading.await.unwrap().unwrap());
    let rows = seen["c1"].rows.as_ref().unwrap();
    assert_eq!((&rows.case["name"], rows.indices.len()), (&json!(null), 0));
    assert!(seen["c1"].observed_us < committed_us);
    let later = by_id(hq.cases(&ids(&["c1"]), ReadFrom::Primary).await.unwrap());
    assert!(later["c1"].observed_us > seen["c1"].observed_us);
    assert_eq!(later["c1"].rows.as_ref().unwrap().indices.len(), 1);
}

#[tokio::test]
async fn a_cancelled_or_timed_out_read_leaves_nothing_behind() {
    let mut installation = Installation::start().await;
    installation.run(&insert_case("c1")).await;
    let mut config = installation.config();
    config.connections_max = 1;
    let hq = Arc::new(PostgresHq::connect(&config).await.unwrap());
    config.statement_timeout_ms = 300;
    let hasty = PostgresHq::connect(&config).await.unwrap();
    let mut other = PgConnection::connect(&installation.url).await.unwrap();
    run(&mut other, "begin; lock table form_processor_commcarecasesql in access exclusive mode").await;
    let trouble = hasty.cases(&ids(&["c1"]), ReadFrom::Primary).await.unwrap_err();
    assert!(matches!(&trouble, SourceError::Unavailable { reason, .. } if reason.contains("57014")), "{trouble}");
    assert!(trouble.to_string().contains("read 1 cases from main database"), "{trouble}");

    let reading = tokio::spawn({
        let hq = hq.clone();
        async move { hq.cases(&ids(&["c1"]), ReadFrom::Primary).await }
    });
    installation.until_blocked().await;
    reading.abort();
    assert!(reading.await.unwrap_err().is_cancelled());
    run(&mut other, "rollback").await;
    for hq in [&hasty, &*hq] {
        let read = async || Ok(hq.cases(&ids(&["c1"]), ReadFrom::Primary).await?[0].rows.is_some());
        wait_until("it is read again", PATIENCE, read).await.unwrap();
        hq.check().await.unwrap();
    }
}

#[tokio::test]
async fn a_server_that_was_away_is_read_again() {
    let mut installation = Installation::start().await;
    // The cluster commits asynchronously and is killed hard below, which would lose the row.
    installation.run("set synchronous_commit = on").await;
    installation.run(&insert_case("c1")).await;
    let hq = installation.hq().await;
    assert!(hq.cases(&ids(&["c1"]), ReadFrom::Primary).await.unwrap()[0].rows.is_some());
    // The idle connection is dead now, which nobody may notice.
    installation.server.server().restart().unwrap();
    assert!(hq.cases(&ids(&["c1"]), ReadFrom::Primary).await.unwrap()[0].rows.is_some());
    installation.server.server().stop().unwrap();
    assert!(matches!(hq.check().await, Err(SourceError::Unavailable { .. })));
    assert!(matches!(hq.cases(&ids(&["c1"]), ReadFrom::Primary).await, Err(SourceError::Unavailable { .. })));
    installation.server.server().start_again().unwrap();
    hq.check().await.unwrap();
}

async fn refusal(config: &HqPostgresConfig) -> String {
    match PostgresHq::connect(config).await {
        Err(error @ SourceError::Refused { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was accepted"),
    }
}

#[tokio::test]
async fn what_somebody_must_act_on_is_refused_and_what_passes_is_not() {
    let mut installation = Installation::start().await;
    installation.run("create role reader login; grant select on all tables in schema public to reader").await;
    let as_reader = installation.url.replace("lake@", "reader:top-secret@");
    PostgresHq::connect(&HqPostgresConfig::of_url(as_reader.as_str())).await.unwrap();

    installation.run("revoke select on blobs_blobmeta from reader").await;
    let reason = refusal(&HqPostgresConfig::of_url(as_reader.as_str())).await;
    assert!(reason.contains("grant SELECT") && reason.contains("blobs_blobmeta"), "{reason}");

    let nobody = installation.url.replace("lake@", "nobody_here:top-secret@");
    let reason = refusal(&HqPostgresConfig::of_url(nobody.as_str())).await;
    assert!(reason.contains("check user") && !reason.contains("top-secret"), "{reason}");

    let elsewhere = installation.server.url("no_such_database");
    assert!(refusal(&HqPostgresConfig::of_url(elsewhere)).await.contains("check the database's name"));
    let empty = installation.server.create_database("empty").unwrap();
    assert!(refusal(&HqPostgresConfig::of_url(empty)).await.contains("there is no table"));

    installation.run("alter table form_processor_xforminstancesql rename column state to status").await;
    assert!(refusal(&installation.config()).await.contains("no column state"));
    installation.run("alter table form_processor_xforminstancesql rename column status to state").await;

    // A table that goes away later stops the reader with words, not with missing rows.
    let hq = installation.hq().await;
    installation.run("drop table form_processor_commcarecaseindexsql").await;
    installation.run(&insert_case("c1")).await;
    let gone = hq.cases(&ids(&["c1"]), ReadFrom::Primary).await.unwrap_err();
    let says = |error: &SourceError| matches!(error, SourceError::Refused { reason, .. } if reason.contains("there is no table"));
    assert!(says(&gone), "{gone}");
    assert!(says(&hq.check().await.unwrap_err()), "it is not ready");

    let port = Port::free().unwrap();
    let nowhere = HqPostgresConfig::of_url(format!("postgres://lake@127.0.0.1:{}/x", port.number()));
    assert!(matches!(PostgresHq::connect(&nowhere).await, Err(SourceError::Unavailable { .. })));
}

/// HQ is brought to another version while the reader runs.
#[tokio::test]
async fn columns_that_go_or_get_another_name_are_looked_up_again() {
    let mut installation = Installation::start().await;
    installation.run(&insert_case("c1")).await;
    installation
        .run(
            "insert into form_processor_xforminstancesql (form_id, domain, received_on, state) values ('f1', 'demo', now(), 1);
             insert into locations_locationtype (domain, name) values ('demo', 'village');
             insert into locations_sqllocation (domain, location_id, location_type_id, site_code, last_modified, is_archived, latitude)
             values ('demo', 'l1', 1, 's', now(), false, 3)",
        )
        .await;
    let prepared = HqPostgresConfig { prepared_statements: true, ..installation.config() };
    for hq in [installation.hq().await, PostgresHq::connect(&prepared).await.unwrap()] {
        let read = async || {
            let mut case = hq.cases(&ids(&["c1"]), ReadFrom::Primary).await?.remove(0).rows.unwrap().case;
            let form = hq.forms(&ids(&["f1"]), ReadFrom::Primary).await?.remove(0).rows.unwrap().form;
            let asked = ids(&["l1"]);
            let location = hq.location_rows(LocationKeys::LocationIds(&asked)).await?.rows.remove(0);
            Ok::<_, SourceError>((case.remove("title"), form.contains_key("user_id"), location.latitude))
        };
        assert_eq!(read().await.unwrap(), (None, true, Some(3.0)));
        let change = "alter table form_processor_commcarecasesql rename name to title;
                      update form_processor_commcarecasesql set title = 'T';
                      alter table form_processor_xforminstancesql drop user_id;
                      alter table locations_sqllocation rename latitude to north";
        installation.run(change).await;
        assert_eq!(read().await.unwrap(), (Some(json!("T")), false, None));
        hq.check().await.unwrap();

        // A column without which nothing can be decided: the reader says so until it is back.
        installation.run("alter table form_processor_xforminstancesql rename state to status").await;
        let error = hq.forms(&ids(&["f1"]), ReadFrom::Primary).await.unwrap_err().to_string();
        assert!(error.contains("no column state"), "{error}");
        assert!(hq.check().await.unwrap_err().to_string().contains("no column state"));
        let back = "alter table form_processor_xforminstancesql rename status to state;
                    alter table form_processor_xforminstancesql add user_id varchar(255);
                    alter table form_processor_commcarecasesql rename title to name;
                    alter table locations_sqllocation rename north to latitude";
        installation.run(back).await;
        read().await.unwrap();
        hq.check().await.unwrap();
    }
}

#[tokio::test]
async fn locations_come_with_their_types_and_their_domain_whatever_it_is() {
    let mut installation = Installation::start().await;
    installation
        .run(
            "insert into locations_locationtype (domain, name, code) values ('demo', 'Block Office', 'block'), ('demo', 'village', null);
             insert into locations_sqllocation (domain, name, location_id, location_type_id, site_code, metadata, last_modified, is_archived,
               latitude, longitude, parent_id) values
               ('demo', 'B', 'l1', 1, 'b', '{}', '2026-01-05T10:11:12.000001Z', true, 12.5, 0, null),
               ('demo', null, 'l2', 2, 'v', '{\"k\": \"v\"}', '2026-01-05T10:11:12Z', false, null, null, 1),
               ('other', 'X', 'l3', 2, 'x', '{}', '2026-01-05T10:11:12Z', false, null, null, null)",
        )
        .await;
    let hq = installation.hq().await;
    let before = now_us(&mut installation.admin).await;
    let asked = ids(&["l1", "l2", "l3", "gone", "l1", "nul\0"]);
    let mut found = hq.location_rows(LocationKeys::LocationIds(&asked)).await.unwrap();
    assert!(found.observed_us >= before);
    found.rows.sort_by_key(|row| row.id);
    let [block, village, other] = &found.rows[..] else { panic!("{found:?}") };
    assert_eq!(
        (block.type_name.as_str(), block.type_code.as_deref(), block.is_archived),
        ("Block Office", Some("block"), true)
    );
    assert_eq!(
        (block.latitude, block.longitude, block.last_modified_us),
        (Some(12.5), Some(0.0), 1_767_607_872_000_001)
    );
    assert_eq!((village.parent_id, village.name.as_deref(), village.latitude), (Some(block.id), None, None));
    assert_eq!((village.metadata.as_str(), village.archived_on_us), ("{\"k\": \"v\"}", None));
    assert_eq!((block.domain.as_str(), other.domain.as_str(), other.name.as_deref()), ("demo", "other", Some("X")));
    let numbers = [village.id, i64::MAX];
    let again = hq.location_rows(LocationKeys::Ids(&numbers)).await.unwrap();
    assert_eq!(again.rows.as_slice(), std::slice::from_ref(village));
}
