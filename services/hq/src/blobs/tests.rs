//! Tests of [`super`] on a folder.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use flate2::Compression;
use flate2::write::GzEncoder;
use futures::FutureExt;
use tempfile::TempDir;

use super::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn reference(key: &str, compressed: bool) -> BlobReference {
    BlobReference { key: key.into(), compressed, content_length: 0 }
}

fn found(read: Result<Blob, SourceError>) -> Bytes {
    read.unwrap().bytes().unwrap()
}

async fn blobs(folders: &[&TempDir], size_max_bytes: u64) -> ObjectBlobs {
    let store = |folder: PathBuf| BlobStoreConfig { folder: Some(folder), ..BlobStoreConfig::default() };
    let stores = folders.iter().map(|folder| store(folder.path().to_owned())).collect();
    ObjectBlobs::connect(&BlobsConfig { stores, reads_max: 2, size_max_bytes, timeout_ms: 1_000 }).await.unwrap()
}

#[tokio::test]
async fn compressed_or_not_whatever_the_column_says() {
    let folder = TempDir::new().unwrap();
    fs::create_dir_all(folder.path().join("form/ab12")).unwrap();
    fs::write(folder.path().join("form/ab12/raw"), "<data/>").unwrap();
    fs::write(folder.path().join("packed{1}"), gzip(b"<data/>")).unwrap();
    let large = vec![b'x'; 5 * EXPAND_ASIDE_BYTES];
    let noise: Vec<u8> = (0..large.len() as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(folder.path().join("large"), gzip(&noise)).unwrap();
    let blobs = blobs(&[&folder], 1 << 30).await;
    for flag in [true, false] {
        assert_eq!(found(blobs.get(&reference("form/ab12/raw", flag)).await), "<data/>");
        assert_eq!(found(blobs.get(&reference("packed{1}", flag)).await), "<data/>");
    }
    assert_eq!(found(blobs.get(&reference("large", true)).await), noise);
}

#[tokio::test]
async fn stores_are_asked_in_order() {
    let (new, old) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::write(new.path().join("both"), "new").unwrap();
    fs::write(old.path().join("both"), "old").unwrap();
    fs::write(old.path().join("left"), "old").unwrap();
    let blobs = blobs(&[&new, &old], 1_000).await;
    assert_eq!(found(blobs.get(&reference("both", false)).await), "new");
    assert_eq!(found(blobs.get(&reference("left", false)).await), "old");
    assert_eq!(blobs.get(&reference("nowhere", false)).await.unwrap(), Blob::Missing);
}

#[tokio::test]
async fn keys_that_lead_elsewhere_are_not_read() {
    let folder = TempDir::new().unwrap();
    fs::create_dir(folder.path().join("inside")).unwrap();
    fs::write(folder.path().join("outside"), "x").unwrap();
    let store = BlobStoreConfig { folder: Some(folder.path().join("inside")), ..BlobStoreConfig::default() };
    let config = BlobsConfig { stores: vec![store], reads_max: 1, size_max_bytes: 10, timeout_ms: 1_000 };
    let blobs = ObjectBlobs::connect(&config).await.unwrap();
    for key in
        ["../outside", "a/../../outside", "/outside", "", "a//b", "./a", "a b", "a\0b", "é", "%2e%2e/outside", "a/"]
    {
        assert_eq!(blobs.get(&reference(key, false)).await.unwrap(), Blob::Missing, "{key}");
    }
}

#[tokio::test]
async fn what_is_too_large_is_not_read_packed_or_not() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("fits"), [b'x'; 100]).unwrap();
    fs::write(folder.path().join("over"), [b'x'; 101]).unwrap();
    fs::write(folder.path().join("packed"), gzip(&[b'x'; 101])).unwrap();
    fs::write(folder.path().join("packed_fits"), gzip(&[b'x'; 100])).unwrap();
    let blobs = blobs(&[&folder], 100).await;
    assert_eq!(found(blobs.get(&reference("fits", false)).await).len(), 100);
    assert_eq!(found(blobs.get(&reference("packed_fits", true)).await).len(), 100);
    assert_eq!(blobs.get(&reference("over", false)).await.unwrap(), Blob::TooLarge { size_max: 100 });
    assert_eq!(blobs.get(&reference("packed", true)).await.unwrap(), Blob::TooLarge { size_max: 100 });
}

#[tokio::test]
async fn broken_gzip_is_handed_on_and_will_not_parse() {
    let folder = TempDir::new().unwrap();
    let mut broken = gzip(&[b'x'; 1_000]);
    broken.truncate(15);
    fs::write(folder.path().join("broken"), &broken).unwrap();
    let blobs = blobs(&[&folder], 10_000).await;
    assert_eq!(found(blobs.get(&reference("broken", true)).await), broken);
}

#[tokio::test]
async fn a_folder_that_goes_away_is_not_a_missing_blob() {
    let folder = TempDir::new().unwrap();
    let blobs = blobs(&[&folder], 10).await;
    assert_eq!(blobs.get(&reference("a", false)).await.unwrap(), Blob::Missing);
    fs::remove_dir(folder.path()).unwrap();
    assert!(matches!(blobs.get(&reference("a", false)).await, Err(SourceError::Unavailable { .. })));
    assert!(blobs.check().await.is_err());
}

#[tokio::test]
async fn wrong_configuration_is_refused() {
    let folder = TempDir::new().unwrap();
    let of = |stores| BlobsConfig { stores, reads_max: 1, size_max_bytes: 1, timeout_ms: 1_000 };
    let missing = BlobStoreConfig { folder: Some(folder.path().join("not there")), ..BlobStoreConfig::default() };
    let both = BlobStoreConfig {
        folder: Some(folder.path().to_owned()),
        s3_bucket: Some("b".into()),
        ..BlobStoreConfig::default()
    };
    for stores in [vec![], vec![missing], vec![both], vec![BlobStoreConfig::default()]] {
        assert!(matches!(ObjectBlobs::connect(&of(stores)).await, Err(SourceError::Refused { .. })));
    }
}

#[tokio::test]
async fn no_more_reads_are_in_flight_than_allowed_and_every_one_gives_its_turn_back() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("one"), "<data/>").unwrap();
    let blobs = blobs(&[&folder], 1_000).await;
    let both = [blobs.turns().take().await, blobs.turns().take().await];
    let reference = reference("one", false);
    let mut reading = blobs.get(&reference);
    assert!((&mut reading).now_or_never().is_none(), "both turns are taken");
    drop(both);
    assert_eq!(found(reading.await), "<data/>");
    let many = (0..50).map(|_| blobs.get(&reference));
    assert!(futures::future::join_all(many).await.into_iter().all(|read| read.unwrap().bytes().is_some()));
    assert_eq!((blobs.turns().in_flight(), blobs.turns().limit()), (0, 2));
}
