//! When a process dies, and starting one that does.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, bail};
use lake_test_kit::watcher::Step;
use object_store::path::Path as Key;

/// What a store of this test reports its requests to.
pub type Report = Arc<dyn Fn(Step, &Key) + Send + Sync>;

/// The signal that ends an aborted process.
const SIGABRT: i32 = 6;

/// On which side of a writing request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Nothing of it has happened.
    Before,
    /// A put into a log has written half a file under its temporary name.
    Half,
    /// It has taken effect, and nobody has been told.
    After,
}

impl When {
    pub const ALL: [Self; 3] = [Self::Before, Self::Half, Self::After];

    const fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::Half => "half",
            Self::After => "after",
        }
    }
}

/// The end of a process.
#[derive(Clone, Copy, Debug)]
pub struct Death {
    pub when: When,
    /// At which of the requests that [`Death::when`] is about, from 1.
    pub number: u64,
}

impl fmt::Display for Death {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {}", self.when.name(), self.number)
    }
}

impl FromStr for Death {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (when, number) = text.split_once(' ').context("a word and a number")?;
        let when = When::ALL.into_iter().find(|known| known.name() == when).context("before, half or after")?;
        Ok(Self { when, number: number.parse()? })
    }
}

impl Death {
    /// Lets this process die when its time has come.
    pub fn report(self) -> Report {
        let met = AtomicU64::new(0);
        Arc::new(move |step: Step, path: &Key| {
            let is_meant = match (self.when, step) {
                (When::Before, Step::Write | Step::Delete) | (When::After, Step::Done) => true,
                (When::Half, Step::Write) => path.as_ref().contains("/_delta_log/"),
                _ => false,
            };
            if !is_meant || met.fetch_add(1, Ordering::Relaxed) + 1 != self.number {
                return;
            }
            if self.when == When::Half {
                leave_half(path);
            }
            std::process::abort();
        })
    }

    /// Starts a test of this program as a process that is told its death by an environment variable. Whether it died of it.
    pub fn happens(self, test: &str, environment: &[(&str, &OsStr)], told: &str) -> anyhow::Result<bool> {
        let output = Command::new("sh")
            // Hundreds of memory dumps help nobody.
            .args(["-c", r#"ulimit -c 0; exec "$0" "$@""#])
            .arg(std::env::current_exe()?)
            .args(["--exact", test, "--nocapture"])
            .envs(environment.iter().copied())
            .env(told, self.to_string())
            .stdin(Stdio::null())
            .output()
            .context("start a process that dies")?;
        if output.status.success() {
            return Ok(false);
        }
        if output.status.signal() != Some(SIGABRT) {
            let said = [output.stdout, output.stderr].concat();
            bail!("the process did not die, but failed ({}):\n{}", output.status, String::from_utf8_lossy(&said));
        }
        Ok(true)
    }
}

/// What the store leaves of a file when the process dies while it writes it.
fn leave_half(path: &Key) {
    let file = PathBuf::from(format!("/{path}"));
    let Some(folder) = file.parent() else { return };
    // Whatever fails here makes it a crash before the put.
    let _ = fs::create_dir_all(folder);
    let _ = fs::write(folder.join(".lake#1"), "{\"commitInfo\":{\"time");
}
