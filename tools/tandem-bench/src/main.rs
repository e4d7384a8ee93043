//! Benchmarks that compare Tandem with other VMMs: one subcommand for each question.
//!
//! - [`api`]: how soon does a VMM's control socket answer, and how fast?
//! - [`boot`]: how fast and at what cost does a VM start? Cold boots of every VMM, interleaved.
//! - [`io`]: how fast and at what cost are a guest's disk and network? Jobs in every VMM's guest, interleaved.
//!
//! What the subcommands share: [`vmms`] and [`adapters`] for how to start each VMM, [`process`] for one that runs;
//! [`stats`], [`table`] and [`document`] for results, [`environment`] and [`binary`] for what they were measured on,
//! [`stage`] for files that shall not be read from a slow disk, [`smaps`] for memory, [`signals`] for Ctrl-C, [`random`]
//! for a reproducible order, [`tracefs`] for what the kernel can tell.

mod adapters;
mod api;
mod binary;
mod boot;
mod document;
mod environment;
mod error;
mod io;
mod process;
mod random;
mod signals;
mod smaps;
mod stage;
mod stats;
mod sys;
mod table;
mod tracefs;
mod vmms;

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
    Api(api::Args),
    Boot(boot::Args),
    Io(Box<io::Args>),
    #[command(hide = true)]
    Peer(io::peer::Args),
}

fn main() -> ExitCode {
    let outcome = match Args::parse().command {
        Command::Api(args) => api::run(&args),
        Command::Boot(args) => boot::run(&args),
        Command::Io(args) => io::run(&args),
        Command::Peer(args) => io::peer::run(&args),
    };
    match outcome {
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
