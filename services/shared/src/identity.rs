//! What things are called inside the lake: kinds, domains, types, spaces, tables.

use std::fmt;
use std::sync::Arc;

use lake_proto::queue::v1 as proto;

/// Prefix of the xmlns of every form built with HQ's form designer; trimmed from the type's name.
pub const FORM_DESIGNER_PREFIX: &str = "http://openrosa.org/formdesigner/";

/// What a document is. Decides its Kafka topic, folder and subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A case: a person, household, anything followed over time.
    Case,
    /// A form that was submitted.
    Form,
    /// A place in a domain's location tree.
    Location,
}

impl Kind {
    /// All kinds, in the order of their names.
    pub const ALL: [Self; 3] = [Self::Case, Self::Form, Self::Location];

    /// Name in subjects: `case`, `form`, `location`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Case => "case",
            Self::Form => "form",
            Self::Location => "location",
        }
    }

    /// The inverse of [`Kind::name`].
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// HQ's Kafka topic of this kind, which also names the folder: `case-sql`, `form-sql`, `location`.
    pub const fn topic(self) -> &'static str {
        match self {
            Self::Case => "case-sql",
            Self::Form => "form-sql",
            Self::Location => "location",
        }
    }

    /// The inverse of [`Kind::topic`].
    pub fn of_topic(topic: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.topic() == topic)
    }

    /// The value that stands for this kind in queue messages.
    pub const fn to_proto(self) -> proto::Kind {
        match self {
            Self::Case => proto::Kind::Case,
            Self::Form => proto::Kind::Form,
            Self::Location => proto::Kind::Location,
        }
    }

    /// The inverse of [`Kind::to_proto`]; `None` for an unknown number.
    pub fn from_proto(number: i32) -> Option<Self> {
        match proto::Kind::try_from(number).ok()? {
            proto::Kind::Case => Some(Self::Case),
            proto::Kind::Form => Some(Self::Form),
            proto::Kind::Location => Some(Self::Location),
            proto::Kind::Unspecified => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A project space of HQ, as HQ names it. Untrusted text: escape it before it becomes part of another name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Arc<str>);

/// A case type, a form xmlns (without [`FORM_DESIGNER_PREFIX`]) or `Location`. Untrusted text, may be empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DocumentType(Arc<str>);

macro_rules! text_identity {
    ($name:ident) => {
        impl $name {
            /// The text as HQ has it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }
        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}
text_identity!(Domain);
text_identity!(DocumentType);

impl DocumentType {
    /// The type of every row of a location table.
    pub fn location() -> Self {
        Self::from("Location")
    }

    /// The type of a form with this xmlns.
    pub fn of_form(xmlns: &str) -> Self {
        Self::from(xmlns.strip_prefix(FORM_DESIGNER_PREFIX).unwrap_or(xmlns))
    }
}

/// All tables of one domain and kind: the unit of writer ownership. An id lives in at most one table of its space.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Space {
    /// The project space whose tables they are.
    pub domain: Domain,
    /// Kind of its documents.
    pub kind: Kind,
}

impl fmt::Display for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.kind.topic())
    }
}

/// Identity of one Delta table: its space, and the type of its rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableKey {
    /// The space the table belongs to.
    pub space: Space,
    /// The type of its rows.
    pub document_type: DocumentType,
}

impl fmt::Display for TableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.space, self.document_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_the_messages_is_in_the_list_and_comes_back_by_its_names() {
        let of_messages: Vec<Kind> = (1..)
            .map_while(|number| proto::Kind::try_from(number).is_ok().then_some(number))
            .filter_map(Kind::from_proto)
            .collect();
        assert_eq!(of_messages, Kind::ALL);
        for kind in Kind::ALL {
            assert_eq!(Kind::from_proto(kind.to_proto().into()), Some(kind));
            assert_eq!(Kind::of_topic(kind.topic()), Some(kind));
            assert_eq!(Kind::of_name(kind.name()), Some(kind));
        }
    }
}
