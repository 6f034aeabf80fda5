//! Deletion vectors: the rows of a data file that are gone, in the format of the Delta protocol ("Deletion Vector Format").
//!
//! A vector is cumulative: the one of a newer version of the table holds all rows of the one before. All vectors of a commit stand in
//! one file `deletion_vector_<uuid>.bin` in the folder of the table: a version byte, then for each vector its length (big endian),
//! a magic number (little endian), a portable 64-bit roaring bitmap and a CRC-32 (big endian) of magic number and bitmap.

use std::io::Cursor;
use std::sync::Arc;

use deltalake::kernel::{DeletionVectorDescriptor, StorageType};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use roaring::RoaringBitmap;
use uuid::Uuid;

use crate::table_store::delta::error::EngineError;

/// First byte of a file of vectors.
const FORMAT_VERSION: u8 = 1;
/// Where the first vector of a file is, which is the one meant where none is named: the protocol says 0, but there stands the version.
const FIRST: u64 = 1;
/// Says that a portable 64-bit roaring bitmap follows.
const MAGIC: u32 = 1_681_511_377;
/// Characters of a UUID in base 85.
const ENCODED_UUID_LENGTH: usize = 20;

/// The deleted rows of one data file, and where they are stored.
#[derive(Clone, Debug)]
pub(crate) struct DeletionVector {
    /// As the log has it.
    pub(crate) descriptor: DeletionVectorDescriptor,
    /// Physical row numbers.
    pub(crate) rows: Arc<RoaringBitmap>,
}

impl DeletionVector {
    /// One that is stored nowhere: of a file that is rewritten without these rows.
    pub(crate) fn unstored(rows: RoaringBitmap) -> Self {
        let descriptor = DeletionVectorDescriptor {
            storage_type: StorageType::Inline,
            path_or_inline_dv: String::new(),
            offset: None,
            size_in_bytes: 0,
            cardinality: i64::try_from(rows.len()).unwrap_or(i64::MAX),
        };
        Self { descriptor, rows: Arc::new(rows) }
    }
}

/// Writes the vectors of one commit into one file; nothing for none. The answers have the order of the vectors.
pub(crate) async fn store(
    store: &Arc<dyn ObjectStore>,
    vectors: Vec<Arc<RoaringBitmap>>,
) -> Result<Vec<DeletionVector>, EngineError> {
    if vectors.is_empty() {
        return Ok(Vec::new());
    }
    let id = Uuid::new_v4();
    let mut file = vec![FORMAT_VERSION];
    let mut stored = Vec::with_capacity(vectors.len());
    for rows in vectors {
        let offset = i32::try_from(file.len()).map_err(|_| too_large())?;
        let start = file.len() + 4;
        file.extend([0; 4]);
        encode(&rows, &mut file)?;
        let size = i32::try_from(file.len() - start).map_err(|_| too_large())?;
        file[start - 4..start].copy_from_slice(&size.to_be_bytes());
        let checksum = crc32fast::hash(&file[start..]);
        file.extend(checksum.to_be_bytes());
        let descriptor = DeletionVectorDescriptor {
            storage_type: StorageType::UuidRelativePath,
            path_or_inline_dv: z85::encode(id.as_bytes()),
            offset: Some(offset),
            size_in_bytes: size,
            cardinality: i64::try_from(rows.len()).unwrap_or(i64::MAX),
        };
        stored.push(DeletionVector { descriptor, rows });
    }
    store.put(&file_of(&id, ""), PutPayload::from(file)).await.map_err(EngineError::unwritten)?;
    Ok(stored)
}
/// Reads the vector that a descriptor names.
pub(crate) async fn load(
    store: &Arc<dyn ObjectStore>,
    descriptor: DeletionVectorDescriptor,
) -> Result<DeletionVector, EngineError> {
    let rows = match descriptor.storage_type {
        StorageType::Inline => {
            let bytes = z85::decode(&descriptor.path_or_inline_dv).map_err(|error| broken(&descriptor, error))?;
            decode(&bytes).map_err(|error| broken(&descriptor, error))?
        }
        StorageType::UuidRelativePath => {
            let path = path_of(&descriptor).ok_or_else(|| broken(&descriptor, "its file has no valid name"))?;
            let start = descriptor.offset.map_or(FIRST, |offset| u64::try_from(offset).unwrap_or_default());
            let size = u64::try_from(descriptor.size_in_bytes).unwrap_or_default();
            let end = start + size + 8;
            let bytes = match store.get_range(&path, start..end).await {
                Ok(bytes) => bytes,
                Err(error) => return Err(explained(store, &descriptor, &path, end, error).await),
            };
            checked(&bytes, size).and_then(decode).map_err(|error| broken(&descriptor, error))?
        }
        StorageType::AbsolutePath => return Err(broken(&descriptor, "it is outside of the table")),
    };
    if i64::try_from(rows.len()).ok() != Some(descriptor.cardinality) {
        return Err(broken(&descriptor, "it does not hold the number of rows that the log says"));
    }
    Ok(DeletionVector { descriptor, rows: Arc::new(rows) })
}

/// Why a vector could not be read, when the store itself could not say: its file ends before it.
async fn explained(
    store: &Arc<dyn ObjectStore>,
    descriptor: &DeletionVectorDescriptor,
    path: &Path,
    end: u64,
    error: object_store::Error,
) -> EngineError {
    match store.head(path).await {
        Ok(found) if found.size < end => broken(descriptor, "its file is cut short"),
        _ => EngineError::Store(error),
    }
}

/// The file of a vector within the folder of its table; `None` for one that is not in a file there.
pub(crate) fn path_of(descriptor: &DeletionVectorDescriptor) -> Option<Path> {
    if descriptor.storage_type != StorageType::UuidRelativePath {
        return None;
    }
    let text = &descriptor.path_or_inline_dv;
    let split = text.len().checked_sub(ENCODED_UUID_LENGTH).filter(|split| text.is_char_boundary(*split))?;
    let (prefix, encoded) = text.split_at(split);
    let id = Uuid::from_slice(&z85::decode(encoded).ok()?).ok()?;
    Some(file_of(&id, prefix))
}

fn file_of(id: &Uuid, prefix: &str) -> Path {
    let name = format!("deletion_vector_{id}.bin");
    if prefix.is_empty() { Path::from(name) } else { Path::from(format!("{prefix}/{name}")) }
}

/// Magic number and 64-bit bitmap; rows are below 2^32, so that it has one part at most.
fn encode(rows: &RoaringBitmap, into: &mut Vec<u8>) -> Result<(), EngineError> {
    into.extend(MAGIC.to_le_bytes());
    into.extend(u64::from(!rows.is_empty()).to_le_bytes());
    if !rows.is_empty() {
        into.extend(0_u32.to_le_bytes());
        rows.serialize_into(into).map_err(|error| EngineError::corrupt(format!("deletion vector: {error}")))?;
    }
    Ok(())
}

/// The part between length and checksum, when both are right.
fn checked(bytes: &[u8], size: u64) -> Result<&[u8], String> {
    let size = usize::try_from(size).map_err(|error| error.to_string())?;
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or("it is cut short")?;
    let body = rest.get(..size).ok_or("it is cut short")?;
    let checksum = rest.get(size..size + 4).ok_or("it is cut short")?;
    if u32::from_be_bytes(*length) as usize != size {
        return Err("its length is not the one in the log".into());
    }
    if crc32fast::hash(body).to_be_bytes() != checksum {
        return Err("its checksum is wrong".into());
    }
    Ok(body)
}

fn decode(bytes: &[u8]) -> Result<RoaringBitmap, String> {
    let (magic, bitmaps) = bytes.split_first_chunk::<4>().ok_or("it is cut short")?;
    if u32::from_le_bytes(*magic) != MAGIC {
        return Err("it is in an unknown format".into());
    }
    let (count, mut rest) = bitmaps.split_first_chunk::<8>().ok_or("it is cut short")?;
    let mut rows = RoaringBitmap::new();
    for _ in 0..u64::from_le_bytes(*count) {
        let (high, bitmap) = rest.split_first_chunk::<4>().ok_or("it is cut short")?;
        let mut cursor = Cursor::new(bitmap);
        let part = RoaringBitmap::deserialize_from(&mut cursor).map_err(|error| error.to_string())?;
        if u32::from_le_bytes(*high) != 0 && !part.is_empty() {
            return Err("it names rows beyond 2^32".into());
        }
        rows |= part;
        rest = &bitmap[usize::try_from(cursor.position()).unwrap_or(bitmap.len()).min(bitmap.len())..];
    }
    Ok(rows)
}

fn too_large() -> EngineError {
    EngineError::corrupt("the deletion vectors of one commit exceed 2 GiB")
}

fn broken(descriptor: &DeletionVectorDescriptor, reason: impl std::fmt::Display) -> EngineError {
    EngineError::corrupt(format!("deletion vector {} cannot be read: {reason}", descriptor.path_or_inline_dv))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use object_store::memory::InMemory;

    use super::*;

    #[tokio::test]
    async fn what_is_stored_is_read_again() {
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let some: RoaringBitmap = [0, 1, 5, 70_000, 16_000_000].into_iter().collect();
        let many: RoaringBitmap = (0..200_000).filter(|row| row % 3 == 0).collect();
        let vectors = [some, RoaringBitmap::new(), many].map(Arc::new);
        let stored = store(&memory, vectors.to_vec()).await.unwrap();
        for (vector, rows) in stored.iter().zip(&vectors) {
            let read = load(&memory, vector.descriptor.clone()).await.unwrap();
            assert_eq!(&read.rows, rows);
            let mut wrong = vector.descriptor.clone();
            wrong.cardinality += 1;
            load(&memory, wrong).await.unwrap_err();
        }
        let unnamed = DeletionVectorDescriptor { offset: None, ..stored[0].descriptor.clone() };
        assert_eq!(load(&memory, unnamed).await.unwrap().rows, vectors[0]);
    }

    #[tokio::test]
    async fn an_inline_vector_is_read_and_a_broken_one_is_refused() {
        let memory: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let rows: RoaringBitmap = [3, 4, 7, 11, 18, 29].into_iter().collect();
        let mut bytes = Vec::new();
        encode(&rows, &mut bytes).unwrap();
        let size = bytes.len();
        bytes.resize(size.next_multiple_of(4), 0);
        let inline = DeletionVectorDescriptor {
            storage_type: StorageType::Inline,
            path_or_inline_dv: z85::encode(&bytes),
            offset: None,
            size_in_bytes: size as i32,
            cardinality: 6,
        };
        assert_eq!(*load(&memory, inline).await.unwrap().rows, rows);
        let stored = store(&memory, vec![Arc::new(rows)]).await.unwrap().remove(0);
        let path = path_of(&stored.descriptor).unwrap();
        let mut file = memory.get(&path).await.unwrap().bytes().await.unwrap().to_vec();
        let last = file.len() - 6;
        file[last] ^= 1;
        memory.put(&path, file.into()).await.unwrap();
        let error = load(&memory, stored.descriptor).await.unwrap_err();
        assert!(error.to_string().contains("checksum"), "{error}");
    }
}
