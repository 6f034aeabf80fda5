//! Which records an operation is about that erases or allows them, as it is kept with the operation while that is open. Pure.

use lake_shared::identity::Space;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Records of one space, by their ids or by the hashes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecordIds {
    /// Ids.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<String>,
    /// Hashes of further ids, as [`erasure_hash`] makes them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hashes: Vec<String>,
}

impl RecordIds {
    /// From the details of an operation; `None`: they are gone, as the operation has ended.
    pub fn of_details(details: &str) -> Option<Self> {
        serde_json::from_str(details).ok()
    }

    /// As details of an operation.
    pub fn details(&self) -> String {
        // Texts can always be written.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// How many they are.
    pub const fn len(&self) -> usize {
        self.ids.len() + self.hashes.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The hashes of all of them.
    pub fn all_hashes(&self, space: &Space) -> Vec<String> {
        let of_ids = self.ids.iter().map(|id| erasure_hash(space, id));
        of_ids.chain(self.hashes.iter().cloned()).collect()
    }
}

/// What is kept of the id of an erased record: SHA-256 of project, kind and id, in hexadecimal digits.
pub fn erasure_hash(space: &Space, id: &str) -> String {
    let mut digest = Sha256::new();
    for text in [space.domain.as_str(), space.kind.name(), id] {
        digest.update((text.len() as u64).to_be_bytes());
        digest.update(text);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a text has the form of what [`erasure_hash`] makes.
pub fn is_erasure_hash(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

#[cfg(test)]
mod tests {
    use lake_shared::identity::Kind;

    use super::*;

    #[test]
    fn a_hash_tells_projects_kinds_and_ids_apart() {
        let space = |domain: &str, kind| Space { domain: domain.into(), kind };
        let hash = erasure_hash(&space("demo", Kind::Case), "1");
        assert!(is_erasure_hash(&hash) && !is_erasure_hash("1") && !is_erasure_hash(&"X".repeat(64)));
        assert_eq!(hash, erasure_hash(&space("demo", Kind::Case), "1"));
        for other in [
            erasure_hash(&space("demo", Kind::Form), "1"),
            erasure_hash(&space("dem", Kind::Case), "o1"),
            erasure_hash(&space("demo", Kind::Case), "2"),
        ] {
            assert_ne!(hash, other);
        }
    }

    #[test]
    fn details_say_it_again_and_may_be_gone() {
        let asked = RecordIds { ids: vec!["a".into()], hashes: vec!["b".into()] };
        assert_eq!(RecordIds::of_details(&asked.details()), Some(asked.clone()));
        assert_eq!((asked.len(), RecordIds::of_details("")), (2, None));
        let space = Space { domain: "demo".into(), kind: Kind::Case };
        assert_eq!(asked.all_hashes(&space), [erasure_hash(&space, "a"), "b".into()]);
    }
}
