//! The log of a table, entry by entry, by the rules that readers rely on without checking them.

use std::collections::BTreeMap;
use std::fs;
use std::ops::AddAssign;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

/// The files of a table: path to the place of the deletion vector, empty for none.
type Files = BTreeMap<String, String>;

/// Replays the log from its first entry: a file leaves only as it is there, with its deletion vector; none enters that is there already or
/// has no rows left; a file that gets another vector leaves in the same entry; and within an entry none enters twice. Readers that
/// replay by path and vector (Spark, Trino) see rows twice otherwise, readers that replay by path alone see nothing wrong.
///
/// # Errors
/// At the first entry that breaks a rule, unless another program wrote it: `is_ours` tells by the entry's `commitInfo`.
pub fn ensure_log_is_sound(table: &Path, is_ours: impl Fn(&Value) -> bool) -> anyhow::Result<()> {
    let mut active = Files::new();
    for (version, actions) in entries(table)? {
        let info = actions.iter().find_map(|action| action.get("commitInfo")).cloned().unwrap_or_default();
        if let Err(error) = replay(&actions, &mut active)
            && is_ours(&info)
        {
            return Err(error.context(format!("version {version} of {}", table.display())));
        }
    }
    Ok(())
}

/// What the log of a table tells of the engine's commits, so that a test knows that something happened at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogFigures {
    /// Commits of compaction.
    pub compactions: u64,
    /// New files of compaction with rows that a batch deleted while they were written.
    pub remapped_files: u64,
    /// Commits that change the columns, the first one included.
    pub schemas: u64,
    /// Columns that got another type.
    pub type_changes: u64,
}

impl LogFigures {
    /// Counts what is still in the log of a table.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn of(table: &Path) -> anyhow::Result<Self> {
        let (mut figures, mut types) = (Self::default(), BTreeMap::new());
        for actions in entries(table)?.into_values() {
            let bodies = |kind: &'static str| actions.iter().filter_map(move |action| action.get(kind));
            if !bodies("commitInfo").any(|info| !info["lakeCommit"].is_null()) {
                continue;
            }
            for metadata in bodies("metaData") {
                figures.schemas += 1;
                figures.type_changes += type_changes(metadata, &mut types)?;
            }
            if bodies("commitInfo").any(|info| info["operation"] == "OPTIMIZE") {
                figures.compactions += 1;
                figures.remapped_files += bodies("add").filter(|add| add["deletionVector"].is_object()).count() as u64;
            }
        }
        Ok(figures)
    }
}

impl AddAssign for LogFigures {
    fn add_assign(&mut self, other: Self) {
        self.compactions += other.compactions;
        self.remapped_files += other.remapped_files;
        self.schemas += other.schemas;
        self.type_changes += other.type_changes;
    }
}

/// Counts the columns whose types differ from those known so far, and takes note of them.
fn type_changes(metadata: &Value, known: &mut BTreeMap<String, Value>) -> anyhow::Result<u64> {
    let schema: Value = serde_json::from_str(metadata["schemaString"].as_str().context("metadata without a schema")?)?;
    let mut changes = 0;
    for field in schema["fields"].as_array().context("a schema without fields")? {
        let name = field["name"].as_str().context("a field without a name")?;
        let before = known.insert(name.to_owned(), field["type"].clone());
        changes += u64::from(before.is_some_and(|before| before != field["type"]));
    }
    Ok(changes)
}

/// How often the log of a table removes a file, by its name.
///
/// # Errors
/// When the log cannot be read.
pub fn removals_of(table: &Path, file: &Path) -> anyhow::Result<usize> {
    let name = file.file_name().and_then(|name| name.to_str()).context("a data file has a name")?;
    let entries = entries(table)?;
    let removed = entries.values().flatten().filter_map(|action| action["remove"]["path"].as_str());
    Ok(removed.filter(|path| path.ends_with(name)).count())
}

fn entries(table: &Path) -> anyhow::Result<BTreeMap<u64, Vec<Value>>> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(table.join("_delta_log"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a file of the log has a name")?;
        let Some(version) = name.strip_suffix(".json").and_then(|name| name.parse().ok()) else { continue };
        let lines = fs::read_to_string(&path)?;
        let actions = lines.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>();
        entries.insert(version, actions.with_context(|| path.display().to_string())?);
    }
    Ok(entries)
}

fn file_of(action: &Value) -> anyhow::Result<(String, String)> {
    let path = action["path"].as_str().context("an action without a path")?.to_owned();
    let vector = &action["deletionVector"];
    let vector = match vector["pathOrInlineDv"].as_str() {
        Some(place) => format!("{}{place}@{}", vector["storageType"], vector["offset"]),
        None => String::new(),
    };
    Ok((path, vector))
}

fn replay(actions: &[Value], active: &mut Files) -> anyhow::Result<()> {
    let mut trouble = None;
    let bodies = |kind: &'static str| actions.iter().filter_map(move |action| action.get(kind));
    for removed in bodies("remove") {
        let (path, vector) = file_of(removed)?;
        let held = active.remove(&path);
        if held.as_ref() != Some(&vector) {
            trouble = Some(format!("{path} leaves with vector {vector:?}, but is there with {held:?}"));
        }
    }
    for added in bodies("add") {
        let (path, vector) = file_of(added)?;
        let stats: Value = serde_json::from_str(added["stats"].as_str().unwrap_or("{}"))?;
        let hidden = added["deletionVector"]["cardinality"].as_i64().unwrap_or_default();
        if stats["numRecords"].as_i64().is_some_and(|rows| rows <= hidden) {
            trouble = Some(format!("{path} enters with all its rows hidden"));
        }
        if active.insert(path.clone(), vector).is_some() {
            trouble = Some(format!("{path} enters, but is there"));
        }
    }
    ensure!(trouble.is_none(), "{}", trouble.unwrap_or_default());
    Ok(())
}
