//! A device with its driver's side in memory and a real host's side: a Unix socket, and a tap where this process may have one.

mod harness;
mod stream;
mod taps;
