//! The XML parser: one pass over the text of a form, with the checks that libxml2 makes.

use std::borrow::Cow;
use std::collections::HashSet;

use super::doctype::{self, Doctype, Entity};
use super::namespace::{NamespaceId, Scopes};
use super::scanner::{QName, Reference, Scanner, predefined};
use super::tree::{Attribute, NewElement, Tree, TreeBuilder};
use super::{DEPTH_MAX, FormXmlError, RaiseReason, TEXT_BYTES_MAX};

type Result<T> = std::result::Result<T, FormXmlError>;

/// Most attributes of one element that are compared one by one.
const COMPARED_ATTRIBUTES_MAX: usize = 16;
/// Deepest nesting of entities within an attribute value.
const ENTITY_DEPTH_MAX: usize = 20;
/// Most text that entities in attribute values may expand to, in bytes, in one form.
const ENTITY_BYTES_MAX: usize = 1_000_000;
/// Namespace names may repeat in the output to so many times the form's size, plus [`NAMESPACE_BYTES_FREE`]: a name is written
/// once per element that shows it, which a hostile form could use to fill the memory.
const NAMESPACE_GROWTH_MAX: usize = 16;
const NAMESPACE_BYTES_FREE: usize = 16 << 20;

/// Parses a form.
///
/// # Errors
/// `NotWellFormed` for what lxml rejects; `Raises` for what HQ's conversion stumbles over, if all else is in order.
pub(super) fn parse(text: &str) -> Result<Tree<'_>> {
    let mut document = Document {
        scan: Scanner::new(text),
        doctype: Doctype::default(),
        scopes: Scopes::new(),
        tree: TreeBuilder::with_room_for(text.len()),
        open: Vec::with_capacity(16),
        prefixed: Vec::new(),
        ids: HashSet::new(),
        text_bytes: 0,
        entity_bytes: 0,
        namespace_bytes_left: text.len().saturating_mul(NAMESPACE_GROWTH_MAX) + NAMESPACE_BYTES_FREE,
        raises: None,
    };
    document.prolog()?;
    document.start_tag()?;
    document.content()?;
    document.epilog()?;
    match document.raises {
        Some(reason) => Err(FormXmlError::Raises { reason }),
        None => Ok(document.tree.finish(document.scopes.namespaces)),
    }
}

/// An element whose end tag is still to come.
struct Open<'a> {
    /// With prefix, as the end tag must repeat it.
    name: &'a str,
    scope: usize,
}

struct Document<'a> {
    scan: Scanner<'a>,
    doctype: Doctype<'a>,
    scopes: Scopes<'a>,
    tree: TreeBuilder<'a>,
    open: Vec<Open<'a>>,
    /// Attributes of the current tag whose prefix is still to be resolved: index in the tree, prefix.
    prefixed: Vec<(usize, &'a str)>,
    /// Values of `xml:id` so far.
    ids: HashSet<String>,
    /// Length of the text node at the cursor.
    text_bytes: usize,
    entity_bytes: usize,
    namespace_bytes_left: usize,
    /// Reported only if the document turns out to be well-formed.
    raises: Option<RaiseReason>,
}

impl<'a> Document<'a> {
    fn prolog(&mut self) -> Result<()> {
        doctype::xml_declaration(&mut self.scan, &mut self.doctype)?;
        let mut doctype_seen = false;
        loop {
            self.scan.blanks();
            if self.scan.take("<!--") {
                self.scan.comment()?;
            } else if self.scan.take("<?") {
                self.scan.processing_instruction()?;
            } else if !doctype_seen && self.scan.take("<!DOCTYPE") {
                doctype_seen = true;
                doctype::declaration(&mut self.scan, &mut self.doctype)?;
            } else if self.scan.peek() == Some(b'<') {
                return Ok(());
            } else {
                return self.scan.fail("the root element is missing");
            }
        }
    }

    fn epilog(&mut self) -> Result<()> {
        loop {
            self.scan.blanks();
            if self.scan.take("<!--") {
                self.scan.comment()?;
            } else if self.scan.take("<?") {
                self.scan.processing_instruction()?;
            } else if self.scan.peek().is_none() {
                return Ok(());
            } else {
                return self.scan.fail("something follows the root element");
            }
        }
    }

    /// All that stands between the tags of the root.
    fn content(&mut self) -> Result<()> {
        while !self.open.is_empty() {
            self.text()?;
            match self.scan.peek_second() {
                Some(b'/') => self.end_tag()?,
                Some(b'!') if self.scan.take("<!--") => self.scan.comment()?,
                Some(b'!') if self.scan.take("<![CDATA[") => {
                    let piece = self.scan.until("]]>", "a CDATA section is not closed")?;
                    self.append(piece)?;
                }
                Some(b'?') => {
                    self.scan.step();
                    self.scan.step();
                    self.scan.processing_instruction()?;
                    self.raises.get_or_insert(RaiseReason::ProcessingInstruction);
                    self.text_bytes = 0;
                }
                _ => self.start_tag()?,
            }
        }
        Ok(())
    }

    /// Character data and references up to the next `<`.
    fn text(&mut self) -> Result<()> {
        loop {
            let piece = self.scan.character_data()?;
            self.append(piece)?;
            if self.scan.peek() != Some(b'&') {
                return Ok(());
            }
            match self.scan.reference()? {
                Reference::Character(c) => {
                    self.count_text(c.len_utf8())?;
                    self.tree.character(c);
                }
                Reference::Entity(name) => match predefined(name) {
                    Some(replacement) => self.append(replacement)?,
                    None => self.entity_in_content(name)?,
                },
            }
        }
    }

    #[inline]
    fn append(&mut self, piece: &'a str) -> Result<()> {
        self.count_text(piece.len())?;
        self.tree.text(piece);
        Ok(())
    }

    #[inline]
    fn count_text(&mut self, bytes: usize) -> Result<()> {
        self.text_bytes += bytes;
        if self.text_bytes > TEXT_BYTES_MAX { self.scan.fail("a text of more than 10,000,000 bytes") } else { Ok(()) }
    }

    fn entity_in_content(&mut self, name: &str) -> Result<()> {
        match self.doctype.entity(name) {
            Some(Entity::Unparsed) => return self.scan.fail("a reference to an unparsed entity"),
            None if !self.doctype.may_declare_elsewhere() => {
                return self.scan.fail("a reference to an entity that is not declared");
            }
            Some(Entity::Internal(_) | Entity::External) | None => {}
        }
        self.raises.get_or_insert(RaiseReason::EntityReference);
        self.text_bytes = 0;
        Ok(())
    }

    fn end_tag(&mut self) -> Result<()> {
        self.scan.step();
        self.scan.step();
        self.text_bytes = 0;
        let Some(open) = self.open.pop() else { return self.scan.fail("an end tag without start tag") };
        if !self.scan.take_name(open.name) {
            return self.scan.fail("an end tag that does not match the start tag");
        }
        self.scan.blanks();
        self.scan.expect(">", "an end tag is not closed")?;
        self.scopes.leave(open.scope);
        self.tree.close();
        Ok(())
    }

    fn start_tag(&mut self) -> Result<()> {
        let start = self.scan.offset();
        self.scan.step();
        self.text_bytes = 0;
        if self.tree.depth() >= DEPTH_MAX {
            return self.scan.fail("elements nested deeper than 256");
        }
        let name = self.scan.qname()?;
        let scope = self.scopes.mark();
        let attributes_from = self.tree.attributes.len();
        let is_empty = self.attributes()?;
        if self.scan.offset() - start > TEXT_BYTES_MAX {
            return self.scan.fail("a tag of more than 10,000,000 bytes");
        }
        let namespace = self.resolve(name, scope, attributes_from)?;
        self.tree.open(NewElement { name: name.local, namespace, attributes_from });
        if is_empty {
            self.tree.close();
            self.scopes.leave(scope);
        } else {
            self.open.push(Open { name: name.whole, scope });
        }
        Ok(())
    }

    /// Everything after the name of a start tag; whether the element is closed at once.
    fn attributes(&mut self) -> Result<bool> {
        loop {
            let separated = self.scan.blanks();
            match self.scan.peek() {
                Some(b'>') => {
                    self.scan.step();
                    return Ok(false);
                }
                Some(b'/') => {
                    self.scan.expect("/>", "\"/\" without \">\" in a tag")?;
                    return Ok(true);
                }
                _ if separated => self.attribute()?,
                _ => return self.scan.fail("a tag is not closed, or a blank is missing in it"),
            }
        }
    }

    fn attribute(&mut self) -> Result<()> {
        let name = self.scan.qname()?;
        self.scan.blanks();
        self.scan.expect("=", "an attribute without value")?;
        self.scan.blanks();
        let quote = match self.scan.peek() {
            Some(quote @ (b'"' | b'\'')) => quote,
            _ => return self.scan.fail("an attribute value without quotes"),
        };
        self.scan.step();
        let value = self.attribute_value(quote)?;
        let declared = match (name.prefix, name.local) {
            ("", "xmlns") => Some(""),
            ("xmlns", prefix) => Some(prefix),
            _ => None,
        };
        if let Some(prefix) = declared {
            return self.scopes.declare(prefix, value).map_err(|problem| self.scan.error(problem));
        }
        if !name.prefix.is_empty() {
            self.prefixed.push((self.tree.attributes.len(), name.prefix));
        }
        self.tree.attributes.push(Attribute { namespace: NamespaceId::NONE, name: name.local, value });
        Ok(())
    }

    /// A value, normalised, up to and over its quote.
    fn attribute_value(&mut self, quote: u8) -> Result<Cow<'a, str>> {
        let mut value = Cow::Borrowed(self.scan.attribute_data(quote)?);
        loop {
            match self.scan.peek() {
                Some(b'&') => match self.scan.reference()? {
                    Reference::Character(c) => value.to_mut().push(c),
                    Reference::Entity(name) => match predefined(name) {
                        Some(replacement) => value.to_mut().push_str(replacement),
                        None => self.entity_in_value(name, value.to_mut(), ENTITY_DEPTH_MAX)?,
                    },
                },
                Some(b'\n' | b'\t') => {
                    self.scan.step();
                    value.to_mut().push(' ');
                }
                _ => {
                    self.scan.step();
                    return Ok(value);
                }
            }
            let piece = self.scan.attribute_data(quote)?;
            if !piece.is_empty() {
                value.to_mut().push_str(piece);
            }
        }
    }

    /// Expands a declared entity; unlike in content, HQ reads these.
    fn entity_in_value(&mut self, name: &str, value: &mut String, depth: usize) -> Result<()> {
        let replacement = match self.doctype.entity(name) {
            Some(Entity::Internal(replacement)) => replacement.clone(),
            Some(Entity::External | Entity::Unparsed) => {
                return self.scan.fail("an attribute value refers to an external entity");
            }
            None if self.doctype.may_declare_elsewhere() => return Ok(()),
            None => return self.scan.fail("a reference to an entity that is not declared"),
        };
        self.entity_bytes += replacement.len() + 1;
        if depth == 0 || self.entity_bytes > ENTITY_BYTES_MAX {
            return self.scan.fail("entities refer to each other, or grow too long");
        }
        let mut inside = Scanner::new(&replacement);
        loop {
            value.push_str(inside.until_any(b"&<"));
            if inside.peek().is_none() {
                return Ok(());
            }
            let reference = if inside.peek() == Some(b'&') { inside.reference().ok() } else { None };
            match reference {
                Some(Reference::Character(c)) => value.push(c),
                Some(Reference::Entity(nested)) => match predefined(nested) {
                    Some(text) => value.push_str(text),
                    None => self.entity_in_value(nested, value, depth - 1)?,
                },
                None => return self.scan.fail("an entity in an attribute value has \"<\" or a broken reference"),
            }
        }
    }

    /// Resolves the prefixes of a start tag, all of whose declarations are known now; the namespace of the element.
    fn resolve(&mut self, name: QName<'a>, scope: usize, attributes_from: usize) -> Result<NamespaceId> {
        if self.scopes.has_duplicate_since(scope) {
            return self.scan.fail("a namespace is declared twice in a tag");
        }
        let namespace = if name.prefix.is_empty() { self.scopes.default() } else { self.lookup(name.prefix)? };
        if namespace != self.tree.namespace() {
            self.spend_namespace(namespace)?;
        }
        for index in 0..self.prefixed.len() {
            let (attribute, prefix) = self.prefixed[index];
            let namespace = self.lookup(prefix)?;
            self.spend_namespace(namespace)?;
            self.tree.attributes[attribute].namespace = namespace;
            if namespace == NamespaceId::XML && self.tree.attributes[attribute].name == "id" {
                self.check_id(attribute)?;
            }
        }
        self.prefixed.clear();
        if has_duplicate(&self.tree.attributes[attributes_from..]) {
            return self.scan.fail("an attribute stands twice in a tag");
        }
        Ok(namespace)
    }

    fn lookup(&self, prefix: &str) -> Result<NamespaceId> {
        self.scopes.resolve(prefix).ok_or_else(|| self.scan.error("a prefix that is not declared"))
    }

    fn spend_namespace(&mut self, namespace: NamespaceId) -> Result<()> {
        match self.namespace_bytes_left.checked_sub(self.scopes.namespaces.name(namespace).len()) {
            Some(left) => self.namespace_bytes_left = left,
            None => return self.scan.fail("long namespace names are used too often"),
        }
        Ok(())
    }

    /// libxml2 wants `xml:id` to be a name, and unique.
    fn check_id(&mut self, attribute: usize) -> Result<()> {
        let value = self.tree.attributes[attribute].value.trim_matches([' ', '\t', '\n', '\r']);
        let mut name = Scanner::new(value);
        if name.ncname().is_err() || name.peek().is_some() {
            return self.scan.fail("an xml:id that is not a name");
        }
        if self.ids.insert(value.to_owned()) { Ok(()) } else { self.scan.fail("an xml:id that stands twice") }
    }
}

fn has_duplicate(attributes: &[Attribute<'_>]) -> bool {
    if attributes.len() <= COMPARED_ATTRIBUTES_MAX {
        return attributes.iter().enumerate().any(|(index, one)| {
            attributes[..index].iter().any(|other| other.name == one.name && other.namespace == one.namespace)
        });
    }
    let mut seen = HashSet::with_capacity(attributes.len());
    !attributes.iter().all(|attribute| seen.insert((attribute.namespace, attribute.name)))
}
