//! Fetching batches of 500 ids from two shards of a real Postgres: statements, milliseconds a batch, records a second.
//! For forms with their XML (about 11 kB, stored compressed in a folder), with and without making the documents.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::{StreamExt, TryStreamExt};
use lake_hq::blobs::{BlobStoreConfig, BlobsConfig, ObjectBlobs};
use lake_hq::documents::{case, form};
use lake_hq::postgres::PostgresHq;
use lake_hq::source::{BlobStore, CaseRows, FormRows, HqDatabase, Observation, Wanted};
use lake_hq::xform::form_json;
use lake_tests::two_shards::{TwoShards, place_of};

const BATCH: usize = 500;
const BATCHES: usize = 20;
/// Forms of a batch whose XML is read at the same time.
const BLOBS_AT_ONCE: usize = 16;

fn xml() -> Vec<u8> {
    let mut xml = String::from("<data name=\"Visit\" xmlns=\"http://openrosa.org/formdesigner/A\">");
    for number in 0..150 {
        write!(xml, "<question_{number}>the answer to question {number}, as people give it</question_{number}>")
            .unwrap();
    }
    xml.push_str("</data>");
    xml.into_bytes()
}

fn wanted(batch: usize) -> Vec<Wanted> {
    (0..BATCH).map(|n| Wanted { id: format!("id{}", batch * BATCH + n), ..Wanted::default() }).collect()
}

/// Prints what all batches took.
fn report(what: &str, statements: usize, took: &mut [Duration]) {
    took.sort_unstable();
    let total: Duration = took.iter().sum();
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    println!(
        "{what:<44} {statements:>2} statements a batch   median {:>6.1} ms   slowest {:>6.1} ms   {:>8.0} records/s",
        ms(took[took.len() / 2]),
        ms(took[took.len() - 1]),
        (BATCH * took.len()) as f64 / total.as_secs_f64()
    );
}

/// Reads all batches, one after the other; all but the first count.
async fn measure(what: &str, shards: &mut TwoShards, mut batch: impl AsyncFnMut(usize) -> usize) {
    assert_eq!(batch(0).await, BATCH);
    let begin = shards.log_end();
    let mut took = Vec::new();
    for number in 0..BATCHES {
        let began = Instant::now();
        assert_eq!(batch(number).await, BATCH);
        took.push(began.elapsed());
    }
    let statements: usize = shards.statements_since(begin).values().sum();
    report(what, statements / BATCHES, &mut took);
}

async fn with_xml(blobs: &ObjectBlobs, observations: Vec<Observation<FormRows>>) -> Vec<(FormRows, bytes::Bytes)> {
    futures::stream::iter(observations.into_iter().filter_map(|observation| observation.rows))
        .map(async |rows| {
            let xml = blobs.get(rows.xml.as_ref().unwrap()).await?.bytes().unwrap();
            Ok::<_, lake_hq::source::SourceError>((rows, xml))
        })
        .buffer_unordered(BLOBS_AT_ONCE)
        .try_collect()
        .await
        .unwrap()
}

fn case_rows(observations: Vec<Observation<CaseRows>>) -> impl Iterator<Item = CaseRows> {
    observations.into_iter().filter_map(|observation| observation.rows)
}

#[tokio::main]
async fn main() {
    let mut shards = TwoShards::start().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(&xml()).unwrap();
    let stored = gzip.finish().unwrap();
    let ids: Vec<String> = (0..BATCH * BATCHES).map(|n| format!("id{n}")).collect();
    for (place, database) in ["p1", "p2"].into_iter().enumerate() {
        let there: Vec<String> = ids.iter().filter(|id| place_of(id) == place).cloned().collect();
        shards.insert_cases(database, &there).await.unwrap();
        shards.insert_forms(database, &there).await.unwrap();
    }
    for id in &ids {
        std::fs::write(folder.path().join(id), &stored).unwrap();
    }
    let hq = PostgresHq::connect(&shards.config).await.unwrap();
    let store = BlobStoreConfig { folder: Some(folder.path().to_owned()), ..BlobStoreConfig::default() };
    let config = BlobsConfig { stores: vec![store], reads_max: 32, size_max_bytes: 1 << 25, timeout_ms: 30_000 };
    let blobs = ObjectBlobs::connect(&config).await.unwrap();
    println!("{BATCHES} batches of {BATCH} ids, two shards, XML of {} kB", xml().len() / 1000);

    measure("cases: rows", &mut shards, async |batch| {
        case_rows(hq.latest_cases(&wanted(batch)).await.unwrap()).count()
    })
    .await;
    measure("cases: documents", &mut shards, async |batch| {
        let rows = case_rows(hq.latest_cases(&wanted(batch)).await.unwrap());
        rows.map(|rows| case::to_json(&rows, case::CaseOptions::default()).unwrap()).collect::<Vec<_>>().len()
    })
    .await;
    measure("forms: rows", &mut shards, async |batch| hq.latest_forms(&wanted(batch)).await.unwrap().len()).await;
    measure("forms: rows and XML", &mut shards, async |batch| {
        with_xml(&blobs, hq.latest_forms(&wanted(batch)).await.unwrap()).await.len()
    })
    .await;
    measure("forms: documents", &mut shards, async |batch| {
        let found = with_xml(&blobs, hq.latest_forms(&wanted(batch)).await.unwrap()).await;
        let documents = found.iter().map(|(rows, xml)| form::to_json(rows, form_json(xml).unwrap()).unwrap());
        documents.collect::<Vec<_>>().len()
    })
    .await;
}
