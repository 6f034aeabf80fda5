//! A cursor over the text of a form: blanks, names, references, delimited stretches.
//!
//! The cursor only ever stops at a character boundary: it moves over ASCII delimiters, or over whole characters of names.

use super::encoding::is_xml_char;
use super::{FormXmlError, NAME_BYTES_MAX, TEXT_BYTES_MAX};

type Result<T> = std::result::Result<T, FormXmlError>;

/// A name as it stands in a tag.
#[derive(Debug, Clone, Copy)]
pub(super) struct QName<'a> {
    /// Empty if there is none.
    pub(super) prefix: &'a str,
    pub(super) local: &'a str,
    pub(super) whole: &'a str,
}

/// What stands between `&` and `;`.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reference<'a> {
    Character(char),
    Entity(&'a str),
}

/// The replacement of the five entities that need no declaration.
pub(super) fn predefined(entity: &str) -> Option<&'static str> {
    match entity {
        "lt" => Some("<"),
        "gt" => Some(">"),
        "amp" => Some("&"),
        "quot" => Some("\""),
        "apos" => Some("'"),
        _ => None,
    }
}

#[derive(Debug, Clone)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, bytes: text.as_bytes(), at: 0 }
    }

    pub(super) fn offset(&self) -> usize {
        self.at
    }

    /// An error at the cursor.
    pub(super) fn error(&self, problem: &'static str) -> FormXmlError {
        FormXmlError::NotWellFormed { offset: self.at, problem }
    }

    /// As [`Self::error`], for the end of an expression.
    pub(super) fn fail<T>(&self, problem: &'static str) -> Result<T> {
        Err(self.error(problem))
    }

    #[inline]
    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    #[inline]
    pub(super) fn peek_second(&self) -> Option<u8> {
        self.bytes.get(self.at + 1).copied()
    }

    /// Moves over one byte, which the caller has seen to be ASCII.
    #[inline]
    pub(super) fn step(&mut self) {
        self.at += 1;
    }

    /// Moves over `expected` if it stands here.
    #[inline]
    pub(super) fn take(&mut self, expected: &str) -> bool {
        let found = self.bytes[self.at..].starts_with(expected.as_bytes());
        if found {
            self.at += expected.len();
        }
        found
    }

    #[inline]
    pub(super) fn expect(&mut self, expected: &str, problem: &'static str) -> Result<()> {
        if self.take(expected) { Ok(()) } else { self.fail(problem) }
    }

    /// Moves over blanks; whether there was one.
    #[inline]
    pub(super) fn blanks(&mut self) -> bool {
        let start = self.at;
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.peek() {
            self.at += 1;
        }
        self.at > start
    }

    pub(super) fn expect_blanks(&mut self) -> Result<()> {
        if self.blanks() { Ok(()) } else { self.fail("a blank is missing") }
    }

    /// The text from here up to `end`, and over it; at most [`TEXT_BYTES_MAX`] long.
    pub(super) fn until(&mut self, end: &str, problem: &'static str) -> Result<&'a str> {
        let rest = &self.text[self.at..];
        let Some(length) = rest.find(end) else { return self.fail(problem) };
        if length > TEXT_BYTES_MAX {
            return self.fail("longer than 10,000,000 bytes");
        }
        self.at += length + end.len();
        Ok(&rest[..length])
    }

    /// The rest of a comment, after its opening.
    pub(super) fn comment(&mut self) -> Result<()> {
        self.until("--", "a comment is not closed")?;
        self.expect(">", "\"--\" within a comment")
    }

    /// The rest of a processing instruction, after its opening.
    pub(super) fn processing_instruction(&mut self) -> Result<()> {
        let target = self.ncname()?;
        if target.eq_ignore_ascii_case("xml") {
            return self.fail("an XML declaration that is not at the start, or a reserved name");
        }
        if self.take("?>") {
            return Ok(());
        }
        self.expect_blanks()?;
        self.until("?>", "a processing instruction is not closed")?;
        Ok(())
    }

    /// The text from here up to one of the ASCII bytes, or to the end.
    pub(super) fn until_any(&mut self, ends: &[u8]) -> &'a str {
        let start = self.at;
        while self.peek().is_some_and(|byte| !ends.contains(&byte)) {
            self.at += 1;
        }
        &self.text[start..self.at]
    }

    /// Character data up to the next `<` or `&`, which is not consumed, or to the end; empty if one of them stands here.
    #[inline]
    pub(super) fn character_data(&mut self) -> Result<&'a str> {
        let start = self.at;
        loop {
            match self.bytes.get(self.at) {
                Some(b'<' | b'&') => return Ok(&self.text[start..self.at]),
                Some(b']') if self.bytes[self.at..].starts_with(b"]]>") => {
                    return self.fail("\"]]>\" in character data");
                }
                Some(_) => self.at += 1,
                None => return Ok(&self.text[start..]),
            }
        }
    }

    /// The part of an attribute value up to its `quote`, a reference, or a blank to be normalised, none of which is consumed.
    #[inline]
    pub(super) fn attribute_data(&mut self, quote: u8) -> Result<&'a str> {
        let start = self.at;
        loop {
            match self.bytes.get(self.at) {
                Some(&byte) if byte == quote || matches!(byte, b'&' | b'\n' | b'\t') => {
                    return Ok(&self.text[start..self.at]);
                }
                Some(b'<') => return self.fail("\"<\" in an attribute value"),
                Some(_) => self.at += 1,
                None => return self.fail("an attribute value is not closed"),
            }
        }
    }

    /// Moves over the name of an end tag if it is exactly `whole`.
    #[inline]
    pub(super) fn take_name(&mut self, whole: &str) -> bool {
        let rest = &self.bytes[self.at..];
        let fits = rest.starts_with(whole.as_bytes())
            && matches!(rest.get(whole.len()), Some(b'>' | b' ' | b'\t' | b'\n' | b'\r'));
        if fits {
            self.at += whole.len();
        }
        fits
    }

    /// A name without colon.
    #[inline]
    pub(super) fn ncname(&mut self) -> Result<&'a str> {
        let start = self.at;
        match self.bytes.get(start) {
            Some(&byte) if CLASS[usize::from(byte)] & START != 0 => self.at += 1,
            Some(0x80..) if self.wide(is_name_start) => {}
            _ => return self.fail("a name is missing or begins with a character that names cannot begin with"),
        }
        self.name_rest();
        if self.at - start > NAME_BYTES_MAX {
            return self.fail("a name is longer than 50,000 bytes");
        }
        Ok(&self.text[start..self.at])
    }

    #[inline]
    fn name_rest(&mut self) {
        loop {
            match self.bytes.get(self.at) {
                Some(&byte) if CLASS[usize::from(byte)] & NAME != 0 => self.at += 1,
                Some(0x80..) if self.wide(is_name_char) => {}
                _ => return,
            }
        }
    }

    /// Moves over one non-ASCII character if it is of the class.
    #[cold]
    fn wide(&mut self, class: fn(char) -> bool) -> bool {
        match self.text[self.at..].chars().next() {
            Some(c) if class(c) => {
                self.at += c.len_utf8();
                true
            }
            _ => false,
        }
    }

    /// A name with at most one prefix.
    #[inline]
    pub(super) fn qname(&mut self) -> Result<QName<'a>> {
        let start = self.at;
        let first = self.ncname()?;
        if self.peek() != Some(b':') {
            return Ok(QName { prefix: "", local: first, whole: first });
        }
        self.at += 1;
        let local = self.ncname()?;
        if self.peek() == Some(b':') {
            return self.fail("a name with two colons");
        }
        Ok(QName { prefix: first, local, whole: &self.text[start..self.at] })
    }

    /// A name with colons anywhere, as where namespaces have no say.
    pub(super) fn name(&mut self) -> Result<&'a str> {
        let start = self.at;
        if self.peek() != Some(b':') {
            self.ncname()?;
        }
        while self.take(":") {
            self.name_rest();
        }
        Ok(&self.text[start..self.at])
    }

    /// A reference; the cursor stands on its `&`.
    pub(super) fn reference(&mut self) -> Result<Reference<'a>> {
        self.at += 1;
        if self.peek() == Some(b'#') {
            self.at += 1;
            return self.character_reference().map(Reference::Character);
        }
        let name = self.name()?;
        self.expect(";", "an entity reference without \";\"")?;
        Ok(Reference::Entity(name))
    }

    fn character_reference(&mut self) -> Result<char> {
        let radix = if self.take("x") { 16 } else { 10 };
        let mut code = 0_u32;
        while let Some(digit) = self.peek().and_then(|byte| char::from(byte).to_digit(radix)) {
            // Stays far above the last character instead of overflowing.
            code = (code * radix + digit).min(0x11_0000);
            self.at += 1;
        }
        self.expect(";", "a character reference with a wrong digit or without \";\"")?;
        match char::from_u32(code) {
            Some(c) if is_xml_char(c) => Ok(c),
            _ => self.fail("a reference to a character that XML does not allow"),
        }
    }
}

/// Class of bytes that may begin a name.
const START: u8 = 1;
/// Class of bytes that may be part of a name.
const NAME: u8 = 2;

/// Classes of ASCII bytes; all others are 0 and decided by character.
const CLASS: [u8; 256] = {
    let mut class = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        class[byte as usize] = match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'_' => START | NAME,
            b'0'..=b'9' | b'-' | b'.' => NAME,
            _ => 0,
        };
        byte += 1;
    }
    class
};

/// `NameStartChar` of XML 1.0, fifth edition, beyond ASCII.
fn is_name_start(c: char) -> bool {
    matches!(c,
        '\u{C0}'..='\u{D6}' | '\u{D8}'..='\u{F6}' | '\u{F8}'..='\u{2FF}' | '\u{370}'..='\u{37D}' | '\u{37F}'..='\u{1FFF}'
        | '\u{200C}'..='\u{200D}' | '\u{2070}'..='\u{218F}' | '\u{2C00}'..='\u{2FEF}' | '\u{3001}'..='\u{D7FF}'
        | '\u{F900}'..='\u{FDCF}' | '\u{FDF0}'..='\u{FFFD}' | '\u{10000}'..='\u{EFFFF}')
}

/// `NameChar` of XML 1.0, fifth edition, beyond ASCII.
fn is_name_char(c: char) -> bool {
    is_name_start(c) || matches!(c, '\u{B7}' | '\u{300}'..='\u{36F}' | '\u{203F}'..='\u{2040}')
}
