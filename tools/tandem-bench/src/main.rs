//! Benchmarks that compare Tandem with other VMMs: one subcommand for each question.
//!
//! - [`boot`]: how fast and at what cost does a VM start? Cold boots of every VMM, interleaved.
//!
//! What the subcommands share: [`stats`] and [`table`] for results, [`environment`] and [`binary`] for what they were
//! measured on, [`stage`] for files that shall not be read from a slow disk, [`smaps`] for memory, [`signals`] for
//! Ctrl-C, [`random`] for a reproducible order.

mod binary;
mod boot;
mod environment;
mod error;
mod random;
mod signals;
mod smaps;
mod stage;
mod stats;
mod sys;
mod table;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Compares Tandem with other VMMs
#[derive(Debug, Parser)]
#[command(name = "tools/bench", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Boot(boot::Args),
}

fn main() -> ExitCode {
    let Command::Boot(args) = Args::parse().command;
    match boot::run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("bench: error: {error}");
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Args::command().debug_assert();
    }
}
