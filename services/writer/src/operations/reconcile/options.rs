//! Section `[reconcile]` of the configuration.

use std::time::Duration;

use serde::Deserialize;

/// Section `[reconcile]`: how comparisons with HQ are made.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReconcileOptions {
    /// How long documents that differ are left alone before they are looked at again: what is on its way arrives meanwhile.
    pub settle_seconds: u64,
}

impl Default for ReconcileOptions {
    fn default() -> Self {
        Self { settle_seconds: 30 }
    }
}

impl ReconcileOptions {
    /// Checks rules that types cannot express.
    ///
    /// # Errors
    /// Where a value is out of its range; the error names the key.
    pub fn validate(&self) -> Result<(), String> {
        match self.settle_seconds {
            0..=3_600 => Ok(()),
            _ => Err("key `reconcile.settle_seconds`: must be 0 to 3600".into()),
        }
    }

    pub(super) const fn settle(&self) -> Duration {
        Duration::from_secs(self.settle_seconds)
    }
}
