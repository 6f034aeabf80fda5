//! Cases and forms read from HQ's whole schema on a real server: options, columns of other versions, retired layouts, statements.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use lake_hq::documents::case::CaseOptions;
use lake_hq::documents::{case, form, location};
use lake_hq::postgres::{HqPostgresConfig, PostgresHq};
use lake_hq::source::{BlobReference, CaseRows, FormRows, HqDatabase, LocationKeys, ReadFrom};
use lake_simulated_hq::schema;
use lake_tests::parts::Postgres;
use serde_json::{Map, Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

/// A server with an HQ that keeps everything in one database.
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
        for tables in [schema::MAIN, schema::SHARD] {
            sqlx::raw_sql(tables).execute(&mut admin).await.unwrap();
        }
        Self { server, url, admin }
    }

    async fn run(&mut self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.admin).await.unwrap();
    }

    /// With ledger values and attachments, or without.
    async fn hq(&self, everything: bool) -> PostgresHq {
        let mut config = HqPostgresConfig::of_url(self.url.as_str());
        (config.ledger_values, config.form_attachments) = (everything, everything);
        PostgresHq::connect(&config).await.unwrap()
    }
}

async fn case_rows(hq: &PostgresHq, id: &str) -> CaseRows {
    hq.cases(&[id.to_owned()], ReadFrom::Primary).await.unwrap().remove(0).rows.unwrap()
}

async fn case_document(hq: &PostgresHq, id: &str) -> Map<String, Value> {
    case::to_json(&case_rows(hq, id).await, CaseOptions::default()).unwrap()
}

async fn form_rows(hq: &PostgresHq, id: &str) -> FormRows {
    hq.forms(&[id.to_owned()], ReadFrom::Primary).await.unwrap().remove(0).rows.unwrap()
}

/// `values` are those of the columns `case_id`, `case_json`.
fn insert_cases(values: &str) -> String {
    format!(
        "insert into form_processor_commcarecasesql (case_id, case_json, domain, type, name, owner_id, opened_on, opened_by, modified_on,
           server_modified_on, modified_by, closed, deleted, external_id, location_id)
         select id, properties, 'demo', 'person', 'Asha', 'loc9', '2026-01-02T10:00:00+05:30', 'u1', '2026-01-05T10:11:00.12Z',
           '2026-01-05T10:11:12.24Z', 'u1', false, false, '', 'loc1' from ({values}) as of_case (id, properties);"
    )
}

fn insert_forms(values: &str) -> String {
    format!(
        "insert into form_processor_xforminstancesql (form_id, domain, xmlns, user_id, received_on, auth_context, openrosa_headers,
           partial_submission, initial_processing_complete)
         select id, 'demo', 'x', 'u1', '2026-01-05T10:11:12Z', '{{}}', '{{}}', false, true from ({values}) as of_form (id);"
    )
}

#[tokio::test]
async fn every_option_stays_within_four_statements_for_500_ids() {
    let mut installation = Installation::start().await;
    let of_cases = insert_cases("select 'id' || n, '{}' from generate_series(1, 500) n");
    let of_forms = insert_forms("select 'id' || n from generate_series(1, 500) n");
    installation.run(&format!("{of_cases}{of_forms}")).await;
    installation
        .run(
            "insert into form_processor_ledgervalue (domain, case_id, entry_id, section_id, balance, last_modified)
               select 'demo', 'id' || n, 'p' || k, 'stock', n, now() from generate_series(1, 500) n, generate_series(1, 2) k;
             insert into blobs_blobmeta (domain, parent_id, name, key, type_code, content_length, created_on)
               select 'demo', 'id' || n, case k when 1 then 'form.xml' else 'photo' end, 'k' || n || '/' || k, k + 1, 9, now()
               from generate_series(1, 500) n, generate_series(1, 2) k;
             alter database commcarehq set log_statement = 'all'",
        )
        .await;
    let asked: Vec<String> = (1..=500).map(|n| format!("id{n}")).collect();
    let hq = installation.hq(true).await;

    let before = installation.server.server().log().len();
    let cases = hq.cases(&asked, ReadFrom::Primary).await.unwrap();
    assert!(
        cases.len() == 500
            && cases.iter().all(|case| case.rows.as_ref().unwrap().ledger_values.as_ref().unwrap().len() == 2)
    );
    assert_eq!(statements_since(&mut installation, before), 4);

    let before = installation.server.server().log().len();
    let forms = hq.forms(&asked, ReadFrom::Primary).await.unwrap();
    assert!(
        forms.len() == 500 && forms.iter().all(|form| form.rows.as_ref().unwrap().blobs.as_ref().unwrap().len() == 2)
    );
    assert!(forms.iter().all(|form| form.rows.as_ref().unwrap().xml.as_ref().unwrap().key.ends_with("/1")));
    assert_eq!(statements_since(&mut installation, before), 3);
}

/// Statements on HQ's tables; besides them there are only the beginning and the end of the transaction.
fn statements_since(installation: &mut Installation, before: usize) -> usize {
    let log = installation.server.server().log().split_off(before);
    let ran: Vec<&str> =
        log.lines().filter(|line| line.contains(" execute ") || line.contains(" statement: ")).collect();
    let on_tables =
        ran.iter().filter(|line| line.contains(" from form_processor_") || line.contains(" from blobs_")).count();
    assert_eq!(ran.len(), on_tables + 2, "{log}");
    on_tables
}

#[tokio::test]
async fn ledger_values_and_attachments_come_with_their_case() {
    let mut installation = Installation::start().await;
    installation.run(&insert_cases("values ('c1', '{\"ledger_values\": \"p\"}'), ('c2', '{}')")).await;
    installation
        .run(
            "insert into form_processor_ledgervalue (domain, case_id, entry_id, section_id, balance, last_modified, last_modified_form_id,
               daily_consumption) values
               ('demo', 'c1', 'p2', 'stock', -3, '2026-01-05T10:11:12.24Z', 'f1', 1.5),
               ('demo', 'c1', 'p1', 'stock', 7, '2026-01-05T10:11:12Z', null, null),
               ('demo', 'c1', 'p9', 'orders', 1, '2026-01-05T10:11:12Z', null, null);
             insert into form_processor_caseattachmentsql (case_id, attachment_id, name, content_type, content_length, properties, blob_id, md5)
               values ('c1', gen_random_uuid(), 'photo', 'image/jpeg', 3, '{}', 'b', 'm')",
        )
        .await;
    let hq = installation.hq(true).await;
    let document = case_document(&hq, "c1").await;
    let value = |id: &str, section: &str, entry: &str, balance: i64, at: &str, form: Value, daily: Value| {
        json!({"_id": id, "location_id": "loc1", "case_id": "c1", "domain": "demo", "entry_id": entry, "section_id": section,
            "balance": balance, "last_modified": at, "last_modified_form_id": form, "daily_consumption": daily})
    };
    let at = "2026-01-05T10:11:12.000000Z";
    let expected = [
        value("c1/orders/p9", "orders", "p9", 1, at, json!(null), json!(null)),
        value("c1/stock/p1", "stock", "p1", 7, at, json!(null), json!(null)),
        value("c1/stock/p2", "stock", "p2", -3, "2026-01-05T10:11:12.240000Z", json!("f1"), json!("1.50000")),
    ];
    assert_eq!(document["ledger_values"], json!(expected));
    let photo = json!({"photo": {"content_type": "image/jpeg", "content_length": 3, "name": "photo"}});
    assert_eq!(document["case_attachments"], photo);
    assert_eq!(document["case_json"], json!({"ledger_values": "p"}));
    assert_eq!(case_document(&hq, "c2").await["ledger_values"], json!([]));

    let hq = installation.hq(false).await;
    let document = case_document(&hq, "c1").await;
    assert_eq!((&document["ledger_values"], &document["case_attachments"]), (&json!("p"), &photo));
    // What is not asked for need not be there.
    installation.run("drop table form_processor_ledgervalue; drop table form_processor_caseattachmentsql").await;
    assert_eq!(case_document(&installation.hq(false).await, "c1").await["case_attachments"], json!({}));
    let mut config = HqPostgresConfig::of_url(installation.url.as_str());
    config.ledger_values = true;
    let refused = PostgresHq::connect(&config).await.err().unwrap().to_string();
    assert!(refused.contains("no table form_processor_ledgervalue"), "{refused}");
}

#[tokio::test]
async fn the_document_of_a_case_is_the_one_hq_makes() {
    let mut installation = Installation::start().await;
    let properties = r#"'{"village": "Rampur", "note": "a\ud800b", "nul": "x\u0000y", "type": "hidden"}'"#;
    installation.run(&insert_cases(&format!("values ('c1', {properties})"))).await;
    installation
        .run(
            "insert into form_processor_commcarecaseindexsql (case_id, domain, identifier, referenced_id, referenced_type, relationship_id)
               values ('c1', 'demo', 'parent', 'h1', 'household', 1);
             insert into form_processor_casetransaction (case_id, form_id, sync_log_id, server_date, client_date, type, revoked, details)
               values ('c1', 'f1', 's1', '2026-01-02T04:31:07.5Z', '2026-01-02T04:30:00Z', 129, false, null),
                      ('c1', null, null, '2026-01-05T10:11:12.24Z', null, 4, false, '{}')",
        )
        .await;
    let document = case_document(&installation.hq(false).await, "c1").await;
    let expected = json!({
        "village": "Rampur", "note": "a\u{fffd}b", "nul": "x\0y",
        "_id": "c1", "doc_type": "CommCareCase", "user_id": "u1",
        "case_json": {"village": "Rampur", "note": "a\u{fffd}b", "nul": "x\0y", "type": "hidden"},
        "case_id": "c1", "domain": "demo", "type": "person", "name": "Asha", "owner_id": "loc9",
        "opened_on": "2026-01-02T04:30:00.000000Z", "opened_by": "u1",
        "modified_on": "2026-01-05T10:11:00.120000Z", "server_modified_on": "2026-01-05T10:11:12.240000Z",
        "modified_by": "u1", "closed": false, "closed_on": null, "closed_by": null, "deleted": false,
        "external_id": "", "location_id": "loc1",
        "indices": [{"case_id": "c1", "identifier": "parent", "referenced_id": "h1", "referenced_type": "household",
                     "relationship": "child"}],
        "actions": [{"xform_id": "f1", "server_date": "2026-01-02T04:31:07.500000Z", "date": "2026-01-02T04:30:00.000000Z",
                     "sync_log_id": "s1"},
                    {"xform_id": null, "server_date": "2026-01-05T10:11:12.240000Z", "date": "2026-01-05T10:11:12.240000Z",
                     "sync_log_id": null}],
        "xform_ids": ["f1"], "case_attachments": {}, "backend_id": "sql"
    });
    assert_eq!(Value::Object(document), expected);
}

#[tokio::test]
async fn columns_that_hq_adds_and_drops_pass_through() {
    let mut installation = Installation::start().await;
    let (of_cases, of_forms) = (insert_cases("values ('c1', '{}')"), insert_forms("values ('f1')"));
    installation.run(&format!("{of_cases}{of_forms}")).await;
    let before = form::to_json(&form_rows(&installation.hq(false).await, "f1").await, Map::new()).unwrap();
    assert!(!before.contains_key("build_profile_id") && before.contains_key("build_id"));
    installation
        .run(
            "alter table form_processor_xforminstancesql add column build_profile_id varchar(255), add column form_load_time timestamptz
               default '2026-01-05T10:11:13Z', add column score numeric(6, 2) default 1.50, add column flags jsonb default '{\"a\":1}',
               drop column build_id;
             alter table form_processor_commcarecasesql add column is_new boolean default true, drop column location_id",
        )
        .await;
    let hq = installation.hq(false).await;
    let document = form::to_json(&form_rows(&hq, "f1").await, Map::new()).unwrap();
    assert_eq!(document["build_profile_id"], json!(null));
    assert_eq!(document["form_load_time"], "2026-01-05T10:11:13.000000Z");
    assert_eq!((&document["score"], &document["flags"]), (&json!("1.50"), &json!("{\"a\": 1}")));
    let excluded =
        ["id", "form_id", "time_start", "time_end", "commcare_version", "app_version", "deleted_on", "build_id"];
    assert!(excluded.iter().all(|key| !document.contains_key(*key)), "{:?}", document.keys());
    let document = case_document(&hq, "c1").await;
    assert_eq!(document["is_new"], true);
    assert!(!document.contains_key("location_id"));
}

#[tokio::test]
async fn blobs_of_a_form_come_by_name_where_they_are_asked_for() {
    let mut installation = Installation::start().await;
    installation.run(&insert_forms("values ('f1'), ('f2'), ('f3')")).await;
    installation
        .run(
            "insert into blobs_blobmeta (domain, parent_id, name, key, type_code, content_length, compressed_length, content_type, created_on)
             values ('demo', 'f1', 'photo.jpg', 'k0', 3, 9, null, 'image/jpeg', now()),
                    ('demo', 'f1', 'form.xml', 'k1', 3, 1, null, 'a photo of that name', now()),
                    ('demo', 'f1', 'form.xml', 'k2', 2, 100, 50, 'text/xml', now()),
                    ('demo', 'f2', 'form.xml', 'k3', 2, 7, null, null, now())",
        )
        .await;
    let (with, without) = (installation.hq(true).await, installation.hq(false).await);
    let xml = Some(BlobReference { key: "k2".into(), compressed: true, content_length: 100 });
    assert_eq!((form_rows(&with, "f1").await.xml, form_rows(&without, "f1").await.xml), (xml.clone(), xml));
    assert_eq!(form_rows(&without, "f1").await.blobs, None);
    let shown =
        async |id: &str| form::to_json(&form_rows(&with, id).await, Map::new()).unwrap()["external_blobs"].clone();
    let expected = json!({
        "photo.jpg": {"id": "k0", "content_type": "image/jpeg", "content_length": 9},
        "form.xml": {"id": "k1", "content_type": "a photo of that name", "content_length": 1},
    });
    assert_eq!(shown("f1").await, expected);
    assert_eq!(shown("f2").await, json!({"form.xml": {"id": "k3", "content_type": null, "content_length": 7}}));
    assert_eq!((shown("f3").await, form_rows(&with, "f3").await.xml), (json!({}), None));
}

/// In 2018 the metadata was a view, which showed old attachments with negative ids; nothing was compressed yet.
#[tokio::test]
async fn retired_layouts_of_blob_metadata_are_read() {
    let mut installation = Installation::start().await;
    installation.run(&insert_forms("values ('old'), ('new')")).await;
    installation
        .run(
            "alter table blobs_blobmeta drop column compressed_length;
             alter table blobs_blobmeta rename to blobs_blobmeta_tbl;
             create view blobs_blobmeta as
               select id, domain, parent_id, name, key, type_code, content_length, content_type, created_on from blobs_blobmeta_tbl
               union all
               select -a.id, f.domain, a.form_id, a.name,
                 case a.blob_bucket when '' then a.blob_id else coalesce(a.blob_bucket, 'form/' || replace(a.attachment_id::text, '-', ''))
                   || '/' || a.blob_id end,
                 (case a.name when 'form.xml' then 2 else 3 end)::smallint, a.content_length::bigint, a.content_type, f.received_on
               from form_processor_xformattachmentsql a join form_processor_xforminstancesql f using (form_id);
             insert into form_processor_xformattachmentsql (form_id, attachment_id, content_type, content_length, blob_id, blob_bucket, name,
               md5, properties) values
               ('old', '403724ef-9fe1-41f2-9083-63918c62c2ff', 'text/xml', 8, 'form.xml.Ab1', null, 'form.xml', '', '{}'),
               ('old', '403724ef-9fe1-41f2-9083-63918c62c200', 'image/png', 9, '0f', '', 'p.png', '', '{}');
             insert into blobs_blobmeta_tbl (domain, parent_id, name, key, type_code, content_length, created_on)
               values ('demo', 'new', 'form.xml', '0123456789abcdef0123456789abcdef', 2, 7, now())",
        )
        .await;
    for everything in [false, true] {
        let hq = installation.hq(everything).await;
        let old = BlobReference {
            key: "form/403724ef9fe141f2908363918c62c2ff/form.xml.Ab1".into(),
            compressed: false,
            content_length: 8,
        };
        assert_eq!(form_rows(&hq, "old").await.xml, Some(old));
        assert_eq!(form_rows(&hq, "new").await.xml.unwrap().key, "0123456789abcdef0123456789abcdef");
    }
    let hq = installation.hq(true).await;
    let document = form::to_json(&form_rows(&hq, "old").await, Map::new()).unwrap();
    assert_eq!(
        document["external_blobs"]["p.png"],
        json!({"id": "0f", "content_type": "image/png", "content_length": 9})
    );
}

/// What scripts have put into custom fields through HQ's API, and into properties by SQL: HQ reads all of it.
#[tokio::test]
async fn what_python_reads_in_a_json_column_is_read() {
    let mut installation = Installation::start().await;
    installation
        .run(&insert_cases(
            r#"values ('c', '{"flag": true, "count": 12, "nothing": null, "closed": {"@k": "yes"}, "ratio": 0.1, "exp": 1e400,
                "big": 123456789012345678901234567890, "phones": ["a", {"@k": "v"}, ""]}')"#,
        ))
        .await;
    installation
        .run(
            r#"insert into locations_locationtype (domain, name, code, administrative, shares_cases, view_descendants, expand_from_root,
                 has_users, emergency_level, understock_threshold, overstock_threshold, last_modified)
               values ('demo', 'facility', 'facility', false, false, false, false, true, 0, 0, 0, now());
               insert into locations_sqllocation (domain, name, location_id, location_type_id, site_code, metadata, created_at,
                 last_modified, is_archived, stocks_all_products, user_id)
               select 'demo', id, id, 1, id, metadata, now(), now(), false, true, '' from (values
                 ('bignum', '{"registry_no": 123456789012345678901}'),
                 ('blank',  ''),
                 ('inf',    '{"catchment": Infinity, "low": -Infinity}'),
                 ('list',   '[]'),
                 ('nan',    '{"catchment": NaN, "code": "7"}'),
                 ('nested', '{"contact": {"phone": "1", "tags": ["a"]}, "beds": 12, "open": true, "note": null, "": "empty key"}'),
                 ('nul',    '{"note": "a\u0000b"}')) as of_location (id, metadata)"#,
        )
        .await;
    let hq = installation.hq(false).await;
    let case = case_document(&hq, "c").await;
    let properties = json!({"flag": true, "count": 12, "nothing": null, "closed": {"@k": "yes"}, "ratio": 0.1, "exp": "Infinity",
        "big": "123456789012345678901234567890", "phones": ["a", {"@k": "v"}, ""]});
    assert_eq!((&case["case_json"], &case["big"], &case["closed"]), (&properties, &properties["big"], &json!(false)));
    let ids = ["bignum", "blank", "inf", "list", "nan", "nested", "nul"].map(str::to_owned);
    let mut rows = hq.location_rows(LocationKeys::LocationIds(&ids)).await.unwrap().rows;
    rows.sort_by(|one, other| one.location_id.cmp(&other.location_id));
    let metadata: Vec<Value> =
        rows.iter().map(|row| location::to_json(row, &[]).unwrap()["metadata"].clone()).collect();
    let expected = [
        json!({"registry_no": "123456789012345678901"}),
        json!({}),
        json!({"catchment": "Infinity", "low": "-Infinity"}),
        json!({}),
        json!({"catchment": "NaN", "code": "7"}),
        json!({"contact": {"phone": "1", "tags": ["a"]}, "beds": 12, "open": true, "note": null, "": "empty key"}),
        json!({"note": "a\0b"}),
    ];
    assert_eq!(metadata, expected);
}
