#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use lake_hq::source::{
    BlobReference, BlobStore, CaseRows, FormRows, HqDatabase, LocationRow, LocationRows, ReadFrom, Sighting,
    SourceError, UserDirectory,
};
use lake_shared::identity::Domain;
use tokio::sync::Semaphore;

use super::*;
use crate::options::CacheOptions;

/// An HQ whose answers wait at a gate.
struct GatedHq {
    gate: Semaphore,
    entered: Semaphore,
    locations: Mutex<i64>,
    asked: Mutex<Vec<String>>,
}

impl GatedHq {
    fn new(open: usize) -> Arc<Self> {
        Arc::new(Self {
            gate: Semaphore::new(open),
            entered: Semaphore::new(0),
            locations: Mutex::new(1),
            asked: Mutex::default(),
        })
    }

    async fn pass(&self, asked: String) {
        self.asked.lock().unwrap().push(asked);
        self.entered.add_permits(1);
        self.gate.acquire().await.unwrap().forget();
    }

    async fn entered(&self) {
        self.entered.acquire().await.unwrap().forget();
    }

    fn count(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

#[async_trait]
impl HqDatabase for GatedHq {
    async fn cases(&self, _: &[String], _: ReadFrom) -> Result<Vec<Sighting<CaseRows>>, SourceError> {
        Ok(Vec::new())
    }
    async fn forms(&self, _: &[String], _: ReadFrom) -> Result<Vec<Sighting<FormRows>>, SourceError> {
        Ok(Vec::new())
    }
    async fn location_domains(&self, _: &[String]) -> Result<Vec<Sighting<String>>, SourceError> {
        Ok(Vec::new())
    }
    async fn locations(&self, domain: &str) -> Result<LocationRows, SourceError> {
        let observed_us = {
            let mut clock = self.locations.lock().unwrap();
            *clock += 1;
            *clock
        };
        self.pass(domain.to_owned()).await;
        let rows = (0..3).map(|id| LocationRow { id, location_id: id.to_string(), ..LocationRow::default() }).collect();
        Ok(LocationRows { observed_us, rows })
    }
    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[async_trait]
impl BlobStore for GatedHq {
    async fn get(&self, _: &BlobReference) -> Result<Option<Bytes>, SourceError> {
        Ok(None)
    }
    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[async_trait]
impl UserDirectory for GatedHq {
    async fn locations(&self, _: &str, ids: &[String]) -> Result<HashMap<String, Option<String>>, SourceError> {
        self.pass(ids.join(" ")).await;
        Ok(ids.iter().map(|id| (id.clone(), id.starts_with('u').then(|| format!("loc of {id}")))).collect())
    }
    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

fn caches(hq: &Arc<GatedHq>, options: &CacheOptions) -> Arc<Caches> {
    let hq = Hq { database: hq.clone(), blobs: hq.clone(), users: hq.clone() };
    Arc::new(Caches::new(&hq, options))
}

fn demo() -> Domain {
    "demo".into()
}

fn invalidation(what: &str, domain: &str, ids: &[&str]) -> Heard {
    let ids = ids.iter().map(|id| (*id).to_owned()).collect();
    let payload = wire::encode(&Invalidation { ids });
    Heard::Broadcast { subject: format!("lake.invalidate.{what}.{domain}"), payload }
}

#[tokio::test]
async fn a_tree_is_read_once_by_all_who_wait_for_it() {
    let hq = GatedHq::new(0);
    let caches = caches(&hq, &CacheOptions::default());
    let calls: Vec<_> = (0..10)
        .map(|_| {
            let caches = Arc::clone(&caches);
            tokio::spawn(async move { caches.trees.places(&demo(), i64::MIN).await.unwrap().observed_us() })
        })
        .collect();
    hq.entered().await;
    hq.gate.add_permits(1);
    for call in calls {
        assert_eq!(call.await.unwrap(), 2);
    }
    assert_eq!(hq.count(), 1);
}

#[tokio::test]
async fn a_tree_that_changes_while_it_is_read_is_read_again_by_later_calls() {
    for heard in [invalidation("location", "demo", &["l"]), invalidation("location", "_", &[]), Heard::MaybeMissed] {
        let hq = GatedHq::new(0);
        let caches = caches(&hq, &CacheOptions::default());
        let early = {
            let caches = Arc::clone(&caches);
            tokio::spawn(async move { caches.trees.places(&demo(), i64::MIN).await.unwrap().observed_us() })
        };
        hq.entered().await;
        caches.hear(&heard);
        hq.gate.add_permits(2);
        assert_eq!(early.await.unwrap(), 2);
        assert_eq!(caches.trees.places(&demo(), i64::MIN).await.unwrap().observed_us(), 3);
        caches.hear(&invalidation("location", "other", &[]));
        assert_eq!(caches.trees.places(&demo(), i64::MIN).await.unwrap().observed_us(), 3);
        assert_eq!(hq.count(), 2);
    }
}

#[tokio::test]
async fn a_tree_is_read_again_when_it_is_older_than_wanted_or_too_old() {
    let hq = GatedHq::new(10);
    let cached = caches(&hq, &CacheOptions::default());
    assert_eq!(cached.trees.places(&demo(), 2).await.unwrap().observed_us(), 2);
    assert_eq!(cached.trees.places(&demo(), 2).await.unwrap().observed_us(), 2);
    assert_eq!(cached.trees.places(&demo(), 3).await.unwrap().observed_us(), 3);
    // Not new enough even then: the caller has to decide.
    assert_eq!(cached.trees.places(&demo(), 9).await.unwrap().observed_us(), 4);
    let never = caches(&hq, &CacheOptions { location_max_age_seconds: 0, ..CacheOptions::default() });
    never.trees.places(&demo(), i64::MIN).await.unwrap();
    never.trees.places(&demo(), i64::MIN).await.unwrap();
    assert_eq!(hq.count(), 5);
}

#[tokio::test]
async fn the_least_recently_used_tree_goes_first() {
    let hq = GatedHq::new(100);
    // Each tree counts four.
    let caches = caches(&hq, &CacheOptions { location_nodes_max: 9, ..CacheOptions::default() });
    let read = async |domain: &str| drop(caches.trees.places(&domain.into(), i64::MIN).await.unwrap());
    for domain in ["a", "b", "a", "c", "a", "b"] {
        read(domain).await;
    }
    assert_eq!(*hq.asked.lock().unwrap(), ["a", "b", "c", "b"]);
    let small = super::tests::caches(&hq, &CacheOptions { location_nodes_max: 1, ..CacheOptions::default() });
    small.trees.places(&demo(), i64::MIN).await.unwrap();
    small.trees.places(&demo(), i64::MIN).await.unwrap();
    assert_eq!(hq.count(), 5);
}

#[tokio::test]
async fn a_look_up_that_was_cancelled_does_not_block_the_next() {
    let hq = GatedHq::new(0);
    let caches = caches(&hq, &CacheOptions::default());
    let cancelled = {
        let caches = Arc::clone(&caches);
        tokio::spawn(async move {
            let (ids, domain) = (BTreeSet::from(["u"]), demo());
            tokio::join!(caches.trees.places(&domain, i64::MIN), caches.users.locations(&domain, &ids)).0.is_ok()
        })
    };
    hq.entered().await;
    hq.entered().await;
    cancelled.abort();
    assert!(cancelled.await.unwrap_err().is_cancelled());
    hq.gate.add_permits(2);
    caches.trees.places(&demo(), i64::MIN).await.unwrap();
    assert_eq!(caches.users.locations(&demo(), &BTreeSet::from(["u"])).await.unwrap().len(), 1);
}

async fn looked_up(caches: &Caches, ids: &[&str]) -> Vec<Option<String>> {
    let wanted = ids.iter().copied().collect();
    let found = caches.users.locations(&demo(), &wanted).await.unwrap();
    assert_eq!(found.len(), wanted.len());
    ids.iter().map(|id| found[*id].as_deref().map(str::to_owned)).collect()
}

#[tokio::test]
async fn users_are_asked_for_in_bulk_and_once() {
    let hq = GatedHq::new(100);
    let caches = caches(&hq, &CacheOptions::default());
    let some = |id: &str| Some(format!("loc of {id}"));
    assert_eq!(looked_up(&caches, &["u1", "u2", "system"]).await, [some("u1"), some("u2"), None]);
    assert_eq!(looked_up(&caches, &["u1", "u3", "system"]).await, [some("u1"), some("u3"), None]);
    assert_eq!(*hq.asked.lock().unwrap(), ["system u1 u2", "u3"]);
    caches.hear(&invalidation("user", "_", &["u1", "unknown"]));
    caches.hear(&invalidation("location", "demo", &[]));
    looked_up(&caches, &["u1", "u2"]).await;
    caches.hear(&invalidation("user", "demo", &[]));
    looked_up(&caches, &["u2"]).await;
    let unreadable =
        Heard::Broadcast { subject: "lake.invalidate.user.demo".into(), payload: Bytes::from_static(b"garbage") };
    caches.hear(&unreadable);
    looked_up(&caches, &["u2"]).await;
    caches.hear(&Heard::MaybeMissed);
    looked_up(&caches, &["u2"]).await;
    assert_eq!(hq.asked.lock().unwrap()[2..], ["u1", "u2", "u2", "u2"]);
}

#[tokio::test]
async fn users_without_location_are_asked_for_again_sooner() {
    let hq = GatedHq::new(100);
    let caches = caches(&hq, &CacheOptions { user_without_location_max_age_seconds: 0, ..CacheOptions::default() });
    looked_up(&caches, &["u1", "nobody"]).await;
    looked_up(&caches, &["u1", "nobody"]).await;
    assert_eq!(*hq.asked.lock().unwrap(), ["nobody u1", "nobody"]);
}

#[tokio::test]
async fn a_user_who_changes_while_being_looked_up_is_looked_up_again() {
    let hq = GatedHq::new(0);
    let caches = caches(&hq, &CacheOptions::default());
    let early = {
        let caches = Arc::clone(&caches);
        tokio::spawn(async move { looked_up(&caches, &["u1", "u2"]).await.len() })
    };
    hq.entered().await;
    caches.hear(&invalidation("user", "_", &["u1"]));
    hq.gate.add_permits(2);
    assert_eq!(early.await.unwrap(), 2);
    looked_up(&caches, &["u1", "u2"]).await;
    assert_eq!(hq.asked.lock().unwrap()[1..], ["u1"]);
}
