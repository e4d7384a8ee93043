//! JSON text to plain data: one parser for documents and for the bodies of requests.
//!
//! serde's derived readers take an array for a struct, its fields in the order of their declaration: a document that means
//! something else after the next field is added. Here an object is an object.

use std::fmt;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// Why bytes are not what they should be. The text is complete: there is no source that would repeat it.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// The bytes are not JSON, or the JSON is not of the right shape.
    #[error("{}", in_words(.0))]
    Shape(serde_path_to_error::Error<serde_json::Error>),
    /// Something follows the document.
    #[error("{0}; give one JSON object and nothing after it")]
    Trailing(serde_json::Error),
}

/// Path of the field, what is wrong there, and where that is in the text.
fn in_words(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let path = error.path().to_string();
    let inner = error.inner();
    if inner.is_data() && path != "." {
        format!("{path}: {inner}")
    } else if inner.is_data() {
        inner.to_string()
    } else {
        format!("not valid JSON: {inner}")
    }
}

/// Reads one JSON value and nothing after it. Objects, not arrays, are structs; fields that are there twice are errors.
///
/// # Errors
/// [`JsonError`], in one line that names the field.
pub fn parse<'de, T: Deserialize<'de>>(text: &'de [u8]) -> Result<T, JsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(text);
    let value =
        serde_path_to_error::deserialize(Strict(&mut deserializer)).map_err(JsonError::Shape)?;
    deserializer.end().map_err(JsonError::Trailing)?;
    Ok(value)
}

/// Around each of serde's traits, to reach every value inside; the one thing it changes is
/// [`deserialize_struct`](Deserializer::deserialize_struct).
struct Strict<T>(T);

/// A visitor of a struct.
struct Object<V>(V);

macro_rules! forward {
    ($($name:ident)*) => {$(
        fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            self.0.$name(Strict(visitor))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<D> {
    type Error = D::Error;

    forward! {
        deserialize_any deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_i128 deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_str deserialize_string deserialize_bytes
        deserialize_byte_buf deserialize_option deserialize_unit deserialize_seq deserialize_map
        deserialize_identifier deserialize_ignored_any
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Object(visitor))
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_unit_struct(name, Strict(visitor))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_newtype_struct(name, Strict(visitor))
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_tuple(length, Strict(visitor))
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0
            .deserialize_tuple_struct(name, length, Strict(visitor))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_enum(name, variants, Strict(visitor))
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Object<V> {
    type Value = V::Value;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Strict(map))
    }
}

macro_rules! visit {
    ($($name:ident: $type:ty),*) => {$(
        fn $name<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.0.$name(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<V> {
    type Value = V::Value;

    visit! {
        visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64,
        visit_str: &str, visit_borrowed_str: &'de str, visit_string: String,
        visit_bytes: &[u8], visit_borrowed_bytes: &'de [u8], visit_byte_buf: Vec<u8>
    }

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        self.0.expecting(formatter)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Strict(value))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Strict(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Strict(sequence))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Strict(map))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, value: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(Strict(value))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Strict(deserializer))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Strict(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Strict(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Strict<A> {
    type Error = A::Error;
    type Variant = Strict<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(
        self,
        seed: S,
    ) -> Result<(S::Value, Self::Variant), A::Error> {
        let (value, variant) = self.0.variant_seed(seed)?;
        Ok((value, Strict(variant)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(Strict(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(
        self,
        length: usize,
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(length, Strict(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.struct_variant(fields, Object(visitor))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        number: u8,
        text: Option<String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    enum Choice {
        Unit,
        Tuple(u8, Inner),
        Struct { inner: Inner },
        Newtype(Inner),
    }

    #[derive(Debug, Default, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Outer {
        inner: Inner,
        perhaps: Option<Inner>,
        list: Vec<Inner>,
        map: BTreeMap<String, Inner>,
        pair: (u8, Inner),
        choice: Option<Choice>,
    }

    fn error(text: &str) -> String {
        let error = parse::<Outer>(text.as_bytes()).unwrap_err();
        assert!(std::error::Error::source(&error).is_none());
        error.to_string()
    }

    #[test]
    fn objects_are_read_as_ever() {
        let inner = |number| Inner {
            number,
            text: Some("x\u{1f600}\"".into()),
        };
        let json = |number| format!(r#"{{"text": "x\ud83d\ude00\"", "number": {number}}}"#);
        let text = format!(
            r#"{{"inner": {}, "perhaps": {}, "list": [{}, {}], "map": {{"a": {}}}, "pair": [9, {}], "choice": {{"Struct": {{"inner": {}}}}}}}"#,
            json(1),
            json(2),
            json(3),
            json(4),
            json(5),
            json(6),
            json(7)
        );
        let expected = Outer {
            inner: inner(1),
            perhaps: Some(inner(2)),
            list: vec![inner(3), inner(4)],
            map: [("a".to_owned(), inner(5))].into(),
            pair: (9, inner(6)),
            choice: Some(Choice::Struct { inner: inner(7) }),
        };
        assert_eq!(parse::<Outer>(text.as_bytes()).unwrap(), expected);
        for (text, choice) in [
            (r#""Unit""#, Choice::Unit),
            (r#"{"Tuple": [1, {}]}"#, Choice::Tuple(1, Inner::default())),
            (r#"{"Newtype": {}}"#, Choice::Newtype(Inner::default())),
        ] {
            assert_eq!(parse::<Choice>(text.as_bytes()).unwrap(), choice);
        }
        let value: serde_json::Value = parse(br#"{"a": [1, null, {"b": -1.5}]}"#).unwrap();
        assert_eq!(value, serde_json::json!({"a": [1, null, {"b": -1.5}]}));
        assert_eq!(parse::<u128>(b"18446744073709551616").unwrap(), 1 << 64);
    }

    #[test]
    fn an_array_is_no_object() {
        // What it is about: without the wrapper, arrays pass.
        assert!(serde_json::from_str::<Inner>(r#"[1, "x"]"#).is_ok());
        for (text, path) in [
            ("[]", "invalid type: sequence, expected an object at line 1"),
            (
                r#"{"inner": [1, "x"]}"#,
                "inner: invalid type: sequence, expected an object at line 1 column 10",
            ),
            (
                r#"{"perhaps": [1, "x"]}"#,
                "perhaps: invalid type: sequence",
            ),
            (
                r#"{"list": [{}, [1, "x"]]}"#,
                "list[1]: invalid type: sequence",
            ),
            (
                r#"{"map": {"a": [1, "x"]}}"#,
                "map.a: invalid type: sequence",
            ),
            (
                r#"{"pair": [1, [1, "x"]]}"#,
                "pair[1]: invalid type: sequence",
            ),
            (
                r#"{"choice": {"Tuple": [1, [1, "x"]]}}"#,
                "invalid type: sequence",
            ),
            (
                r#"{"choice": {"Struct": {"inner": [1, "x"]}}}"#,
                "invalid type: sequence",
            ),
            (r#"{"choice": {"Struct": [{}]}}"#, "invalid type: sequence"),
            (
                r#"{"choice": {"Newtype": [1, "x"]}}"#,
                "invalid type: sequence",
            ),
            (
                r#"{"inner": 5}"#,
                "inner: invalid type: integer `5`, expected an object",
            ),
        ] {
            let error = error(text);
            assert!(error.contains(path), "{text}: {error}");
        }
    }

    #[test]
    fn other_errors_keep_field_and_place() {
        for (text, expected) in [
            (
                "{\"inner\":\n {\"number\": 300}}",
                "inner.number: invalid value: integer `300`, expected u8 at line 2 column 15",
            ),
            (
                r#"{"inner": {"numbr": 1}}"#,
                "inner.numbr: unknown field `numbr`",
            ),
            (
                r#"{"inner": {"number": 1, "number": 2}}"#,
                "inner: duplicate field `number`",
            ),
            (r#"{"inner": {}, "inner": {}}"#, "duplicate field `inner`"),
            (
                "{\"inner\": }",
                "not valid JSON: expected value at line 1 column 11",
            ),
            ("{} {}", "nothing after it"),
            ("", "not valid JSON"),
        ] {
            let error = error(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(parse::<Outer>(b"{\"map\": {\"\xff\": {}}}").is_err());
    }

    #[test]
    fn deep_nesting_ends_in_an_error() {
        let deep = "[".repeat(100_000);
        assert!(parse::<serde_json::Value>(deep.as_bytes()).is_err());
        assert!(!error(&format!(r#"{{"x": {deep}"#)).is_empty());
    }
}
