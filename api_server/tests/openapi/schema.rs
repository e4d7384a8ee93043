//! As much of JSON Schema as the OpenAPI document uses, and values to try a schema with.

use std::collections::BTreeSet;

use regex_lite::Regex;
use serde_json::{Map, Value, json};

/// The OpenAPI document.
pub struct Document(Value);

/// The words of a schema that are known here; one that is not would be passed over in silence.
const KNOWN: &[&str] = &[
    "$ref",
    "additionalProperties",
    "allOf",
    "anyOf",
    "default",
    "description",
    "enum",
    "examples",
    "items",
    "maxItems",
    "maxLength",
    "maximum",
    "minItems",
    "minLength",
    "minimum",
    "pattern",
    "properties",
    "required",
    "type",
];

impl Document {
    pub fn load() -> Self {
        Self(serde_saphyr::from_str(api_server::OPENAPI).unwrap())
    }

    pub fn get(&self, pointer: &str) -> &Value {
        let found = self.0.pointer(pointer);
        found.unwrap_or_else(|| panic!("{pointer} is not in the document"))
    }

    /// A schema by its name.
    pub fn schema(&self, name: &str) -> &Value {
        self.get(&format!("/components/schemas/{name}"))
    }

    /// What is behind a `$ref`; the value itself where there is none.
    pub fn resolved<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value["$ref"].as_str() {
            Some(target) => self.resolved(self.get(target.strip_prefix('#').unwrap())),
            None => value,
        }
    }

    /// Whether the schema takes the value.
    pub fn allows(&self, schema: &Value, value: &Value) -> bool {
        let words = schema.as_object().unwrap();
        words.iter().all(|(word, rule)| {
            assert!(KNOWN.contains(&word.as_str()), "{word} is not known here");
            self.keeps(words, word, rule, value)
        })
    }

    fn keeps(&self, words: &Map<String, Value>, word: &str, rule: &Value, value: &Value) -> bool {
        let list = || rule.as_array().unwrap().iter();
        let number = |value: &Value| value.as_i128_like();
        match (word, value) {
            ("$ref", _) => self.allows(
                self.get(rule.as_str().unwrap().strip_prefix('#').unwrap()),
                value,
            ),
            ("allOf", _) => list().all(|schema| self.allows(schema, value)),
            ("anyOf", _) => list().any(|schema| self.allows(schema, value)),
            ("enum", _) => list().any(|one| one == value),
            ("type", _) => match rule {
                Value::String(name) => is_a(name, value),
                _ => list().any(|name| is_a(name.as_str().unwrap(), value)),
            },
            ("minimum", Value::Number(_)) => number(value) >= number(rule),
            ("maximum", Value::Number(_)) => number(value) <= number(rule),
            ("minLength", Value::String(text)) => text.len() as u64 >= rule.as_u64().unwrap(),
            ("maxLength", Value::String(text)) => text.len() as u64 <= rule.as_u64().unwrap(),
            ("pattern", Value::String(text)) => {
                Regex::new(rule.as_str().unwrap()).unwrap().is_match(text)
            }
            ("maxItems", Value::Array(items)) => items.len() as u64 <= rule.as_u64().unwrap(),
            ("minItems", Value::Array(items)) => items.len() as u64 >= rule.as_u64().unwrap(),
            ("items", Value::Array(items)) => items.iter().all(|item| self.allows(rule, item)),
            ("required", Value::Object(fields)) => {
                list().all(|name| fields.contains_key(name.as_str().unwrap()))
            }
            ("properties", Value::Object(fields)) => fields.iter().all(|(name, field)| {
                let schema = rule.get(name);
                schema.is_none_or(|schema| self.allows(schema, field))
            }),
            ("additionalProperties", Value::Object(fields)) => {
                assert_eq!(rule, &json!(false));
                let known = words["properties"].as_object().unwrap();
                fields.keys().all(|name| known.contains_key(name))
            }
            _ => true,
        }
    }

    /// The names that follow `word` anywhere in the schema, such as all limits.
    fn gather<'a>(&'a self, schema: &'a Value, words: &[&str], found: &mut Vec<&'a Value>) {
        let schema = self.resolved(schema);
        found.extend(words.iter().filter_map(|word| schema.get(word)));
        for one in ["anyOf", "allOf"] {
            for schema in schema[one].as_array().into_iter().flatten() {
                self.gather(schema, words, found);
            }
        }
    }

    /// Values on both sides of all that the schema draws a line by, and many that belong nowhere.
    pub fn probes(&self, schema: &Value) -> Vec<Value> {
        let mut probes = vec![
            json!(null),
            json!(true),
            json!(false),
            json!(1.5),
            json!([]),
            json!({}),
            json!([1]),
        ];
        let mut limits = Vec::new();
        self.gather(schema, &["minimum", "maximum"], &mut limits);
        let limits = limits
            .into_iter()
            .map(|limit| limit.as_i128_like().unwrap());
        let powers = [7, 8, 15, 16, 31, 32, 63, 64].map(|bits| 1_i128 << bits);
        let mut numbers: BTreeSet<i128> = limits
            .chain(powers)
            .flat_map(|at| [at - 1, at, at + 1])
            .collect();
        numbers.extend([-1, 0, 1, 2]);
        probes.extend(numbers.into_iter().map(number));

        probes.extend(STRINGS.iter().map(|text| json!(text)));
        let mut lengths = Vec::new();
        self.gather(schema, &["minLength", "maxLength"], &mut lengths);
        let lengths = lengths
            .into_iter()
            .map(|length| length.as_u64().unwrap() as usize);
        let lengths = lengths.chain([14, 15, 16, 17, 106, 107, 108, 4096]);
        probes.extend(
            lengths
                .flat_map(|at| [at, at + 1])
                .map(|length| json!("x".repeat(length))),
        );

        let mut values = Vec::new();
        self.gather(schema, &["enum"], &mut values);
        probes.extend(
            values
                .into_iter()
                .flat_map(|list| list.as_array().unwrap().clone()),
        );
        probes
    }
}

/// Strings that some field may mind.
const STRINGS: &[&str] = &[
    "",
    " ",
    "a",
    "A",
    "_",
    "-",
    "0",
    "a b",
    "a_B9",
    "a-b",
    "a/b",
    "a.b",
    ".",
    "..",
    "a:b",
    "a%d",
    "a=b",
    "a\0b",
    "a\nb",
    "\u{7f}",
    "ä",
    "~",
    "!",
    "null",
    "none",
    "None",
    "NONE",
    "06:00:c0:a8:00:02",
    "01:00:c0:a8:00:02",
    "06:00:C0:A8:00:0F",
    "06:00:c0:a8:00",
    "06:00:c0:a8:00:02:03",
    "06-00-c0-a8-00-02",
    "169.254.0.1",
    "10.0.0.1",
    "169.254.169.254",
    "169.254.255.1",
    "169.254.1.256",
    "0b1",
    "0x1",
];

/// A JSON number, as a fraction where it is larger than 64 bits have it.
fn number(value: i128) -> Value {
    match (u64::try_from(value), i64::try_from(value)) {
        (Ok(value), _) => json!(value),
        (_, Ok(value)) => json!(value),
        _ => json!(value as f64),
    }
}

fn is_a(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "integer" => value.as_i128_like().is_some(),
        _ => panic!("the type {name} is not known here"),
    }
}

/// JSON's integers of any size.
trait AsInteger {
    fn as_i128_like(&self) -> Option<i128>;
}

impl AsInteger for Value {
    fn as_i128_like(&self) -> Option<i128> {
        let unsigned = self.as_u64().map(i128::from);
        let signed = || self.as_i64().map(i128::from);
        let large = || {
            self.as_f64()
                .filter(|value| value.abs() >= 2_f64.powi(63))
                .map(|value| value as i128)
        };
        unsigned.or_else(signed).or_else(large)
    }
}
