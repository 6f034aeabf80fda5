//! A whole writer over the queue in memory, on SQLite and real tables, asked through its handle.
#![allow(clippy::unwrap_used, reason = "tests")]

mod lease;

use std::time::Duration;

use lake_shared::identity::{Kind, Space, TableKey};
use tempfile::TempDir;

use super::test_writer::{PATIENCE, Running, space, table};
use super::*;
use crate::ingest::control::{IngestStatus, PendingRows};

#[tokio::test]
async fn a_standby_names_the_holder_and_its_address() {
    let folder = TempDir::new().unwrap();
    let first = Running::start(&folder, "a", "writer-a:9700").await;
    let (epoch, since_us) = first.until_holding().await;
    let second = Running::start(&folder, "b", "").await;
    let status = second.handle.status().await;
    let holder = status.holder.unwrap().unwrap();
    assert_eq!((status.role, status.leased.is_none()), (WriterRole::StandingBy, true));
    assert!(status.owner.starts_with("b-") && status.address.is_empty(), "{}", status.owner);
    assert!(holder.owner.starts_with("a-"), "{}", holder.owner);
    assert_eq!((holder.address.as_str(), holder.epoch, holder.acquired_us), ("writer-a:9700", epoch, since_us));

    let handle = &second.handle;
    let refusals = [
        handle.tables(None).await.map(drop),
        handle.describe(table("person")).await.map(drop),
        handle.compact(table("person")).await.map(drop),
        handle.maintain(space()).await.map(drop),
        handle.pause(PauseScope::Everything).await,
        handle.resume(PauseScope::Space(space())).await,
    ];
    let told = format!("this writer does not hold the lease; ask writer-a:9700, where {} holds it", holder.owner);
    for refusal in refusals {
        let error = refusal.unwrap_err();
        assert!(matches!(error, HandleError::NotLeaseHolder { .. }));
        assert_eq!(error.to_string(), told);
    }

    // The lease changes hands: the one that gave it back has nothing to say any more.
    let ended = first.handle.clone();
    first.end().await;
    assert!(matches!(ended.tables(None).await, Err(HandleError::Stopping)));
    assert_eq!(ended.status().await.role, WriterRole::Ended);
    assert_eq!(second.until_holding().await.0, epoch + 1);
    assert!(second.handle.tables(None).await.unwrap().is_empty());
    second.end().await;
}

#[tokio::test]
async fn tables_are_listed_described_and_compacted_one_at_a_time() {
    let folder = TempDir::new().unwrap();
    let writer = Running::start(&folder, "", "").await;
    writer.until_holding().await;
    // An id is in one table of its space.
    for (document_type, [one, two, three]) in [("person", ["1", "2", "3"]), ("visit", ["4", "5", "6"])] {
        for (ids, version) in [(&[one, two][..], 1), (&[three], 2), (&[one], 3)] {
            writer.publish(document_type, ids, version).await;
        }
    }
    let handle = &writer.handle;
    let names: Vec<TableKey> = handle.tables(Some(space())).await.unwrap().into_iter().map(|table| table.key).collect();
    assert_eq!(names, [table("person"), table("visit")]);
    let other = Space { domain: "other".into(), kind: Kind::Case };
    assert!(handle.tables(Some(other.clone())).await.unwrap().is_empty());

    let person = handle.describe(table("person")).await.unwrap();
    let loaded = person.loaded.unwrap();
    assert_eq!((loaded.version, loaded.rows, loaded.rows_hidden, loaded.files), (Some(2), 3, 1, 3));
    assert_eq!((loaded.files_with_deletion_vectors, loaded.unusable.as_ref()), (1, None));
    assert!((loaded.hidden_share() - 0.25).abs() < 1e-9);
    assert_eq!((person.record.state.rows, person.record.state.version), (3, Some(2)));
    assert_eq!(person.pending, PendingRows::default());

    let compacted = handle.compact(table("person")).await.unwrap();
    assert_eq!((compacted.commits, compacted.files_before, compacted.files_after), (1, 3, 1), "{compacted:?}");
    let files = async |document_type: &str| {
        let described = handle.describe(table(document_type)).await.unwrap().loaded.unwrap();
        (described.files, described.rows, described.rows_hidden)
    };
    assert_eq!((files("person").await, files("visit").await), ((1, 3, 0), (3, 3, 1)), "one table alone");
    assert_eq!(handle.maintain(space()).await.unwrap().files_compacted, 3);
    assert_eq!(files("visit").await, (1, 3, 0));

    let status = handle.status().await;
    assert_eq!(status.leased.unwrap(), LeasedStatus { ingest: IngestStatus::default(), spaces_in_use: vec![space()] });
    let unknown = [
        handle.describe(table("nothing")).await.map(drop),
        handle.compact(table("nothing")).await.map(drop),
        handle.maintain(other).await.map(drop),
    ];
    let told = unknown.map(|outcome| outcome.unwrap_err().to_string());
    assert!(told.iter().all(|told| told.starts_with("there ") && told.contains("list the tables")), "{told:?}");
    writer.end().await;
}

#[tokio::test]
async fn a_table_that_cannot_be_used_is_described_with_the_reason() {
    let folder = TempDir::new().unwrap();
    let writer = Running::start(&folder, "", "").await;
    writer.until_holding().await;
    writer.publish("person", &["1"], 1).await;
    let log = folder.path().join("tables/demo/case-sql/person/_delta_log");
    std::fs::write(log.join("00000000000000000001.json"), "{ this is no action }\n").unwrap();
    writer.publish("person", &["2"], 2).await;
    let loaded = writer.handle.describe(table("person")).await.unwrap().loaded.unwrap();
    let reason = loaded.unusable.unwrap();
    assert!(!reason.is_empty() && loaded.version.is_none());
    let refused = writer.handle.compact(table("person")).await.unwrap_err();
    assert!(refused.to_string().contains(&reason), "{refused}");
    writer.end().await;
}

#[tokio::test]
async fn paused_rows_wait_in_the_queue() {
    let folder = TempDir::new().unwrap();
    let writer = Arc::new(Running::start(&folder, "", "").await);
    writer.until_holding().await;
    writer.publish("person", &["1"], 1).await;
    writer.handle.pause(PauseScope::Everything).await.unwrap();
    let paused = {
        let writer = Arc::clone(&writer);
        tokio::spawn(async move { writer.publish("person", &["2"], 2).await })
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let described = writer.handle.describe(table("person")).await.unwrap();
    assert!(!paused.is_finished() && described.pending.paused);
    assert_eq!(described.record.state.rows, 1);
    assert!(writer.handle.status().await.leased.unwrap().ingest.paused.everything);
    // Maintenance goes on.
    writer.handle.maintain(space()).await.unwrap();
    writer.handle.resume(PauseScope::Everything).await.unwrap();
    paused.await.unwrap();
    assert_eq!(writer.handle.describe(table("person")).await.unwrap().record.state.rows, 2);
    Arc::into_inner(writer).unwrap().end().await;
}
