#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use futures::StreamExt;
use lake_hq::timestamp;
use lake_proto::queue::v1::change_request::What as Asked;
use lake_proto::queue::v1::{ChangeCause, ChangeRequest, ComparedIds};
use lake_shared::comparison::{ComparedDocument, bucket};
use lake_shared::identity::Kind;
use lake_shared::queue::{Broadcast, Queue};
use lake_simulated_hq::scripted_hq::{Question, ScriptedHq};
use lake_simulated_hq::single_rows::case;

use super::super::tests::{PATIENCE, World};
use super::*;

const BUCKETS: u32 = 64;

/// Of seven cases five are live in this project.
fn hq() -> Arc<ScriptedHq<()>> {
    let hq = ScriptedHq::new(());
    let live = ["a", "b", "c", "d", "e"].map(|id| case(id, "d", false));
    hq.memory.change(&[live.as_slice(), &[case("deleted", "d", true), case("elsewhere", "e", false)]].concat());
    hq
}

fn document(id: &str) -> ComparedDocument<'_> {
    let saved_us = timestamp::parse_us("2026-01-05T10:11:12.240000Z");
    ComparedDocument { id, document_type: "person", times_us: [saved_us, None] }
}

/// What the fetcher answers.
async fn answer(world: &World, domain: &str, scope: proto::ComparedScope, what: What) -> CompareAnswer {
    let mut answers = world.queue.listen("lake.answer.q").await.unwrap();
    let asked = world.ask(wire::encode(&ChangeRequest {
        domain: domain.into(),
        kind: Kind::Case.to_proto().into(),
        cause: ChangeCause::Reconcile.into(),
        operation_id: "o".into(),
        what: Some(Asked::Compare(Compare { question_id: "q".into(), scope: Some(scope), what: Some(what) })),
    }));
    let heard = tokio::time::timeout(PATIENCE, answers.next()).await.unwrap().unwrap();
    tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap();
    match heard {
        Broadcast::Message { payload, .. } => wire::decode(&payload).unwrap(),
        Broadcast::MaybeMissed => panic!("nothing can be missed in memory"),
    }
}

fn stretch(shard: &str, buckets: Vec<u32>) -> What {
    What::Stretch(proto::ComparedStretch { shard: shard.into(), after: 0, bucket_count: BUCKETS, buckets })
}

#[tokio::test]
async fn the_live_documents_of_a_project_are_summed_up_by_bucket() {
    let hq = hq();
    let world = World::start(hq.hq()).await;
    let told = answer(&world, "d", proto::ComparedScope::default(), stretch("memory", Vec::new())).await;
    let mut sums = BucketSums::new(BUCKETS);
    ["a", "b", "c", "d", "e"].into_iter().for_each(|id| sums.add(&document(id)));
    assert!(told.finished && told.refused.is_empty() && told.types.is_none(), "{told:?}");
    assert_eq!(told.sums, sums.to_proto());
    let range = proto::ComparedScope { from_id: "b".into(), until_id: "d".into(), ..Default::default() };
    let told = answer(&world, "d", range, stretch("memory", Vec::new())).await;
    assert_eq!(told.sums.iter().map(|of| of.documents).sum::<u64>(), 2);
    let typed = proto::ComparedScope { types: vec!["child".into()], ..Default::default() };
    let told = answer(&world, "d", typed, stretch("memory", Vec::new())).await;
    assert_eq!((told.sums.len(), told.types.unwrap().names), (0, vec!["child".to_owned()]));
    let asked = hq.asked();
    assert!(asked.iter().all(|question| matches!(question, Question::Sums { .. })), "nothing is read: {asked:?}");
    world.end().await;
}

#[tokio::test]
async fn documents_of_a_bucket_or_with_some_ids_are_told_one_by_one() {
    let world = World::start(hq().hq()).await;
    let buckets = vec![bucket("a", BUCKETS), bucket("c", BUCKETS)];
    let told = answer(&world, "d", proto::ComparedScope::default(), stretch("memory", buckets.clone())).await;
    let meant = ["a", "b", "c", "d", "e"].into_iter().filter(|id| buckets.contains(&bucket(id, BUCKETS)));
    let state = |id: &str| {
        let of = document(id);
        (id.to_owned(), "person".to_owned(), of.fingerprint(), of.times_us[0])
    };
    let shown = |told: CompareAnswer| -> Vec<_> {
        told.states.into_iter().map(|of| (of.id, of.r#type, of.fingerprint, of.saved_us)).collect()
    };
    assert_eq!(shown(told), meant.map(state).collect::<Vec<_>>());
    // Whatever types are compared.
    let typed = proto::ComparedScope { types: vec!["child".into()], ..Default::default() };
    let ids = ["e", "deleted", "elsewhere", "never was"].map(str::to_owned).to_vec();
    let told = answer(&world, "d", typed, What::Ids(ComparedIds { ids })).await;
    assert_eq!(shown(told), [state("e")]);
    world.end().await;
}

#[tokio::test]
async fn what_cannot_be_compared_is_refused() {
    let world = World::start(hq().hq()).await;
    let told = answer(&world, "f", proto::ComparedScope::default(), stretch("memory", Vec::new())).await;
    assert!(told.refused.contains("take.domains"), "{told:?}");
    let told = answer(&world, "d", proto::ComparedScope::default(), stretch("p9", Vec::new())).await;
    assert!(told.refused.contains("no database p9"), "{told:?}");
    assert_eq!(told.sums, []);
    world.end().await;
}
