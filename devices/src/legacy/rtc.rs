//! The MC146818 CMOS clock: where a guest's kernel gets the date at boot.
//!
//! Shows the host's time in UTC, in BCD and 24-hour form, as PC firmware leaves the chip (Motorola
//! MC146818A data sheet, "Time, calendar and alarm bytes"). There are no alarms and no interrupts, and
//! setting the time has no effect: the host's clock is not the guest's to set, and a guest that keeps
//! its own time does so from kvm-clock. The rest of the CMOS memory stores bytes.

use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::bus::{Action, BusDevice};
use crate::utc::Utc;

/// Bytes of CMOS memory, the clock's registers included.
const CMOS_LEN: usize = 128;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const DAY_OF_WEEK: u8 = 0x06;
const DAY_OF_MONTH: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
/// Offset of the century register, as the FADT announces it.
pub const CENTURY: u8 = 0x32;

/// 32.768 kHz time base and the usual rate; "update in progress" is never set.
const STATUS_A_VALUE: u8 = 0x26;
/// 24-hour form, BCD.
const STATUS_B_VALUE: u8 = 0x02;
/// The battery is good.
const STATUS_D_VALUE: u8 = 0x80;

/// The clock and its CMOS memory.
pub struct Rtc {
    registers: Mutex<Registers>,
    now: fn() -> SystemTime,
}

struct Registers {
    state: RtcState,
    /// The time that is being read, register by register.
    latched: Option<Utc>,
}

/// Saved [`Rtc`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RtcState {
    /// Register that the data port shows, 0 to 127.
    pub index: u8,
    /// CMOS memory, [`CMOS_LEN`] bytes; shorter counts as filled up with zeros.
    pub memory: Vec<u8>,
}

impl Default for Rtc {
    fn default() -> Self {
        Self::with_clock(SystemTime::now)
    }
}

impl Rtc {
    /// First port: the index register; the data register follows.
    pub const PORT: u64 = 0x70;
    /// Bytes on the bus.
    pub const LEN: u64 = 2;

    fn with_clock(now: fn() -> SystemTime) -> Self {
        Self {
            registers: Mutex::new(Registers {
                state: RtcState {
                    index: 0,
                    memory: vec![0; CMOS_LEN],
                },
                latched: None,
            }),
            now,
        }
    }

    /// The state to carry on from elsewhere.
    pub fn save(&self) -> RtcState {
        self.lock().state.clone()
    }

    /// Carries on from `state`.
    pub fn restore(&self, state: &RtcState) {
        let mut memory = state.memory.clone();
        memory.resize(CMOS_LEN, 0);
        self.lock().state = RtcState {
            index: state.index % CMOS_LEN as u8,
            memory,
        };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, Registers { state, latched }: &mut Registers) -> u8 {
        // Whoever begins to read the time looks at "update in progress" or at the seconds first. What follows is of the same
        // moment, so that the hour does not change between its minute and itself.
        if matches!(state.index, STATUS_A | SECONDS) {
            *latched = None;
        }
        let mut time = || *latched.get_or_insert_with(|| Utc::from((self.now)()));
        match state.index {
            SECONDS => bcd(time().second),
            MINUTES => bcd(time().minute),
            HOURS => bcd(time().hour),
            // Sunday is 1 here.
            DAY_OF_WEEK => bcd(time().weekday + 1),
            DAY_OF_MONTH => bcd(time().day),
            MONTH => bcd(time().month),
            YEAR => bcd((time().year % 100) as u8),
            CENTURY => bcd((time().year / 100) as u8),
            STATUS_A => STATUS_A_VALUE,
            STATUS_B => STATUS_B_VALUE,
            STATUS_C => 0,
            STATUS_D => STATUS_D_VALUE,
            index => state
                .memory
                .get(usize::from(index))
                .copied()
                .unwrap_or_default(),
        }
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (1, [byte]) = (offset, data) {
            let mut registers = self.lock();
            *byte = self.register(&mut registers);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if let [value] = *data {
            let state = &mut self.lock().state;
            if offset == 0 {
                // Bit 7 masks the NMI on a PC; nothing here raises one.
                state.index = value % CMOS_LEN as u8;
            } else {
                let index = usize::from(state.index);
                if let Some(byte) = state.memory.get_mut(index) {
                    *byte = value;
                }
            }
        }
        Action::Continue
    }
}

fn bcd(value: u8) -> u8 {
    ((value / 10) << 4) | (value % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn read(rtc: &Rtc, index: u8) -> u8 {
        let _ = rtc.write(0, &[index]);
        let mut data = [0xff];
        rtc.read(1, &mut data);
        data[0]
    }

    #[test]
    fn shows_the_time_in_bcd() {
        // 2024-02-29 23:58:07 UTC, a Thursday.
        let rtc = Rtc::with_clock(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_709_251_087));
        let shown =
            [CENTURY, YEAR, MONTH, DAY_OF_MONTH, HOURS, MINUTES, SECONDS].map(|i| read(&rtc, i));
        assert_eq!(shown, [0x20, 0x24, 0x02, 0x29, 0x23, 0x58, 0x07]);
        assert_eq!(read(&rtc, DAY_OF_WEEK), 5);
        assert_eq!(read(&rtc, STATUS_A) & 0x80, 0, "never in an update");
        assert_eq!(read(&rtc, STATUS_B), 0x02);
        assert_eq!(read(&rtc, STATUS_D), 0x80);
    }

    #[test]
    fn memory_is_kept_and_the_time_is_not_settable() {
        let rtc = Rtc::with_clock(|| SystemTime::UNIX_EPOCH);
        let _ = rtc.write(0, &[0x80 | 0x40]);
        let _ = rtc.write(1, &[0xab]);
        assert_eq!(read(&rtc, 0x40), 0xab);
        let _ = rtc.write(0, &[YEAR]);
        let _ = rtc.write(1, &[0x99]);
        assert_eq!(read(&rtc, YEAR), 0x70);

        let other = Rtc::default();
        other.restore(&rtc.save());
        assert_eq!(read(&other, 0x40), 0xab);
        other.restore(&RtcState {
            index: 255,
            memory: vec![],
        });
        assert_eq!(read(&other, 0x7f), 0);
    }

    #[test]
    fn wide_accesses_do_nothing() {
        let rtc = Rtc::default();
        assert_eq!(rtc.write(0, &[0x40, 0xab]), Action::Continue);
        let mut data = [0xff; 4];
        rtc.read(0, &mut data);
        assert_eq!(data, [0xff; 4]);
    }
}
