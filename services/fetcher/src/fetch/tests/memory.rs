//! What is held between HQ and the queue is bounded by bytes.

use std::sync::Mutex;

use super::*;

/// Size of the XML of each form, bytes.
const XML_BYTES: usize = 1 << 20;

/// Notes, whenever XML is asked for, how many forms were asked for and are not published.
struct Held {
    queue: Arc<RecordingQueue>,
    asked: Mutex<(usize, usize)>,
}

fn published(queue: &RecordingQueue) -> usize {
    let batches = queue.payloads("lake.records.");
    batches.iter().map(|payload| wire::decode::<RecordBatch>(payload).unwrap().records.len()).sum()
}

#[async_trait]
impl Script for Held {
    async fn before(&self, question: &Question, _: &MemoryHq) -> Result<(), SourceError> {
        if let Question::Blob(_) = question {
            let published = published(&self.queue);
            let mut asked = self.asked.lock().unwrap();
            asked.0 += 1;
            asked.1 = asked.1.max(asked.0 - published);
        }
        Ok(())
    }
}

/// Forms with large XML, all in one batch: the most that were held at once.
async fn most_held(forms: usize, held_bytes_max: usize) -> usize {
    let queue = Arc::<RecordingQueue>::default();
    let hq = ScriptedHq::new(Held { queue: Arc::clone(&queue), asked: Mutex::default() });
    let text = "x".repeat(XML_BYTES);
    let content = format!("<data xmlns=\"x\"><answer>{text}</answer></data>").into_bytes();
    let size = content.len();
    hq.memory.change(&[Mutation::PutBlob { key: "large".into(), content, gzip: false }]);
    let ids: Vec<String> = (0..forms).map(|number| format!("f{number}")).collect();
    for id in &ids {
        hq.memory.change(&[form(id, "row", 1)]);
        let xml = json!({"parent_id": id, "name": "form.xml", "type_code": 2, "key": "large", "content_length": size});
        hq.memory.change(&[Mutation::put(Table::BlobMeta, xml)]);
    }
    let options = FetchOptions { held_bytes_max, ..FetchOptions::default() };
    let (to, take) = (Arc::<RecordingQueue>::clone(&queue), TakeConfig::EVERYTHING);
    let fetcher = Fetcher::new(hq.hq(), to, take, CaseOptions::default(), options);
    let changes = ids.into_iter().map(|id| (id, change(&["row"], false))).collect();
    let left = fetcher.fetch(Kind::Form, changes, &CancellationToken::new()).await.unwrap();
    assert_eq!((left.len(), published(&queue)), (0, forms));
    hq.script.asked.lock().unwrap().1
}

/// An HQ with one case that is too large to be read with others. Notes how much memory is set aside when it is asked for.
#[derive(Default)]
struct HeavyCase {
    fetcher: std::sync::OnceLock<Arc<Fetcher>>,
    held: Mutex<Vec<(bool, usize)>>,
}

#[async_trait]
impl Script for HeavyCase {
    async fn before(&self, question: &Question, _: &MemoryHq) -> Result<(), SourceError> {
        let Question::LatestCases(wanted) = question else { return Ok(()) };
        let alone = wanted.iter().any(|one| one.alone);
        self.held.lock().unwrap().push((alone, self.fetcher.get().unwrap().rows_budget.held()));
        match alone {
            true => Ok(()),
            false => {
                let (action, reason) = ("read cases".to_owned(), "their rows are too large".to_owned());
                Err(SourceError::AskLess { action, hindrance: Hindrance::TooLarge, reason })
            }
        }
    }
}

#[tokio::test]
async fn a_record_that_is_large_is_read_when_the_memory_of_a_large_one_is_set_aside() {
    let hq = ScriptedHq::new(HeavyCase::default());
    hq.memory.change(&[case("heavy", "d", false)]);
    let (queue, take) = (Arc::<RecordingQueue>::default(), TakeConfig::EVERYTHING);
    let to = Arc::<RecordingQueue>::clone(&queue);
    let fetcher = Arc::new(Fetcher::new(hq.hq(), to, take, CaseOptions::default(), FetchOptions::default()));
    assert!(hq.script.fetcher.set(Arc::clone(&fetcher)).is_ok());
    let changes = Changes::from([("heavy".to_owned(), change(&["d"], false))]);
    let left = fetcher.fetch(Kind::Case, changes, &CancellationToken::new()).await.unwrap();
    assert_eq!((left.len(), published(&queue), fetcher.rows_budget.held()), (0, 1, 0));
    let asked = hq.script.held.lock().unwrap().clone();
    assert_eq!(asked, [(false, answer_bytes_max(1)), (true, hq.record_bytes_max())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn large_forms_are_published_before_more_are_read_than_there_is_memory_for() {
    // Half of the memory is for XML; a form takes eight times its size in work, twice when it waits.
    let most = most_held(64, 64 << 20).await;
    assert!((1..=16).contains(&most), "{most} forms of 1 MiB were held in 32 MiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_form_larger_than_all_the_memory_is_handled_alone() {
    assert_eq!(most_held(5, 1 << 20).await, 1);
}

#[tokio::test]
async fn few_large_messages_are_a_batch_already() {
    let options = FetchOptions { linger_ms: 1_000, ..FetchOptions::default() };
    let (world, feed, shutdown) = (World::of(&[]), Arc::new(MemoryFeed::default()), CancellationToken::new());
    for number in 0..12 {
        let padding = "x".repeat(1 << 20);
        let message = json!({"document_id": format!("c{number}"), "domain": "d", "padding": padding});
        feed.publish("case-sql", message.to_string());
    }
    let fetcher = Arc::new(world.fetcher(TakeConfig::EVERYTHING, options));
    let running = tokio::spawn(pipeline::run(Arc::clone(&feed) as _, fetcher, shutdown.clone()));
    until("all messages are done", || feed.unfinished() == 0).await;
    let sizes: Vec<usize> = world
        .hq
        .asked()
        .iter()
        .map(|question| match question {
            Question::LatestCases(wanted) => wanted.len(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!((sizes.iter().sum::<usize>(), sizes.iter().max()), (12, Some(&4)));
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
