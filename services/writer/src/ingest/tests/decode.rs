//! Messages that are not what they should be.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::ipc::writer::StreamWriter;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use lake_proto::queue::v1::RowBatch;
use lake_shared::queue::Delivery;
use lake_shared::wire;

use super::buffer::NoReceipt;
use super::payload;
use crate::ingest::decode::{Decoded, decode};

fn decoded(batch: &RowBatch) -> Decoded {
    decode(&Delivery {
        subject: "lake.rows.d.case.t".into(),
        payload: wire::encode(batch),
        id: "7".into(),
        attempts: 1,
        receipt: Box::new(NoReceipt),
    })
}

fn detail(batch: &RowBatch) -> String {
    match decoded(batch) {
        Decoded::Rows(..) => panic!("these are rows"),
        Decoded::Malformed(entry) => {
            assert_eq!(entry.reason.code(), "row_batch_malformed");
            entry.detail
        }
    }
}

#[test]
fn names_with_a_nul_character_are_malformed() {
    assert!(detail(&payload("d\0", &["1"], &[])).contains("the domain has a NUL"));
    assert!(detail(&payload("d\0", &[], &["1"])).contains("the domain has a NUL"));
    let mut batch = payload("d", &["1"], &[]);
    batch.r#type = Some("per\0son".into());
    assert!(detail(&batch).contains("the type has a NUL"));
    // Without rows there is no table that it would name, and the tombstone may be for a row of another type.
    let batch = RowBatch { r#type: batch.r#type, ..payload("d", &[], &["1"]) };
    assert!(matches!(decoded(&batch), Decoded::Rows(rows, _) if rows.len() == 1));
}

/// An Arrow stream with nulls in it, in two batches.
fn stream() -> Vec<u8> {
    let id = StringArray::from(vec![Some("one"), None, Some("three")]);
    let number = Int64Array::from(vec![Some(1), Some(2), None]);
    let columns = [("/_id", Arc::new(id) as ArrayRef), ("/n", Arc::new(number))];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let mut stream = StreamWriter::try_new(Vec::new(), rows.schema_ref()).unwrap();
    stream.write(&rows).unwrap();
    stream.write(&rows.slice(0, 1)).unwrap();
    stream.into_inner().unwrap()
}

#[test]
fn damaged_rows_are_malformed_or_rows_and_never_a_panic() {
    let stream = stream();
    let batch = |stream: Vec<u8>| RowBatch { arrow_ipc: Bytes::from(stream), ..payload("d", &[], &[]) };
    assert!(matches!(decoded(&batch(stream.clone())), Decoded::Rows(rows, _) if rows.len() == 4));
    let (mut rows, mut malformed) = (0, 0);
    let mut count = |decoded: Decoded| match decoded {
        Decoded::Rows(..) => rows += 1,
        Decoded::Malformed(_) => malformed += 1,
    };
    for at in 0..stream.len() {
        count(decoded(&batch(stream[..at].to_vec())));
        for flipped in [0x01, 0x40, 0x80, 0xff] {
            let mut damaged = stream.clone();
            damaged[at] ^= flipped;
            count(decoded(&batch(damaged)));
        }
    }
    assert!(rows > 0 && malformed > 0, "{rows} {malformed}");
}

#[test]
fn a_length_beyond_the_stream_is_malformed() {
    let long = |bytes: &[u8]| RowBatch { arrow_ipc: Bytes::copy_from_slice(bytes), ..payload("d", &[], &[]) };
    assert!(detail(&long(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])).contains("longer than the stream"));
    assert!(detail(&long(&[0xff, 0xff, 0xff, 0x7f, 1, 2])).contains("longer than the stream"));
    assert!(detail(&long(&[0xff, 0xff, 0xff, 0xff, 1])).contains("ends in the length"));
    let stream = stream();
    assert!(detail(&long(&stream[..stream.len() - 16])).contains("longer than the stream"));
}
