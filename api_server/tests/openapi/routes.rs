//! Paths and methods, and which body and which answer each has.

use std::collections::BTreeSet;

use api_server::http;
use api_server::routes::{ROUTES, find};
use serde_json::{Value, json};

use super::schema::Document;
use super::{expected, fields};

/// In the document and not in the code yet.
const TO_COME: &[(&str, &str)] = &[
    ("DELETE", "/drives/{drive_id}"),
    ("DELETE", "/network-interfaces/{iface_id}"),
];

/// An operation of the document.
pub struct Operation {
    pub method: String,
    pub path: String,
    pub value: Value,
}

impl Operation {
    /// All that are in the code as well.
    pub fn all(document: &Document) -> Vec<Self> {
        let mut all = Vec::new();
        for (path, item) in fields(document.get("/paths")) {
            for (method, value) in fields(item) {
                let operation = Self {
                    method: method.to_uppercase(),
                    path: path.clone(),
                    value: value.clone(),
                };
                if method != "parameters" && !TO_COME.contains(&operation.name()) {
                    all.push(operation);
                }
            }
        }
        all
    }

    fn name(&self) -> (&str, &str) {
        (&self.method, &self.path)
    }

    /// The schema of the body, if that has one.
    fn body<'a>(&'a self, document: &'a Document) -> Option<&'a Value> {
        let body = self.value.get("requestBody")?;
        let schema = document
            .resolved(body)
            .pointer("/content/application~1json/schema");
        schema.filter(|schema| **schema != json!({}))
    }

    fn is_missing(&self) -> bool {
        self.value["tags"] == json!(["missing"])
    }

    /// Whether the code takes the request, as far as one can say without a VM.
    fn ask(&self, body: &[u8]) -> Result<(), String> {
        let path = self.path.split('{').next().unwrap().to_owned();
        let path = if self.path.contains('{') {
            path + "root"
        } else {
            path
        };
        let request = http::Request::new(&self.method, &path, body);
        find(&request).map(drop).map_err(|fault| fault.0)
    }
}

/// All fields of a schema, whatever it is put together from.
fn all_fields(document: &Document, schema: &Value, found: &mut BTreeSet<String>) {
    let schema = document.resolved(schema);
    for part in schema["allOf"].as_array().into_iter().flatten() {
        all_fields(document, part, found);
    }
    found.extend(
        schema["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name.clone()),
    );
}

#[test]
fn paths_and_methods_are_those_of_the_code() {
    let document = Document::load();
    let operations = Operation::all(&document);
    let listed: BTreeSet<_> = operations.iter().map(Operation::name).collect();
    let known: BTreeSet<_> = ROUTES
        .iter()
        .map(|route| (route.method, route.path))
        .collect();
    assert_eq!(listed, known);
    assert_eq!(known.len(), ROUTES.len(), "a route is there twice");
    assert!(
        TO_COME.iter().all(|name| !known.contains(name)),
        "it has come"
    );
}

#[test]
fn each_operation_has_a_name_a_place_and_its_answers() {
    let document = Document::load();
    let mut names = BTreeSet::new();
    for operation in Operation::all(&document) {
        let value = &operation.value;
        assert!(names.insert(value["operationId"].as_str().unwrap().to_owned()));
        assert!(value["summary"].is_string());
        let statuses: Vec<_> = fields(&value["responses"])
            .keys()
            .map(String::as_str)
            .collect();
        let done = match operation.method.as_str() {
            _ if operation.is_missing() => None,
            "GET" => Some("200"),
            _ => Some("204"),
        };
        let named: Vec<_> = statuses
            .iter()
            .copied()
            .filter(|status| status.starts_with('2'))
            .collect();
        assert_eq!(
            named,
            done.into_iter().collect::<Vec<_>>(),
            "{:?}",
            operation.name()
        );
        assert!(statuses.contains(&"400"), "{:?}", operation.name());
        // A name in the path is described, and nothing else is.
        let described = document.get("/paths")[&operation.path].get("parameters");
        assert_eq!(described.is_some(), operation.path.contains('{'));
    }
}

#[test]
fn bodies_are_those_of_the_code() {
    let document = Document::load();
    for operation in Operation::all(&document) {
        let name = operation.name();
        let error = operation
            .ask(br#"{"no such field": 1}"#)
            .err()
            .unwrap_or_default();
        let Some(schema) = operation.body(&document) else {
            assert!(expected(&error).is_empty(), "{name:?} has a body: {error}");
            continue;
        };
        let mut listed = BTreeSet::new();
        all_fields(&document, schema, &mut listed);
        let known: BTreeSet<_> = expected(&error).into_iter().collect();
        assert_eq!(listed, known, "{name:?}: {error}");
        for bad in [
            &b""[..],
            b"{",
            b"1",
            b"[]",
            b"\"x\"",
            b"null",
            b"{} {}",
            b"\xff",
        ] {
            assert!(operation.ask(bad).is_err(), "{name:?} takes {bad:?}");
        }
    }
}

#[test]
fn what_is_missing_is_refused_whatever_is_asked() {
    let document = Document::load();
    for operation in Operation::all(&document) {
        let example = operation.body(&document).map(|schema| {
            let schema = document.resolved(schema);
            let base = schema["allOf"]
                .get(0)
                .map_or(schema, |part| document.resolved(part));
            let mut example = base["examples"][0].clone();
            for id in ["drive_id", "iface_id"] {
                if example.get(id).is_some() {
                    example[id] = json!("root");
                }
            }
            example.to_string()
        });
        let error = operation.ask(example.unwrap_or_default().as_bytes()).err();
        assert_eq!(
            error.is_some(),
            operation.is_missing(),
            "{:?}: {error:?}",
            operation.name()
        );
        if let Some(error) = error {
            assert!(error.contains("does not have this yet"), "{error}");
        }
    }
}
