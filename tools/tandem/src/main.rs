//! `tandem`: runs VMs and containers, and says whether this machine can. For people; the VM
//! process itself is `tandem-vmm`.
//!
//! | module | what |
//! |---|---|
//! | `commands` | one module per command; a new command is a module and a variant there |
//! | `exit` | the exit codes that all commands share |
//! | `output` | writing for people: colour, width, a reader that goes away |
//!
//! `tools -> api_server -> vmm -> devices`: this crate may use all of them, none uses it.

mod commands;
mod exit;
mod output;

use clap::Parser;

/// Tandem runs microVMs on KVM and compares them with containers.
#[derive(Debug, Parser)]
#[command(
    name = "tandem",
    version,
    propagate_version = true,
    max_term_width = 80
)]
#[command(arg_required_else_help = true, subcommand_required = true)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

fn main() -> std::process::ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli.command.run(),
        Err(error) => {
            // --help and --version come here too. Nobody is left to tell if printing fails.
            let _ = error.print();
            if error.use_stderr() {
                exit::USAGE.into()
            } else {
                exit::OK.into()
            }
        }
    }
}
