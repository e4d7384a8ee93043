//! Kernels and initramfs images, from the cache that `tools/lib/artifacts.sh` keeps.
//!
//! The lab has no network, and asking the script there hashes a whole kernel package through a slow file system. So
//! each artifact can be named by a variable of the environment, `TANDEM_ARTIFACT_` and its name in capitals with `_`
//! for what is not a letter or digit: `tests/artifact-paths` prints them all. The script is asked where one is missing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variable that names the artifact called `name`.
fn variable(name: &str) -> String {
    let plain = |letter: char| {
        if letter.is_ascii_alphanumeric() {
            letter.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    format!(
        "TANDEM_ARTIFACT_{}",
        name.chars().map(plain).collect::<String>()
    )
}

/// Path of the artifact called `name`.
///
/// # Panics
/// It is not there.
pub fn artifact(name: &str) -> PathBuf {
    if let Some(path) = env::var_os(variable(name)) {
        let path = PathBuf::from(path);
        assert!(
            path.exists(),
            "{} names {}, which is not there",
            variable(name),
            path.display()
        );
        return path;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/lib/artifacts.sh");
    ask(Command::new(&script).args(["get", name])).unwrap_or_else(|reason| {
        panic!("no artifact {name}: {reason}; run tools/test, which fetches it")
    })
}

fn ask(command: &mut Command) -> Result<PathBuf, String> {
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} is not there", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_plain_names() {
        assert_eq!(
            variable("initramfs-test-6.12-cloud"),
            "TANDEM_ARTIFACT_INITRAMFS_TEST_6_12_CLOUD"
        );
    }
}
