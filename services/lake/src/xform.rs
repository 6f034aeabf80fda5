//! `lake xform FILE…`: shows what a form becomes, one JSON line per file.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lake_hq::xform;
use lake_shared::error_chain::Chain;
use serde_json::json;

/// Converts the files; the exit code says whether all of them could be.
pub fn run(files: &[PathBuf]) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let mut failed = false;
    for file in files {
        let converted = convert(file);
        failed |= converted.is_err();
        let line = match converted {
            Ok(form) => json!({"file": file.display().to_string(), "form": form}),
            Err(error) => json!({"file": file.display().to_string(), "error": error}),
        };
        if writeln!(out, "{line}").is_err() {
            // Nobody reads any more.
            return ExitCode::FAILURE;
        }
    }
    if failed || out.flush().is_err() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn convert(file: &Path) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let xml = std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    xform::form_json(&xml).map_err(|error| Chain(&error).to_string())
}
