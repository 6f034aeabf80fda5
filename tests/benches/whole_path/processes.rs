//! What processes use, from `/proc`.

use std::collections::HashMap;
use std::fs;

use anyhow::Context;

/// Kernel ticks of a second; Linux shows a hundred to programs on every architecture.
const TICKS_A_SECOND: f64 = 100.0;

/// A process with its children, told apart by a name.
#[derive(Clone, Debug)]
pub struct Watched {
    /// For the table.
    pub name: String,
    /// Its id.
    pub id: u32,
    /// Whether it is one of the lake's services.
    pub is_service: bool,
}

/// CPU seconds of this process, without the parts that it has started.
pub fn own_cpu_seconds() -> anyhow::Result<f64> {
    Ok(Stat::read(std::process::id())?.ticks as f64 / TICKS_A_SECOND)
}

/// CPU seconds of a process and its children, those that have ended included.
pub fn cpu_seconds(id: u32) -> anyhow::Result<f64> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        // It may end while it is looked at.
        if let Ok(stat) = Stat::read(process) {
            children.entry(stat.parent).or_default().push(process);
        }
    }
    let mut ticks = 0;
    let mut open = vec![id];
    while let Some(process) = open.pop() {
        match Stat::read(process) {
            Ok(stat) => ticks += stat.ticks,
            Err(error) if process == id => return Err(error),
            Err(_) => {}
        }
        open.extend(children.remove(&process).unwrap_or_default());
    }
    Ok(ticks as f64 / TICKS_A_SECOND)
}

/// Highest resident memory of a process so far, bytes.
pub fn peak_memory(id: u32) -> anyhow::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kibibytes << 10)
}

/// CPU seconds of everything that ran on this machine, and of waiting for it: used and idle.
pub fn machine_seconds() -> anyhow::Result<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("no line in /proc/stat")?;
    let fields: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    let of = |places: &[usize]| places.iter().filter_map(|&place| fields.get(place)).sum::<f64>() / TICKS_A_SECOND;
    Ok((of(&[0, 1, 2, 5, 6, 7]), of(&[3, 4])))
}

struct Stat {
    parent: u32,
    ticks: u64,
}

impl Stat {
    fn read(process: u32) -> anyhow::Result<Self> {
        let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
        // The name of a program may hold anything, brackets too.
        let (_, rest) = text.rsplit_once(')').context("stat has no name")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |place: usize| fields.get(place - 3).context("stat is too short");
        let mut ticks = 0;
        // utime, stime, and both of children that have ended.
        for place in 14..=17 {
            ticks += field(place)?.parse::<u64>()?;
        }
        Ok(Self { parent: field(4)?.parse()?, ticks })
    }
}
