//! `tandem-lab`: the host side of the lab. `tools/lab` builds and runs it.

fn main() {
    std::process::exit(tandem_lab::host::cli::main());
}
