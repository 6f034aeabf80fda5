//! Commits of a concurrent writer to the lake's tables: python deltalake, or Spark.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::ensure;
use lake_test_kit::history::{TYPES, id_text};
use lake_test_kit::time::NOTE;
use lake_tests::engine::{Cell, EngineLake, NewRow, write_parquet};
use lake_tests::parts::{Spark, sql_name};
use lake_tests::readers::{Readers, Snapshot};
use rand::RngExt;
use rand::rngs::StdRng;

use crate::model::{Model, supervisor};

/// A property without a meaning to any reader or writer.
const PROPERTY: &str = "other.note";

/// One commit of a concurrent writer, and what it needs.
pub struct ExternalCommit<'trial> {
    pub random: &'trial mut StdRng,
    pub lake: &'trial EngineLake,
    pub model: &'trial mut Model,
    pub readers: &'trial mut Readers,
    pub as_spark: bool,
    pub retention_hours: u64,
    /// The table that deltalake has vacuumed.
    pub vacuumed: Option<usize>,
}

impl ExternalCommit<'_> {
    /// Does something to a random table that has rows, and to the model the same. Tells what it did.
    pub fn happen(&mut self, tables: &BTreeMap<usize, Snapshot>) -> anyhow::Result<Option<String>> {
        let filled: Vec<(&usize, &Snapshot)> = tables.iter().filter(|(_, table)| !table.rows.is_empty()).collect();
        if filled.is_empty() {
            return Ok(None);
        }
        let (&number, table) = filled[self.random.random_range(0..filled.len())];
        let folder = self.lake.table(TYPES[number]);
        let ids = self.model.ids_in(number);
        let Some(&id) = ids.get(self.random.random_range(0..ids.len().max(1))) else { return Ok(None) };
        let target = format!("_id = '{}'", id_text(id));
        let name = sql_name(&folder);
        let done = match self.random.random_range(0..12) {
            0 | 1 => {
                let statement = format!("DELETE FROM {name} WHERE {target}");
                self.either(&statement, |readers| readers.delete(&folder, &target))?;
                self.model.take(id);
                format!("deleted {target}")
            }
            2 | 3 => {
                // Only a column that the lake made: the lake ignores what other writers add.
                let texts = |(_, source): &(&String, &String)| source.starts_with("/p");
                let Some((column, source)) = table.sources.iter().find(texts) else { return Ok(None) };
                let statement = format!("UPDATE {name} SET `{column}` = 'other' WHERE {target}");
                self.either(&statement, |readers| readers.update(&folder, column, "'other'", &target))?;
                self.model.set(id, source, "other");
                format!("updated {column} of {target}")
            }
            4 | 5 => self.append(&folder, number, table)?,
            6 => {
                if table.sources.contains_key("foreign") {
                    return Ok(None);
                }
                let statement = format!("ALTER TABLE {name} ADD COLUMN foreign STRING");
                self.either(&statement, |readers| readers.add_column(&folder, "foreign"))?;
                "added a column".to_owned()
            }
            7 => {
                self.either(&format!("OPTIMIZE {name}"), |readers| readers.optimize(&folder))?;
                "optimized".to_owned()
            }
            8 => {
                let statement = format!("ALTER TABLE {name} SET TBLPROPERTIES ('{PROPERTY}' = '{id}')");
                self.either(&statement, |readers| readers.set_property(&folder, PROPERTY, &id.to_string()))?;
                self.model.note_property(number, PROPERTY, &id.to_string());
                "set a property".to_owned()
            }
            9 => {
                self.vacuumed = (!self.as_spark).then_some(number);
                self.vacuum(&folder)?
            }
            10 => {
                let statement = format!("REORG TABLE {name} APPLY (PURGE)");
                self.either(&statement, |readers| {
                    let missing = readers.repair(&folder)?;
                    ensure!(missing.is_empty(), "a repair misses files: {missing:?}");
                    Ok(0)
                })?;
                "repaired".to_owned()
            }
            _ => self.overwrite(&folder, number, table)?,
        };
        Ok(Some(format!("a concurrent writer {done} in table {number}")))
    }

    fn either(
        &mut self,
        statement: &str,
        otherwise: impl FnOnce(&mut Readers) -> anyhow::Result<u64>,
    ) -> anyhow::Result<()> {
        if self.as_spark {
            Spark::shared(|spark| spark.sql(&[statement])).map(drop)
        } else {
            otherwise(self.readers).map(drop)
        }
    }

    /// Appends rows with ids that no other row has.
    fn append(&mut self, folder: &Path, number: usize, table: &Snapshot) -> anyhow::Result<String> {
        let rows = self.new_rows(number, table);
        let file = self.write(&rows, table)?;
        let statement = format!("INSERT INTO {} BY NAME SELECT * FROM parquet.`{}`", sql_name(folder), file.display());
        self.either(&statement, |readers| readers.append(folder, &file))?;
        Ok(format!("appended {} rows", rows.len()))
    }

    /// All rows go, others come.
    fn overwrite(&mut self, folder: &Path, number: usize, table: &Snapshot) -> anyhow::Result<String> {
        for id in self.model.ids_in(number) {
            self.model.take(id);
        }
        if self.as_spark {
            Spark::shared(|spark| spark.sql(&[&format!("DELETE FROM {}", sql_name(folder))]))?;
            return Ok("deleted everything".to_owned());
        }
        let rows = self.new_rows(number, table);
        let file = self.write(&rows, table)?;
        self.readers.overwrite(folder, &file)?;
        Ok(format!("left {} rows", rows.len()))
    }

    /// Cleans up as the lake's own retention allows, which harms nothing that the lake promises. Not deltalake's full VACUUM: 1.6.6 would
    /// delete deletion vectors that are in use (see `delta_readers.rs`).
    fn vacuum(&mut self, folder: &Path) -> anyhow::Result<String> {
        let note = fs::read(folder.join(NOTE)).ok();
        let hours = self.retention_hours;
        let statement = format!("VACUUM {} RETAIN {hours} HOURS", sql_name(folder));
        self.either(&statement, |readers| {
            readers.vacuum(folder, hours, false, false).map(|deleted| deleted.len() as u64)
        })?;
        ensure!(fs::read(folder.join(NOTE)).ok() == note, "the note of superseded vectors is gone");
        Ok("vacuumed".to_owned())
    }

    fn new_rows(&mut self, number: usize, table: &Snapshot) -> Vec<NewRow> {
        let texts = table.sources.values().find(|source| source.starts_with("/p"));
        let columns: Vec<&str> = table.sources.values().map(String::as_str).collect();
        (0..self.random.random_range(1..4))
            .map(|_| {
                let id = self.random.random_range(1_000_000..2_000_000);
                let mut cells: BTreeMap<String, Cell> =
                    texts.iter().map(|source| ((*source).clone(), Cell::Text("appended".into()))).collect();
                if columns.contains(&"+supervisor_id") && self.random.random_range(0..3) > 0 {
                    let name = supervisor(self.random, true).to_owned();
                    cells.insert("+supervisor_id".to_owned(), Cell::Text(name));
                }
                if columns.contains(&"/server_modified_on") {
                    let moment = Cell::Moment(self.random.random_range(-2_000..2_000));
                    cells.insert("/server_modified_on".to_owned(), moment);
                }
                let row = NewRow { id: id_text(id), version_us: 3, observed_us: 5, cells };
                self.model.append(id, number, &row);
                row
            })
            .collect()
    }

    fn write(&self, rows: &[NewRow], table: &Snapshot) -> anyhow::Result<std::path::PathBuf> {
        let file = self.lake.scratch().join("append.parquet");
        let name_of = |source: &str| {
            let column = table.sources.iter().find(|(_, held)| *held == source);
            column.map_or_else(|| source.to_owned(), |(name, _)| name.clone())
        };
        write_parquet(&file, rows, None, name_of)?;
        Ok(file)
    }
}
