//! `tandem-seccomp`: compiles a policy, or shows which rules a program needs.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use tandem_seccomp::policy::Policy;
use tandem_seccomp::{compiled, trace};

const USAGE: &str = "\
Usage: tandem-seccomp compile [--without RULE]... POLICY OUT
       tandem-seccomp compile --open OUT
       tandem-seccomp list POLICY
       tandem-seccomp trace POLICY DIR PROGRAM [ARGUMENT]...

compile  makes the file that `tandem-vmm --seccomp-filter` takes; --without leaves
         a rule out, as `list` prints it; --open makes filters that let all through
list     prints the rules
trace    becomes PROGRAM, watched by another process, which writes to a file in
         DIR, one line each: the rules that its calls need, and, behind '!', calls
         that no rule allows; threads are watched from their seccomp(2) on";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("tandem-seccomp: {problem}");
            ExitCode::FAILURE
        }
    }
}

fn read(path: &Path) -> Result<Policy, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Policy::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn run(arguments: &[OsString]) -> Result<(), String> {
    let words: Vec<_> = arguments.iter().map(|word| word.to_str()).collect();
    match words.as_slice() {
        [Some("compile"), Some("--open"), Some(out)] => write(out, &compiled::open_file()),
        [Some("compile"), options @ .., Some(policy), Some(out)] => {
            let mut policy = read(Path::new(policy))?;
            for option in options.chunks(2) {
                let [Some("--without"), Some(rule)] = option else {
                    return Err(USAGE.into());
                };
                policy = policy.without(rule).map_err(|error| error.to_string())?;
            }
            let file = compiled::file(&policy).map_err(|error| error.to_string())?;
            write(out, &file)
        }
        [Some("list"), Some(policy)] => {
            for rule in read(Path::new(policy))?.rules() {
                println!("{rule}");
            }
            Ok(())
        }
        [Some("trace"), Some(policy), Some(dir), _, ..] => {
            let policy = read(Path::new(policy))?;
            let program = arguments.get(3..).unwrap_or_default();
            Err(trace::become_watched(policy, PathBuf::from(dir), program))
        }
        _ => Err(USAGE.into()),
    }
}

fn write(path: &str, bytes: &[u8]) -> Result<(), String> {
    fs::write(path, bytes).map_err(|error| format!("{path}: {error}"))
}
