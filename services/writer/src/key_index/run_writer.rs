//! Writing a run: an immutable file of sorted entries.
//!
//! Layout: pages, the directory (the upper 4 bytes of the first key of each page, little endian), the footer.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use super::entry::Packed;
use super::error::IndexError;
use super::folder::Folder;
use super::page::{PAGE_BYTES, PAGE_ENTRIES, PagePlace, append_page};
use super::run::{Footer, Run};

/// Bytes that are written at once.
const BUFFER_BYTES: usize = 128 * PAGE_BYTES;

/// A run that is being written. Dropped before it is finished, it leaves nothing behind.
#[derive(Debug)]
pub(super) struct RunWriter {
    folder: Arc<Folder>,
    number: u64,
    path: PathBuf,
    /// Taken by `finish`.
    file: Option<File>,
    page: Vec<Packed>,
    buffer: Vec<u8>,
    directory: Vec<u32>,
    entries: u64,
}

impl RunWriter {
    pub fn create(folder: &Arc<Folder>) -> Result<Self, IndexError> {
        let number = folder.take_number();
        let path = folder.run(number);
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(IndexError::io("create", &path))?;
        Ok(Self {
            folder: folder.clone(),
            number,
            path,
            file: Some(file),
            page: Vec::with_capacity(PAGE_ENTRIES),
            buffer: Vec::new(),
            directory: Vec::new(),
            entries: 0,
        })
    }

    /// Entries come in order.
    pub fn push(&mut self, entry: Packed) -> Result<(), IndexError> {
        self.page.push(entry);
        if self.page.len() == PAGE_ENTRIES { self.end_page() } else { Ok(()) }
    }

    /// `None`: there was no entry. The file is complete, but not yet durable.
    pub fn finish(mut self) -> Result<Option<Run>, IndexError> {
        if !self.page.is_empty() {
            self.end_page()?;
        }
        if self.entries == 0 {
            return Ok(None);
        }
        let directory: Vec<u8> = self.directory.iter().flat_map(|prefix| prefix.to_le_bytes()).collect();
        let footer = Footer {
            run: self.number,
            entries: self.entries,
            pages: self.directory.len() as u32,
            directory_checksum: crc32fast::hash(&directory),
        };
        self.buffer.extend_from_slice(&directory);
        self.buffer.extend_from_slice(&footer.to_bytes());
        self.write_buffer()?;
        let directory = std::mem::take(&mut self.directory).into_boxed_slice();
        let Some(file) = self.file.take() else { return Ok(None) };
        Ok(Some(Run::written(&self.folder, file, footer, directory)))
    }

    fn end_page(&mut self) -> Result<(), IndexError> {
        let Some(first) = self.page.first() else { return Ok(()) };
        let place = PagePlace { run: self.number, page: self.directory.len() as u32 };
        self.directory.push(first.key().prefix());
        append_page(&self.page, place, &mut self.buffer);
        self.entries += self.page.len() as u64;
        self.page.clear();
        if self.buffer.len() >= BUFFER_BYTES { self.write_buffer() } else { Ok(()) }
    }

    fn write_buffer(&mut self) -> Result<(), IndexError> {
        if let Some(file) = &mut self.file {
            file.write_all(&self.buffer).map_err(IndexError::io("write", &self.path))?;
        }
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for RunWriter {
    fn drop(&mut self) {
        if self.file.is_some()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished run of a key index stays behind");
        }
    }
}
