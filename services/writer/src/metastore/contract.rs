//! The contract of the metastore's port as one suite, run on every adapter. Panics where an adapter breaks it: for tests only.
#![allow(clippy::unwrap_used, reason = "a suite of assertions")]

use std::collections::BTreeSet;
use std::time::Duration;

use lake_shared::escaped_names;
use lake_shared::identity::{Kind, Space, TableKey};

use super::fence::Fence;
use super::{Metastore, MetastoreError, NewTable, RecordedDelays, RecordedState, StoredTombstone, TableRecord};
use crate::boot_clock::BootInstant;
use crate::order_guard::TombstoneOrder;

const SECOND: i64 = 1_000_000;

/// Runs the whole suite on a migrated, empty metastore.
pub async fn holds(metastore: &dyn Metastore) {
    metastore.check().await.unwrap();
    tables_have_unique_names(metastore).await;
    many_tables_are_registered_at_once(metastore).await;
    commits_are_recorded(metastore).await;
    many_commits_are_recorded_at_once(metastore).await;
    tombstones_are_kept_per_space(metastore).await;
    tombstones_are_replaced_and_forgotten_by_their_order(metastore).await;
    tombstones_have_a_bound(metastore).await;
    writes_end_with_their_lease(metastore).await;
    super::quarantine_contract::holds(metastore).await;
    leases_have_one_owner(metastore).await;
    super::steering::contract::holds(metastore).await;
    super::backfills::contract::holds(metastore).await;
    super::comparisons::contract::holds(metastore).await;
    super::erasures::contract::holds(metastore).await;
}

fn table(domain: &str, kind: Kind, document_type: &str) -> TableKey {
    TableKey { space: Space { domain: domain.into(), kind }, document_type: document_type.into() }
}

async fn tables_have_unique_names(metastore: &dyn Metastore) {
    let keys = [
        table("demo", Kind::Case, "Person"),
        table("demo", Kind::Case, "person"),
        table("demo", Kind::Case, "per-son"),
        table("demo", Kind::Case, ""),
        table("demo", Kind::Form, "a'; DROP TABLE lake_table; --"),
        table("demo-case", Kind::Case, "x\u{0}y"),
        table("घर", Kind::Location, "Location"),
    ];
    let (mut taken, mut paths) = (Vec::new(), Vec::new());
    for key in &keys {
        let path = escaped_names::table_path(key);
        let first = register(metastore, &[key], &path).await.remove(0);
        let second = register(metastore, &[key], "other").await.remove(0);
        assert_eq!(first, second, "registering twice changes nothing");
        assert_eq!(first.location, format!("file:///lake/{}", first.path));
        paths.push(first.path.to_lowercase());
        assert!(first.created_us > 1_600_000_000 * SECOND, "{}", first.created_us);
        taken.push(first.name);
    }
    for unique in [&mut taken, &mut paths] {
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), keys.len());
    }
    let all = metastore.tables(None).await.unwrap();
    let path_of = |key| all.iter().find(|table| &table.key == key).map(|table| table.path.as_str()).unwrap();
    assert_eq!(path_of(&keys[0]), "demo/case-sql/Person");
    assert!(path_of(&keys[1]).starts_with("demo/case-sql/person.."));
    assert_eq!(all.len(), keys.len());
    assert!(all.is_sorted_by_key(|table| table.name.clone()));
    let of_space = metastore.tables(Some(&keys[0].space)).await.unwrap();
    assert_eq!(of_space.len(), 4);
    assert!(of_space.iter().any(|table| table.key == keys[0]));
    let spaces: BTreeSet<Space> = keys.iter().map(|key| key.space.clone()).collect();
    assert_eq!(metastore.spaces().await.unwrap(), spaces);
}

async fn register(metastore: &dyn Metastore, keys: &[&TableKey], path: &str) -> Vec<TableRecord> {
    let new = |key: &&TableKey| {
        let location = format!("file:///lake/{path}");
        NewTable { key: (*key).clone(), path: path.into(), location, suffix: escaped_names::table_path_suffix(key) }
    };
    metastore.register_tables(&keys.iter().map(new).collect::<Vec<_>>()).await.unwrap()
}

async fn many_tables_are_registered_at_once(metastore: &dyn Metastore) {
    // Neighbours share a name; the first one was there before, and one comes twice.
    let keys: Vec<TableKey> =
        (0..1_200).map(|n| table("many", Kind::Form, &format!("{}{}", ["a-", "a_"][n % 2], n / 2))).collect();
    let before = register(metastore, &[&keys[0]], "path").await;
    let mut given: Vec<&TableKey> = keys.iter().collect();
    given.push(&keys[5]);
    let registered = register(metastore, &given, "another").await;
    assert!(registered.iter().map(|table| &table.key).eq(given), "the order is that of the call");
    assert_eq!((&registered[0], &registered[1_200]), (&before[0], &registered[5]));
    let mut names: Vec<&str> = registered[..1_200].iter().map(|table| table.name.as_str()).collect();
    let plain = |n: usize| format!("many_form_sql_a_{}", n / 2);
    assert!(
        names.iter().enumerate().all(|(n, name)| (*name == plain(n)) == (n.is_multiple_of(2))),
        "the first gets the name"
    );
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), 1_200);
    assert!(metastore.register_tables(&[]).await.unwrap().is_empty());
}

fn state_after(version: i64) -> RecordedState {
    RecordedState {
        version: Some(version),
        schema: Some("{}".into()),
        rows: 10,
        files: 2,
        bytes: 1 << 40,
        newest_published_us: Some(50),
        newest_fetched_us: None,
        delays: None,
        last_commit_us: None,
    }
}

async fn commits_are_recorded(metastore: &dyn Metastore) {
    let key = table("demo", Kind::Case, "person");
    let state = state_after(3);
    metastore.record_commits(&[(key.clone(), state.clone())]).await.unwrap();
    let older =
        RecordedState { version: Some(4), newest_published_us: Some(40), newest_fetched_us: Some(7), ..state.clone() };
    let delays = Some(RecordedDelays { p50_us: 1, p95_us: 2, p99_us: 3, rows: 4 });
    metastore.record_commits(&[(key.clone(), RecordedState { delays, ..older.clone() })]).await.unwrap();
    // Without delays the older ones stay.
    metastore.record_commits(&[(key.clone(), older)]).await.unwrap();
    let tables = metastore.tables(Some(&key.space)).await.unwrap();
    let held = &tables.iter().find(|table| table.key == key).unwrap().state;
    assert_eq!((held.version, held.newest_published_us, held.newest_fetched_us), (Some(4), Some(50), Some(7)));
    assert_eq!((held.rows, held.files, held.bytes, held.delays), (10, 2, 1 << 40, delays));
    assert!(held.last_commit_us.is_some());
    assert!(!metastore.record_commits(&[(table("unregistered", Kind::Case, "x"), state)]).await.unwrap());
}

async fn many_commits_are_recorded_at_once(metastore: &dyn Metastore) {
    let space = table("many", Kind::Form, "").space;
    let keys: Vec<TableKey> =
        metastore.tables(Some(&space)).await.unwrap().into_iter().map(|table| table.key).collect();
    let states = |version: i64, schema: &dyn Fn(usize) -> Option<String>| {
        let state = |n: usize| RecordedState {
            schema: schema(n),
            rows: n as i64,
            newest_published_us: Some(version + n as i64),
            newest_fetched_us: (n.is_multiple_of(2)).then_some(9),
            ..state_after(version)
        };
        keys.iter().enumerate().map(|(n, key)| (key.clone(), state(n))).collect::<Vec<_>>()
    };
    metastore.record_commits(&states(1, &|n| Some(format!("schema {n}")))).await.unwrap();
    // A schema that is not said again stays.
    metastore.record_commits(&states(2, &|n| (n == 700).then(|| "another".into()))).await.unwrap();
    let held = async || metastore.tables(Some(&space)).await.unwrap();
    let tables = held().await;
    assert_eq!(tables.len(), 1_200);
    for (n, key) in keys.iter().enumerate() {
        let state = &tables[n].state;
        let schema = if n == 700 { "another".to_owned() } else { format!("schema {n}") };
        assert_eq!((&tables[n].key, state.schema.as_ref()), (key, None), "lists are without schemas");
        if n % 100 == 0 {
            let record = metastore.table(key).await.unwrap().unwrap();
            assert_eq!((record.key, record.state.schema), (key.clone(), Some(schema)));
        }
        assert_eq!((state.version, state.rows, state.newest_published_us), (Some(2), n as i64, Some(2 + n as i64)));
        assert_eq!(state.newest_fetched_us, (n.is_multiple_of(2)).then_some(9));
    }
    assert!(metastore.table(&table("unregistered", Kind::Case, "x")).await.unwrap().is_none());
    // A table that was never registered, or was deleted from the metastore, does not keep the others from being recorded.
    let mut with_an_unregistered = states(3, &|_| None);
    with_an_unregistered.push((table("unregistered", Kind::Case, "x"), state_after(3)));
    assert!(!metastore.record_commits(&with_an_unregistered).await.unwrap());
    let recorded = held().await;
    assert!(recorded.len() == tables.len() && recorded.iter().all(|table| table.state.version == Some(3)));
    assert!(metastore.record_commits(&with_an_unregistered[..1]).await.unwrap());
    metastore.record_commits(&[]).await.unwrap();
}

fn tombstone(n: u128, version_us: Option<i64>, observed_us: i64) -> StoredTombstone {
    let order = TombstoneOrder { version_us, observed_us };
    StoredTombstone { id_hash: n, id: format!("id {n}"), order, reason: "archived".into() }
}

async fn tombstones_are_kept_per_space(metastore: &dyn Metastore) {
    let (here, there) = (table("demo", Kind::Case, "").space, table("demo", Kind::Form, "").space);
    let many: Vec<_> = (0..2_500).map(|n| tombstone(n, None, 1)).collect();
    metastore.remember_tombstones(&here, &many).await.unwrap();
    metastore.remember_tombstones(&here, &[tombstone(u128::MAX, Some(5), 6), tombstone(0, Some(1), 2)]).await.unwrap();
    metastore.remember_tombstones(&there, &[tombstone(7, None, 9)]).await.unwrap();
    metastore.remember_tombstones(&here, &[]).await.unwrap();
    let mut held: Vec<StoredTombstone> = Vec::new();
    loop {
        let behind = held.last().map(|tombstone| tombstone.id_hash);
        let page = metastore.tombstones(&here, behind, 1_000).await.unwrap();
        if page.is_empty() {
            break;
        }
        held.extend(page);
    }
    assert!(held.len() == 2_501 && held.is_sorted_by_key(|tombstone| tombstone.id_hash));
    assert_eq!(held[0], tombstone(0, Some(1), 2));
    assert_eq!(held[2_500], tombstone(u128::MAX, Some(5), 6));
    let asked = [7, u128::MAX, 1 << 100, 0];
    let mut found = metastore.tombstones_of(&here, &asked).await.unwrap();
    found.sort_by_key(|tombstone| tombstone.id_hash);
    assert_eq!(found, [held[0].clone(), held[7].clone(), held[2_500].clone()]);
    assert_eq!(metastore.tombstones_of(&here, &[]).await.unwrap(), []);
    let nowhere = Space { domain: "nowhere".into(), kind: Kind::Case };
    let of_two = [(here.clone(), 7), (there.clone(), 7), (nowhere, 7), (there.clone(), 0)];
    let mut of_two = metastore.tombstones_in_spaces(&of_two).await.unwrap();
    of_two.sort_by(|one, other| one.space.cmp(&other.space));
    assert_eq!(of_two.iter().map(|one| &one.space).collect::<Vec<_>>(), [&here, &there]);
    assert!(of_two.iter().all(|one| one.tombstone.id_hash == 7 && one.tombstone.reason == "archived"));
    assert!(of_two[0].remembered_us > 1_600_000_000 * SECOND);
    assert_eq!(metastore.tombstones_in_spaces(&[]).await.unwrap(), []);
    let many_ids: Vec<u128> = (0..12_000).collect();
    assert_eq!(metastore.tombstones_of(&here, &many_ids).await.unwrap().len(), 2_500);
    // A negative time reaches into the future, where nothing is.
    for (within_us, count) in [(3_600 * SECOND, 2_501), (-3_600 * SECOND, 0)] {
        assert_eq!(metastore.tombstones_since(&here, within_us, None, 3_000).await.unwrap().len(), count);
    }
    assert_eq!(metastore.tombstones_since(&here, SECOND * 3_600, Some(7), 2).await.unwrap(), held[8..10]);
    let all: Vec<(u128, TombstoneOrder)> = held[..2_500].iter().map(|held| (held.id_hash, held.order)).collect();
    metastore.forget_tombstones(&here, &all).await.unwrap();
    metastore.forget_tombstones(&here, &[]).await.unwrap();
    assert_eq!(metastore.tombstones(&here, None, 10).await.unwrap(), [tombstone(u128::MAX, Some(5), 6)]);
    assert_eq!(metastore.forget_old_tombstones(&here, 3_600 * SECOND).await.unwrap(), 0);
    // A negative age reaches into the future, so everything is older.
    assert_eq!(metastore.forget_old_tombstones(&here, -3_600 * SECOND).await.unwrap(), 1);
    assert_eq!(metastore.tombstones(&there, None, 10).await.unwrap().len(), 1);
}

/// From the oldest to the newest: by when they were observed, then by their version, of which an absent one is the greatest.
const ORDERS: [(Option<i64>, i64); 7] =
    [(Some(9), 1), (Some(i64::MIN), 2), (Some(-5), 2), (Some(0), 2), (Some(1), 2), (None, 2), (None, 3)];

async fn tombstones_are_replaced_and_forgotten_by_their_order(metastore: &dyn Metastore) {
    let space = table("orders", Kind::Case, "").space;
    for (position, held) in ORDERS.iter().enumerate() {
        for (other_position, came) in ORDERS.iter().enumerate() {
            let id = (position * ORDERS.len() + other_position) as u128;
            let (held, came) = (tombstone(id, held.0, held.1), tombstone(id, came.0, came.1));
            metastore.remember_tombstones(&space, std::slice::from_ref(&held)).await.unwrap();
            metastore.remember_tombstones(&space, std::slice::from_ref(&came)).await.unwrap();
            let newest = if other_position > position { &came } else { &held };
            assert_eq!(came.order.replaces(held.order), other_position > position, "{held:?} {came:?}");
            let kept = metastore.tombstones_of(&space, &[id]).await.unwrap();
            assert_eq!(kept, std::slice::from_ref(newest), "{held:?} {came:?}");
            // What was seen before it was replaced does not take its successor away.
            let others = ORDERS.iter().map(|(version_us, observed_us)| tombstone(id, *version_us, *observed_us));
            let others: Vec<_> =
                others.filter(|other| other.order != newest.order).map(|other| (id, other.order)).collect();
            metastore.forget_tombstones(&space, &others).await.unwrap();
            assert_eq!(metastore.tombstones_of(&space, &[id]).await.unwrap().len(), 1, "{newest:?} {others:?}");
            metastore.forget_tombstones(&space, &[(id, newest.order)]).await.unwrap();
            assert_eq!(metastore.tombstones_of(&space, &[id]).await.unwrap(), [], "{newest:?}");
        }
    }
}

async fn writes_end_with_their_lease(metastore: &dyn Metastore) {
    let key = table("fenced", Kind::Case, "person");
    let space = &key.space;
    let new = NewTable { key: key.clone(), path: "p".into(), location: "file:///p".into(), suffix: String::new() };
    let long = 3_600 * SECOND;
    let until = BootInstant::now().plus(Duration::from_secs(3_600));
    assert!(metastore.fence().is_none());
    let lease = metastore.acquire_lease("fenced", "a", "", long).await.unwrap().unwrap();
    let fence = Fence::new(&lease, until);
    let fenced = metastore.fenced(fence.clone());
    assert_eq!(fenced.fence().unwrap().epoch(), lease.epoch);
    fenced.register_tables(std::slice::from_ref(&new)).await.unwrap();
    assert!(fenced.record_commits(&[(key.clone(), state_after(1))]).await.unwrap());
    fenced.remember_tombstones(space, &[tombstone(1, None, 5)]).await.unwrap();
    fenced.remember_tombstones(space, &[tombstone(2, None, 5)]).await.unwrap();
    fenced.forget_tombstones(space, &[(1, tombstone(1, None, 5).order)]).await.unwrap();

    // The same owner takes it again, as after it was cut off: what it began to write before is refused.
    let again = metastore.acquire_lease("fenced", "a", "", long).await.unwrap().unwrap();
    assert!(again.epoch > lease.epoch && fence.check().is_ok());
    let other = NewTable { key: table("fenced", Kind::Case, "other"), ..new };
    let refused: [Result<(), MetastoreError>; 6] = [
        fenced.register_tables(&[other]).await.map(drop),
        fenced.record_commits(&[(key.clone(), state_after(2))]).await.map(drop),
        fenced.remember_tombstones(space, &[tombstone(2, None, 6), tombstone(3, None, 6)]).await,
        fenced.forget_tombstones(space, &[(2, tombstone(2, None, 5).order)]).await,
        fenced.forget_old_tombstones(space, -long).await.map(drop),
        fenced.limit_tombstones(space, 0).await.map(drop),
    ];
    for refused in refused {
        let error = refused.unwrap_err();
        assert!(error.is_lease_lost() && !error.to_string().contains("reachable"), "{error}");
    }
    assert!(fence.check().is_err(), "one refusal is enough to know");
    let tables = fenced.tables(Some(space)).await.unwrap();
    assert_eq!((tables.len(), tables[0].state.version), (1, Some(1)));
    assert_eq!(fenced.tombstones(space, None, 10).await.unwrap(), [tombstone(2, None, 5)]);
    // The new holding writes, and so does what is under no lease.
    let now = metastore.fenced(Fence::new(&again, until));
    now.remember_tombstones(space, &[tombstone(2, None, 6)]).await.unwrap();
    assert_eq!(now.forget_old_tombstones(space, -long).await.unwrap(), 1);
    metastore.remember_tombstones(space, &[tombstone(2, None, 6)]).await.unwrap();
    metastore.release_lease(&again).await.unwrap();
    assert!(now.remember_tombstones(space, &[tombstone(4, None, 6)]).await.unwrap_err().is_lease_lost());
}

async fn tombstones_have_a_bound(metastore: &dyn Metastore) {
    let (space, other) = (table("bounded", Kind::Case, "").space, table("bounded", Kind::Form, "").space);
    let tombstone = |n: u128| StoredTombstone {
        id_hash: n,
        id: n.to_string(),
        order: TombstoneOrder { version_us: None, observed_us: 1 },
        reason: String::new(),
    };
    metastore.remember_tombstones(&other, &[tombstone(0)]).await.unwrap();
    // The younger ones come later, whatever their ids.
    for part in [[5, 1, 4], [3, 2, 0]] {
        metastore.remember_tombstones(&space, &part.map(tombstone)).await.unwrap();
        // SQLite tells milliseconds.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(metastore.limit_tombstones(&space, 6).await.unwrap(), 0);
    assert_eq!(metastore.limit_tombstones(&space, 3).await.unwrap(), 3);
    let left = metastore.tombstones(&space, None, 10).await.unwrap();
    assert_eq!(left.iter().map(|tombstone| tombstone.id_hash).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(metastore.tombstones(&other, None, 10).await.unwrap().len(), 1);
}

async fn leases_have_one_owner(metastore: &dyn Metastore) {
    let long = 3_600 * SECOND;
    assert_eq!(metastore.lease("space").await.unwrap(), None);
    let first = metastore.acquire_lease("space", "a", "a:9601", long).await.unwrap().unwrap();
    assert_eq!((first.owner.as_str(), first.address.as_str(), first.epoch), ("a", "a:9601", 1));
    assert!(first.acquired_us > 1_600_000_000 * SECOND && first.expires_us > first.acquired_us);
    assert_eq!(metastore.lease("space").await.unwrap().as_ref(), Some(&first));
    assert_eq!(metastore.acquire_lease("space", "b", "", long).await.unwrap(), None);
    let wanted = metastore.lease("space").await.unwrap().unwrap();
    assert!(first.wanted_us == 0 && wanted.wanted_us >= first.acquired_us, "the holder is told that it is wanted");
    assert_eq!(metastore.renew_lease(&first, long).await.unwrap().unwrap().wanted_us, wanted.wanted_us);
    let again = metastore.acquire_lease("space", "a", "a:9602", long).await.unwrap().unwrap();
    assert_eq!((again.epoch, again.wanted_us), (2, 0), "what was written under the earlier epoch ends");
    assert!(again.acquired_us >= first.acquired_us);
    assert_eq!(metastore.lease("space").await.unwrap().unwrap().address, "a:9602");
    assert!(metastore.acquire_lease("another", "b", "", long).await.unwrap().is_some());
    assert_eq!(metastore.renew_lease(&first, long).await.unwrap(), None);
    metastore.release_lease(&first).await.unwrap();
    assert_eq!(metastore.lease("space").await.unwrap().as_ref(), Some(&again), "only with its epoch");
    metastore.release_lease(&again).await.unwrap();
    assert_eq!(metastore.lease("space").await.unwrap(), None, "given back");
    assert_eq!(metastore.renew_lease(&again, long).await.unwrap(), None);
    let second = metastore.acquire_lease("space", "b", "", 1).await.unwrap().unwrap();
    assert_eq!(second.epoch, 3);
    // It expires after a microsecond; the clock of the database decides when that is over.
    let third = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            if let Some(lease) = metastore.acquire_lease("space", "c", "c:9601", long).await.unwrap() {
                break lease;
            }
        }
    });
    let third = third.await.unwrap();
    assert_eq!((third.owner.as_str(), third.address.as_str(), third.epoch), ("c", "c:9601", 4));
    assert!(third.acquired_us >= second.acquired_us);
    assert_eq!(metastore.renew_lease(&second, long).await.unwrap(), None);
    metastore.release_lease(&second).await.unwrap();
    assert_eq!(metastore.lease("space").await.unwrap().unwrap(), third, "only its owner gives it back");
    let renewed = metastore.renew_lease(&third, 2 * long).await.unwrap().unwrap();
    assert!(renewed.epoch == 4 && renewed.expires_us > third.expires_us);
    assert_eq!((renewed.acquired_us, renewed.address), (third.acquired_us, third.address));
}
