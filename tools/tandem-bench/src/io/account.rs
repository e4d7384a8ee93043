//! What a VMM's process has used.

use std::collections::BTreeMap;
use std::fs;

use crate::sys;

/// What stands on a process's account.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Nanoseconds of the monotonic clock.
    pub at_ns: u64,
    /// CPU time until then in milliseconds.
    pub cpu_ms: f64,
    /// KVM's counters, by their names.
    pub kvm: BTreeMap<&'static str, u64>,
    /// System calls, where they are counted.
    pub calls: BTreeMap<String, u64>,
}

impl Account {
    /// Of that process.
    pub fn of(pid: i32, at_ns: u64) -> Self {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let ticks = cpu_ticks(&stat).unwrap_or(0);
        Self {
            at_ns,
            cpu_ms: ticks as f64 * 1e3 / sys::ticks_per_second() as f64,
            kvm: kvm_counters(pid),
            calls: BTreeMap::new(),
        }
    }
}

/// Fields 14 and 15 of proc(5)'s stat, user and system time of all threads that are or were; the second field is a name in
/// brackets that may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Of /sys/kernel/debug/kvm/PID-FD.
const COUNTERS: [&str; 7] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "irq_exits",
    "irq_injections",
    "signal_exits",
];

fn kvm_counters(pid: i32) -> BTreeMap<&'static str, u64> {
    let start = format!("{pid}-");
    let dirs = fs::read_dir("/sys/kernel/debug/kvm");
    let dir = dirs.into_iter().flatten().flatten().find(|entry| {
        let name = entry.file_name();
        name.to_string_lossy().starts_with(&start)
    });
    let Some(dir) = dir else {
        return BTreeMap::new();
    };
    let read = |name| {
        fs::read_to_string(dir.path().join(name))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    COUNTERS
        .into_iter()
        .filter_map(|name| Some((name, read(name)?)))
        .collect()
}

/// What came between two accounts; what did not change is left out.
pub fn difference<K: Ord>(end: BTreeMap<K, u64>, begin: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    let since = |key: &K, end: u64| end.saturating_sub(begin.get(key).copied().unwrap_or(0));
    end.into_iter()
        .map(|(key, value)| {
            let value = since(&key, value);
            (key, value)
        })
        .filter(|(_, value)| *value > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_of_this_process() {
        let stat = "12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 70 30 1 2 3";
        assert_eq!(cpu_ticks(stat), Some(100));
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        assert!(cpu_ticks(&stat).is_some());
    }

    #[test]
    fn differences_are_of_what_has_changed() {
        let begin = BTreeMap::from([("a", 1), ("b", 2)]);
        let end = BTreeMap::from([("a", 5), ("b", 2), ("c", 3)]);
        assert_eq!(
            difference(end, &begin),
            BTreeMap::from([("a", 4), ("c", 3)])
        );
    }
}
