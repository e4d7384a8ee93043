//! Compiles the seccomp policy, and the table of system calls' names.

use std::error::Error;
use std::path::Path;
use std::{env, fs};

use tandem_seccomp::policy::Policy;
use tandem_seccomp::{compiled, syscalls};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let out = env::var("OUT_DIR")?;
    let out = Path::new(&out);
    let resources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resources/seccomp");
    let policy = resources.join("policy.json");
    println!("cargo::rerun-if-changed={}", policy.display());
    let policy = Policy::parse(&fs::read_to_string(policy)?)?;
    fs::write(out.join("seccomp.bpf"), compiled::file(&policy)?)?;
    fs::write(out.join("syscalls"), syscalls::TABLE)?;
    Ok(())
}
