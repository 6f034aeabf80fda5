#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use lake_hq::documents::case::CaseOptions;
use lake_hq::source::{
    BlobReference, BlobStore, FormRows, Hq, HqDatabase, LocationKeys, LocationRows, LocationStep, ReadFrom,
    SourceError, TakeTreeRow, TreeExtent,
};
use lake_hq::users::NoUsers;
use lake_proto::queue::v1::{Quarantined, RecordBatch};
use lake_shared::queue::{Broadcast, Consumer, ConsumerOptions, Message, PublishError, Queue, QueueError, Stream};
use lake_shared::wire;
use serde_json::json;

use super::*;
use crate::allow_list::{AllowList, TakeConfig};
use crate::change_feed::memory::MemoryFeed;
use crate::options::FetchOptions;
use crate::pipeline;

/// A form in the database of a [`World`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Live, with this key of its XML.
    Live(&'static str),
    Archived,
    Gone,
}

/// An HQ with these cases (id → domain, and whether it is soft-deleted) and a queue that takes everything.
#[derive(Default)]
struct World {
    cases: HashMap<String, (String, bool)>,
    forms: Mutex<BTreeMap<&'static str, Form>>,
    /// What happens to a form before the key is asked for.
    before_blob: HashMap<&'static str, (&'static str, Form)>,
    /// Ids of each reading of forms, and from where.
    form_readings: Mutex<Vec<(BTreeSet<String>, ReadFrom)>>,
    published: Mutex<Vec<RecordBatch>>,
    quarantined: Mutex<Vec<Quarantined>>,
    wanted: Mutex<Vec<Wanted>>,
}

#[async_trait]
impl HqDatabase for World {
    async fn cases(&self, ids: &[String], _: ReadFrom) -> Result<Vec<Observation<CaseRows>>, SourceError> {
        let rows = |id: &String| {
            let (domain, deleted) = self.cases.get(id)?;
            let case = json!({"case_id": id, "domain": domain, "type": "person", "deleted": deleted,
                "server_modified_on": "2026-01-05T10:11:12.240000Z", "case_json": "{}"});
            Some(CaseRows { case: case.as_object()?.clone(), ..CaseRows::default() })
        };
        Ok(ids.iter().map(|id| Observation { id: id.clone(), observed_us: 1, rows: rows(id) }).collect())
    }
    async fn latest_cases(&self, wanted: &[Wanted]) -> Result<Vec<Observation<CaseRows>>, SourceError> {
        self.wanted.lock().unwrap().extend_from_slice(wanted);
        let ids: Vec<String> = wanted.iter().map(|wanted| wanted.id.clone()).collect();
        self.cases(&ids, ReadFrom::Primary).await
    }
    async fn forms(&self, ids: &[String], from: ReadFrom) -> Result<Vec<Observation<FormRows>>, SourceError> {
        let forms = self.forms.lock().unwrap();
        let mut readings = self.form_readings.lock().unwrap();
        readings.push((ids.iter().cloned().collect(), from));
        let rows = |id: &String| {
            let form = *forms.get(id.as_str())?;
            let (state, key) = match form {
                Form::Live(key) => (1, Some(key)),
                Form::Archived => (2, None),
                Form::Gone => return None,
            };
            let row = json!({"form_id": id, "domain": "row", "xmlns": "x", "state": state,
                "received_on": "2026-01-05T10:11:12.240000Z"});
            let blob = |key: &str| BlobReference { key: key.into(), compressed: false, content_length: 1 };
            Some(FormRows { form: row.as_object()?.clone(), xml: key.map(blob), ..FormRows::default() })
        };
        let observed_us = readings.len() as i64;
        Ok(ids.iter().map(|id| Observation { id: id.clone(), observed_us, rows: rows(id) }).collect())
    }
    async fn latest_forms(&self, wanted: &[Wanted]) -> Result<Vec<Observation<FormRows>>, SourceError> {
        let ids: Vec<String> = wanted.iter().map(|wanted| wanted.id.clone()).collect();
        self.forms(&ids, ReadFrom::Replica).await
    }
    async fn location_rows(&self, _: LocationKeys<'_>) -> Result<LocationRows, SourceError> {
        Ok(LocationRows::default())
    }
    async fn location_ancestors(&self, _: &[i64]) -> Result<Vec<LocationStep>, SourceError> {
        Ok(Vec::new())
    }
    async fn location_children(&self, _: &[i64]) -> Result<Vec<(i64, i64)>, SourceError> {
        Ok(Vec::new())
    }
    async fn location_tree(&self, _: &str, _: TreeExtent<'_>, _: &mut TakeTreeRow<'_>) -> Result<i64, SourceError> {
        Ok(0)
    }
    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[async_trait]
impl BlobStore for World {
    /// There is what has a key that begins with `kept`.
    async fn get(&self, blob: &BlobReference) -> Result<Option<Bytes>, SourceError> {
        if let Some((id, form)) = self.before_blob.get(blob.key.as_str()) {
            self.forms.lock().unwrap().insert(id, *form);
        }
        Ok(blob.key.starts_with("kept").then(|| Bytes::from_static(b"<data xmlns=\"x\"><answer>42</answer></data>")))
    }
    async fn check(&self) -> Result<(), SourceError> {
        Ok(())
    }
}

#[async_trait]
impl Queue for World {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        if message.subject.starts_with("lake.quarantine.") {
            self.quarantined.lock().unwrap().push(wire::decode(&message.payload).unwrap());
        } else {
            self.published.lock().unwrap().push(wire::decode(&message.payload).unwrap());
        }
        Ok(())
    }
    async fn consumer(&self, _: Stream, _: ConsumerOptions) -> Result<Box<dyn Consumer>, QueueError> {
        unreachable!("nobody consumes here")
    }
    async fn broadcast(&self, _: &str, _: Bytes) -> Result<(), QueueError> {
        Ok(())
    }
    async fn listen(&self, _: &str) -> Result<BoxStream<'static, Broadcast>, QueueError> {
        Ok(Box::pin(futures::stream::empty()))
    }
    fn payload_size_max(&self) -> usize {
        1 << 20
    }
    async fn check(&self) -> Result<(), QueueError> {
        Ok(())
    }
}

impl World {
    fn of(cases: &[(&str, &str, bool)]) -> Arc<Self> {
        let cases = cases.iter().map(|&(id, domain, deleted)| (id.to_owned(), (domain.to_owned(), deleted)));
        Arc::new(Self { cases: cases.collect(), ..Self::default() })
    }

    fn fetcher(self: &Arc<Self>, take: TakeConfig, options: FetchOptions) -> Fetcher {
        let hq = Hq { database: Arc::clone(self) as _, blobs: Arc::clone(self) as _, users: Arc::new(NoUsers) };
        Fetcher { hq, queue: Arc::clone(self) as _, take, case_options: CaseOptions::default(), options }
    }

    /// What was published so far: by domain, ids of records and ids of tombstones.
    fn published(&self) -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
        let mut by_domain: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
        for batch in self.published.lock().unwrap().iter() {
            let (records, tombstones) = by_domain.entry(batch.domain.clone()).or_default();
            records.extend(batch.records.iter().map(|record| record.id.clone()));
            tombstones.extend(batch.tombstones.iter().map(|tombstone| tombstone.id.clone()));
        }
        by_domain
    }
}

fn change(domains: &[&str], deletion: bool) -> Change {
    let mut domains = domains.iter().map(|&domain| domain.to_owned());
    Change { domain: domains.next(), other_domains: domains.collect(), deletion, lineage: Lineage::default() }
}

fn taken(domains: &[&str]) -> TakeConfig {
    let domains = AllowList::Only(domains.iter().map(|&domain| domain.to_owned()).collect::<HashSet<_>>());
    TakeConfig { domains, ..TakeConfig::EVERYTHING }
}

fn ids(of: &[&str]) -> BTreeSet<String> {
    of.iter().map(|&id| id.to_owned()).collect()
}

#[tokio::test]
async fn the_domain_of_the_row_decides_and_that_of_the_message_only_where_there_is_no_row() {
    let world = World::of(&[
        ("live", "row", false),
        ("deleted", "row", true),
        ("not taken", "elsewhere", false),
        ("deleted, not taken", "elsewhere", true),
    ]);
    let changes: Changes = [
        ("live", change(&["message"], false)),
        // As hard deletions are announced; the row is still (or again) there.
        ("deleted", change(&["message"], true)),
        ("not taken", change(&["message"], false)),
        ("deleted, not taken", change(&["message"], true)),
        ("gone", change(&["message"], true)),
        ("gone, and messages do not agree", change(&["message", "elsewhere", "row"], true)),
        ("gone, and nobody knows whose it was", change(&[], true)),
    ]
    .map(|(id, change)| (id.to_owned(), change))
    .into();
    let fetcher = world.fetcher(taken(&["message", "row"]), FetchOptions::default());
    fetcher.fetch(Kind::Case, changes, &CancellationToken::new()).await.unwrap();
    let disagreement = "gone, and messages do not agree";
    let expected = BTreeMap::from([
        ("message".to_owned(), (ids(&[]), ids(&["gone", disagreement]))),
        ("row".to_owned(), (ids(&["live"]), ids(&["deleted", disagreement]))),
    ]);
    assert_eq!(world.published(), expected);
}

#[tokio::test]
async fn hq_is_told_what_changed_when_and_what_was_deleted() {
    let world = World::of(&[]);
    let mut changed = change(&["d"], false);
    changed.lineage.published_us = 7;
    let changes = [("a".to_owned(), changed), ("b".to_owned(), change(&["d"], true))].into();
    let fetcher = world.fetcher(TakeConfig::EVERYTHING, FetchOptions::default());
    fetcher.fetch(Kind::Case, changes, &CancellationToken::new()).await.unwrap();
    let mut wanted = world.wanted.lock().unwrap().clone();
    wanted.sort_by(|one, other| one.id.cmp(&other.id));
    let expected = [
        Wanted { id: "a".into(), changed_us: 7, deleted: false },
        Wanted { id: "b".into(), changed_us: 0, deleted: true },
    ];
    assert_eq!(wanted, expected);
}

/// Fetches these forms from a world in which something happens before a blob is read.
async fn fetched_forms(
    forms: &[(&'static str, Form)],
    before_blob: &[(&'static str, (&'static str, Form))],
) -> Arc<World> {
    let (forms, before_blob) = (forms.iter().copied().collect(), before_blob.iter().copied().collect());
    let world = Arc::new(World { forms: Mutex::new(forms), before_blob, ..World::default() });
    // The message is silent on the domain.
    let changes = world.forms.lock().unwrap().keys().map(|id| ((*id).to_owned(), change(&[], false))).collect();
    let fetcher = world.fetcher(TakeConfig::EVERYTHING, FetchOptions::default());
    fetcher.fetch(Kind::Form, changes, &CancellationToken::new()).await.unwrap();
    world
}

/// HQ removes a form and its XML after the rows were read, and says nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_form_that_vanishes_while_its_xml_is_read_leaves() {
    let world = fetched_forms(&[("f", Form::Live("a")), ("g", Form::Live("kept"))], &[("a", ("f", Form::Gone))]).await;
    assert_eq!(world.published(), BTreeMap::from([("row".to_owned(), (ids(&["g"]), ids(&["f"])))]));
    assert_eq!(world.quarantined.lock().unwrap().as_slice(), []);
    let gone: Vec<Tombstone> =
        world.published.lock().unwrap().iter().flat_map(|batch| batch.tombstones.clone()).collect();
    assert_eq!((gone[0].reason.as_str(), gone[0].observed_us), ("missing", 2), "the later look counts");
    let world = fetched_forms(&[("f", Form::Live("a"))], &[("a", ("f", Form::Archived))]).await;
    assert_eq!(world.published(), BTreeMap::from([("row".to_owned(), (ids(&[]), ids(&["f"])))]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_form_whose_xml_is_replaced_while_it_is_read_has_the_later_answers() {
    let world = fetched_forms(&[("f", Form::Live("a"))], &[("a", ("f", Form::Live("kept")))]).await;
    let record = world.published.lock().unwrap()[0].records[0].clone();
    let document: Value = serde_json::from_slice(&record.document).unwrap();
    assert_eq!((document["form"]["answer"].as_str(), record.observed_us), (Some("42"), 2));
    assert_eq!(world.quarantined.lock().unwrap().as_slice(), []);
    // However often that happens.
    let forms = [("f", Form::Live("a"))];
    let world = fetched_forms(&forms, &[("a", ("f", Form::Live("b"))), ("b", ("f", Form::Gone))]).await;
    assert_eq!(world.published(), BTreeMap::from([("row".to_owned(), (ids(&[]), ids(&["f"])))]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn forms_whose_xml_is_lost_are_asked_for_once_more_all_together() {
    let lost = ["a", "b", "c"];
    let forms: Vec<(&str, Form)> = lost.map(|id| (id, Form::Live("lost"))).into_iter().collect();
    let forms: Vec<_> = forms.into_iter().chain([("d", Form::Live("kept"))]).collect();
    let world = fetched_forms(&forms, &[]).await;
    assert_eq!(world.published()["row"], (ids(&["a", "b", "c", "d"]), ids(&[])));
    let mut reasons: Vec<(String, String)> =
        world.quarantined.lock().unwrap().iter().map(|entry| (entry.id.clone(), entry.reason.clone())).collect();
    reasons.sort();
    assert_eq!(reasons, lost.map(|id| (id.to_owned(), "form_xml_missing".to_owned())));
    let readings = world.form_readings.lock().unwrap().clone();
    assert_eq!(readings, [(ids(&["a", "b", "c", "d"]), ReadFrom::Replica), (ids(&lost), ReadFrom::Primary)]);
}

fn publish(feed: &MemoryFeed, domain: &str, ids: std::ops::Range<usize>) {
    for number in ids {
        let message = json!({"document_id": format!("{domain} {number}"), "domain": domain});
        feed.publish("case-sql", message.to_string());
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let patience = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), patience).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn tombstones(world: &World, domain: &str) -> usize {
    world.published().get(domain).map_or(0, |(_, tombstones)| tombstones.len())
}

#[tokio::test]
async fn a_domain_that_floods_the_feed_waits_alone() {
    // One record in a day: whoever has had his share waits for longer than this test takes. One batch at a time: it must not wait for him.
    let options = FetchOptions {
        batches_in_flight_max: 1,
        max_records: 100,
        linger_ms: 1,
        domain_records_per_second: 1,
        domain_burst_records: 50,
        waiting_records_max: 100_000,
    };
    let (world, feed, shutdown) = (World::of(&[]), Arc::new(MemoryFeed::default()), CancellationToken::new());
    publish(&feed, "flood", 0..50_000);
    publish(&feed, "quiet", 0..50);
    let fetcher = Arc::new(world.fetcher(TakeConfig::EVERYTHING, options));
    let running = tokio::spawn(pipeline::run(Arc::clone(&feed) as _, fetcher, shutdown.clone()));
    until("the quiet domain has everything", || tombstones(&world, "quiet") == 50).await;
    assert!(tombstones(&world, "flood") >= 50);
    // What is left of the flood is not lost: it was not reported as done and will be handed out again.
    shutdown.cancel();
    running.await.unwrap().unwrap();
    let flood = tombstones(&world, "flood");
    assert!(flood < 50_000 && feed.unfinished() >= 50_000 - flood, "{flood}");
}

#[tokio::test]
async fn what_waits_is_bounded_and_comes_in_the_end() {
    let options = FetchOptions {
        batches_in_flight_max: 2,
        max_records: 50,
        linger_ms: 1,
        domain_records_per_second: 2_000,
        domain_burst_records: 30,
        waiting_records_max: 10,
    };
    let (world, feed, shutdown) = (World::of(&[]), Arc::new(MemoryFeed::default()), CancellationToken::new());
    publish(&feed, "a", 0..500);
    publish(&feed, "b", 0..500);
    let fetcher = Arc::new(world.fetcher(TakeConfig::EVERYTHING, options));
    let running = tokio::spawn(pipeline::run(Arc::clone(&feed) as _, fetcher, shutdown.clone()));
    until("everything is done", || feed.unfinished() == 0).await;
    assert_eq!((tombstones(&world, "a"), tombstones(&world, "b")), (500, 500));
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
