//! The kinds of documents. A new one begins here; the compiler names what else has to know it.

use std::fmt;

use lake_proto::queue::v1 as proto;

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
