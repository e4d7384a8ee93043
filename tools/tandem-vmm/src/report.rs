//! The boot timeline as a file.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use vmm::timeline::Report;

/// Writes a boot's report as JSON.
///
/// # Errors
/// Those of writing.
pub fn write(file: File, report: &Report) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    serde_json::to_writer_pretty(&mut file, report)?;
    file.write_all(b"\n")?;
    file.flush()
}
