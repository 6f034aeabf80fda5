//! Case blocks: what forms do to cases, written into forms and applied to cases (reference §2.5, 4.4).

use std::sync::Arc;

use serde_json::Value;

use crate::element::{Element, Name, Text};
use crate::moment;
use crate::world::{Case, Link, Presence};

/// Namespace of case blocks since 2010.
const NAMESPACE: &str = "http://commcarehq.org/case/transaction/v2";

/// One case block.
#[derive(Clone, Debug, PartialEq)]
pub struct CaseBlock {
    /// Index of the case.
    pub case: u32,
    /// Id of the case that it is about.
    pub case_id: Arc<str>,
    /// When the phone did it.
    pub modified: Text,
    /// The same, microseconds.
    pub at: i64,
    /// Who did it.
    pub user_id: Arc<str>,
    /// Type, name and owner of a new case.
    pub create: Option<(Name, String, Arc<str>)>,
    /// Properties, some of them well-known.
    pub update: Vec<Element>,
    /// Whether the case ends.
    pub close: bool,
    /// Links to other cases.
    pub links: Vec<Link>,
}

impl CaseBlock {
    /// The element of version 2; with `prefix`, as web apps write it.
    pub fn element(&self, prefix: Option<&'static str>) -> Element {
        let mut block = Element::new("case")
            .within(NAMESPACE, prefix)
            .with("case_id", self.case_id.to_string())
            .with("date_modified", self.modified.clone())
            .with("user_id", self.user_id.to_string());
        if let Some((case_type, name, owner_id)) = &self.create {
            block.children.push(
                Element::new("create")
                    .and(Element::leaf("case_name", name.clone()))
                    .and(Element::leaf("owner_id", owner_id.to_string()))
                    .and(Element { text: Text::Plain(case_type.clone()), ..Element::new("case_type") }),
            );
        }
        if !self.update.is_empty() {
            block.children.push(Element { children: self.update.clone(), ..Element::new("update") });
        }
        if !self.links.is_empty() {
            let mut index = Element::new("index");
            for link in &self.links {
                let mut element = Element::leaf(link.identifier, link.referenced_id.to_string())
                    .with("case_type", Text::Plain(link.referenced_type.clone()));
                if link.extension {
                    element = element.with("relationship", "extension");
                }
                index.children.push(element);
            }
            block.children.push(index);
        }
        if self.close {
            block.children.push(Element::new("close"));
        }
        block
    }

    /// The element of version 1: no attributes.
    pub fn legacy_element(&self) -> Element {
        let mut block = Element::new("case")
            .and(Element::leaf("case_id", self.case_id.to_string()))
            .and(Element::leaf("date_modified", self.modified.clone()));
        if let Some((case_type, name, owner_id)) = &self.create {
            block.children.push(
                Element::new("create")
                    .and(Element { text: Text::Plain(case_type.clone()), ..Element::new("case_type_id") })
                    .and(Element::leaf("case_name", name.clone()))
                    .and(Element::leaf("user_id", self.user_id.to_string()))
                    .and(Element::leaf("owner_id", owner_id.to_string())),
            );
        }
        block.and(Element { children: self.update.clone(), ..Element::new("update") })
    }

    /// HQ's bits of the transaction that this block makes.
    pub fn bits(&self) -> i64 {
        let bit = |set: bool, bit: i64| if set { bit } else { 0 };
        1 + bit(self.create.is_some(), 128) + bit(self.close, 256) + bit(!self.links.is_empty(), 512)
    }

    /// Changes the case. (When HQ received the form, is the caller's to note.)
    pub fn apply(&self, case: &mut Case) {
        if case.presence == Presence::Unborn {
            case.presence = Presence::Live;
        }
        if let Some((case_type, name, owner_id)) = &self.create {
            case.case_type = case_type.clone();
            case.name = Some(name.clone());
            case.owner_id = Arc::clone(owner_id);
            case.opened_on = Some(self.at);
            case.opened_by = Some(Arc::clone(&self.user_id));
        }
        for property in &self.update {
            apply_property(case, property);
        }
        for link in &self.links {
            match case.links.iter_mut().find(|held| held.identifier == link.identifier) {
                Some(held) => *held = link.clone(),
                None => case.links.push(link.clone()),
            }
        }
        if self.close {
            case.closed = Some((self.at, Arc::clone(&self.user_id)));
        }
        case.modified_on = case.modified_on.max(self.at);
        case.modified_by = Arc::clone(&self.user_id);
    }
}

fn apply_property(case: &mut Case, property: &Element) {
    let text = || property.text.converted();
    match property.name.as_ref() {
        "case_type" => case.case_type = text().into(),
        "case_name" | "name" => case.name = Some(text()),
        "external_id" => case.external_id = Some(text()),
        "hq_user_id" => {
            case.external_id = Some(text());
            set(&mut case.properties, &property.name, Value::String(text()));
        }
        "owner_id" => case.owner_id = text().into(),
        "date_opened" => {
            if let Text::Moment { instant, .. } = property.text {
                case.opened_on = Some(instant);
            }
        }
        _ => set(&mut case.properties, &property.name, property.value(Some(NAMESPACE))),
    }
}

/// Sets a property; the place of a property in the object stays.
pub fn set(properties: &mut Vec<(Name, Value)>, name: &Name, value: Value) {
    match properties.iter_mut().find(|(held, _)| held == name) {
        Some((_, held)) => *held = value,
        None => properties.push((name.clone(), value)),
    }
}

/// `date_modified` of a block as phones write it, with its instant.
pub fn modified(text: Text) -> (Text, i64) {
    let at = match &text {
        Text::Moment { instant, .. } => *instant,
        Text::Plain(_) | Text::Odd(..) => 0,
    };
    (text, at)
}

/// Sets a case back to where replaying its forms begins (reference §2.5, "Rebuild").
pub fn reset(case: &mut Case) {
    case.properties.clear();
    case.closed = None;
    case.external_id = Some(String::new());
    case.opened_by = Some("".into());
    case.links.clear();
}

/// The text of the column `case_json`.
pub fn case_json(case: &Case) -> String {
    let mut out = String::with_capacity(1024);
    out.push('{');
    for (name, value) in all_properties(case) {
        if out.len() > 1 {
            out.push_str(", ");
        }
        out.push_str(&Value::String(name.to_string()).to_string());
        out.push_str(": ");
        out.push_str(&value.to_string());
    }
    out.push('}');
    out
}

/// Dynamic properties, those that no form wrote included: they win over a form's.
pub fn all_properties(case: &Case) -> impl Iterator<Item = (&Name, &Value)> {
    let written = case.properties.iter().filter(|(name, _)| !case.oddities.iter().any(|(odd, _)| odd == name));
    written.chain(&case.oddities).map(|(name, value)| (name, value))
}

/// The instant as HQ's rows have it, or null.
pub fn instant(us: Option<i64>) -> Value {
    us.map_or(Value::Null, |us| Value::String(moment::text(us)))
}
