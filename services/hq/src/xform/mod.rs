//! Conversion of a submitted form's XML into the `form` object of HQ's `XFormInstance.to_json()`.
//!
//! HQ computes `scrub_meta(adjust_datetimes(xml2json(xml) + "#type"))` with lxml; this module gives the same members, values
//! and member order without building a DOM. The steps for one form:
//!
//! 1. `encoding`: bytes to checked text with `\n` line ends, borrowed where the form is plain UTF-8;
//! 2. `document`: one pass over the text, checking all that libxml2 checks, into a flat `tree` of borrowed slices in which
//!    children are already grouped by key (a repeated key is an array in JSON, wherever its items stand in the XML);
//! 3. `conversion`: one walk over that tree, in HQ's order, into JSON text or into a [`serde_json::Value`].
//!
//! Both outputs come from the same walk, so they cannot differ. Nothing here panics on any input, and work and memory
//! are bounded by the limits below and the size of the form.
//!
//! Known, accepted differences from lxml 6.1 and libxml2 2.14, held against them on millions of generated documents. None
//! concerns a document that a phone or a tool for forms writes:
//!
//! - a fault against the rules of namespaces (an undeclared prefix, a name with two colons, a namespace name that is no URI, an
//!   `xml:id` that is no name) always makes the form not well-formed; lxml forgets it if a mere warning follows (a relative
//!   namespace name, a wrong `xml:space`);
//! - of an internal DTD only entities count: types and defaults that it gives to attributes are ignored, elements and notations
//!   may be declared twice, parameter entities are not expanded;
//! - encodings are those of the web's Encoding Standard plus UTF-32, which differ from iconv's in a few characters of Shift_JIS
//!   and GBK;
//! - letters of an `xml:id` are those of XML's fifth edition, as elsewhere; libxml2 takes the fourth edition's there;
//! - a carriage return in the value of an entity declared in the form is a line end here too, libxml2 keeps it;
//! - a CDATA section or processing instruction within some 30 bytes of the limit of ten million may fail in libxml2 already.

mod conversion;
mod datetime;
mod doctype;
mod document;
mod encoding;
mod entity;
mod json;
mod namespace;
mod scanner;
mod tree;
mod uri;

use serde_json::{Map, Value};

/// Deepest nesting of elements, the root being 1 (libxml2's default limit).
pub const DEPTH_MAX: usize = 256;
/// Longest text node, comment, processing instruction or tag, in bytes of UTF-8 (libxml2's default limit).
pub const TEXT_BYTES_MAX: usize = 10_000_000;
/// Longest name, in bytes of UTF-8, prefix not counted (libxml2's default limit).
pub const NAME_BYTES_MAX: usize = 50_000;

/// Why a form has no readable `form` object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormXmlError {
    /// lxml reports a syntax error; HQ answers with `form = {}`.
    #[error("form XML is not well-formed at byte {offset} of its text: {problem}; HQ shows such a form as empty")]
    NotWellFormed {
        /// Where, in bytes of the decoded text with line ends normalised.
        offset: usize,
        /// What is wrong there.
        problem: &'static str,
    },
    /// The XML is well-formed, but HQ's conversion raises an exception, so HQ cannot show the form either.
    #[error("form XML cannot be converted: {reason}; HQ fails on such a form too")]
    Raises {
        /// What HQ's conversion stumbles over.
        reason: RaiseReason,
    },
}

impl FormXmlError {
    /// Whether HQ raises an exception on this form, rather than showing it as empty.
    pub fn is_raised(&self) -> bool {
        matches!(self, Self::Raises { .. })
    }
}

/// What makes HQ's conversion of a well-formed document raise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RaiseReason {
    /// A processing instruction inside the root element (AttributeError).
    #[error("a processing instruction stands inside the root element")]
    ProcessingInstruction,
    /// A reference, in content, to an entity of the DTD (AttributeError).
    #[error("an entity of the DTD is used in the text")]
    EntityReference,
    /// The root has no attribute, namespace or child, so it is a string (TypeError).
    #[error("the root element has no attribute, namespace or child element")]
    RootIsText,
    /// A datetime whose UTC value lies outside the years 1 to 9999 (OverflowError).
    #[error("a datetime lies outside the years 1 to 9999 when converted to UTC")]
    DatetimeOutOfRange,
}

/// The `form` object of HQ's `XFormInstance.to_json()`, members in HQ's order.
///
/// # Errors
/// [`FormXmlError::NotWellFormed`] where HQ gives an empty object, [`FormXmlError::Raises`] where HQ itself fails.
pub fn form_json(xml: &[u8]) -> Result<Map<String, Value>, FormXmlError> {
    let text = encoding::decode(xml)?;
    let tree = document::parse(&text)?;
    let mut values = json::ValueSink::default();
    conversion::convert(&tree, &mut values)?;
    Ok(values.into_object())
}

/// Appends the `form` object as compact JSON text to `out`: the bytes that serializing [`form_json`]'s object gives, without
/// making that object.
///
/// # Errors
/// As [`form_json`]; `out` is then as it was.
pub fn write_form_json(xml: &[u8], out: &mut Vec<u8>) -> Result<(), FormXmlError> {
    let text = encoding::decode(xml)?;
    let tree = document::parse(&text)?;
    let before = out.len();
    let mut writer = json::TextSink::new(out);
    let done = conversion::convert(&tree, &mut writer);
    match done {
        Ok(()) => writer.finish(),
        Err(_) => out.truncate(before),
    }
    done
}
