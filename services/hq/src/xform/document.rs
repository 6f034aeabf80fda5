//! The XML parser: one pass over the text of a form, with the checks that libxml2 makes.

use std::borrow::Cow;
use std::collections::HashSet;

use super::doctype::{self, Doctype};
use super::entity::EntityUse;
use super::namespace::{NamespaceId, Scopes};
use super::scanner::{QName, Reference, Scanner, predefined};
use super::tree::{Attribute, NewElement, Tree, TreeBuilder};
use super::{DEPTH_MAX, FormXmlError, RaiseReason, TEXT_BYTES_MAX};

type Result<T> = std::result::Result<T, FormXmlError>;

/// Most attributes of one element that are compared one by one.
const COMPARED_ATTRIBUTES_MAX: usize = 16;
/// Namespace names may repeat in the output to so many times the form's size, plus [`NAMESPACE_BYTES_FREE`]: a name is written
/// once per element that shows it, which a hostile form could use to fill the memory.
const NAMESPACE_GROWTH_MAX: usize = 16;
const NAMESPACE_BYTES_FREE: usize = 16 << 20;

/// Parses the checked text of a form into a tree.
///
/// # Errors
/// `NotWellFormed` for what lxml rejects; `Raises` for what HQ's conversion stumbles over, if all else is in order.
pub(super) fn parse(text: &str) -> Result<Tree<'_>> {
    let mut scan = Scanner::new(text);
    let mut doctype = Doctype::default();
    doctype::prolog(&mut scan, &mut doctype)?;
    let mut document = Document::new(scan, text.len(), &doctype, EntityUse::default());
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

/// A document, or the replacement text of an entity, being parsed.
pub(super) struct Document<'d, 'a> {
    pub(super) scan: Scanner<'a>,
    pub(super) doctype: &'d Doctype<'a>,
    pub(super) entities: EntityUse<'d>,
    scopes: Scopes<'a>,
    tree: TreeBuilder<'a>,
    open: Vec<Open<'a>>,
    /// Attributes of the current tag whose prefix is still to be resolved: index in the tree, prefix.
    prefixed: Vec<(usize, &'a str)>,
    /// Values of `xml:id` so far.
    ids: HashSet<String>,
    /// Length of the text node at the cursor.
    pub(super) text_bytes: usize,
    namespace_bytes_left: usize,
    /// Reported only if the document turns out to be well-formed.
    pub(super) raises: Option<RaiseReason>,
}

impl<'d, 'a> Document<'d, 'a> {
    /// `bytes` is the length of the text that `scan` reads.
    pub(super) fn new(scan: Scanner<'a>, bytes: usize, doctype: &'d Doctype<'a>, entities: EntityUse<'d>) -> Self {
        Self {
            scan,
            doctype,
            entities,
            scopes: Scopes::new(),
            tree: TreeBuilder::with_room_for(bytes),
            open: Vec::with_capacity(16),
            prefixed: Vec::new(),
            ids: HashSet::new(),
            text_bytes: 0,
            namespace_bytes_left: bytes.saturating_mul(NAMESPACE_GROWTH_MAX) + NAMESPACE_BYTES_FREE,
            raises: None,
        }
    }

    /// Open elements around the cursor, those around the entity included.
    pub(super) fn depth(&self) -> usize {
        self.entities.depth_outside() + self.open.len()
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

    /// All that stands between the tags of the root, or within an entity.
    pub(super) fn content(&mut self) -> Result<()> {
        while !self.open.is_empty() || self.entities.is_inside() {
            self.text()?;
            match self.scan.peek_second() {
                None if self.scan.peek().is_none() => {
                    return if self.open.is_empty() { Ok(()) } else { self.scan.fail("an element is not closed") };
                }
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
        if self.depth() >= DEPTH_MAX {
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
                        None => self.entity_in_value(name, value.to_mut())?,
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
