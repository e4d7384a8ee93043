//! The configuration document: any bytes are refused with a message, or are a configuration that is written and read back
//! as it is.

use api_server::config;

use crate::messages;
use crate::seeds::{Reached, Seed, seed};

/// Runs the target.
///
/// # Panics
/// A document is told from itself, or an error says nothing or too much.
pub fn run(data: &[u8]) -> Reached {
    messages::begin();
    let mut reached = Reached::new();
    match config::parse(data) {
        Ok(parsed) => {
            reached.insert("valid".into(), 1);
            let text = serde_json::to_vec(&parsed).expect("a configuration can be written");
            let again = config::parse(&text).expect("what was written is valid");
            assert_eq!(parsed, again);
            // It is what SIGUSR1 compares: a configuration that has not changed changes nothing.
            assert_eq!(serde_json::to_vec(&again).ok(), Some(text));
        }
        Err(error) => {
            reached.insert("refused".into(), 1);
            let text = error.to_string();
            assert!(!text.is_empty());
            // A message is about the document, and not longer than it by much.
            assert!(text.len() < 2000 + 8 * data.len(), "{} bytes", text.len());
        }
    }
    messages::end();
    reached
}

/// Its seeds: the examples, and a few that are wrong.
pub fn seeds() -> Vec<Seed> {
    let full = include_bytes!("../../../resources/examples/full.json").to_vec();
    let minimal = include_bytes!("../../../resources/examples/minimal.json").to_vec();
    let packed = |document: &[u8]| {
        let value: serde_json::Value = serde_json::from_slice(document).expect("an example");
        value.to_string().into_bytes()
    };
    let with = |section: &str, value: &str| {
        format!(r#"{{"boot-source":{{"kernel_image_path":"k"}},"{section}":{value}}}"#).into_bytes()
    };
    vec![
        seed("full", packed(&full), &["valid"]),
        seed("minimal", packed(&minimal), &["valid"]),
        seed("null", with("serial", "null"), &["valid"]),
        seed(
            "none",
            with("machine-config", r#"{"vcpu_count":0,"mem_size_mib":1}"#),
            &["refused"],
        ),
        seed("deep", "[".repeat(300).into_bytes(), &["refused"]),
        seed("path", with("a\\nb", "1"), &["refused"]),
        seed(
            "number",
            with("machine-config", r#"{"vcpu_count":1e999}"#),
            &["refused"],
        ),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
