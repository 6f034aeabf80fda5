//! Which domains, case types and forms are taken into the lake. Pure.

use std::collections::HashSet;
use std::fmt;

use lake_proto::queue::v1::Taken;
use lake_shared::identity::{DocumentType, Kind};
use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};

/// Longest list that is announced.
const TOLD_MAX: usize = 2_000;

/// Section `[take]`: what is taken into the lake.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TakeConfig {
    /// `"everything"`, or a list of domains.
    pub domains: AllowList,
    /// `"everything"`, or a list of case types.
    #[serde(default)]
    pub case_types: AllowList,
    /// `"everything"`, or a list of form xmlns; the prefix `http://openrosa.org/formdesigner/` may be left out.
    #[serde(default)]
    pub form_xmlns: AllowList,
}

impl TakeConfig {
    /// Takes everything of every domain.
    pub const EVERYTHING: Self =
        Self { domains: AllowList::Everything, case_types: AllowList::Everything, form_xmlns: AllowList::Everything };

    /// What other services are told of it. A list too long for an announcement is not told, and looks like one that takes everything.
    pub fn told(&self) -> Taken {
        let names = |list: &AllowList| match list {
            AllowList::Only(names) if names.len() <= TOLD_MAX => {
                let mut names: Vec<String> = names.iter().cloned().collect();
                names.sort_unstable();
                names
            }
            AllowList::Only(_) | AllowList::Everything => Vec::new(),
        };
        Taken {
            domains: names(&self.domains),
            case_types: names(&self.case_types),
            form_xmlns: names(&self.form_xmlns),
        }
    }

    /// The types of a kind that are taken, as documents have them; `None`: all.
    pub fn types(&self, kind: Kind) -> Option<Vec<DocumentType>> {
        match (kind, &self.case_types, &self.form_xmlns) {
            (Kind::Case, AllowList::Only(names), _) => Some(names.iter().map(|name| name.as_str().into()).collect()),
            (Kind::Form, _, AllowList::Only(names)) => {
                Some(names.iter().map(|name| DocumentType::of_form(name)).collect())
            }
            _ => None,
        }
    }

    /// Whether documents of this domain are taken.
    pub fn domain(&self, domain: &str) -> bool {
        self.domains.allows(domain)
    }

    /// Whether documents of this type are taken.
    pub fn document_type(&self, kind: Kind, document_type: &DocumentType) -> bool {
        match kind {
            Kind::Case => self.case_types.allows(document_type.as_str()),
            Kind::Form => self.form_xmlns.allows_form(document_type),
            Kind::Location => true,
        }
    }
}

/// Names that are taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AllowList {
    /// Every name is taken.
    #[default]
    Everything,
    /// Only these names are taken.
    Only(HashSet<String>),
}

impl AllowList {
    fn allows(&self, name: &str) -> bool {
        match self {
            Self::Everything => true,
            Self::Only(names) => names.contains(name),
        }
    }

    fn allows_form(&self, document_type: &DocumentType) -> bool {
        match self {
            Self::Everything => true,
            Self::Only(names) => names.iter().any(|name| DocumentType::of_form(name) == *document_type),
        }
    }
}

impl<'de> Deserialize<'de> for AllowList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AllowListVisitor)
    }
}

/// Reads a list in either form: `"everything"`, or names.
struct AllowListVisitor;

impl<'de> Visitor<'de> for AllowListVisitor {
    type Value = AllowList;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("\"everything\" or a list of names")
    }

    fn visit_str<E: Error>(self, words: &str) -> Result<AllowList, E> {
        Ok(match words {
            "everything" => AllowList::Everything,
            // From the environment a list may come as words between commas.
            _ => AllowList::Only(words.split(',').map(|word| word.trim().to_owned()).collect()),
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut names: A) -> Result<AllowList, A::Error> {
        let mut only = HashSet::new();
        while let Some(name) = names.next_element()? {
            only.insert(name);
        }
        Ok(AllowList::Only(only))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn lists_and_everything() {
        let take: TakeConfig = serde_json::from_value(serde_json::json!({
            "domains": ["a"], "form_xmlns": ["http://openrosa.org/formdesigner/X", "Y"]
        }))
        .unwrap();
        assert!(take.domain("a") && !take.domain("b"));
        assert!(take.document_type(Kind::Case, &"anything".into()));
        assert!(take.document_type(Kind::Form, &"X".into()));
        assert!(take.document_type(Kind::Form, &"Y".into()));
        assert!(!take.document_type(Kind::Form, &"Z".into()));
        assert!(take.document_type(Kind::Location, &DocumentType::location()));
        let everything: TakeConfig = serde_json::from_value(serde_json::json!({"domains": "everything"})).unwrap();
        assert!(everything.domain("b"));
    }
}
