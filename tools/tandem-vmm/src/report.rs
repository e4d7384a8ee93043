//! The boot timeline as a file.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use vmm::timeline::Report;

/// Writes a boot's report as JSON, in place of what the file had.
///
/// # Errors
/// Those of writing.
pub fn write(file: File, report: &Report) -> io::Result<()> {
    if file.metadata()?.is_file() {
        file.set_len(0)?;
    }
    let mut file = BufWriter::new(file);
    serde_json::to_writer_pretty(&mut file, report)?;
    file.write_all(b"\n")?;
    file.flush()
}
