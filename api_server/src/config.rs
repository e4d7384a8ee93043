//! The configuration document: what `--config-file` reads.

use vmm::config::{ConfigError, VmConfig};

/// Largest document in bytes; a full configuration has a few thousand.
pub const MAX_BYTES: u64 = 1 << 20;

/// Why a document is no configuration. The text of each is complete: none has a source that would repeat it.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The bytes are not JSON, or the JSON is not of the right shape.
    #[error("{}", in_words(.0))]
    Shape(serde_path_to_error::Error<serde_json::Error>),
    /// Something follows the document.
    #[error("{0}; give one JSON object and nothing after it")]
    Trailing(serde_json::Error),
    /// A value is impossible.
    #[error(transparent)]
    Value(#[from] ConfigError),
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

/// Reads and checks a configuration.
///
/// # Errors
/// [`DocumentError`], in one line that names the field.
pub fn parse(document: &[u8]) -> Result<VmConfig, DocumentError> {
    let mut deserializer = serde_json::Deserializer::from_slice(document);
    let config: VmConfig =
        serde_path_to_error::deserialize(&mut deserializer).map_err(DocumentError::Shape)?;
    deserializer.end().map_err(DocumentError::Trailing)?;
    config.validate()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(document: &str) -> String {
        let text = parse(document.as_bytes()).unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
        assert!(std::error::Error::source(&parse(document.as_bytes()).unwrap_err()).is_none());
        text
    }

    /// A document with this machine configuration.
    fn machine(fields: &str) -> String {
        format!(
            r#"{{"boot-source": {{"kernel_image_path": "/k"}}, "machine-config": {{{fields}}}}}"#
        )
    }

    #[test]
    fn errors_name_the_field() {
        for (document, expected) in [
            (machine(r#""vcpu_count": "2", "mem_size_mib": 128"#), "machine-config.vcpu_count: invalid type"),
            (machine(r#""vcpu_count": 2"#), "machine-config: missing field `mem_size_mib`"),
            (machine(r#""vcpu_count": 300, "mem_size_mib": 128"#), "machine-config.vcpu_count: invalid value"),
            (machine(r#""vcpu_count": 2, "mem_size_mib": -1"#), "machine-config.mem_size_mib: invalid value"),
            (machine(r#""vcpu_count": 2, "mem_size_mib": 18446744073709551616"#), "machine-config.mem_size_mib: invalid type"),
            (machine(r#""vcpu_count": 33, "mem_size_mib": 128"#), "machine-config.vcpu_count: is 33; give 1 to 32"),
            (machine(r#""vcpu_count": 1, "mem_size_mib": 128, "ht": 1"#), "machine-config.ht: unknown field `ht`"),
            (machine(r#""vcpu_count": 1, "vcpu_count": 2, "mem_size_mib": 128"#), "machine-config: duplicate field `vcpu_count`"),
            (machine(r#""vcpu_count": 1, "mem_size_mib": 128, "huge_pages": "1G""#), "machine-config.huge_pages: unknown variant"),
            (machine(r#""vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "T2""#), "machine-config.cpu_template: unknown variant"),
            ("{}".into(), "missing field `boot-source`"),
            ("[]".into(), "invalid length 0, expected struct VmConfig"),
            (r#"{"boot-source": {"kernel_image_path": 5}}"#.into(), "boot-source.kernel_image_path: invalid type"),
            (r#"{"boot-source": {"kernel_image_path": "k"}, "pmem": [{"id": "pmem0"}]}"#.into(), "pmem: Tandem does not have yet"),
            (r#"{"boot-source": {"kernel_image_path": "k"}, "drives": [{"drive_id": "a", "direct": 1}]}"#.into(), "drives[0].direct: invalid type"),
        ] {
            let error = error(&document);
            assert!(error.starts_with(expected) || error.contains(expected), "{document}\n{error}");
        }
    }

    /// The examples are valid, and between them show every field.
    #[test]
    fn the_examples_are_valid() {
        let minimal = parse(include_bytes!("../../resources/examples/minimal.json")).unwrap();
        assert_eq!(minimal.machine_config, Default::default());
        let text = include_str!("../../resources/examples/full.json");
        let full = parse(text.as_bytes()).unwrap();
        let read: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(
            serde_json::to_value(&full).unwrap(),
            read,
            "a field is missing in the example"
        );
    }

    #[test]
    fn what_is_not_json_is_said_to_be_so() {
        for document in ["", "{", "nonsense", "{\"boot-source\": }", "\u{0}"] {
            assert!(
                error(document).starts_with("not valid JSON"),
                "{}",
                error(document)
            );
        }
        assert!(parse(b"\xff\xfe{}").is_err());
        let twice = r#"{"boot-source": {"kernel_image_path": "k"}} {}"#;
        assert!(error(twice).contains("nothing after it"));
        assert!(
            !error(&"[".repeat(100_000)).is_empty(),
            "deep nesting ends in an error"
        );
    }
}
