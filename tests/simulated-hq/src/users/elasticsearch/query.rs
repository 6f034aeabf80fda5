//! The part of Elasticsearch's query language that readers of users need. What is not understood is an error that names it, never
//! a query that silently matches too much.

use std::collections::HashSet;

use serde_json::Value;

/// A query, understood.
#[derive(Debug, PartialEq)]
pub(super) enum Condition {
    /// `match_all`.
    Everything,
    /// `term`, `terms`, `ids`: the field has one of these values.
    OneOf { field: String, values: HashSet<String> },
    /// `bool` with `filter`, `must`, `must_not`.
    All { of: Vec<Condition>, none: Vec<Condition> },
}

impl Condition {
    /// Understands a query; a missing one matches everything.
    pub(super) fn of(query: Option<&Value>) -> Result<Self, String> {
        let Some(query) = query else { return Ok(Self::Everything) };
        let (kind, body) = single(query)?;
        match kind {
            "match_all" => Ok(Self::Everything),
            "bool" => Self::of_bool(body),
            "ids" => Self::one_of("_id", &body["values"]),
            "terms" => {
                let (field, values) = single(body)?;
                Self::one_of(field, values)
            }
            "term" => {
                let (field, value) = single(body)?;
                let value = value.get("value").unwrap_or(value);
                Self::one_of(field, &Value::Array(vec![value.clone()]))
            }
            other => Err(format!("the query {other}")),
        }
    }

    fn of_bool(body: &Value) -> Result<Self, String> {
        let (mut of, mut none) = (Vec::new(), Vec::new());
        for (clause, conditions) in body.as_object().ok_or("a bool query that is no object")? {
            let conditions = match conditions {
                Value::Array(conditions) => {
                    conditions.iter().map(|one| Self::of(Some(one))).collect::<Result<Vec<_>, _>>()?
                }
                one => vec![Self::of(Some(one))?],
            };
            match clause.as_str() {
                "filter" | "must" => of.extend(conditions),
                "must_not" => none.extend(conditions),
                other => return Err(format!("bool with {other}")),
            }
        }
        Ok(Self::All { of, none })
    }

    fn one_of(field: &str, values: &Value) -> Result<Self, String> {
        let values = values.as_array().ok_or_else(|| format!("values of {field} that are no list"))?;
        Ok(Self::OneOf { field: field.to_owned(), values: values.iter().filter_map(token).collect() })
    }

    /// Whether a document fulfils it.
    pub(super) fn holds(&self, id: &str, document: &Value) -> bool {
        match self {
            Self::Everything => true,
            Self::OneOf { field, values } if field == "_id" => values.contains(id),
            Self::OneOf { field, values } => {
                let found = field.split('.').fold(document, |value, part| &value[part]);
                let has = |value: &Value| token(value).is_some_and(|text| values.contains(&analysed(field, text)));
                found.as_array().map_or_else(|| has(found), |list| list.iter().any(has))
            }
            Self::All { of, none } => {
                of.iter().all(|one| one.holds(id, document)) && !none.iter().any(|one| one.holds(id, document))
            }
        }
    }
}

/// HQ indexes `base_doc` in lower case; the other fields are keywords.
fn analysed(field: &str, text: String) -> String {
    if field == "base_doc" { text.to_lowercase() } else { text }
}

fn token(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    }
}

fn single(value: &Value) -> Result<(&str, &Value), String> {
    let object = value.as_object().filter(|object| object.len() == 1);
    let (key, value) = object.and_then(|object| object.iter().next()).ok_or("a query that is no object of one key")?;
    Ok((key, value))
}

/// Which part of the documents is wanted.
#[derive(Debug, PartialEq)]
pub(super) enum SourceFilter {
    /// All of it.
    Whole,
    /// No field at all.
    Without,
    /// These fields; dotted names reach into objects.
    Fields(Vec<String>),
}

impl SourceFilter {
    /// Understands `_source`; a missing one wants everything.
    pub(super) fn of(source: Option<&Value>) -> Result<Self, String> {
        match source {
            None | Some(Value::Bool(true)) => Ok(Self::Whole),
            Some(Value::Bool(false)) => Ok(Self::Without),
            Some(Value::String(field)) => Ok(Self::Fields(vec![field.clone()])),
            Some(Value::Array(fields)) => Ok(Self::Fields(fields.iter().filter_map(token).collect())),
            Some(Value::Object(filter)) if filter.keys().all(|key| key == "includes") => {
                Self::of(filter.get("includes"))
            }
            Some(other) => Err(format!("_source {other}")),
        }
        .and_then(|filter| match &filter {
            Self::Fields(fields) if fields.iter().any(|field| field.contains('*')) => Err("_source with *".to_owned()),
            _ => Ok(filter),
        })
    }

    /// The wanted part; `None` where nothing is wanted.
    pub(super) fn apply(&self, document: &Value) -> Option<Value> {
        match self {
            Self::Without => None,
            Self::Whole => Some(stored(document)),
            Self::Fields(fields) => {
                let mut part = Value::Object(serde_json::Map::new());
                for field in fields {
                    copy(&stored(document), &mut part, field);
                }
                Some(part)
            }
        }
    }
}

/// HQ's index keeps `_id` in the source, but not CouchDB's revision.
fn stored(document: &Value) -> Value {
    let mut source = document.clone();
    if let Some(source) = source.as_object_mut() {
        source.remove("_rev");
    }
    source
}

fn copy(from: &Value, to: &mut Value, field: &str) {
    let (first, rest) = field.split_once('.').map_or((field, None), |(first, rest)| (first, Some(rest)));
    let Some(found) = from.get(first) else { return };
    match rest {
        None => to[first] = found.clone(),
        // Elasticsearch filters every element of a list of objects.
        Some(rest) => match found {
            Value::Array(items) => {
                let known = to[first].as_array().cloned().unwrap_or_default();
                let parts = items.iter().enumerate().map(|(place, item)| {
                    let mut part = known.get(place).cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
                    copy(item, &mut part, rest);
                    part
                });
                to[first] = parts.collect();
            }
            Value::Object(_) => {
                if !to[first].is_object() {
                    to[first] = Value::Object(serde_json::Map::new());
                }
                copy(found, &mut to[first], rest);
            }
            _ => {}
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn holds(query: Value, document: Value) -> bool {
        Condition::of(Some(&query)).unwrap().holds(document["_id"].as_str().unwrap(), &document)
    }

    #[test]
    fn the_query_for_users_in_a_list_is_understood() {
        let query = json!({"bool": {
            "filter": [{"terms": {"_id": ["u1", "u2"]}}, {"term": {"base_doc": "couchuser"}}],
            "must": {"match_all": {}},
        }});
        assert!(holds(query.clone(), json!({"_id": "u1", "base_doc": "CouchUser"})));
        assert!(!holds(query.clone(), json!({"_id": "u1", "base_doc": "CouchUser-Deleted"})));
        assert!(!holds(query, json!({"_id": "u3", "base_doc": "CouchUser"})));
    }

    #[test]
    fn fields_may_be_nested_lists_or_flags() {
        let document =
            json!({"_id": "u", "domain_membership": {"domain": "d"}, "domains": ["d", "e"], "is_active": true});
        assert!(holds(json!({"term": {"domain_membership.domain": "d"}}), document.clone()));
        assert!(holds(json!({"term": {"domains": {"value": "e"}}}), document.clone()));
        assert!(holds(json!({"bool": {"must_not": {"term": {"is_active": false}}}}), document.clone()));
        assert!(!holds(json!({"ids": {"values": ["v"]}}), document));
    }

    #[test]
    fn what_is_not_understood_is_named() {
        assert_eq!(Condition::of(Some(&json!({"prefix": {"a": "b"}}))).unwrap_err(), "the query prefix");
        assert_eq!(Condition::of(Some(&json!({"bool": {"should": []}}))).unwrap_err(), "bool with should");
        assert!(Condition::of(Some(&json!({"term": {"a": 1}, "terms": {}}))).is_err());
    }

    #[test]
    fn sources_are_filtered() {
        let document =
            json!({"_id": "u", "_rev": "1-a", "m": [{"d": 1, "l": 2, "x": 3}, {"d": 4}], "o": {"a": 5, "b": 6}});
        let filter = SourceFilter::of(Some(&json!(["_id", "m.d", "m.l", "o.a", "none"]))).unwrap();
        assert_eq!(
            filter.apply(&document).unwrap(),
            json!({"_id": "u", "m": [{"d": 1, "l": 2}, {"d": 4}], "o": {"a": 5}})
        );
        assert_eq!(SourceFilter::of(Some(&json!(false))).unwrap().apply(&document), None);
        assert_eq!(SourceFilter::of(None).unwrap().apply(&document).unwrap().get("_rev"), None);
        assert!(SourceFilter::of(Some(&json!(["a.*"]))).is_err());
    }
}
