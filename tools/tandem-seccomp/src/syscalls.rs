//! Names and numbers of system calls on x86_64 (arch/x86/entry/syscalls/syscall_64.tbl).

/// One call a line, `NUMBER NAME`, by number.
pub const TABLE: &str = include_str!("../../../resources/seccomp/syscalls-x86_64");

/// All of them.
pub fn all() -> impl Iterator<Item = (i64, &'static str)> {
    TABLE.lines().filter_map(|line| {
        let (number, name) = line.split_once(' ')?;
        Some((number.parse().ok()?, name))
    })
}

/// The number of a call.
pub fn number(name: &str) -> Option<i64> {
    all()
        .find(|(_, known)| *known == name)
        .map(|(number, _)| number)
}

/// The name of a call.
pub fn name(number: i64) -> Option<&'static str> {
    all()
        .find(|(known, _)| *known == number)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_libcs() {
        for (wanted, call) in [
            (libc::SYS_read, "read"),
            (libc::SYS_ioctl, "ioctl"),
            (libc::SYS_exit_group, "exit_group"),
            (libc::SYS_io_uring_enter, "io_uring_enter"),
            (libc::SYS_landlock_restrict_self, "landlock_restrict_self"),
            (libc::SYS_futex_waitv, "futex_waitv"),
            (libc::SYS_mseal, "mseal"),
        ] {
            assert_eq!(number(call), Some(wanted), "{call}");
            assert_eq!(name(wanted), Some(call));
        }
        let numbers: Vec<_> = all().map(|(number, _)| number).collect();
        assert!(numbers.is_sorted_by(|a, b| a < b));
        assert_eq!(numbers.len(), TABLE.lines().count());
    }
}
