//! The file for a benchmark's JSON document.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::error::{Error, Result};

/// The file; it is opened before anything is measured: an hour's work shall not end with "cannot write".
#[derive(Debug)]
pub struct Document {
    path: PathBuf,
    file: File,
}

impl Document {
    /// Makes the file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(|error| Error::file("write to", path, &error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Writes it.
    pub fn write(mut self, content: &impl Serialize) -> Result<()> {
        // In one piece: the serializer writes a few bytes at a time, which takes minutes on a slow file system.
        serde_json::to_vec_pretty(content)
            .map_err(io::Error::from)
            .and_then(|mut text| {
                text.push(b'\n');
                self.file.write_all(&text)
            })
            .map_err(|error| Error::file("write", &self.path, &error))
    }
}

/// Time since 1970.
pub fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}
