//! Records that grow until no message can hold them, on the whole path with the servers' defaults: the lake shows the newest state, however large, and
//! marks the row where it cannot.
#![allow(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_nats::jetstream;
use lake_shared::escaped_names;
use lake_shared::identity::{Kind, Space, TableKey};
use lake_simulated_hq::turn::{ChangeMessage, Mutation, Table, Turn};
use lake_tests::parts::wait_until;
use lake_tests::readers::Snapshot;
use lake_tests::system::{LakeServices, RealParts};
use serde_json::{Value, json};

const WITHIN: Duration = Duration::from_secs(240);
const DOMAIN: &str = "pub-cases";
const FORM: &str = "hq-oversize-stale";
const XMLNS: &str = "http://openrosa.org/formdesigner/PUB-BULK";
const CASE: &str = "case-with-photo";

/// Text that hardly compresses, for a seed always the same.
fn noise(seed: u64, length: usize) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let digit = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(DIGITS[(state >> 58) as usize])
    };
    (0..length).map(digit).collect()
}

/// The XML of a form that updates many cases, of about so many bytes.
fn form_xml(state: &str, bytes: usize) -> String {
    let mut xml = format!(
        r#"<?xml version="1.0"?><data xmlns="{XMLNS}" uiVersion="1" version="1" name="bulk"><state>{state}</state>"#
    );
    for number in 0_u64.. {
        if xml.len() >= bytes {
            break;
        }
        let photo = noise(number, 800);
        xml += &format!(
            r#"<case xmlns="http://commcarehq.org/case/transaction/v2" case_id="bulk-{number}" user_id="worker-1" date_modified="2026-03-01T00:00:00.000Z"><update><photo>{photo}</photo></update></case>"#
        );
    }
    xml + r#"<meta xmlns="http://openrosa.org/jr/xforms"><timeEnd>2026-03-01T00:00:00.000Z</timeEnd><userID>worker-1</userID><instanceID>hq-oversize-stale</instanceID></meta></data>"#
}

fn announced(topic: &'static str, id: &str, document_type: &str, subtype: &str) -> ChangeMessage {
    let change = json!({"document_id": id, "document_rev": null, "data_source_type": "sql", "data_source_name": topic,
        "document_type": document_type, "document_subtype": subtype, "domain": DOMAIN, "is_deletion": false,
        "publish_timestamp": "2026-03-01T10:00:00.000001Z", "attempts": 0, "associated_document_id": null,
        "original_publication_datetime": "2026-03-01T10:00:00.000001Z"});
    ChangeMessage { topic, key: Some(id.to_owned()), value: change.to_string().into_bytes() }
}

/// The form is submitted or edited: its state, and the size of its XML. An edit has a new blob.
fn form_turn(number: usize, bytes: usize) -> Turn {
    let (state, key) = (format!("state-{number}"), format!("{FORM}-blob-{number}"));
    let content = form_xml(&state, bytes).into_bytes();
    let now = format!("2026-03-01T10:0{number}:00.500000Z");
    let row = json!({"form_id": FORM, "domain": DOMAIN, "xmlns": XMLNS, "user_id": "worker-1", "received_on": "2026-03-01T10:00:00.000000Z",
        "server_modified_on": now, "auth_context": "{}", "openrosa_headers": "{}", "partial_submission": false, "state": 1,
        "initial_processing_complete": true});
    let blob = json!({"domain": DOMAIN, "parent_id": FORM, "name": "form.xml", "key": key, "type_code": 2,
        "content_length": content.len(), "created_on": now});
    let mutations = vec![
        Mutation::PutBlob { key, content, gzip: false },
        Mutation::put(Table::Form, row),
        Mutation::remove(Table::BlobMeta, json!({"parent_id": FORM})),
        Mutation::put(Table::BlobMeta, blob),
    ];
    Turn { mutations, messages: vec![announced("form-sql", FORM, "XFormInstance", XMLNS)] }
}

fn case_turn(number: usize, photo: &str) -> Turn {
    let now = format!("2026-03-01T11:0{number}:00.000000Z");
    let row = json!({"case_id": CASE, "domain": DOMAIN, "type": "person", "name": "Asha", "owner_id": "worker-1", "modified_on": now,
        "server_modified_on": now, "modified_by": "worker-1", "closed": false, "deleted": false, "case_json": json!({"photo": photo}).to_string()});
    let messages = vec![announced("case-sql", CASE, "CommCareCase", "person")];
    Turn { mutations: vec![Mutation::put(Table::Case, row)], messages }
}

/// A lake in a folder.
struct Lake {
    parts: RealParts,
    services: LakeServices,
    root: PathBuf,
}

impl Lake {
    async fn start() -> anyhow::Result<Self> {
        let parts = RealParts::start().await?;
        let root = parts.folder.path().join("tables");
        let services = LakeServices::start(&parts, 1, 2, root.to_str().unwrap()).await?;
        Ok(Self { parts, services, root })
    }

    /// HQ changes, and the lake follows; the seconds that took.
    async fn follow(&self, turn: &Turn) -> anyhow::Result<f64> {
        self.parts.hq.apply(turn).await?;
        let began = Instant::now();
        self.parts.drained(WITHIN).await?;
        Ok(began.elapsed().as_secs_f64())
    }

    /// The only row of a table, by source path.
    async fn row(&self, kind: Kind, document_type: &str) -> anyhow::Result<BTreeMap<String, String>> {
        let space = Space { domain: DOMAIN.into(), kind };
        let table = TableKey { space, document_type: document_type.into() };
        let folder = self.root.join(escaped_names::table_path(&table));
        let snapshot = Snapshot::read(&folder, None).await?.unwrap_or_else(|| panic!("{} is there", folder.display()));
        anyhow::ensure!(snapshot.rows.len() == 1, "{} rows", snapshot.rows.len());
        let cells = snapshot.rows[0].iter();
        Ok(cells.map(|(name, cell)| (snapshot.sources[name].clone(), cell.clone())).collect())
    }

    /// The form as the lake has it: its state, the number of its case blocks and of their bytes, and the mark.
    async fn form(&self) -> anyhow::Result<(String, usize, usize, Option<String>)> {
        let row = self.row(Kind::Form, "PUB-BULK").await?;
        let cases: Vec<Value> = serde_json::from_str(&row["/form/case"])?;
        let photos = cases.iter().enumerate().map(|(number, case)| {
            let photo = case["update"]["photo"].as_str().unwrap();
            assert_eq!(photo, noise(number as u64, 800), "case block {number}");
            photo.len()
        });
        Ok((row["/form/state"].clone(), cases.len(), photos.sum(), row.get("+_lake_incomplete").cloned()))
    }

    /// Nothing is left of what travelled.
    async fn no_parts_are_left(&self) -> anyhow::Result<()> {
        let context = jetstream::new(async_nats::connect(self.parts.nats.url()).await?);
        wait_until("the parts are dropped", WITHIN, async || {
            let mut left = 0;
            for stream in ["LAKE_RECORDS_PARTS", "LAKE_ROWS_PARTS"] {
                let state = context.get_stream(stream).await?.cached_info().state.clone();
                anyhow::ensure!(state.last_sequence > 0, "nothing travelled in parts on {stream}");
                left += state.messages;
            }
            Ok(left == 0)
        })
        .await
    }

    /// Most memory that each service has had so far, MiB.
    fn peaks(&mut self) -> String {
        let peak = |id: u32| {
            let status = std::fs::read_to_string(Path::new("/proc").join(id.to_string()).join("status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok()
        };
        let services = self.services.running.iter_mut();
        let peaks = services.map(|(name, running)| {
            let kilobytes = running.service.process().id().and_then(peak).unwrap_or_default();
            format!("{name} {} MiB", kilobytes / 1_024)
        });
        peaks.collect::<Vec<_>>().join(", ")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_grows_is_shown_in_its_newest_state_or_marked() -> anyhow::Result<()> {
    let mut lake = Lake::start().await?;
    for (number, bytes) in [(1, 100_000), (2, 4_000_000), (3, 20_000_000)] {
        let seconds = lake.follow(&form_turn(number, bytes)).await?;
        println!("a form of {bytes} bytes was in the lake after {seconds:.1} s; peaks: {}", lake.peaks());
        let (state, blocks, photo_bytes, mark) = lake.form().await?;
        assert_eq!((state, mark), (format!("state-{number}"), None));
        assert_eq!(blocks * 800, photo_bytes);
        assert!(photo_bytes > bytes * 3 / 4, "{photo_bytes} of {bytes}");
    }
    let photo = noise(77, 3_000_000);
    for (number, photo) in [(1, "small"), (2, &*photo)] {
        lake.follow(&case_turn(number, photo)).await?;
        let row = lake.row(Kind::Case, "person").await?;
        assert!(row["/photo"] == photo, "{} bytes", row["/photo"].len());
        assert_eq!(row.get("+_lake_incomplete"), None);
    }
    lake.no_parts_are_left().await?;
    assert_eq!(lake.parts.quarantined().await?, BTreeMap::new());

    // Above hq.blobs.size_max_bytes: the answers stay, and are marked as those of an earlier state.
    lake.follow(&form_turn(4, 40_000_000)).await?;
    let (state, _, _, mark) = lake.form().await?;
    assert_eq!((state.as_str(), mark.as_deref()), ("state-3", Some("form_xml_too_large")));
    assert_eq!(lake.parts.quarantined().await?, BTreeMap::from([("form_xml_too_large".to_owned(), 1)]));
    // Small again, it is whole again.
    lake.follow(&form_turn(5, 50_000)).await?;
    let (state, _, _, mark) = lake.form().await?;
    assert_eq!((state.as_str(), mark), ("state-5", None));
    lake.services.end()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_records_survive_the_ends_of_services() -> anyhow::Result<()> {
    let mut lake = Lake::start().await?;
    lake.follow(&form_turn(1, 100_000)).await?;
    for (number, victim) in [(2, "fetcher-1"), (3, "enricher-1"), (4, "writer-1"), (5, "enricher-2")] {
        lake.parts.hq.apply(&form_turn(number, 12_000_000)).await?;
        // While it reads, makes or commits the record, or before: wherever it is then.
        tokio::time::sleep(Duration::from_millis(150 * number as u64)).await;
        lake.services.get(victim)?.kill_and_restart().await?;
        lake.parts.drained(WITHIN).await?;
        let (state, blocks, photo_bytes, mark) = lake.form().await?;
        assert_eq!((state, mark), (format!("state-{number}"), None), "after the end of {victim}");
        assert!(blocks * 800 == photo_bytes && photo_bytes > 9_000_000);
    }
    assert_eq!(lake.parts.quarantined().await?, BTreeMap::new());
    lake.services.end()
}
