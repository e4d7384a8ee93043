//! tandem-bench

fn main() {}
