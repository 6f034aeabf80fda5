#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use lake_hq::documents::case::CaseOptions;
use lake_hq::source::{HqDatabase, ReadFrom, SourceError};
use lake_proto::queue::v1::{Quarantined, RecordBatch};
use lake_shared::wire;
use lake_simulated_hq::memory_hq::MemoryHq;
use lake_simulated_hq::scripted_hq::{Question, Script, ScriptedHq};
use lake_simulated_hq::single_rows::{case, form, form_xml, location, location_type, remove_form_xml};
use lake_simulated_hq::turn::{Mutation, Table};
use lake_test_kit::recording_queue::RecordingQueue;
use lake_test_kit::waiting::until;
use serde_json::json;

use super::*;
use crate::allow_list::{AllowList, TakeConfig};
use crate::change_feed::memory::MemoryFeed;
use crate::options::FetchOptions;
use crate::pipeline;

mod memory;
mod poison;

/// A form in the database of a [`World`].
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    /// Live, with this key of its XML.
    Live(&'static str),
    Archived,
    Gone,
}

impl Form {
    /// HQ gets the form into this state.
    fn mutations(self, id: &str) -> Vec<Mutation> {
        match self {
            Self::Live(key) => [vec![form(id, "row", 1)], form_xml(id, key).into()].concat(),
            Self::Archived => vec![form(id, "row", 2), remove_form_xml(id)],
            Self::Gone => vec![Mutation::remove(Table::Form, json!({ "form_id": id })), remove_form_xml(id)],
        }
    }
}

/// What happens to a form before the blob of a key is read.
struct BeforeBlob(HashMap<&'static str, (&'static str, Form)>);

#[async_trait]
impl Script for BeforeBlob {
    async fn before(&self, question: &Question, hq: &MemoryHq) -> Result<(), SourceError> {
        if let Question::Blob(key) = question
            && let Some((id, form)) = self.0.get(key.as_str())
        {
            hq.change(&form.mutations(id));
        }
        Ok(())
    }
}

/// An HQ, and a queue that takes everything.
struct World {
    hq: Arc<ScriptedHq<BeforeBlob>>,
    queue: Arc<RecordingQueue>,
}

impl World {
    /// With these cases: id, domain, and whether it is soft-deleted.
    fn of(cases: &[(&str, &str, bool)]) -> Self {
        let world = Self::before_blob(&[]);
        world
            .hq
            .memory
            .change(&cases.iter().map(|&(id, domain, deleted)| case(id, domain, deleted)).collect::<Vec<_>>());
        world
    }

    fn before_blob(before_blob: &[(&'static str, (&'static str, Form))]) -> Self {
        let hq = ScriptedHq::new(BeforeBlob(before_blob.iter().copied().collect()));
        Self { hq, queue: Arc::default() }
    }

    fn fetcher(&self, take: TakeConfig, options: FetchOptions) -> Fetcher {
        let queue = Arc::<RecordingQueue>::clone(&self.queue);
        Fetcher::new(self.hq.hq(), queue, take, CaseOptions::default(), options)
    }

    fn batches(&self) -> Vec<RecordBatch> {
        self.queue.payloads("lake.records.").iter().map(|payload| wire::decode(payload).unwrap()).collect()
    }

    fn quarantined(&self) -> Vec<Quarantined> {
        self.queue.payloads("lake.quarantine.").iter().map(|payload| wire::decode(payload).unwrap()).collect()
    }

    /// By record, why it is incomplete.
    fn incomplete(&self) -> BTreeMap<String, Option<String>> {
        let records = self.batches().into_iter().flat_map(|batch| batch.records);
        records.map(|record| (record.id, record.incomplete)).collect()
    }

    /// What was published so far: by domain, ids of records and ids of tombstones.
    fn published(&self) -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
        let mut by_domain: BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> = BTreeMap::new();
        for batch in self.batches() {
            let (records, tombstones) = by_domain.entry(batch.domain).or_default();
            records.extend(batch.records.into_iter().map(|record| record.id));
            tombstones.extend(batch.tombstones.into_iter().map(|tombstone| tombstone.id));
        }
        by_domain
    }
}

fn change(domains: &[&str], deletion: bool) -> Change {
    let mut domains = domains.iter().map(|&domain| domain.to_owned());
    Change { domain: domains.next(), other_domains: domains.collect(), deletion, ..Change::default() }
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
    let asked = world.hq.asked();
    let [Question::LatestCases(wanted)] = asked.as_slice() else { panic!("{asked:?}") };
    let mut wanted = wanted.clone();
    wanted.sort_by(|one, other| one.id.cmp(&other.id));
    let expected = [
        Wanted { id: "a".into(), changed_us: 7, deleted: false, alone: false },
        Wanted { id: "b".into(), changed_us: 0, deleted: true, alone: false },
    ];
    assert_eq!(wanted, expected);
}

/// Fetches these forms from a world in which something happens before a blob is read.
async fn fetched_forms(forms: &[(&'static str, Form)], before_blob: &[(&'static str, (&'static str, Form))]) -> World {
    let world = World::before_blob(before_blob);
    forms.iter().for_each(|(id, form)| world.hq.memory.change(&form.mutations(id)));
    let content = b"<data xmlns=\"x\"><answer>42</answer></data>".to_vec();
    world.hq.memory.change(&[Mutation::PutBlob { key: "kept".into(), content, gzip: false }]);
    // The message is silent on the domain.
    let changes = forms.iter().map(|(id, _)| ((*id).to_owned(), change(&[], false))).collect();
    let fetcher = world.fetcher(TakeConfig::EVERYTHING, FetchOptions::default());
    fetcher.fetch(Kind::Form, changes, &CancellationToken::new()).await.unwrap();
    world
}

/// HQ removes a form and its XML after the rows were read, and says nothing of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_form_that_vanishes_while_its_xml_is_read_leaves() {
    let world = fetched_forms(&[("f", Form::Live("a")), ("g", Form::Live("kept"))], &[("a", ("f", Form::Gone))]).await;
    assert_eq!(world.published(), BTreeMap::from([("row".to_owned(), (ids(&["g"]), ids(&["f"])))]));
    assert_eq!(world.quarantined(), []);
    let gone: Vec<Tombstone> = world.batches().into_iter().flat_map(|batch| batch.tombstones).collect();
    assert_eq!((gone[0].reason.as_str(), gone[0].observed_us), ("missing", 2), "the later look counts");
    let world = fetched_forms(&[("f", Form::Live("a"))], &[("a", ("f", Form::Archived))]).await;
    assert_eq!(world.published(), BTreeMap::from([("row".to_owned(), (ids(&[]), ids(&["f"])))]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_form_whose_xml_is_replaced_while_it_is_read_has_the_later_answers() {
    let world = fetched_forms(&[("f", Form::Live("a"))], &[("a", ("f", Form::Live("kept")))]).await;
    let record = world.batches().remove(0).records.remove(0);
    let document: Value = serde_json::from_slice(&record.document).unwrap();
    assert_eq!((document["form"]["answer"].as_str(), record.observed_us), (Some("42"), 2));
    assert_eq!(world.quarantined(), []);
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
        world.quarantined().into_iter().map(|entry| (entry.id, entry.reason)).collect();
    reasons.sort();
    assert_eq!(reasons, lost.map(|id| (id.to_owned(), "form_xml_missing".to_owned())));
    let missing = Some("form_xml_missing".to_owned());
    assert_eq!(
        world.incomplete(),
        [("a", &missing), ("b", &missing), ("c", &missing), ("d", &None)]
            .map(|(id, reason)| (id.to_owned(), reason.clone()))
            .into()
    );
    let asked = world.hq.asked();
    let readings: Vec<&Question> = asked.iter().filter(|question| !matches!(question, Question::Blob(_))).collect();
    let [Question::LatestForms(wanted), Question::Forms(again, ReadFrom::Primary)] = readings.as_slice() else {
        panic!("{asked:?}")
    };
    assert_eq!(wanted.iter().map(|wanted| wanted.id.clone()).collect::<BTreeSet<_>>(), ids(&["a", "b", "c", "d"]));
    assert_eq!(again.iter().cloned().collect::<BTreeSet<_>>(), ids(&lost));
}

#[tokio::test]
async fn a_column_that_cannot_be_read_costs_what_it_says_and_no_more() {
    let world = World::of(&[("good", "d", false), ("bad", "d", false)]);
    let row = json!({"case_id": "bad", "domain": "d", "type": "person", "name": "Asha", "deleted": false, "case_json": "{\"a\": ",
        "server_modified_on": "2026-01-05T10:11:12.240000Z"});
    world.hq.memory.change(&[Mutation::put(Table::Case, row)]);
    let changes = ["good", "bad"].map(|id| (id.to_owned(), change(&["d"], false))).into();
    let fetcher = world.fetcher(TakeConfig::EVERYTHING, FetchOptions::default());
    fetcher.fetch(Kind::Case, changes, &CancellationToken::new()).await.unwrap();
    let unreadable = Some("document_unreadable".to_owned());
    assert_eq!(world.incomplete(), [("good".to_owned(), None), ("bad".to_owned(), unreadable)].into());
    let batches = world.batches();
    let bad = batches.iter().flat_map(|batch| &batch.records).find(|record| record.id == "bad").unwrap();
    let document: Value = serde_json::from_slice(&bad.document).unwrap();
    assert_eq!((document["name"].as_str(), &document["case_json"]), (Some("Asha"), &json!({})));
    let [entry] = &world.quarantined()[..] else { panic!("{:?}", world.quarantined()) };
    assert_eq!((entry.id.as_str(), entry.reason.as_str()), ("bad", "document_unreadable"));
    assert!(entry.detail.contains("column case_json"), "{}", entry.detail);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn forms_without_xml_are_told_to_the_operator_when_they_are_many() {
    let names: Vec<String> = (0..25).map(|number| format!("f{number}")).collect();
    let world = World::of(&[]);
    names.iter().for_each(|id| world.hq.memory.change(&Form::Live("lost").mutations(id)));
    let fetcher = world.fetcher(TakeConfig::EVERYTHING, FetchOptions::default());
    assert_eq!(fetcher.xml_watch.check(), Ok(()));
    let changes = names.iter().map(|id| (id.clone(), change(&["row"], false))).collect();
    fetcher.fetch(Kind::Form, changes, &CancellationToken::new()).await.unwrap();
    assert!(fetcher.xml_watch.check().unwrap_err().starts_with("25 of the last 25 forms"));
}

/// HQ says nothing of it.
#[tokio::test]
async fn the_locations_of_a_renamed_type_come_again() {
    let world = World::of(&[]);
    let set_up = |village: &str| {
        let mut all = vec![
            location_type("d", 1, "district"),
            location_type("d", 2, village),
            location_type("not taken", 3, village),
        ];
        all.push(location("d", 1, 10, "top", "T", None));
        all.extend((20..22).map(|id| location("d", 2, id, &format!("v{id}"), "V", Some(10))));
        all.push(location("not taken", 3, 30, "elsewhere", "E", None));
        world.hq.memory.change(&all);
    };
    let fetcher = world.fetcher(taken(&["d"]), FetchOptions::default());
    let (mut known, shutdown) = (type_watch::KnownTypes::default(), CancellationToken::new());
    set_up("village");
    for _ in 0..2 {
        fetcher.look_at_location_types(&mut known, &shutdown).await.unwrap();
        assert_eq!(world.published(), BTreeMap::new());
    }
    set_up("ward");
    fetcher.look_at_location_types(&mut known, &shutdown).await.unwrap();
    assert_eq!(world.published(), BTreeMap::from([("d".to_owned(), (ids(&["v20", "v21"]), ids(&[])))]));
    let document: Value = serde_json::from_slice(&world.batches()[0].records[0].document).unwrap();
    assert_eq!((&document["location_type"], &document["lineage"]), (&json!("ward"), &json!(["top"])));
    fetcher.look_at_location_types(&mut known, &shutdown).await.unwrap();
    assert_eq!(world.batches().len(), 1, "once");
}

#[test]
fn xml_above_the_limit_has_a_reason_of_its_own() {
    let (answers, lacking) = forms::FormXml::TooLarge { size_max: 77 }.answers();
    let lacking = lacking.unwrap();
    assert_eq!((&*answers, lacking.reason), (&b"{\"form\":{}"[..], Reason::FormXmlTooLarge));
    assert!(lacking.detail.contains("hq.blobs.size_max_bytes = 77"), "{}", lacking.detail);
}

fn publish(feed: &MemoryFeed, domain: &str, ids: std::ops::Range<usize>) {
    for number in ids {
        let message = json!({"document_id": format!("{domain} {number}"), "domain": domain});
        feed.publish("case-sql", message.to_string());
    }
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
        ..FetchOptions::default()
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
        ..FetchOptions::default()
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
