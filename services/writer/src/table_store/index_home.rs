//! Where the key indexes are when no folder is configured: a folder of the user for what outlives a process, so that a start finds them again. Each lake
//! has its own there.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use lake_shared::escaped_names;

/// The folder for the key indexes of the lake at this address; `None` where there is no place that outlives the process and can be written.
pub fn default_index_folder(root: &str) -> Option<PathBuf> {
    let folder = index_folder_of(root, |name| std::env::var_os(name))?;
    match ensure_writable(&folder) {
        Ok(()) => Some(folder),
        Err(error) => {
            tracing::warn!(folder = %folder.display(), %error, "key indexes cannot be kept there; set tables.index_folder");
            None
        }
    }
}

/// Below systemd's folder for the service, else below the one that the XDG convention gives a user.
fn index_folder_of(root: &str, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    // systemd names several folders where the unit does.
    let of_service = variable("STATE_DIRECTORY").and_then(|folders| std::env::split_paths(&folders).next());
    let of_user = variable("XDG_STATE_HOME").map(PathBuf::from).filter(|folder| folder.is_absolute());
    let of_home = || Some(PathBuf::from(variable("HOME")?).join(".local/state"));
    let home = of_service.or_else(|| Some(of_user.or_else(of_home)?.join("commcare-lake")));
    let home = home.filter(|folder| folder.is_absolute())?;
    Some(home.join("index").join(escaped_names::fingerprint(root)))
}

/// Makes the folder and writes something there, as all else may be allowed in a folder of a read-only volume.
fn ensure_writable(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    let probe = folder.join("write-probe");
    std::fs::write(&probe, [])?;
    std::fs::remove_file(probe)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn folder(root: &str, variables: &[(&str, &str)]) -> Option<PathBuf> {
        let value =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value));
        index_folder_of(root, value)
    }

    #[test]
    fn the_folder_is_the_same_at_every_start_and_each_lake_has_its_own() {
        let home = [("HOME", "/home/a")];
        let made = folder("file:///lake", &home).unwrap();
        assert_eq!(Some(&made), folder("file:///lake", &home).as_ref());
        assert_ne!(Some(&made), folder("s3://lake/", &home).as_ref());
        assert!(made.starts_with("/home/a/.local/state/commcare-lake/index"), "{}", made.display());
        let state = [("HOME", "/home/a"), ("XDG_STATE_HOME", "/state"), ("STATE_DIRECTORY", "/var/lib/lake:/other")];
        assert!(folder("file:///lake", &state[..2]).unwrap().starts_with("/state/commcare-lake/index"));
        assert!(folder("file:///lake", &state).unwrap().starts_with("/var/lib/lake/index"));
    }

    #[test]
    fn a_folder_that_moves_with_the_process_is_none() {
        assert_eq!(folder("file:///lake", &[]), None);
        assert_eq!(folder("file:///lake", &[("HOME", "")]), None);
        assert_eq!(folder("file:///lake", &[("HOME", "here")]), None);
        let relative = [("XDG_STATE_HOME", "here"), ("HOME", "/home/a")];
        assert!(folder("file:///lake", &relative).unwrap().starts_with("/home/a"));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_told() {
        let home = tempfile::tempdir().unwrap();
        ensure_writable(&home.path().join("a/b")).unwrap();
        std::fs::write(home.path().join("file"), []).unwrap();
        assert!(ensure_writable(&home.path().join("file/b")).is_err());
        assert_eq!(std::fs::read_dir(home.path().join("a/b")).unwrap().count(), 0, "nothing is left behind");
    }
}
