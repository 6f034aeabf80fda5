//! The manifest: which runs the last checkpoint consists of, and its stamp.
//!
//! Layout, little endian: magic (8), format (4), next file number (8), number of runs (4), length of the stamp (4), for each run
//! number, entries (8 each), pages, checksum of the directory (4 each), the stamp, checksum of all that (4).

use std::fs::{self, File};
use std::io::{ErrorKind, Write};

use super::error::IndexError;
use super::folder::Folder;
use super::run::Footer;

const MAGIC: [u8; 8] = *b"LakeKeys";
const FORMAT: u32 = 1;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub next_number: u64,
    pub runs: Vec<Footer>,
    pub stamp: Vec<u8>,
}

impl Manifest {
    /// Makes this the folder's manifest, durably. All its runs are durable already.
    pub fn store(&self, folder: &Folder) -> Result<(), IndexError> {
        let next = folder.manifest_next();
        let mut file = File::create(&next).map_err(IndexError::io("create", &next))?;
        file.write_all(&self.to_bytes()).map_err(IndexError::io("write", &next))?;
        file.sync_all().map_err(IndexError::io("sync", &next))?;
        // The names of the runs are durable before the manifest that names them.
        folder.sync()?;
        fs::rename(&next, folder.manifest()).map_err(IndexError::io("rename", &next))?;
        folder.sync()
    }

    /// `Err` of the outer: the file system refused. `Err` of the inner: why there is no manifest that can be trusted.
    pub fn load(folder: &Folder) -> Result<Result<Self, &'static str>, IndexError> {
        let path = folder.manifest();
        match fs::read(&path) {
            Ok(bytes) => Ok(Self::from_bytes(&bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Err("there is none")),
            Err(error) => Err(IndexError::io("read", &path)(error)),
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&FORMAT.to_le_bytes());
        bytes.extend_from_slice(&self.next_number.to_le_bytes());
        bytes.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&(self.stamp.len() as u32).to_le_bytes());
        for run in &self.runs {
            bytes.extend_from_slice(&run.run.to_le_bytes());
            bytes.extend_from_slice(&run.entries.to_le_bytes());
            bytes.extend_from_slice(&run.pages.to_le_bytes());
            bytes.extend_from_slice(&run.directory_checksum.to_le_bytes());
        }
        bytes.extend_from_slice(&self.stamp);
        bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, &'static str> {
        const CUT: &str = "the manifest is cut off";
        let Some((MAGIC, rest)) = bytes.split_first_chunk().map(|(magic, rest)| (*magic, rest)) else {
            return Err("the manifest is not that of a key index");
        };
        let (format, _) = rest.split_first_chunk().ok_or(CUT)?;
        if u32::from_le_bytes(*format) != FORMAT {
            return Err("the manifest is of another format");
        }
        let (content, checksum) = bytes.split_last_chunk().ok_or(CUT)?;
        if u32::from_le_bytes(*checksum) != crc32fast::hash(content) {
            return Err("the checksum of the manifest is wrong");
        }
        let mut reader = Reader(&content[MAGIC.len() + 4..]);
        Self::from_content(&mut reader).filter(|_| reader.0.is_empty()).ok_or(CUT)
    }

    fn from_content(reader: &mut Reader) -> Option<Self> {
        let next_number = reader.u64()?;
        let (runs, stamp) = (reader.u32()?, reader.u32()?);
        let mut footers = Vec::new();
        for _ in 0..runs {
            footers.push(Footer {
                run: reader.u64()?,
                entries: reader.u64()?,
                pages: reader.u32()?,
                directory_checksum: reader.u32()?,
            });
        }
        let stamp = reader.take(stamp as usize)?.to_vec();
        Some(Self { next_number, runs: footers, stamp })
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let run = |run| Footer { run, entries: 5, pages: 1, directory_checksum: 77 };
        let manifest = Manifest { next_number: 9, runs: vec![run(3), run(7)], stamp: b"version 4".to_vec() };
        let bytes = manifest.to_bytes();
        assert_eq!(Manifest::from_bytes(&bytes), Ok(manifest));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            Manifest::from_bytes(&flipped).unwrap_err();
        }
        for length in 0..bytes.len() {
            Manifest::from_bytes(&bytes[..length]).unwrap_err();
        }
        let next_format = [&bytes[..8], &2u32.to_le_bytes(), &bytes[12..]].concat();
        assert_eq!(Manifest::from_bytes(&next_format), Err("the manifest is of another format"));
    }
}
