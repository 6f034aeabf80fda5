//! From the bytes of a form to the text that XML rules apply to.
//!
//! Invariant: what comes out has only characters that XML 1.0 allows and no carriage return. As in libxml2, a byte order mark,
//! or the tell-tale zero bytes of UTF-16 and UTF-32, beat the encoding that the XML declaration names.

use std::borrow::Cow;

use encoding_rs::{Encoding, UTF_16BE, UTF_16LE, WINDOWS_874, WINDOWS_1252, WINDOWS_1254};

use super::FormXmlError;

/// The text of a form, checked and with line ends normalised (XML 1.0, 2.2 and 2.11); borrowed where nothing had to change.
pub(super) fn decode(xml: &[u8]) -> Result<Cow<'_, str>, FormXmlError> {
    let text = match xml {
        [0xEF, 0xBB, 0xBF, rest @ ..] => utf8(rest)?,
        [0, 0, 0xFE, 0xFF, rest @ ..] => Cow::Owned(utf32(rest, u32::from_be_bytes)?),
        [0xFF, 0xFE, 0, 0, rest @ ..] => Cow::Owned(utf32(rest, u32::from_le_bytes)?),
        [0xFE, 0xFF, rest @ ..] => strict(UTF_16BE, rest)?,
        [0xFF, 0xFE, rest @ ..] => strict(UTF_16LE, rest)?,
        [0, 0, 0, b'<', ..] => Cow::Owned(utf32(xml, u32::from_be_bytes)?),
        [b'<', 0, 0, 0, ..] => Cow::Owned(utf32(xml, u32::from_le_bytes)?),
        [0, b'<', 0, b'?', ..] => strict(UTF_16BE, xml)?,
        [b'<', 0, b'?', 0, ..] => strict(UTF_16LE, xml)?,
        _ => match declared_encoding(xml) {
            None => utf8(xml)?,
            Some(label) => labelled(label, xml)?,
        },
    };
    // Offsets in the tree are 32 bits wide.
    if u32::try_from(text.len()).is_err() {
        return Err(not_well_formed(0, "longer than 4 GiB"));
    }
    normalise(text)
}

fn not_well_formed(offset: usize, problem: &'static str) -> FormXmlError {
    FormXmlError::NotWellFormed { offset, problem }
}

fn utf8(bytes: &[u8]) -> Result<Cow<'_, str>, FormXmlError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Ok(Cow::Borrowed(text)),
        Err(error) => Err(not_well_formed(error.valid_up_to(), "bytes that are not UTF-8")),
    }
}

fn utf32(bytes: &[u8], number: fn([u8; 4]) -> u32) -> Result<String, FormXmlError> {
    let (units, rest) = bytes.as_chunks::<4>();
    let text: Option<String> = units.iter().map(|unit| char::from_u32(number(*unit))).collect();
    text.filter(|_| rest.is_empty()).ok_or(not_well_formed(0, "bytes that are not UTF-32"))
}

fn strict<'a>(encoding: &'static Encoding, bytes: &'a [u8]) -> Result<Cow<'a, str>, FormXmlError> {
    encoding
        .decode_without_bom_handling_and_without_replacement(bytes)
        .ok_or(not_well_formed(0, "bytes that do not fit the encoding"))
}

/// The encoding name of the XML declaration, if there is a declaration with one. The document parser checks its grammar later.
fn declared_encoding(xml: &[u8]) -> Option<&str> {
    let inside = xml.strip_prefix(b"<?xml")?;
    let inside = &inside[..inside.windows(2).position(|pair| pair == b"?>")?];
    let inside = std::str::from_utf8(inside).ok()?;
    let blank = [' ', '\t', '\r', '\n'];
    let (before, after) = inside.split_once("encoding")?;
    if !(before.starts_with(blank) && before.ends_with(blank)) {
        return None;
    }
    let value = after.trim_start_matches(blank).strip_prefix('=')?.trim_start_matches(blank);
    let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
    value[1..].split_once(quote).map(|(name, _)| name)
}

fn labelled<'a>(label: &str, xml: &'a [u8]) -> Result<Cow<'a, str>, FormXmlError> {
    let name = label.to_ascii_lowercase();
    match name.as_str() {
        "utf-8" | "utf8" => return utf8(xml),
        "us-ascii" | "ascii" | "ansi_x3.4-1968" | "iso646-us" => {
            return if xml.is_ascii() { utf8(xml) } else { Err(not_well_formed(0, "bytes that are not ASCII")) };
        }
        _ => {}
    }
    let encoding = Encoding::for_label_no_replacement(name.as_bytes())
        .ok_or(not_well_formed(0, "an encoding that is not supported"))?;
    if !encoding.is_ascii_compatible() && !name.starts_with("iso-2022") {
        return Err(not_well_formed(0, "an encoding that contradicts the bytes"));
    }
    // The web's standard reads these ISO sets as the Windows ones; they differ in 0x80 to 0x9F only.
    let windows = name.starts_with("windows") || name.starts_with("cp125") || name.starts_with("x-cp");
    if !windows && [WINDOWS_1252, WINDOWS_1254, WINDOWS_874].contains(&encoding) {
        return iso_8859(encoding, xml);
    }
    let text = strict(encoding, xml)?;
    // That standard also fills the holes of the Windows sets with control characters; elsewhere they are holes.
    if windows && text.chars().any(|c| ('\u{80}'..='\u{9f}').contains(&c)) {
        return Err(not_well_formed(0, "bytes that do not fit the encoding"));
    }
    Ok(text)
}

fn iso_8859<'a>(windows: &'static Encoding, xml: &[u8]) -> Result<Cow<'a, str>, FormXmlError> {
    let mut text = String::with_capacity(xml.len() + xml.len() / 8);
    for byte in xml {
        match byte {
            0..=0x9F => text.push(char::from(*byte)),
            _ => text.push_str(&strict(windows, std::slice::from_ref(byte))?),
        }
    }
    Ok(Cow::Owned(text))
}

fn normalise(text: Cow<'_, str>) -> Result<Cow<'_, str>, FormXmlError> {
    // One pass without branches, so that the compiler can use wide registers.
    let (mut control, mut carriage_return, mut high) = (false, false, false);
    for byte in text.bytes() {
        control |= (byte < b' ') & (byte != b'\t') & (byte != b'\n') & (byte != b'\r');
        carriage_return |= byte == b'\r';
        high |= byte >= 0xEF;
    }
    if control || (high && has_noncharacter(&text)) {
        let offset = text.find(|c| !is_xml_char(c)).unwrap_or(0);
        return Err(not_well_formed(offset, "a character that XML does not allow"));
    }
    if !carriage_return {
        return Ok(text);
    }
    let mut normal = String::with_capacity(text.len());
    for (index, line) in text.split('\r').enumerate() {
        match (index, line.strip_prefix('\n')) {
            (0, _) => normal.push_str(line),
            (_, rest) => {
                normal.push('\n');
                normal.push_str(rest.unwrap_or(line));
            }
        }
    }
    Ok(Cow::Owned(normal))
}

/// Whether U+FFFE or U+FFFF occurs (in UTF-8: EF BF BE, EF BF BF).
fn has_noncharacter(text: &str) -> bool {
    text.as_bytes().windows(3).any(|bytes| matches!(bytes, [0xEF, 0xBF, 0xBE | 0xBF]))
}

/// `Char` of XML 1.0.
pub(super) fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..='\u{10FFFF}')
}
