//! The month of a row: what the lake's tables are clustered by. Pure; a garbage date is `None`, never an error.

use chrono::{Datelike, NaiveDate};
use lake_shared::identity::Kind;
use serde_json::{Map, Value};

use crate::timestamp;

/// Years outside are typing errors or unset clocks of phones.
const YEARS: std::ops::RangeInclusive<i32> = 1900..=2200;

/// First day of the month (UTC) of a document: of a case's `opened_on`; of a form's `form.meta.timeEnd` where that is a date or
/// date-time, else of `received_on`. A location has none.
pub fn month(kind: Kind, document: &Map<String, Value>) -> Option<NaiveDate> {
    let date = match kind {
        Kind::Case => date_of(document.get("opened_on")),
        Kind::Form => date_of(meta(document, "timeEnd")).or_else(|| date_of(document.get("received_on"))),
        Kind::Location => None,
    }?;
    date.with_day(1).filter(|first| YEARS.contains(&first.year()))
}

/// The user whose location the row gets: `user_id`, of a form else `form.meta.userID`. Empty counts as none.
pub fn user_id(kind: Kind, document: &Map<String, Value>) -> Option<&str> {
    let column = || filled(document.get("user_id"));
    match kind {
        Kind::Case => column(),
        Kind::Form => column().or_else(|| filled(meta(document, "userID"))),
        Kind::Location => None,
    }
}

/// The owner of a case: a user, a group or a location. Empty counts as none.
pub fn owner_id(kind: Kind, document: &Map<String, Value>) -> Option<&str> {
    match kind {
        Kind::Case => filled(document.get("owner_id")),
        Kind::Form | Kind::Location => None,
    }
}

fn filled(value: Option<&Value>) -> Option<&str> {
    value?.as_str().filter(|text| !text.is_empty())
}

fn meta<'a>(form: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    form.get("form")?.get("meta")?.get(key)
}

fn date_of(value: Option<&Value>) -> Option<NaiveDate> {
    timestamp::date(value?.as_str()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use serde_json::json;

    use super::*;

    fn shown(kind: Kind, document: Value) -> Option<String> {
        month(kind, document.as_object().unwrap()).map(|date| date.to_string())
    }

    #[test]
    fn a_case_has_the_month_it_was_opened_in() {
        let of = |opened_on: Value| shown(Kind::Case, json!({ "opened_on": opened_on, "received_on": "2020-01-01" }));
        assert_eq!(of(json!("2026-01-31T23:30:00.000000Z")).unwrap(), "2026-01-01");
        assert_eq!(of(json!("2026-01-31")).unwrap(), "2026-01-01");
        for garbage in [
            json!(null),
            json!(""),
            json!("garbage"),
            json!(7),
            json!({}),
            json!("1899-12-31T00:00:00Z"),
            json!("2201-01-01T00:00:00Z"),
        ] {
            assert_eq!(of(garbage.clone()), None, "{garbage}");
        }
        assert_eq!(shown(Kind::Case, json!({})), None);
        assert_eq!(of(json!("1900-01-01T00:00:00Z")).unwrap(), "1900-01-01");
        assert_eq!(of(json!("2200-12-31T00:00:00Z")).unwrap(), "2200-12-01");
    }

    /// The predecessor's month crashed on every one of these.
    #[test]
    fn a_form_has_the_month_it_was_filled_in() {
        let of = |time_end: Value| {
            let form =
                json!({ "form": { "meta": { "timeEnd": time_end } }, "received_on": "2026-03-04T00:00:00.000000Z" });
            shown(Kind::Form, form)
        };
        assert_eq!(of(json!("2026-01-05T10:11:00.120000Z")).unwrap(), "2026-01-01");
        assert_eq!(of(json!("2010-07-23")).unwrap(), "2010-07-01");
        for unreadable in [
            json!(null),
            json!(""),
            json!({"#text": "2026-01-05"}),
            json!(["2026-01-05"]),
            json!("5 May"),
            json!("99-01-01T00:00:00Z"),
        ] {
            assert_eq!(of(unreadable.clone()).unwrap(), "2026-03-01", "{unreadable}");
        }
        // A date it is, only not a believable one.
        assert_eq!(of(json!("1000-01-01")), None);
        let without =
            |form: Value| shown(Kind::Form, json!({ "form": form, "received_on": "2026-03-04T00:00:00.000000Z" }));
        for shape in [json!({}), json!(null), json!({"meta": "x"}), json!({"meta": ["x"]}), json!("x")] {
            assert_eq!(without(shape.clone()).unwrap(), "2026-03-01", "{shape}");
        }
        assert_eq!(shown(Kind::Form, json!({})), None);
    }

    #[test]
    fn only_a_case_has_an_owner() {
        let document = json!({"owner_id": "o"});
        let of = |kind| owner_id(kind, document.as_object().unwrap());
        assert_eq!([of(Kind::Case), of(Kind::Form), of(Kind::Location)], [Some("o"), None, None]);
        for none in [json!({"owner_id": ""}), json!({"owner_id": ["o"]}), json!({})] {
            assert_eq!(owner_id(Kind::Case, none.as_object().unwrap()), None);
        }
    }

    #[test]
    fn a_location_has_no_month() {
        assert_eq!(shown(Kind::Location, json!({ "opened_on": "2026-01-01", "received_on": "2026-01-01" })), None);
    }

    #[test]
    fn users_come_from_the_column_or_the_meta_block() {
        let of = |kind, document: Value| user_id(kind, document.as_object().unwrap()).map(str::to_owned);
        let meta = json!({ "meta": { "userID": "m" } });
        assert_eq!(of(Kind::Case, json!({ "user_id": "u", "owner_id": "o" })).unwrap(), "u");
        assert_eq!(of(Kind::Case, json!({ "user_id": "", "owner_id": "o", "form": meta })), None);
        assert_eq!(of(Kind::Form, json!({ "user_id": "u", "form": meta })).unwrap(), "u");
        for none in [json!(null), json!(""), json!(5)] {
            assert_eq!(of(Kind::Form, json!({ "user_id": none, "form": meta })).unwrap(), "m");
        }
        assert_eq!(of(Kind::Form, json!({ "form": { "meta": { "userID": "" } } })), None);
        assert_eq!(of(Kind::Location, json!({ "user_id": "u" })), None);
    }
}
