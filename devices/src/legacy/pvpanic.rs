//! pvpanic: how a guest's kernel tells the host that it panicked (QEMU, `docs/specs/pvpanic.rst`).
//!
//! Announced in the DSDT as `QEMU0001`; stock kernels load a driver for it by themselves.

use crate::bus::{Action, BusDevice};
use crate::limit::LogLimit;

/// The event port.
#[derive(Debug, Default)]
pub struct PvPanic {
    limit: LogLimit,
}

impl PvPanic {
    /// Port of the device.
    pub const PORT: u64 = 0x505;
    /// Bytes on the bus.
    pub const LEN: u64 = 1;

    /// The guest panicked and nobody in it will do anything about that.
    const PANICKED: u8 = 1 << 0;
    /// The guest panicked and runs its crash kernel.
    const CRASH_LOADED: u8 = 1 << 1;
}

impl BusDevice for PvPanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = Self::PANICKED | Self::CRASH_LOADED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Action {
        let events = data.first().copied().unwrap_or_default();
        if events & Self::PANICKED != 0 {
            return Action::Panicked;
        }
        if events & Self::CRASH_LOADED != 0 && self.limit.allow() {
            log::warn!("the guest's kernel panicked and runs its crash kernel");
        }
        Action::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_the_guest_and_a_crash_kernel_does_not() {
        let pvpanic = PvPanic::default();
        assert_eq!(pvpanic.write(0, &[1]), Action::Panicked);
        assert_eq!(pvpanic.write(0, &[2]), Action::Continue);
        assert_eq!(pvpanic.write(0, &[0]), Action::Continue);
        let mut data = [0];
        pvpanic.read(0, &mut data);
        assert_eq!(data, [3]);
    }
}
