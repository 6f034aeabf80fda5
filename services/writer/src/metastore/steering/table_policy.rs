//! How tables are treated, and what operators have said about single ones: over what the configuration says, and changed while the writer runs.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Deserialize;

/// Whether tables have deletion vectors.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DeletionVectors {
    /// Tables above `tables.copy_on_write_below_bytes` have them; smaller ones are rewritten, as far as
    /// `tables.copy_on_write_bytes_per_second` reaches.
    #[default]
    Auto,
    /// All tables have them.
    On,
    /// None have them: for readers that do not know them. Upserts into large tables become slow. Those that a table has are
    /// purged by compaction. The protocol of a table that had some stays at (3, 7), which old readers refuse: `ALTER TABLE … DROP FEATURE
    /// deletionVectors` in Spark takes it back, along with the history.
    Off,
}

impl DeletionVectors {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Auto, Self::On, Self::Off];

    /// The name in configurations.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// What an operator has said about one table; what is absent is as configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TablePolicy {
    /// Whether it has deletion vectors.
    pub deletion_vectors: Option<DeletionVectors>,
    /// Whether rounds of compaction take it in. A compaction that is asked for compacts it all the same.
    pub compaction: Option<bool>,
    /// How long superseded data files stay, hours.
    pub retention_hours: Option<u64>,
}

/// The policies that are in force, by the names of the tables. Cheap to clone; all clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Policies(Arc<RwLock<HashMap<String, TablePolicy>>>);

impl Policies {
    /// That of a table.
    pub fn of(&self, table: &str) -> TablePolicy {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(table).copied().unwrap_or_default()
    }

    /// Puts these in force in place of all that were.
    pub fn replace(&self, policies: HashMap<String, TablePolicy>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = policies;
    }
}
