//! Namespace names and the prefixes in scope.

use std::borrow::Cow;
use std::collections::HashMap;

use super::uri::is_uri_reference;

/// What the prefix `xml` always means.
pub(super) const XML_NAMESPACE: &str = "http://www.w3.org/XML/1998/namespace";
const XMLNS_NAMESPACE: &str = "http://www.w3.org/2000/xmlns/";

/// Below this many entries, looking at each is faster than hashing.
const SCAN_MAX: usize = 16;

/// Index of a namespace name in [`Namespaces`]; equal ids mean equal names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NamespaceId(u32);

impl NamespaceId {
    pub(super) const NONE: Self = Self(0);
    pub(super) const XML: Self = Self(1);
}

/// All namespace names of a document.
#[derive(Debug)]
pub(super) struct Namespaces<'a> {
    names: Vec<Cow<'a, str>>,
    index: HashMap<Cow<'a, str>, NamespaceId>,
}

impl<'a> Namespaces<'a> {
    fn new() -> Self {
        Self { names: vec![Cow::Borrowed(""), Cow::Borrowed(XML_NAMESPACE)], index: HashMap::new() }
    }

    pub(super) fn name(&self, id: NamespaceId) -> &str {
        &self.names[id.0 as usize]
    }

    /// The id of a name, if the document has used it before.
    fn known(&self, name: &str) -> Option<NamespaceId> {
        let scanned = &self.names[..self.names.len().min(SCAN_MAX)];
        match scanned.iter().position(|known| known == name) {
            Some(position) => Some(NamespaceId(position as u32)),
            None => self.index.get(name).copied(),
        }
    }

    fn add(&mut self, name: Cow<'a, str>) -> NamespaceId {
        let id = NamespaceId(self.names.len() as u32);
        if self.names.len() >= SCAN_MAX {
            self.index.insert(name.clone(), id);
        }
        self.names.push(name);
        id
    }
}

#[derive(Debug)]
struct Binding<'a> {
    /// Empty for the default namespace.
    prefix: &'a str,
    namespace: NamespaceId,
    shadowed: Option<NamespaceId>,
}

/// The prefixes in scope at the cursor.
#[derive(Debug)]
pub(super) struct Scopes<'a> {
    pub(super) namespaces: Namespaces<'a>,
    bindings: Vec<Binding<'a>>,
    /// The innermost meaning of each prefix; only consulted when there are many bindings.
    current: HashMap<&'a str, NamespaceId>,
    default: NamespaceId,
}

impl<'a> Scopes<'a> {
    pub(super) fn new() -> Self {
        Self {
            namespaces: Namespaces::new(),
            bindings: Vec::new(),
            current: HashMap::new(),
            default: NamespaceId::NONE,
        }
    }

    /// A mark to give to [`Self::leave`] and [`Self::has_duplicate_since`].
    pub(super) fn mark(&self) -> usize {
        self.bindings.len()
    }

    /// Forgets the declarations made since the mark.
    #[inline]
    pub(super) fn leave(&mut self, mark: usize) {
        while self.bindings.len() > mark {
            let Some(binding) = self.bindings.pop() else { return };
            if binding.prefix.is_empty() {
                self.default = binding.shadowed.unwrap_or(NamespaceId::NONE);
            } else if let Some(shadowed) = binding.shadowed {
                self.current.insert(binding.prefix, shadowed);
            } else {
                self.current.remove(binding.prefix);
            }
        }
    }

    /// Declares a prefix, empty for the default namespace; says what is wrong if XML or libxml2 forbids it.
    pub(super) fn declare(&mut self, prefix: &'a str, name: Cow<'a, str>) -> Result<(), &'static str> {
        if prefix == "xml" {
            return if name == XML_NAMESPACE { Ok(()) } else { Err("the prefix xml is given another namespace") };
        }
        if prefix == "xmlns" || name == XMLNS_NAMESPACE || name == XML_NAMESPACE {
            return Err("a reserved prefix or namespace is declared");
        }
        if name.is_empty() && !prefix.is_empty() {
            return Err("a prefix is given an empty namespace");
        }
        let namespace = match self.namespaces.known(&name) {
            Some(known) => known,
            None if is_uri_reference(&name) => self.namespaces.add(name),
            None => return Err("a namespace name is not a URI"),
        };
        let shadowed = match prefix {
            "" => Some(std::mem::replace(&mut self.default, namespace)),
            _ => self.current.insert(prefix, namespace),
        };
        self.bindings.push(Binding { prefix, namespace, shadowed });
        Ok(())
    }

    /// Whether a prefix was declared twice since the mark.
    #[inline]
    pub(super) fn has_duplicate_since(&self, mark: usize) -> bool {
        let new = &self.bindings[mark..];
        if new.len() <= SCAN_MAX {
            return new.iter().enumerate().any(|(i, one)| new[..i].iter().any(|other| other.prefix == one.prefix));
        }
        let mut seen = std::collections::HashSet::new();
        !new.iter().all(|binding| seen.insert(binding.prefix))
    }

    /// The namespace of elements without prefix.
    pub(super) fn default(&self) -> NamespaceId {
        self.default
    }

    /// The meaning of a prefix that is not empty.
    #[inline]
    pub(super) fn resolve(&self, prefix: &str) -> Option<NamespaceId> {
        if prefix == "xml" {
            return Some(NamespaceId::XML);
        }
        if self.bindings.len() > SCAN_MAX {
            return self.current.get(prefix).copied();
        }
        self.bindings.iter().rev().find(|binding| binding.prefix == prefix).map(|binding| binding.namespace)
    }
}
