//! From a configuration to a guest that runs, with what it takes of the host.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::{ConfigError, VmConfig};
use crate::console::{Output, terminal_size};
use crate::exit;
use crate::machine::{BuildError, Machine, MachineBuilder};

use super::Setup;

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file for output cannot be opened.
    #[error("{option}: cannot write to {}; give a path that can be written to", .path.display())]
    Output {
        /// Field that names the file.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Standard output is closed.
    #[error(
        "cannot use standard output for the guest's console; set serial.serial_out_path, and console.output_path if there is a console"
    )]
    Stdout(#[source] io::Error),
    /// The machine cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A descriptor, thread or timer could not be had.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
}

impl StartError {
    pub(super) fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Exit code of a process that was to do nothing else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Output { .. } => exit::BAD_CONFIGURATION,
            Self::Build(error) => error.exit_code(),
            Self::Stdout(_) | Self::Io { .. } => exit::HOST_ERROR,
        }
    }
}

/// A machine and where its output goes: the serial port's first.
pub struct Built {
    pub machine: Machine,
    pub outputs: Vec<Output>,
}

/// Builds the machine of `config`. It does not run yet.
///
/// # Errors
/// [`StartError`]; nothing is left of it.
pub fn build(config: &VmConfig, setup: &Setup) -> Result<Built, StartError> {
    let output = Output::new(match config.serial_path() {
        Some(path) => Output::file(path).map_err(unwritable("serial.serial_out_path", path))?,
        None => Output::stdout().map_err(StartError::Stdout)?,
    });
    // What goes to standard output goes through one thread.
    let console = match (&config.console, config.console_path()) {
        (Some(_), Some(path)) => {
            Some(Output::file(path).map_err(unwritable("console.output_path", path))?)
        }
        (Some(_), None) if config.serial_path().is_some() => {
            Some(Output::stdout().map_err(StartError::Stdout)?)
        }
        _ => None,
    };
    let console = console.map(Output::new);
    let size = terminal_size().filter(|_| config.console_has_input());
    let machine = MachineBuilder::new(config, &setup.host, setup.timeline.clone())
        .console(console.as_ref().unwrap_or(&output), size)
        .build(&output)?;
    let mut outputs = vec![output];
    outputs.extend(console);
    Ok(Built { machine, outputs })
}

pub fn unwritable(option: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Output {
        option,
        path: path.to_owned(),
        source,
    }
}
