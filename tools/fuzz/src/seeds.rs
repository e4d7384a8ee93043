//! Inputs to begin with, and the proof that they reach what they are meant to.
//!
//! They are written in Rust, beside the target, and put into a directory when a target is started with
//! `TANDEM_FUZZ_SEEDS` set to its name (`tools/fuzz/run` does so). Each of them says which counters of the target it
//! moves; one that does not is an error, so a target cannot come to play in front of a closed door unnoticed.

use std::collections::BTreeMap;
use std::path::Path;
use std::{env, fs, process};

/// What a run has reached: counters of devices and of the target.
pub type Reached = BTreeMap<String, u64>;

/// An input to begin with.
#[derive(Clone, Debug)]
pub struct Seed {
    /// Its file's name.
    pub name: &'static str,
    /// The input.
    pub bytes: Vec<u8>,
    /// Counters that are not zero after it.
    pub reaches: &'static [&'static str],
}

/// One that reaches this.
pub fn seed(name: &'static str, bytes: Vec<u8>, reaches: &'static [&'static str]) -> Seed {
    Seed {
        name,
        bytes,
        reaches,
    }
}

/// Counters of a seed that are still zero after it.
fn missing(run: fn(&[u8]) -> Reached, seed: &Seed) -> Vec<&'static str> {
    let reached = run(&seed.bytes);
    let zero = |name: &&&str| reached.get(**name).is_none_or(|count| *count == 0);
    seed.reaches.iter().filter(zero).copied().collect()
}

/// Begins a target: checks and writes its seeds and ends the program, if that is asked for.
pub fn begin(run: fn(&[u8]) -> Reached, seeds: fn() -> Vec<Seed>) {
    let Some(directory) = env::var_os("TANDEM_FUZZ_SEEDS") else {
        return;
    };
    let mut code = 0;
    for seed in seeds() {
        let path = Path::new(&directory).join(seed.name);
        if let Err(error) = fs::write(&path, &seed.bytes) {
            eprintln!("cannot write {}: {error}", path.display());
            code = 1;
        }
        let missing = missing(run, &seed);
        if !missing.is_empty() {
            eprintln!(
                "the seed {} does not reach {}",
                seed.name,
                missing.join(", ")
            );
            code = 1;
        }
    }
    process::exit(code);
}

/// For the tests of targets.
///
/// # Panics
/// A seed does not reach what it is meant to.
#[cfg(test)]
pub fn check(run: fn(&[u8]) -> Reached, seeds: fn() -> Vec<Seed>) {
    for seed in seeds() {
        let missing = missing(run, &seed);
        let reached = run(&seed.bytes);
        assert!(
            missing.is_empty(),
            "{}: {missing:?} of {reached:?}",
            seed.name
        );
    }
}
