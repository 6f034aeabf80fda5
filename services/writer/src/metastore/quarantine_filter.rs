//! Which entries of the quarantine are meant, as it is asked for, kept with an operation and told to people. Pure.

use std::fmt;

use lake_shared::identity::Kind;
use serde_json::{Map, Value};

/// Which entries of the quarantine are meant: those to which everything applies. `None` matches every value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuarantineFilter {
    /// Entries that this service quarantined: `fetcher`, `enricher` or `writer`.
    pub stage: Option<String>,
    /// Entries with this code of a reason, for example `row_impossible`.
    pub reason: Option<String>,
    /// Entries about documents of this domain.
    pub domain: Option<String>,
    /// Entries about documents of this kind.
    pub kind: Option<Kind>,
    /// Entries about documents of this type.
    pub document_type: Option<String>,
    /// Entries about documents with this id.
    pub document_id: Option<String>,
    /// The one entry with this fingerprint.
    pub fingerprint: Option<String>,
    /// Entries that came last at this instant or later, microseconds.
    pub from_us: Option<i64>,
    /// Entries that came last before this instant, microseconds.
    pub until_us: Option<i64>,
    /// Entries about documents of one of these domains.
    pub domains: Option<Vec<String>>,
    /// Entries whose records are being read again, and which can be.
    pub is_replayed: bool,
}

impl QuarantineFilter {
    /// As a JSON object, for the metastore.
    pub(crate) fn to_json(&self) -> String {
        let mut object = Map::new();
        for (name, text) in self.texts() {
            object.insert(name.into(), text.into());
        }
        for (name, instant) in [(FROM, self.from_us), (UNTIL, self.until_us)] {
            if let Some(instant) = instant {
                object.insert(name.into(), instant.into());
            }
        }
        Value::Object(object).to_string()
    }

    /// The inverse; `None` for what is none.
    pub(crate) fn from_json(text: &str) -> Option<Self> {
        let object: Value = serde_json::from_str(text).ok()?;
        let object = object.as_object()?;
        let text = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
        let instant = |name: &str| object.get(name).and_then(Value::as_i64);
        let kind = match object.get(KIND) {
            Some(kind) => Some(Kind::of_name(kind.as_str()?)?),
            None => None,
        };
        Some(Self {
            stage: text(STAGE),
            reason: text(REASON),
            domain: text(DOMAIN),
            kind,
            document_type: text(TYPE),
            document_id: text(ID),
            fingerprint: text(ENTRY),
            from_us: instant(FROM),
            until_us: instant(UNTIL),
            domains: None,
            is_replayed: false,
        })
    }

    /// What is given as text, by name.
    fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let texts = [
            (REASON, self.reason.as_deref()),
            (DOMAIN, self.domain.as_deref()),
            (KIND, self.kind.map(Kind::name)),
            (TYPE, self.document_type.as_deref()),
            (ID, self.document_id.as_deref()),
            (STAGE, self.stage.as_deref()),
            (ENTRY, self.fingerprint.as_deref()),
        ];
        texts.into_iter().filter_map(|(name, text)| Some((name, text?)))
    }
}

const REASON: &str = "reason";
const DOMAIN: &str = "domain";
const KIND: &str = "kind";
const TYPE: &str = "type";
const ID: &str = "id";
const STAGE: &str = "stage";
const ENTRY: &str = "entry";
const FROM: &str = "from_us";
const UNTIL: &str = "until_us";

/// `reason=form_xml_missing domain=demo`, or `all entries`.
impl fmt::Display for QuarantineFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instant = |at_us: i64| chrono::DateTime::from_timestamp_micros(at_us).map(|at| at.to_rfc3339());
        let times = [("from", self.from_us), ("until", self.until_us)];
        let times = times.into_iter().filter_map(|(name, at_us)| Some((name, instant(at_us?)?)));
        let texts = self.texts().map(|(name, text)| (name, text.to_owned()));
        let parts: Vec<String> = texts.chain(times).map(|(name, text)| format!("{name}={text}")).collect();
        formatter.write_str(if parts.is_empty() { "all entries" } else { "" })?;
        formatter.write_str(&parts.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_kept_and_told_as_it_was_given() {
        let filter = QuarantineFilter {
            reason: Some("row_impossible".into()),
            domain: Some("demo".into()),
            kind: Some(Kind::Form),
            document_id: Some("a\"b".into()),
            from_us: Some(1_000_000),
            ..QuarantineFilter::default()
        };
        assert_eq!(QuarantineFilter::from_json(&filter.to_json()), Some(filter.clone()));
        let told = "reason=row_impossible domain=demo kind=form id=a\"b from=1970-01-01T00:00:01+00:00";
        assert_eq!(filter.to_string(), told);
        let everything = QuarantineFilter::default();
        assert_eq!(QuarantineFilter::from_json(&everything.to_json()), Some(everything.clone()));
        assert_eq!(everything.to_string(), "all entries");
        for wrong in ["", "[]", "{\"kind\":\"house\"}", "{\"kind\":3}"] {
            assert_eq!(QuarantineFilter::from_json(wrong), None, "{wrong}");
        }
    }
}
