//! Building a run out of entries in any order, in bounded memory.
//!
//! Entries are gathered up to a limit; a full gathering (a *chunk*) is dealt out by the upper bits of the id and appended to one
//! file of chunks. At the end each part is collected from all chunks, sorted and written. Ids are hashes, so the parts are of
//! one size and nothing has to be merged.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::entry::{ENTRY_BYTES, IndexEntry, Packed, unpack};
use super::error::IndexError;
use super::folder::Folder;
use super::position::Position;
use super::run::Run;
use super::run_writer::RunWriter;

const PART_BITS: u32 = 10;
const PARTS: usize = 1 << PART_BITS;

/// A run that was built and is not yet part of its index. Dropped before that, it leaves nothing behind.
#[derive(Debug)]
pub struct FinishedRun {
    pub(super) folder: Arc<Folder>,
    /// `None`: it has no entries, or it was attached.
    run: Option<Arc<Run>>,
}

impl FinishedRun {
    pub(super) fn new(folder: &Arc<Folder>, run: Option<Run>) -> Self {
        Self { folder: folder.clone(), run: run.map(Arc::new) }
    }

    pub(super) const fn take(&mut self) -> Option<Arc<Run>> {
        self.run.take()
    }

    /// Number of entries.
    pub fn entries(&self) -> u64 {
        self.run.as_ref().map_or(0, |run| run.entries())
    }
}

impl Drop for FinishedRun {
    fn drop(&mut self) {
        if let Some(run) = &self.run {
            run.delete();
        }
    }
}

/// Takes entries in any order and sorts them into a run. Dropped before it is finished, it leaves nothing behind.
#[derive(Debug)]
pub struct RunBuilder {
    folder: Arc<Folder>,
    /// Entries that were not written to a chunk yet.
    gathered: Vec<Packed>,
    chunk_entries: usize,
    chunks: Option<Chunks>,
}

impl RunBuilder {
    /// `memory_bytes`: about what is used at most.
    pub(super) fn new(folder: &Arc<Folder>, memory_bytes: usize) -> Self {
        let chunk_entries = (memory_bytes / 2 / ENTRY_BYTES).max(1);
        Self { folder: folder.clone(), gathered: Vec::new(), chunk_entries, chunks: None }
    }

    /// Adds an entry. Fails if its row is too large or the disk refuses; the builder is of no use then.
    pub fn push(&mut self, entry: IndexEntry) -> Result<(), IndexError> {
        let Position { file, row } = entry.position;
        let packed = Packed::new(&entry).ok_or(IndexError::RowTooLarge { file, row })?;
        if self.gathered.len() == self.chunk_entries {
            self.end_chunk()?;
        }
        if self.gathered.len() == self.gathered.capacity() {
            let more = self.gathered.len().max(1024).min(self.chunk_entries - self.gathered.len());
            self.gathered.reserve_exact(more);
        }
        self.gathered.push(packed);
        Ok(())
    }

    /// Sorts what was pushed. Of several entries of one id only the one observed last (then with the greatest position) is
    /// in the run; `duplicate` is called with it and each of the others.
    pub fn finish(mut self, duplicate: &mut dyn FnMut(IndexEntry, IndexEntry)) -> Result<FinishedRun, IndexError> {
        let mut writer = RunWriter::create(&self.folder)?;
        match self.chunks {
            None => write_sorted(&mut self.gathered, &mut writer, duplicate)?,
            Some(_) => {
                self.end_chunk()?;
                self.gathered = Vec::new();
                let chunks = self.chunks.take();
                for part in 0..PARTS {
                    if let Some(chunks) = &chunks {
                        chunks.read_part(part, &mut self.gathered)?;
                    }
                    write_sorted(&mut self.gathered, &mut writer, duplicate)?;
                }
            }
        }
        Ok(FinishedRun::new(&self.folder, writer.finish()?))
    }

    fn end_chunk(&mut self) -> Result<(), IndexError> {
        let chunks = match &mut self.chunks {
            Some(chunks) => chunks,
            none => none.insert(Chunks::create(&self.folder)?),
        };
        chunks.append(&self.gathered)?;
        self.gathered.clear();
        Ok(())
    }
}

fn write_sorted(
    entries: &mut [Packed],
    writer: &mut RunWriter,
    duplicate: &mut dyn FnMut(IndexEntry, IndexEntry),
) -> Result<(), IndexError> {
    entries.sort_unstable();
    for of_id in entries.chunk_by(|a, b| a.key() == b.key()) {
        if let [others @ .., kept] = of_id {
            writer.push(*kept)?;
            for other in others {
                duplicate(kept.entry(), other.entry());
            }
        }
    }
    Ok(())
}

/// The chunks of a builder, in one file.
#[derive(Debug)]
struct Chunks {
    path: PathBuf,
    file: File,
    /// For each chunk where each part starts, in entries from the chunk's start, and the chunk's end.
    starts: Vec<Box<[u32]>>,
    /// A chunk in the order of its parts.
    dealt: Vec<u8>,
}

impl Chunks {
    fn create(folder: &Folder) -> Result<Self, IndexError> {
        let path = folder.chunks(folder.take_number());
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(IndexError::io("create", &path))?;
        Ok(Self { path, file, starts: Vec::new(), dealt: Vec::new() })
    }

    fn append(&mut self, entries: &[Packed]) -> Result<(), IndexError> {
        let mut starts = vec![0u32; PARTS + 1];
        for entry in entries {
            starts[part_of(*entry) + 1] += 1;
        }
        for part in 0..PARTS {
            starts[part + 1] += starts[part];
        }
        let mut next = starts.clone();
        self.dealt.resize(entries.len() * ENTRY_BYTES, 0);
        let places = self.dealt.as_chunks_mut::<ENTRY_BYTES>().0;
        for entry in entries {
            let next = &mut next[part_of(*entry)];
            places[*next as usize] = entry.to_bytes();
            *next += 1;
        }
        self.file.write_all(&self.dealt).map_err(IndexError::io("write", &self.path))?;
        self.starts.push(starts.into_boxed_slice());
        Ok(())
    }

    fn read_part(&self, part: usize, entries: &mut Vec<Packed>) -> Result<(), IndexError> {
        entries.clear();
        let mut buffer = Vec::new();
        let mut chunk_start = 0;
        for starts in &self.starts {
            let (from, to) = (starts[part], starts[part + 1]);
            buffer.resize((to - from) as usize * ENTRY_BYTES, 0);
            let offset = (chunk_start + u64::from(from)) * ENTRY_BYTES as u64;
            self.file.read_exact_at(&mut buffer, offset).map_err(IndexError::io("read", &self.path))?;
            entries.extend(unpack(&buffer));
            chunk_start += u64::from(starts[PARTS]);
        }
        Ok(())
    }
}

impl Drop for Chunks {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a temporary file of a key index stays behind");
        }
    }
}

const fn part_of(entry: Packed) -> usize {
    (entry.key().high >> (64 - PART_BITS)) as usize
}
