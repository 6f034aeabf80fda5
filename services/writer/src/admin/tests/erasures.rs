//! Erasing records through the interface.

use lake_proto::queue::v1::Quarantined;
use lake_shared::identity::Kind;

use super::quarantine::NOW_US;
use super::*;
use crate::metastore::steering::OperationFilter;

fn erase(request_id: &str, ids: &[&str], dry_run: bool, plan_id: &str) -> proto::EraseRecordsRequest {
    proto::EraseRecordsRequest {
        request_id: request_id.into(),
        space: Some(proto::Space { domain: "demo".into(), kind: proto::Kind::Case.into() }),
        ids: ids.iter().map(|&id| id.to_owned()).collect(),
        dry_run,
        plan_id: plan_id.into(),
    }
}

impl Clients {
    async fn erased(&mut self, asked: proto::EraseRecordsRequest) -> proto::Operation {
        let asked = self.trust.erase_records(with("admin", asked)).await.unwrap().into_inner();
        self.ended(asked.operation).await
    }

    async fn state_of(&mut self, id: &str) -> String {
        let request = proto::TraceRecordRequest { id: id.into(), ..Default::default() };
        self.records.trace_record(with("viewer", request)).await.unwrap().into_inner().state
    }

    async fn list_erased(&mut self, token: &str) -> Vec<proto::ErasedRecord> {
        let request = proto::ListErasedRecordsRequest::default();
        self.trust.list_erased_records(with(token, request)).await.unwrap().into_inner().records
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_erased_by_plan_and_their_ids_are_kept_nowhere() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    let secret = "5ca13e2a-77b0-4e79-81be-64bd76c43a11";
    writer.publish("person", &[secret, "b"], 1).await;
    let entry = Quarantined {
        reason: "row_fails".into(),
        domain: "demo".into(),
        kind: Kind::Case.to_proto() as i32,
        id: secret.into(),
        quarantined_us: *NOW_US,
        ..Quarantined::default()
    };
    writer.metastore.quarantine("writer", &entry).await.unwrap();
    let mut clients = Clients::of(&writer).await;

    let unplanned = clients.trust.erase_records(with("admin", erase("e0", &[secret], false, ""))).await.unwrap_err();
    assert!(unplanned.code() == Code::InvalidArgument && unplanned.message().contains("dry_run"), "{unplanned:?}");
    let denied = clients.trust.erase_records(with("operator", erase("e0", &[secret], true, ""))).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let hidden = clients.trust.erase_records(with("other", erase("e0", &[secret], true, ""))).await.unwrap_err();
    assert_eq!(hidden.code(), Code::NotFound);

    let planned = clients.erased(erase("e1", &[secret], true, "")).await;
    assert!(planned.dry_run && planned.kind() == proto::OperationKind::EraseRecords, "{planned:?}");
    let figures = ["records", "tables", "rows", "quarantined", "done"].map(|name| planned.result[name]);
    assert_eq!(figures, [1, 1, 1, 1, 0]);
    assert_eq!(clients.state_of(secret).await, "in_lake, quarantined");
    let done = clients.erased(erase("e2", &[secret], false, &planned.plan_id)).await;
    assert_eq!((done.state(), done.result["done"], done.result["rows"]), (proto::OperationState::Succeeded, 1, 1));
    assert_eq!(clients.state_of(secret).await, "erased");
    assert_eq!(clients.state_of("b").await, "in_lake");
    // The same request once more is the same operation, although its ids are not known any more.
    let again = clients.erased(erase("e2", &[secret], false, &planned.plan_id)).await;
    assert_eq!(again.id, done.id);

    let listed = clients.list_erased("viewer").await;
    assert_eq!((listed.len(), listed[0].operation_id.as_str()), (1, done.id.as_str()));
    assert!(listed[0].erased_at.is_some() && listed[0].report["rows"] == 1 && listed[0].asked_by == "admin");
    assert!(clients.list_erased("other").await.is_empty());
    let operations = writer.metastore.operations(&OperationFilter::default(), None, 100).await.unwrap();
    let audited = writer.metastore.audited(None, 100).await.unwrap();
    let kept = format!("{operations:?} {audited:?} {listed:?}");
    assert!(!kept.contains(secret) && kept.contains("erase_records (dry run)") && kept.contains("1 records"), "{kept}");

    // It is acknowledged, and nothing comes of it.
    writer.publish("person", &[secret, "c"], 2).await;
    assert_eq!((clients.state_of(secret).await.as_str(), clients.state_of("c").await.as_str()), ("erased", "in_lake"));
    let allow = |request_id: &str, id_hash: &str| proto::AllowRecordsRequest {
        request_id: request_id.into(),
        space: erase("", &[], false, "").space,
        ids: Vec::new(),
        id_hashes: vec![id_hash.into()],
    };
    let hash = listed[0].id_hash.clone();
    let denied = clients.trust.allow_records(with("operator", allow("a0", &hash))).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let allowed = clients.trust.allow_records(with("admin", allow("a1", &hash))).await.unwrap().into_inner();
    let allowed = clients.ended(allowed.operation).await;
    assert_eq!((allowed.result["allowed"], allowed.next_action.contains("backfill")), (1, true));
    writer.publish("person", &[secret], 3).await;
    assert_eq!(clients.state_of(secret).await, "in_lake");
    let second = clients.trust.allow_records(with("admin", allow("a2", &hash))).await.unwrap().into_inner();
    assert_eq!(clients.ended(second.operation).await.state(), proto::OperationState::Failed);
    writer.end().await;
}
