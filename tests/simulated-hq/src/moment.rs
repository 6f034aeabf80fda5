//! Instants as microseconds since 1970 UTC, and the ways in which HQ and phones write them.

use chrono::{DateTime, Datelike};

use crate::dice::Dice;

/// Microseconds of a second.
pub const SECOND: i64 = 1_000_000;
/// Microseconds of a minute.
pub const MINUTE: i64 = 60 * SECOND;
/// Microseconds of a day.
pub const DAY: i64 = 24 * 60 * MINUTE;

/// Year, month, day of an instant.
fn civil(us: i64) -> (i64, i64, i64) {
    // Days to a calendar date by eras of 400 years that begin in March.
    let days = us.div_euclid(DAY) + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

fn digits(out: &mut String, number: i64, width: u32) {
    for place in (0..width).rev() {
        let digit = (number / 10_i64.pow(place)) % 10;
        out.push(char::from(b'0' + digit as u8));
    }
}

fn push_date(out: &mut String, us: i64) {
    let (year, month, day) = civil(us);
    digits(out, year, 4);
    out.push('-');
    digits(out, month, 2);
    out.push('-');
    digits(out, day, 2);
}

fn push_time(out: &mut String, us: i64) {
    let seconds = us.rem_euclid(DAY) / SECOND;
    digits(out, seconds / 3600, 2);
    out.push(':');
    digits(out, seconds / 60 % 60, 2);
    out.push(':');
    digits(out, seconds % 60, 2);
}

/// `YYYY-MM-DDTHH:MM:SS.ffffffZ`.
pub fn text(us: i64) -> String {
    let mut out = String::with_capacity(27);
    push_date(&mut out, us);
    out.push('T');
    push_time(&mut out, us);
    out.push('.');
    digits(&mut out, us.rem_euclid(SECOND), 6);
    out.push('Z');
    out
}

/// `YYYY-MM-DD`.
pub fn date(us: i64) -> String {
    let mut out = String::with_capacity(10);
    push_date(&mut out, us);
    out
}

/// First day of the month as `YYYY-MM-DD`; `None` outside the years 1900 to 2200.
pub fn month(us: i64) -> Option<String> {
    let year = DateTime::from_timestamp_micros(us)?.year();
    (1900..=2200).contains(&year).then(|| format!("{}01", &date(us)[..8]))
}

/// As a phone writes it, in some zone and one of several notations; returns the text and the instant that it means (the
/// notation may drop fractions).
pub fn as_phones_write(us: i64, dice: &mut Dice) -> (String, i64) {
    let milliseconds = us.div_euclid(1000) * 1000;
    let (zone, minutes) = *dice.pick(&[
        ("+05:30", 330),
        ("+05:30", 330),
        ("Z", 0),
        ("+0545", 345),
        ("-03:00", -180),
        ("+01", 60),
        ("", 0),
        ("+00:00", 0),
    ]);
    let whole = dice.chance(200);
    let instant = if whole { us.div_euclid(SECOND) * SECOND } else { milliseconds };
    let local = instant + minutes * MINUTE;
    let mut out = String::with_capacity(30);
    push_date(&mut out, local);
    out.push(if dice.chance(30) { ' ' } else { 'T' });
    push_time(&mut out, local);
    if !whole {
        out.push('.');
        digits(&mut out, local.rem_euclid(SECOND) / 1000, 3);
    }
    out.push_str(zone);
    (out, instant)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn instants_are_written_as_the_calendar_has_them() {
        for us in [0, -1, 951_827_696_000_001, 4_102_444_799_999_999, -2_208_988_800_000_000, 1_709_210_096_123_456] {
            let expected = DateTime::from_timestamp_micros(us).unwrap();
            assert_eq!(text(us), expected.format("%Y-%m-%dT%H:%M:%S%.6fZ").to_string());
        }
        assert_eq!(month(1_709_210_096_123_456).unwrap(), "2024-02-01");
        assert_eq!(month(-2_300_000_000_000_000), None);
    }

    #[test]
    fn phone_notation_means_the_instant() {
        let mut dice = Dice::new(3);
        for _ in 0..500 {
            let us = dice.between(0, 2_000_000_000) * SECOND + dice.between(0, 999_999);
            let (written, instant) = as_phones_write(us, &mut dice);
            let full = written.replace(' ', "T");
            let zoned = match full.len() {
                length if full.as_bytes()[length - 3] == b'+' => format!("{full}00"),
                19 | 23 if !full.ends_with('Z') => format!("{full}Z"),
                _ => full,
            };
            let parsed = DateTime::parse_from_str(&zoned.replace('Z', "+00:00"), "%Y-%m-%dT%H:%M:%S%.f%z").unwrap();
            assert_eq!(parsed.timestamp_micros(), instant, "{written}");
        }
    }
}
