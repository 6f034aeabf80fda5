//! What the services write into their logs while nothing happens.

use std::collections::BTreeMap;
use std::time::Duration;

use lake_simulated_hq::life::{Life, LifeOptions};
use lake_tests::system::{LakeServices, RealParts};

/// How long nothing happens.
const QUIET: Duration = Duration::from_secs(30);
/// Lines that all services may write in that time together; they are started with `log_filter = "info"`.
const LINES_MAX: usize = 3;

/// Lines of each log so far.
fn lines(services: &LakeServices) -> BTreeMap<String, Vec<String>> {
    let of = |log: String| log.lines().map(str::to_owned).collect();
    services.running.iter().map(|(name, running)| (name.clone(), of(running.service.log()))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_lake_says_next_to_nothing() -> anyhow::Result<()> {
    let parts = RealParts::start().await?;
    let mut services = LakeServices::start(&parts, 1, 1, "s3://lake/tables").await?;
    let mut life = Life::new(LifeOptions { seed: 21, domains: 2, ..LifeOptions::default() });
    let opening = life.opening();
    parts.hq.apply(&opening).await?;
    parts.play(&mut life, 300, |_| {}).await?;
    parts.hq.apply(&life.settle()).await?;
    parts.drained(Duration::from_secs(120)).await?;
    // What is left to do after the last commits.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let before = lines(&services);
    tokio::time::sleep(QUIET).await;
    let mut said = Vec::new();
    for (name, lines) in lines(&services) {
        let new = lines.iter().skip(before.get(&name).map_or(0, Vec::len));
        said.extend(new.map(|line| format!("{name}: {line}")));
    }
    println!("{} lines in {} s", said.len(), QUIET.as_secs());
    anyhow::ensure!(said.len() <= LINES_MAX, "{} lines in {} s:\n{}", said.len(), QUIET.as_secs(), said.join("\n"));
    services.end()
}
