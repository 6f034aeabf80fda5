//! Whatever bytes come as a request: the answer is an error of the contract, and the writer goes on.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use lake_proto::admin::v1::{self as proto, FILE_DESCRIPTOR_SET};
use lake_proto::external_scaler;
use prost_types::FileDescriptorSet;
use prost_types::field_descriptor_proto::Type;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Status};

use super::{Channel, Clients, PATIENCE, with, writer};

/// Requests to each call.
const REQUESTS: usize = 60;

/// Messages as bytes.
#[derive(Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(item);
        Ok(())
    }
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let length = from.remaining();
        Ok(Some(from.copy_to_bytes(length)))
    }
    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::default()
    }
}

/// A field of a request: its number and type.
type Field = (u64, Type);

/// Paths of all calls of the contract, with the fields of their requests.
fn calls() -> Vec<(String, Vec<Field>)> {
    let mut set: FileDescriptorSet = prost::Message::decode(FILE_DESCRIPTOR_SET).unwrap();
    let scaler: FileDescriptorSet = prost::Message::decode(external_scaler::FILE_DESCRIPTOR_SET).unwrap();
    set.file.extend(scaler.file);
    let fields_of = |name: &str| {
        let messages = set.file.iter().flat_map(|file| {
            let package = file.package().to_owned();
            file.message_type.iter().map(move |message| (format!(".{package}.{}", message.name()), message))
        });
        let (_, message) = messages.into_iter().find(|(known, _)| known == name).unwrap();
        message.field.iter().map(|field| (field.number() as u64, field.r#type())).collect::<Vec<_>>()
    };
    let mut calls = Vec::new();
    for file in set.file.iter().filter(|file| ["lake.admin.v1", "externalscaler"].contains(&file.package())) {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                calls.push((path, fields_of(method.input_type())));
            }
        }
    }
    calls
}

fn put_varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push((value as u8) | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

fn put_bytes(into: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_varint(into, number << 3 | 2);
    put_varint(into, bytes.len() as u64);
    into.extend_from_slice(bytes);
}

fn text(random: &mut StdRng) -> Vec<u8> {
    match random.random_range(0..7) {
        0 => Vec::new(),
        1 => b"demo_case_sql_person".to_vec(),
        2 => "x".repeat(random.random_range(1..100_000)).into_bytes(),
        3 => "\u{0}';DROP TABLE lake_table;--\u{202e}é".into(),
        4 => (0..random.random_range(1..40)).map(|_| random.random()).collect(),
        5 => format!("{}_{}", random.random::<i64>(), random.random::<u32>()).into_bytes(),
        _ => b"demo".to_vec(),
    }
}

/// A request: nearly always of the form of the call, with whatever values.
fn request(random: &mut StdRng, fields: &[Field]) -> Vec<u8> {
    if random.random_ratio(1, 8) {
        return (0..random.random_range(0..200)).map(|_| random.random()).collect();
    }
    let mut bytes = Vec::new();
    for (number, r#type) in fields {
        if random.random_ratio(1, 3) {
            continue;
        }
        let r#type = if random.random_ratio(1, 10) { Type::String } else { *r#type };
        match r#type {
            Type::String | Type::Bytes => put_bytes(&mut bytes, *number, &text(random)),
            Type::Message => {
                let nested: Vec<Field> =
                    (1..5).map(|number| (number, if random.random() { Type::String } else { Type::Int64 })).collect();
                let nested = if random.random() { [(1, Type::String), (2, Type::Int64)].to_vec() } else { nested };
                let inner = request(random, &nested);
                put_bytes(&mut bytes, *number, &inner);
            }
            _ => {
                put_varint(&mut bytes, number << 3);
                let value = if random.random() { random.random_range(0..6) } else { random.random() };
                put_varint(&mut bytes, value);
            }
        }
    }
    bytes
}

/// How a call ends that gets these bytes.
async fn outcome(channel: &Channel, path: &str, bytes: Vec<u8>) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path: PathAndQuery = path.parse().unwrap();
    let answer = client.server_streaming(with("admin", Bytes::from(bytes)), path, Raw).await?;
    let mut messages = answer.into_inner();
    // A stream that goes on is left after a moment.
    while let Ok(next) = tokio::time::timeout(Duration::from_millis(300), messages.message()).await {
        if next?.is_none() {
            break;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_of_the_contract() {
    let folder = TempDir::new().unwrap();
    let writer = writer(&folder).await;
    writer.publish("person", &["a", "b"], 1).await;
    let channel = Channel::from_shared(format!("http://{}", writer.admin_address.unwrap())).unwrap();
    let channel = channel.connect().await.unwrap();
    let (mut random, calls) = (StdRng::seed_from_u64(7), calls());
    assert!(calls.len() >= 18, "{calls:?}");
    for (path, fields) in &calls {
        for number in 0..REQUESTS {
            let bytes = request(&mut random, fields);
            let answered = tokio::time::timeout(PATIENCE, outcome(&channel, path, bytes.clone())).await;
            let what = format!("{path}, request {number}: {bytes:02x?}");
            let Err(status) = answered.unwrap_or_else(|_| panic!("no answer to {what}")) else { continue };
            let is_of_contract = match status.code() {
                Code::InvalidArgument | Code::NotFound | Code::FailedPrecondition | Code::ResourceExhausted => true,
                // The library's words for a message above the limit, and for bytes that are no message.
                Code::OutOfRange => status.message().contains("limit"),
                Code::Internal => status.message().contains("decode"),
                _ => false,
            };
            assert!(is_of_contract, "{status:?} to {what}");
        }
    }
    let mut clients = Clients::of(&writer).await;
    let resume = proto::ResumeRequest { space: None };
    clients.lake.resume(with("admin", resume)).await.unwrap();
    let listed = clients.tables.list_tables(with("viewer", Default::default())).await.unwrap().into_inner();
    assert_eq!(listed.tables.len(), 1, "nothing was dropped: that has to be planned");
    writer.publish("person", &["c"], 2).await;
    writer.end().await;
}
