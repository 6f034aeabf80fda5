//! Files of a local lake that outlive a power cut.
//!
//! [`LocalFileSystem`] leaves it to the operating system when files reach the disk: after a power cut a commit that was acknowledged may be
//! gone, or be there and be empty. [`DurableFiles`] forces to disk what it writes: the names of the folders, then the content under a
//! temporary name, then the name of the file. So what was acknowledged is there, and what is there is whole.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use uuid::Uuid;

const STORE: &str = "durable files";

/// Names of temporary files begin so, and go on with digits. `LocalFileSystem` neither lists nor opens a file of such a name, and other
/// engines skip what begins with a dot.
const TEMPORARY: &str = ".lake#";

/// How often a missing folder is made, before the file is given up: somebody may delete it again.
const TRIES_MAX: usize = 3;

/// Folders that are remembered.
const KNOWN_FOLDERS_MAX: usize = 20_000;

#[derive(Debug, thiserror::Error)]
enum FileError {
    #[error("cannot {action} {}", .path.display())]
    Failed {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot create {} by a hard link; commits need a file system with hard links", .path.display())]
    Link {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl From<FileError> for Error {
    fn from(error: FileError) -> Self {
        Self::Generic { store: STORE, source: Box::new(error) }
    }
}

fn failed(action: &'static str, path: &FilePath) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::from(FileError::Failed { action, path: path.to_owned(), source })
}

/// The local file system, where a write counts only when it is on disk. What is copied or renamed is not forced to disk: the lake does
/// neither.
#[derive(Debug, Default)]
pub(super) struct DurableFiles {
    inner: LocalFileSystem,
    folders: Arc<Folders>,
}

impl DurableFiles {
    /// The whole file system.
    pub(super) fn new() -> Self {
        Self::default()
    }
}

impl fmt::Display for DurableFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DurableFiles({})", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods, reason = "the file system does better than the defaults")]
impl ObjectStore for DurableFiles {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        if matches!(options.mode, PutMode::Update(_)) || !options.attributes.is_empty() {
            // It refuses both.
            return self.inner.put_opts(location, payload, options).await;
        }
        let path = self.inner.path_to_filesystem(location)?;
        let (folders, mode) = (Arc::clone(&self.folders), options.mode);
        spawn_blocking(move || {
            let staged = Staged::new(path, &folders)?;
            staged.write(0, &payload)?;
            if mode == PutMode::Create { staged.create() } else { staged.replace() }
        })
        .await?
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        if !options.attributes.is_empty() {
            // It refuses them.
            return self.inner.put_multipart_opts(location, options).await;
        }
        let path = self.inner.path_to_filesystem(location)?;
        let folders = Arc::clone(&self.folders);
        let staged = spawn_blocking(move || Staged::new(path, &folders)).await??;
        Ok(Box::new(Upload { staged: Some(Arc::new(staged)), length: 0 }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.inner.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

/// A file in parts. Not that of [`LocalFileSystem`], which gives it its name before anything of it needs to be on disk: a checkpoint would
/// be read that is not whole.
#[derive(Debug)]
struct Upload {
    /// Until it has ended.
    staged: Option<Arc<Staged>>,
    length: u64,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (staged, offset) = (self.staged.clone(), self.length);
        self.length += data.content_length() as u64;
        Box::pin(async move {
            let staged = staged.ok_or_else(has_ended)?;
            spawn_blocking(move || staged.write(offset, &data)).await?
        })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let staged = self.staged.take().ok_or_else(has_ended)?;
        spawn_blocking(move || staged.replace()).await?
    }

    async fn abort(&mut self) -> Result<()> {
        let staged = self.staged.take().ok_or_else(has_ended)?;
        spawn_blocking(move || drop(staged)).await?;
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Given up: the file goes where a thread may wait, if there is such a place.
        if let Some(staged) = self.staged.take()
            && let Ok(runtime) = Handle::try_current()
        {
            drop(runtime.spawn_blocking(move || drop(staged)));
        }
    }
}

fn has_ended() -> Error {
    Error::Generic { store: STORE, source: "the upload has ended".into() }
}

/// A file with a temporary name, which goes with the value.
#[derive(Debug)]
struct Staged {
    /// Where it is to be.
    path: PathBuf,
    folder: PathBuf,
    temporary: PathBuf,
    file: Mutex<File>,
}

impl Staged {
    /// An empty file, in a folder that is on disk.
    fn new(path: PathBuf, folders: &Folders) -> Result<Self> {
        let folder = path.parent().unwrap_or(&path).to_owned();
        let temporary = folder.join(format!("{TEMPORARY}{}", Uuid::new_v4().as_u128()));
        let mut tries = 0;
        let file = loop {
            match File::create_new(&temporary) {
                Ok(file) => break file,
                Err(error) if error.kind() == ErrorKind::NotFound && tries < TRIES_MAX => folders.make(&folder)?,
                Err(error) => return Err(failed("create", &temporary)(error)),
            }
            tries += 1;
        };
        let staged = Self { path, folder, temporary, file: Mutex::new(file) };
        folders.resolve(&staged.folder)?;
        Ok(staged)
    }

    fn locked(&self) -> MutexGuard<'_, File> {
        // A panic elsewhere changes nothing: each write says where it begins.
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, offset: u64, content: &PutPayload) -> Result<()> {
        let mut file = self.locked();
        file.seek(SeekFrom::Start(offset)).map_err(failed("write", &self.temporary))?;
        content.iter().try_for_each(|part| file.write_all(part)).map_err(failed("write", &self.temporary))
    }

    fn sync(&self) -> Result<()> {
        self.locked().sync_all().map_err(failed("sync", &self.temporary))
    }

    /// Gives the file its name, unless there is one of that name.
    fn create(&self) -> Result<PutResult> {
        self.sync()?;
        match fs::hard_link(&self.temporary, &self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                // It may be of an earlier try that failed at the end; whoever finds out that it is its own relies on it from now on.
                sync_folder(&self.folder)?;
                let path = self.path.display().to_string();
                return Err(Error::AlreadyExists { path, source: Box::new(error) });
            }
            Err(source) => return Err(FileError::Link { path: self.path.clone(), source }.into()),
        }
        self.remove();
        self.named()
    }

    /// Gives the file its name, in place of one that may have it.
    fn replace(&self) -> Result<PutResult> {
        self.sync()?;
        fs::rename(&self.temporary, &self.path).map_err(failed("replace", &self.path))?;
        self.named()
    }

    /// Without a tag: nobody asks for it here, and a look at the name may meet the file of another writer.
    fn named(&self) -> Result<PutResult> {
        sync_folder(&self.folder)?;
        Ok(PutResult { e_tag: None, version: None })
    }

    fn remove(&self) {
        // It may be gone, and what is left behind is deleted some day.
        let _ = fs::remove_file(&self.temporary);
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Makes folders, and remembers those that are on disk.
#[derive(Debug, Default)]
struct Folders {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Folders whose names are on disk, and those of all folders above them.
    on_disk: HashSet<PathBuf>,
    /// How often folders were made.
    generation: u64,
}

impl Folders {
    fn locked(&self) -> MutexGuard<'_, Known> {
        // A panic elsewhere can only have made it forget.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a folder, and those above it that are missing.
    fn make(&self, folder: &FilePath) -> Result<()> {
        let missing: Vec<&FilePath> = folder.ancestors().take_while(|folder| !folder.exists()).collect();
        {
            let mut known = self.locked();
            // Before they are made: whoever finds them must not take them for the ones that somebody deleted.
            known.generation += 1;
            for folder in missing {
                known.on_disk.remove(folder);
            }
        }
        fs::create_dir_all(folder).map_err(failed("make the folder", folder))
    }

    /// Forces the name of a folder to disk, and those of all folders above, whoever made them: a process may have died in between.
    fn resolve(&self, folder: &FilePath) -> Result<()> {
        let (unknown, generation) = {
            let known = self.locked();
            let unknown: Vec<&FilePath> =
                folder.ancestors().take_while(|folder| !known.on_disk.contains(*folder)).collect();
            (unknown, known.generation)
        };
        if unknown.is_empty() {
            return Ok(());
        }
        for parent in unknown.iter().filter_map(|folder| folder.parent()) {
            sync_folder(parent)?;
        }
        let mut known = self.locked();
        // Otherwise one of them may have been made anew.
        if known.generation == generation {
            if known.on_disk.len() >= KNOWN_FOLDERS_MAX {
                known.on_disk.clear();
            }
            known.on_disk.extend(unknown.into_iter().map(FilePath::to_path_buf));
        }
        Ok(())
    }
}

/// Forces the names in a folder to disk.
fn sync_folder(folder: &FilePath) -> Result<()> {
    if !cfg!(unix) {
        return Ok(());
    }
    let opened = match File::open(folder) {
        // A folder far above, in which others make folders.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => return Ok(()),
        opened => opened.map_err(failed("open", folder))?,
    };
    match opened.sync_all() {
        // Some file systems have no such request for folders, and some cannot be written at all.
        Err(error) if is_pointless(error.kind()) => Ok(()),
        synced => synced.map_err(failed("sync", folder)),
    }
}

fn is_pointless(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::InvalidInput | ErrorKind::Unsupported | ErrorKind::ReadOnlyFilesystem)
}

/// Deletes what processes that were killed left half written below a folder: the temporary files of [`DurableFiles`] and those of
/// [`LocalFileSystem`] (`name#1`), which neither of them lists. The answer is how many. Symbolic links below the folder are left alone.
pub(super) async fn delete_leftovers(folder: PathBuf, older_than: SystemTime) -> io::Result<u64> {
    spawn_blocking(move || delete_leftovers_below(folder, older_than)).await?
}

fn delete_leftovers_below(folder: PathBuf, older_than: SystemTime) -> io::Result<u64> {
    let mut deleted = 0;
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        let Some(entries) = if_there(fs::read_dir(&folder))? else { continue };
        for entry in entries {
            let entry = entry?;
            let Some(kind) = if_there(entry.file_type())? else { continue };
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && is_temporary(&entry.file_name()) {
                let Some(metadata) = if_there(entry.metadata())? else { continue };
                if metadata.modified()? < older_than && if_there(fs::remove_file(entry.path()))?.is_some() {
                    deleted += 1;
                }
            }
        }
    }
    Ok(deleted)
}

/// Others may delete at the same time.
fn if_there<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Exactly the names that [`LocalFileSystem`] hides: a file that it shows may be somebody's.
fn is_temporary(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.split_once('#')).map(|(_, number)| number);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(test)]
mod tests;
