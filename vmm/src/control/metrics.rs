//! The devices' counters, as lines of JSON: `{"utc_timestamp_ms": N, "block_ID": {"reads": N, ...}, ...}`.
//!
//! A line is written each minute, on SIGUSR2 and at the end, as Firecracker does it (its `docs/metrics.md`). Counters count from
//! the machine's start; of a device that is busy with something long, the line has what was known last: the difference of two lines is what happened in between.

use std::fs::File;
use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use devices::limit::LogLimit;
use serde_json::{Map, Value, json};
use vmm_sys_util::timerfd::TimerFd;

use crate::machine::Machine;

/// Time between two lines.
const PERIOD: Duration = Duration::from_secs(60);

/// Where the lines go.
#[derive(Debug)]
pub struct Metrics {
    file: File,
    timer: TimerFd,
    limit: LogLimit,
}

impl Metrics {
    /// Writes to `file`, which does not block.
    ///
    /// # Errors
    /// There is no timer to be had.
    pub fn new(file: File) -> io::Result<Self> {
        let errno = |error: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(error.errno());
        let mut timer = TimerFd::new().map_err(errno)?;
        timer.reset(PERIOD, Some(PERIOD)).map_err(errno)?;
        Ok(Self {
            file,
            timer,
            limit: LogLimit::default(),
        })
    }

    /// Readable when a line is due.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// The timer was seen.
    pub fn on_timer(&mut self, machine: &Machine) {
        let _ = self.timer.wait();
        self.write(machine);
    }

    /// Writes a line. Where it cannot be written, it is lost: a full disk or a FIFO that nobody reads does not hold up the guest.
    pub fn write(&mut self, machine: &Machine) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let mut line = Map::new();
        let now = now.unwrap_or_default().as_millis() as u64;
        line.insert("utc_timestamp_ms".into(), now.into());
        for (name, counters) in machine.counters() {
            let fields: Map<String, Value> = counters
                .into_iter()
                .map(|(counter, value)| (counter.into(), json!(value)))
                .collect();
            line.insert(name.into(), fields.into());
        }
        let text = format!("{}\n", Value::Object(line));
        if let Err(error) = self.file.write_all(text.as_bytes())
            && self.limit.allow()
        {
            log::warn!("cannot write metrics: {error}");
        }
    }
}
