//! Section `[backfill]` of the configuration.

use serde::Deserialize;

/// Section `[backfill]`: how backfills ask fetchers.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BackfillOptions {
    /// Documents that are asked for at once of one of HQ's databases; so many are read again where a fetcher is killed.
    pub stretch_documents: u32,
}

impl Default for BackfillOptions {
    fn default() -> Self {
        Self { stretch_documents: 20_000 }
    }
}

impl BackfillOptions {
    /// Checks rules that types cannot express.
    ///
    /// # Errors
    /// Where a value is out of its range; the error names the key.
    pub fn validate(&self) -> Result<(), String> {
        // A fetcher lists no more keys at once.
        match self.stretch_documents {
            1..=50_000 => Ok(()),
            _ => Err("key `backfill.stretch_documents`: must be 1 to 50000".into()),
        }
    }
}
