//! A child process that never outlives the test.
//!
//! Each child leads a process group of its own. Beside it runs a guard, a shell that waits on a pipe held by this process: when the pipe
//! closes without a word (a crash, an abort, Ctrl-C, SIGKILL of the test), the guard ends the group and removes its data. On the ordinary path,
//! `Drop` does both. Signals go only to groups whose leader has not been reaped, so a reused process id is never hit.

use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::waiting::poll;

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(10);
/// How much of a log an error carries.
const TAIL_LINES: usize = 30;

const GUARD: &str = r#"
group=$1 signal=$2
shift 2
read -r word
case "$word" in
  done) exit ;;
  kill) kill -s KILL -- "-$group"; exit ;;
esac
kill -s "$signal" -- "-$group"
tries=0
while kill -s 0 -- "-$group"; do
  tries=$((tries + 1))
  if [ $tries -gt 50 ]; then kill -s KILL -- "-$group"; break; fi
  sleep 0.1
done
rm -rf -- "$@"
"#;

/// Says whether a started server can be used; asked repeatedly.
pub(super) type Probe = Box<dyn Fn() -> bool + Send + Sync>;

/// A server or service started by a test. It can be stopped and started again on the same ports and data.
pub struct Process {
    name: String,
    command: Command,
    ready: Probe,
    log: PathBuf,
    /// What ends the process in good order.
    stop_signal: &'static str,
    /// Removed by the guard if this process dies without dropping; otherwise their owners remove them.
    leftovers: Vec<PathBuf>,
    running: Option<Running>,
}

struct Running {
    child: Child,
    guard: Child,
}

impl fmt::Debug for Process {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Process").field("name", &self.name).field("id", &self.id()).finish_non_exhaustive()
    }
}

impl Process {
    /// Starts `command` with its output appended to `log`, and waits until `ready`.
    pub(super) fn start(
        name: &str,
        mut command: Command,
        log: &Path,
        stop_signal: &'static str,
        leftovers: Vec<PathBuf>,
        ready: Probe,
    ) -> anyhow::Result<Self> {
        let output = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let (name, log) = (name.to_owned(), log.to_owned());
        let mut process = Self { name, command, ready, log, stop_signal, leftovers, running: None };
        process.start_again()?;
        Ok(process)
    }

    /// The process id, if it was started and not yet seen to have ended.
    pub fn id(&self) -> Option<u32> {
        self.running.as_ref().map(|running| running.child.id())
    }

    /// Everything the process wrote to its standard output and error so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of [`Process::log`], for errors.
    pub(super) fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Starts the process after it has ended, with the same arguments, and waits until it is ready.
    ///
    /// # Errors
    /// When it runs already, cannot be started, ends at once, or is not ready within a minute; with the end of its log.
    pub fn start_again(&mut self) -> anyhow::Result<()> {
        if self.exit_status()?.is_none() && self.running.is_some() {
            bail!("{} runs already", self.name);
        }
        let program = self.command.get_program().to_string_lossy().into_owned();
        let child = self.command.spawn().with_context(|| format!("start {} ({program})", self.name))?;
        let guard = Command::new("sh")
            .args(["-c", GUARD, "guard"])
            .arg(child.id().to_string())
            .arg(self.stop_signal)
            .args(&self.leftovers)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn();
        let guard = match guard {
            Ok(guard) => guard,
            Err(error) => {
                let mut child = child;
                let _ = child.kill();
                let _ = child.wait();
                return Err(error).context("start the shell that guards a part");
            }
        };
        self.running = Some(Running { child, guard });
        self.wait_until_ready()
    }

    fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        let outcome = poll(START_DEADLINE, || match self.exit_status() {
            Ok(None) => (self.ready)().then_some(Ok(())),
            Ok(Some(status)) => Some(Err(format!("ended at once ({status})"))),
            Err(error) => Some(Err(format!("{error:#}"))),
        });
        match outcome {
            Some(Ok(())) => Ok(()),
            Some(Err(trouble)) => bail!("{} {trouble}; its log ends:\n{}", self.name, self.log_tail()),
            None => {
                let tail = self.log_tail();
                let _ = self.kill_hard();
                bail!("{} was not ready within {} s; its log ends:\n{tail}", self.name, START_DEADLINE.as_secs())
            }
        }
    }

    /// How the process ended, or `None` while it runs. After the end has been reported once, the process counts as not started.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn exit_status(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        let Some(running) = &mut self.running else { return Ok(None) };
        let status = running.child.try_wait().with_context(|| format!("ask for the state of {}", self.name))?;
        if status.is_some()
            && let Some(running) = self.running.take()
        {
            dismiss(running.guard, "done");
        }
        Ok(status)
    }

    /// Kills the process and its children with SIGKILL, as a power failure would. Nothing happens if it does not run.
    ///
    /// # Errors
    /// When the dead process cannot be collected.
    pub fn kill_hard(&mut self) -> anyhow::Result<()> {
        let Some(Running { mut child, guard }) = self.running.take() else { return Ok(()) };
        // The leader stays unreaped until the guard has reached the rest of the group.
        let _ = child.kill();
        dismiss(guard, "kill");
        child.wait().with_context(|| format!("collect {}", self.name))?;
        Ok(())
    }

    /// Asks the process to end in good order (SIGTERM, for Postgres SIGQUIT) and waits up to `patience`.
    ///
    /// # Errors
    /// When it does not run, or has not ended in time (it is killed then); with the end of its log.
    pub fn terminate_within(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        if self.running.is_none() {
            bail!("{} does not run", self.name);
        }
        self.signal(self.stop_signal)?;
        match poll(patience, || self.exit_status().transpose()) {
            Some(status) => status,
            None => {
                let tail = self.log_tail();
                self.kill_hard()?;
                bail!("{} did not end within {patience:?} of being asked to; its log ends:\n{tail}", self.name)
            }
        }
    }

    /// [`Process::terminate_within`] with the patience of ten seconds that parts get.
    ///
    /// # Errors
    /// As there.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.terminate_within(STOP_DEADLINE).map(drop)
    }

    /// Kills the process hard and starts it again on the same ports and data.
    ///
    /// # Errors
    /// As [`Process::start_again`].
    pub fn restart(&mut self) -> anyhow::Result<()> {
        self.kill_hard()?;
        // Children of Postgres are in sessions of their own, so they may outlive it for a moment and are in the way of the next one.
        let mut outcome = Ok(());
        poll(STOP_DEADLINE, || {
            outcome = self.start_again();
            let is_in_the_way = outcome.as_ref().is_err_and(|error| error.to_string().contains("is still in use"));
            (!is_in_the_way).then_some(())
        });
        outcome
    }

    /// Freezes the process (SIGSTOP): it keeps its connections and answers nothing.
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn suspend(&mut self) -> anyhow::Result<()> {
        self.signal("STOP")
    }

    /// Lets a suspended process go on (SIGCONT).
    ///
    /// # Errors
    /// When the signal cannot be sent.
    pub fn resume(&mut self) -> anyhow::Result<()> {
        self.signal("CONT")
    }

    fn signal(&self, signal: &str) -> anyhow::Result<()> {
        let Some(id) = self.id() else { bail!("{} does not run", self.name) };
        let sent = Command::new("sh")
            .args(["-c", r#"kill -s "$1" -- "$2""#, "signal", signal, &id.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
        if !sent.success() {
            bail!("cannot send SIG{signal} to {} (process {id})", self.name);
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Postgres leaves shared memory behind when it is killed hard; the others lose nothing worth keeping.
        if self.stop_signal == "QUIT" && self.running.is_some() {
            let _ = self.terminate_within(STOP_DEADLINE);
        }
        let _ = self.kill_hard();
    }
}

/// Tells a guard what to do and waits until it has.
fn dismiss(mut guard: Child, word: &str) {
    if let Some(mut pipe) = guard.stdin.take() {
        let _ = writeln!(pipe, "{word}");
    }
    let _ = guard.wait();
}
