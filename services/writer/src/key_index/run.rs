//! Reading a run: look-ups by its directory, and reading it from end to end for a merge.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::entry::{Key, Packed};
use super::error::IndexError;
use super::folder::Folder;
use super::page::{PAGE_BYTES, Page, PagePlace};

/// Neighbouring pages that are read at once by a look-up.
const LOOKUP_PAGES: u32 = 16;
/// Pages that are read at once by a merge, from each of its runs.
const SCAN_PAGES: u32 = 64;

const FOOTER_BYTES: usize = 40;
const FOOTER_MAGIC: [u8; 8] = *b"LakeRun1";

/// The end of a run's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footer {
    pub run: u64,
    pub entries: u64,
    pub pages: u32,
    pub directory_checksum: u32,
}

impl Footer {
    pub fn to_bytes(self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        bytes[..8].copy_from_slice(&FOOTER_MAGIC);
        bytes[8..16].copy_from_slice(&self.run.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.entries.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.pages.to_le_bytes());
        bytes[28..32].copy_from_slice(&self.directory_checksum.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..36]);
        bytes[36..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Length of the run's file.
    pub fn file_bytes(self) -> u64 {
        u64::from(self.pages) * (PAGE_BYTES as u64 + 4) + FOOTER_BYTES as u64
    }
}

/// A run. The file stays readable for those who have it open after it was deleted.
#[derive(Debug)]
pub(super) struct Run {
    path: PathBuf,
    file: File,
    footer: Footer,
    directory: Box<[u32]>,
    durable: AtomicBool,
}

impl Run {
    pub fn written(folder: &Folder, file: File, footer: Footer, directory: Box<[u32]>) -> Self {
        Self { path: folder.run(footer.run), file, footer, directory, durable: AtomicBool::new(false) }
    }

    /// Opens a run that a manifest names. Its pages are checked when they are read.
    pub fn open(folder: &Folder, footer: Footer) -> Result<Self, IndexError> {
        let path = folder.run(footer.run);
        let file = File::open(&path).map_err(IndexError::io("open", &path))?;
        let length = file.metadata().map_err(IndexError::io("open", &path))?.len();
        if length != footer.file_bytes() {
            return Err(IndexError::corrupt(&path, "its length is not that of the manifest"));
        }
        let mut directory = vec![0; footer.pages as usize * 4];
        let mut found = [0; FOOTER_BYTES];
        file.read_exact_at(&mut directory, u64::from(footer.pages) * PAGE_BYTES as u64)
            .and_then(|()| file.read_exact_at(&mut found, length - FOOTER_BYTES as u64))
            .map_err(IndexError::io("read", &path))?;
        if found != footer.to_bytes() {
            return Err(IndexError::corrupt(&path, "its footer is not that of the manifest"));
        }
        if crc32fast::hash(&directory) != footer.directory_checksum {
            return Err(IndexError::corrupt(&path, "the checksum of its directory is wrong"));
        }
        let directory = directory.as_chunks().0.iter().map(|prefix| u32::from_le_bytes(*prefix)).collect();
        Ok(Self { path, file, footer, directory, durable: AtomicBool::new(true) })
    }

    pub const fn number(&self) -> u64 {
        self.footer.run
    }

    pub const fn footer(&self) -> Footer {
        self.footer
    }

    pub const fn entries(&self) -> u64 {
        self.footer.entries
    }

    pub const fn memory_bytes(&self) -> usize {
        self.directory.len() * 4
    }

    pub fn is_durable(&self) -> bool {
        self.durable.load(Ordering::Acquire)
    }

    pub fn make_durable(&self) -> Result<(), IndexError> {
        self.file.sync_all().map_err(IndexError::io("sync", &self.path))?;
        self.durable.store(true, Ordering::Release);
        Ok(())
    }

    /// Deletes the file. One that cannot be deleted now is deleted when the index is opened the next time.
    pub fn delete(&self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a run of a key index could not be deleted");
        }
    }

    /// Every entry of the keys, each with its key's number in `keys`, which are in order.
    pub fn find(&self, keys: &[Key], threads: usize) -> Result<Vec<(usize, Packed)>, IndexError> {
        let mut reads: Vec<(u32, usize)> = Vec::with_capacity(keys.len());
        for (number, key) in keys.iter().enumerate() {
            reads.extend(self.pages_of(*key).map(|page| (page, number)));
        }
        reads.sort_unstable();
        let share = reads.len().div_ceil(threads.max(1)).max(READS_PER_THREAD_MIN);
        if share >= reads.len() {
            return self.find_in_pages(keys, &reads);
        }
        std::thread::scope(|scope| {
            let mut shares = reads.chunks(share);
            let first = shares.next().unwrap_or_default();
            let others: Vec<_> = shares.map(|share| scope.spawn(|| self.find_in_pages(keys, share))).collect();
            let mut found = self.find_in_pages(keys, first)?;
            for other in others {
                match other.join() {
                    Ok(more) => found.extend(more?),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            Ok(found)
        })
    }

    /// Pages that can hold a key: nearly always one.
    fn pages_of(&self, key: Key) -> std::ops::Range<u32> {
        let prefix = key.prefix();
        let from = self.directory.partition_point(|first| *first < prefix);
        let more = self.directory[from..].iter().take_while(|first| **first == prefix).count();
        from.saturating_sub(1) as u32..(from + more) as u32
    }

    fn find_in_pages(&self, keys: &[Key], reads: &[(u32, usize)]) -> Result<Vec<(usize, Packed)>, IndexError> {
        let mut found = Vec::new();
        let mut buffer = Vec::new();
        let mut rest = reads;
        while let Some((first, _)) = rest.first().copied() {
            let mut last = first;
            let mut count = 0;
            for (page, _) in rest {
                if *page > last + 1 || *page >= first + LOOKUP_PAGES {
                    break;
                }
                last = *page;
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            rest = later;
            self.read_pages(first, last - first + 1, &mut buffer)?;
            for of_page in now.chunk_by(|a, b| a.0 == b.0) {
                let page = of_page[0].0;
                let verified = self.verified_page(page, first, &buffer)?;
                for (_, number) in of_page {
                    found.extend(verified.of(keys[*number]).map(|entry| (*number, entry)));
                }
            }
        }
        Ok(found)
    }

    fn read_pages(&self, first: u32, count: u32, buffer: &mut Vec<u8>) -> Result<(), IndexError> {
        buffer.resize(count as usize * PAGE_BYTES, 0);
        let read = self.file.read_exact_at(buffer, u64::from(first) * PAGE_BYTES as u64);
        read.map_err(|source| match source.kind() {
            std::io::ErrorKind::UnexpectedEof => IndexError::corrupt(&self.path, "it was cut off"),
            _ => IndexError::io("read", &self.path)(source),
        })
    }

    /// A page out of a buffer that begins with the page `first`.
    fn verified_page<'a>(&self, page: u32, first: u32, buffer: &'a [u8]) -> Result<Page<'a>, IndexError> {
        let start = (page - first) as usize * PAGE_BYTES;
        let bytes = &buffer[start..start + PAGE_BYTES];
        Page::verified(bytes, PagePlace { run: self.footer.run, page })
            .ok_or_else(|| IndexError::corrupt(&self.path, "the checksum of a page is wrong"))
    }
}

/// Below this a further thread costs more than it gives.
const READS_PER_THREAD_MIN: usize = 1_000;

/// Reads a run from its first entry to its last.
#[derive(Debug)]
pub(super) struct RunScan {
    run: Arc<Run>,
    next_page: u32,
    buffer: Vec<u8>,
    /// Entries of the pages in `buffer` that were not given yet, in reverse.
    entries: Vec<Packed>,
}

impl RunScan {
    pub const fn new(run: Arc<Run>) -> Self {
        Self { run, next_page: 0, buffer: Vec::new(), entries: Vec::new() }
    }

    /// The next entry in order.
    pub fn next(&mut self) -> Result<Option<Packed>, IndexError> {
        if self.entries.is_empty() {
            self.read()?;
        }
        Ok(self.entries.pop())
    }

    fn read(&mut self) -> Result<(), IndexError> {
        let first = self.next_page;
        let count = SCAN_PAGES.min(self.run.footer.pages - first);
        if count > 0 {
            self.run.read_pages(first, count, &mut self.buffer)?;
            for page in first..first + count {
                self.entries.extend(self.run.verified_page(page, first, &self.buffer)?.entries());
            }
            self.entries.reverse();
            self.next_page += count;
        }
        Ok(())
    }
}
