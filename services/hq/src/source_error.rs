//! What can be wrong with HQ and its stores: what passes, what smaller questions help against, what only an operator mends.

/// Why a source cannot answer about some ids, although it answers about others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hindrance {
    /// The statement takes longer than it may.
    TooSlow,
    /// The rows take more memory than they may: [`crate::source::answer_bytes_max`], or for an id that is asked for as
    /// [`crate::source::Wanted::alone`] a configured limit.
    TooLarge,
    /// A row cannot be read by the server, or not be decoded here.
    Undecodable,
}

/// Trouble with HQ or its stores.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// Passing: not reachable, time-out, overloaded. Try again later.
    #[error("cannot {action} now ({reason}); will be tried again")]
    Unavailable {
        /// What was tried, for example `read 500 cases from shard database p1`.
        action: String,
        /// What the other side says, without secrets.
        reason: String,
    },
    /// What was asked for is the trouble, not the source, which answers about other things: ask for fewer ids. About a single id it says that this
    /// one cannot be read, as far as can be told from one try.
    #[error("cannot {action}: {reason}")]
    AskLess {
        /// What was tried, for example `read 500 cases from shard database p1`.
        action: String,
        /// What stood in the way.
        hindrance: Hindrance,
        /// What the other side says, without secrets.
        reason: String,
    },
    /// Lasting: missing table or column, no permission, wrong password. An operator has to act.
    #[error("cannot {action}: {reason}")]
    Refused {
        /// What was tried, for example `list bucket blobdb`.
        action: String,
        /// What the other side says and what to do, without secrets.
        reason: String,
    },
}
