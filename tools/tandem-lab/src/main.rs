//! tandem-lab

fn main() {}
