//! From the tree of a form to JSON, in the order of HQ's members: attributes, `@xmlns`, children, `#text`, and for the root
//! `#type`. HQ's later clean-up of the `meta` block happens in the same walk.

use super::datetime;
use super::json::{Key, NullSink, Sink};
use super::tree::{ChildId, Element, Tree};
use super::{FormXmlError, RaiseReason};

type Result<T> = std::result::Result<T, FormXmlError>;

/// Keys of old `meta` blocks and the keys that HQ gives them.
const META_RENAMES: [(&str, &str); 5] = [
    ("TimeStart", "timeStart"),
    ("TimeEnd", "timeEnd"),
    ("chw_id", "userID"),
    ("DeviceID", "deviceID"),
    ("uid", "instanceID"),
];

/// Writes the form to `sink`.
///
/// # Errors
/// `Raises` if HQ's conversion does. The sink then has a part of the form.
pub(super) fn convert<S: Sink>(tree: &Tree<'_>, sink: &mut S) -> Result<()> {
    if !tree.root().is_object() {
        return Err(FormXmlError::Raises { reason: RaiseReason::RootIsText });
    }
    root(tree, sink)
}

fn root<S: Sink>(tree: &Tree<'_>, sink: &mut S) -> Result<()> {
    let root = tree.root();
    let named = |name: &str| tree.groups(root).find(|id| tree.child(*id).name == name);
    // A block `Meta` takes the place of `meta`, or comes last if there is none.
    let (modern, old) = (named("meta"), named("Meta"));
    sink.begin_object(|| size(tree, root) + 1);
    attributes(tree, root, sink)?;
    for first in tree.groups(root) {
        if Some(first) == modern {
            meta(tree, old.unwrap_or(first), sink)?;
        } else if Some(first) != old {
            member(tree, first, sink)?;
        }
    }
    text(root, sink)?;
    sink.key(Key::Marker("#type"));
    sink.string(root.name);
    match (modern, old) {
        (None, Some(old)) => meta(tree, old, sink)?,
        // HQ drops it only after its conversion, which may raise.
        (Some(modern), Some(_)) => member(tree, modern, &mut NullSink)?,
        _ => {}
    }
    sink.end_object();
    Ok(())
}

/// The member `meta`: the first block only, unless that is a mere text, with modern keys.
fn meta<S: Sink>(tree: &Tree<'_>, first: ChildId, sink: &mut S) -> Result<()> {
    let block = tree.child(first);
    sink.key(Key::Marker("meta"));
    if !block.is_object() {
        return values(tree, first, sink);
    }
    sink.begin_object(|| size(tree, block));
    attributes(tree, block, sink)?;
    let has = |name: &str| tree.groups(block).any(|id| tree.child(id).name == name);
    let renames = META_RENAMES.map(|(old, new)| (old, new, !has(new)));
    let new_name = |id: ChildId| {
        renames.iter().find(|(old, _, renamed)| *renamed && *old == tree.child(id).name).map(|(_, new, _)| *new)
    };
    for group in tree.groups(block).filter(|id| new_name(*id).is_none()) {
        member(tree, group, sink)?;
    }
    text(block, sink)?;
    // Renamed members come last, in the order of their old names.
    for group in tree.groups(block) {
        if let Some(new) = new_name(group) {
            sink.key(Key::Marker(new));
            values(tree, group, sink)?;
        }
    }
    sink.end_object();
    // HQ drops further blocks only after its conversion, which may raise.
    tree.same_key(first).skip(1).try_for_each(|dropped| element(tree, tree.child(dropped), &mut NullSink))
}

/// All children of one key, as one member.
fn member<S: Sink>(tree: &Tree<'_>, first: ChildId, sink: &mut S) -> Result<()> {
    sink.key(Key::Name(tree.child(first).name));
    values(tree, first, sink)
}

fn values<S: Sink>(tree: &Tree<'_>, first: ChildId, sink: &mut S) -> Result<()> {
    if tree.same_key(first).nth(1).is_none() {
        return element(tree, tree.child(first), sink);
    }
    sink.begin_array(|| tree.same_key(first).count());
    for item in tree.same_key(first) {
        element(tree, tree.child(item), sink)?;
    }
    sink.end_array();
    Ok(())
}

fn element<S: Sink>(tree: &Tree<'_>, element: &Element<'_>, sink: &mut S) -> Result<()> {
    if !element.is_object() {
        return string(&element.text, sink);
    }
    sink.begin_object(|| size(tree, element));
    attributes(tree, element, sink)?;
    for first in tree.groups(element) {
        member(tree, first, sink)?;
    }
    text(element, sink)?;
    sink.end_object();
    Ok(())
}

/// About how many members the element's object has.
fn size(tree: &Tree<'_>, element: &Element<'_>) -> usize {
    let markers = usize::from(element.shows_namespace) + usize::from(!element.text.is_empty());
    tree.attributes(element).len() + tree.groups(element).count() + markers
}

/// The attributes, and `@xmlns`.
fn attributes<S: Sink>(tree: &Tree<'_>, element: &Element<'_>, sink: &mut S) -> Result<()> {
    for attribute in tree.attributes(element) {
        match tree.namespace(attribute.namespace) {
            "" => sink.key(Key::Attribute(attribute.name)),
            namespace => sink.key(Key::NamespacedAttribute(namespace, attribute.name)),
        }
        string(&attribute.value, sink)?;
    }
    if element.shows_namespace {
        sink.key(Key::Marker("@xmlns"));
        string(tree.namespace(element.namespace), sink)?;
    }
    Ok(())
}

/// `#text`, unless it is blank. XML has none of the characters on which Python and Rust differ about that.
fn text<S: Sink>(element: &Element<'_>, sink: &mut S) -> Result<()> {
    if element.text.trim_start().is_empty() {
        return Ok(());
    }
    sink.key(Key::Marker("#text"));
    string(&element.text, sink)
}

#[inline]
fn string<S: Sink>(value: &str, sink: &mut S) -> Result<()> {
    match datetime::to_utc(value)? {
        Some(utc) => sink.string(utc.as_str()),
        None => sink.string(value),
    }
    Ok(())
}
