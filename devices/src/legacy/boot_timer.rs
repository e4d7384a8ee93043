//! The boot timer: one MMIO byte by which a guest's init says that it runs.
//!
//! Firecracker's guests write 123 to the first byte of its MMIO window (`resources/overlay/.../init.c`
//! in its tree); the same guests work here.

use crate::bus::{Action, BusDevice};

/// Turns the magic byte into [`Action::InitReached`].
#[derive(Debug, Default)]
pub struct BootTimer;

impl BootTimer {
    /// What init writes.
    pub const MAGIC: u8 = 123;
    /// Bytes on the bus: a page, so that a guest can map it.
    pub const LEN: u64 = 0x1000;
}

impl BusDevice for BootTimer {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if offset == 0 && data.first() == Some(&Self::MAGIC) {
            Action::InitReached
        } else {
            Action::Continue
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_magic_byte_at_the_start_counts() {
        let timer = BootTimer;
        assert_eq!(timer.write(0, &[123]), Action::InitReached);
        assert_eq!(timer.write(0, &[123, 0, 0, 0]), Action::InitReached);
        assert_eq!(timer.write(1, &[123]), Action::Continue);
        assert_eq!(timer.write(0, &[122]), Action::Continue);
        assert_eq!(timer.write(0, &[]), Action::Continue);
    }
}
