//! Why a benchmark cannot be run: one line, with the remedy where there is one.

use std::fmt;
use std::io;
use std::path::Path;

/// One line for the user.
#[derive(Debug)]
pub struct Error(String);

impl Error {
    /// An error with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// `doing` failed on the file `path`.
    pub fn file(doing: &str, path: &Path, error: &io::Error) -> Self {
        Self(format!("cannot {doing} {}: {error}", path.display()))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// A result whose error is one line for the user.
pub type Result<T> = std::result::Result<T, Error>;
