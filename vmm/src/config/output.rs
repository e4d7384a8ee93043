//! Where a VM's output goes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The serial port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SerialConfig {
    /// File, FIFO or terminal that the output is appended to. Without it, output goes to standard output and
    /// input comes from standard input.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<PathBuf>,
}

/// The log of the VM process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoggerConfig {
    /// File or FIFO that the log is appended to; standard error where it is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_path: Option<PathBuf>,
    /// Least important level that is logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<Level>,
    /// Whether lines show their level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_level: Option<bool>,
    /// Whether lines show the source file and line that they come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub show_log_origin: Option<bool>,
    /// Only messages whose module path starts with this are logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
}

/// A log level, in Firecracker's spellings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// Nothing.
    #[serde(alias = "OFF", alias = "off")]
    Off,
    /// What went wrong.
    #[serde(alias = "ERROR", alias = "error")]
    Error,
    /// What is suspicious.
    #[serde(
        alias = "WARNING",
        alias = "warning",
        alias = "Warn",
        alias = "WARN",
        alias = "warn"
    )]
    Warning,
    /// What happened.
    #[serde(alias = "INFO", alias = "info")]
    Info,
    /// What helps to find a fault.
    #[serde(alias = "DEBUG", alias = "debug")]
    Debug,
    /// Everything.
    #[serde(alias = "TRACE", alias = "trace")]
    Trace,
}

impl From<Level> for log::LevelFilter {
    fn from(level: Level) -> Self {
        match level {
            Level::Off => Self::Off,
            Level::Error => Self::Error,
            Level::Warning => Self::Warn,
            Level::Info => Self::Info,
            Level::Debug => Self::Debug,
            Level::Trace => Self::Trace,
        }
    }
}
