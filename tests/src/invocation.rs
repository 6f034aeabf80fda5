//! A binary of this workspace that is run to its end, as an operator would on a command line.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::parts::binary_path;

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it printed to standard output.
    pub stdout: String,
    /// What it printed to standard error.
    pub stderr: String,
}

/// Runs a binary with these arguments and variables. Variables of the caller that begin with `LAKE_` are not handed on.
///
/// # Errors
/// When the binary is not built or cannot be started.
pub fn run(binary: &str, arguments: &[&str], variables: &[(&str, &str)]) -> anyhow::Result<Outcome> {
    let mut command = Command::new(binary_path(binary)?);
    for (key, _) in std::env::vars_os().filter(|(key, _)| key.as_encoded_bytes().starts_with(b"LAKE_")) {
        command.env_remove(key);
    }
    command.args(arguments).envs(variables.iter().copied()).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("run {binary}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok(Outcome { code: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) })
}

/// `<binary> check-config --config <file>`.
///
/// # Errors
/// As [`run`], and when the path is not UTF-8.
pub fn check_config(binary: &str, file: &Path, variables: &[(&str, &str)]) -> anyhow::Result<Outcome> {
    let file = file.to_str().context("the path of the configuration is not UTF-8")?;
    run(binary, &["check-config", "--config", file], variables)
}
