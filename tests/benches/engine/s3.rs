//! Commits to an S3 store on this machine.

use std::time::Instant;

use anyhow::Context;
use lake_tests::parts;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};

use super::arguments::Arguments;
use super::load::{Load, Loaded};
use super::made::MadeTables;
use super::measure::Spread;
use super::phase::Phase;
use super::table;
use super::upsert::{self, Upserts, keys_within, milliseconds};

const BUCKET: &str = "lake";
const PUTS: u32 = 50;

/// Measures all sizes with all numbers of keys.
pub fn report(arguments: &Arguments, made: &MadeTables) -> anyhow::Result<()> {
    let server = parts::ObjectStore::start()?;
    server.create_bucket(BUCKET)?;
    let put = put_times(&server)?;
    let (median, p95) = (table::figure(put.median), table::figure(put.p95));
    upsert::begin(&format!("Upsert on S3 (SeaweedFS; one put of 1 KiB: median {median} ms, p95 {p95} ms)"));
    for rows in &arguments.s3_rows {
        for keys in &arguments.s3_keys {
            let keys = keys_within(*keys, *rows);
            let mut home = made.empty("s3")?;
            home.remote_root = Some(format!("s3://{BUCKET}/{rows}-{keys}"));
            home.environment = server.environment();
            let load = Load { rows: *rows, batch: arguments.load_batch, counted: false };
            let _: Loaded = Phase::Load(load).run_on(&home)?;
            let repeats = arguments.repeats_of(keys);
            upsert::report_on(&home, Upserts { rows: *rows, keys, new_percent: 0, repeats, first_round: 1 })?;
            home.remove()?;
        }
    }
    Ok(())
}

/// What one request costs there.
fn put_times(server: &parts::ObjectStore) -> anyhow::Result<Spread> {
    let client = server.client(BUCKET)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut times = Vec::new();
        for number in 0..PUTS {
            let began = Instant::now();
            let content = PutPayload::from(vec![0_u8; 1024]);
            client.put(&Path::from(format!("put/{number}")), content).await.context("put an object")?;
            times.push(milliseconds(began));
        }
        Ok(Spread::of(&times))
    })
}
