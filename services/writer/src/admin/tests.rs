//! The interface of a whole writer, asked by a client over a real connection.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::time::Duration;

use lake_proto::admin::v1 as proto;
use lake_proto::admin::v1::lake_service_client::LakeServiceClient;
use lake_proto::admin::v1::operation_service_client::OperationServiceClient;
use lake_proto::admin::v1::quarantine_service_client::QuarantineServiceClient;
use lake_proto::admin::v1::record_service_client::RecordServiceClient;
use lake_proto::admin::v1::table_service_client::TableServiceClient;
use lake_proto::admin::v1::trust_service_client::TrustServiceClient;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::options::{AdminOptions, AdminToken, Role};
use crate::handle::test_writer::Running;

mod erasures;
mod quarantine;
mod random_requests;
mod record;
mod scaler;

const PATIENCE: Duration = Duration::from_secs(60);

/// Tokens of all roles, and one for a project alone; each is its name.
fn options() -> AdminOptions {
    let token = |name: &str, role, domains: Option<&str>| AdminToken {
        name: name.into(),
        sha256: Sha256::digest(name.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect(),
        role,
        domains: domains.map(|domain| [domain.to_owned()].into()),
    };
    let tokens = vec![
        token("viewer", Role::Viewer, None),
        token("operator", Role::Operator, None),
        token("admin", Role::Admin, None),
        token("other", Role::Admin, Some("other")),
    ];
    AdminOptions { address: "127.0.0.1:0".parse().unwrap(), status_page: true, scaler: true, tls: None, tokens }
}

/// Clients of one writer.
struct Clients {
    tables: TableServiceClient<Channel>,
    operations: OperationServiceClient<Channel>,
    quarantine: QuarantineServiceClient<Channel>,
    records: RecordServiceClient<Channel>,
    lake: LakeServiceClient<Channel>,
    trust: TrustServiceClient<Channel>,
}

impl Clients {
    async fn of(writer: &Running) -> Self {
        let address = writer.admin_address.unwrap();
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self {
            tables: TableServiceClient::new(channel.clone()),
            operations: OperationServiceClient::new(channel.clone()),
            quarantine: QuarantineServiceClient::new(channel.clone()),
            records: RecordServiceClient::new(channel.clone()),
            lake: LakeServiceClient::new(channel.clone()),
            trust: TrustServiceClient::new(channel),
        }
    }

    /// The operation at its end.
    async fn ended(&mut self, operation: Option<proto::Operation>) -> proto::Operation {
        let request = proto::WatchOperationRequest { id: operation.unwrap().id };
        let mut stream = self.operations.watch_operation(with("viewer", request)).await.unwrap().into_inner();
        let mut last = None;
        while let Some(told) = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap().unwrap() {
            last = told.operation;
        }
        last.unwrap()
    }
}

/// A request with a token.
fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

fn compaction(request_id: &str, name: &str) -> proto::CompactTableRequest {
    proto::CompactTableRequest { request_id: request_id.into(), name: name.into(), ..Default::default() }
}

async fn writer(folder: &TempDir) -> Running {
    let running = Running::start_with_admin(folder, "w", "", Some(options())).await;
    running.until_holding().await;
    running
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_are_seen_and_compacted() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    for (version, id) in ["a", "b", "c", "d"].into_iter().enumerate() {
        writer.publish("person", &[id], version as i64 + 1).await;
    }
    writer.publish("house", &["h"], 1).await;
    let mut clients = Clients::of(&writer).await;

    let all = proto::ListTablesRequest { page_size: 1, ..Default::default() };
    let first = clients.tables.list_tables(with("viewer", all.clone())).await.unwrap().into_inner();
    let next = proto::ListTablesRequest { page_token: first.next_page_token, ..all };
    let second = clients.tables.list_tables(with("viewer", next)).await.unwrap().into_inner();
    let names: Vec<String> = first.tables.into_iter().chain(second.tables).map(|table| table.name).collect();
    assert_eq!(names, ["demo_case_sql_house", "demo_case_sql_person"]);
    let contains = proto::ListTablesRequest { name_contains: "PERS".into(), ..Default::default() };
    let found = clients.tables.list_tables(with("viewer", contains)).await.unwrap().into_inner();
    assert_eq!((found.tables.len(), found.next_page_token.as_str()), (1, ""));

    let named = proto::GetTableRequest { name: "demo_case_sql_person".into() };
    let person = clients.tables.get_table(with("viewer", named.clone())).await.unwrap().into_inner();
    let table = person.table.unwrap();
    assert_eq!((table.rows, table.files, table.version), (4, 4, Some(3)));
    assert!(table.bytes > 0 && table.last_commit_at.is_some() && table.location.ends_with("/demo/case-sql/person"));
    assert!(person.columns.iter().any(|column| column.source == "/_id" && column.r#type == "string"));
    assert_eq!(person.in_memory.unwrap().rows_waiting, 0);

    let compact = compaction("r1", "demo_case_sql_person");
    let asked = clients.tables.compact_table(with("operator", compact.clone())).await.unwrap().into_inner();
    let again = clients.tables.compact_table(with("operator", compact)).await.unwrap().into_inner();
    let id = |operation: &Option<proto::Operation>| operation.as_ref().unwrap().id.clone();
    assert_eq!(id(&asked.operation), id(&again.operation), "the same request is the same operation");
    let ended = clients.ended(asked.operation).await;
    assert_eq!(ended.state(), proto::OperationState::Succeeded, "{ended:?}");
    let result: BTreeMap<&str, i64> = ended.result.iter().map(|(name, figure)| (name.as_str(), *figure)).collect();
    assert_eq!((result["commits"], result["files_before"], result["files_after"]), (1, 4, 1));
    assert_eq!((ended.asked_by.as_str(), ended.attempts), ("operator", 1));
    let person = clients.tables.get_table(with("viewer", named)).await.unwrap().into_inner();
    assert_eq!(person.table.unwrap().files, 1);

    let reused = compaction("r1", "demo_case_sql_house");
    let refused = clients.tables.compact_table(with("operator", reused)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let space = proto::Space { domain: "demo".into(), kind: proto::Kind::Case.into() };
    let clean = proto::CleanUpSpaceRequest { request_id: "r2".into(), space: Some(space) };
    let asked = clients.tables.clean_up_space(with("operator", clean)).await.unwrap().into_inner();
    let ended = clients.ended(asked.operation).await;
    assert_eq!((ended.state(), ended.result["tables"]), (proto::OperationState::Succeeded, 2));
    let listed = clients.operations.list_operations(with("viewer", Default::default())).await.unwrap().into_inner();
    assert_eq!(listed.operations.iter().map(|one| one.request_id.as_str()).collect::<Vec<_>>(), ["r2", "r1"]);
    let written = clients.lake.list_audit_records(with("admin", Default::default())).await.unwrap().into_inner();
    let calls: Vec<&str> = written.records.iter().map(|record| record.call.as_str()).collect();
    assert_eq!(calls.iter().filter(|call| **call == "compact_table").count(), 3, "also what was refused");
    assert!(calls.contains(&"clean_up_space"));
    writer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_and_a_project_bound_what_a_token_may() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    writer.publish("person", &["a"], 1).await;
    let mut clients = Clients::of(&writer).await;
    let name = "demo_case_sql_person".to_owned();
    let compact = || compaction("r", &name);
    let refused = clients.tables.compact_table(with("viewer", compact())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = clients.lake.pause(with("viewer", Default::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = clients.lake.list_audit_records(with("operator", Default::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    for token in ["", "wrong"] {
        let refused = clients.lake.get_status(with(token, Default::default())).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated);
    }

    // A token of another project sees nothing and changes nothing.
    let asked = clients.tables.compact_table(with("operator", compact())).await.unwrap().into_inner();
    let operation = clients.ended(asked.operation).await;
    let listed = clients.tables.list_tables(with("other", Default::default())).await.unwrap().into_inner();
    assert_eq!(listed.tables, []);
    let listed = clients.operations.list_operations(with("other", Default::default())).await.unwrap().into_inner();
    assert_eq!(listed.operations, []);
    let absent = [
        clients.tables.get_table(with("other", proto::GetTableRequest { name: name.clone() })).await.err(),
        clients.tables.compact_table(with("other", compact())).await.err(),
        clients
            .operations
            .get_operation(with("other", proto::GetOperationRequest { id: operation.id.clone() }))
            .await
            .err(),
        clients
            .operations
            .cancel_operation(with("other", proto::CancelOperationRequest { id: operation.id }))
            .await
            .err(),
    ];
    for refused in absent {
        assert_eq!(refused.unwrap().code(), Code::NotFound);
    }
    let refused = clients.lake.pause(with("other", Default::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let status = clients.lake.get_status(with("other", Default::default())).await.unwrap().into_inner();
    assert_eq!((status.tables, status.operations_open, status.ingest.unwrap().spaces_in_use), (0, 0, 0));
    writer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_the_writer_and_ends_when_it_is_told() {
    let folder = TempDir::new().unwrap();
    let first = writer(&folder).await;
    first.publish("person", &["a"], 1).await;
    let mut clients = Clients::of(&first).await;
    let space = proto::Space { domain: "demo".into(), kind: proto::Kind::Case.into() };
    let pause = proto::PauseRequest { space: Some(space.clone()), reason: "a migration".into() };
    let paused = clients.lake.pause(with("operator", pause)).await.unwrap().into_inner();
    assert_eq!(paused.pauses.len(), 1);
    assert_eq!((paused.pauses[0].asked_by.as_str(), paused.pauses[0].reason.as_str()), ("operator", "a migration"));
    assert!(paused.pauses[0].in_force_at.is_some());
    first.end().await;

    let second = writer(&folder).await;
    let mut clients = Clients::of(&second).await;
    let status = clients.lake.get_status(with("viewer", Default::default())).await.unwrap().into_inner();
    assert_eq!(status.pauses.len(), 1);
    let named = || with("viewer", proto::GetTableRequest { name: "demo_case_sql_person".into() });
    let mut rows = Box::pin(second.publish("person", &["b"], 2));
    tokio::select! {
        () = &mut rows => panic!("rows of a paused space are committed"),
        // The row has come into the queue before this is answered many times.
        () = async {
            for _ in 0..50 {
                clients.tables.get_table(named()).await.unwrap();
            }
        } => {}
    }
    let resumed = clients.lake.resume(with("operator", proto::ResumeRequest { space: Some(space) })).await.unwrap();
    assert_eq!(resumed.into_inner().pauses, []);
    rows.await;
    let person = clients.tables.get_table(named()).await.unwrap().into_inner();
    assert_eq!(person.table.unwrap().rows, 2);
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_stands_by_answers_and_what_it_is_asked_for_is_done_by_the_holder() {
    let folder = TempDir::new().unwrap();
    let holder = writer(&folder).await;
    for version in 1..5 {
        holder.publish("person", &[&format!("p{version}")], version).await;
    }
    let standby = Running::start_with_admin(&folder, "s", "", Some(options())).await;
    let mut clients = Clients::of(&standby).await;
    let status = clients.lake.get_status(with("viewer", Default::default())).await.unwrap().into_inner();
    assert_eq!(status.asked.unwrap().role(), proto::WriterRole::StandingBy);
    assert!(status.holder.unwrap().name.starts_with("w-") && status.ingest.is_none());
    let named = proto::GetTableRequest { name: "demo_case_sql_person".into() };
    let person = clients.tables.get_table(with("viewer", named)).await.unwrap().into_inner();
    assert_eq!((person.table.unwrap().rows, person.in_memory), (4, None));
    let compact = compaction("r", "demo_case_sql_person");
    let asked = clients.tables.compact_table(with("operator", compact)).await.unwrap().into_inner();
    let ended = clients.ended(asked.operation).await;
    assert_eq!((ended.state(), ended.result["files_after"]), (proto::OperationState::Succeeded, 1));
    standby.end().await;
    holder.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_dropped_by_a_plan_and_made_anew_only_when_that_is_asked_for() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    writer.publish("person", &["a", "b"], 1).await;
    let mut clients = Clients::of(&writer).await;
    let name = || "demo_case_sql_person".to_owned();
    let versions = proto::ListTableVersionsRequest { name: name(), ..Default::default() };
    let versions = clients.tables.list_table_versions(with("viewer", versions)).await.unwrap().into_inner().versions;
    assert_eq!((versions.len(), versions[0].rows_written, versions[0].by_lake), (1, 2, true));
    let files = proto::ListTableFilesRequest { name: name(), ..Default::default() };
    let files = clients.tables.list_table_files(with("viewer", files)).await.unwrap().into_inner();
    assert_eq!((files.version, files.files.len(), files.files[0].rows), (0, 1, Some(2)));

    let drop = |request_id: &str, dry_run, plan_id: &str| proto::DropTablesRequest {
        request_id: request_id.into(),
        target: Some(proto::drop_tables_request::Target::Name(name())),
        dry_run,
        plan_id: plan_id.into(),
    };
    let refused = clients.tables.drop_tables(with("operator", drop("d0", true, ""))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = clients.tables.drop_tables(with("other", drop("d0", true, ""))).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = clients.tables.drop_tables(with("admin", drop("d0", false, ""))).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("dry_run"), "{refused}");
    let planned = clients.tables.drop_tables(with("admin", drop("d1", true, ""))).await.unwrap().into_inner();
    let planned = clients.ended(planned.operation).await;
    assert!(planned.dry_run && planned.result["rows"] == 2 && planned.result["done"] == 0, "{planned:?}");

    // Something was written since.
    writer.publish("person", &["c"], 2).await;
    let stale = clients.tables.drop_tables(with("admin", drop("d2", false, &planned.plan_id))).await.unwrap();
    let stale = clients.ended(stale.into_inner().operation).await;
    assert_eq!(stale.state(), proto::OperationState::Failed);
    assert!(stale.reason.contains("stale"), "{stale:?}");
    let planned = clients.tables.drop_tables(with("admin", drop("d3", true, ""))).await.unwrap().into_inner();
    let planned = clients.ended(planned.operation).await;
    let asked = clients.tables.drop_tables(with("admin", drop("d4", false, &planned.plan_id))).await.unwrap();
    let done = clients.ended(asked.into_inner().operation).await;
    assert_eq!((done.state(), done.result["rows"]), (proto::OperationState::Succeeded, 3), "{done:?}");
    let again = clients.tables.drop_tables(with("admin", drop("d4", false, &planned.plan_id))).await.unwrap();
    assert_eq!(again.into_inner().operation.unwrap().id, done.id, "the same request, although the table is gone");

    let dropped = clients.tables.list_dropped_tables(with("viewer", Default::default())).await.unwrap().into_inner();
    assert_eq!((dropped.tables.len(), dropped.tables[0].name.as_str()), (1, name().as_str()));
    assert_eq!((dropped.tables[0].asked_by.as_str(), dropped.tables[0].files_gone), ("admin", true));
    let seen = clients.tables.list_dropped_tables(with("other", Default::default())).await.unwrap().into_inner();
    assert_eq!(seen.tables, []);
    let space = proto::Space { domain: "demo".into(), kind: proto::Kind::Case.into() };
    let allow =
        proto::AllowTablesRequest { request_id: "a1".into(), space: Some(space), r#type: Some("person".into()) };
    let allowed = clients.tables.allow_tables(with("admin", allow.clone())).await.unwrap().into_inner();
    assert_eq!(clients.ended(allowed.operation).await.result["allowed"], 1);
    let nothing = proto::AllowTablesRequest { request_id: "a2".into(), ..allow };
    let refused = clients.tables.allow_tables(with("admin", nothing)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    writer.publish("person", &["d"], 3).await;
    let person = clients.tables.get_table(with("viewer", proto::GetTableRequest { name: name() })).await.unwrap();
    assert_eq!(person.into_inner().table.unwrap().rows, 1);
    let audited = clients.lake.list_audit_records(with("admin", Default::default())).await.unwrap().into_inner();
    let calls: Vec<&str> = audited.records.iter().map(|record| record.call.as_str()).collect();
    let asked = ["allow_tables", "drop_tables", "drop_tables", "drop_tables (dry run)", "drop_tables"];
    assert_eq!(calls[..5], asked, "each time that it was asked for");
    writer.end().await;
}
