//! The list of requests, as the OpenAPI document has them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::client::Failure;
use crate::output::{Colour, Style};

/// What is read of the document.
#[derive(Deserialize)]
struct Document {
    tags: Vec<Tag>,
    paths: BTreeMap<String, BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Tag {
    name: String,
    description: String,
}

/// The methods that a path can have, in the order in which they are listed.
const METHODS: [&str; 4] = ["get", "put", "patch", "delete"];

/// All requests, by what they are about.
///
/// # Errors
/// [`Failure`], if the document that this program was built with cannot be read.
pub fn list(style: Style) -> Result<String, Failure> {
    let document: Document = serde_saphyr::from_str(api_server::OPENAPI)
        .map_err(|error| Failure::Usage(format!("the list of requests: {error}")))?;
    let mut text = String::new();
    let width = document.paths.keys().map(String::len).max().unwrap_or(0);
    for tag in &document.tags {
        if !text.is_empty() {
            text.push('\n');
        }
        let heading = style.paint(Colour::Bold, &tag.name);
        text += &format!(
            "{heading}  {}\n",
            style.paint(Colour::Dim, &tag.description)
        );
        for (path, item) in &document.paths {
            for method in METHODS {
                let Some(operation) = item.get(method) else {
                    continue;
                };
                if operation["tags"][0] != tag.name.as_str() {
                    continue;
                }
                let summary = operation["summary"].as_str().unwrap_or_default();
                text += &format!("  {:<6} {path:<width$}  {summary}\n", method.to_uppercase());
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_listed_once() {
        let text = list(Style::PLAIN).unwrap();
        let document: Document = serde_saphyr::from_str(api_server::OPENAPI).unwrap();
        let operations = document.paths.values().flat_map(BTreeMap::keys);
        let count = operations.filter(|key| *key != "parameters").count();
        let listed = text.lines().filter(|line| line.starts_with("  ")).count();
        assert_eq!(listed, count);
        assert!(text.contains("  PATCH  /drives/{drive_id}"), "{text}");
    }
}
