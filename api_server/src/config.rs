//! The configuration document: what `--config-file` reads.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use vmm::config::{ConfigError, CpuConfig, CpuSource, VmConfig};

use crate::json::{self, JsonError};

/// Largest document in bytes; a full configuration has a few thousand.
pub const MAX_BYTES: u64 = 1 << 20;

/// Largest CPU template in bytes.
const MAX_TEMPLATE: u64 = MAX_BYTES;

/// Why a document is no configuration. The text of each is complete: none has a source that would repeat it.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// The document is not JSON of the right shape.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A value is impossible.
    #[error(transparent)]
    Value(#[from] ConfigError),
    /// The file that `cpu-config` names cannot be read.
    #[error("cpu-config: cannot read {}: {cause}; give the path of a CPU template, or the template itself", path.display())]
    ReadTemplate {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// The file that `cpu-config` names is no template.
    #[error("cpu-config: {}: {error}", path.display())]
    Template {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: JsonError,
    },
}

/// Reads and checks a configuration. A CPU template that it names as a file is read, and takes the path's place.
///
/// # Errors
/// [`DocumentError`], in one line that names the field.
pub fn parse(document: &[u8]) -> Result<VmConfig, DocumentError> {
    let mut config: VmConfig = json::parse(document)?;
    if let Some(CpuSource::File(path)) = &config.cpu_config {
        config.cpu_config = Some(CpuSource::Template(read_template(path)?));
    }
    config.validate()?;
    Ok(config)
}

fn read_template(path: &Path) -> Result<CpuConfig, DocumentError> {
    let text = read_file(path).map_err(|cause| DocumentError::ReadTemplate {
        path: path.to_owned(),
        cause,
    })?;
    json::parse(&text).map_err(|error| DocumentError::Template {
        path: path.to_owned(),
        error,
    })
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    // Without O_NONBLOCK, opening a pipe would wait for its writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut text = Vec::new();
    file.take(MAX_TEMPLATE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_TEMPLATE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
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
            (machine(r#""vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "V1N1""#), "machine-config.cpu_template: unknown variant"),
            ("{}".into(), "missing field `boot-source`"),
            ("[]".into(), "invalid type: sequence, expected an object"),
            (r#"{"boot-source": ["k", null, null, null]}"#.into(), "boot-source: invalid type: sequence, expected an object"),
            (r#"{"boot-source": {"kernel_image_path": 5}}"#.into(), "boot-source.kernel_image_path: invalid type"),
            (r#"{"boot-source": {"kernel_image_path": "k"}, "pmem": [{"id": "pmem0"}]}"#.into(), "pmem: Tandem does not have yet"),
            (r#"{"boot-source": {"kernel_image_path": "k"}, "drives": [{"drive_id": "a", "direct": 1}]}"#.into(), "drives[0].direct: invalid type"),
        ] {
            let error = error(&document);
            assert!(error.starts_with(expected) || error.contains(expected), "{document}\n{error}");
        }
    }

    #[test]
    fn a_cpu_template_may_be_in_a_file() {
        let file = |path: &str| {
            format!(r#"{{"boot-source": {{"kernel_image_path": "k"}}, "cpu-config": "{path}"}}"#)
        };
        let templates = concat!(env!("CARGO_MANIFEST_DIR"), "/../resources/cpu-templates");
        let config = parse(file(&format!("{templates}/t2s.json")).as_bytes()).unwrap();
        let Some(CpuSource::Template(template)) = &config.cpu_config else {
            panic!("{config:?}");
        };
        assert_eq!(template.msr_modifiers[0].addr, 0x10a);
        // What is shown has the template in it.
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(parse(text.as_bytes()).unwrap(), config);

        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("bad.json");
        let path = path.to_str().unwrap();
        for (text, expected) in [
            (
                r#"{"msr_modifiers": [{"addr": "10", "bitmap": "0b1"}]}"#,
                "msr_modifiers[0].addr: is no number",
            ),
            ("[[], [], []]", "invalid type: sequence, expected an object"),
            ("{} {}", "nothing after it"),
            (
                r#"{"cpuid_modifiers": [{"leaf": "0x1", "subleaf": "0x0", "flags": 9, "modifiers": []}]}"#,
                "cpu-config.cpuid_modifiers[0].flags: is 9",
            ),
        ] {
            std::fs::write(path, text).unwrap();
            let error = error(&file(path));
            assert!(
                error.starts_with("cpu-config") && error.contains(expected),
                "{error}"
            );
        }
        std::fs::write(path, vec![b' '; MAX_TEMPLATE as usize + 1]).unwrap();
        for (path, expected) in [
            ("/nowhere/t.json", "No such file"),
            ("/dev", "no regular file"),
            ("/dev/zero", "no regular file"),
            (path, "too large"),
        ] {
            let error = error(&file(path));
            assert!(
                error.starts_with("cpu-config: cannot read /") && error.contains(expected),
                "{error}"
            );
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
