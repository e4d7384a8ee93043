//! PCI: one bus of type-0 functions behind a host bridge, reached by ECAM and by configuration mechanism #1.
//!
//! | file     | what lives there                                                              |
//! |----------|-------------------------------------------------------------------------------|
//! | `config` | [`ConfigSpace`]: header, BAR, capability list, with what of them a guest may write |
//! | `msix`   | [`Msix`]: vector table and pending bits                                        |
//! | `root`   | [`PciRoot`], its host bridge, and the two ways into configuration space        |
//!
//! PCI Express Base Specification 5.0, chapters 6.1.4 (MSI-X), 7.2 (configuration access) and 7.5 (header);
//! PCI Local Bus Specification 3.0, 3.2.2.3.2 (mechanism #1).
//!
//! Functions are placed by the VMM before the guest runs, and the guest may move them: a BAR that is written anew moves
//! the function on the MMIO bus. There are no INTx lines: interrupts are MSI-X, delivered through a [`MsiSink`] that the
//! VMM implements, so nothing here knows an interrupt controller.

mod config;
mod msix;
mod root;

use std::io;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::Action;

pub use config::{ConfigSpace, Ids};
pub use msix::{Msix, MsixState};
pub use root::{ConfigPorts, Ecam, HostBridge, PciRoot, SlotTaken};

/// Configuration space of one function.
pub trait PciFunction: Send + Sync {
    /// Answers a read of `data.len()` bytes (1 to 8) at `offset` (below 4096); `data` comes filled with ones.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Takes a write of `data` at `offset`.
    fn write_config(&self, offset: u16, data: &[u8]) -> Action;
}

/// A message-signalled interrupt: what is written, and where to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address of the write.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Where a function's interrupts go: an event per vector, connected to the guest's interrupt controller.
pub trait MsiSink: Send + Sync {
    /// From now on the named vectors send these messages. Called with all changes at once, and only for vectors that
    /// can fire: each call may be costly.
    ///
    /// # Errors
    /// The interrupt controller refused; the vectors may be lost.
    fn route(&self, changes: &[(u16, MsiMessage)]) -> io::Result<()>;

    /// Sends the vector's message.
    ///
    /// # Errors
    /// It could not be sent.
    fn trigger(&self, vector: u16) -> io::Result<()>;

    /// An event that sends the vector's message when somebody else signals it, while it is connected. `None` where there is no
    /// such thing.
    fn event(&self, vector: u16) -> Option<EventFd> {
        let _ = vector;
        None
    }

    /// Connects the vector's [`event`](Self::event), or takes it away: what is signalled then waits for the next time. Called for
    /// vectors whose event was asked for.
    ///
    /// # Errors
    /// The interrupt controller refused.
    fn connect(&self, vector: u16, connected: bool) -> io::Result<()> {
        let _ = (vector, connected);
        Ok(())
    }
}

/// The part of `data` (an access at `offset`) that falls into `bytes`, which lie at 0; reads elsewhere give zeroes.
pub(crate) fn read_bytes(bytes: &[u8], offset: usize, data: &mut [u8]) {
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = bytes
            .get(offset.saturating_add(index))
            .copied()
            .unwrap_or(0);
    }
}
