#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use lake_hq::source::SourceError;
use lake_shared::identity::Domain;
use lake_simulated_hq::memory_hq::MemoryHq;
use lake_simulated_hq::scripted_hq::{Question, Script, ScriptedHq};
use lake_simulated_hq::single_rows::{location, location_type, user};
use lake_simulated_hq::turn::{Mutation, Table};
use serde_json::json;
use tokio::sync::Semaphore;

use super::*;
use crate::options::{CacheOptions, EnricherOptions};

mod location_types;
mod user_look_ups;

/// An HQ whose answers wait at a gate.
type GatedHq = ScriptedHq<Gate>;

struct Gate {
    /// Answers that may pass.
    open: Semaphore,
    /// Questions that have come to the gate.
    entered: Semaphore,
    /// Whether who has passed the gate finds HQ down.
    down: AtomicBool,
}

#[async_trait]
impl Script for Gate {
    async fn before(&self, question: &Question, _: &MemoryHq) -> Result<(), SourceError> {
        self.entered.add_permits(1);
        self.open.acquire().await.unwrap().forget();
        let down = || SourceError::Unavailable { action: "ask".into(), reason: "down".into() };
        let is_hard = matches!(question, Question::UserLocations(ids) if ids.iter().any(|id| id == HARD_USER));
        if is_hard || self.down.load(Ordering::SeqCst) { Err(down()) } else { Ok(()) }
    }
}

impl Gate {
    async fn entered(&self) {
        self.entered.acquire().await.unwrap().forget();
    }
}

/// A user about whom HQ cannot answer.
const HARD_USER: &str = "hard";

const DOMAINS: [&str; 4] = ["demo", "a", "b", "c"];

/// With three locations in each domain and some users in one; so many answers pass the gate.
fn gated_hq(open: usize) -> Arc<GatedHq> {
    let hq =
        ScriptedHq::new(Gate { open: Semaphore::new(open), entered: Semaphore::new(0), down: AtomicBool::new(false) });
    hq.memory.set_clock(2);
    for domain in DOMAINS {
        hq.memory.change(&[location_type(domain, 1, "village")]);
        (0..3).for_each(|number| hq.memory.change(&[location_of(domain, number)]));
    }
    for id in ["u", "u1", "u2", "u3"] {
        hq.memory.change(&[user(id, "demo", Some(&format!("loc of {id}")))]);
    }
    hq
}

fn location_of(domain: &str, number: i64) -> Mutation {
    location(domain, 1, number, &format!("l{number}"), "", None)
}

fn remove_location(number: i64) -> Mutation {
    Mutation::remove(Table::Location, json!({ "id": number }))
}

/// What the HQ was asked, in short.
fn asked(hq: &GatedHq) -> Vec<String> {
    let short = |question| match question {
        Question::WholeTree { domain } => domain,
        Question::ChangedTree { domain, location_ids, count } => {
            format!("{domain} changed {}{}", location_ids.join(" "), if count { " counted" } else { "" })
        }
        Question::UserLocations(ids) => ids.join(" "),
        other => panic!("{other:?}"),
    };
    hq.asked().into_iter().map(short).collect()
}

fn caches(hq: &Arc<GatedHq>, options: &CacheOptions) -> Arc<Caches> {
    Arc::new(Caches::new(&hq.hq(), &EnricherOptions { caches: options.clone(), ..EnricherOptions::default() }))
}

fn demo() -> Domain {
    "demo".into()
}

fn invalidation(what: &str, domain: &str, ids: &[&str]) -> Broadcast {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let payload = wire::encode(&Invalidation { ids });
    Broadcast::Message { subject: format!("lake.invalidate.{what}.{domain}"), payload }
}

#[tokio::test]
async fn a_tree_is_read_once_by_all_who_wait_for_it() {
    let hq = gated_hq(0);
    let caches = caches(&hq, &CacheOptions::default());
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let caches = Arc::clone(&caches);
            tokio::spawn(async move { caches.trees.domain_locations(&demo(), i64::MIN).await.unwrap().observed_us() })
        })
        .collect();
    hq.script.entered().await;
    hq.script.open.add_permits(1);
    for call in calls {
        assert_eq!(call.await.unwrap(), 2);
    }
    assert_eq!(hq.times_asked(), 1);
}

#[tokio::test]
async fn a_tree_that_changes_while_it_is_read_is_read_again_by_later_calls() {
    for heard in [invalidation("location", "demo", &["l"]), invalidation("location", "_", &[]), Broadcast::MaybeMissed]
    {
        let hq = gated_hq(0);
        let caches = caches(&hq, &CacheOptions::default());
        let early = {
            let caches = Arc::clone(&caches);
            tokio::spawn(async move { caches.trees.domain_locations(&demo(), i64::MIN).await.unwrap().observed_us() })
        };
        hq.script.entered().await;
        caches.invalidate(&heard);
        hq.script.open.add_permits(2);
        assert_eq!(early.await.unwrap(), 2);
        assert_eq!(caches.trees.domain_locations(&demo(), i64::MIN).await.unwrap().observed_us(), 3);
        caches.invalidate(&invalidation("location", "other", &[]));
        assert_eq!(caches.trees.domain_locations(&demo(), i64::MIN).await.unwrap().observed_us(), 3);
        assert_eq!(hq.times_asked(), 2);
    }
}

#[tokio::test]
async fn a_tree_is_read_again_when_it_is_older_than_wanted_or_too_old() {
    let hq = gated_hq(10);
    let cached = caches(&hq, &CacheOptions::default());
    assert_eq!(cached.trees.domain_locations(&demo(), 2).await.unwrap().observed_us(), 2);
    assert_eq!(cached.trees.domain_locations(&demo(), 2).await.unwrap().observed_us(), 2);
    assert_eq!(cached.trees.domain_locations(&demo(), 3).await.unwrap().observed_us(), 3);
    // Not new enough even then: the caller has to decide.
    assert_eq!(cached.trees.domain_locations(&demo(), 9).await.unwrap().observed_us(), 4);
    let never = caches(&hq, &CacheOptions { location_max_age_seconds: 0, ..CacheOptions::default() });
    never.trees.domain_locations(&demo(), i64::MIN).await.unwrap();
    never.trees.domain_locations(&demo(), i64::MIN).await.unwrap();
    let whole = caches(&hq, &CacheOptions { location_whole_max_age_seconds: 0, ..CacheOptions::default() });
    whole.trees.domain_locations(&demo(), i64::MIN).await.unwrap();
    whole.invalidate(&invalidation("location", "demo", &["l1"]));
    whole.trees.domain_locations(&demo(), i64::MIN).await.unwrap();
    assert_eq!(asked(&hq)[3..], ["demo", "demo changed  counted", "demo", "demo"]);
}

/// Locations that a call finds.
async fn found(caches: &Caches, ids: &[&str]) -> Vec<bool> {
    let locations = caches.trees.domain_locations(&demo(), i64::MIN).await.unwrap();
    ids.iter().map(|id| locations.tree().get(id).is_some()).collect()
}

#[tokio::test]
async fn only_what_changed_is_read_and_a_missed_deletion_heals() {
    let hq = gated_hq(100);
    let caches = caches(&hq, &CacheOptions::default());
    assert_eq!(found(&caches, &["l1", "l3"]).await, [true, false]);
    hq.memory.change(&[location_of("demo", 3)]);
    caches.invalidate(&invalidation("location", "demo", &["l3"]));
    assert_eq!(found(&caches, &["l1", "l3"]).await, [true, true]);
    hq.memory.change(&[remove_location(3)]);
    caches.invalidate(&invalidation("location", "demo", &["l3"]));
    assert_eq!(found(&caches, &["l1", "l3"]).await, [true, false]);
    // Of this deletion nobody hears; the count shows it.
    hq.memory.change(&[remove_location(2)]);
    caches.invalidate(&Broadcast::MaybeMissed);
    assert_eq!(found(&caches, &["l1", "l2"]).await, [true, false]);
    // A change of nobody knows what, and of too many: all of it.
    caches.invalidate(&invalidation("location", "demo", &[]));
    found(&caches, &[]).await;
    let many: Vec<String> = (0..60_000).map(|number| number.to_string()).collect();
    caches.invalidate(&invalidation("location", "demo", &many.iter().map(String::as_str).collect::<Vec<_>>()));
    found(&caches, &[]).await;
    let expected = ["demo", "demo changed l3", "demo changed l3", "demo changed  counted", "demo", "demo", "demo"];
    assert_eq!(asked(&hq), expected);
}

#[tokio::test]
async fn changed_ids_are_asked_for_until_an_answer_came() {
    let hq = gated_hq(1);
    let caches = caches(&hq, &CacheOptions { location_whole_max_age_seconds: 1_000, ..CacheOptions::default() });
    found(&caches, &[]).await;
    hq.script.entered().await;
    caches.invalidate(&invalidation("location", "demo", &["l1"]));
    let cancelled = tokio::spawn({
        let caches = Arc::clone(&caches);
        async move { found(&caches, &[]).await.len() }
    });
    hq.script.entered().await;
    caches.invalidate(&invalidation("location", "demo", &["l2"]));
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    hq.script.open.add_permits(10);
    hq.memory.change(&[remove_location(1)]);
    assert_eq!(found(&caches, &["l0", "l1"]).await, [true, false]);
    found(&caches, &[]).await;
    let asked = asked(&hq);
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[2].contains("l1") && asked[2].contains("l2"), "{asked:?}");
}

#[tokio::test]
async fn trees_of_domains_that_take_turns_are_read_once() {
    let hq = gated_hq(1_000);
    // The others count four each.
    (3..40).for_each(|number| hq.memory.change(&[location_of("a", number)]));
    let caches = caches(&hq, &CacheOptions { location_nodes_max: 9, ..CacheOptions::default() });
    let read = async |domain: &str| drop(caches.trees.domain_locations(&domain.into(), i64::MIN).await.unwrap());
    for _ in 0..100 {
        for domain in ["a", "b", "c"] {
            read(domain).await;
        }
    }
    assert_eq!(asked(&hq), ["a", "b", "c"], "the largest tree is held beside those that fit");
    // With one more than fits, one goes.
    read("demo").await;
    for domain in ["a", "b", "c"] {
        read(domain).await;
    }
    assert!(hq.times_asked() > 4, "{:?}", asked(&hq));
    let small = super::tests::caches(&hq, &CacheOptions { location_nodes_max: 1, ..CacheOptions::default() });
    hq.forget_questions();
    small.trees.domain_locations(&demo(), i64::MIN).await.unwrap();
    small.trees.domain_locations(&demo(), i64::MIN).await.unwrap();
    assert_eq!(hq.times_asked(), 1);
}

/// A bulk upload: all locations have about one stamp, and then a message comes for each of them.
#[tokio::test]
async fn after_an_upload_only_the_locations_of_messages_are_read() {
    let hq = gated_hq(1_000);
    let number = 6_000;
    (3..number).for_each(|number| hq.memory.change(&[location_of("demo", number)]));
    hq.memory.set_clock(chrono::Utc::now().timestamp_micros());
    let caches = caches(&hq, &CacheOptions::default());
    let ids: Vec<String> = (0..number).map(|number| format!("l{number}")).collect();
    found(&caches, &[]).await;
    for ids in ids.chunks(400) {
        caches.invalidate(&invalidation("location", "demo", &ids.iter().map(String::as_str).collect::<Vec<_>>()));
        assert_eq!(found(&caches, &["l0", "l5999"]).await, [true, true]);
    }
    let asked = hq.asked();
    let whole = asked.iter().filter(|question| matches!(question, Question::WholeTree { .. })).count();
    assert_eq!((whole, asked.len()), (1, 1 + ids.len().div_ceil(400)));
    // Nor is it a reason to read the whole that most of them come at once.
    let two_thirds: Vec<&str> = ids[..4_000].iter().map(String::as_str).collect();
    hq.forget_questions();
    let calm = super::tests::caches(&hq, &CacheOptions::default());
    found(&calm, &[]).await;
    calm.invalidate(&invalidation("location", "demo", &two_thirds));
    found(&calm, &[]).await;
    assert!(matches!(hq.asked().last(), Some(Question::ChangedTree { .. })));
}

#[tokio::test]
async fn a_look_up_that_was_cancelled_does_not_block_the_next() {
    let hq = gated_hq(0);
    let caches = caches(&hq, &CacheOptions::default());
    let cancelled = {
        let caches = Arc::clone(&caches);
        tokio::spawn(async move {
            let (ids, domain) = (BTreeMap::from([("u", 0)]), demo());
            tokio::join!(caches.trees.domain_locations(&domain, i64::MIN), caches.users.locations(&domain, &ids))
                .0
                .is_ok()
        })
    };
    hq.script.entered().await;
    hq.script.entered().await;
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    hq.script.open.add_permits(2);
    caches.trees.domain_locations(&demo(), i64::MIN).await.unwrap();
    assert_eq!(caches.users.locations(&demo(), &BTreeMap::from([("u", 0)])).await.unwrap().len(), 1);
}

async fn looked_up(caches: &Caches, ids: &[&str]) -> Vec<Option<String>> {
    looked_up_for(caches, ids, 0).await
}

/// For records that were published at this time.
async fn looked_up_for(caches: &Caches, ids: &[&str], published_us: i64) -> Vec<Option<String>> {
    let wanted = ids.iter().map(|id| (*id, published_us)).collect();
    let found = caches.users.locations(&demo(), &wanted).await.unwrap();
    assert_eq!(found.len(), wanted.len());
    ids.iter().map(|id| found[*id].as_deref().map(str::to_owned)).collect()
}

#[tokio::test]
async fn users_are_asked_for_in_bulk_and_once() {
    let hq = gated_hq(100);
    let caches = caches(&hq, &CacheOptions::default());
    let some = |id: &str| Some(format!("loc of {id}"));
    assert_eq!(looked_up(&caches, &["u1", "u2", "system"]).await, [some("u1"), some("u2"), None]);
    assert_eq!(looked_up(&caches, &["u1", "u3", "system"]).await, [some("u1"), some("u3"), None]);
    assert_eq!(asked(&hq), ["system u1 u2", "u3"]);
    caches.invalidate(&invalidation("user", "_", &["u1", "unknown"]));
    caches.invalidate(&invalidation("location", "demo", &[]));
    looked_up(&caches, &["u1", "u2"]).await;
    caches.invalidate(&invalidation("user", "demo", &[]));
    looked_up(&caches, &["u2"]).await;
    let unreadable =
        Broadcast::Message { subject: "lake.invalidate.user.demo".into(), payload: Bytes::from_static(b"garbage") };
    caches.invalidate(&unreadable);
    looked_up(&caches, &["u2"]).await;
    caches.invalidate(&Broadcast::MaybeMissed);
    looked_up(&caches, &["u2"]).await;
    assert_eq!(asked(&hq)[2..], ["u1", "u2", "u2", "u2"]);
}

#[tokio::test]
async fn users_without_location_are_asked_for_again_sooner() {
    let hq = gated_hq(100);
    let caches = caches(&hq, &CacheOptions { user_without_location_max_age_seconds: 0, ..CacheOptions::default() });
    looked_up(&caches, &["u1", "nobody"]).await;
    looked_up(&caches, &["u1", "nobody"]).await;
    assert_eq!(asked(&hq), ["nobody u1", "nobody"]);
}

#[tokio::test]
async fn a_user_who_changes_while_being_looked_up_is_looked_up_again() {
    let hq = gated_hq(0);
    let caches = caches(&hq, &CacheOptions::default());
    let early = {
        let caches = Arc::clone(&caches);
        tokio::spawn(async move { looked_up(&caches, &["u1", "u2"]).await.len() })
    };
    hq.script.entered().await;
    caches.invalidate(&invalidation("user", "_", &["u1"]));
    hq.script.open.add_permits(2);
    assert_eq!(early.await.unwrap(), 2);
    looked_up(&caches, &["u1", "u2"]).await;
    assert_eq!(asked(&hq)[1..], ["u1"]);
}

fn now_us() -> i64 {
    chrono::Utc::now().timestamp_micros()
}

/// A worker is assigned and submits; the message of the submission overtakes that of the worker.
#[tokio::test]
async fn a_new_record_is_not_given_what_was_remembered_before_it() {
    let hq = gated_hq(100);
    let caches = caches(&hq, &CacheOptions { user_reuse_seconds: 0, ..CacheOptions::default() });
    looked_up(&caches, &["u1", "u2"]).await;
    // Published after that.
    looked_up_for(&caches, &["u1"], now_us() + 1_000).await;
    assert_eq!(asked(&hq)[1..], ["u1"]);
    // Of a backlog; or published before HQ was asked, as the other records of the submission were.
    let long_ago = now_us() - 15_000_000;
    looked_up_for(&caches, &["u1", "u2"], long_ago).await;
    assert_eq!(hq.times_asked(), 2);
    let trusting = super::tests::caches(&hq, &CacheOptions { user_settle_seconds: 0, ..CacheOptions::default() });
    looked_up(&trusting, &["u1"]).await;
    looked_up_for(&trusting, &["u1"], now_us() + 1_000).await;
    assert_eq!(hq.times_asked(), 3);
}

/// A worker sends many records in a row, each a batch of its own.
#[tokio::test]
async fn workers_who_send_many_records_are_asked_for_once_in_a_while() {
    let hq = gated_hq(1_000);
    let options = CacheOptions {
        user_reuse_seconds: 60,
        user_without_location_reuse_seconds: 0,
        user_settle_seconds: 60,
        ..CacheOptions::default()
    };
    let caches = caches(&hq, &options);
    for _ in 0..40 {
        let some = |id: &str| Some(format!("loc of {id}"));
        assert_eq!(looked_up_for(&caches, &["u1", "u2"], now_us() + 1_000).await, [some("u1"), some("u2")]);
    }
    assert_eq!(asked(&hq), ["u1 u2"]);
    // A change that is heard is another matter, and so is a worker who has no location yet, where that is not reused.
    caches.invalidate(&invalidation("user", "_", &["u1"]));
    looked_up_for(&caches, &["u1", "u2"], now_us() + 1_000).await;
    for _ in 0..3 {
        looked_up_for(&caches, &["u2", "new"], now_us() + 1_000).await;
    }
    assert_eq!(asked(&hq)[1..], ["u1", "new", "new", "new"]);
}

/// Elasticsearch shows a changed user only after its refresh.
#[tokio::test]
async fn what_hq_answers_just_after_a_change_is_soon_asked_for_again() {
    let hq = gated_hq(100_000);
    let options = CacheOptions { user_settle_seconds: 3, ..CacheOptions::default() };
    let (heard, submitted, other) = (caches(&hq, &options), caches(&hq, &options), caches(&hq, &options));
    let long_ago: fn() -> i64 = || 0;
    for (caches, published_us, heard) in
        [(submitted, now_us as fn() -> i64, false), (heard, long_ago, true), (other, long_ago, false)]
    {
        hq.forget_questions();
        if heard {
            caches.invalidate(&invalidation("user", "_", &["u1"]));
        }
        let asked_again = heard || published_us() > 0;
        looked_up_for(&caches, &["u1"], published_us()).await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while asked_again && hq.times_asked() == 1 {
            assert!(tokio::time::Instant::now() < deadline, "the young answer is kept");
            looked_up(&caches, &["u1"]).await;
            tokio::task::yield_now().await;
        }
        // The answer of now is not young any more.
        looked_up(&caches, &["u1"]).await;
        assert_eq!(hq.times_asked(), if asked_again { 2 } else { 1 });
    }
}
