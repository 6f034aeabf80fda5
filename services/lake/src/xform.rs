//! `lake xform FILE…`: shows what a form becomes, one JSON line per file.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lake_hq::xform;
use lake_shared::error_chain::Chain;
use serde_json::json;

/// Converts the files; the exit code says whether all of them could be.
pub fn run(files: &[PathBuf]) -> ExitCode {
    match show(files, &mut BufWriter::new(io::stdout().lock())) {
        Ok(true) => ExitCode::SUCCESS,
        // Writing fails when the reader of the output has closed it.
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

/// Writes a line per file, in their order; whether all files could be converted.
fn show(files: &[PathBuf], out: &mut impl Write) -> io::Result<bool> {
    let mut all_converted = true;
    for file in files {
        // A name that is not UTF-8 is shown with replacement characters.
        let name = file.display().to_string();
        let line = match convert(file) {
            Ok(form) => json!({"file": name, "form": form}),
            Err(error) => {
                all_converted = false;
                json!({"file": name, "error": error})
            }
        };
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(all_converted)
}

fn convert(file: &Path) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    let xml = std::fs::read(file).map_err(|error| format!("cannot be read: {error}"))?;
    xform::form_json(&xml).map_err(|error| Chain(&error).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    use serde_json::Value;

    use super::*;

    /// The lines for files of the given names and contents, and whether all of them were converted.
    fn shown(files: &[(&[u8], &[u8])]) -> (Vec<Value>, bool) {
        let folder = tempfile::tempdir().unwrap();
        let paths: Vec<_> = files.iter().map(|(name, _)| folder.path().join(OsStr::from_bytes(name))).collect();
        for (path, (_, xml)) in paths.iter().zip(files) {
            std::fs::write(path, xml).unwrap();
        }
        let mut out = Vec::new();
        let all_converted = show(&paths, &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'));
        (text.lines().map(|line| serde_json::from_str(line).unwrap()).collect(), all_converted)
    }

    #[test]
    fn every_file_has_its_line() {
        let good: &[u8] = b"<data xmlns=\"http://example.org/f\">\n<a>1\n2</a></data>";
        let (lines, all_converted) = shown(&[(b"good.xml", good), (b"odd-\xff.xml", good)]);
        assert!(all_converted);
        assert_eq!(lines.len(), 2);
        for line in &lines {
            assert_eq!(line["form"]["a"], "1\n2");
            assert!(line.get("error").is_none());
        }
        assert!(lines[1]["file"].as_str().unwrap().ends_with("odd-\u{fffd}.xml"));
    }

    #[test]
    fn a_file_that_cannot_be_converted_does_not_stop_the_others() {
        let (lines, all_converted) =
            shown(&[(b"1", b"<data>"), (b"2", b"<data/>"), (b"3", b""), (b"4", b"<d a='1'/>")]);
        assert!(!all_converted);
        for (line, reason) in lines.iter().zip(["not well-formed", "cannot be converted", "not well-formed"]) {
            assert!(line["error"].as_str().unwrap().contains(reason), "{line}");
            assert!(line.get("form").is_none());
        }
        assert_eq!(lines[3]["form"], serde_json::json!({"@a": "1", "#type": "d"}));
    }

    #[test]
    fn what_is_no_readable_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut out = Vec::new();
        let files = [folder.path().to_owned(), folder.path().join("missing.xml")];
        assert!(!show(&files, &mut out).unwrap());
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.matches("\"error\":\"cannot be read: ").count(), 2, "{text}");
    }

    #[test]
    fn no_files_give_no_lines() {
        assert_eq!(shown(&[]), (vec![], true));
    }
}
