//! What the protocol of a table asks of its writers, and whether the engine does that. Pure.
//!
//! Most features ask something only while the schema or the properties use them; Spark lists such features in every table that it raises
//! to writer version 7. What is in use and not honoured here is refused before anything is written, with what to do about it.

use deltalake::kernel::{Action, Metadata, Protocol};
use lake_shared::identity::TableKey;
use serde_json::{Map, Value, json};

use crate::table_store::delta::error::EngineError;

/// Name of the feature of deletion vectors.
const DELETION_VECTORS: &str = "deletionVectors";
/// Name of the feature that forbids to clean up parts of the log.
const CHECKPOINT_PROTECTION: &str = "checkpointProtection";

/// The newest versions of the protocol that are known here.
const READER_VERSION_MAX: i64 = 3;
const WRITER_VERSION_MAX: i64 = 7;

/// Features that a protocol without lists has by its versions: name, least reader version, least writer version.
const LEGACY: [(&str, i64, i64); 7] = [
    ("appendOnly", 1, 2),
    ("invariants", 1, 2),
    ("checkConstraints", 1, 3),
    ("changeDataFeed", 1, 4),
    ("generatedColumns", 1, 4),
    ("columnMapping", 2, 5),
    ("identityColumns", 1, 6),
];

/// When a feature asks something of a writer that the engine does not do.
#[derive(Clone, Copy, Debug)]
enum Demand {
    /// Never: nothing is asked of an engine like this one, or it is done.
    Nothing,
    /// As long as the feature is there.
    Always,
    /// While this property is `true`.
    Property(&'static str),
    /// While this property has a value other than this one.
    Setting(&'static str, &'static str),
    /// Unless this property is `true`.
    Unless(&'static str),
    /// While there is a property with such a beginning; what follows is the name of a constraint.
    Constraint(&'static str),
    /// While a column has a key of such a beginning in its metadata. Beside it, what to do: `{}` is the column.
    Column(&'static str, &'static str),
    /// While a column has a type of such a beginning.
    Type(&'static str),
    /// While the table has partitions.
    Partitions,
}

const ANEW: &str = "make the table anew without that";

/// What every feature asks, by the text of the Delta protocol and its accepted proposals. A feature that is not here is refused.
const DEMANDS: [(&str, Demand); 36] = [
    ("appendOnly", Demand::Property("delta.appendOnly")),
    ("invariants", Demand::Column("delta.invariants", ANEW)),
    ("checkConstraints", Demand::Constraint("delta.constraints.")),
    ("changeDataFeed", Demand::Property("delta.enableChangeDataFeed")),
    ("generatedColumns", Demand::Column("delta.generationExpression", ANEW)),
    ("identityColumns", Demand::Column("delta.identity.", ANEW)),
    ("allowColumnDefaults", Demand::Column("CURRENT_DEFAULT", "ALTER TABLE … ALTER COLUMN `{}` DROP DEFAULT")),
    ("columnMapping", Demand::Setting("delta.columnMapping.mode", "none")),
    ("columnMappingUsageTracking", Demand::Nothing),
    (DELETION_VECTORS, Demand::Nothing),
    ("timestampNtz", Demand::Type("timestamp_ntz")),
    ("timestampWithoutTimezone", Demand::Type("timestamp_ntz")),
    ("variantType", Demand::Type("variant")),
    ("variantType-preview", Demand::Type("variant")),
    ("variantShredding", Demand::Type("variant")),
    ("variantShredding-preview", Demand::Type("variant")),
    ("geospatial", Demand::Type("geo")),
    // A type that changed in the past is read from old files in its old form; the engine reads the forms that it writes.
    ("typeWidening", Demand::Column("delta.typeChanges", "ALTER TABLE … DROP FEATURE typeWidening")),
    ("typeWidening-preview", Demand::Column("delta.typeChanges", "ALTER TABLE … DROP FEATURE `typeWidening-preview`")),
    // Row ids are to be assigned as soon as it is supported, whether it is enabled or not.
    ("rowTracking", Demand::Unless("delta.rowTrackingSuspended")),
    // A writer keeps domains by not touching them; checkpoints carry them on.
    ("domainMetadata", Demand::Nothing),
    // Statistics of the clustering columns are obligatory, and the engine has its own idea of which columns get some.
    ("clustering", Demand::Always),
    // Checkpoints of such tables are written in the new form.
    ("v2Checkpoint", Demand::Nothing),
    ("vacuumProtocolCheck", Demand::Nothing),
    // See `may_clean_log`.
    (CHECKPOINT_PROTECTION, Demand::Nothing),
    // The entry says its own time, see `log_entry`.
    ("inCommitTimestamp", Demand::Nothing),
    ("icebergCompatV1", Demand::Property("delta.enableIcebergCompatV1")),
    ("icebergCompatV2", Demand::Property("delta.enableIcebergCompatV2")),
    ("icebergCompatV3", Demand::Property("delta.enableIcebergCompatV3")),
    ("icebergWriterCompatV1", Demand::Property("delta.enableIcebergWriterCompatV1")),
    ("icebergWriterCompatV3", Demand::Property("delta.enableIcebergWriterCompatV3")),
    ("materializePartitionColumns", Demand::Partitions),
    // A collation changes comparisons of readers only, as long as it stays in the schema.
    ("collations", Demand::Nothing),
    ("collations-preview", Demand::Nothing),
    ("catalogManaged", Demand::Always),
    ("catalogOwned-preview", Demand::Always),
];

/// What a table uses of its features.
struct Table<'a> {
    properties: Option<&'a Map<String, Value>>,
    columns: &'a [Value],
    is_partitioned: bool,
}

impl Table<'_> {
    fn property(&self, key: &str) -> Option<&str> {
        self.properties?.get(key)?.as_str()
    }

    fn is_true(&self, key: &str) -> bool {
        self.property(key).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// Why a feature asks too much, and what to do; `None`: it does not.
    fn objection(&self, feature: &str, demand: Demand) -> Option<(String, String)> {
        let set = |key: &str, value: &str| format!("ALTER TABLE … SET TBLPROPERTIES ('{key}' = '{value}')");
        let drop = || format!("ALTER TABLE … DROP FEATURE `{feature}`");
        match demand {
            Demand::Nothing => None,
            Demand::Always => Some(("the lake does not do what it asks".to_owned(), drop())),
            Demand::Property(key) => self.is_true(key).then(|| (format!("property {key} is true"), set(key, "false"))),
            Demand::Setting(key, harmless) => {
                let held = self.property(key).filter(|held| !held.eq_ignore_ascii_case(harmless))?;
                Some((format!("property {key} is {held}"), set(key, harmless)))
            }
            Demand::Unless(key) => (!self.is_true(key)).then(|| (format!("property {key} is not true"), drop())),
            Demand::Constraint(prefix) => {
                let name = self.properties?.keys().find_map(|key| key.strip_prefix(prefix))?;
                Some((format!("there is a constraint {name}"), format!("ALTER TABLE … DROP CONSTRAINT `{name}`")))
            }
            Demand::Column(prefix, advice) => {
                let has = |column: &&Value| {
                    column["metadata"].as_object().is_some_and(|keys| keys.keys().any(|key| key.starts_with(prefix)))
                };
                let name = name_of(self.columns.iter().find(has)?);
                Some((format!("column {name} has {prefix}"), advice.replace("{}", name)))
            }
            Demand::Type(prefix) => {
                let has = |column: &&Value| column["type"].as_str().is_some_and(|held| held.starts_with(prefix));
                let column = self.columns.iter().find(has)?;
                let held = column["type"].as_str().unwrap_or_default();
                Some((format!("column {} is of type {held}", name_of(column)), ANEW.to_owned()))
            }
            Demand::Partitions => self.is_partitioned.then(|| ("the table has partitions".to_owned(), drop())),
        }
    }
}

fn name_of(column: &Value) -> &str {
    column["name"].as_str().unwrap_or_default()
}

/// Whether the engine may write a table. The error names table, feature and what to do.
pub(crate) fn judge(table: &TableKey, metadata: &Metadata, protocol: &Protocol) -> Result<(), EngineError> {
    let metadata = serde_json::to_value(metadata).map_err(EngineError::json)?;
    let protocol = serde_json::to_value(protocol).map_err(EngineError::json)?;
    objection(&metadata, &protocol).map_or(Ok(()), |objection| {
        Err(EngineError::Unwritable(format!("the lake cannot write table {table}: {objection}")))
    })
}

fn objection(metadata: &Value, protocol: &Value) -> Option<String> {
    let (reader, writer) = versions(protocol);
    if reader > READER_VERSION_MAX || writer > WRITER_VERSION_MAX {
        return Some(format!("its protocol ({reader}, {writer}) is not known here; update the lake"));
    }
    let schema: Value = serde_json::from_str(metadata["schemaString"].as_str().unwrap_or_default()).unwrap_or_default();
    let table = Table {
        properties: metadata["configuration"].as_object(),
        columns: schema["fields"].as_array().map_or(&[], Vec::as_slice),
        is_partitioned: metadata["partitionColumns"].as_array().is_some_and(|columns| !columns.is_empty()),
    };
    for feature in features(protocol) {
        let Some((_, demand)) = DEMANDS.iter().find(|(name, _)| *name == feature) else {
            let advice = format!("update the lake, or ALTER TABLE … DROP FEATURE `{feature}`");
            return Some(format!("feature {feature} is not known here; {advice}"));
        };
        if let Some((reason, advice)) = table.objection(&feature, *demand) {
            return Some(format!("feature {feature} is in use ({reason}); {advice}"));
        }
    }
    let required = table.columns.iter().find(|column| column["nullable"] == Value::Bool(false)).map(name_of)?;
    let advice = format!("ALTER TABLE … ALTER COLUMN `{required}` DROP NOT NULL");
    Some(format!("column {required} is NOT NULL, and rows may lack it; {advice}"))
}

/// Whether the log may be cleaned up here. Where features were dropped, a writer that does not know all protocols that the table ever had
/// must leave it alone.
pub(crate) fn may_clean_log(protocol: &Protocol) -> Result<bool, EngineError> {
    let protocol = serde_json::to_value(protocol).map_err(EngineError::json)?;
    Ok(features(&protocol).iter().all(|feature| feature != CHECKPOINT_PROTECTION))
}

/// Least versions for readers and writers.
fn versions(protocol: &Value) -> (i64, i64) {
    let version = |key: &str| protocol[key].as_i64().unwrap_or_default();
    (version("minReaderVersion"), version("minWriterVersion"))
}

fn listed<'a>(protocol: &'a Value, key: &str) -> impl Iterator<Item = String> + 'a {
    protocol[key].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned)
}

/// The features of a protocol that its versions stand for. Reader version 2 has one even beside a list of writer features.
fn implied(reader: i64, writer: i64) -> Vec<String> {
    let by_version =
        |(_, least_reader, least_writer): &&(&str, i64, i64)| reader >= *least_reader && writer >= *least_writer;
    let is_legacy = writer < WRITER_VERSION_MAX;
    LEGACY.iter().filter(|_| is_legacy).filter(by_version).map(|(name, ..)| (*name).to_owned()).collect()
}

/// All features of a protocol, each once.
fn features(protocol: &Value) -> Vec<String> {
    let (reader, writer) = versions(protocol);
    let mut features = implied(reader, writer);
    for feature in listed(protocol, "writerFeatures").chain(listed(protocol, "readerFeatures")) {
        if !features.contains(&feature) {
            features.push(feature);
        }
    }
    features
}

/// The protocol with deletion vectors, unless it has them already. Features that the table has stay, those that its versions stood for
/// are listed.
pub(crate) fn with_deletion_vectors(protocol: &Protocol) -> Result<Option<Action>, EngineError> {
    let before = serde_json::to_value(protocol).map_err(EngineError::json)?;
    let after = raised(&before);
    if after == before {
        return Ok(None);
    }
    let protocol: Protocol = serde_json::from_value(after).map_err(EngineError::json)?;
    Ok(Some(Action::Protocol(protocol)))
}

fn raised(before: &Value) -> Value {
    let mut after = before.clone();
    let all = features(before);
    let mut for_readers: Vec<String> = listed(before, "readerFeatures").collect();
    // The only feature of readers that a version stands for.
    for_readers.extend(all.iter().filter(|feature| versions(before).0 == 2 && *feature == "columnMapping").cloned());
    for (key, mut held) in [("readerFeatures", for_readers), ("writerFeatures", all)] {
        if !held.iter().any(|feature| feature == DELETION_VECTORS) {
            held.push(DELETION_VECTORS.to_owned());
        }
        after[key] = json!(held);
    }
    after["minReaderVersion"] = json!(READER_VERSION_MAX);
    after["minWriterVersion"] = json!(WRITER_VERSION_MAX);
    after
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn listing(features: &[&str]) -> Value {
        json!({ "minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [], "writerFeatures": features })
    }

    fn legacy(reader: i64, writer: i64) -> Value {
        json!({ "minReaderVersion": reader, "minWriterVersion": writer })
    }

    fn metadata(properties: &Value, column: &Value) -> Value {
        let mut field = json!({ "name": "x y", "type": "string", "nullable": true, "metadata": {} });
        for (key, value) in column.as_object().unwrap() {
            field[key] = value.clone();
        }
        let schema = json!({ "type": "struct", "fields": [field] });
        json!({ "schemaString": schema.to_string(), "configuration": properties, "partitionColumns": [] })
    }

    fn plain() -> Value {
        metadata(&json!({}), &json!({}))
    }

    #[test]
    fn a_feature_is_refused_while_it_is_in_use_and_no_longer() {
        let noted = |key: &str| json!({ "metadata": { key: "x" } });
        let typed = |name: &str| json!({ "type": name });
        let none = || json!({});
        let property = |key: &str, value: &str| json!({ key: value });
        let cases = [
            ("appendOnly", property("delta.appendOnly", "true"), none(), "'delta.appendOnly' = 'false'"),
            ("invariants", none(), noted("delta.invariants"), "anew"),
            ("checkConstraints", property("delta.constraints.adult", "age > 17"), none(), "DROP CONSTRAINT `adult`"),
            ("changeDataFeed", property("delta.enableChangeDataFeed", "TRUE"), none(), "SET TBLPROPERTIES"),
            ("generatedColumns", none(), noted("delta.generationExpression"), "x y"),
            ("identityColumns", none(), noted("delta.identity.start"), "anew"),
            ("allowColumnDefaults", none(), noted("CURRENT_DEFAULT"), "ALTER COLUMN `x y` DROP DEFAULT"),
            (
                "columnMapping",
                property("delta.columnMapping.mode", "name"),
                none(),
                "'delta.columnMapping.mode' = 'none'",
            ),
            ("timestampNtz", none(), typed("timestamp_ntz"), "x y"),
            ("variantType", none(), typed("variant"), "variant"),
            ("geospatial", none(), typed("geometry(OGC:CRS84)"), "geometry"),
            ("typeWidening", none(), noted("delta.typeChanges"), "DROP FEATURE typeWidening"),
            (
                "icebergCompatV2",
                property("delta.enableIcebergCompatV2", "true"),
                none(),
                "'delta.enableIcebergCompatV2'",
            ),
        ];
        for (feature, properties, column, expected) in cases {
            assert_eq!(objection(&plain(), &listing(&[feature])), None, "{feature}");
            let used = metadata(&properties, &column);
            let text = objection(&used, &listing(&[feature])).unwrap();
            assert!(text.contains(feature) && text.contains(expected), "{text}");
            // What the protocol does not have asks nothing.
            assert_eq!(objection(&used, &listing(&[])), None, "{feature}");
        }
        for harmless in ["false", "False", ""] {
            let off = metadata(&property("delta.appendOnly", harmless), &none());
            assert_eq!(objection(&off, &listing(&["appendOnly"])), None);
        }
        let unmapped = metadata(&property("delta.columnMapping.mode", "none"), &noted("delta.columnMapping.id"));
        assert_eq!(objection(&unmapped, &listing(&["columnMapping"])), None);
    }

    #[test]
    fn what_asks_always_is_refused_and_what_asks_nothing_is_not() {
        for feature in ["clustering", "rowTracking", "catalogManaged", "catalogOwned-preview", "neverHeardOf"] {
            let text = objection(&plain(), &listing(&[feature])).unwrap();
            assert!(text.contains(&format!("DROP FEATURE `{feature}`")), "{text}");
        }
        let suspended = metadata(&json!({ "delta.rowTrackingSuspended": "true" }), &json!({}));
        assert_eq!(objection(&suspended, &listing(&["rowTracking", "domainMetadata"])), None);
        let harmless =
            ["v2Checkpoint", "vacuumProtocolCheck", "checkpointProtection", "inCommitTimestamp", "collations"];
        assert_eq!(objection(&plain(), &listing(&harmless)), None);
        let mut partitioned = plain();
        assert_eq!(objection(&partitioned, &listing(&["materializePartitionColumns"])), None);
        partitioned["partitionColumns"] = json!(["x y"]);
        assert!(objection(&partitioned, &listing(&["materializePartitionColumns"])).is_some());
        let required = metadata(&json!({}), &json!({ "nullable": false }));
        assert!(objection(&required, &legacy(1, 2)).unwrap().contains("ALTER COLUMN `x y` DROP NOT NULL"));
    }

    #[test]
    fn versions_stand_for_features() {
        let feed = metadata(&json!({ "delta.enableChangeDataFeed": "true" }), &json!({}));
        let constraint = metadata(&json!({ "delta.constraints.c": "true" }), &json!({}));
        let mapped = metadata(&json!({ "delta.columnMapping.mode": "id" }), &json!({}));
        let numbered = metadata(&json!({}), &json!({ "metadata": { "delta.identity.step": 1 } }));
        let append_only = metadata(&json!({ "delta.appendOnly": "true" }), &json!({}));
        let since = [(append_only, 1, 2), (constraint, 1, 3), (feed, 1, 4), (mapped, 2, 5), (numbered, 1, 6)];
        for (used, reader, writer) in since {
            assert_eq!(objection(&used, &legacy(reader, writer - 1)), None);
            for later in writer..=6 {
                assert!(objection(&used, &legacy(reader, later)).is_some(), "{used} at ({reader}, {later})");
            }
            assert_eq!(objection(&plain(), &legacy(reader, writer)), None);
        }
        for (reader, writer) in [(4, 7), (3, 8)] {
            assert!(objection(&plain(), &legacy(reader, writer)).unwrap().contains("update the lake"));
        }
    }

    #[test]
    fn deletion_vectors_bring_the_lists_that_the_versions_stood_for() {
        let lists = |protocol: &Value| {
            let after = raised(protocol);
            assert_eq!(versions(&after), (3, 7));
            assert_eq!(raised(&after), after);
            let sorted = |key| {
                let mut names: Vec<String> = listed(&after, key).collect();
                names.sort_unstable();
                names.join(" ")
            };
            (sorted("readerFeatures"), sorted("writerFeatures"))
        };
        let only = "deletionVectors".to_owned();
        assert_eq!(lists(&legacy(1, 1)), (only.clone(), only.clone()));
        assert_eq!(lists(&legacy(1, 2)), (only.clone(), "appendOnly deletionVectors invariants".to_owned()));
        let third = "appendOnly checkConstraints deletionVectors invariants".to_owned();
        assert_eq!(lists(&legacy(1, 3)), (only.clone(), third));
        let fourth =
            "appendOnly changeDataFeed checkConstraints deletionVectors generatedColumns invariants".to_owned();
        assert_eq!(lists(&legacy(1, 4)), (only.clone(), fourth));
        let mapping = "columnMapping deletionVectors".to_owned();
        let sixth = "appendOnly changeDataFeed checkConstraints columnMapping deletionVectors generatedColumns \
                     identityColumns invariants";
        assert_eq!(lists(&legacy(2, 6)), (mapping.clone(), sixth.to_owned()));
        let writers = json!({ "minReaderVersion": 1, "minWriterVersion": 7, "writerFeatures": ["appendOnly"] });
        assert_eq!(lists(&writers), (only, "appendOnly deletionVectors".to_owned()));
        let mixed = json!({ "minReaderVersion": 2, "minWriterVersion": 7, "writerFeatures": ["columnMapping"] });
        assert_eq!(lists(&mixed), (mapping.clone(), mapping));
    }
}
