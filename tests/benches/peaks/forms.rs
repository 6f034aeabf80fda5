//! Forms with large XML, each with many case blocks, as an import sends them.

use std::fmt::Write as _;

use lake_simulated_hq::turn::{ChangeMessage, Mutation, Table};
use lake_tests::system::RealParts;
use serde_json::json;

use super::cases::message;
use super::words;

/// Forms that are made at once.
const PORTION: u64 = 16;
/// Bytes of the answers of one case block.
const BLOCK_BYTES: usize = 2_000;

/// Puts so many forms into HQ, each with XML of so many bytes; the answer are the messages about them.
pub async fn fill(parts: &RealParts, forms: u64, bytes: usize) -> anyhow::Result<Vec<ChangeMessage>> {
    let numbers: Vec<u64> = (0..forms).collect();
    for portion in numbers.chunks(usize::try_from(PORTION)?) {
        let mutations: Vec<Mutation> = portion.iter().flat_map(|number| form(*number, bytes)).collect();
        parts.hq.blobs.put(&mutations).await?;
        parts.hq.postgres.apply(&mutations).await?;
    }
    Ok(numbers
        .into_iter()
        .map(|number| message("form-sql", "http://openrosa.org/formdesigner/import", &id(number)))
        .collect())
}

fn id(number: u64) -> String {
    format!("form-{number}")
}

fn form(number: u64, bytes: usize) -> [Mutation; 3] {
    let (id, content, now) = (id(number), xml(number, bytes), "2026-01-05T10:11:12.240000Z");
    let row = json!({"form_id": id, "domain": "peaks", "xmlns": "http://openrosa.org/formdesigner/import", "state": 1, "received_on": now,
        "auth_context": "{}", "openrosa_headers": "{}", "partial_submission": false, "initial_processing_complete": true});
    let blob = json!({"domain": "peaks", "parent_id": id, "name": "form.xml", "key": id, "type_code": 2, "content_length": content.len(),
        "compressed_length": content.len() / 4, "created_on": now});
    [
        Mutation::PutBlob { key: id, content: content.into_bytes(), gzip: true },
        Mutation::put(Table::Form, row),
        Mutation::put(Table::BlobMeta, blob),
    ]
}

fn xml(number: u64, bytes: usize) -> String {
    let mut xml = String::from("<data xmlns=\"http://openrosa.org/formdesigner/import\">");
    let mut block = 0;
    while xml.len() < bytes {
        let answers = words::text(number << 20 | block, BLOCK_BYTES);
        // Writing to a String cannot fail.
        let _ = write!(xml, "<case case_id=\"{number}-{block}\"><update>");
        for (place, answer) in answers.as_bytes().chunks(100).enumerate() {
            let _ = write!(xml, "<answer_{place}>{}</answer_{place}>", String::from_utf8_lossy(answer));
        }
        xml.push_str("</update></case>");
        block += 1;
    }
    xml.push_str("</data>");
    xml
}
