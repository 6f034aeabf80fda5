//! Reading the dates and times that occur in HQ's documents. Pure; anything unreadable is `None`, never an error.
//!
//! Accepted: `YYYY-MM-DD`, then optionally `T` or a blank and `HH:MM`, `:SS`, a fraction, and a zone `Z` or `±HH[:MM]`.
//! No zone means UTC (locations' `last_modified` has none). Digits after the sixth of a fraction are cut.

use chrono::NaiveDate;

const SECONDS_PER_DAY: i64 = 86_400;

/// Microseconds since 1970-01-01T00:00:00Z of a date-time text; `None` for a date alone or anything else.
pub fn micros(text: &str) -> Option<i64> {
    match parse(text)? {
        Parsed { time_micros: Some(time_micros), day } => Some(day * SECONDS_PER_DAY * 1_000_000 + time_micros),
        Parsed { time_micros: None, .. } => None,
    }
}

/// The UTC date of a date or date-time text.
pub fn date(text: &str) -> Option<NaiveDate> {
    let Parsed { day, time_micros } = parse(text)?;
    // An offset may move the moment into the day before or after.
    let day = day + time_micros.unwrap_or(0).div_euclid(SECONDS_PER_DAY * 1_000_000);
    EPOCH.checked_add_signed(chrono::TimeDelta::try_days(day)?)
}

/// 1970-01-01, from which days and microseconds are counted.
pub(crate) const EPOCH: NaiveDate = NaiveDate::from_ymd_opt(1970, 1, 1).expect("the epoch is a date");

struct Parsed {
    /// Days since the epoch, as written.
    day: i64,
    /// Microseconds since that day's midnight UTC; negative or over a day where an offset leads there.
    time_micros: Option<i64>,
}

fn parse(text: &str) -> Option<Parsed> {
    let mut rest = Digits(text.as_bytes());
    let year = rest.number(4)?;
    rest.expect(b"-")?;
    let month = rest.number(2)?;
    rest.expect(b"-")?;
    let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, rest.number(2)?)?;
    let day = date.signed_duration_since(EPOCH).num_days();
    if rest.0.is_empty() {
        return Some(Parsed { day, time_micros: None });
    }
    rest.expect(b"T ")?;
    let (hour, minute) = (rest.number(2)?, { rest.expect(b":").and_then(|()| rest.number(2))? });
    let (mut second, mut fraction) = (0, 0);
    if rest.expect(b":").is_some() {
        second = rest.number(2)?;
        if rest.expect(b".").is_some() {
            fraction = rest.fraction()?;
        }
    }
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let offset = rest.offset_seconds()?;
    if !rest.0.is_empty() {
        return None;
    }
    let seconds = i64::from(hour * 3_600 + minute * 60 + second) - offset;
    Some(Parsed { day, time_micros: Some(seconds * 1_000_000 + fraction) })
}

/// What is left of the text.
struct Digits<'a>(&'a [u8]);

impl Digits<'_> {
    /// Exactly `count` ASCII digits.
    fn number(&mut self, count: usize) -> Option<u32> {
        let (digits, rest) = self.0.split_at_checked(count)?;
        let mut number = 0;
        for digit in digits {
            number = number * 10 + char::from(*digit).to_digit(10)?;
        }
        self.0 = rest;
        Some(number)
    }

    /// One of these bytes.
    fn expect(&mut self, one_of: &[u8]) -> Option<()> {
        let (first, rest) = self.0.split_first()?;
        one_of.contains(first).then(|| self.0 = rest)
    }

    /// One or more digits as microseconds.
    fn fraction(&mut self) -> Option<i64> {
        let count = self.0.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (digits, rest) = self.0.split_at(count);
        self.0 = rest;
        let padded = digits.iter().map(|digit| i64::from(digit - b'0')).chain(std::iter::repeat(0)).take(6);
        (count > 0).then(|| padded.fold(0, |micros, digit| micros * 10 + digit))
    }

    /// The zone: nothing or `Z` is 0, `+05:30` is 19,800.
    fn offset_seconds(&mut self) -> Option<i64> {
        if self.0.is_empty() || self.expect(b"Z").is_some() {
            return Some(0);
        }
        let sign = if self.expect(b"+").is_some() { 1 } else { self.expect(b"-").map(|()| -1)? };
        let hours = self.number(2)?;
        let minutes = if self.0.is_empty() {
            0
        } else {
            // The colon may be left out.
            let _ = self.expect(b":");
            self.number(2)?
        };
        (hours <= 23 && minutes <= 59).then(|| sign * i64::from(hours * 3_600 + minutes * 60))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use chrono::{DateTime, Utc};

    use super::*;

    fn shown(text: &str) -> Option<String> {
        micros(text).map(|micros| DateTime::<Utc>::from_timestamp_micros(micros).unwrap().to_rfc3339())
    }

    #[test]
    fn hq_times_are_read_to_the_microsecond() {
        assert_eq!(micros("1970-01-01T00:00:00.000001Z"), Some(1));
        assert_eq!(shown("2026-01-05T10:11:12.240000Z").unwrap(), "2026-01-05T10:11:12.240+00:00");
        assert_eq!(shown("2026-01-05T10:11:12Z").unwrap(), "2026-01-05T10:11:12+00:00");
        // A location's last_modified has no zone, and a fraction only where it is not zero.
        assert_eq!(shown("2026-01-05T10:11:12.5").unwrap(), "2026-01-05T10:11:12.500+00:00");
        assert_eq!(shown("2026-01-05 10:11").unwrap(), "2026-01-05T10:11:00+00:00");
        assert_eq!(shown("2026-01-01T00:10:00+05:30").unwrap(), "2025-12-31T18:40:00+00:00");
        assert_eq!(shown("2026-01-01T00:10:00-0530").unwrap(), "2026-01-01T05:40:00+00:00");
        assert_eq!(shown("2026-01-01T00:10:00+05").unwrap(), "2025-12-31T19:10:00+00:00");
        assert_eq!(micros("1970-01-01T00:00:00.1234567Z"), Some(123_456));
        assert_eq!(micros("0001-01-01T00:00:00Z"), Some(-62_135_596_800_000_000));
    }

    #[test]
    fn anything_else_is_not_a_time() {
        for garbage in [
            "",
            "2026",
            "2026-01-05",
            "2026-02-30T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-01-05T24:00:00Z",
            "2026-01-05T10:60:00Z",
            "2026-01-05T10:00:60Z",
            "2026-01-05T10:11:12.Z",
            "2026-01-05T10:11:12Zx",
            "2026-01-05T10",
            "2026-01-05T10:11:12+25:00",
            "99-01-01T00:00:00Z",
            "٢٠٢٦-01-05T10:11:12Z",
            " 2026-01-05T10:11:12Z",
            "2026-01-05t10:11:12Z",
            "2026-1-5T10:11:12Z",
            "yesterday",
            "2026-01-05T10:11:12+5",
        ] {
            assert_eq!(micros(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn dates_stand_alone_or_follow_the_moment() {
        let on = |year, month, day| NaiveDate::from_ymd_opt(year, month, day);
        assert_eq!(date("2010-07-23"), on(2010, 7, 23));
        assert_eq!(date("2026-01-01T00:10:00+05:30"), on(2025, 12, 31));
        assert_eq!(date("2025-12-31T23:10:00-05:30"), on(2026, 1, 1));
        assert_eq!(date("2010-07-23T"), None);
        assert_eq!(date("2010-02-29"), None);
        assert_eq!(date("9999-12-31T23:59:59-23:59"), on(9999, 12, 31).unwrap().succ_opt());
    }
}
