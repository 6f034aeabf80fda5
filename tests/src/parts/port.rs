//! Ports that tests running side by side, in threads or in processes, never fight over.
//!
//! A port is reserved by an advisory lock on a file named after it, held for as long as the [`Port`] lives, so that a part can be stopped and
//! started again on the same port. The range lies below the ephemeral ports, so no outgoing connection sits on one by chance.

use std::fs::{File, create_dir_all};
use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, bail};

const FIRST: u16 = 20_000;
const COUNT: u16 = 12_000;
/// Servers that open a second port at a fixed distance from the first use this one (SeaweedFS for gRPC).
const PAIR_DISTANCE: u16 = 10_000;

/// A reserved port of 127.0.0.1. Nothing listens on it until its owner does.
#[derive(Debug)]
pub struct Port {
    number: u16,
    /// The locks that keep the reservation; released on drop or when the process dies.
    _locks: Vec<File>,
}

impl Port {
    /// Reserves a free port.
    ///
    /// # Errors
    /// When no port of the range is free, or the lock folder in the temporary folder cannot be made.
    pub fn free() -> anyhow::Result<Self> {
        Self::reserve(COUNT, &[0])
    }

    /// Reserves a free port together with the one 10,000 above it.
    ///
    /// # Errors
    /// As [`Port::free`].
    pub fn free_pair() -> anyhow::Result<Self> {
        Self::reserve(COUNT - PAIR_DISTANCE, &[0, PAIR_DISTANCE])
    }

    /// Number of the TCP port.
    pub fn number(&self) -> u16 {
        self.number
    }

    fn reserve(count: u16, offsets: &[u16]) -> anyhow::Result<Self> {
        let user = std::fs::metadata("/proc/self").context("read the user of this process")?.uid();
        let folder = std::env::temp_dir().join(format!("commcare-lake-test-ports-{user}"));
        create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let start = RandomState::new().hash_one(std::process::id()) % u64::from(count);
        for step in 0..u64::from(count) {
            let number = FIRST + u16::try_from((start + step) % u64::from(count))?;
            let mut locks = Vec::new();
            for offset in offsets {
                let port = number + offset;
                let lock = File::create(folder.join(port.to_string())).context("open the lock file of a port")?;
                if lock.try_lock().is_err() || TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
                    break;
                }
                locks.push(lock);
            }
            if locks.len() == offsets.len() {
                return Ok(Self { number, _locks: locks });
            }
        }
        bail!("no free port from {FIRST} to {} on 127.0.0.1", FIRST + count - 1)
    }
}
