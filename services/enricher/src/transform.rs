//! Custom transformation of documents before they are saved, from configuration. Pure.
//!
//! Rules run in the order of the configuration, on the document, before it is flattened; month, user and version are taken from the
//! document as HQ has it. A path is a JSON pointer; an array on the way stands for each of its items, since a repeat group is an object
//! or an array depending on how often it was filled in. A case has its properties twice, at the top level and in `case_json`: an
//! action on `/x` changes the copy `/case_json/x` too, so that nothing that was dropped comes back.

use lake_shared::identity::{DocumentType, Domain, Kind};
use lake_shared::secret::Secret;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::flatten;

/// Longest pointer of a rule, in steps: rules must not make documents deeper than is safe.
pub const STEPS_MAX: usize = 30;

/// Members that identify a row; no rule may change them.
const IDENTITY: [&str; 3] = ["_id", "domain", "type"];

/// One section `[[enricher.transforms]]`: which documents it concerns, and what is done to them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Only documents of this project space; all where it is absent.
    #[serde(default)]
    pub domain: Option<String>,
    /// Only `case`, `form` or `location`; all where it is absent.
    #[serde(default, deserialize_with = "kind_by_name")]
    pub kind: Option<Kind>,
    /// Only this case type, form type (xmlns without the prefix of the form designer) or `Location`; all where it is absent.
    #[serde(default, rename = "type")]
    pub document_type: Option<String>,
    /// What to do, in this order.
    pub actions: Vec<Action>,
}

fn kind_by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Kind>, D::Error> {
    let Some(name) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
    Kind::of_name(&name).map(Some).ok_or_else(|| serde::de::Error::custom("kind must be case, form or location"))
}

/// One change of a document, for example `{ drop = "/phone_number" }`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Removes the field and everything below it.
    Drop(Pointer),
    /// Gives the field another key in the same object. What had that key is replaced.
    Rename {
        /// The field that is renamed.
        path: Pointer,
        /// Its new key in the same object.
        to: String,
    },
    /// Sets a text, number or truth value. Objects on the way that are missing are made.
    Set {
        /// The field that is set.
        path: Pointer,
        /// The text, number or truth value that it gets.
        value: Value,
    },
    /// Copies a field, with everything below it. Does nothing where there is no such field, or where an array is on the way.
    Copy {
        /// The field that is copied, with everything below it.
        from: Pointer,
        /// Where to; what was there is replaced.
        to: Pointer,
    },
    /// Replaces the value by the SHA-256 of `salt` and its text, as 64 hex digits. Null stays null.
    /// Without a salt, short values such as telephone numbers can be found by trying all of them.
    Hash {
        /// The field that is hashed.
        path: Pointer,
        /// Put before the value; keep it secret, and the same for all fields that are to be joined.
        #[serde(default)]
        salt: Secret,
    },
}

/// A JSON pointer of at least one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pointer(Vec<String>);

impl<'de> Deserialize<'de> for Pointer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let refused = |why: &str| Err(serde::de::Error::custom(format!("path `{text}` {why}")));
        let Some(steps) = text.strip_prefix('/') else { return refused("must begin with `/`") };
        let steps: Vec<String> = steps.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
        if steps.len() > STEPS_MAX {
            return refused("has too many steps");
        }
        Ok(Self(steps))
    }
}

impl Pointer {
    fn is_identity(&self) -> bool {
        self.0.len() == 1 && IDENTITY.contains(&self.0[0].as_str())
    }
}

impl Rule {
    /// Checks what types cannot express.
    ///
    /// # Errors
    /// What is wrong with the rule, in one line.
    pub fn validate(&self) -> Result<(), String> {
        for action in &self.actions {
            let (changed, renamed) = match action {
                Action::Drop(path) | Action::Hash { path, .. } | Action::Copy { to: path, .. } => (path, None),
                Action::Rename { path, to } => (path, Some(to).filter(|_| path.0.len() == 1)),
                Action::Set { path, value } => {
                    if value.is_array() || value.is_object() {
                        return Err("set: value must be a text, a number, true or false".into());
                    }
                    (path, None)
                }
            };
            if changed.is_identity() || renamed.is_some_and(|to| IDENTITY.contains(&to.as_str())) {
                return Err(format!("no action may change {}", IDENTITY.map(|key| format!("/{key}")).join(", ")));
            }
        }
        Ok(())
    }

    fn applies(&self, domain: &Domain, kind: Kind, document_type: &DocumentType) -> bool {
        self.domain.as_deref().is_none_or(|wanted| wanted == domain.as_str())
            && self.kind.is_none_or(|wanted| wanted == kind)
            && self.document_type.as_deref().is_none_or(|wanted| wanted == document_type.as_str())
    }
}

/// The rules for one table.
#[derive(Clone, Debug)]
pub struct Transforms<'r> {
    kind: Kind,
    actions: Vec<&'r Action>,
}

impl<'r> Transforms<'r> {
    /// Picks the rules of this table.
    pub fn of_table(rules: &'r [Rule], domain: &Domain, kind: Kind, document_type: &DocumentType) -> Self {
        let rules = rules.iter().filter(|rule| rule.applies(domain, kind, document_type));
        Self { kind, actions: rules.flat_map(|rule| &rule.actions).collect() }
    }

    /// Applies the rules' actions to a document, in the order of the configuration.
    pub fn apply(&self, document: &mut Map<String, Value>) {
        for action in &self.actions {
            apply(action, document, Reach::Everything);
            let second_copy = match self.kind {
                Kind::Case => document.get_mut("case_json"),
                Kind::Form | Kind::Location => None,
            };
            if let Some(Value::Object(properties)) = second_copy {
                apply(action, properties, Reach::WhatIsThere);
            }
        }
    }
}

/// Whether an action may add to the object.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Everything,
    WhatIsThere,
}

fn apply(action: &Action, object: &mut Map<String, Value>, reach: Reach) {
    match action {
        Action::Drop(path) => at_parents(object, &path.0, &mut |parent, key| drop(parent.shift_remove(key))),
        Action::Rename { path, to } => at_parents(object, &path.0, &mut |parent, key| {
            if key != to && parent.contains_key(key) {
                rename(parent, key, to);
            }
        }),
        Action::Set { path, value } => {
            if reach == Reach::Everything {
                make_parents(object, &path.0);
            }
            at_parents(object, &path.0, &mut |parent, key| {
                if reach == Reach::Everything || parent.contains_key(key) {
                    parent.insert(key.to_owned(), value.clone());
                }
            });
        }
        Action::Copy { from, to } => {
            let Some(value) = member(object, &from.0).cloned() else { return };
            make_parents(object, &to.0);
            at_parents(object, &to.0, &mut |parent, key| drop(parent.insert(key.to_owned(), value.clone())));
        }
        Action::Hash { path, salt } => at_parents(object, &path.0, &mut |parent, key| {
            if let Some(value) = parent.get_mut(key)
                && let Some(hashed) = hash(salt, value)
            {
                *value = Value::String(hashed);
            }
        }),
    }
}

/// Calls `change` with every object that the pointer leads to but for its last step, and that step.
fn at_parents(
    object: &mut Map<String, Value>,
    steps: &[String],
    change: &mut dyn FnMut(&mut Map<String, Value>, &str),
) {
    match steps {
        [] => {}
        [last] => change(object, last),
        [first, rest @ ..] => {
            if let Some(value) = object.get_mut(first) {
                below(value, rest, change);
            }
        }
    }
}

fn below(value: &mut Value, rest: &[String], change: &mut dyn FnMut(&mut Map<String, Value>, &str)) {
    match value {
        Value::Object(members) => at_parents(members, rest, change),
        Value::Array(items) => items.iter_mut().for_each(|item| below(item, rest, change)),
        _ => {}
    }
}

/// Makes the objects on the way to the last step; ends where something else is in the way.
fn make_parents(mut object: &mut Map<String, Value>, steps: &[String]) {
    let Some((_, parents)) = steps.split_last() else { return };
    for step in parents {
        let next = object.entry(step.as_str()).or_insert(Value::Null);
        if next.is_null() {
            *next = Value::Object(Map::new());
        }
        let Value::Object(members) = next else { return };
        object = members;
    }
}

fn member<'v>(object: &'v Map<String, Value>, steps: &[String]) -> Option<&'v Value> {
    let (first, rest) = steps.split_first()?;
    rest.iter().try_fold(object.get(first)?, |value, step| value.as_object()?.get(step))
}

/// Keeps the order of the members.
fn rename(parent: &mut Map<String, Value>, key: &str, to: &str) {
    let members = std::mem::take(parent);
    for (name, value) in members {
        if name == key {
            parent.insert(to.to_owned(), value);
        } else if name != to {
            parent.insert(name, value);
        }
    }
}

fn hash(salt: &Secret, value: &Value) -> Option<String> {
    let text = flatten::text(value)?;
    let digest = Sha256::new().chain_update(salt.expose()).chain_update(text.as_bytes()).finalize();
    Some(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Checks every rule of the configuration.
///
/// # Errors
/// What is wrong with the first rule that cannot be used, in one line that names the rule by number.
pub fn validate(rules: &[Rule]) -> Result<(), String> {
    for (number, rule) in rules.iter().enumerate() {
        rule.validate().map_err(|trouble| format!("transforms[{number}]: {trouble}"))?;
        if rule.actions.is_empty() {
            return Err(format!("transforms[{number}]: has no actions"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
