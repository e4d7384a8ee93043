//! Which system calls a VMM makes for a job: counted in the kernel, by a histogram on the tracepoint of all system calls.
//!
//! It counts for each thread and call. Whose threads are the VMM's is seen when a job is over: what ended before that is not
//! counted. Counting makes calls slower: it is for a round of its own.

use std::collections::BTreeMap;
use std::fs;

use crate::tracefs::Instance;

const EVENT: &str = "raw_syscalls/sys_enter";
const TRIGGER: &str = "events/raw_syscalls/sys_enter/trigger";
const HISTOGRAM: &str = "events/raw_syscalls/sys_enter/hist";
const KEYS: &str = "hist:keys=common_pid,id.syscall:size=8192";

/// The histogram.
#[derive(Debug)]
pub struct Calls(Instance);

impl Calls {
    /// Begins to count. The error says what is missing.
    pub fn new() -> Result<Self, String> {
        let trace = Instance::new("calls", EVENT)?;
        trace.write(TRIGGER, KEYS)?;
        Ok(Self(trace))
    }

    /// Calls that the threads of a process have made since then, by their names.
    pub fn of(&self, pid: i32) -> Result<BTreeMap<String, u64>, String> {
        let text = self.0.read(HISTOGRAM);
        let text =
            text.map_err(|error| format!("cannot read the system calls' histogram: {error}"))?;
        let threads = fs::read_dir(format!("/proc/{pid}/task"));
        let threads: Vec<u32> = threads
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        let mut calls = BTreeMap::new();
        for (thread, name, count) in text.lines().filter_map(parse) {
            if threads.contains(&thread) {
                *calls.entry(name.to_owned()).or_default() += count;
            }
        }
        Ok(calls)
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.0.write(TRIGGER, &format!("!{KEYS}"));
    }
}

/// `{ common_pid:  12, id: sys_read  [  0] } hitcount:  34`: thread, name and count.
fn parse(line: &str) -> Option<(u32, &str, u64)> {
    let (_, rest) = line.split_once("common_pid:")?;
    let (thread, rest) = rest.split_once(',')?;
    let (_, rest) = rest.split_once("id:")?;
    let (name, rest) = rest.split_once('[')?;
    let (_, count) = rest.split_once("hitcount:")?;
    Some((
        thread.trim().parse().ok()?,
        name.trim().trim_start_matches("sys_"),
        count.trim().parse().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_histogram() {
        let line = "{ common_pid:        842, id: sys_io_uring_enter            [426] } hitcount:       1234";
        assert_eq!(parse(line), Some((842, "io_uring_enter", 1234)));
        assert_eq!(parse("# event histogram"), None);
        assert_eq!(parse("Totals:"), None);
        assert_eq!(parse("    Hits: 1234"), None);
    }
}
