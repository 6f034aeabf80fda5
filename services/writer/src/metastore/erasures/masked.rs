//! Texts in which ids of erased records are made unreadable. Pure.

use lake_shared::identity::Space;

use super::record_ids::erasure_hash;

/// Digits of the hash that stand for an id.
const HASH_DIGITS: usize = 12;

/// Ids, with what stands for them.
pub(in crate::metastore) struct Masks(Vec<(String, String)>);

impl Masks {
    /// The ids of a space.
    pub(in crate::metastore) fn of(space: &Space, ids: &[String]) -> Self {
        let mask = |id: &String| {
            let hash = erasure_hash(space, id);
            (id.clone(), format!("erased {}", hash.get(..HASH_DIGITS).unwrap_or_default()))
        };
        Self(ids.iter().filter(|id| !id.is_empty()).map(mask).collect())
    }

    /// A text without the ids; `None`: it names none, as a whole word.
    pub(in crate::metastore) fn masked(&self, text: &str) -> Option<String> {
        let mut masked: Option<String> = None;
        for (id, mask) in &self.0 {
            if let Some(replaced) = replaced(masked.as_deref().unwrap_or(text), id, mask) {
                masked = Some(replaced);
            }
        }
        masked
    }
}

fn replaced(text: &str, id: &str, mask: &str) -> Option<String> {
    let is_of_word = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_');
    let (mut replaced, mut kept) = (String::new(), 0);
    for (at, found) in text.match_indices(id) {
        let end = at + found.len();
        let is_part = text[..at].chars().next_back().is_some_and(is_of_word) || text[end..].starts_with(is_of_word);
        if !is_part {
            replaced.push_str(&text[kept..at]);
            replaced.push_str(mask);
            kept = end;
        }
    }
    (kept > 0).then(|| replaced + &text[kept..])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use lake_shared::identity::Kind;

    use super::*;

    #[test]
    fn only_whole_ids_are_masked() {
        let space = Space { domain: "demo".into(), kind: Kind::Case };
        let masks = Masks::of(&space, &["id-1".into(), "x".into(), String::new()]);
        let hash = erasure_hash(&space, "id-1");
        let masked = masks.masked("{\"ids\":[\"id-1\",\"id-10\",\"id-1\"]}").unwrap();
        assert_eq!(masked, format!("{{\"ids\":[\"erased {0}\",\"id-10\",\"erased {0}\"]}}", &hash[..12]));
        assert!(masks.masked("domain=demo id=id-1").unwrap().starts_with("domain=demo id=erased "));
        assert_eq!((masks.masked("id-11 text"), masks.masked("")), (None, None));
    }
}
