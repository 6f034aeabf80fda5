//! The streams on the server: one for each queue, and beside it one for the parts of its large messages.

use super::super::Stream;

/// A stream on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ServerStream {
    /// The messages of a queue.
    Messages(Stream),
    /// The parts of its messages that are larger than the server takes. Not for [`Stream::Quarantine`], whose entries are cut.
    Parts(Stream),
}

impl ServerStream {
    /// All of them. Parts last: when they are looked at, the messages that name them have been.
    pub(super) const ALL: [Self; 5] = [
        Self::Messages(Stream::Records),
        Self::Messages(Stream::Rows),
        Self::Messages(Stream::Quarantine),
        Self::Parts(Stream::Records),
        Self::Parts(Stream::Rows),
    ];

    /// Name on the server.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Messages(stream) => stream.name(),
            Self::Parts(Stream::Records) => "LAKE_RECORDS_PARTS",
            Self::Parts(Stream::Rows) => "LAKE_ROWS_PARTS",
            Self::Parts(Stream::Quarantine) => "LAKE_QUARANTINE_PARTS",
        }
    }

    /// Its subjects.
    pub(super) const fn subjects(self) -> &'static str {
        match self {
            Self::Messages(stream) => stream.subjects(),
            Self::Parts(Stream::Records) => "lake.parts.records.>",
            Self::Parts(Stream::Rows) => "lake.parts.rows.>",
            Self::Parts(Stream::Quarantine) => "lake.parts.quarantine.>",
        }
    }
}

impl From<Stream> for ServerStream {
    fn from(stream: Stream) -> Self {
        Self::Messages(stream)
    }
}
