//! Memory of a process that is not the guest's, from `/proc/PID/smaps`.
//!
//! Guest memory is told from the VMM's own by size and place, for every VMM alike. Candidates are writable mappings that
//! are anonymous, of a memfd, of shared memory or of the kernel or initrd file (a VMM may map a kernel's segments into
//! guest memory). Candidates without a gap between them make a run; guest memory is the longest runs that together
//! reach the guest's size. A run can be longer than the guest's memory where the VMM's own memory happens to lie next to
//! it: of a run, the part that fits the guest's size best is taken. What then is still too much
//! (the kernel merges neighbours that are alike) is reported as `unsure_kib`: it is address space, not memory in use.

use serde::Serialize;

/// Memory in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident, outside guest memory: private and shared pages, program text included.
    pub own_rss_kib: u64,
    /// The same, shared pages counted in proportion to the processes that share them.
    pub own_pss_kib: u64,
    /// Of these, pages that are nobody else's and were written to.
    pub own_private_dirty_kib: u64,
    /// Resident, of guest memory.
    pub guest_rss_kib: u64,
    /// The same, in proportion.
    pub guest_pss_kib: u64,
    /// Address space taken for guest memory beyond the guest's size.
    pub unsure_kib: u64,
}

#[derive(Clone, Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    writable: bool,
    name: String,
    rss_kib: u64,
    pss_kib: u64,
    private_dirty_kib: u64,
}

impl Mapping {
    fn kib(&self) -> u64 {
        (self.end - self.start) / 1024
    }

    fn candidate(&self, files: &[&str]) -> bool {
        let name = self.name.as_str();
        let memory = name.is_empty()
            || name.starts_with("/memfd:")
            || name.starts_with("/dev/zero")
            || name.starts_with("/dev/shm/")
            || name.starts_with("/dev/hugepages")
            || name.starts_with("/anon_hugepage")
            || name.starts_with("[anon")
            || name.starts_with("/SYSV");
        (self.writable && memory) || files.contains(&name)
    }
}

/// Splits the memory of a process with a guest of `guest_mib` that booted from `files` (kernel and initrd).
/// None if no guest memory is found.
pub fn split(smaps: &str, guest_mib: u64, files: &[&str]) -> Option<Memory> {
    let mappings = parse(smaps)?;
    let mut runs = runs(&mappings, files);
    let kib = |run: &[usize]| run.iter().map(|&index| mappings[index].kib()).sum::<u64>();
    runs.sort_by_key(|run| std::cmp::Reverse(kib(run)));
    let mut guest: Vec<usize> = Vec::new();
    let mut missing = guest_mib * 1024;
    for run in runs {
        if missing == 0 {
            break;
        }
        let mut run = best_fit(&run, &mappings, missing);
        missing = missing.saturating_sub(kib(&run));
        guest.append(&mut run);
    }
    if missing > 0 {
        return None;
    }
    let mut memory = Memory {
        unsure_kib: kib(&guest) - guest_mib * 1024,
        ..Memory::default()
    };
    for (index, mapping) in mappings.iter().enumerate() {
        if guest.contains(&index) {
            memory.guest_rss_kib += mapping.rss_kib;
            memory.guest_pss_kib += mapping.pss_kib;
        } else {
            memory.own_rss_kib += mapping.rss_kib;
            memory.own_pss_kib += mapping.pss_kib;
            memory.own_private_dirty_kib += mapping.private_dirty_kib;
        }
    }
    Some(memory)
}

/// Candidates that follow one another without a gap, as indices.
fn runs(mappings: &[Mapping], files: &[&str]) -> Vec<Vec<usize>> {
    let mut runs: Vec<Vec<usize>> = Vec::new();
    let mut end = None;
    for (index, mapping) in mappings.iter().enumerate() {
        if !mapping.candidate(files) {
            end = None;
            continue;
        }
        match runs.last_mut() {
            Some(run) if end == Some(mapping.start) => run.push(index),
            _ => runs.push(vec![index]),
        }
        end = Some(mapping.end);
    }
    runs
}

/// The part of a run that reaches `needed_kib` with the least excess; all of it if nothing reaches that.
fn best_fit(run: &[usize], mappings: &[Mapping], needed_kib: u64) -> Vec<usize> {
    let mut best: (u64, &[usize]) = (u64::MAX, run);
    for from in 0..run.len() {
        let mut total = 0;
        for (to, &index) in run.iter().enumerate().skip(from) {
            total += mappings[index].kib();
            if total >= needed_kib {
                if total < best.0 {
                    best = (total, &run[from..=to]);
                }
                break;
            }
        }
    }
    best.1.to_vec()
}

fn parse(smaps: &str) -> Option<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in smaps.lines() {
        if let Some(mapping) = header(line) {
            mappings.push(mapping);
            continue;
        }
        let mapping = mappings.last_mut()?;
        let mut words = line.split_ascii_whitespace();
        let field = match words.next()? {
            "Rss:" => &mut mapping.rss_kib,
            "Pss:" => &mut mapping.pss_kib,
            "Private_Dirty:" => &mut mapping.private_dirty_kib,
            _ => continue,
        };
        *field = words.next()?.parse().ok()?;
    }
    Some(mappings)
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE NAME`
fn header(line: &str) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?;
    let name = words.nth(3).unwrap_or_default().trim();
    Some(Mapping {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        writable: permissions.contains('w'),
        name: name.strip_suffix(" (deleted)").unwrap_or(name).to_owned(),
        ..Mapping::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(range: &str, permissions: &str, name: &str, rss: u64) -> String {
        format!(
            "{range} {permissions} 00000000 00:00 0 {:20}{name}\nSize: 1 kB\nRss: {rss} kB\nPss: {} kB\n\
             Private_Dirty: {rss} kB\nVmFlags: rd wr mr mw me nr sd\n",
            "",
            rss / 2
        )
    }

    #[test]
    fn guest_memory_is_found_whole_and_in_pieces() {
        let own = mapping("400000-500000", "r-xp", "/bin/vmm", 600);
        let heap = mapping("600000-700000", "rw-p", "[heap]", 40);
        let whole = mapping("7f0000000000-7f0008000000", "rw-p", "", 5000);
        let memory = split(&(own.clone() + &heap + &whole), 128, &[]).unwrap();
        assert_eq!((memory.own_rss_kib, memory.own_pss_kib), (640, 320));
        assert_eq!((memory.guest_rss_kib, memory.unsure_kib), (5000, 0));

        let pieces = mapping("7f0000000000-7f0001000000", "rw-p", "", 10)
            + &mapping("7f0001000000-7f0002000000", "rw-p", "/tmp/k", 20)
            + &mapping("7f0002000000-7f0008000000", "rw-p", "", 30);
        let memory = split(&(own.clone() + &pieces), 128, &["/tmp/k"]).unwrap();
        assert_eq!((memory.own_rss_kib, memory.guest_rss_kib), (600, 60));
        assert_eq!(split(&(own + &pieces), 128, &[]), None);
    }

    #[test]
    fn neighbours_are_the_vmms_own() {
        let smaps = mapping("7efffffff000-7f0000000000", "rw-p", "", 4)
            + &mapping(
                "7f0000000000-7f0008000000",
                "rw-s",
                "/memfd:ram (deleted)",
                5000,
            )
            + &mapping("7f0008000000-7f0008200000", "rw-p", "", 8)
            + &mapping("7f0008200000-7f0108200000", "---p", "", 0);
        let memory = split(&smaps, 128, &[]).unwrap();
        assert_eq!((memory.own_rss_kib, memory.guest_rss_kib), (12, 5000));
        // A thread's stack before guest memory that ends in small pieces: only one part fits exactly.
        let smaps = mapping("7effffdff000-7f0000000000", "rw-p", "", 4)
            + &mapping("7f0000000000-7f0007e00000", "rw-p", "", 5000)
            + &mapping("7f0007e00000-7f0007fff000", "rw-p", "/tmp/i", 1900)
            + &mapping("7f0007fff000-7f0008000000", "rw-p", "", 4);
        let memory = split(&smaps, 128, &["/tmp/i"]).unwrap();
        assert_eq!((memory.own_rss_kib, memory.unsure_kib), (4, 0));
        // Neighbours that the kernel has merged cannot be told apart.
        let merged = mapping("7f0000000000-7f0008200000", "rw-p", "", 5008);
        assert_eq!(split(&merged, 128, &[]).unwrap().unsure_kib, 2048);
    }

    #[test]
    fn memory_around_the_hole_below_4_gib() {
        let smaps = mapping("7e0000000000-7e00c0000000", "rw-p", "", 100)
            + &mapping("7f0000000000-7f0040000000", "rw-p", "", 200)
            + &mapping("7f8000000000-7f8000200000", "rw-p", "", 7);
        let memory = split(&smaps, 4096, &[]).unwrap();
        assert_eq!((memory.own_rss_kib, memory.guest_rss_kib), (7, 300));
    }
}
