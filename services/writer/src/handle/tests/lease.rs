//! A writer that loses its lease stays, and goes on when it has the lease again.

use sqlx::{AssertSqlSafe, SqlitePool};

use super::*;

/// Changes the lease behind the writer's back.
async fn set_lease(folder: &TempDir, change: &str) {
    let file = folder.path().join("metastore.sqlite");
    let database = SqlitePool::connect(&format!("sqlite:{}", file.display())).await.unwrap();
    let statement = format!("UPDATE writer_lease SET {change} WHERE name = '{LEASE_NAME}'");
    assert_eq!(sqlx::query(AssertSqlSafe(statement)).execute(&database).await.unwrap().rows_affected(), 1);
    database.close().await;
}

async fn until_role(writer: &Running, is_it: impl Fn(WriterRole) -> bool) {
    let changing = async {
        while !is_it(writer.handle.status().await.role) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, changing).await.unwrap();
}

#[tokio::test]
async fn a_lost_lease_is_waited_for_again_and_nothing_is_lost() {
    let folder = TempDir::new().unwrap();
    let writer = Arc::new(Running::start(&folder, "a", "").await);
    let (epoch, _) = writer.until_holding().await;
    writer.publish("person", &["1"], 1).await;
    // Another writer takes it, as if this one had been suspended for longer than it lasts.
    set_lease(&folder, "owner = 'thief', epoch = epoch + 1, expires_us = 1 << 60").await;
    let publishing = {
        let writer = Arc::clone(&writer);
        tokio::spawn(async move { writer.publish("person", &["2"], 2).await })
    };
    until_role(&writer, |role| role == WriterRole::StandingBy).await;
    let told = writer.handle.tables(None).await.unwrap_err().to_string();
    assert!(told.contains("thief"), "{told}");
    assert!(!writer.task.is_finished() && !publishing.is_finished());

    set_lease(&folder, "expires_us = 0").await;
    assert_eq!(writer.until_holding().await.0, epoch + 2);
    publishing.await.unwrap();
    writer.publish("person", &["1"], 3).await;
    let described = writer.handle.describe(table("person")).await.unwrap();
    assert_eq!((described.record.state.rows, described.loaded.unwrap().rows), (2, 2));
    Arc::into_inner(writer).unwrap().end().await;
}

#[tokio::test]
async fn requests_of_a_lost_holding_end_with_it() {
    let folder = TempDir::new().unwrap();
    let writer = Running::start(&folder, "a", "").await;
    let (epoch, _) = writer.until_holding().await;
    writer.publish("person", &["1"], 1).await;
    writer.handle.pause(PauseScope::Everything).await.unwrap();
    set_lease(&folder, "owner = 'thief', epoch = epoch + 1, expires_us = 0").await;
    // The next renewal notices it; whoever asks meanwhile is not left without an answer.
    let asking = async {
        loop {
            match writer.handle.describe(table("person")).await {
                // It may hold the lease again before the next question.
                Ok(_) if matches!(writer.handle.status().await.role, WriterRole::Holding { epoch: now, .. } if now > epoch) =>
                {
                    return None;
                }
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Err(error) => return Some(error),
            }
        }
    };
    let error = tokio::time::timeout(PATIENCE, asking).await.unwrap();
    let is_told = |error| matches!(error, HandleError::Stopping | HandleError::NotLeaseHolder { .. });
    assert!(error.is_none_or(is_told), "the loss is told as what it is");
    until_role(&writer, |role| matches!(role, WriterRole::Holding { epoch: now, .. } if now == epoch + 2)).await;
    assert!(!writer.handle.status().await.leased.unwrap().ingest.paused.everything, "the pause has ended, too");
    writer.publish("person", &["2"], 2).await;
    let metastore = Arc::clone(&writer.handle.metastore);
    writer.end().await;
    // It is given back by who is told to end, also after it was lost once.
    assert_eq!(metastore.lease(LEASE_NAME).await.unwrap(), None);
}
