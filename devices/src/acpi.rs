//! The hardware half of hardware-reduced ACPI: sleep and reset registers, and the event register that
//! the Generic Event Device's `_EVT` method reads.
//!
//! ACPI 6.5: section 4.8.3.7 (sleep control and status registers), 4.8.3.6 (reset register),
//! 5.6.9 (interrupt-signaled events) and 4.1 (hardware-reduced ACPI). The tables that point here are
//! built by the VMM crate.

use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Action, BusDevice};

/// `SLP_TYP` value that the `_S5` object names: soft off.
pub const SLEEP_TYPE_S5: u8 = 5;
/// What the guest writes into the reset register (FADT `RESET_VALUE`).
pub const RESET_VALUE: u8 = 1;

/// The sleep control, sleep status and reset registers, a byte each.
#[derive(Debug, Default)]
pub struct PowerRegisters;

impl PowerRegisters {
    /// Offset of the sleep control register.
    pub const SLEEP_CONTROL: u64 = 0;
    /// Offset of the sleep status register.
    pub const SLEEP_STATUS: u64 = 1;
    /// Offset of the reset register.
    pub const RESET: u64 = 2;
    /// Bytes on the bus.
    pub const LEN: u64 = 3;

    /// ACPI 6.5, table 4.21: bit 5 `SLP_EN`, bits 2 to 4 `SLP_TYPx`.
    const SLEEP_ENABLE: u8 = 1 << 5;
    const SLEEP_TYPE_SHIFT: u8 = 2;
    const SLEEP_TYPE_MASK: u8 = 7;
}

impl BusDevice for PowerRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Sleep control reads as zero, and no wake ever sets WAK_STS.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        let Some(value) = data.first().copied() else {
            return Action::Continue;
        };
        let sleep_type = (value >> Self::SLEEP_TYPE_SHIFT) & Self::SLEEP_TYPE_MASK;
        match offset {
            Self::SLEEP_CONTROL
                if value & Self::SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 =>
            {
                Action::PowerOff
            }
            Self::RESET if value == RESET_VALUE => Action::Reset,
            _ => Action::Continue,
        }
    }
}

/// What has happened and was not yet read by the guest's `_EVT` method.
///
/// The register clears when read, so each event is seen once however many vCPUs evaluate `_EVT`.
#[derive(Debug)]
pub struct EventRegister {
    pending: AtomicU8,
    interrupt: EventFd,
}

/// Saved [`EventRegister`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRegisterState {
    /// Event bits not yet read.
    pub pending: u8,
}

impl EventRegister {
    /// Bit of the power button.
    pub const POWER_BUTTON: u8 = 1 << 0;
    /// Bytes on the bus.
    pub const LEN: u64 = 1;

    /// A register whose events are announced by `interrupt` (edge-triggered).
    pub fn new(interrupt: EventFd) -> Self {
        Self {
            pending: AtomicU8::new(0),
            interrupt,
        }
    }

    /// Presses and releases the power button.
    ///
    /// # Errors
    /// The interrupt could not be raised; the event stays pending.
    pub fn press_power_button(&self) -> io::Result<()> {
        self.raise(Self::POWER_BUTTON)
    }

    fn raise(&self, event: u8) -> io::Result<()> {
        // The event must be visible before the interrupt that makes the guest look for it.
        self.pending.fetch_or(event, Ordering::Release);
        self.interrupt.write(1)
    }

    /// The state to carry on from elsewhere.
    pub fn save(&self) -> EventRegisterState {
        EventRegisterState {
            pending: self.pending.load(Ordering::Acquire),
        }
    }

    /// Carries on from `state`, and announces what is pending there.
    ///
    /// # Errors
    /// The interrupt could not be raised.
    pub fn restore(&self, state: &EventRegisterState) -> io::Result<()> {
        match state.pending {
            0 => Ok(()),
            events => self.raise(events),
        }
    }
}

impl BusDevice for EventRegister {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = self.pending.swap(0, Ordering::AcqRel);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Action {
        Action::Continue
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    #[test]
    fn only_s5_with_enable_switches_off() {
        let power = PowerRegisters;
        for value in 0..=u8::MAX {
            let action = power.write(PowerRegisters::SLEEP_CONTROL, &[value]);
            let expect = if value & 0x3c == 0x34 {
                Action::PowerOff
            } else {
                Action::Continue
            };
            assert_eq!(action, expect, "{value:#x}");
        }
    }

    #[test]
    fn only_the_reset_value_resets() {
        let power = PowerRegisters;
        assert_eq!(power.write(PowerRegisters::RESET, &[1]), Action::Reset);
        assert_eq!(power.write(PowerRegisters::RESET, &[0]), Action::Continue);
        assert_eq!(
            power.write(PowerRegisters::SLEEP_STATUS, &[1]),
            Action::Continue
        );
        assert_eq!(power.write(PowerRegisters::RESET, &[]), Action::Continue);
    }

    #[test]
    fn an_event_is_announced_and_read_once() {
        let interrupt = EventFd::new(EFD_NONBLOCK).unwrap();
        let register = EventRegister::new(interrupt.try_clone().unwrap());
        register.press_power_button().unwrap();
        assert_eq!(interrupt.read().unwrap(), 1);
        assert_eq!(register.save().pending, EventRegister::POWER_BUTTON);

        let mut data = [0xff; 4];
        register.read(0, &mut data);
        assert_eq!(data, [1, 0, 0, 0]);
        register.read(0, &mut data);
        assert_eq!(data, [0; 4]);

        register
            .restore(&EventRegisterState { pending: 1 })
            .unwrap();
        assert_eq!(interrupt.read().unwrap(), 1);
        assert_eq!(register.save().pending, 1);
    }
}
