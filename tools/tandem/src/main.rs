//! tandem

fn main() {}
