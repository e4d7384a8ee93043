//! The debug console on port 0xe9, as Bochs and QEMU (`isa-debugcon`) have it: a guest's early code
//! writes text there before any driver runs, and its lines go to the VMM's log at level debug, so many a minute.

use std::sync::{Mutex, PoisonError};

use crate::bus::{Action, BusDevice};
use crate::limit::LogLimit;

/// Collects bytes into lines for the log.
#[derive(Debug, Default)]
pub struct DebugConsole {
    line: Mutex<Vec<u8>>,
    limit: LogLimit,
}

impl DebugConsole {
    /// Port of the device.
    pub const PORT: u64 = 0xe9;
    /// Bytes on the bus.
    pub const LEN: u64 = 1;
    /// What a read returns, by which a guest knows that the port is there.
    pub const SIGNATURE: u8 = 0xe9;
    /// Longest line in bytes; a longer one is logged in pieces.
    const MAX_LINE: usize = 256;
}

impl BusDevice for DebugConsole {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(Self::SIGNATURE);
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Action {
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in data {
            if byte != b'\n' {
                line.push(byte);
            }
            if byte == b'\n' || line.len() >= Self::MAX_LINE {
                if log::log_enabled!(log::Level::Debug) && self.limit.allow() {
                    log::debug!("guest debug port: {}", line.escape_ascii());
                }
                line.clear();
            }
        }
        Action::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_one_line_at_most() {
        let console = DebugConsole::default();
        for _ in 0..10_000 {
            assert_eq!(console.write(0, b"xyz"), Action::Continue);
            assert!(console.line.lock().unwrap().len() < DebugConsole::MAX_LINE);
        }
        let _ = console.write(0, b"\n");
        assert!(console.line.lock().unwrap().is_empty());
        let mut data = [0; 1];
        console.read(0, &mut data);
        assert_eq!(data, [0xe9]);
    }
}
