//! HQ's replacement of datetimes: every string that looks like one becomes its UTC form.
//!
//! Two patterns must both accept a string: HQ's loose one (here *L*) and the grammar of the Python package iso8601 (here *I*),
//! which also gives the meaning. Both allow one newline after the end. Since I is pure ASCII, L is only ever asked about ASCII
//! text. Both are written by hand because most strings of a form come by here; the tests hold them against regular expressions.

use std::ops::RangeInclusive;

use chrono::{Datelike, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Timelike};

use super::{FormXmlError, RaiseReason};

/// `YYYY-MM-DDTHH` with all optional characters left out.
const LENGTH_MIN: usize = 11;
/// Longest text that L accepts, with the newline.
const LENGTH_MAX: usize = 40;

/// A datetime as HQ prints it: `YYYY-MM-DDTHH:MM:SS.ffffffZ`. Kept in place, as forms have many datetimes.
#[derive(Debug)]
pub(super) struct UtcText {
    bytes: [u8; 27],
    length: usize,
}

impl UtcText {
    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }

    fn new(utc: NaiveDateTime) -> Self {
        let mut text = Self { bytes: [0; 27], length: 0 };
        // HQ prints by strftime, which does not pad the year.
        text.push_number(utc.year().unsigned_abs(), 1);
        for (before, number) in
            [(b'-', utc.month()), (b'-', utc.day()), (b'T', utc.hour()), (b':', utc.minute()), (b':', utc.second())]
        {
            text.push(before);
            text.push_number(number, 2);
        }
        text.push(b'.');
        text.push_number(utc.nanosecond() / 1000, 6);
        text.push(b'Z');
        text
    }

    fn push(&mut self, byte: u8) {
        self.bytes[self.length] = byte;
        self.length += 1;
    }

    /// Writes digits by hand, which is faster than formatting.
    fn push_number(&mut self, number: u32, digits_min: u32) {
        let digits = number.checked_ilog10().map_or(1, |log| log + 1).max(digits_min);
        for place in (0..digits).rev() {
            self.push(b'0' + (number / 10_u32.pow(place) % 10) as u8);
        }
    }
}

/// The UTC form of a value that HQ takes for a datetime; `None` if the value stays as it is.
///
/// # Errors
/// `Raises` if the UTC value lies outside the years 1 to 9999.
#[inline]
pub(super) fn to_utc(value: &str) -> Result<Option<UtcText>, FormXmlError> {
    match value.as_bytes() {
        [b'0'..=b'9', ..] if (LENGTH_MIN..=LENGTH_MAX).contains(&value.len()) => convert(value.as_bytes()),
        _ => Ok(None),
    }
}

fn convert(value: &[u8]) -> Result<Option<UtcText>, FormXmlError> {
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    let Some((date, time)) = date(value) else { return Ok(None) };
    let Some((time, offset_minutes)) = iso_time(time).filter(|_| is_loose_time(time)) else { return Ok(None) };
    let local = NaiveDateTime::new(date, time);
    match local.checked_sub_signed(TimeDelta::minutes(offset_minutes)) {
        Some(utc) if (1..=9999).contains(&utc.year()) => Ok(Some(UtcText::new(utc))),
        _ => Err(FormXmlError::Raises { reason: RaiseReason::DatetimeOutOfRange }),
    }
}

/// The date part, and what follows the `T`. L wants two digits each for month and day, I only `-` or nothing between them;
/// together that leaves no choice.
fn date(value: &[u8]) -> Option<(NaiveDate, &[u8])> {
    let (year, rest) = (number(value, 4)?, value.get(4..)?);
    let rest = rest.strip_prefix(b"-").unwrap_or(rest);
    let (month, rest) = (number(rest, 2)?, rest.get(2..)?);
    let rest = rest.strip_prefix(b"-").unwrap_or(rest);
    let (day, rest) = (number(rest, 2)?, rest.get(2..)?);
    let time = rest.strip_prefix(b"T").or_else(|| rest.strip_prefix(b" "))?;
    // Year 0 does not exist in Python.
    let date = NaiveDate::from_ymd_opt(i32::try_from(year).ok().filter(|year| *year > 0)?, month, day)?;
    Some((date, time))
}

/// The first `digits` bytes as a number, if they all are ASCII digits.
fn number(text: &[u8], digits: usize) -> Option<u32> {
    text.get(..digits)?.iter().try_fold(0, |value, byte| match byte {
        b'0'..=b'9' => Some(value * 10 + u32::from(byte - b'0')),
        _ => None,
    })
}

/// I's reading of what follows the `T`: the time, and the minutes by which its zone is ahead of UTC.
fn iso_time(text: &[u8]) -> Option<(NaiveTime, i64)> {
    let (hour, rest) = (number(text, 2)?, text.get(2..)?);
    let after_colon = rest.strip_prefix(b":").unwrap_or(rest);
    let with_minute = number(after_colon, 2).and_then(|minute| {
        let (second, zone) = iso_second_and_zone(&after_colon[2..])?;
        Some((minute, second, zone))
    });
    // The first reading that fits counts, even if its values then are impossible.
    let (minute, second, zone) = match with_minute {
        Some(found) => found,
        None => iso_second_and_zone(rest).map(|(second, zone)| (0, second, zone))?,
    };
    let time = NaiveTime::from_hms_micro_opt(hour, minute, second.whole, second.micros)?;
    let offset = zone.offset_minutes();
    (offset.abs() < 24 * 60).then_some((time, offset))
}

#[derive(Default)]
struct Second {
    whole: u32,
    micros: u32,
}

#[derive(Default)]
struct Zone {
    is_west: bool,
    hours: u32,
    minutes: u32,
}

impl Zone {
    fn offset_minutes(&self) -> i64 {
        let minutes = i64::from(self.hours) * 60 + i64::from(self.minutes);
        if self.is_west { -minutes } else { minutes }
    }
}

/// I's optional second and optional zone, up to the end.
fn iso_second_and_zone(text: &[u8]) -> Option<(Second, Zone)> {
    iso_second(text)
        .and_then(|(second, rest)| Some((second, iso_zone(rest)?)))
        .or_else(|| Some((Second::default(), iso_zone(text)?)))
}

fn iso_second(text: &[u8]) -> Option<(Second, &[u8])> {
    let text = text.strip_prefix(b":").unwrap_or(text);
    // One digit only if no second one follows: nothing after the second may begin with a digit.
    let digits = if number(text, 2).is_some() { 2 } else { 1 };
    let (whole, rest) = (number(text, digits)?, &text[digits..]);
    let Some(fraction) = rest.strip_prefix(b".").or_else(|| rest.strip_prefix(b",")) else {
        return Some((Second { whole, micros: 0 }, rest));
    };
    let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let kept = length.min(6);
    let micros = number(fraction, kept)? * 10_u32.pow(6 - kept as u32);
    (length > 0).then_some((Second { whole, micros }, &fraction[length..]))
}

/// I's zone, which must reach the end; nothing means UTC.
fn iso_zone(text: &[u8]) -> Option<Zone> {
    let (is_west, text) = match text {
        [] | [b'Z'] => return Some(Zone::default()),
        [sign @ (b'+' | b'-'), rest @ ..] => (*sign == b'-', rest),
        _ => return None,
    };
    let (hours, rest) = (number(text, 2)?, &text[2..]);
    let rest = rest.strip_prefix(b":").unwrap_or(rest);
    match (rest.len(), number(rest, 2)) {
        (0, _) => Some(Zone { is_west, hours, minutes: 0 }),
        (2, Some(minutes)) => Some(Zone { is_west, hours, minutes }),
        _ => None,
    }
}

/// Whether L accepts what follows the `T`: hour, minute, and then a second, 3 to 6 digits and a zone, all optional, each of
/// these with at most one character before it that is no digit.
fn is_loose_time(text: &[u8]) -> bool {
    let Some(rest) = within(text, 0..=23) else { return false };
    // Digits must follow, so a character that is none can only be the separator.
    let Some(rest) = within(separated(rest).unwrap_or(rest), 0..=59) else { return false };
    separations(rest).any(|rest| {
        let with_second = within(rest, 0..=59);
        with_second.into_iter().chain([rest]).any(|rest| separations(rest).any(is_loose_end))
    })
}

/// What follows a two-digit number within the range.
fn within(text: &[u8], range: RangeInclusive<u32>) -> Option<&[u8]> {
    number(text, 2).filter(|value| range.contains(value)).map(|_| &text[2..])
}

/// What follows one character that is no digit.
fn separated(text: &[u8]) -> Option<&[u8]> {
    text.split_first().filter(|(first, _)| !first.is_ascii_digit()).map(|(_, rest)| rest)
}

/// The ways to go on after an optional separator.
fn separations(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    separated(text).into_iter().chain([text])
}

/// Optional 3 to 6 digits, optional zone, end.
fn is_loose_end(text: &[u8]) -> bool {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    // No zone begins with a digit, so all digits belong together.
    if !matches!(digits, 0 | 3..=6) {
        return false;
    }
    match &text[digits..] {
        [] | [b'z' | b'Z'] => true,
        [b'+' | b'-', zone @ ..] => within(zone, 0..=23).is_some_and(|rest| {
            separations(rest).any(|rest| rest.is_empty() || within(rest, 0..=59).is_some_and(<[u8]>::is_empty))
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
