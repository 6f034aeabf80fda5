//! Why a call is not answered as it was asked: one translation into gRPC's codes, with what, on which object, and what to do next.

use std::collections::HashMap;

use lake_shared::error_chain::Chain;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::options::Role;
use crate::catalog::registrar::RegistrarError;
use crate::handle_error::HandleError;
use crate::metastore::MetastoreError;

/// Domain of the reasons, as gRPC's ErrorInfo wants one.
const REASONS_OF: &str = "lake.admin.v1";

/// Why a call is not answered as it was asked.
#[derive(Debug)]
pub(super) enum Problem {
    /// No token, or a wrong one.
    Token,
    /// The token's role is too small.
    Role { name: String, has: Role, needs: Role },
    /// The token is for single projects, the call for all.
    OtherProjects { name: String, action: String },
    /// A field of the request cannot be used.
    Field { field: &'static str, reason: String },
    /// There is no such object, or the caller may not see it.
    NotFound { what: &'static str, id: String, list: &'static str },
    /// A table cannot be looked at.
    Table { name: String, reason: String },
    /// The metastore failed.
    Metastore(MetastoreError),
    /// The writer did not do it.
    Handle(HandleError),
    /// Too much of one sort is under way.
    Busy { what: &'static str },
}

impl From<MetastoreError> for Problem {
    fn from(error: MetastoreError) -> Self {
        Self::Metastore(error)
    }
}

impl From<HandleError> for Problem {
    fn from(error: HandleError) -> Self {
        Self::Handle(error)
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        status(&problem)
    }
}

/// Code, reason for programs, and text for people.
fn parts(problem: &Problem) -> (Code, &'static str, String) {
    match problem {
        Problem::Token => {
            let text =
                "no token, or one that is not known; give a bearer token of `[[admin.tokens]]` (lakectl context add)";
            (Code::Unauthenticated, "TOKEN_UNKNOWN", text.into())
        }
        Problem::Role { name, has, needs } => {
            let text = format!(
                "the token of `{name}` has the role {}, and this call needs {}; ask who has a token of that role",
                word(*has),
                word(*needs)
            );
            (Code::PermissionDenied, "ROLE_TOO_SMALL", text)
        }
        Problem::OtherProjects { name, action } => {
            let text = format!(
                "the token of `{name}` is for single projects, so it cannot {action}; name a project, or use a token for all of them"
            );
            (Code::PermissionDenied, "OTHER_PROJECTS", text)
        }
        Problem::Field { field, reason } => (Code::InvalidArgument, "FIELD", format!("field `{field}`: {reason}")),
        Problem::NotFound { what, id, list } => {
            (Code::NotFound, "NOT_FOUND", format!("there is no {what} `{id}`; {list} shows those that there are"))
        }
        Problem::Table { name, reason } => {
            (Code::Unavailable, "TABLE", format!("table {name}: {reason}; lakectl table get {name} shows its state"))
        }
        Problem::Metastore(error) => (Code::Unavailable, "METASTORE", Chain(error).to_string()),
        Problem::Busy { what } => {
            let text = format!("too many {what} are under way; try again when some of them have ended");
            (Code::ResourceExhausted, "BUSY", text)
        }
        Problem::Handle(error) => {
            let code = match error {
                HandleError::NotLeaseHolder { .. } | HandleError::Stopping | HandleError::Metastore(_) => {
                    Code::Unavailable
                }
                HandleError::Busy(_) => Code::ResourceExhausted,
                HandleError::UnknownTable(_) | HandleError::UnknownSpace(_) => Code::NotFound,
                HandleError::Quarantine(_) => Code::FailedPrecondition,
                HandleError::Catalog(RegistrarError::NoCatalog) => Code::FailedPrecondition,
                HandleError::Catalog(_) => Code::Unavailable,
                HandleError::Store(_) => Code::Internal,
            };
            (code, "WRITER", Chain(error).to_string())
        }
    }
}

/// Longest text of an answer, bytes. It travels in a header, and clients close the connection over one that is too large: a request may have named
/// something very long.
const TEXT_BYTES_MAX: usize = 1_000;

/// The beginning of a text that is too long.
fn shortened(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(TEXT_BYTES_MAX)])
}

/// The problem as gRPC tells it.
pub(super) fn status(problem: &Problem) -> Status {
    let (code, reason, text) = parts(problem);
    let text = shortened(&text);
    let mut details = ErrorDetails::with_error_info(reason, REASONS_OF, HashMap::new());
    if let Problem::Field { field, reason } = problem {
        details.add_bad_request_violation(*field, shortened(reason));
    }
    if let Problem::NotFound { what, id, .. } = problem {
        details.set_resource_info(*what, shortened(id), "", text.clone());
    }
    Status::with_error_details(code, text, details)
}

/// The role as configurations have it.
pub(super) const fn word(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Operator => "operator",
        Role::Admin => "admin",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn problems_name_the_object_and_the_reason() {
        let absent = Problem::NotFound { what: "table", id: "demo_case_sql_x".into(), list: "ListTables" };
        let told = status(&absent);
        assert_eq!(told.code(), Code::NotFound);
        assert!(told.message().contains("`demo_case_sql_x`") && told.message().contains("ListTables"));
        let details = told.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "NOT_FOUND");
        assert_eq!(details.resource_info().unwrap().resource_name, "demo_case_sql_x");
        let long = Problem::NotFound { what: "table", id: "é".repeat(50_000), list: "ListTables" };
        assert!(status(&long).message().len() < 1_100 && status(&long).details().len() < 4_000);
        let field = Problem::Field { field: "page_size", reason: "it is negative".into() };
        let details = status(&field).get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "page_size");
    }
}
