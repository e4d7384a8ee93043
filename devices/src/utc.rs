//! Date and time of day, in UTC.

use std::time::{Duration, SystemTime};

/// A second in the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Utc {
    /// Year, from 1970.
    pub year: u32,
    /// Month, 1 to 12.
    pub month: u8,
    /// Day of the month, from 1.
    pub day: u8,
    /// Day of the week, 0 for Sunday.
    pub weekday: u8,
    /// Hour, 0 to 23.
    pub hour: u8,
    /// Minute, 0 to 59.
    pub minute: u8,
    /// Second, 0 to 59.
    pub second: u8,
}

impl From<SystemTime> for Utc {
    /// A host whose clock is before 1970 shows 1970.
    fn from(time: SystemTime) -> Self {
        let seconds = time
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs() as _;
        // SAFETY: an all-zero tm is valid, and gmtime_r writes only to it. It fails for years beyond an int only,
        // and then leaves the zeros.
        let tm = unsafe {
            let mut tm = std::mem::zeroed();
            libc::gmtime_r(&seconds, &mut tm);
            tm
        };
        Self {
            year: (tm.tm_year + 1900) as u32,
            month: (tm.tm_mon + 1) as u8,
            day: tm.tm_mday as u8,
            weekday: tm.tm_wday as u8,
            hour: tm.tm_hour as u8,
            minute: tm.tm_min as u8,
            second: tm.tm_sec as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_calendar() {
        let at = |seconds| {
            let utc = Utc::from(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
            (
                utc.year,
                utc.month,
                utc.day,
                utc.weekday,
                utc.hour,
                utc.minute,
                utc.second,
            )
        };
        assert_eq!(at(0), (1970, 1, 1, 4, 0, 0, 0));
        assert_eq!(at(951_782_399), (2000, 2, 28, 1, 23, 59, 59));
        assert_eq!(at(951_782_400), (2000, 2, 29, 2, 0, 0, 0));
        assert_eq!(at(4_107_542_400), (2100, 3, 1, 1, 0, 0, 0));
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(Utc::from(before).year, 1970);
    }
}
