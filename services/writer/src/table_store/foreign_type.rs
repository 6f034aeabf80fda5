//! Types that the lake does not write: those of columns that somebody else added to a table. Such columns are NULL in the rows that the lake
//! brings, and what others wrote into them is kept as it is.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field};
use delta_kernel::engine::arrow_conversion::TryIntoArrow;
use delta_kernel::schema::{DataType as DeltaType, PrimitiveType};
use serde_json::Value;

/// A type of Delta that is none of [`super::conversion::ColumnType`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignType {
    delta: Value,
    arrow: DataType,
}

impl ForeignType {
    /// A type as a Delta schema writes it. `None` for one whose values cannot be carried from file to file.
    pub fn of_delta(delta: &Value) -> Option<Self> {
        let parsed: DeltaType = serde_json::from_value(delta.clone()).ok()?;
        if !is_carried(&parsed) {
            return None;
        }
        let arrow = (&parsed).try_into_arrow().ok()?;
        Some(Self { delta: delta.clone(), arrow })
    }

    /// As a Delta schema writes it.
    pub const fn delta(&self) -> &Value {
        &self.delta
    }

    /// The arrow type in data files.
    pub const fn arrow(&self) -> &DataType {
        &self.arrow
    }

    /// The array of a file in exactly this arrow type; `None` where it holds something else.
    pub fn kept(&self, array: &ArrayRef) -> Option<ArrayRef> {
        if array.data_type() == &self.arrow {
            return Some(Arc::clone(array));
        }
        if array.null_count() == array.len() {
            return Some(new_null_array(&self.arrow, array.len()));
        }
        // Widths, and names of what has none in Delta, differ between writers.
        is_same(array.data_type(), &self.arrow).then(|| cast(array, &self.arrow).ok()).flatten()
    }
}

/// Whether parquet has values of a type in one form only.
fn is_carried(delta: &DeltaType) -> bool {
    match delta {
        DeltaType::Primitive(
            PrimitiveType::String
            | PrimitiveType::Long
            | PrimitiveType::Integer
            | PrimitiveType::Short
            | PrimitiveType::Byte
            | PrimitiveType::Float
            | PrimitiveType::Double
            | PrimitiveType::Boolean
            | PrimitiveType::Binary
            | PrimitiveType::Decimal(_)
            | PrimitiveType::Date
            | PrimitiveType::Timestamp,
        ) => true,
        DeltaType::Array(array) => is_carried(array.element_type()),
        DeltaType::Map(map) => is_carried(map.key_type()) && is_carried(map.value_type()),
        DeltaType::Struct(fields) => fields.fields().all(|field| is_carried(field.data_type())),
        _ => false,
    }
}

fn is_same(one: &DataType, other: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, LargeBinary, LargeList, LargeUtf8, List, Map, Struct, Timestamp, Utf8, Utf8View,
    };
    let pairwise = |ones: &[Arc<Field>], others: &[Arc<Field>], named: bool| {
        ones.len() == others.len()
            && ones.iter().zip(others).all(|(one, other)| {
                (!named || one.name() == other.name()) && is_same(one.data_type(), other.data_type())
            })
    };
    match (one, other) {
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View)
        | (Binary | LargeBinary | BinaryView, Binary | LargeBinary | BinaryView) => true,
        (List(one) | LargeList(one), List(other) | LargeList(other)) => is_same(one.data_type(), other.data_type()),
        (Map(one, _), Map(other, _)) => match (one.data_type(), other.data_type()) {
            (Struct(ones), Struct(others)) => pairwise(ones, others, false),
            _ => false,
        },
        (Struct(ones), Struct(others)) => pairwise(ones, others, true),
        // However UTC is called.
        (Timestamp(one, Some(_)), Timestamp(other, Some(_))) => one == other,
        _ => one == other,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use arrow::array::{AsArray, Decimal128Array, LargeBinaryArray, ListArray, StringArray};
    use arrow::datatypes::Int32Type;
    use serde_json::json;

    use super::*;

    #[test]
    fn types_of_others_are_known_as_delta_writes_them() {
        let carried = [
            json!("decimal(38,10)"),
            json!("byte"),
            json!("float"),
            json!("binary"),
            json!({"type": "array", "elementType": "integer", "containsNull": true}),
            json!({"type": "map", "keyType": "string", "valueType": "timestamp", "valueContainsNull": true}),
            json!({"type": "struct", "fields": [{"name": "a", "type": "long", "nullable": true, "metadata": {}}]}),
        ];
        for delta in carried {
            assert_eq!(ForeignType::of_delta(&delta).unwrap().delta(), &delta);
        }
        for delta in [json!("variant"), json!("void"), json!("timestamp_ntz"), json!("nothing"), json!({}), json!(null)]
        {
            assert_eq!(ForeignType::of_delta(&delta), None, "{delta}");
        }
    }

    #[test]
    fn values_are_kept_whatever_the_writer_calls_their_parts_and_others_are_not_taken() {
        let list = ForeignType::of_delta(&json!({"type": "array", "elementType": "integer", "containsNull": true}));
        let list = list.unwrap();
        let values = [Some(vec![Some(1), None]), None, Some(vec![])];
        let written: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(values));
        assert_ne!(written.data_type(), list.arrow(), "the element has another name");
        let kept = list.kept(&written).unwrap();
        assert_eq!((kept.data_type(), kept.as_list::<i32>().value_length(0), kept.null_count()), (list.arrow(), 2, 1));
        let binary = ForeignType::of_delta(&json!("binary")).unwrap();
        let written: ArrayRef = Arc::new(LargeBinaryArray::from(vec![&b"\xff"[..]]));
        assert_eq!(binary.kept(&written).unwrap().as_binary::<i32>().value(0), b"\xff");
        let decimal = ForeignType::of_delta(&json!("decimal(10,2)")).unwrap();
        let other: ArrayRef = Arc::new(Decimal128Array::from(vec![1]).with_precision_and_scale(10, 3).unwrap());
        let text: ArrayRef = Arc::new(StringArray::from(vec!["1.00"]));
        assert!(decimal.kept(&other).is_none() && decimal.kept(&text).is_none() && list.kept(&text).is_none());
        let nothing: ArrayRef = Arc::new(StringArray::new_null(3));
        assert_eq!(decimal.kept(&nothing).unwrap().null_count(), 3);
    }
}
