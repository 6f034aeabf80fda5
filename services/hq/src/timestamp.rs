//! HQ's way of writing instants, and microseconds since 1970 as the lake counts them.

use chrono::{DateTime, Datelike, NaiveDateTime, Timelike, Utc};

/// Reads `YYYY-MM-DDTHH:MM:SS[.fraction][Z]` as UTC microseconds. Digits beyond the sixth are dropped; `None` for anything else.
pub fn parse_us(text: &str) -> Option<i64> {
    let naive = NaiveDateTime::parse_from_str(text.strip_suffix('Z').unwrap_or(text), "%Y-%m-%dT%H:%M:%S%.f").ok()?;
    // chrono takes second 60 as a leap second; HQ never writes one.
    if naive.nanosecond() >= 1_000_000_000 {
        return None;
    }
    Some(naive.and_utc().timestamp_micros())
}

/// Writes microseconds as `YYYY-MM-DDTHH:MM:SS.ffffffZ`; `None` outside the years 1 to 9999, which HQ cannot hold.
pub fn format_us(us: i64) -> Option<String> {
    let mut text = seconds_text(within_hq_years(us)?);
    text.push('.');
    push_digits(&mut text, u32::try_from(us.rem_euclid(1_000_000)).ok()?, 100_000);
    text.push('Z');
    Some(text)
}

/// Writes microseconds the way Python's `isoformat()` does for a naive datetime: no zone, a fraction (of six digits) only where there is
/// one. `None` outside the years 1 to 9999.
pub fn format_naive_us(us: i64) -> Option<String> {
    let instant = within_hq_years(us)?;
    let format = if us.rem_euclid(1_000_000) == 0 { "%Y-%m-%dT%H:%M:%S" } else { "%Y-%m-%dT%H:%M:%S%.6f" };
    Some(instant.format(format).to_string())
}

/// `YYYY-MM-DDTHH:MM:SS`. By hand: every record has several instants, and a format that is interpreted takes several times as long.
fn seconds_text(instant: DateTime<Utc>) -> String {
    let mut text = String::with_capacity(27);
    push_digits(&mut text, instant.year().unsigned_abs(), 1_000);
    for (before, number) in [
        ('-', instant.month()),
        ('-', instant.day()),
        ('T', instant.hour()),
        (':', instant.minute()),
        (':', instant.second()),
    ] {
        text.push(before);
        push_digits(&mut text, number, 10);
    }
    text
}

/// Appends a number; `unit` is that of its first digit.
fn push_digits(text: &mut String, number: u32, mut unit: u32) {
    while unit > 0 {
        text.push(char::from_digit(number / unit % 10, 10).unwrap_or('0'));
        unit /= 10;
    }
}

fn within_hq_years(us: i64) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(us).filter(|instant| (1..=9999).contains(&instant.year()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn reads_what_it_writes() {
        for text in ["2026-01-05T10:11:12.345678Z", "1969-12-31T23:59:59.999999Z", "0001-01-01T00:00:00.000000Z"] {
            assert_eq!(format_us(parse_us(text).unwrap()).unwrap(), text);
        }
    }

    #[test]
    fn writes_as_chrono_would() {
        for us in [0, -1, 1, 59_999_999, 1_767_607_872_345_678, -62_135_596_800_000_000, 253_402_300_799_999_999] {
            let instant = DateTime::from_timestamp_micros(us).unwrap();
            assert_eq!(format_us(us).unwrap(), instant.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
        }
        assert_eq!((format_us(-62_135_596_800_000_001), format_us(253_402_300_800_000_000)), (None, None));
    }

    #[test]
    fn accepts_no_fraction_and_no_zone() {
        assert_eq!(parse_us("1970-01-01T00:00:01Z"), Some(1_000_000));
        assert_eq!(parse_us("1970-01-01T00:00:01.5"), Some(1_500_000));
    }

    #[test]
    fn refuses_what_is_not_an_instant() {
        for text in
            ["", "2026-01-05", "2026-02-30T00:00:00Z", "2026-01-05T10:11:60Z", "2026-01-05T10:11:12+01:00", "now"]
        {
            assert_eq!(parse_us(text), None, "{text}");
        }
    }

    #[test]
    fn naive_form_has_a_fraction_only_where_there_is_one() {
        assert_eq!(format_naive_us(0).unwrap(), "1970-01-01T00:00:00");
        assert_eq!(format_naive_us(1).unwrap(), "1970-01-01T00:00:00.000001");
        assert_eq!(format_naive_us(-1).unwrap(), "1969-12-31T23:59:59.999999");
    }

    #[test]
    fn infinity_has_no_text() {
        assert_eq!(format_us(i64::MAX), None);
        assert_eq!(format_us(i64::MIN), None);
    }
}
