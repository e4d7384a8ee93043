//! The VM process: boots one guest from one configuration and ends with it.
//!
//! | file       | what lives there                                                          |
//! |------------|---------------------------------------------------------------------------|
//! | `args`     | the command line                                                          |
//! | `logger`   | the log: format, level, destination                                       |
//! | `session`  | from arguments to the guest's end                                         |
//! | `sandbox`  | what the process gives up before the guest runs                           |
//! | `report`   | the boot timeline as JSON                                                 |
//!
//! Standard output carries the guest's serial port and nothing else. Messages of this program go to standard
//! error, one line each. Exit codes are those of [`vmm::exit`], and stand in `--help`.

mod args;
mod logger;
mod report;
mod sandbox;
mod session;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use vmm::exit;
use vmm::timeline::Start;

use args::Args;

fn main() -> ExitCode {
    let start = Start::now();
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            say(&args::in_one_line(&error));
            return ExitCode::from(exit::BAD_ARGUMENTS);
        }
        Err(help_or_version) => {
            // Standard output may be closed; that changes nothing.
            let _ = help_or_version.print();
            return ExitCode::SUCCESS;
        }
    };
    match session::run(&args, start) {
        Ok(reason) => {
            match reason.code() {
                0 => log::info!("{reason}"),
                _ => say(&reason),
            }
            ExitCode::from(reason.code())
        }
        Err(failure) => {
            say(&vmm::control::in_one_line(&failure));
            ExitCode::from(failure.exit_code())
        }
    }
}

/// Writes one line to standard error, in one piece: the log may be going there too.
fn say(message: &dyn Display) {
    let line = format!("tandem-vmm: {message}\n");
    // There is nobody to tell when standard error is closed; the exit code still says it.
    let _ = io::stderr().write_all(line.as_bytes());
}
