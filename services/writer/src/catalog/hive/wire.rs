//! Values of Thrift's binary protocol as they are on the wire, without generated code.
//!
//! A struct is kept with all its fields, also those that this version does not know: what is read from a newer metastore and written back
//! loses nothing.

use std::collections::BTreeMap;

use thrift::protocol::{
    TFieldIdentifier, TInputProtocol, TListIdentifier, TMapIdentifier, TOutputProtocol, TSetIdentifier,
    TStructIdentifier, TType,
};

/// Deepest nesting that is read; tables of a metastore have about five.
const DEPTH_MAX: u32 = 32;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    I8(i8),
    I16(i16),
    I32(i32),
    I64(i64),
    Double(f64),
    /// A text or bytes, which look the same on the wire.
    Bytes(Vec<u8>),
    Struct(Fields),
    List(TType, Vec<Value>),
    Set(TType, Vec<Value>),
    Map(TType, TType, Vec<(Value, Value)>),
}

/// The fields of a struct, by their numbers in `hive_metastore.thrift`.
pub(super) type Fields = BTreeMap<i16, Value>;

impl Value {
    pub(super) fn text(text: &str) -> Self {
        Self::Bytes(text.as_bytes().to_vec())
    }

    /// A list of texts.
    pub(super) fn texts<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        Self::List(TType::String, texts.into_iter().map(Self::text).collect())
    }

    /// A map of texts to texts.
    pub(super) fn text_map<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let entries = entries.into_iter().map(|(name, value)| (Self::text(name), Self::text(value)));
        Self::Map(TType::String, TType::String, entries.collect())
    }

    pub(super) fn as_text(&self) -> Option<&str> {
        match self {
            Self::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub(super) const fn as_fields(&self) -> Option<&Fields> {
        match self {
            Self::Struct(fields) => Some(fields),
            _ => None,
        }
    }

    /// The elements of a list; none where it is none.
    pub(super) fn elements(&self) -> &[Self] {
        match self {
            Self::List(_, elements) => elements,
            _ => &[],
        }
    }

    /// The texts of a map of texts; others are left out.
    pub(super) fn as_text_map(&self) -> BTreeMap<String, String> {
        let Self::Map(_, _, entries) = self else { return BTreeMap::new() };
        let text = |value: &Self| value.as_text().map(str::to_owned);
        entries.iter().filter_map(|(name, value)| Some((text(name)?, text(value)?))).collect()
    }

    const fn kind(&self) -> TType {
        match self {
            Self::Bool(_) => TType::Bool,
            Self::I8(_) => TType::I08,
            Self::I16(_) => TType::I16,
            Self::I32(_) => TType::I32,
            Self::I64(_) => TType::I64,
            Self::Double(_) => TType::Double,
            Self::Bytes(_) => TType::String,
            Self::Struct(_) => TType::Struct,
            Self::List(..) => TType::List,
            Self::Set(..) => TType::Set,
            Self::Map(..) => TType::Map,
        }
    }
}

/// Reads the fields of a struct.
pub(super) fn read_fields(from: &mut dyn TInputProtocol) -> thrift::Result<Fields> {
    fields_within(from, DEPTH_MAX)
}

fn fields_within(from: &mut dyn TInputProtocol, depth: u32) -> thrift::Result<Fields> {
    from.read_struct_begin()?;
    let mut fields = Fields::new();
    loop {
        let field = from.read_field_begin()?;
        let Some(number) = field.id.filter(|_| field.field_type != TType::Stop) else { break };
        fields.insert(number, value_within(from, field.field_type, depth)?);
        from.read_field_end()?;
    }
    from.read_struct_end()?;
    Ok(fields)
}

fn value_within(from: &mut dyn TInputProtocol, kind: TType, depth: u32) -> thrift::Result<Value> {
    let depth = depth.checked_sub(1).ok_or_else(|| thrift::Error::from("the answer is nested too deeply"))?;
    // Room is taken as elements come, whatever their number is said to be.
    let elements = |from: &mut dyn TInputProtocol, kind: TType, size: i32| {
        (0..size).map(|_| value_within(from, kind, depth)).collect::<thrift::Result<Vec<_>>>()
    };
    Ok(match kind {
        TType::Bool => Value::Bool(from.read_bool()?),
        TType::I08 => Value::I8(from.read_i8()?),
        TType::I16 => Value::I16(from.read_i16()?),
        TType::I32 => Value::I32(from.read_i32()?),
        TType::I64 => Value::I64(from.read_i64()?),
        TType::Double => Value::Double(from.read_double()?),
        TType::String => Value::Bytes(from.read_bytes()?),
        TType::Struct => Value::Struct(fields_within(from, depth)?),
        TType::List => {
            let list = from.read_list_begin()?;
            Value::List(list.element_type, elements(from, list.element_type, list.size)?)
        }
        TType::Set => {
            let set = from.read_set_begin()?;
            Value::Set(set.element_type, elements(from, set.element_type, set.size)?)
        }
        TType::Map => {
            let map = from.read_map_begin()?;
            let (names, values) = (map.key_type.unwrap_or(TType::String), map.value_type.unwrap_or(TType::String));
            let entry = |_| -> thrift::Result<(Value, Value)> {
                Ok((value_within(from, names, depth)?, value_within(from, values, depth)?))
            };
            Value::Map(names, values, (0..map.size).map(entry).collect::<thrift::Result<Vec<_>>>()?)
        }
        TType::Stop | TType::Void | TType::Utf7 | TType::Uuid => {
            return Err(thrift::Error::from("the answer has a value of a type that no metastore uses"));
        }
    })
}

/// Writes a struct.
pub(super) fn write_fields(to: &mut dyn TOutputProtocol, fields: &Fields) -> thrift::Result<()> {
    to.write_struct_begin(&TStructIdentifier::new(""))?;
    for (number, value) in fields {
        to.write_field_begin(&TFieldIdentifier { name: None, field_type: value.kind(), id: Some(*number) })?;
        write_value(to, value)?;
        to.write_field_end()?;
    }
    to.write_field_stop()?;
    to.write_struct_end()
}

fn write_value(to: &mut dyn TOutputProtocol, value: &Value) -> thrift::Result<()> {
    let size = |elements: usize| i32::try_from(elements).map_err(|_| thrift::Error::from("a list is too long"));
    match value {
        Value::Bool(value) => to.write_bool(*value),
        Value::I8(value) => to.write_i8(*value),
        Value::I16(value) => to.write_i16(*value),
        Value::I32(value) => to.write_i32(*value),
        Value::I64(value) => to.write_i64(*value),
        Value::Double(value) => to.write_double(*value),
        Value::Bytes(bytes) => to.write_bytes(bytes),
        Value::Struct(fields) => write_fields(to, fields),
        Value::List(kind, elements) => {
            to.write_list_begin(&TListIdentifier::new(*kind, size(elements.len())?))?;
            elements.iter().try_for_each(|element| write_value(to, element))?;
            to.write_list_end()
        }
        Value::Set(kind, elements) => {
            to.write_set_begin(&TSetIdentifier::new(*kind, size(elements.len())?))?;
            elements.iter().try_for_each(|element| write_value(to, element))?;
            to.write_set_end()
        }
        Value::Map(names, values, entries) => {
            to.write_map_begin(&TMapIdentifier::new(*names, *values, size(entries.len())?))?;
            for (name, value) in entries {
                write_value(to, name)?;
                write_value(to, value)?;
            }
            to.write_map_end()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use thrift::protocol::{TBinaryInputProtocol, TBinaryOutputProtocol};

    use super::*;

    fn written(fields: &Fields) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_fields(&mut TBinaryOutputProtocol::new(&mut bytes, true), fields).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> thrift::Result<Fields> {
        read_fields(&mut TBinaryInputProtocol::new(bytes, true))
    }

    #[test]
    fn what_is_read_is_written_again_whatever_it_is() {
        let fields = Fields::from([
            (1, Value::text("é")),
            (2, Value::Bytes(vec![0xff, 0])),
            (3, Value::Struct(Fields::from([(9, Value::I64(-1)), (1_000, Value::Bool(true))]))),
            (4, Value::List(TType::Struct, vec![Value::Struct(Fields::new())])),
            (5, Value::Set(TType::I16, vec![Value::I16(7)])),
            (6, Value::text_map([("a", "b")])),
            (7, Value::Map(TType::String, TType::List, vec![(Value::text("x"), Value::texts(["y"]))])),
            (8, Value::Double(0.5)),
            (9, Value::I8(3)),
            (10, Value::I32(4)),
            (11, Value::List(TType::String, Vec::new())),
        ]);
        let again = read(&written(&fields)).unwrap();
        assert_eq!(again, fields);
        assert_eq!(written(&again), written(&fields));
        assert_eq!((fields[&1].as_text(), fields[&2].as_text()), (Some("é"), None));
        assert_eq!(fields[&6].as_text_map(), BTreeMap::from([("a".into(), "b".into())]));
    }

    #[test]
    fn an_answer_that_is_cut_off_or_senseless_is_an_error() {
        let whole = written(&Fields::from([(1, Value::texts(["one", "two"]))]));
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "{end}");
        }
        let mut nested = Value::I32(1);
        for _ in 0..40 {
            nested = Value::Struct(Fields::from([(1, nested)]));
        }
        let Value::Struct(nested) = nested else { panic!("it is one") };
        assert!(read(&written(&nested)).is_err());
        // A list of two thousand million elements that do not come.
        assert!(read(&[15, 0, 1, 8, 0x7f, 0xff, 0xff, 0xff]).is_err());
    }
}
