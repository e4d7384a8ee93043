//! `tandem-lab-agent`: the first process of the emulated machine.

fn main() {
    tandem_lab::guest::main();
}
