//! tandem-vmm

fn main() {}
