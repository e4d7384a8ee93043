//! Why there is no jail: one line, and an exit code.

use std::fmt;
use std::io;

/// Exit code: the host could not make the jail.
pub const HOST_ERROR: u8 = 1;
/// Exit code: what the command line names is not fit for a jail.
pub const REFUSED: u8 = 152;
/// Exit code: the command line is not valid.
pub const BAD_ARGUMENTS: u8 = 153;

/// Why there is no jail. The text begins with the flag that it is about, where there is one.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code of the process.
    pub code: u8,
    text: String,
}

impl Failure {
    /// What the command line names is not fit.
    pub fn refused(text: impl Into<String>) -> Self {
        Self {
            code: REFUSED,
            text: text.into(),
        }
    }

    /// The host said no.
    pub fn host(doing: impl fmt::Display, error: &io::Error) -> Self {
        let hint = match error.raw_os_error() {
            Some(libc::EPERM) => "; run it as root, with all capabilities",
            Some(libc::ENOSYS) => "; a Linux kernel 5.12 or later is needed",
            _ => "",
        };
        Self {
            code: HOST_ERROR,
            text: format!("{doing}: {error}{hint}"),
        }
    }

    /// The same, with something added at its end.
    #[must_use]
    pub fn and(mut self, more: &str) -> Self {
        self.text += more;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        // A path may have a line feed in it.
        for character in self.text.chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        Ok(())
    }
}

/// Puts words to what the host said.
pub trait Context<T> {
    /// `doing` begins with the flag, where there is one.
    ///
    /// # Errors
    /// [`Failure::host`].
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Context<T> for io::Result<T> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::host(doing(), &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line() {
        let failure = Failure::refused("--exec-file: a\nb\u{1b}[0m").and("; c");
        assert_eq!(failure.to_string(), "--exec-file: a\\nb\\u{1b}[0m; c");
        assert_eq!(failure.code, REFUSED);
    }

    #[test]
    fn the_host_is_quoted_with_a_hint() {
        let denied: Result<(), _> =
            Err(io::Error::from_raw_os_error(libc::EPERM)).doing(|| "cannot pivot".to_owned());
        let text = denied.unwrap_err().to_string();
        assert!(
            text.starts_with("cannot pivot: Operation not permitted"),
            "{text}"
        );
        assert!(
            text.ends_with("run it as root, with all capabilities"),
            "{text}"
        );
    }
}
