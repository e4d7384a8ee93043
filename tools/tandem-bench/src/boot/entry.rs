//! When a VM's first vCPU enters the guest, seen from outside and alike for every VMM: by the kernel's `kvm_entry`
//! tracepoint.
//!
//! A trace instance of our own keeps out of the way of other users of tracefs. Its clock is CLOCK_MONOTONIC. It follows
//! our own process and, by `event-fork`, all that it starts, with their threads. A trigger switches the instance off at
//! the first event, in the kernel: each boot leaves one record, and nobody is woken up. (The trigger needs a filter, any
//! filter: without one it fires before the event is recorded.)

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The trace instance.
#[derive(Debug)]
pub struct EntryTrace {
    dir: PathBuf,
}

impl EntryTrace {
    /// Makes it. The error says what is missing.
    pub fn new() -> Result<Self, String> {
        let root = TRACEFS
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("instances").is_dir())
            .ok_or("tracefs is not mounted, or this is not root (mount -t tracefs tracefs /sys/kernel/tracing)")?;
        if !root.join("events/kvm/kvm_entry").is_dir() {
            return Err("the kernel has no kvm_entry tracepoint".into());
        }
        let dir = root.join(format!("instances/tandem-bench-{}", std::process::id()));
        fs::create_dir(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
        let trace = Self { dir };
        let own = std::process::id().to_string();
        trace
            .write("tracing_on", "0")
            .and_then(|()| trace.write("trace_clock", "mono"))
            .and_then(|()| trace.write("buffer_size_kb", "8"))
            .and_then(|()| trace.write("set_event_pid", &own))
            .and_then(|()| trace.write("options/event-fork", "1"))
            .and_then(|()| trace.write("events/kvm/kvm_entry/trigger", "traceoff if vcpu_id >= 0"))
            .and_then(|()| trace.write("events/kvm/kvm_entry/enable", "1"))?;
        Ok(trace)
    }

    fn write(&self, file: &str, text: &str) -> Result<(), String> {
        let path = self.dir.join(file);
        fs::write(&path, text)
            .map_err(|error| format!("cannot write to {}: {error}", path.display()))
    }

    /// Forgets what was and waits for the next first entry.
    pub fn arm(&self) -> Result<(), String> {
        self.write("tracing_on", "0")?;
        self.write("trace", "")?;
        self.write("tracing_on", "1")
    }

    /// The first entry since then, in nanoseconds of CLOCK_MONOTONIC.
    pub fn first(&self) -> io::Result<Option<u64>> {
        let text = fs::read_to_string(self.dir.join("trace"))?;
        Ok(text.lines().find_map(parse))
    }
}

impl Drop for EntryTrace {
    fn drop(&mut self) {
        // The event is switched off with its instance. Nobody is left to be told if that fails.
        let _ = self.write("events/kvm/kvm_entry/enable", "0");
        let _ = fs::remove_dir(&self.dir);
    }
}

/// `task-1234    [000] d....  12.345678: kvm_entry: vcpu 0, ...`: the seconds, whatever stands in the task's name.
fn parse(line: &str) -> Option<u64> {
    let (before, _) = line.split_once(": kvm_entry: ")?;
    let (seconds, fraction) = before.rsplit(' ').next()?.split_once('.')?;
    // The kernel prints microseconds.
    let micros: u64 = fraction.parse().ok().filter(|_| fraction.len() == 6)?;
    Some((seconds.parse::<u64>().ok()? * 1_000_000 + micros) * 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_stamps_of_trace_lines() {
        let line = "           fc_vcpu 0-471     [000] d....    12.000345: kvm_entry: vcpu 0, rip 0x1000000";
        assert_eq!(parse(line), Some(12_000_345_000));
        let odd = "     vcpu: 1.5 x-9  [001] ...1.  7.100000: kvm_entry: vcpu 0, rip 0xfff0";
        assert_eq!(parse(odd), Some(7_100_000_000));
        assert_eq!(parse("# tracer: nop"), None);
        assert_eq!(parse("x-1 [000] 12.3: kvm_exit: reason"), None);
    }
}
