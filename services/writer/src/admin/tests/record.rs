//! Single records through the interface.

use lake_proto::queue::v1::{Quarantined, RowBatch, Tombstone};
use lake_shared::identity::Kind;
use lake_shared::queue::{Message, Queue};
use lake_shared::{escaped_names, wire};

use super::quarantine::NOW_US;
use super::*;
use crate::handle::test_writer::table;

/// Has an id leave; returns when that is committed.
async fn delete(writer: &Running, id: &str, reason: &str) {
    let key = table("person");
    let tombstone = Tombstone { id: id.into(), observed_us: 9, reason: reason.into(), ..Tombstone::default() };
    let payload = wire::encode(&RowBatch {
        domain: key.space.domain.to_string(),
        kind: Kind::Case.to_proto() as i32,
        tombstones: vec![tombstone],
        ..RowBatch::default()
    });
    let subject = escaped_names::rows_subject(&key.space.domain, Kind::Case, None);
    writer.queue.publish(Message { subject, payload, dedupe_id: id.into() }).await.unwrap();
}

impl Clients {
    async fn trace(&mut self, token: &str, id: &str, domain: &str) -> proto::TraceRecordResponse {
        let request = proto::TraceRecordRequest { id: id.into(), domain: domain.into(), ..Default::default() };
        self.records.trace_record(with(token, request)).await.unwrap().into_inner()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_traced_to_its_row_its_deletion_and_its_entry() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    writer.publish("person", &["a", "b", "gone", "archived"], 1).await;
    delete(&writer, "gone", "deleted").await;
    delete(&writer, "archived", "archived").await;
    let entry = Quarantined {
        reason: "row_fails".into(),
        domain: "demo".into(),
        kind: Kind::Case.to_proto() as i32,
        id: "a".into(),
        detail: "secret".into(),
        quarantined_us: *NOW_US,
        ..Quarantined::default()
    };
    writer.metastore.quarantine("writer", &entry).await.unwrap();
    let mut clients = Clients::of(&writer).await;

    let a = clients.trace("viewer", "a", "").await;
    assert_eq!((a.state.as_str(), a.spaces_searched), ("in_lake, quarantined", 1));
    let row = &a.rows[0];
    assert_eq!((row.table.as_str(), row.row, row.version), ("demo_case_sql_person", 0, Some(2)));
    assert!(row.file.ends_with(".parquet") && row.committed_at.is_some() && row.topic.is_none());
    assert_eq!(row.observed_at.as_ref().unwrap().nanos, 1_000);
    assert!(a.quarantined[0].reason == "row_fails" && !format!("{a:?}").contains("secret"));
    assert!(a.unknown.iter().any(|sentence| sentence.contains("[take]")));
    let b = clients.trace("viewer", "b", "demo").await;
    assert_eq!((b.state.as_str(), b.rows[0].table.as_str()), ("in_lake", "demo_case_sql_person"));
    assert_ne!((&b.rows[0].file, b.rows[0].row), (&row.file, row.row));

    let gone = clients.trace("viewer", "gone", "").await;
    assert_eq!((gone.state.as_str(), gone.rows.len()), ("deleted", 0));
    let deletion = &gone.deletions[0];
    assert_eq!((deletion.reason.as_str(), deletion.is_left_out), ("deleted", false));
    assert!(deletion.remembered_at.is_some() && deletion.observed_at.as_ref().unwrap().nanos == 9_000);
    let archived = clients.trace("viewer", "archived", "").await;
    assert_eq!((archived.state.as_str(), archived.deletions[0].is_left_out), ("left_out", true));
    assert_eq!(clients.trace("viewer", "never", "").await.state, "not_found");

    // A token of another project learns nothing.
    for id in ["a", "gone"] {
        let hidden = clients.trace("other", id, "").await;
        assert_eq!((hidden.state.as_str(), hidden.spaces_searched), ("not_found", 0));
    }
    assert_eq!(clients.trace("other", "a", "demo").await.state, "not_found");
    let refused = clients.records.trace_record(with("viewer", Default::default())).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);

    // Only the holder of the lease knows where rows are.
    let standby = Running::start_with_admin(&folder, "s", "", Some(options())).await;
    let mut others = Clients::of(&standby).await;
    let told = others.trace("viewer", "a", "").await;
    assert_eq!((told.state.as_str(), told.rows.len()), ("quarantined", 0));
    assert!(told.unknown[0].contains("where its row is"), "{:?}", told.unknown);
    standby.end().await;
    writer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_names_operations_and_dropped_tables() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    writer.publish("person", &["a"], 1).await;
    writer.publish("house", &["h"], 1).await;
    let mut clients = Clients::of(&writer).await;
    let drop = |request_id: &str, dry_run, plan_id: &str| proto::DropTablesRequest {
        request_id: request_id.into(),
        target: Some(proto::drop_tables_request::Target::Name("demo_case_sql_house".into())),
        dry_run,
        plan_id: plan_id.into(),
    };
    let planned = clients.tables.drop_tables(with("admin", drop("d1", true, ""))).await.unwrap().into_inner();
    let plan = clients.ended(planned.operation).await.plan_id;
    let asked = clients.tables.drop_tables(with("admin", drop("d2", false, &plan))).await.unwrap().into_inner();
    clients.ended(asked.operation).await;
    let house = clients.trace("viewer", "h", "").await;
    assert_eq!((house.rows.len(), house.dropped[0].name.as_str()), (0, "demo_case_sql_house"));

    // Nobody reads what the replay asks for: it goes on.
    let entry = Quarantined {
        reason: "row_fails".into(),
        domain: "demo".into(),
        kind: Kind::Case.to_proto() as i32,
        id: "a".into(),
        quarantined_us: *NOW_US,
        ..Quarantined::default()
    };
    writer.metastore.quarantine("writer", &entry).await.unwrap();
    let filter = Some(proto::QuarantineFilter { document_id: "a".into(), domain: "demo".into(), ..Default::default() });
    let request = proto::ReplayQuarantineRequest { request_id: "r".into(), filter, ..Default::default() };
    clients.quarantine.replay_quarantine(with("operator", request)).await.unwrap();
    let traced = clients.trace("viewer", "a", "").await;
    assert_eq!(traced.operations.iter().map(|operation| operation.request_id.as_str()).collect::<Vec<_>>(), ["r"]);
    assert_eq!(clients.trace("viewer", "b", "").await.operations, []);
    writer.end().await;
}
