//! A form's elements as a flat list of borrowed slices, children grouped by key as JSON needs them.
//!
//! Invariant: the groups of one element are in the order of their first member, the members of a group in document order.
//! Grouping costs a constant time per child, also for very many or hostile names.

use std::borrow::Cow;
use std::collections::HashMap;
use std::num::NonZeroU32;

use super::namespace::{NamespaceId, Namespaces};

/// Beyond this many different keys in one element, they are hashed instead of compared one by one.
const COMPARED_KEYS_MAX: usize = 32;

/// Index of an element other than the root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChildId(NonZeroU32);

#[derive(Debug)]
pub(super) struct Attribute<'a> {
    pub(super) namespace: NamespaceId,
    pub(super) name: &'a str,
    pub(super) value: Cow<'a, str>,
}

#[derive(Debug)]
pub(super) struct Element<'a> {
    /// Local name, without prefix and namespace.
    pub(super) name: &'a str,
    /// Character data before the first child element.
    pub(super) text: Cow<'a, str>,
    pub(super) namespace: NamespaceId,
    attributes_from: u32,
    attributes_to: u32,
    first_group: Option<ChildId>,
    next_group: Option<ChildId>,
    next_same_key: Option<ChildId>,
    /// Whether the namespace is one that the parent does not have.
    pub(super) shows_namespace: bool,
}

impl Element<'_> {
    /// Whether it becomes a JSON object; otherwise it becomes a string.
    pub(super) fn is_object(&self) -> bool {
        self.shows_namespace || self.attributes_from < self.attributes_to || self.first_group.is_some()
    }
}

#[derive(Debug)]
pub(super) struct Tree<'a> {
    /// The root is the first.
    elements: Vec<Element<'a>>,
    attributes: Vec<Attribute<'a>>,
    namespaces: Namespaces<'a>,
}

impl<'a> Tree<'a> {
    pub(super) fn root(&self) -> &Element<'a> {
        &self.elements[0]
    }

    pub(super) fn child(&self, id: ChildId) -> &Element<'a> {
        &self.elements[id.0.get() as usize]
    }

    pub(super) fn namespace(&self, id: NamespaceId) -> &str {
        self.namespaces.name(id)
    }

    pub(super) fn attributes(&self, element: &Element<'a>) -> &[Attribute<'a>] {
        &self.attributes[element.attributes_from as usize..element.attributes_to as usize]
    }

    /// The first child of each key.
    pub(super) fn groups(&self, element: &Element<'a>) -> impl Iterator<Item = ChildId> {
        std::iter::successors(element.first_group, |id| self.child(*id).next_group)
    }

    /// All children of one key, given the first.
    pub(super) fn same_key(&self, first: ChildId) -> impl Iterator<Item = ChildId> {
        std::iter::successors(Some(first), |id| self.child(*id).next_same_key)
    }
}

/// What is known of an element at the end of its start tag; its attributes are those pushed since the element before.
#[derive(Debug)]
pub(super) struct NewElement<'a> {
    pub(super) name: &'a str,
    pub(super) namespace: NamespaceId,
    pub(super) attributes_from: usize,
}

#[derive(Debug)]
struct Group {
    print: u64,
    first: usize,
    last: usize,
}

/// An element whose end tag is still to come.
#[derive(Debug)]
struct Open<'a> {
    element: usize,
    groups_from: usize,
    index: Option<HashMap<&'a str, usize>>,
}

#[derive(Debug, Default)]
pub(super) struct TreeBuilder<'a> {
    elements: Vec<Element<'a>>,
    pub(super) attributes: Vec<Attribute<'a>>,
    open: Vec<Open<'a>>,
    /// The groups of all open elements, innermost last.
    groups: Vec<Group>,
}

impl<'a> TreeBuilder<'a> {
    /// Room for a document of so many bytes.
    pub(super) fn with_room_for(bytes: usize) -> Self {
        Self {
            elements: Vec::with_capacity((bytes / 48).min(4096)),
            attributes: Vec::with_capacity(16),
            open: Vec::with_capacity(16),
            groups: Vec::with_capacity(64),
        }
    }

    /// The namespace of the innermost open element.
    pub(super) fn namespace(&self) -> NamespaceId {
        self.open.last().map_or(NamespaceId::NONE, |open| self.elements[open.element].namespace)
    }

    /// Opens a child of the innermost open element, or the root.
    pub(super) fn open(&mut self, new: NewElement<'a>) {
        let shows_namespace = new.namespace != NamespaceId::NONE && new.namespace != self.namespace();
        let element = self.elements.len();
        self.elements.push(Element {
            name: new.name,
            text: Cow::Borrowed(""),
            namespace: new.namespace,
            attributes_from: new.attributes_from as u32,
            attributes_to: self.attributes.len() as u32,
            first_group: None,
            next_group: None,
            next_same_key: None,
            shows_namespace,
        });
        self.join_siblings(element);
        self.open.push(Open { element, groups_from: self.groups.len(), index: None });
    }

    /// Closes the innermost open element.
    pub(super) fn close(&mut self) {
        if let Some(closed) = self.open.pop() {
            self.groups.truncate(closed.groups_from);
        }
    }

    /// Character data of the innermost open element; dropped if it already has a child.
    #[inline]
    pub(super) fn text(&mut self, piece: &'a str) {
        let Some(open) = self.open.last() else { return };
        let element = &mut self.elements[open.element];
        if element.first_group.is_some() || piece.is_empty() {
            return;
        }
        if element.text.is_empty() {
            element.text = Cow::Borrowed(piece);
        } else {
            element.text.to_mut().push_str(piece);
        }
    }

    /// As [`Self::text`], for a character reference.
    pub(super) fn character(&mut self, c: char) {
        let Some(open) = self.open.last() else { return };
        let element = &mut self.elements[open.element];
        if element.first_group.is_none() {
            element.text.to_mut().push(c);
        }
    }

    pub(super) fn finish(self, namespaces: Namespaces<'a>) -> Tree<'a> {
        Tree { elements: self.elements, attributes: self.attributes, namespaces }
    }

    fn join_siblings(&mut self, element: usize) {
        let (Some(open), Ok(number)) = (self.open.last_mut(), u32::try_from(element)) else { return };
        let id = NonZeroU32::new(number).map(ChildId);
        let name = self.elements[element].name;
        let print = fingerprint(name);
        let siblings = &mut self.groups[open.groups_from..];
        let group = match &open.index {
            // The last group first: items of a list mostly follow each other.
            None => siblings.iter().rposition(|group| group.print == print && self.elements[group.first].name == name),
            Some(index) => index.get(name).copied(),
        };
        if let Some(position) = group {
            let before = std::mem::replace(&mut siblings[position].last, element);
            self.elements[before].next_same_key = id;
            return;
        }
        match siblings.last() {
            Some(previous) => self.elements[previous.first].next_group = id,
            None => self.elements[open.element].first_group = id,
        }
        let position = siblings.len();
        if let Some(index) = &mut open.index {
            index.insert(name, position);
        } else if position == COMPARED_KEYS_MAX {
            let known = siblings.iter().enumerate().map(|(at, group)| (self.elements[group.first].name, at));
            open.index = Some(known.chain([(name, position)]).collect());
        }
        self.groups.push(Group { print, first: element, last: element });
    }
}

/// Equal for equal names, and almost always different for different ones.
fn fingerprint(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let (head, tail) = match (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        (Some(head), Some(tail)) => (*head, *tail),
        _ => {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            (word, [0; 8])
        }
    };
    u64::from_le_bytes(head) ^ u64::from_le_bytes(tail).rotate_left(29) ^ bytes.len() as u64
}
