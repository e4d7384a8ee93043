//! The MC146818 CMOS clock: where a guest's kernel gets the date at boot.
//!
//! Shows the host's time in UTC, in BCD and 24-hour form, as PC firmware leaves the chip (Motorola
//! MC146818A data sheet, "Time, calendar and alarm bytes"). There are no alarms and no interrupts, and
//! setting the time has no effect: the host's clock is not the guest's to set, and a guest that keeps
//! its own time does so from kvm-clock. The rest of the CMOS memory stores bytes.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::bus::{Action, BusDevice};

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
    state: Mutex<RtcState>,
    now: fn() -> SystemTime,
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
            state: Mutex::new(RtcState {
                index: 0,
                memory: vec![0; CMOS_LEN],
            }),
            now,
        }
    }

    /// The state to carry on from elsewhere.
    pub fn save(&self) -> RtcState {
        self.lock().clone()
    }

    /// Carries on from `state`.
    pub fn restore(&self, state: &RtcState) {
        let mut memory = state.memory.clone();
        memory.resize(CMOS_LEN, 0);
        *self.lock() = RtcState {
            index: state.index % CMOS_LEN as u8,
            memory,
        };
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, RtcState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn register(&self, state: &RtcState) -> u8 {
        let clock = || Calendar::from(self.now_utc());
        match state.index {
            SECONDS => bcd(clock().second),
            MINUTES => bcd(clock().minute),
            HOURS => bcd(clock().hour),
            DAY_OF_WEEK => bcd(clock().weekday),
            DAY_OF_MONTH => bcd(clock().day),
            MONTH => bcd(clock().month),
            YEAR => bcd((clock().year % 100) as u8),
            CENTURY => bcd((clock().year / 100) as u8),
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

    /// Seconds since 1970 in UTC; a host whose clock is before that shows 1970.
    fn now_utc(&self) -> u64 {
        (self.now)()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs()
    }
}

impl BusDevice for Rtc {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if let (1, [byte]) = (offset, data) {
            let state = self.lock();
            *byte = self.register(&state);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Action {
        if let [value] = *data {
            let mut state = self.lock();
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

#[derive(Debug, PartialEq, Eq)]
struct Calendar {
    year: u64,
    month: u8,
    day: u8,
    /// 1 is Sunday.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl From<u64> for Calendar {
    /// From seconds since 1970, in the proleptic Gregorian calendar.
    fn from(seconds: u64) -> Self {
        const DAYS_IN_400_YEARS: u64 = 146_097;
        let (days, rest) = (seconds / 86_400, seconds % 86_400);
        // Years that begin in March put the leap day last, which makes a month's start a linear function.
        // 719,468 days lie between 1 March of the year 0 and 1 January 1970.
        let shifted = days + 719_468;
        let era = shifted / DAYS_IN_400_YEARS;
        let day_of_era = shifted % DAYS_IN_400_YEARS;
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        Self {
            year: year_of_era + era * 400 + u64::from(month <= 2),
            month: month as u8,
            day: (day_of_year - (153 * march_month + 2) / 5 + 1) as u8,
            weekday: ((days + 4) % 7 + 1) as u8,
            hour: (rest / 3_600) as u8,
            minute: (rest % 3_600 / 60) as u8,
            second: (rest % 60) as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn the_calendar_agrees_with_the_c_library() {
        for seconds in (0..8_000_000_000_u64).step_by(86_400 * 13 + 3_607) {
            let time = seconds as libc::time_t;
            // SAFETY: an all-zero tm is valid, and gmtime_r writes only to it.
            let tm = unsafe {
                let mut tm = std::mem::zeroed();
                assert!(!libc::gmtime_r(&time, &mut tm).is_null());
                tm
            };
            let expect = Calendar {
                year: tm.tm_year as u64 + 1900,
                month: tm.tm_mon as u8 + 1,
                day: tm.tm_mday as u8,
                weekday: tm.tm_wday as u8 + 1,
                hour: tm.tm_hour as u8,
                minute: tm.tm_min as u8,
                second: tm.tm_sec as u8,
            };
            assert_eq!(Calendar::from(seconds), expect, "{seconds}");
        }
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
