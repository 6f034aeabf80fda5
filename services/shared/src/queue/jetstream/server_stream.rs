//! The streams on the server: one for each queue, and beside it one for the parts of its large messages.

use super::super::Stream;

/// A stream on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ServerStream {
    /// The messages of a queue.
    Messages(Stream),
    /// The parts of its messages that are larger than the server takes. Only for a stream that [takes such](Stream::takes_large).
    Parts(Stream),
}

impl ServerStream {
    /// All of them. Parts last: when they are looked at, the messages that name them have been.
    pub(super) const ALL: [Self; 7] = [
        Self::Messages(Stream::Records),
        Self::Messages(Stream::Rows),
        Self::Messages(Stream::Quarantine),
        Self::Messages(Stream::Changes),
        Self::Messages(Stream::Reports),
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
            Self::Parts(Stream::Changes) => "LAKE_CHANGES_PARTS",
            Self::Parts(Stream::Reports) => "LAKE_REPORTS_PARTS",
        }
    }

    /// Its subjects.
    pub(super) const fn subjects(self) -> &'static str {
        match self {
            Self::Messages(stream) => stream.subjects(),
            Self::Parts(Stream::Records) => "lake.parts.records.>",
            Self::Parts(Stream::Rows) => "lake.parts.rows.>",
            Self::Parts(Stream::Quarantine) => "lake.parts.quarantine.>",
            Self::Parts(Stream::Changes) => "lake.parts.changes.>",
            Self::Parts(Stream::Reports) => "lake.parts.reports.>",
        }
    }
}

impl From<Stream> for ServerStream {
    fn from(stream: Stream) -> Self {
        Self::Messages(stream)
    }
}
