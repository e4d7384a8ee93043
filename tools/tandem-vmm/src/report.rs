//! The boot timeline as JSON.

use std::fs::File;
use std::io::{self, BufWriter, Write};

use serde::Serialize;
use vmm::exit::ExitReason;
use vmm::timeline::{Mark, Timeline};

/// Version of the document; raised when a field changes its meaning.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    id: &'a str,
    exit_code: u8,
    reason: String,
    /// In the order in which they were reached.
    marks: Vec<Mark>,
}

/// Writes the timeline of a machine that is over.
///
/// # Errors
/// Those of writing.
pub fn write(file: File, id: &str, reason: &ExitReason, timeline: &Timeline) -> io::Result<()> {
    let report = Report {
        version: VERSION,
        id,
        exit_code: reason.code(),
        reason: reason.to_string(),
        marks: timeline.marks(),
    };
    let mut file = BufWriter::new(file);
    serde_json::to_writer_pretty(&mut file, &report)?;
    file.write_all(b"\n")?;
    file.flush()
}
