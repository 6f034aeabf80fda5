//! What things are called inside the lake: kinds, domains, types, spaces, tables.

use std::fmt;
use std::sync::Arc;

/// Prefix of the xmlns of every form built with HQ's form designer; trimmed from the type's name.
pub const FORM_DESIGNER_PREFIX: &str = "http://openrosa.org/formdesigner/";

pub use self::kind::Kind;

mod kind;

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
