//! The i8042 keyboard controller, as far as its reset line: the oldest way to restart a PC, and the one
//! that Linux takes with `reboot=k`.
//!
//! Written here rather than taken from vm-superio, whose model reports the reset by a callback where this
//! project's devices return an [`Action`]. No keyboard answers; the FADT says that there is none.

use crate::bus::{Action, BusDevice};

/// Ports 0x60 (data) to 0x64 (status and command).
#[derive(Debug, Default)]
pub struct I8042;

impl I8042 {
    /// First port.
    pub const PORT: u64 = 0x60;
    /// Bytes on the bus. What lies between data and command port is not the i8042's and reads as zero.
    pub const LEN: u64 = 5;

    const COMMAND: u64 = 4;
    /// "Pulse output port bit 0 low": bit 0 is the CPU's reset line.
    const PULSE_RESET: u8 = 0xfe;
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Status zero: input buffer empty, so commands are taken; output buffer empty, so no key.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if offset == Self::COMMAND && data == [Self::PULSE_RESET] {
            Action::Reset
        } else {
            Action::Continue
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resets_on_the_pulse_command_only() {
        let i8042 = I8042;
        assert_eq!(i8042.write(4, &[0xfe]), Action::Reset);
        assert_eq!(i8042.write(0, &[0xfe]), Action::Continue);
        assert_eq!(i8042.write(4, &[0xff]), Action::Continue);
        let mut status = [0xff];
        i8042.read(4, &mut status);
        assert_eq!(status, [0]);
    }
}
