//! What to boot.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Longest kernel command line in bytes, without the terminating zero: x86 kernels keep
/// `COMMAND_LINE_SIZE` (2048) bytes of it (`arch/x86/include/asm/setup.h`).
const MAX_COMMAND_LINE: usize = 2047;

/// Kernel, initrd and command line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// The kernel: an ELF vmlinux or a bzImage.
    pub kernel_image_path: PathBuf,
    /// The initial ramdisk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line; [`DEFAULT_BOOT_ARGS`](Self::DEFAULT_BOOT_ARGS) where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
    /// Who decompresses a bzImage. Tandem's own field.
    #[serde(default, skip_serializing_if = "Decompression::is_default")]
    pub bzimage_decompression: Decompression,
}

/// Who decompresses a bzImage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decompression {
    /// The host, once: the result is cached and later VMs map it.
    #[default]
    Host,
    /// The kernel's own code in the guest, at each boot. Slower, and keeps KASLR.
    Guest,
}

impl Decompression {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl BootSource {
    /// Console on the serial port, and a panic ends the VM at once.
    pub const DEFAULT_BOOT_ARGS: &str = "console=ttyS0 panic=-1";

    /// A kernel without initrd, with the default command line.
    pub fn new(kernel_image_path: impl Into<PathBuf>) -> Self {
        Self {
            kernel_image_path: kernel_image_path.into(),
            initrd_path: None,
            boot_args: None,
            bzimage_decompression: Decompression::default(),
        }
    }

    /// The command line that the kernel gets.
    pub fn command_line(&self) -> &str {
        self.boot_args.as_deref().unwrap_or(Self::DEFAULT_BOOT_ARGS)
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.kernel_image_path.as_os_str().is_empty() {
            return Err(ConfigError::new(
                "boot-source.kernel_image_path",
                "is empty",
                "give the path of a vmlinux or bzImage",
            ));
        }
        let line = self.command_line();
        check_length(line)?;
        if line.bytes().any(|byte| byte == 0 || byte == b'\n') {
            return Err(ConfigError::new(
                "boot-source.boot_args",
                "has a zero byte or a line feed in it",
                "give one line of text",
            ));
        }
        Ok(())
    }
}

/// Checks the length of a command line, with all that is appended to it.
pub(super) fn check_length(line: &str) -> Result<(), ConfigError> {
    if line.len() > MAX_COMMAND_LINE {
        return Err(ConfigError::new(
            "boot-source.boot_args",
            format!("has {} bytes", line.len()),
            format!("x86 kernels take {MAX_COMMAND_LINE} at most"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_has_a_limit() {
        let mut source = BootSource::new("/k");
        source.boot_args = Some("x".repeat(MAX_COMMAND_LINE));
        source.validate().unwrap();
        source.boot_args = Some("x".repeat(MAX_COMMAND_LINE + 1));
        let error = source.validate().unwrap_err();
        assert_eq!(error.field, "boot-source.boot_args");
        source.boot_args = Some("a\0b".into());
        assert!(source.validate().is_err());
        source.boot_args = Some("a\nb".into());
        assert!(source.validate().is_err());
        source.boot_args = Some(String::new());
        source.validate().unwrap();
    }
}
