//! Queue messages to and from bytes: protobuf, compressed with zstd.

use std::io::Read;

use bytes::Bytes;
use prost::Message;

/// Largest message after decompression, in bytes: protects a consumer from a corrupt or hostile payload. Publishers keep to half of it, as
/// what is made of a message may be larger.
pub const DECODED_SIZE_MAX: usize = 128 * 1024 * 1024;

/// A payload that is no message of the expected kind. It will not get better by itself: quarantine it.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// Not zstd, or larger than [`DECODED_SIZE_MAX`].
    #[error("payload of {size} bytes cannot be decompressed")]
    Compression {
        /// Size of the payload in bytes.
        size: usize,
        /// The error of zstd.
        #[source]
        source: std::io::Error,
    },
    /// Not the protobuf message expected on this subject.
    #[error("payload is no valid message")]
    Message(#[source] prost::DecodeError),
}

/// Bytes for the queue.
pub fn encode(message: &impl Message) -> Bytes {
    let plain = message.encode_to_vec();
    // Level 1: half a gigabyte a second and most of the gain, as documents repeat their keys.
    match zstd::bulk::compress(&plain, 1) {
        Ok(mut compressed) => {
            // The buffer was made for the worst case. What waits to be published would hold as much as it has uncompressed.
            compressed.shrink_to_fit();
            compressed.into()
        }
        Err(error) => unreachable_compression(&error),
    }
}

/// Compressing into a buffer that grows fails only when memory is exhausted, which aborts anyway.
fn unreachable_compression(error: &std::io::Error) -> ! {
    panic!("zstd cannot compress into memory: {error}")
}

/// Bytes that a payload takes when it is decompressed, as far as it says so, which all do that [`encode`] made; else the most that it may take.
/// What has to be set aside before it is decoded.
pub fn decoded_size(payload: &[u8]) -> usize {
    let said = zstd::zstd_safe::get_frame_content_size(payload).ok().flatten();
    said.map_or(DECODED_SIZE_MAX, |said| usize::try_from(said).unwrap_or(usize::MAX).min(DECODED_SIZE_MAX))
}

/// The message in a payload of the queue.
///
/// # Errors
/// Where the payload is not a message of this type; it never will be.
pub fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, WireError> {
    let size = payload.len();
    let plain = decompress(payload).map_err(|source| WireError::Compression { size, source })?;
    M::decode(Bytes::from(plain)).map_err(WireError::Message)
}

fn decompress(payload: &[u8]) -> std::io::Result<Vec<u8>> {
    let too_large = || std::io::Error::other("larger than a message may be");
    // What [`encode`] makes says how large it is; then the buffers of a stream are not needed.
    if let Ok(Some(said)) = zstd::zstd_safe::get_frame_content_size(payload) {
        let said = usize::try_from(said).ok().filter(|said| *said <= DECODED_SIZE_MAX).ok_or_else(too_large)?;
        return zstd::bulk::decompress(payload, said);
    }
    let mut plain = Vec::new();
    zstd::stream::Decoder::new(payload)?.take(DECODED_SIZE_MAX as u64 + 1).read_to_end(&mut plain)?;
    if plain.len() > DECODED_SIZE_MAX { Err(too_large()) } else { Ok(plain) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use lake_proto::queue::v1::{Record, RecordBatch};

    use super::*;

    #[test]
    fn a_payload_holds_no_more_memory_than_it_has_bytes() {
        let document = vec![b'x'; 1 << 20];
        let payload = encode(&Record { document: document.into(), ..Record::default() });
        let buffer: Vec<u8> = payload.try_into_mut().unwrap().into();
        assert!(
            buffer.capacity() < 10_000,
            "{} bytes for a megabyte that compresses to a few hundred",
            buffer.capacity()
        );
    }

    #[test]
    fn a_message_survives_and_garbage_is_an_error() {
        let batch = RecordBatch {
            domain: "d".into(),
            records: vec![Record { id: "1".into(), document: vec![b'x'; 10_000].into(), ..Record::default() }],
            ..RecordBatch::default()
        };
        let payload = encode(&batch);
        assert!(payload.len() < 1_000);
        assert_eq!(decode::<RecordBatch>(&payload).unwrap(), batch);
        assert!(matches!(decode::<RecordBatch>(b"garbage"), Err(WireError::Compression { .. })));
        // A payload made by a stream does not say its size.
        let streamed = zstd::stream::encode_all(&*prost::Message::encode_to_vec(&batch), 1).unwrap();
        assert_eq!(decode::<RecordBatch>(&streamed).unwrap(), batch);
        assert_eq!(decoded_size(&payload), batch.encoded_len());
        assert_eq!(decoded_size(&streamed), DECODED_SIZE_MAX, "it may be any");
        let no_message = zstd::bulk::compress(&[0xff; 20], 1).unwrap();
        assert!(matches!(decode::<RecordBatch>(&no_message), Err(WireError::Message(_))));
    }
}
