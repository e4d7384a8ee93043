//! When a VM's first vCPU enters the guest, seen from outside and alike for every VMM: by the kernel's `kvm_entry`
//! tracepoint.
//!
//! The trace instance's clock is CLOCK_MONOTONIC. It follows
//! our own process and, by `event-fork`, all that it starts, with their threads. A trigger switches the instance off at
//! the first event, in the kernel: each boot leaves one record, and nobody is woken up. (The trigger needs a filter, any
//! filter: without one it fires before the event is recorded.)

use std::io;

use crate::tracefs::Instance;

const EVENT: &str = "kvm/kvm_entry";

/// The trace instance.
#[derive(Debug)]
pub struct EntryTrace(Instance);

impl EntryTrace {
    /// Makes it. The error says what is missing.
    pub fn new() -> Result<Self, String> {
        let trace = Instance::new("entry", EVENT)?;
        let own = std::process::id().to_string();
        trace.write("tracing_on", "0")?;
        trace.write("trace_clock", "mono")?;
        trace.write("buffer_size_kb", "8")?;
        trace.write("set_event_pid", &own)?;
        trace.write("options/event-fork", "1")?;
        trace.write("events/kvm/kvm_entry/trigger", "traceoff if vcpu_id >= 0")?;
        trace.write("events/kvm/kvm_entry/enable", "1")?;
        Ok(Self(trace))
    }

    /// Forgets what was and waits for the next first entry.
    pub fn arm(&self) -> Result<(), String> {
        self.0.write("tracing_on", "0")?;
        self.0.write("trace", "")?;
        self.0.write("tracing_on", "1")
    }

    /// The first entry since then, in nanoseconds of CLOCK_MONOTONIC.
    pub fn first(&self) -> io::Result<Option<u64>> {
        let text = self.0.read("trace")?;
        Ok(text.lines().find_map(parse))
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
