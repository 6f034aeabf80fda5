//! The quarantine through the interface, with a stand-in for the fetchers and the enrichers.

use std::sync::LazyLock;

use lake_proto::queue::v1::change_request::What;
use lake_proto::queue::v1::{ChangeRequest, Quarantined};
use lake_shared::identity::Kind;
use lake_shared::queue::{Consumer, ConsumerOptions, Queue, Stream};
use lake_shared::wire;

use super::*;
use crate::admin::convert;

/// Entries of long ago would leave by themselves.
pub(super) static NOW_US: LazyLock<i64> = LazyLock::new(|| chrono::Utc::now().timestamp_micros());

fn entry(id: &str, after_us: i64) -> Quarantined {
    Quarantined {
        reason: "row_fails".into(),
        detail: "the value `Ann` cannot be stored".into(),
        domain: "demo".into(),
        kind: Kind::Case.to_proto() as i32,
        r#type: "person".into(),
        id: id.into(),
        payload: br#"{"name": "Ann"}"#.to_vec().into(),
        quarantined_us: *NOW_US + after_us,
        ..Quarantined::default()
    }
}

fn about(id: &str) -> Option<proto::QuarantineFilter> {
    let (domain, document_id) = ("demo".to_owned(), id.to_owned());
    Some(proto::QuarantineFilter { domain, document_id, ..Default::default() })
}

async fn requests(writer: &Running) -> Box<dyn Consumer> {
    let options = ConsumerOptions { durable_name: "fetcher".into(), in_flight_max: 9, acknowledge_within: PATIENCE };
    writer.queue.consumer(Stream::Changes, options).await.unwrap()
}

/// Hears what is asked for, has that done, and says that it is.
async fn answer(requests: &mut Box<dyn Consumer>, work: impl AsyncFnOnce(Vec<String>)) {
    let delivery = tokio::time::timeout(PATIENCE, requests.next()).await.unwrap().unwrap().unwrap();
    let request: ChangeRequest = wire::decode(&delivery.payload).unwrap();
    assert_eq!((request.domain.as_str(), request.cause().as_str_name()), ("demo", "CHANGE_CAUSE_REPLAY"));
    match request.what {
        Some(What::Ids(ids)) => {
            assert!(ids.in_lake);
            work(ids.ids).await;
        }
        other => panic!("{other:?}"),
    }
    delivery.receipt.acknowledge().await.unwrap();
}

impl Clients {
    async fn replay(&mut self, request_id: &str, id: &str, dry_run: bool, plan_id: &str) -> proto::Operation {
        let (request_id, plan_id) = (request_id.to_owned(), plan_id.to_owned());
        let request = proto::ReplayQuarantineRequest { request_id, filter: about(id), dry_run, plan_id };
        let asked = self.quarantine.replay_quarantine(with("operator", request)).await.unwrap().into_inner();
        asked.operation.unwrap()
    }

    async fn listed(&mut self, id: &str) -> Vec<proto::QuarantineEntry> {
        let request = proto::ListQuarantineEntriesRequest { filter: about(id), ..Default::default() };
        let listed = self.quarantine.list_quarantine_entries(with("viewer", request)).await.unwrap();
        listed.into_inner().entries
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_leaves_when_a_later_reading_of_its_record_is_in_the_lake() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    writer.publish("person", &["a"], 1).await;
    let mut clients = Clients::of(&writer).await;
    let mut requests = requests(&writer).await;
    writer.metastore.quarantine("writer", &entry("a", 5)).await.unwrap();

    let planned = clients.replay("r1", "", true, "").await;
    let planned = clients.ended(Some(planned)).await;
    assert!(planned.dry_run && planned.reason.contains("only planned"), "{planned:?}");
    assert_eq!((planned.result["entries"], planned.result["records"], planned.result["done"]), (1, 1, 0));
    assert_eq!((planned.selection.as_str(), planned.kind()), ("domain=demo", proto::OperationKind::ReplayQuarantine));
    let asked = clients.replay("r2", "", false, &planned.plan_id).await;
    answer(&mut requests, async |ids| {
        assert_eq!(ids, ["a"]);
        writer.publish("person", &["a"], 2).await;
    })
    .await;
    let ended = clients.ended(Some(asked)).await;
    assert_eq!((ended.state(), ended.reason.as_str()), (proto::OperationState::Succeeded, ""));
    assert_eq!((ended.result["released"], ended.result["waiting"], ended.result["failed_again"]), (1, 0, 0));
    assert_eq!(clients.listed("").await, []);
    let again = clients.replay("r3", "", false, "").await;
    let again = clients.ended(Some(again)).await;
    assert_eq!(
        (again.state(), again.result["entries"]),
        (proto::OperationState::Succeeded, 0),
        "nothing is left to do"
    );
    writer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_again_or_cannot_be_read_says_so() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    writer.publish("person", &["a"], 1).await;
    let mut clients = Clients::of(&writer).await;
    let mut requests = requests(&writer).await;
    writer.metastore.quarantine("writer", &entry("a", 5)).await.unwrap();
    let message = Quarantined { reason: "row_batch_malformed".into(), payload: vec![1, 2].into(), ..entry("", 6) };
    writer.metastore.quarantine("writer", &message).await.unwrap();
    let stale = clients.replay("r1", "", true, "").await;
    let stale = clients.ended(Some(stale)).await.plan_id;
    let asked = clients.replay("r2", "", false, "").await;
    answer(&mut requests, async |_| writer.metastore.quarantine("writer", &entry("a", 7)).await.unwrap()).await;
    let ended = clients.ended(Some(asked)).await;
    let figures = ["released", "failed_again", "refused", "waiting"].map(|name| ended.result[name]);
    assert_eq!(figures, [0, 1, 1, 0]);
    assert!(ended.reason.contains("failed again") && ended.reason.contains("cannot be read again"), "{}", ended.reason);
    let listed = clients.listed("").await;
    let [failed, unreadable] = &listed[..] else { panic!("{listed:?}") };
    assert_eq!((failed.attempts, failed.replay.as_str()), (2, "it failed again after that"));
    assert_eq!(failed.last_at, Some(convert::timestamp(*NOW_US + 7)));
    assert!(unreadable.replay.contains("still cannot be understood"), "{unreadable:?}");
    let refused = clients.replay("r3", "", false, &stale).await;
    let refused = clients.ended(Some(refused)).await;
    assert_eq!(refused.state(), proto::OperationState::Failed);
    assert!(refused.reason.contains("stale"), "{}", refused.reason);
    writer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_looks_sees_no_data_of_people_and_a_project_sees_its_own() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    let mut clients = Clients::of(&writer).await;
    for number in 0..3 {
        writer.metastore.quarantine("writer", &entry(&number.to_string(), 5 + number)).await.unwrap();
    }
    let others = Quarantined { domain: "other".into(), ..entry("x", 9) };
    writer.metastore.quarantine("enricher", &others).await.unwrap();
    let summary =
        clients.quarantine.summarize_quarantine(with("viewer", Default::default())).await.unwrap().into_inner();
    let groups: Vec<_> = summary.groups.iter().map(|group| (group.domain.as_str(), group.entries)).collect();
    assert_eq!(groups, [("demo", 3), ("other", 1)]);
    assert!(summary.groups[0].next_action.contains("lakectl quarantine replay --reason row_fails"));
    assert_eq!(summary.bounds.unwrap().days, 90);
    let summary =
        clients.quarantine.summarize_quarantine(with("other", Default::default())).await.unwrap().into_inner();
    assert_eq!(summary.groups.iter().map(|group| group.entries).collect::<Vec<_>>(), [1]);

    let (mut request, mut ids) =
        (proto::ListQuarantineEntriesRequest { page_size: 2, ..Default::default() }, Vec::new());
    loop {
        let page =
            clients.quarantine.list_quarantine_entries(with("viewer", request.clone())).await.unwrap().into_inner();
        assert!(!format!("{page:?}").contains("Ann"), "neither detail nor bytes");
        ids.extend(page.entries.iter().map(|entry| entry.document_id.clone()));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(ids, ["x", "2", "1", "0"]);
    let entry_id = clients.listed("1").await[0].id.clone();
    let mut get = async |token: &str, payload_bytes_max| {
        let request = proto::GetQuarantineEntryRequest { id: entry_id.clone(), payload_bytes_max };
        clients.quarantine.get_quarantine_entry(with(token, request)).await
    };
    assert_eq!(get("viewer", 0).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(get("other", 0).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(get("operator", -1).await.unwrap_err().code(), Code::InvalidArgument);
    let whole = get("operator", 0).await.unwrap().into_inner();
    assert!(whole.detail.contains("Ann") && whole.payload.starts_with(b"{") && !whole.payload_cut);
    let cut = get("operator", 3).await.unwrap().into_inner();
    assert_eq!((cut.payload.len(), cut.payload_cut, cut.entry.unwrap().payload_bytes), (3, true, 15));

    let everything = |dry_run| proto::ReplayQuarantineRequest { request_id: "r".into(), dry_run, ..Default::default() };
    let refused = clients.quarantine.replay_quarantine(with("other", everything(true))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "it is for one project");
    let of_demo = proto::ReplayQuarantineRequest { filter: about(""), ..everything(true) };
    let refused = clients.quarantine.replay_quarantine(with("other", of_demo)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = clients.quarantine.replay_quarantine(with("viewer", everything(true))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    writer.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_are_given_up_by_a_plan() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    let mut clients = Clients::of(&writer).await;
    for number in 0..3 {
        writer.metastore.quarantine("writer", &entry(&number.to_string(), 5)).await.unwrap();
    }
    let discard = |request_id: &str, id: &str, dry_run, plan_id: &str| proto::DiscardQuarantineRequest {
        request_id: request_id.into(),
        filter: about(id),
        dry_run,
        plan_id: plan_id.into(),
    };
    let refused =
        clients.quarantine.discard_quarantine(with("operator", discard("d0", "", true, ""))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = clients.quarantine.discard_quarantine(with("admin", discard("d0", "", false, ""))).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("dry_run"), "{refused}");
    let mut asked = async |discard| {
        let asked = clients.quarantine.discard_quarantine(with("admin", discard)).await.unwrap().into_inner();
        clients.ended(asked.operation).await
    };
    let planned = asked(discard("d1", "", true, "")).await;
    assert_eq!((planned.result["entries"], planned.result["bytes"], planned.result["done"]), (3, 45, 0));
    // One comes again: it is not what the plan has shown.
    writer.metastore.quarantine("writer", &entry("1", 6)).await.unwrap();
    let stale = asked(discard("d2", "", false, &planned.plan_id)).await;
    assert!(stale.state() == proto::OperationState::Failed && stale.reason.contains("stale"), "{stale:?}");
    let planned = asked(discard("d3", "2", true, "")).await;
    let done = asked(discard("d4", "2", false, &planned.plan_id)).await;
    assert_eq!((done.state(), done.result["entries"], done.result["done"]), (proto::OperationState::Succeeded, 1, 1));
    let left: Vec<String> = clients.listed("").await.into_iter().map(|entry| entry.document_id).collect();
    assert_eq!(left, ["1", "0"]);
    let audited = clients.lake.list_audit_records(with("admin", Default::default())).await.unwrap().into_inner();
    let newest = &audited.records[0];
    assert_eq!((newest.call.as_str(), newest.target.as_str()), ("discard_quarantine", "domain=demo id=2"));
    writer.end().await;
}
