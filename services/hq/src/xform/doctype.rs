//! What stands before the root element: the XML declaration and the document type declaration.
//!
//! Of a DTD only the entities matter; the rest is read over, with a light check of its syntax. Nothing is ever loaded.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use super::FormXmlError;
use super::scanner::{Reference, Scanner};

type Result<T> = std::result::Result<T, FormXmlError>;

/// A general entity that the internal subset declares.
#[derive(Debug)]
pub(super) enum Entity<'a> {
    /// Its replacement text, character references already replaced.
    Internal(Cow<'a, str>),
    External,
    Unparsed,
}

/// What declarations before the root say about the references within it.
#[derive(Debug, Default)]
pub(super) struct Doctype<'a> {
    entities: HashMap<&'a str, Entity<'a>>,
    parameter_entities: HashSet<&'a str>,
    is_standalone: bool,
    has_external_subset: bool,
    has_parameter_references: bool,
}

impl<'a> Doctype<'a> {
    /// An entity and its name, if it is declared.
    pub(super) fn entity(&self, name: &str) -> Option<(&'a str, &Entity<'a>)> {
        self.entities.get_key_value(name).map(|(name, entity)| (*name, entity))
    }

    /// Whether an unknown entity may be declared in a part of the DTD that is not read. Then it is no error.
    pub(super) fn may_declare_elsewhere(&self) -> bool {
        !self.is_standalone && (self.has_external_subset || self.has_parameter_references)
    }

    /// Reads a reference to a parameter entity, after its `%`.
    fn parameter_reference(&mut self, scan: &mut Scanner<'_>) -> Result<()> {
        let name = scan.name()?;
        scan.expect(";", "a parameter reference without \";\"")?;
        if self.is_standalone && !self.parameter_entities.contains(name) {
            return scan.fail("a reference to a parameter entity that is not declared");
        }
        self.has_parameter_references = true;
        Ok(())
    }
}

/// Reads up to the root element.
pub(super) fn prolog<'a>(scan: &mut Scanner<'a>, doctype: &mut Doctype<'a>) -> Result<()> {
    xml_declaration(scan, doctype)?;
    let mut doctype_seen = false;
    loop {
        scan.blanks();
        if scan.take("<!--") {
            scan.comment()?;
        } else if scan.take("<?") {
            scan.processing_instruction()?;
        } else if !doctype_seen && scan.take("<!DOCTYPE") {
            doctype_seen = true;
            declaration(scan, doctype)?;
        } else if scan.peek() == Some(b'<') {
            return Ok(());
        } else {
            return scan.fail("the root element is missing");
        }
    }
}

/// Reads `<?xml … ?>` if it stands here.
fn xml_declaration(scan: &mut Scanner<'_>, doctype: &mut Doctype<'_>) -> Result<()> {
    let mut ahead = scan.clone();
    if !(ahead.take("<?xml") && ahead.blanks()) {
        return Ok(());
    }
    *scan = ahead;
    let is_version_one =
        |version: &str| version.strip_prefix("1.").is_some_and(|minor| minor.bytes().all(|byte| byte.is_ascii_digit()));
    if !pseudo_attribute(scan, "version")?.is_some_and(is_version_one) {
        return scan.fail("an XML declaration without version 1");
    }
    let mut separated = scan.blanks();
    if separated && let Some(encoding) = pseudo_attribute(scan, "encoding")? {
        let mut bytes = encoding.bytes();
        let is_name = bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic())
            && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if !is_name {
            return scan.fail("an encoding name that is none");
        }
        separated = scan.blanks();
    }
    if separated && let Some(standalone) = pseudo_attribute(scan, "standalone")? {
        doctype.is_standalone = match standalone {
            "yes" => true,
            "no" => false,
            _ => return scan.fail("standalone is neither yes nor no"),
        };
        scan.blanks();
    }
    scan.expect("?>", "an XML declaration is not closed")
}

fn pseudo_attribute<'a>(scan: &mut Scanner<'a>, name: &str) -> Result<Option<&'a str>> {
    if !scan.take(name) {
        return Ok(None);
    }
    scan.blanks();
    scan.expect("=", "\"=\" is missing in the XML declaration")?;
    scan.blanks();
    literal(scan).map(Some)
}

/// A text in quotes.
fn literal<'a>(scan: &mut Scanner<'a>) -> Result<&'a str> {
    if scan.take("\"") {
        scan.until("\"", "a literal is not closed")
    } else if scan.take("'") {
        scan.until("'", "a literal is not closed")
    } else {
        scan.fail("a literal without quotes")
    }
}

/// Reads a document type declaration; the cursor stands after its keyword.
fn declaration<'a>(scan: &mut Scanner<'a>, doctype: &mut Doctype<'a>) -> Result<()> {
    scan.expect_blanks()?;
    scan.name()?;
    let separated = scan.blanks();
    if separated && external_id(scan)? {
        doctype.has_external_subset = true;
        scan.blanks();
    }
    if scan.take("[") {
        internal_subset(scan, doctype)?;
        scan.blanks();
    }
    scan.expect(">", "a document type declaration is not closed")
}

/// `SYSTEM` or `PUBLIC` with their literals; whether it stands here.
fn external_id(scan: &mut Scanner<'_>) -> Result<bool> {
    if scan.take("PUBLIC") {
        scan.expect_blanks()?;
        let public = literal(scan)?;
        if !public.bytes().all(|byte| byte.is_ascii_alphanumeric() || b" \n-'()+,./:=?;!*#@$_%".contains(&byte)) {
            return scan.fail("a public identifier with a character it cannot have");
        }
    } else if !scan.take("SYSTEM") {
        return Ok(false);
    }
    scan.expect_blanks()?;
    literal(scan)?;
    Ok(true)
}

fn internal_subset<'a>(scan: &mut Scanner<'a>, doctype: &mut Doctype<'a>) -> Result<()> {
    loop {
        scan.blanks();
        if scan.take("]") {
            return Ok(());
        } else if scan.take("%") {
            doctype.parameter_reference(scan)?;
        } else if scan.take("<!--") {
            scan.comment()?;
        } else if scan.take("<?") {
            scan.processing_instruction()?;
        } else if scan.take("<!ENTITY") {
            entity(scan, doctype)?;
        } else if scan.take("<!ELEMENT") || scan.take("<!ATTLIST") || scan.take("<!NOTATION") {
            other_declaration(scan)?;
        } else {
            return scan.fail("a document type declaration has something that is no declaration");
        }
    }
}

fn entity<'a>(scan: &mut Scanner<'a>, doctype: &mut Doctype<'a>) -> Result<()> {
    scan.expect_blanks()?;
    let is_parameter = scan.take("%");
    if is_parameter {
        scan.expect_blanks()?;
    }
    let name = scan.ncname()?;
    scan.expect_blanks()?;
    let mut entity = if matches!(scan.peek(), Some(b'"' | b'\'')) {
        Entity::Internal(entity_value(scan, doctype)?)
    } else if external_id(scan)? {
        Entity::External
    } else {
        return scan.fail("an entity without value");
    };
    let separated = scan.blanks();
    if separated && !is_parameter && matches!(entity, Entity::External) && scan.take("NDATA") {
        scan.expect_blanks()?;
        scan.ncname()?;
        scan.blanks();
        entity = Entity::Unparsed;
    }
    scan.expect(">", "an entity declaration is not closed")?;
    // The first declaration of a name counts.
    if is_parameter {
        doctype.parameter_entities.insert(name);
    } else {
        doctype.entities.entry(name).or_insert(entity);
    }
    Ok(())
}

/// The value of an entity: character references are replaced now, references to entities where the entity is used.
fn entity_value<'a>(scan: &mut Scanner<'a>, doctype: &mut Doctype<'a>) -> Result<Cow<'a, str>> {
    let value = literal(scan)?;
    if !value.contains(['&', '%']) {
        return Ok(Cow::Borrowed(value));
    }
    let mut replaced = String::with_capacity(value.len());
    let mut inside = Scanner::new(value);
    while let Some(byte) = inside.peek() {
        match byte {
            b'&' => match inside.reference().map_err(|_| scan.error("a broken reference in an entity"))? {
                Reference::Character(c) => replaced.push(c),
                Reference::Entity(name) => {
                    replaced.push('&');
                    replaced.push_str(name);
                    replaced.push(';');
                }
            },
            b'%' => {
                inside.step();
                let read = doctype.parameter_reference(&mut inside);
                read.map_err(|_| scan.error("a broken parameter reference in an entity"))?;
            }
            _ => replaced.push_str(inside.until_any(b"&%")),
        }
    }
    Ok(Cow::Owned(replaced))
}

/// A declaration without meaning for forms: to its end, over quoted literals, with balanced parentheses.
fn other_declaration(scan: &mut Scanner<'_>) -> Result<()> {
    scan.expect_blanks()?;
    scan.name()?;
    let mut depth = 0_usize;
    loop {
        match scan.peek() {
            Some(b'"' | b'\'') => {
                literal(scan)?;
            }
            Some(b'>') if depth == 0 => {
                scan.step();
                return Ok(());
            }
            Some(b'(') => {
                depth += 1;
                scan.step();
            }
            Some(b')') if depth > 0 => {
                depth -= 1;
                scan.step();
            }
            Some(b'<' | b'>' | b')') | None => return scan.fail("a declaration is not closed"),
            Some(_) => {
                scan.until_any(b"\"'<>()");
            }
        }
    }
}
