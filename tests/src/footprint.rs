//! Memory of a VM process outside its guest.

use std::fs;

/// Resident memory of process `pid` outside of guest memory, in KiB.
///
/// Guest memory, and the kernel file that is mapped into it, are the mappings without reservation (`nr` in
/// `/proc/PID/smaps`): nothing else in the VM process asks for such. Huge pages are not counted anywhere here.
///
/// # Panics
/// The process cannot be looked at, or has no guest memory.
pub fn outside_guest_kib(pid: u32) -> u64 {
    let smaps =
        fs::read_to_string(format!("/proc/{pid}/smaps")).expect("the process can be looked at");
    let (outside, guest) = count(&smaps);
    assert!(guest > 0, "no guest memory among these mappings:\n{smaps}");
    outside
}

/// Resident KiB outside of guest memory and in it.
fn count(smaps: &str) -> (u64, u64) {
    let (mut outside, mut guest, mut resident) = (0, 0, 0);
    for line in smaps.lines() {
        if let Some(size) = line.strip_prefix("Rss:") {
            resident = size
                .trim()
                .trim_end_matches(" kB")
                .parse()
                .expect("a size in kB");
        } else if let Some(flags) = line.strip_prefix("VmFlags:") {
            // The last line of each mapping.
            if flags.split_whitespace().any(|flag| flag == "nr") {
                guest += resident;
            } else {
                outside += resident;
            }
        }
    }
    (outside, guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_without_reservation_are_the_guests() {
        let smaps = "7f00-7f10 rw-p 0 00:00 0\nSize: 9 kB\nRss:                 300 kB\nVmFlags: rd wr mr mw me nr\n\
                     8000-8010 r-xp 0 00:00 0 /bin/x\nRss:   40 kB\nVmFlags: rd ex\n\
                     9000-9010 rw-p 0 00:00 0\nRss:   2 kB\nVmFlags: rd wr\n";
        assert_eq!(count(smaps), (42, 300));
    }
}
