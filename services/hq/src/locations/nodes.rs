//! Locations, packed: 24 bytes each and their texts end to end, 24 bytes more where there are coordinates.

use super::segments::Segments;
use crate::source::LocationNode;

/// Bytes of one piece of text: a position in the texts is 12 bits of piece and 20 bits of offset.
const TEXT_SIZE: usize = 1 << 20;
const PIECES_MAX: usize = 1 << 12;
/// `parent` of a top-level location.
pub(super) const NO_PARENT: u32 = u32::MAX;
/// `name_size` where the name is null.
const NO_NAME: u16 = u16::MAX;
/// Longest location id; HQ has varchar(100).
const ID_SIZE_MAX: usize = 0xFFF;
const ARCHIVED: u16 = 1 << 15;
const HAS_COORDINATES: u16 = 1 << 14;

#[derive(Clone, Copy, Debug)]
struct Node {
    id: i64,
    /// Where its texts begin: location id, name, site code.
    text: u32,
    parent: u32,
    name_size: u16,
    site_code_size: u16,
    type_number: u16,
    id_size_and_flags: u16,
}

/// NaN where there is none.
#[derive(Clone, Copy, Debug)]
struct Coordinates {
    node_index: u32,
    latitude: f64,
    longitude: f64,
}

/// One location as it is held, unpacked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Unpacked<'n> {
    pub id: i64,
    pub parent: u32,
    pub type_number: u16,
    pub location_id: &'n str,
    pub name: Option<&'n str>,
    pub site_code: &'n str,
    pub latitude: Option<f64>,
    pub longitude: Option<f64>,
    pub is_archived: bool,
}

/// A list of packed locations.
#[derive(Clone, Debug, Default)]
pub(super) struct Nodes {
    nodes: Segments<Node>,
    texts: Vec<String>,
    coordinates: Segments<Coordinates>,
}

impl Nodes {
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Adds a location, yet without a parent, and gives its index. `None` where there is no room or the id is longer than HQ allows.
    pub fn push(&mut self, row: &LocationNode<'_>, type_number: u16) -> Option<u32> {
        let node_index = u32::try_from(self.nodes.len()).ok().filter(|node_index| *node_index < 1 << 31)?;
        let name = row.name.map(|name| clip(name, usize::from(NO_NAME) - 1));
        let site_code = clip(row.site_code, usize::from(u16::MAX));
        let id_size = u16::try_from(row.location_id.len()).ok().filter(|size| usize::from(*size) <= ID_SIZE_MAX)?;
        let text = self.push_texts([row.location_id, name.unwrap_or_default(), site_code])?;
        let coordinates = Coordinates {
            node_index,
            latitude: row.latitude.unwrap_or(f64::NAN),
            longitude: row.longitude.unwrap_or(f64::NAN),
        };
        let has_coordinates = !(coordinates.latitude.is_nan() && coordinates.longitude.is_nan());
        if has_coordinates {
            self.coordinates.push(coordinates);
        }
        let flags = if row.is_archived { ARCHIVED } else { 0 } | if has_coordinates { HAS_COORDINATES } else { 0 };
        self.nodes.push(Node {
            id: row.id,
            text,
            parent: NO_PARENT,
            name_size: name.map_or(NO_NAME, size),
            site_code_size: size(site_code),
            type_number,
            id_size_and_flags: id_size | flags,
        });
        Some(node_index)
    }

    fn push_texts(&mut self, texts: [&str; 3]) -> Option<u32> {
        let needed: usize = texts.iter().map(|text| text.len()).sum();
        if self.texts.last().is_none_or(|last| last.len() + needed >= TEXT_SIZE) {
            if let Some(last) = self.texts.last_mut() {
                last.shrink_to_fit();
            }
            let room = if self.texts.is_empty() { 0 } else { TEXT_SIZE };
            self.texts.push(String::with_capacity(room));
        }
        let piece = self.texts.len().checked_sub(1).filter(|piece| *piece < PIECES_MAX)?;
        let last = self.texts.last_mut()?;
        // A piece is never quite full, so that every offset has 20 bits.
        let at = u32::try_from(piece * TEXT_SIZE + last.len()).ok()?;
        texts.into_iter().for_each(|text| last.push_str(text));
        Some(at)
    }

    pub fn set_parent(&mut self, node_index: u32, parent: u32) {
        if let Some(node) = self.nodes.get_mut(node_index as usize) {
            node.parent = parent;
        }
    }

    pub fn id(&self, node_index: u32) -> Option<i64> {
        self.nodes.get(node_index as usize).map(|node| node.id)
    }

    pub fn location_id(&self, node_index: u32) -> Option<&str> {
        let node = self.nodes.get(node_index as usize)?;
        self.text(node, 0, usize::from(node.id_size_and_flags) & ID_SIZE_MAX)
    }

    fn text(&self, node: &Node, skip: usize, size: usize) -> Option<&str> {
        let begin = node.text as usize % TEXT_SIZE + skip;
        self.texts.get(node.text as usize / TEXT_SIZE)?.get(begin..begin + size)
    }

    pub fn get(&self, node_index: u32) -> Option<Unpacked<'_>> {
        let node = self.nodes.get(node_index as usize)?;
        let id_size = usize::from(node.id_size_and_flags) & ID_SIZE_MAX;
        let name_size = if node.name_size == NO_NAME { 0 } else { usize::from(node.name_size) };
        let name = self.text(node, id_size, name_size).filter(|_| node.name_size != NO_NAME);
        let has_coordinates = node.id_size_and_flags & HAS_COORDINATES != 0;
        let found =
            if has_coordinates { self.coordinates.find_by_key(&node_index, |entry| entry.node_index) } else { None };
        Some(Unpacked {
            id: node.id,
            parent: node.parent,
            type_number: node.type_number,
            location_id: self.text(node, 0, id_size)?,
            name,
            site_code: self.text(node, id_size + name_size, usize::from(node.site_code_size))?,
            latitude: found.map(|entry| entry.latitude).filter(|degrees| !degrees.is_nan()),
            longitude: found.map(|entry| entry.longitude).filter(|degrees| !degrees.is_nan()),
            is_archived: node.id_size_and_flags & ARCHIVED != 0,
        })
    }

    /// Nothing more is added.
    pub fn shrink(&mut self) {
        self.nodes.shrink();
        self.coordinates.shrink();
        if let Some(last) = self.texts.last_mut() {
            last.shrink_to_fit();
        }
        self.texts.shrink_to_fit();
    }
}

/// HQ's columns are far shorter than the limits; what is not is cut rather than refused.
fn clip(text: &str, size_max: usize) -> &str {
    &text[..text.floor_char_boundary(size_max)]
}

fn size(text: &str) -> u16 {
    u16::try_from(text.len()).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn everything_comes_back_as_it_was_put_in() {
        let mut nodes = Nodes::default();
        let long = "ल".repeat(30_000);
        let count = 20_000_i64;
        for id in 0..count {
            let location_id = format!("location {id} é");
            let row = LocationNode {
                id,
                location_id: &location_id,
                name: match id % 4 {
                    0 => None,
                    1 => Some(""),
                    2 if id % 1_000 == 2 => Some(&long),
                    _ => Some("Name"),
                },
                site_code: if id % 3 == 0 { "" } else { "site" },
                latitude: (id % 5 == 0).then_some(id as f64),
                longitude: (id % 10 == 0).then_some(0.0),
                is_archived: id % 7 == 0,
                ..LocationNode::default()
            };
            assert_eq!(nodes.push(&row, 3), Some(id as u32));
        }
        nodes.shrink();
        nodes.set_parent(5, 4);
        for id in 0..count {
            let found = nodes.get(id as u32).unwrap();
            assert_eq!(found.location_id, format!("location {id} é"));
            assert_eq!((nodes.id(id as u32), nodes.location_id(id as u32)), (Some(id), Some(found.location_id)));
            let long_or_not = if id % 1_000 == 2 { 65_532 } else { 4 };
            assert_eq!(found.name.map(str::len), [None, Some(0), Some(long_or_not), Some(4)][id as usize % 4]);
            assert_eq!(found.site_code, if id % 3 == 0 { "" } else { "site" });
            assert_eq!(found.latitude, (id % 5 == 0).then_some(id as f64));
            assert_eq!(found.longitude, (id % 10 == 0).then_some(0.0));
            assert_eq!((found.is_archived, found.type_number), (id % 7 == 0, 3));
            assert_eq!(found.parent, if id == 5 { 4 } else { NO_PARENT });
        }
        assert_eq!(nodes.get(count as u32), None);
    }

    #[test]
    fn an_id_that_hq_cannot_have_is_not_taken() {
        let long = "x".repeat(5_000);
        let row = LocationNode { location_id: &long, ..LocationNode::default() };
        assert_eq!(Nodes::default().push(&row, 0), None);
    }
}
