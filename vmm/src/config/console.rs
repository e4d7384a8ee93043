//! The virtio console.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A virtio console beside the serial port, for a guest with `console=hvc0` on its command line. Tandem's own section.
///
/// It takes over standard input. Its output goes to standard output, where the serial port's goes as well unless
/// `serial.serial_out_path` is set: what a kernel says before it has a driver for the console (`console=ttyS0`,
/// `earlyprintk=ttyS0`) is not lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleConfig {
    /// File, FIFO or terminal that the output is appended to. Such a console has no input, and standard input stays the
    /// serial port's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_path: Option<PathBuf>,
}
