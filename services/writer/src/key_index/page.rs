//! A page of a run: 4 KiB that hold up to 170 entries in order, with a checksum that also covers the page's place, so that a
//! page of another run or from elsewhere in the run is not taken for it.
//!
//! Layout: checksum (4, little endian), number of entries (2, little endian), 10 zeros, entries, zeros.

use super::entry::{ENTRY_BYTES, Key, Packed, unpack};

pub(super) const PAGE_BYTES: usize = 4096;
const HEADER_BYTES: usize = 16;
/// Entries of a full page.
pub(super) const PAGE_ENTRIES: usize = (PAGE_BYTES - HEADER_BYTES) / ENTRY_BYTES;

/// Where a page belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct PagePlace {
    pub run: u64,
    pub page: u32,
}

impl PagePlace {
    fn checksum(self, page: &[u8]) -> u32 {
        let place = (self.run << 32 ^ self.run >> 32 ^ u64::from(self.page)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        crc32fast::hash(&page[4..]) ^ (place >> 32) as u32
    }
}

/// Appends a page to `bytes`.
pub(super) fn append_page(entries: &[Packed], place: PagePlace, bytes: &mut Vec<u8>) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; HEADER_BYTES]);
    for entry in entries {
        bytes.extend_from_slice(&entry.to_bytes());
    }
    bytes.resize(start + PAGE_BYTES, 0);
    bytes[start + 4..start + 6].copy_from_slice(&(entries.len() as u16).to_le_bytes());
    let checksum = place.checksum(&bytes[start..]);
    bytes[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// A page whose checksum was right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Page<'a> {
    /// Packed entries.
    entries: &'a [u8],
}

impl<'a> Page<'a> {
    /// `None`: these are not the bytes that were written to this place.
    pub fn verified(bytes: &'a [u8], place: PagePlace) -> Option<Self> {
        let (header, entries) = bytes.split_first_chunk::<HEADER_BYTES>()?;
        let [a, b, c, d, low, high, ..] = *header;
        let count = usize::from(u16::from_le_bytes([low, high]));
        let right = bytes.len() == PAGE_BYTES
            && u32::from_le_bytes([a, b, c, d]) == place.checksum(bytes)
            && (1..=PAGE_ENTRIES).contains(&count);
        right.then(|| Self { entries: &entries[..count * ENTRY_BYTES] })
    }

    pub fn entries(self) -> impl ExactSizeIterator<Item = Packed> + 'a {
        unpack(self.entries)
    }

    /// The entries of an id.
    pub fn of(self, key: Key) -> impl Iterator<Item = Packed> + 'a {
        let packed = self.entries.as_chunks::<ENTRY_BYTES>().0;
        let from = packed.partition_point(|entry| Packed::from_bytes(entry).key() < key);
        packed[from..].iter().map(Packed::from_bytes).take_while(move |entry| entry.key() == key)
    }
}
