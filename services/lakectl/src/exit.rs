//! Exit codes: those of sysexits.h where one fits, so that scripts can tell what happened.

use tonic::{Code, Status};

/// What was asked for is done.
pub(crate) const DONE: u8 = 0;
/// It failed, or an operation that was waited for did.
pub(crate) const FAILED: u8 = 1;
/// The command line, the context or a field of the request cannot be used.
pub(crate) const USAGE: u8 = 64;
/// There is no such table or operation.
pub(crate) const NOT_FOUND: u8 = 66;
/// No writer answers, or not now.
pub(crate) const UNAVAILABLE: u8 = 69;
/// The token is missing, wrong, or allows too little.
pub(crate) const DENIED: u8 = 77;
/// Contexts are missing or cannot be read.
pub(crate) const CONFIGURATION: u8 = 78;

/// The codes of `lakectl lake check`, which monitoring systems in the manner of Nagios know.
pub(crate) mod check {
    /// All is well.
    pub(crate) const OK: u8 = 0;
    /// Somebody should look at it in time.
    pub(crate) const WARNING: u8 = 1;
    /// Nothing is written.
    pub(crate) const CRITICAL: u8 = 2;
    /// The lake could not be asked.
    pub(crate) const UNKNOWN: u8 = 3;
}

/// Trouble with the file of contexts.
#[derive(Debug)]
pub(crate) struct ContextTrouble(pub(crate) String);

impl std::fmt::Display for ContextTrouble {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl std::error::Error for ContextTrouble {}

/// The code for an error.
pub(crate) fn code_of(error: &anyhow::Error) -> u8 {
    for cause in error.chain() {
        if let Some(status) = cause.downcast_ref::<Status>() {
            return match status.code() {
                Code::NotFound => NOT_FOUND,
                Code::InvalidArgument => USAGE,
                Code::Unauthenticated | Code::PermissionDenied => DENIED,
                Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => UNAVAILABLE,
                _ => FAILED,
            };
        }
        if cause.is::<tonic::transport::Error>() {
            return UNAVAILABLE;
        }
        if cause.is::<ContextTrouble>() {
            return CONFIGURATION;
        }
    }
    FAILED
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use anyhow::Context;

    use super::*;

    #[test]
    fn a_code_tells_what_happened() {
        let of = |status: Status| code_of(&Err::<(), _>(status).context("compact table t").unwrap_err());
        assert_eq!(of(Status::not_found("x")), NOT_FOUND);
        assert_eq!(of(Status::permission_denied("x")), DENIED);
        assert_eq!(of(Status::unauthenticated("x")), DENIED);
        assert_eq!(of(Status::unavailable("x")), UNAVAILABLE);
        assert_eq!(of(Status::invalid_argument("x")), USAGE);
        assert_eq!(of(Status::internal("x")), FAILED);
        assert_eq!(code_of(&anyhow::Error::new(ContextTrouble("x".into()))), CONFIGURATION);
        assert_eq!(code_of(&anyhow::anyhow!("x")), FAILED);
    }
}
