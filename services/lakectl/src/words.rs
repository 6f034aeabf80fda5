//! Values of the interface as words.

use chrono::{DateTime, SecondsFormat, Utc};
use lake_proto::admin::v1 as proto;
use prost_types::Timestamp;

/// An instant in RFC 3339, to the millisecond.
pub(crate) fn instant(at: Option<Timestamp>) -> Option<String> {
    let at = at?;
    let instant = DateTime::<Utc>::from_timestamp(at.seconds, u32::try_from(at.nanos).ok()?)?;
    Some(instant.to_rfc3339_opts(SecondsFormat::Millis, true))
}

pub(crate) fn kind(kind: i32) -> &'static str {
    match proto::Kind::try_from(kind) {
        Ok(proto::Kind::Case) => "case",
        Ok(proto::Kind::Form) => "form",
        Ok(proto::Kind::Location) => "location",
        Ok(proto::Kind::Unspecified) | Err(_) => "unknown",
    }
}

/// A project and a kind, `demo/case`; a project alone, where no kind is meant.
pub(crate) fn space(space: Option<proto::Space>) -> String {
    match space {
        None => "everything".into(),
        // What an operation on the whole lake is about.
        Some(space) if space.domain.is_empty() => "the lake".into(),
        Some(space) if space.kind == i32::from(proto::Kind::Unspecified) => space.domain,
        Some(space) => format!("{}/{}", space.domain, kind(space.kind)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_rfc_3339() {
        let at = |seconds, nanos| instant(Some(Timestamp { seconds, nanos }));
        assert_eq!(at(0, 5_000_000).as_deref(), Some("1970-01-01T00:00:00.005Z"));
        assert_eq!((at(i64::MAX, 0), at(0, -1), instant(None)), (None, None, None));
    }

    #[test]
    fn spaces_are_named() {
        let named = |domain: &str| space(Some(proto::Space { domain: domain.into(), kind: proto::Kind::Form.into() }));
        assert_eq!(
            (named("demo").as_str(), named("").as_str(), space(None).as_str()),
            ("demo/form", "the lake", "everything")
        );
    }
}
