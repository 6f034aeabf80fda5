//! Classifies errors of a database: worth trying again, worth asking for less, or an operator has to act.

use sqlx::Error;

use crate::source::{Hindrance, SourceError};

/// Rows that take more memory than they may. It goes through sqlx as an error of decoding, which ends the reading of further rows.
#[derive(Debug, thiserror::Error)]
#[error("their rows take more than {bytes_max} bytes of memory")]
pub(super) struct RowsTooLarge {
    pub bytes_max: usize,
}

/// What stands in the way of this statement and perhaps of no other: whether it does has to be tried, unless the rows are too large.
pub(super) fn hindrance(error: &Error) -> Option<Hindrance> {
    match error {
        Error::Database(database) => hindrance_of_code(&database.code().unwrap_or_default()),
        Error::Decode(source) if source.is::<RowsTooLarge>() => Some(Hindrance::TooLarge),
        // A column that has got another type is the same trouble in all rows.
        Error::ColumnDecode { source, .. } if source.to_string().starts_with("mismatched types") => None,
        Error::ColumnDecode { .. } | Error::Decode(_) => Some(Hindrance::Undecodable),
        _ => None,
    }
}

fn hindrance_of_code(code: &str) -> Option<Hindrance> {
    match code {
        // The time limit; a replica that had to give up a long read; a limit on memory or on temporary files.
        "57014" | "40001" | "53000" | "53100" | "53200" | "53400" => Some(Hindrance::TooSlow),
        // Data that the server itself cannot show, as it is damaged, not valid in its encoding, or beyond a limit of the server.
        _ if ["22", "54", "XX"].iter().any(|class| code.starts_with(class)) => Some(Hindrance::Undecodable),
        _ => None,
    }
}

/// What an error says, with the server's code.
pub(super) fn reason(error: &Error) -> String {
    match error {
        Error::Database(database) => {
            format!("{} (SQLSTATE {})", database.message(), database.code().unwrap_or_default())
        }
        Error::Decode(source) => source.to_string(),
        _ => error.to_string(),
    }
}

/// Turns trouble with a database into the port's error. Addresses and passwords are not in it.
pub(super) fn source_error(action: impl Into<String>, error: &Error) -> SourceError {
    let action = action.into();
    match error {
        Error::Database(database) => {
            let code = database.code().unwrap_or_default();
            let reason = reason(error);
            if is_passing(&code) {
                SourceError::Unavailable { action, reason }
            } else {
                SourceError::Refused { action, reason: format!("{reason}; {}", advice(&code)) }
            }
        }
        Error::Configuration(_) => {
            SourceError::Refused { action, reason: "the address of the database is not usable".into() }
        }
        Error::Tls(reason) => SourceError::Refused {
            action,
            reason: format!("TLS: {reason}; look at sslmode and sslrootcert of the address"),
        },
        // A connection that breaks in the middle of a message ends as a protocol error.
        Error::Io(_) | Error::Protocol(_) | Error::PoolTimedOut | Error::PoolClosed | Error::WorkerCrashed => {
            SourceError::Unavailable { action, reason: error.to_string() }
        }
        _ => {
            SourceError::Refused { action, reason: format!("{error}; is this the database of a known version of HQ?") }
        }
    }
}

/// Whether the connection itself is of no more use, so that the same may work on another one.
pub(super) fn is_broken_connection(error: &Error) -> bool {
    match error {
        Error::Io(_) | Error::Protocol(_) => true,
        // The server ends the session (57P01 to 57P05), or pgbouncer lost it (08P01).
        Error::Database(database) => {
            database.code().is_some_and(|code| code.starts_with("57P") || code.starts_with("08"))
        }
        _ => false,
    }
}

/// Whether the server has too much to do: a statement ended by its time limit, a lock not had in time, no room for another connection.
pub(super) fn is_overload(error: &Error) -> bool {
    match error {
        Error::Database(database) => {
            database.code().is_some_and(|code| code == "57014" || code == "55P03" || code.starts_with("53"))
        }
        _ => false,
    }
}

/// Whether a table or a column of the statement is not there (any more), or has another type than when the statement was prepared.
pub(super) fn is_of_other_tables(error: &Error) -> bool {
    match error {
        Error::Database(database) => {
            database.code().is_some_and(|code| ["42703", "42P01", "0A000"].contains(&code.as_ref()))
        }
        _ => false,
    }
}

/// SQLSTATE classes that pass by themselves: connection, transaction rollback (also: conflict with recovery on a replica), resources,
/// object in use, operator intervention (also: statement time-out), system error, internal error.
fn is_passing(code: &str) -> bool {
    ["08", "40", "53", "55", "57", "58", "XX"].iter().any(|class| code.starts_with(class))
}

fn advice(code: &str) -> &'static str {
    match code.get(..2) {
        Some("28") => "check user, password and pg_hba.conf",
        Some("3D") => "check the database's name in the address",
        _ if code == "42501" => "grant SELECT to the role of the address",
        _ if code == "42P01" || code == "42703" => "the tables change at this moment, or this is not HQ's database",
        _ => "see the server's log",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::io;

    use super::*;

    #[test]
    fn codes_decide() {
        for code in ["57014", "57P03", "53300", "40001", "08P01", "08006", "55P03", "XX000"] {
            assert!(is_passing(code), "{code}");
        }
        for code in ["28P01", "42P01", "42703", "42501", "3D000", "22021", ""] {
            assert!(!is_passing(code), "{code}");
        }
    }

    #[test]
    fn a_statement_may_be_at_fault_for_what_other_statements_do_not_meet() {
        for (code, at_fault) in [
            ("57014", Some(Hindrance::TooSlow)),
            ("40001", Some(Hindrance::TooSlow)),
            ("53400", Some(Hindrance::TooSlow)),
            ("22021", Some(Hindrance::Undecodable)),
            ("XX001", Some(Hindrance::Undecodable)),
            ("53300", None),
            ("55P03", None),
            ("57P01", None),
            ("42P01", None),
        ] {
            assert_eq!(hindrance_of_code(code), at_fault, "{code}");
        }
        let too_large = Error::Decode(Box::new(RowsTooLarge { bytes_max: 7 }));
        assert_eq!(hindrance(&too_large), Some(Hindrance::TooLarge));
        let column = |source: &str| Error::ColumnDecode { index: "0".into(), source: source.into() };
        assert_eq!(hindrance(&column("invalid utf-8 sequence")), Some(Hindrance::Undecodable));
        assert_eq!(hindrance(&column("mismatched types; Rust type `String` is not compatible")), None);
        assert_eq!(hindrance(&Error::Io(io::Error::from(io::ErrorKind::ConnectionReset))), None);
    }

    #[test]
    fn a_server_that_is_away_is_unavailable_and_a_wrong_address_refused() {
        let away = Error::Io(io::Error::from(io::ErrorKind::ConnectionRefused));
        assert!(matches!(source_error("read", &away), SourceError::Unavailable { .. }));
        assert!(is_broken_connection(&away));
        let wrong = Error::Configuration("postgres://u:secret@h".into());
        let error = source_error("read", &wrong);
        assert!(matches!(error, SourceError::Refused { .. }) && !error.to_string().contains("secret"));
    }
}
