//! Types of columns and lossless conversion between them. delta-rs casts silently and with loss, so it is never asked to.
//!
//! A conversion either keeps every value or does not happen; the caller then turns the column to text, which takes anything.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Float64Array, Int32Array, Int64Array, StringBuilder,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Date32Type, Float64Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, NaiveDate, SecondsFormat, Utc};

/// What a column holds. The names are those of the Delta protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ColumnType {
    /// UTF-8 text.
    String,
    /// 64 bits.
    Long,
    /// 32 bits.
    Integer,
    /// IEEE 754, 64 bits.
    Double,
    /// True or false.
    Boolean,
    /// Days.
    Date,
    /// Microseconds, UTC.
    Timestamp,
}

/// Largest integer up to which every integer has a double of its own.
const EXACT_IN_DOUBLE: i64 = 1 << 53;

impl ColumnType {
    /// All types.
    pub const ALL: [Self; 7] =
        [Self::String, Self::Long, Self::Integer, Self::Double, Self::Boolean, Self::Date, Self::Timestamp];

    /// Name in a Delta schema.
    pub const fn delta_name(self) -> &'static str {
        match self {
            Self::String => "string",
            Self::Long => "long",
            Self::Integer => "integer",
            Self::Double => "double",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
        }
    }

    /// The inverse of [`ColumnType::delta_name`]; `None` for a type that the lake does not write.
    pub fn of_delta_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|candidate| candidate.delta_name() == name)
    }

    /// The arrow type in data files.
    pub fn arrow(self) -> DataType {
        match self {
            Self::String => DataType::Utf8,
            Self::Long => DataType::Int64,
            Self::Integer => DataType::Int32,
            Self::Double => DataType::Float64,
            Self::Boolean => DataType::Boolean,
            Self::Date => DataType::Date32,
            Self::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
        }
    }
}

/// The type a column gets that first arrives with this arrow type. `None` where nothing fits (structs, lists, binary);
/// an array without a type is text.
pub fn column_type(arrived: &DataType) -> Option<ColumnType> {
    Some(match arrived {
        DataType::Null | DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => ColumnType::String,
        DataType::Dictionary(_, values) => return column_type(values),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 => ColumnType::Integer,
        DataType::Int64 | DataType::UInt32 => ColumnType::Long,
        DataType::Float16 | DataType::Float32 | DataType::Float64 => ColumnType::Double,
        DataType::Boolean => ColumnType::Boolean,
        DataType::Date32 => ColumnType::Date,
        DataType::Timestamp(_, _) => ColumnType::Timestamp,
        _ => return None,
    })
}

/// The array in exactly the arrow type of `to`, with every value kept; `None` where that cannot be.
pub fn converted(array: &ArrayRef, to: ColumnType) -> Option<ArrayRef> {
    let target = to.arrow();
    if array.data_type() == &target {
        return Some(Arc::clone(array));
    }
    if array.null_count() == array.len() {
        return Some(new_null_array(&target, array.len()));
    }
    // Widths and encodings of one sort first; this cast keeps values (a timestamp finer than microseconds aside, which none of ours is).
    let from = column_type(array.data_type())?;
    let array = if array.data_type() == &from.arrow() { Arc::clone(array) } else { cast(array, &from.arrow()).ok()? };
    if from == to {
        return Some(array);
    }
    match (from, to) {
        (_, ColumnType::String) => Some(text_of(&array, from)),
        (ColumnType::String, _) => parsed(&array, to),
        (ColumnType::Integer, ColumnType::Long | ColumnType::Double) => cast(&array, &target).ok(),
        (ColumnType::Long, ColumnType::Integer) => {
            all_values(array.as_primitive::<Int64Type>(), |value| i32::try_from(value).ok())
                .map(|values| Arc::new(Int32Array::from(values)) as ArrayRef)
        }
        (ColumnType::Long, ColumnType::Double) => all_values(array.as_primitive::<Int64Type>(), |value| {
            (-EXACT_IN_DOUBLE..=EXACT_IN_DOUBLE).contains(&value).then_some(value as f64)
        })
        .map(|values| Arc::new(Float64Array::from(values)) as ArrayRef),
        (ColumnType::Double, ColumnType::Long) => all_values(array.as_primitive::<Float64Type>(), exact_integer)
            .map(|values| Arc::new(Int64Array::from(values)) as ArrayRef),
        (ColumnType::Double, ColumnType::Integer) => all_values(array.as_primitive::<Float64Type>(), |value| {
            exact_integer(value).and_then(|value| i32::try_from(value).ok())
        })
        .map(|values| Arc::new(Int32Array::from(values)) as ArrayRef),
        _ => None,
    }
}

fn exact_integer(value: f64) -> Option<i64> {
    let exact =
        value.fract() == 0.0 && value.abs() <= EXACT_IN_DOUBLE as f64 && !(value == 0.0 && value.is_sign_negative());
    exact.then_some(value as i64)
}

/// `None` as soon as one value has no counterpart.
fn all_values<T: arrow::datatypes::ArrowPrimitiveType, V>(
    array: &arrow::array::PrimitiveArray<T>,
    convert: impl Fn(T::Native) -> Option<V>,
) -> Option<Vec<Option<V>>> {
    array.iter().map(|value| value.map_or(Some(None), |value| convert(value).map(Some))).collect()
}

/// Text to a typed column: only where the value could be written back as the same text (timestamps: the same instant).
fn parsed(array: &ArrayRef, to: ColumnType) -> Option<ArrayRef> {
    let texts = array.as_string::<i32>();
    fn each<V>(texts: &arrow::array::StringArray, parse: impl Fn(&str) -> Option<V>) -> Option<Vec<Option<V>>> {
        texts.iter().map(|text| text.map_or(Some(None), |text| parse(text).map(Some))).collect()
    }
    fn same<V: std::str::FromStr + ToString>(text: &str) -> Option<V> {
        text.parse::<V>().ok().filter(|value| value.to_string() == text)
    }
    Some(match to {
        ColumnType::String => Arc::clone(array),
        ColumnType::Long => Arc::new(Int64Array::from(each(texts, same::<i64>)?)),
        ColumnType::Integer => Arc::new(Int32Array::from(each(texts, same::<i32>)?)),
        ColumnType::Double => Arc::new(Float64Array::from(each(texts, same::<f64>)?)),
        ColumnType::Boolean => Arc::new(BooleanArray::from(each(texts, same::<bool>)?)),
        ColumnType::Date => Arc::new(Date32Array::from(each(texts, date)?)),
        ColumnType::Timestamp => Arc::new(TimestampMicrosecondArray::from(each(texts, instant)?).with_timezone("UTC")),
    })
}

fn date(text: &str) -> Option<i32> {
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().filter(|date| date.to_string() == text)?;
    Some(Date32Type::from_naive_date(date))
}

fn instant(text: &str) -> Option<i64> {
    let instant = DateTime::parse_from_rfc3339(text).ok()?;
    let whole = instant.timestamp_subsec_nanos() % 1_000 == 0;
    (whole && text.ends_with('Z')).then(|| instant.timestamp_micros())
}

/// Any column as text, the way HQ's JSON would show it.
fn text_of(array: &ArrayRef, from: ColumnType) -> ArrayRef {
    let mut builder = StringBuilder::with_capacity(array.len(), array.len() * 16);
    for index in 0..array.len() {
        if array.is_null(index) {
            builder.append_null();
            continue;
        }
        match from {
            ColumnType::String => builder.append_value(array.as_string::<i32>().value(index)),
            ColumnType::Long => builder.append_value(array.as_primitive::<Int64Type>().value(index).to_string()),
            ColumnType::Integer => builder.append_value(array.as_primitive::<Int32Type>().value(index).to_string()),
            ColumnType::Double => builder.append_value(array.as_primitive::<Float64Type>().value(index).to_string()),
            ColumnType::Boolean => builder.append_value(if array.as_boolean().value(index) { "true" } else { "false" }),
            ColumnType::Date => {
                let days = array.as_primitive::<Date32Type>().value(index);
                let date = Date32Type::to_naive_date_opt(days);
                builder.append_value(date.map_or_else(|| days.to_string(), |date| date.to_string()));
            }
            ColumnType::Timestamp => {
                let micros = array.as_primitive::<TimestampMicrosecondType>().value(index);
                let instant = DateTime::<Utc>::from_timestamp_micros(micros);
                let text = instant.map(|instant| instant.to_rfc3339_opts(SecondsFormat::Micros, true));
                builder.append_value(text.unwrap_or_else(|| micros.to_string()));
            }
        }
    }
    Arc::new(builder.finish())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use arrow::array::{LargeStringArray, NullArray, StringArray};

    use super::*;

    fn texts(values: &[Option<&str>]) -> ArrayRef {
        Arc::new(StringArray::from(values.to_vec()))
    }

    fn shown(array: &ArrayRef) -> Vec<Option<String>> {
        let text = converted(array, ColumnType::String).unwrap();
        text.as_string::<i32>().iter().map(|value| value.map(str::to_owned)).collect()
    }

    #[test]
    fn text_becomes_typed_only_without_loss() {
        use ColumnType::{Boolean, Date, Double, Integer, Long, Timestamp};
        for (text, to, kept) in [
            ("12", Long, true),
            ("012", Long, false),
            ("+1", Long, false),
            ("abc", Long, false),
            ("", Long, false),
            ("3000000000", Integer, false),
            ("1.5", Double, true),
            ("1.50", Double, false),
            ("true", Boolean, true),
            ("yes", Boolean, false),
            ("2024-02-29", Date, true),
            ("2023-02-29", Date, false),
            ("2024-2-9", Date, false),
            ("2024-01-01T00:00:00Z", Timestamp, true),
            ("2024-01-01T00:00:00.123456Z", Timestamp, true),
            ("2024-01-01T00:00:00.1234567Z", Timestamp, false),
            ("2024-01-01T00:00:00+02:00", Timestamp, false),
        ] {
            assert_eq!(converted(&texts(&[Some(text), None]), to).is_some(), kept, "{text} to {to:?}");
        }
    }

    #[test]
    fn numbers_keep_their_values_or_stay() {
        let long: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(EXACT_IN_DOUBLE)]));
        let doubles = converted(&long, ColumnType::Double).unwrap();
        assert_eq!(converted(&doubles, ColumnType::Long).unwrap().as_ref(), long.as_ref());
        assert!(converted(&long, ColumnType::Integer).is_none());
        let too_long: ArrayRef = Arc::new(Int64Array::from(vec![EXACT_IN_DOUBLE + 1]));
        assert!(converted(&too_long, ColumnType::Double).is_none());
        let half: ArrayRef = Arc::new(Float64Array::from(vec![0.5]));
        assert!(converted(&half, ColumnType::Long).is_none());
        assert_eq!(shown(&half), [Some("0.5".into())]);
    }

    #[test]
    fn anything_becomes_text() {
        let instant: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![1]).with_timezone("UTC"));
        assert_eq!(shown(&instant), [Some("1970-01-01T00:00:00.000001Z".into())]);
        let date: ArrayRef = Arc::new(Date32Array::from(vec![Some(366), None]));
        assert_eq!(shown(&date), [Some("1971-01-02".into()), None]);
        let flag: ArrayRef = Arc::new(BooleanArray::from(vec![true]));
        assert_eq!(shown(&flag), [Some("true".into())]);
        let large: ArrayRef = Arc::new(LargeStringArray::from(vec!["x"]));
        assert_eq!(shown(&large), [Some("x".into())]);
    }

    #[test]
    fn an_array_without_values_fits_every_column() {
        let nothing: ArrayRef = Arc::new(NullArray::new(3));
        for to in ColumnType::ALL {
            assert_eq!(converted(&nothing, to).unwrap().data_type(), &to.arrow());
            assert_eq!(ColumnType::of_delta_name(to.delta_name()), Some(to));
        }
    }
}
