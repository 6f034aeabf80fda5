//! Records that cannot be read, or that make the fetcher fail: they hold up nothing else.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use lake_hq::source::Hindrance;
use lake_simulated_hq::single_rows::{location, location_type};

use super::*;

/// What HQ does when it is asked about some ids.
#[derive(Default)]
struct Poison {
    /// These, together with others or alone.
    slow: &'static [&'static str],
    undecodable: &'static [&'static str],
    too_large: &'static [&'static str],
    /// These only together with others.
    slow_together: &'static [&'static str],
    panics: &'static [&'static str],
    /// Everything, while this is set.
    all_slow: AtomicBool,
    /// Sizes of the portions of cases that were answered or not.
    portions: Mutex<Vec<usize>>,
}

#[async_trait]
impl Script for Poison {
    async fn before(&self, question: &Question, _: &MemoryHq) -> Result<(), SourceError> {
        let Question::LatestCases(wanted) = question else { return Ok(()) };
        self.portions.lock().unwrap().push(wanted.len());
        let asked = |ids: &[&str]| wanted.iter().any(|one| ids.contains(&one.id.as_str()));
        assert!(!asked(self.panics), "no such case can be");
        let ask_less = |hindrance| {
            Err(SourceError::AskLess {
                action: format!("read {} cases", wanted.len()),
                hindrance,
                reason: "test".into(),
            })
        };
        if asked(self.slow) || self.all_slow.load(Ordering::SeqCst) {
            return ask_less(Hindrance::TooSlow);
        }
        if asked(self.undecodable) {
            return ask_less(Hindrance::Undecodable);
        }
        if asked(self.too_large) {
            return ask_less(Hindrance::TooLarge);
        }
        if asked(self.slow_together) && wanted.len() > 1 {
            return ask_less(Hindrance::TooSlow);
        }
        Ok(())
    }
}

/// A fetcher at work, and what it has published.
struct AtWork {
    hq: Arc<ScriptedHq<Poison>>,
    queue: Arc<RecordingQueue>,
    feed: Arc<MemoryFeed>,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl AtWork {
    fn start(script: Poison) -> Self {
        let (hq, queue) = (ScriptedHq::new(script), Arc::<RecordingQueue>::default());
        let (feed, shutdown) = (Arc::new(MemoryFeed::default()), CancellationToken::new());
        let options = FetchOptions { linger_ms: 200, ..FetchOptions::default() };
        let (to, take) = (Arc::<RecordingQueue>::clone(&queue), TakeConfig::EVERYTHING);
        let fetcher = Fetcher::new(hq.hq(), to, take, CaseOptions::default(), options);
        let running = tokio::spawn(pipeline::run(Arc::clone(&feed) as _, Arc::new(fetcher), shutdown.clone()));
        Self { hq, queue, feed, shutdown, running }
    }

    fn announce(&self, numbers: std::ops::Range<usize>) {
        let cases: Vec<Mutation> = numbers.clone().map(|number| case(&format!("c{number}"), "d", false)).collect();
        self.hq.memory.change(&cases);
        for number in numbers {
            let message = json!({"document_id": format!("c{number}"), "domain": "d"});
            self.feed.publish("case-sql", message.to_string());
        }
    }

    fn records(&self) -> BTreeSet<String> {
        let batches = self.queue.payloads("lake.records.");
        let batches = batches.iter().map(|payload| wire::decode::<RecordBatch>(payload).unwrap());
        batches.flat_map(|batch| batch.records).map(|record| record.id).collect()
    }

    fn quarantined(&self) -> Vec<(String, String)> {
        let entries = self.queue.payloads("lake.quarantine.");
        let entries = entries.iter().map(|payload| wire::decode::<Quarantined>(payload).unwrap());
        let mut found: Vec<_> = entries.map(|entry| (entry.id, entry.reason)).collect();
        found.sort();
        found
    }

    async fn until_done(&self) {
        until("all messages are done", || self.feed.unfinished() == 0).await;
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.running.await.unwrap().unwrap();
    }
}

fn all_but(count: usize, left_out: &[&str]) -> BTreeSet<String> {
    (0..count).map(|number| format!("c{number}")).filter(|id| !left_out.contains(&id.as_str())).collect()
}

fn entries(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter().map(|(id, reason)| ((*id).to_owned(), (*reason).to_owned())).collect()
}

#[tokio::test]
async fn cases_that_cannot_be_read_go_to_quarantine_and_their_neighbours_into_the_lake() {
    let script = Poison {
        slow: &["c7"],
        undecodable: &["c40"],
        too_large: &["c50"],
        slow_together: &["c20"],
        ..Poison::default()
    };
    let at_work = AtWork::start(script);
    at_work.announce(0..60);
    at_work.until_done().await;
    assert_eq!(at_work.records(), all_but(60, &["c7", "c40", "c50"]));
    let expected = entries(&[("c40", "row_undecodable"), ("c50", "rows_too_large"), ("c7", "record_too_slow")]);
    assert_eq!(at_work.quarantined(), expected);
    // What has to be read alone is known now, and costs the next batch nothing.
    at_work.hq.script.portions.lock().unwrap().clear();
    at_work.announce(0..60);
    at_work.until_done().await;
    let portions = at_work.hq.script.portions.lock().unwrap().clone();
    let (together, alone): (Vec<usize>, Vec<usize>) = portions.into_iter().partition(|size| *size > 1);
    // With each of the four that is read alone there may be the last one or two that were read with it (three are halved into one and two).
    assert!(together.len() == 1 && (48..=56).contains(&together[0]), "{together:?}");
    // Two tries for each of those that cannot be read, of which the large one is first read without the memory of a large one; one for the others.
    assert_eq!(alone.len(), 60 - together[0] + 3);
    at_work.stop().await;
}

#[tokio::test]
async fn when_no_record_can_be_read_that_is_waited_out() {
    let script = Poison { all_slow: AtomicBool::new(true), ..Poison::default() };
    let at_work = AtWork::start(script);
    at_work.announce(0..10);
    // Each of them was tried twice alone.
    let alone = || at_work.hq.script.portions.lock().unwrap().iter().filter(|size| **size == 1).count();
    until("all are tried again", || alone() > 40).await;
    assert_eq!(at_work.quarantined(), []);
    at_work.hq.script.all_slow.store(false, Ordering::SeqCst);
    at_work.until_done().await;
    assert_eq!((at_work.records(), at_work.quarantined()), (all_but(10, &[]), vec![]));
    at_work.stop().await;
}

#[tokio::test]
async fn a_record_that_makes_the_fetcher_panic_goes_to_quarantine_and_the_others_go_on() {
    let at_work = AtWork::start(Poison { panics: &["c13", "c14"], ..Poison::default() });
    at_work.announce(0..30);
    at_work.until_done().await;
    assert_eq!(at_work.records(), all_but(30, &["c13", "c14"]));
    assert_eq!(at_work.quarantined(), entries(&[("c13", "fetcher_failed"), ("c14", "fetcher_failed")]));
    let entry: Quarantined = wire::decode(&at_work.queue.payloads("lake.quarantine.")[0]).unwrap();
    assert!(entry.detail.contains("no such case can be") && entry.payload.starts_with(b"{"), "{entry:?}");
    assert_eq!(entry.lineage.unwrap().topic, "case-sql");
    at_work.stop().await;
}

/// HQ cannot answer about the locations of these readings of rows, counted from 1.
struct Readings(&'static [usize], Mutex<usize>);

#[async_trait]
impl Script for Readings {
    async fn before(&self, question: &Question, _: &MemoryHq) -> Result<(), SourceError> {
        if *question != Question::LocationRows {
            return Ok(());
        }
        let mut number = self.1.lock().unwrap();
        *number += 1;
        let (action, reason) = ("read locations".into(), "test".into());
        match self.0.contains(&number) {
            true => Err(SourceError::AskLess { action, hindrance: Hindrance::Undecodable, reason }),
            false => Ok(()),
        }
    }
}

#[tokio::test]
async fn a_location_that_cannot_be_read_is_left_out_when_those_above_it_change() {
    // The changed one; the four below it; one half; the other half; its first; its second.
    let hq = ScriptedHq::new(Readings(&[2, 4, 6], Mutex::default()));
    hq.memory.change(&[location_type("d", 1, "place"), location("d", 1, 1, "top", "Top", None)]);
    for id in 2..6 {
        hq.memory.change(&[location("d", 1, id, &format!("l{id}"), "Below", Some(1))]);
    }
    let queue = Arc::<RecordingQueue>::default();
    let (to, take) = (Arc::<RecordingQueue>::clone(&queue), TakeConfig::EVERYTHING);
    let fetcher = Fetcher::new(hq.hq(), to, take, CaseOptions::default(), FetchOptions::default());
    let changes = Changes::from([("top".to_owned(), change(&["d"], false))]);
    let left = fetcher.fetch(Kind::Location, changes, &CancellationToken::new()).await.unwrap();
    assert_eq!(left.len(), 0);
    let batches = queue.payloads("lake.records.");
    let records = batches.iter().flat_map(|payload| wire::decode::<RecordBatch>(payload).unwrap().records);
    assert_eq!(records.count(), 4);
    let entries = queue.payloads("lake.quarantine.");
    let entry: Quarantined = wire::decode(&entries[0]).unwrap();
    assert_eq!((entries.len(), entry.reason.as_str(), entry.domain.as_str()), (1, "row_undecodable", "d"));
    assert!(entry.detail.contains("below location top"), "{}", entry.detail);
}

#[tokio::test]
async fn a_location_that_cannot_be_read_is_left_out_when_its_type_is_renamed() {
    // All five of the type; two of them; the other three; the first of these; its neighbours.
    let hq = ScriptedHq::new(Readings(&[1, 3, 4], Mutex::default()));
    let rename = |name: &str| hq.memory.change(&[location_type("d", 1, name)]);
    rename("village");
    for id in 1..6 {
        hq.memory.change(&[location("d", 1, id, &format!("l{id}"), "V", None)]);
    }
    let queue = Arc::<RecordingQueue>::default();
    let (to, take) = (Arc::<RecordingQueue>::clone(&queue), TakeConfig::EVERYTHING);
    let fetcher = Fetcher::new(hq.hq(), to, take, CaseOptions::default(), FetchOptions::default());
    let (mut known, shutdown) = (type_watch::KnownTypes::default(), CancellationToken::new());
    fetcher.look_at_location_types(&mut known, &shutdown).await.unwrap();
    rename("ward");
    fetcher.look_at_location_types(&mut known, &shutdown).await.unwrap();
    let batches = queue.payloads("lake.records.");
    let records = batches.iter().flat_map(|payload| wire::decode::<RecordBatch>(payload).unwrap().records);
    let emitted: BTreeSet<String> = records.map(|record| record.id).collect();
    assert_eq!(emitted, BTreeSet::from(["l1", "l2", "l4", "l5"].map(str::to_owned)));
    let entries = queue.payloads("lake.quarantine.");
    let entry: Quarantined = wire::decode(&entries[0]).unwrap();
    assert_eq!((entries.len(), entry.reason.as_str(), entry.domain.as_str()), (1, "row_undecodable", "d"));
    assert!(entry.detail.contains("the row with id 3 of type ward"), "{}", entry.detail);
}
