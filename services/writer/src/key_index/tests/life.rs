//! What the parts of an index's life do: each by itself.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;

#[test]
fn answers_come_in_the_order_of_the_questions() {
    let folder = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    index.put((0..500).map(|n| entry(number_id(n), 1, n, i64::from(n))));
    index.attach(run_of(&index, (500..1_000).map(|n| entry(number_id(n), 2, n, i64::from(n)))));
    let asked = [999, 3, 2_000, 3, 499, 500, 2_000, 0];
    let ids: Vec<IdHash> = asked.iter().map(|n| number_id(*n)).collect();
    let expected = asked.map(|n| {
        let file = if n < 500 { 1 } else { 2 };
        (n < 1_000).then(|| located(entry(0, file, n, i64::from(n))))
    });
    assert_eq!(index.lookup(&ids, &Dead::default()).unwrap(), expected);
    assert_eq!(index.lookup(&[], &Dead::default()).unwrap(), []);
    assert_eq!(index.entries(), 1_000);
    assert!(index.runs() > 1 && index.entries_in_memory() < 50);
}

#[test]
fn only_live_positions_count() {
    let folder = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(folder.path(), IndexOptions::default()).unwrap();
    let [old, new] = [entry(number_id(1), 1, 5, 10), entry(number_id(1), 2, 0, 11)];
    index.attach(run_of(&index, [new]));
    index.put([old]);
    let find = |dead: &[IndexEntry]| {
        let dead = Dead(dead.iter().map(|entry| entry.position).collect());
        index.lookup(&[number_id(1)], &dead).unwrap()[0]
    };
    assert_eq!(find(&[old]), Some(located(new)));
    assert_eq!(find(&[new]), Some(located(old)));
    assert_eq!(find(&[new, old]), None);
}

#[test]
fn a_checkpoint_comes_back_with_its_stamp_and_nothing_later() {
    let folder = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    index.checkpoint(b"").unwrap();
    index.put((0..120).map(|n| entry(number_id(n), 1, n, 7)));
    index.checkpoint(b"first").unwrap();
    index.put((120..300).map(|n| entry(number_id(n), 1, n, 7)));
    index.attach(run_of(&index, [entry(number_id(300), 1, 300, 7)]));
    while let Some(job) = index.merge_due() {
        assert!(index.install(job.run(&Dead::default()).unwrap()));
    }
    drop(index);
    let (index, stamp) = KeyIndex::open(folder.path(), SMALL).unwrap().unwrap();
    assert_eq!(stamp, b"first");
    assert_eq!((index.entries(), index.entries_in_memory()), (120, 0));
    let ids: Vec<IdHash> = (0..301).map(number_id).collect();
    let found = index.lookup(&ids, &Dead::default()).unwrap();
    assert!(found.iter().enumerate().all(|(n, found)| found.is_some() == (n < 120)));
    assert_eq!(files(folder.path()).len(), 2 + index.runs());
}

#[test]
fn create_empties_the_folder_of_an_index_only() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("notes"), "keep").unwrap();
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    index.put((0..200).map(|n| entry(number_id(n), 1, n, 7)));
    index.checkpoint(b"stamp").unwrap();
    drop(index);
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    assert_eq!(index.lookup(&[number_id(1)], &Dead::default()).unwrap(), [None]);
    drop(index);
    assert_eq!(files(folder.path()), ["lock", "notes"]);
    assert!(KeyIndex::open(folder.path(), SMALL).unwrap().is_none());
}

#[test]
fn a_folder_serves_one_index_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    index.checkpoint(b"").unwrap();
    let builder = index.clone().run_builder().unwrap();
    drop(index);
    let locked = |error| matches!(error, Some(IndexError::Locked { .. }));
    assert!(locked(KeyIndex::open(folder.path(), SMALL).err()));
    assert!(locked(KeyIndex::create(folder.path(), SMALL).err()));
    drop(builder);
    assert!(KeyIndex::open(folder.path(), SMALL).unwrap().is_some());
}

#[test]
fn of_several_entries_of_one_id_the_newest_is_built_and_the_others_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    let mut builder = index.run_builder().unwrap();
    for number in 0..100 {
        builder.push(entry(number_id(number), 1, number, 5)).unwrap();
    }
    let id = number_id(7);
    for (file, row, observed_us) in [(3, 0, 4), (2, 1, 5), (2, 9, 5)] {
        builder.push(entry(id, file, row, observed_us)).unwrap();
    }
    let mut told = Vec::new();
    let run = builder.finish(&mut |kept, other| told.push((kept, other))).unwrap();
    let id = id >> 48 << 48;
    let kept = entry(id, 2, 9, 5);
    let others = [entry(id, 3, 0, 4), entry(id, 1, 7, 5), entry(id, 2, 1, 5)];
    assert_eq!(told, others.map(|other| (kept, other)));
    assert_eq!(run.entries(), 100);
    index.attach(run);
    assert_eq!(index.lookup(&[id], &Dead::default()).unwrap(), [Some(located(kept))]);
}

#[test]
fn what_is_dropped_leaves_no_file_behind() {
    let folder = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    let many = || (0..500).map(|n| entry(number_id(n), 1, n, 5));
    let mut builder = index.run_builder().unwrap();
    many().for_each(|entry| builder.push(entry).unwrap());
    drop(builder);
    drop(run_of(&index, many()));
    drop(run_of(&index, []));
    index.attach(run_of(&index, []));
    assert_eq!((index.runs(), files(folder.path()).len()), (0, 1));
    index.attach(run_of(&index, many()));
    index.attach(run_of(&index, many()));
    drop(index.merge_due().unwrap().run(&Dead::default()).unwrap());
    assert_eq!((index.runs(), files(folder.path()).len()), (2, 3));
    let merged = index.merge_due().unwrap().run(&Dead::default()).unwrap();
    assert!(index.merge_due().is_none(), "one job at a time");
    assert!(index.install(merged));
    assert_eq!((index.runs(), index.entries(), files(folder.path()).len()), (1, 500, 2));
}

#[test]
fn a_merge_forgets_the_dead_and_may_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    for file in 0..3 {
        index.attach(run_of(&index, (0..40).map(|n| entry(number_id(n), file, n, 5))));
    }
    let mut dead = Dead((0..3).flat_map(|file| (0..40).map(move |row| Position::new(file, row))).collect());
    dead.0.remove(&Position::new(1, 3));
    assert!(index.install(index.merge_due().unwrap().run(&dead).unwrap()));
    assert_eq!((index.runs(), index.entries()), (1, 1));
    assert_eq!(index.lookup(&[number_id(3)], &dead).unwrap(), [Some(located(entry(0, 1, 3, 5)))]);
    dead.0.insert(Position::new(1, 3));
    index.attach(run_of(&index, [entry(number_id(1), 1, 3, 5)]));
    assert!(index.install(index.merge_due().unwrap().run(&dead).unwrap()));
    assert_eq!((index.runs(), index.entries(), files(folder.path()).len()), (0, 0, 1));
}

#[test]
fn rows_and_runs_that_do_not_fit_are_no_wrong_answers() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    let too_large = entry(number_id(1), 4, ROWS_PER_FILE_MAX, 1);
    let refused = index.run_builder().unwrap().push(too_large).unwrap_err();
    assert!(
        matches!(refused, IndexError::RowTooLarge { file, row } if (file.get(), row.get()) == (4, ROWS_PER_FILE_MAX))
    );
    index.put([too_large]);
    assert!(matches!(index.lookup(&[1], &Dead::default()), Err(IndexError::RowTooLarge { .. })));
    assert!(matches!(index.checkpoint(b""), Err(IndexError::RowTooLarge { .. })));
    let foreign = KeyIndex::create(other.path(), SMALL).unwrap();
    foreign.attach(run_of(&KeyIndex::create(&other.path().join("inner"), SMALL).unwrap(), [entry(1, 1, 1, 1)]));
    assert!(matches!(foreign.lookup(&[1], &Dead::default()), Err(IndexError::ForeignRun { .. })));
}

#[test]
fn keys_with_one_beginning_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(folder.path(), SMALL).unwrap();
    // Pages and pages of keys that agree in the bytes that the directory holds, with others around them.
    let id = |n: u32| match n % 3 {
        0 => number_id(n),
        1 => 0x8000_0000u128 << 96 | u128::from(n) << 48,
        _ => 0x8000_0000u128 << 96 | u128::from(n) << 64,
    };
    index.attach(run_of(&index, (0..6_000).map(|n| entry(id(n), 1, n, 5))));
    let ids: Vec<IdHash> = (0..6_003).map(id).collect();
    let found = index.lookup(&ids, &Dead::default()).unwrap();
    let expected = (0..6_003).map(|n| (n < 6_000).then(|| located(entry(0, 1, n, 5))));
    assert!(found.into_iter().eq(expected));
}

/// Rows by number: file 0 has the rows of the ids that never change; of the others the latest file is live.
struct Moving {
    latest: AtomicU32,
}

impl Liveness for Moving {
    fn is_live(&self, position: Position) -> bool {
        position.file.get() == 0 || position.file.get() >= self.latest.load(Ordering::SeqCst)
    }
    fn file_is_live(&self, file: FileNumber) -> bool {
        self.is_live(Position { file, row: RowNumber::FIRST })
    }
}

/// Says that the work is done, in a panic too.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn everything_at_once_disturbs_nothing() {
    const STILL: u32 = 3_000;
    let folder = tempfile::tempdir().unwrap();
    let index = KeyIndex::create(folder.path(), IndexOptions { entries_in_memory_max: 500, ..SMALL }).unwrap();
    index.put((0..STILL).map(|n| entry(number_id(n), 0, n, 5)));
    let rows = Moving { latest: AtomicU32::new(1) };
    let done = AtomicBool::new(false);
    let moving: Vec<IdHash> = (STILL..STILL + 1_000).map(number_id).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _done = Done(&done);
            for file in 1..=60 {
                let entries = moving.iter().zip(0..).map(|(id, row)| entry(*id, file, row, i64::from(file)));
                if file % 7 == 0 {
                    index.attach(run_of(&index, entries))
                } else {
                    index.put(entries)
                }
                rows.latest.store(file, Ordering::SeqCst);
                let found = index.lookup(&moving, &rows).unwrap();
                assert!(found.iter().all(|found| found.is_some_and(|found| found.position.file.get() == file)));
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                match index.merge_due() {
                    Some(job) => assert!(index.install(job.run(&rows).unwrap())),
                    None => std::thread::yield_now(),
                }
            }
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                index.checkpoint(b"meanwhile").unwrap();
            }
        });
        let still: Vec<IdHash> = (0..STILL).map(number_id).collect();
        while !done.load(Ordering::SeqCst) {
            let found = index.lookup(&still, &rows).unwrap();
            assert!(found.iter().zip(0..).all(|(found, n)| *found == Some(located(entry(0, 0, n, 5)))));
        }
    });
    index.checkpoint(b"end").unwrap();
    drop(index);
    let (index, stamp) = KeyIndex::open(folder.path(), SMALL).unwrap().unwrap();
    assert_eq!(stamp, b"end");
    let found = index.lookup(&moving, &rows).unwrap();
    assert!(found.iter().all(|found| found.is_some_and(|found| found.position.file.get() == 60)));
    assert_eq!(files(folder.path()).len(), 2 + index.runs());
}
