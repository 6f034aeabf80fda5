//! References to entities that a DTD declares, with the checks that libxml2 makes.
//!
//! In an attribute value the entity is expanded. In content HQ's conversion raises on the mere reference; but before that,
//! the replacement text must be well-formed content, or the whole document is not well-formed. It is read once per entity.
//!
//! Invariant: what all references together stand for is limited by the size of the document, and no text is read twice for
//! content, so that entities which refer to each other cannot use up time or memory.

use std::collections::HashMap;

use super::doctype::Entity;
use super::document::Document;
use super::scanner::{Reference, Scanner, predefined};
use super::{DEPTH_MAX, FormXmlError, RaiseReason};

type Result<T> = std::result::Result<T, FormXmlError>;

/// Deepest nesting of entities within each other.
const NESTING_MAX: usize = 19;
/// What a reference costs besides its text, in bytes.
const REFERENCE_COST: usize = 20;
/// What all references may cost, in bytes, whatever the size of the document.
const COST_FREE: usize = 1_000_000;
/// What all references may cost, in parts of the document read so far.
const GROWTH_MAX: usize = 5;

/// The use of entities so far.
#[derive(Debug, Default)]
pub(super) struct EntityUse<'d> {
    /// Entities around the cursor, outermost first.
    open: Vec<&'d str>,
    /// What the references in an entity's text cost, with that text, for entities whose text is known to be content.
    content_costs: HashMap<&'d str, usize>,
    /// What the references so far cost: those of the document, or those of the innermost open entity.
    cost: usize,
    /// Open elements around the innermost open entity.
    depth_outside: usize,
    /// Bytes of the document before the outermost open entity.
    read_outside: usize,
}

impl EntityUse<'_> {
    /// Whether the replacement text of an entity is being read, rather than the document.
    pub(super) fn is_inside(&self) -> bool {
        !self.open.is_empty()
    }

    pub(super) fn depth_outside(&self) -> usize {
        self.depth_outside
    }
}

impl<'d> Document<'d, '_> {
    /// A reference in content, not one of the five that need no declaration.
    pub(super) fn entity_in_content(&mut self, name: &str) -> Result<()> {
        match self.doctype.entity(name) {
            Some((name, Entity::Internal(replacement))) => {
                let cost = match self.entities.content_costs.get(name) {
                    Some(cost) => *cost,
                    None => self.check_content(name, replacement)?,
                };
                self.spend(cost)?;
            }
            Some((_, Entity::Unparsed)) => return self.scan.fail("a reference to an unparsed entity"),
            None if !self.doctype.may_declare_elsewhere() => {
                return self.scan.fail("a reference to an entity that is not declared");
            }
            Some((_, Entity::External)) | None => {}
        }
        self.raises.get_or_insert(RaiseReason::EntityReference);
        self.text_bytes = 0;
        Ok(())
    }

    /// Whether a replacement text is content; what it costs.
    fn check_content(&mut self, name: &'d str, replacement: &'d str) -> Result<usize> {
        // libxml2 reads the text within an element of its own.
        let depth = self.depth() + 1;
        if depth > DEPTH_MAX {
            return self.scan.fail("elements nested deeper than 256");
        }
        self.enter(name)?;
        let mut entities = std::mem::take(&mut self.entities);
        let cost_outside = std::mem::replace(&mut entities.cost, replacement.len());
        let depth_outside = std::mem::replace(&mut entities.depth_outside, depth);
        let read_outside = entities.read_outside;
        if entities.open.len() == 1 {
            entities.read_outside = self.scan.offset();
        }
        let mut inside = Document::new(Scanner::new(replacement), replacement.len(), self.doctype, entities);
        let done = inside.content();
        self.entities = inside.entities;
        self.entities.open.pop();
        self.entities.read_outside = read_outside;
        self.entities.depth_outside = depth_outside;
        let cost = std::mem::replace(&mut self.entities.cost, cost_outside);
        done.map_err(|_| self.scan.error("a reference to an entity whose text is not well-formed, or grows too long"))?;
        self.entities.content_costs.insert(name, cost);
        Ok(cost)
    }

    /// Expands a reference in an attribute value, not one of the five that need no declaration.
    pub(super) fn entity_in_value(&mut self, name: &str, value: &mut String) -> Result<()> {
        let (name, replacement) = match self.doctype.entity(name) {
            Some((name, Entity::Internal(replacement))) => (name, replacement),
            Some((_, Entity::External | Entity::Unparsed)) => {
                return self.scan.fail("an attribute value refers to an external entity");
            }
            None if self.doctype.may_declare_elsewhere() => return Ok(()),
            None => return self.scan.fail("a reference to an entity that is not declared"),
        };
        self.enter(name)?;
        self.spend(replacement.len())?;
        let mut inside = Scanner::new(replacement);
        loop {
            value.push_str(inside.until_any(b"&<"));
            if inside.peek().is_none() {
                self.entities.open.pop();
                return Ok(());
            }
            let reference = if inside.peek() == Some(b'&') { inside.reference().ok() } else { None };
            match reference {
                Some(Reference::Character(c)) => value.push(c),
                Some(Reference::Entity(nested)) => match predefined(nested) {
                    Some(text) => value.push_str(text),
                    None => self.entity_in_value(nested, value)?,
                },
                None => return self.scan.fail("an entity in an attribute value has \"<\" or a broken reference"),
            }
        }
    }

    fn enter(&mut self, name: &'d str) -> Result<()> {
        if self.entities.open.contains(&name) || self.entities.open.len() >= NESTING_MAX {
            return self.scan.fail("entities that refer to each other, or too deep in each other");
        }
        self.entities.open.push(name);
        Ok(())
    }

    fn spend(&mut self, bytes: usize) -> Result<()> {
        self.entities.cost = self.entities.cost.saturating_add(bytes).saturating_add(REFERENCE_COST);
        let read = self.entities.read_outside + self.scan.offset();
        if self.entities.cost > COST_FREE && self.entities.cost / GROWTH_MAX > read {
            return self.scan.fail("entities that grow too long");
        }
        Ok(())
    }
}
