//! A helper process that answers each line of JSON with one: Python programs that are slow to start and are asked many things.
//!
//! It ends with its input, so it also ends when this process dies without dropping it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::NamedTempFile;

use super::waiting::poll;

const ANSWER_DEADLINE: Duration = Duration::from_secs(300);
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const TAIL_LINES: usize = 30;

/// The process and the two ends of the talk.
#[derive(Debug)]
pub(crate) struct Dialogue {
    name: &'static str,
    child: Child,
    questions: Option<ChildStdin>,
    answers: Receiver<String>,
    log: NamedTempFile,
}

impl Dialogue {
    /// Starts the process and waits for its first word, `{"done": ...}`, which says that it is ready.
    pub(crate) fn start(name: &'static str, mut command: Command) -> anyhow::Result<Self> {
        let log = NamedTempFile::with_prefix("lake-test-dialogue-")?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log.reopen()?).process_group(0);
        let mut child = command.spawn().with_context(|| format!("start {name}"))?;
        let output = child.stdout.take().context("a piped output is there")?;
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let questions = child.stdin.take();
        let mut dialogue = Self { name, child, questions, answers, log };
        dialogue.answer::<Value>().context("wait until it is ready")?;
        Ok(dialogue)
    }

    /// Id of the process on the other side.
    pub(crate) fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Asks and waits for the answer. An error is either the process's own answer, or tells how its log ends.
    pub(crate) fn ask<T: DeserializeOwned>(&mut self, question: &Value) -> anyhow::Result<T> {
        let Some(questions) = &mut self.questions else { bail!("{} has ended", self.name) };
        let asked = writeln!(questions, "{question}").and_then(|()| questions.flush());
        if let Err(error) = asked {
            bail!("{} takes no more questions ({error}); its log ends:\n{}", self.name, self.log_tail());
        }
        self.answer().with_context(|| format!("{} was asked {question}", self.name))
    }

    fn answer<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let line = match self.answers.recv_timeout(ANSWER_DEADLINE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                self.kill();
                bail!("{} did not answer within {ANSWER_DEADLINE:?}; its log ends:\n{}", self.name, self.log_tail())
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!("{} has ended; its log ends:\n{}", self.name, self.log_tail())
            }
        };
        let mut answer: Value = serde_json::from_str(&line).with_context(|| format!("answer {line:?}"))?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{error}");
        }
        serde_json::from_value(answer["done"].take()).context("an answer of another form")
    }

    fn log_tail(&self) -> String {
        let log = std::fs::read(self.log.path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Ends the process and its children at once.
    fn kill(&mut self) {
        self.questions = None;
        if matches!(self.child.try_wait(), Ok(None)) {
            let group = format!("-{}", self.child.id());
            let _ = Command::new("sh").args(["-c", r#"kill -s KILL -- "$1""#, "kill", &group]).status();
            let _ = self.child.wait();
        }
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        self.questions = None;
        if poll(STOP_DEADLINE, || self.child.try_wait().ok().flatten()).is_none() {
            self.kill();
        }
    }
}
