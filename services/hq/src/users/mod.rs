//! Which location a user is assigned to. HQ keeps that in no SQL table: it is in CouchDB, and in Elasticsearch a little later.
//!
//! The decision is here and the same for all adapters: a user counts only in their own domain (or, a web user, in a membership of it), and
//! retired users have no location.

mod couchdb;
mod elasticsearch;
mod http;
mod none;

use std::collections::{HashMap, HashSet};

use serde::Deserialize;
use serde_json::{Map, Value};

pub use self::couchdb::{CouchdbConfig, CouchdbUsers};
pub use self::elasticsearch::{ElasticsearchConfig, ElasticsearchMode, ElasticsearchUsers};
pub use self::none::NoUsers;
use crate::source::SourceError;

/// Most users per request.
pub const BATCH_USERS_MAX: usize = 500;
/// Most requests of one question at one time.
const REQUESTS_MAX: usize = 4;

/// User ids of HQ itself, which no user has.
const NOT_USERS: [&str; 4] = ["", "demo_user", "system", "commtrack-system"];

/// Keys of a user document that may hold memberships of domains.
const MEMBERSHIPS: [&str; 3] = ["domain_membership", "domain_memberships", "user_domain_memberships"];

/// Parts of a user document that the decision needs.
const FIELDS: [&str; 8] = [
    "base_doc",
    "doc_type",
    "domain",
    "location_id",
    "user_location_id",
    "domain_membership",
    "domain_memberships",
    "user_domain_memberships",
];

/// Where users are asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum UsersConfig {
    /// HQ's Elasticsearch: fast, seconds behind.
    Elasticsearch(ElasticsearchConfig),
    /// HQ's CouchDB: the source of truth.
    Couchdb(CouchdbConfig),
    /// Nowhere: rows have no location columns filled.
    #[default]
    None,
}

impl UsersConfig {
    /// Checks rules that types cannot express.
    ///
    /// # Errors
    /// The key and what to do about it; addresses are not in the text.
    pub fn validate(&self) -> Result<(), String> {
        let url = match self {
            Self::Elasticsearch(config) => &config.url,
            Self::Couchdb(config) => &config.url,
            Self::None => return Ok(()),
        };
        match http::Server::new("users", url, None, None, 1) {
            Err(SourceError::Refused { reason, .. }) => Err(format!("key `hq.users.url`: {reason}")),
            _ => Ok(()),
        }
    }
}

/// The primary location that a user document gives in a domain.
fn primary_location(user: &Map<String, Value>, domain: &str) -> Option<String> {
    if is_retired(user) {
        return None;
    }
    if user.get("domain").and_then(Value::as_str) == Some(domain) {
        // A mobile worker. Where the key is there it says everything, also when it is null; older indices have it under another name.
        if let Some(location_id) = ["location_id", "user_location_id"].iter().find_map(|key| user.get(*key)) {
            return location_text(location_id);
        }
    }
    MEMBERSHIPS
        .iter()
        .filter_map(|key| user.get(*key))
        .flat_map(|memberships| match memberships {
            Value::Array(several) => several.as_slice(),
            one => std::slice::from_ref(one),
        })
        .filter(|membership| membership.get("domain").and_then(Value::as_str) == Some(domain))
        .find_map(|membership| membership.get("location_id").and_then(location_text))
}

/// HQ retires a user by a suffix of `base_doc`; `doc_type` mostly stays. Elasticsearch may have it in lower case.
fn is_retired(user: &Map<String, Value>) -> bool {
    ["base_doc", "doc_type"]
        .iter()
        .filter_map(|key| user.get(*key).and_then(Value::as_str))
        .any(|name| name.to_ascii_lowercase().ends_with("-deleted"))
}

fn location_text(location_id: &Value) -> Option<String> {
    location_id.as_str().filter(|id| !id.is_empty()).map(str::to_owned)
}

/// An empty answer for every id, and the different ids to ask for, in batches.
fn unanswered(user_ids: &[String]) -> (HashMap<String, Option<String>>, Vec<Vec<String>>) {
    let answers = user_ids.iter().map(|id| (id.clone(), None)).collect();
    let mut seen: HashSet<&str> = NOT_USERS.into_iter().collect();
    let asked: Vec<String> = user_ids.iter().filter(|id| seen.insert(id.as_str())).cloned().collect();
    (answers, asked.chunks(BATCH_USERS_MAX).map(<[String]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn located(user: Value) -> Option<String> {
        primary_location(user.as_object().unwrap(), "demo")
    }

    #[test]
    fn a_mobile_worker_is_where_their_document_says() {
        let membership = json!({"domain": "demo", "location_id": "l2"});
        for (user, expected) in [
            (
                json!({"doc_type": "CommCareUser", "base_doc": "CouchUser", "domain": "demo", "location_id": "l1"}),
                Some("l1"),
            ),
            (json!({"domain": "demo", "location_id": "l1", "domain_membership": membership}), Some("l1")),
            (json!({"domain": "demo", "location_id": null, "domain_membership": membership}), None),
            (json!({"domain": "demo", "location_id": ""}), None),
            (json!({"domain": "demo", "domain_membership": membership}), Some("l2")),
            (json!({"domain": "demo", "user_location_id": "l3"}), Some("l3")),
            (json!({"domain": "demo"}), None),
            (
                json!({"domain": "other", "location_id": "l1", "domain_membership": {"domain": "other", "location_id": "l1"}}),
                None,
            ),
            (json!({}), None),
        ] {
            assert_eq!(located(user.clone()).as_deref(), expected, "{user}");
        }
    }

    #[test]
    fn a_web_user_is_where_the_membership_of_the_domain_says() {
        let memberships = json!([{"domain": "other", "location_id": "lo"}, {"domain": "demo", "location_id": "ld"}]);
        for key in ["domain_memberships", "user_domain_memberships"] {
            let user = json!({"doc_type": "WebUser", "domains": ["other", "demo"], key: memberships});
            assert_eq!(located(user).as_deref(), Some("ld"), "{key}");
        }
        assert_eq!(located(json!({"domain_memberships": [{"domain": "demo", "location_id": null}]})), None);
        assert_eq!(located(json!({"domain_memberships": [{"domain": "elsewhere", "location_id": "l"}]})), None);
        assert_eq!(located(json!({"domain_memberships": "odd"})), None);
    }

    #[test]
    fn retired_users_are_nowhere() {
        for retired in ["CouchUser-Deleted", "couchuser-deleted"] {
            assert_eq!(located(json!({"base_doc": retired, "domain": "demo", "location_id": "l1"})), None);
        }
    }

    #[test]
    fn ids_that_are_no_users_are_answered_without_asking() {
        let ids: Vec<String> = ["", "u1", "demo_user", "system", "u1", "commtrack-system"].map(str::to_owned).to_vec();
        let (answers, batches) = unanswered(&ids);
        assert_eq!(answers.len(), 5);
        assert!(answers.values().all(Option::is_none));
        assert_eq!(batches, [["u1"]]);
    }

    #[test]
    fn batches_are_bounded() {
        let ids: Vec<String> = (0..1_100).map(|n| format!("u{n}")).collect();
        let sizes: Vec<usize> = unanswered(&ids).1.iter().map(Vec::len).collect();
        assert_eq!(sizes, [500, 500, 100]);
    }

    #[test]
    fn every_adapter_can_be_configured() {
        let read = |text: &str| serde_json::from_str::<UsersConfig>(text);
        assert!(matches!(read(r#"{"kind": "none"}"#).unwrap(), UsersConfig::None));
        let couchdb = r#"{"kind": "couchdb", "url": "http://couch:5984", "database": "commcarehq__users"}"#;
        assert!(matches!(read(couchdb).unwrap(), UsersConfig::Couchdb(_)));
        let elasticsearch =
            r#"{"kind": "elasticsearch", "url": "http://es:9200", "index": "users-20230524", "mode": "search"}"#;
        assert!(matches!(read(elasticsearch).unwrap(), UsersConfig::Elasticsearch(_)));
        assert!(read(r#"{"kind": "elasticsearch", "url": "u", "index": "i", "shards": 1}"#).is_err());
        assert!(read(r#"{"kind": "ldap"}"#).is_err());
    }
}
