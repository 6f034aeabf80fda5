#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::LazyLock;

use chrono::{Datelike, FixedOffset, NaiveDate};
use proptest::prelude::*;
use regex::{Captures, Regex};

use super::super::{FormXmlError, RaiseReason};

fn to_utc(value: &str) -> Result<Option<String>, FormXmlError> {
    super::to_utc(value).map(|found| found.map(|utc| utc.as_str().to_owned()))
}

/// HQ's loose pattern, as one writes it down.
static LOOSE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"^\d{4}\D?(0[1-9]|1[0-2])\D?([12]\d|0[1-9]|3[01])[ T]([01]\d|2[0-3])\D?[0-5]\d\D?([0-5]\d)?\D?(\d{3,6})?",
        r"([zZ]|[+-]([01]\d|2[0-3])\D?([0-5]\d)?)?\n?$"
    ))
    .unwrap()
});

/// The grammar of iso8601, as one writes it down.
static ISO: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"^(?<year>[0-9]{4})(-(?<m1>[0-9]{1,2})|(?<m2>[0-9]{2}))(-(?<d1>[0-9]{1,2})|(?<d2>[0-9]{2}))[ T](?<hour>[0-9]{2})",
        r"(:?(?<minute>[0-9]{2}))?(:?(?<second>[0-9]{1,2})([.,](?<fraction>[0-9]+))?)?",
        r"(?<zone>Z|(?<sign>[+-])(?<zh>[0-9]{2}):?(?<zm>[0-9]{2})?)?\n?$"
    ))
    .unwrap()
});

fn field(found: &Captures<'_>, names: &[&str]) -> u32 {
    names.iter().find_map(|name| found.name(name)).map_or(0, |digits| digits.as_str().parse().unwrap())
}

/// The rule, step by step.
fn plain(value: &str) -> Result<Option<String>, FormXmlError> {
    let Some(found) = ISO.captures(value).filter(|_| LOOSE.is_match(value)) else { return Ok(None) };
    let fraction: String =
        found.name("fraction").map_or("", |f| f.as_str()).chars().chain("000000".chars()).take(6).collect();
    let seconds = (field(&found, &["zh"]) * 60 + field(&found, &["zm"])) as i32 * 60;
    let sign = if found.name("sign").is_some_and(|sign| sign.as_str() == "-") { -1 } else { 1 };
    let date = NaiveDate::from_ymd_opt(
        field(&found, &["year"]) as i32,
        field(&found, &["m1", "m2"]),
        field(&found, &["d1", "d2"]),
    )
    .filter(|date| date.year() > 0);
    let local = date.and_then(|date| {
        let (hour, minute, second) = (field(&found, &["hour"]), field(&found, &["minute"]), field(&found, &["second"]));
        date.and_hms_micro_opt(hour, minute, second, fraction.parse().unwrap())
    });
    let (Some(local), Some(zone)) = (local, FixedOffset::east_opt(sign * seconds)) else { return Ok(None) };
    let utc = local - zone;
    if !(1..=9999).contains(&utc.year()) {
        return Err(FormXmlError::Raises { reason: RaiseReason::DatetimeOutOfRange });
    }
    Ok(Some(format!("{}-{}", utc.year(), utc.format("%m-%dT%H:%M:%S%.6fZ"))))
}

#[test]
fn values_that_hq_changes() {
    for (value, expected) in [
        ("2013-03-09T06:30:09.007+03", "2013-03-09T03:30:09.007000Z"),
        ("2013-03-09T06:30:09.007+05:30", "2013-03-09T01:00:09.007000Z"),
        ("2013-03-09T06:30:09.007-0330", "2013-03-09T10:00:09.007000Z"),
        ("2013-03-09T06:30:09+03:", "2013-03-09T03:30:09.000000Z"),
        ("2013-03-09 06:30:09", "2013-03-09T06:30:09.000000Z"),
        ("20130309T063009Z", "2013-03-09T06:30:09.000000Z"),
        ("20130309 0630", "2013-03-09T06:30:00.000000Z"),
        ("2013-03-09T06:30:09,123", "2013-03-09T06:30:09.123000Z"),
        ("2013-03-09T06:30:09.12345Z", "2013-03-09T06:30:09.123450Z"),
        ("2013-03-09T06:30:09Z\n", "2013-03-09T06:30:09.000000Z"),
        ("2015-07-14 1530", "2015-07-14T15:30:00.000000Z"),
        ("2013-03-09T06:30:09+23:59", "2013-03-08T06:31:09.000000Z"),
        ("2024-12-30T06:59.12Z", "2024-12-30T06:00:59.120000Z"),
        ("2024-12-30T0659.12Z", "2024-12-30T06:00:59.120000Z"),
        ("2024-12-30T06:59.5123456Z", "2024-12-30T06:00:59.512345Z"),
        ("2024-12-31T06:59-0997", "2024-12-31T17:36:00.000000Z"),
        ("2024-03-30T06+09", "2024-03-29T21:00:00.000000Z"),
        ("2024-03-30T06+09:", "2024-03-29T21:00:00.000000Z"),
        ("2024-03-30T06+09:30", "2024-03-29T20:30:00.000000Z"),
        ("0099-01-01T00:00:00Z", "99-01-01T00:00:00.000000Z"),
    ] {
        assert_eq!(to_utc(value), Ok(Some(expected.to_owned())), "{value}");
    }
}

#[test]
fn values_that_hq_leaves() {
    for value in [
        "2024-12-30T06:59.60Z",
        "2024-12-30T06:59.7Z",
        "2024-12-31T06:30:59+2390",
        "2024-03-30T06-30",
        "2024-03-30T06Z",
        "2024-12-31T06:30:59+05:60",
        "2013-03-09",
        "06:30:09.000+05:30",
        "2013-03-09T06",
        "2013-03-09t06:30:09Z",
        "2013-03-09T06:30:09z",
        "2013-03-09T06:30:09.12Z",
        "2013-03-09T06:30:09.123456789Z",
        "2013/03/09T06:30:09",
        "2013-03-09T06.30.09",
        "2016-12-31T24:00:00Z",
        "2016-12-31T23:59:60Z",
        " 2013-03-09T06:30:09Z",
        "2013-03-09T06:30:09Z ",
        "2013-03-09T06:30:09Z\n\n",
        "2013-03-09  06:30:09",
        "2013-03-09T06:30:09+03.30",
        "2013-02-30T06:30:09Z",
        "201303090630",
        "2015-07-14 2015-06-07",
        "0000-01-01T00:00:00Z",
        "२०१३-०३-०९T०६:३०:०९",
        "2013-03-09T06:30é09",
        "",
        "1",
    ] {
        assert_eq!(to_utc(value), Ok(None), "{value}");
    }
}

#[test]
fn values_outside_the_calendar_raise() {
    for value in ["0001-01-01T00:00:00+05:30", "9999-12-31T23:59:59-05:00"] {
        assert!(to_utc(value).unwrap_err().is_raised(), "{value}");
    }
}

/// Texts near the patterns: pieces that are right, nearly right or missing.
fn near_datetime() -> impl Strategy<Value = String> {
    let year = prop_oneof![Just("2024".to_owned()), Just("0001".to_owned()), Just("9999".to_owned()), "[0-9]{3,5}"];
    let two = prop_oneof![6 => "[0-3][0-9]", 2 => "[0-9]{2}", 1 => "[0-9]{1,3}"];
    let separator = prop_oneof![4 => Just(String::new()), 4 => Just("-".to_owned()), 1 => "[:./ é]"];
    let middle = prop_oneof![8 => Just("T".to_owned()), 2 => Just(" ".to_owned()), 1 => "[tT ]{0,2}"];
    let time = prop_oneof![
        "[0-2][0-9]:?[0-5][0-9](:?[0-5][0-9]([.,][0-9]{1,8})?)?",
        "[0-2][0-9]:?[0-6]?[0-9]{0,2}[.,:+-]?[0-9]{0,8}",
        "[0-9:.,+-]{0,12}",
    ];
    let zone = prop_oneof![
        3 => Just(String::new()),
        2 => Just("Z".to_owned()),
        4 => "[+-][0-2][0-9]:?([0-9]{2})?",
        1 => "[zZ+-]?[0-9]{0,5}",
    ];
    let end = prop_oneof![8 => Just(String::new()), 1 => "[\n Z]{1,2}"];
    let month_and_day = (separator.clone(), two.clone(), separator, two);
    (year, month_and_day, middle, time, zone, end).prop_map(|(year, (s1, month, s2, day), middle, time, zone, end)| {
        [year, s1, month, s2, day, middle, time, zone, end].concat()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn agrees_with_the_patterns_near_datetimes(value in near_datetime()) {
        prop_assert_eq!(to_utc(&value), plain(&value), "{}", value);
    }

    #[test]
    fn agrees_with_the_patterns_after_a_good_date(time in "[0-9:.,+Z -]{0,16}") {
        let value = format!("2024-02-28T{time}");
        prop_assert_eq!(to_utc(&value), plain(&value), "{}", value);
    }

    #[test]
    fn agrees_with_the_patterns_on_anything(value in "\\PC{0,24}") {
        prop_assert_eq!(to_utc(&value), plain(&value), "{}", value);
    }
}
