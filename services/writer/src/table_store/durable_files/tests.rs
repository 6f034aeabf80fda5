//! Files that outlive a power cut, as far as that shows without one.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use futures::TryStreamExt;
use futures::future::join_all;
use object_store::{Attribute, Attributes, ObjectStoreExt, UpdateVersion};
use tempfile::TempDir;

use super::*;

/// An empty folder.
struct Place {
    store: Arc<DurableFiles>,
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { store: Arc::new(DurableFiles::new()), folder: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> Path {
        Path::from_absolute_path(self.folder.path().join(name)).unwrap()
    }

    async fn read(&self, path: &Path) -> Bytes {
        self.store.get(path).await.unwrap().bytes().await.unwrap()
    }

    /// What the store shows.
    async fn listed(&self) -> Vec<Path> {
        let below = Path::from_absolute_path(self.folder.path()).unwrap();
        self.store.list(Some(&below)).map_ok(|file| file.location).try_collect().await.unwrap()
    }

    /// Names of all files, temporary ones among them.
    fn names(&self) -> Vec<String> {
        let (mut names, mut folders) = (Vec::new(), vec![self.folder.path().to_owned()]);
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    folders.push(entry.path());
                } else {
                    names.push(entry.file_name().into_string().unwrap());
                }
            }
        }
        names.sort();
        names
    }

    /// A file that was written some hours ago.
    fn write(&self, name: &str, hours: u64) {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "content").unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_modified(hours_ago(hours)).unwrap();
    }
}

fn hours_ago(hours: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(3_600 * hours)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_many_writers_creates_a_file_and_its_folders() {
    let place = Place::new();
    for round in 0..10 {
        let path = place.path(&format!("{round}/_delta_log/0.json"));
        let tries = join_all((0..8).map(|writer| {
            let (store, path) = (Arc::clone(&place.store), path.clone());
            tokio::spawn(async move {
                let content = PutPayload::from(format!("writer {writer}"));
                (writer, store.put_opts(&path, content, PutMode::Create.into()).await)
            })
        }));
        let mut winners = Vec::new();
        for tried in tries.await {
            let (writer, outcome) = tried.unwrap();
            match outcome {
                Ok(_) => winners.push(writer),
                Err(Error::AlreadyExists { path, .. }) => assert!(path.ends_with("/_delta_log/0.json"), "{path}"),
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(winners.len(), 1);
        assert_eq!(place.read(&path).await, format!("writer {}", winners[0]));
    }
    assert_eq!(place.names(), ["0.json"; 10]);
}

#[tokio::test]
async fn a_put_replaces_what_was_there() {
    let place = Place::new();
    let path = place.path("a/b/file.json");
    for content in ["a long content", "short", ""] {
        place.store.put(&path, content.into()).await.unwrap();
        assert_eq!(place.read(&path).await, content);
    }
    assert_eq!(place.names(), ["file.json"]);
    assert_eq!(place.listed().await, [path]);
}

#[tokio::test]
async fn what_the_file_system_cannot_do_is_refused() {
    let place = Place::new();
    let path = place.path("file.json");
    let update = PutMode::Update(UpdateVersion { e_tag: None, version: None });
    let error = place.store.put_opts(&path, "content".into(), update.into()).await.unwrap_err();
    assert!(matches!(error, Error::NotImplemented { .. }), "{error:?}");
    let attributes = Attributes::from_iter([(Attribute::ContentType, "text/plain")]);
    let error = place.store.put_opts(&path, "content".into(), attributes.clone().into()).await.unwrap_err();
    assert!(matches!(error, Error::NotImplemented { .. }), "{error:?}");
    let error = place.store.put_multipart_opts(&path, attributes.into()).await.unwrap_err();
    assert!(matches!(error, Error::NotImplemented { .. }), "{error:?}");
    assert!(place.names().is_empty());
}

#[tokio::test]
async fn an_upload_is_whole_whatever_order_its_parts_are_written_in() {
    let place = Place::new();
    let path = place.path("month=2024-01/part.parquet");
    let mut upload = place.store.put_multipart(&path).await.unwrap();
    let parts: Vec<UploadPart> = (0..20_u8).map(|part| upload.put_part(vec![part; 100_000].into())).collect();
    for part in parts.into_iter().rev() {
        part.await.unwrap();
    }
    assert_eq!((place.names().len(), place.listed().await), (1, Vec::new()));
    upload.complete().await.unwrap();
    let content = place.read(&path).await;
    assert_eq!(content.len(), 2_000_000);
    for (number, part) in content.chunks(100_000).enumerate() {
        assert!(part.iter().all(|byte| usize::from(*byte) == number), "part {number}");
    }
    assert!(upload.complete().await.is_err() && upload.abort().await.is_err());
    assert!(upload.put_part("more".into()).await.is_err());
    drop(upload);
    assert_eq!(place.names(), ["part.parquet"]);
}

#[tokio::test]
async fn nothing_is_left_of_an_upload_that_is_given_up() {
    let place = Place::new();
    let path = place.path("part.parquet");
    let mut upload = place.store.put_multipart(&path).await.unwrap();
    upload.put_part("content".into()).await.unwrap();
    upload.abort().await.unwrap();
    assert!(place.names().is_empty());
    let mut upload = place.store.put_multipart(&path).await.unwrap();
    upload.put_part("content".into()).await.unwrap();
    drop(upload);
    let gone = async {
        while !place.names().is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.unwrap();
}

#[tokio::test]
async fn a_folder_that_was_deleted_is_made_again() {
    let place = Place::new();
    let (first, second) = (place.path("table/_delta_log/0.json"), place.path("table/_delta_log/1.json"));
    let log = place.folder.path().join("table/_delta_log");
    place.store.put(&first, "first".into()).await.unwrap();
    assert!(place.store.folders.locked().on_disk.contains(&log));
    fs::remove_dir_all(place.folder.path().join("table")).unwrap();
    place.store.folders.make(&log).unwrap();
    assert!(!place.store.folders.locked().on_disk.contains(&log));
    place.store.put(&second, "second".into()).await.unwrap();
    assert!(place.store.folders.locked().on_disk.contains(&log));
    assert_eq!(place.listed().await, [second]);
}

#[tokio::test]
async fn errors_tell_the_path() {
    let place = Place::new();
    place.store.put(&place.path("file"), "content".into()).await.unwrap();
    let error = place.store.put(&place.path("file/below"), "content".into()).await.unwrap_err();
    assert!(matches!(error, Error::Generic { store: STORE, .. }), "{error:?}");
    assert!(error.to_string().contains("file/.lake#"), "{error}");
    assert_eq!(place.names(), ["file"]);
}

#[test]
fn a_hard_link_that_cannot_be_made_is_called_so() {
    let place = Place::new();
    let path = place.folder.path().join("0.json");
    let staged = Staged::new(path.clone(), &place.store.folders).unwrap();
    staged.remove();
    let error = staged.create().unwrap_err();
    assert!(matches!(error, Error::Generic { store: STORE, .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("file system with hard links") && text.contains(path.to_str().unwrap()), "{text}");
}

#[tokio::test]
async fn only_old_leftovers_are_deleted() {
    let place = Place::new();
    for leftover in ["part.parquet#1", "_delta_log/00.json#12", "month=1/.lake#123", "x#1/y.parquet#2"] {
        place.write(leftover, 30);
    }
    let mut kept = vec!["young.parquet#1", ".lake#7"];
    for young in &kept {
        place.write(young, 1);
    }
    for real in ["part.parquet", "_delta_log/00.json", "x#1/part-2", "a#b", "a#1b", "a#", "a#b#1", "#", "12"] {
        place.write(real, 30);
        kept.push(real.rsplit('/').next().unwrap());
    }
    kept.sort_unstable();
    assert_eq!(delete_leftovers(place.folder.path().to_owned(), hours_ago(24)).await.unwrap(), 4);
    assert_eq!(place.names(), kept);
    assert_eq!(delete_leftovers(place.folder.path().to_owned(), hours_ago(24)).await.unwrap(), 0);
    assert_eq!(delete_leftovers(place.folder.path().join("missing"), hours_ago(24)).await.unwrap(), 0);
}

#[cfg(unix)]
#[tokio::test]
async fn leftovers_behind_links_are_left_alone() {
    let (place, elsewhere) = (Place::new(), Place::new());
    elsewhere.write("part.parquet#1", 30);
    std::os::unix::fs::symlink(elsewhere.folder.path(), place.folder.path().join("folder")).unwrap();
    std::os::unix::fs::symlink(elsewhere.folder.path().join("part.parquet#1"), place.folder.path().join("x#1"))
        .unwrap();
    assert_eq!(delete_leftovers(place.folder.path().to_owned(), SystemTime::now()).await.unwrap(), 0);
    assert_eq!((place.names().len(), elsewhere.names().len()), (2, 1));
}

#[tokio::test]
async fn temporary_files_are_hidden_and_leftovers() {
    let place = Place::new();
    let staged = Staged::new(place.folder.path().join("part.parquet"), &place.store.folders).unwrap();
    let name = staged.temporary.file_name().unwrap();
    assert!(is_temporary(name) && place.folder.path().join(name).exists());
    assert!(place.listed().await.is_empty());
}

#[test]
fn it_tells_what_it_is() {
    assert_eq!(DurableFiles::new().to_string(), "DurableFiles(LocalFileSystem(file:///))");
}
