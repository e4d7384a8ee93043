//! What each thread of the VM process does before its work: it gives up what it will not need.
//!
//! The library knows what its threads are, the program knows what it may take from them (system call filters, say). So the
//! program hands in a function with [`Host`](crate::machine::Host), and every thread calls it with its [`Role`], first
//! thing: before it has seen anything of the guest's. The main thread calls it when all threads of the machine are
//! there and the guest has not run yet.

use std::io;

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The event loop: signals, input, requests. Threads that are started later are started by it, and have no more than it
    /// has.
    Main,
    /// Runs a vCPU.
    Vcpu,
    /// Does the work of devices.
    Io,
    /// Writes what serial port or virtio console print.
    Console,
}

/// Confines the calling thread to what its role needs, for good.
pub type Confine = fn(Role) -> io::Result<()>;

/// A [`Confine`] that takes nothing away.
///
/// # Errors
/// None.
pub fn unconfined(_role: Role) -> io::Result<()> {
    Ok(())
}
