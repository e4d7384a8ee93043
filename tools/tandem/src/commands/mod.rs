//! The commands, one module each. A command is a struct of its arguments with `run`.

mod api;
mod doctor;
mod timeline;

use std::process::ExitCode;

/// A command and its arguments.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    // No doc comments on the variants: they would hide the longer ones of the arguments' structs.
    Api(api::Api),
    Doctor(doctor::Doctor),
    Timeline(timeline::Timeline),
}

impl Command {
    /// Runs it to the exit code.
    pub fn run(self) -> ExitCode {
        match self {
            Self::Api(api) => api.run(),
            Self::Doctor(doctor) => doctor.run(),
            Self::Timeline(timeline) => timeline.run(),
        }
    }
}
