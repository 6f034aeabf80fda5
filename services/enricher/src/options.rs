//! Section `[enricher]` of the configuration.

use std::time::Duration;

use serde::Deserialize;

use crate::flatten::CaseJson;
use crate::transform::{self, Rule};

/// How the enricher works. Every key has a default.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EnricherOptions {
    /// Messages that are made into rows at the same time.
    pub workers: usize,
    /// Most messages that are handed out and not acknowledged, over all enrichers.
    pub in_flight_max: usize,
    /// Most compressed bytes of messages that this process holds at the same time, those included whose rows wait to be queued.
    pub held_bytes_max: usize,
    /// Bytes of memory for messages while they are made into rows. A message takes about six times what it has decompressed; one that takes more than
    /// all of it is handled alone.
    pub work_bytes_max: usize,
    /// Seconds after which a message that a dead enricher held is handed out again.
    pub acknowledge_within_seconds: u64,
    /// What to show of the second copy of a case's properties: `hidden`, `all` or `none`.
    pub case_json: CaseJson,
    /// Most cells of one record; a wider one goes to quarantine. A batch closes when it has that many columns of its own.
    pub columns_max: usize,
    /// Most location types of a domain that have columns, one in each row of a case or form and six in each row of a location; those that were
    /// made last in HQ are left out.
    pub location_types_max: usize,
    /// Sizes and ages of the caches of locations and users.
    pub caches: CacheOptions,
    /// Changes of documents before they are saved.
    pub transforms: Vec<Rule>,
}

impl Default for EnricherOptions {
    fn default() -> Self {
        Self {
            workers: 2,
            in_flight_max: 2_048,
            held_bytes_max: 32 << 20,
            work_bytes_max: 96 << 20,
            acknowledge_within_seconds: 10,
            case_json: CaseJson::Hidden,
            columns_max: 10_000,
            location_types_max: 200,
            caches: CacheOptions::default(),
            transforms: Vec::new(),
        }
    }
}

impl EnricherOptions {
    /// Checks rules that types cannot express.
    ///
    /// # Errors
    /// Where a value is out of its range, or a transform cannot be used; the text names the key.
    pub fn validate(&self) -> Result<(), String> {
        let positive = [
            ("workers", self.workers as u64),
            ("in_flight_max", self.in_flight_max as u64),
            ("held_bytes_max", self.held_bytes_max as u64),
            ("work_bytes_max", self.work_bytes_max as u64),
            ("acknowledge_within_seconds", self.acknowledge_within_seconds),
            ("columns_max", self.columns_max as u64),
            ("location_types_max", self.location_types_max as u64),
            ("caches.location_nodes_max", self.caches.location_nodes_max as u64),
            ("caches.user_entries_max", self.caches.user_entries_max as u64),
            ("caches.user_look_ups_max", self.caches.user_look_ups_max as u64),
        ];
        if let Some((key, _)) = positive.iter().find(|(_, value)| *value == 0) {
            return Err(format!("enricher.{key} must be at least 1"));
        }
        transform::validate(&self.transforms).map_err(|trouble| format!("enricher.{trouble}"))
    }

    /// `acknowledge_within_seconds` as a duration.
    pub fn acknowledge_within(&self) -> Duration {
        Duration::from_secs(self.acknowledge_within_seconds)
    }
}

/// Bounds and ages of what is remembered of HQ.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CacheOptions {
    /// Most locations over all domains but the largest, which is held beside them, at about 140 bytes each.
    pub location_nodes_max: usize,
    /// Seconds after which HQ is asked what changed in a location tree, message or not.
    pub location_max_age_seconds: u64,
    /// Seconds after which a whole location tree is read again: some changes leave neither message nor time stamp.
    pub location_whole_max_age_seconds: u64,
    /// Most users, at about 200 bytes each.
    pub user_entries_max: usize,
    /// Seconds after which a user's location is looked up again.
    pub user_max_age_seconds: u64,
    /// The same for users who were found to have no location: new ones often get one soon.
    pub user_without_location_max_age_seconds: u64,
    /// Seconds after a change of a user, or after the publication of one of their records, in which HQ may not show the user's new location
    /// yet: what it answers is not remembered beyond them. 0 trusts every answer.
    pub user_settle_seconds: u64,
    /// Seconds for which the location of a user is also given to records that were published after HQ was asked for it. 0 asks HQ again for each new
    /// record.
    pub user_reuse_seconds: u64,
    /// The same for users who were found to have no location: new ones are given one, and submit then.
    pub user_without_location_reuse_seconds: u64,
    /// Most questions for users that are under way at the same time; a domain has one.
    pub user_look_ups_max: usize,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            location_nodes_max: 800_000,
            location_max_age_seconds: 300,
            location_whole_max_age_seconds: 3_600,
            user_entries_max: 200_000,
            user_max_age_seconds: 300,
            user_without_location_max_age_seconds: 30,
            user_settle_seconds: 15,
            user_reuse_seconds: 5,
            user_without_location_reuse_seconds: 2,
            user_look_ups_max: 4,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_section_is_valid_and_unknown_keys_are_not() {
        let options: EnricherOptions = serde_json::from_value(json!({})).unwrap();
        options.validate().unwrap();
        assert_eq!(options.case_json, CaseJson::Hidden);
        assert_eq!(options.caches.user_without_location_max_age_seconds, 30);
        let unknown = serde_json::from_value::<EnricherOptions>(json!({"caches": {"location_max_age": 1}}));
        assert!(unknown.unwrap_err().to_string().contains("location_max_age"));
        let options: EnricherOptions = serde_json::from_value(json!({"case_json": "all", "workers": 0})).unwrap();
        assert_eq!(options.validate().unwrap_err(), "enricher.workers must be at least 1");
    }

    #[test]
    fn transforms_are_validated_with_the_rest() {
        let section = json!({"transforms": [{"kind": "case", "actions": [{"drop": "/_id"}]}]});
        let options: EnricherOptions = serde_json::from_value(section).unwrap();
        assert!(options.validate().unwrap_err().starts_with("enricher.transforms[0]"));
    }
}
