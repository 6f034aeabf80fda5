//! Damaged files are found before they can give a wrong answer.

use std::fs;
use std::path::PathBuf;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

const KEYS: u32 = 1_000;

/// A checkpoint of two runs of several pages.
fn stored() -> (tempfile::TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    for file in 0..2 {
        index.attach(run_of(&index, (0..KEYS / 2).map(|n| entry(number_id(file * KEYS / 2 + n), file, n, 5))));
    }
    index.checkpoint(b"stamp").unwrap();
    let names = files(folder.path()).into_iter().filter(|name| name != "lock");
    let paths: Vec<PathBuf> = names.map(|name| folder.path().join(name)).collect();
    assert_eq!(paths.len(), 3);
    (folder, paths)
}

/// Whether the index says that something is wrong: when it is opened, or else to a look-up and to a merge.
fn is_found(folder: &Path) -> bool {
    let Some((index, _)) = KeyIndex::open(folder, SMALL).unwrap() else { return true };
    let ids: Vec<IdHash> = (0..KEYS).map(number_id).collect();
    let corrupt = |error| matches!(error, Some(IndexError::Corrupt { .. }));
    let looked_up = corrupt(index.lookup(&ids, &Dead::default()).err());
    let merged = corrupt(index.merge_due().unwrap().run(&Dead::default()).err());
    assert_eq!(looked_up, merged);
    looked_up
}

#[test]
fn flipped_bits_are_found() {
    let (folder, paths) = stored();
    assert!(!is_found(folder.path()));
    let mut random = StdRng::seed_from_u64(1);
    for path in paths {
        let bytes = fs::read(&path).unwrap();
        for _ in 0..150 {
            let bit = random.random_range(0..bytes.len() * 8);
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            fs::write(&path, flipped).unwrap();
            assert!(is_found(folder.path()), "bit {bit} of {}", path.display());
        }
        fs::write(&path, bytes).unwrap();
    }
    assert!(!is_found(folder.path()));
}

#[test]
fn cut_extended_and_absent_files_are_found() {
    let (folder, paths) = stored();
    for path in paths {
        let bytes = fs::read(&path).unwrap();
        for length in [0, 1, 7, bytes.len() / 2, bytes.len() - 4096.min(bytes.len() / 2), bytes.len() - 1] {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(is_found(folder.path()), "{length} bytes of {}", path.display());
        }
        fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
        assert!(is_found(folder.path()));
        fs::remove_file(&path).unwrap();
        assert!(is_found(folder.path()));
        fs::write(&path, bytes).unwrap();
    }
    assert!(!is_found(folder.path()));
}

#[test]
fn exchanged_pages_and_runs_are_found() {
    let (folder, paths) = stored();
    let run = |number: usize| paths.iter().filter(|path| !path.ends_with("manifest")).nth(number).unwrap();
    let bytes = [0, 1].map(|number| fs::read(run(number)).unwrap());
    let exchanged = [&bytes[0][4096..8192], &bytes[0][..4096], &bytes[0][8192..]].concat();
    fs::write(run(0), exchanged).unwrap();
    assert!(is_found(folder.path()));
    let foreign = [&bytes[1][..4096], &bytes[0][4096..]].concat();
    fs::write(run(0), foreign).unwrap();
    assert!(is_found(folder.path()));
    fs::write(run(0), &bytes[1]).unwrap();
    fs::write(run(1), &bytes[0]).unwrap();
    assert!(is_found(folder.path()));
}

#[test]
fn a_run_that_is_cut_while_it_is_open_is_found() {
    let (folder, paths) = stored();
    let (index, _) = KeyIndex::open(folder.path(), SMALL).unwrap().unwrap();
    let run = paths.iter().find(|path| !path.ends_with("manifest")).unwrap();
    fs::OpenOptions::new().write(true).open(run).unwrap().set_len(4096).unwrap();
    let ids: Vec<IdHash> = (0..KEYS).map(number_id).collect();
    assert!(matches!(index.lookup(&ids, &Dead::default()), Err(IndexError::Corrupt { .. })));
}

#[test]
fn another_format_is_refused() {
    for (at, byte) in [(0, b'X'), (8, 2)] {
        let (folder, paths) = stored();
        let manifest = paths.iter().find(|path| path.ends_with("manifest")).unwrap();
        let mut bytes = fs::read(manifest).unwrap();
        bytes[at] = byte;
        let content = bytes.len() - 4;
        let checksum = crc32fast::hash(&bytes[..content]);
        bytes[content..].copy_from_slice(&checksum.to_le_bytes());
        fs::write(manifest, bytes).unwrap();
        assert!(KeyIndex::open(folder.path(), SMALL).unwrap().is_none());
        // What is refused is left as it is until it is created anew.
        assert_eq!(files(folder.path()).len(), 4);
        let index = KeyIndex::create(folder.path(), SMALL).unwrap();
        assert_eq!((index.entries(), files(folder.path()).len()), (0, 1));
    }
}
