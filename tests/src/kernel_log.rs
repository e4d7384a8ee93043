//! Words by which a kernel says that something is wrong.

/// Words of a kernel that finds something wrong.
pub const COMPLAINTS: [&str; 19] = [
    "Unable to",
    "BUG",
    "WARNING:",
    "Oops",
    "ACPI Error",
    "ACPI BIOS Error",
    "ACPI Warning",
    "ACPI BIOS Warning",
    "[Firmware Bug]",
    "Unstable clock",
    "unstable",
    "calibration",
    "nobody cared",
    "MP-BIOS bug",
    "stuck",
    "general protection",
    "blocked for more than",
    "I/O error",
    "EXT4-fs error",
];

/// Complaints that are not about the machine: advice on a weakness of the host's CPU, which the guest shares; and the size of
/// the XSAVE area, in the lab: its emulated CPU does not let KVM see XSETBV, so CPUID 0xd keeps the size that it had before
/// (a guest of QEMU's says the same there).
pub const EXPECTED: [&str; 2] = [
    "Speculative Return Stack Overflow: WARNING: See",
    "arch/x86/kernel/fpu/xstate.c",
];

/// The lines that complain, of a kernel's messages.
pub fn complaints(text: &str) -> Vec<&str> {
    text.lines()
        .filter(|line| COMPLAINTS.iter().any(|word| line.contains(word)))
        .filter(|line| !EXPECTED.iter().any(|known| line.contains(known)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_no_complaint() {
        let text = "[    0.1] all is well\n[    0.2] BUG: soft lockup\n\
                    [    0.3] WARNING: CPU: 0 PID: 0 at arch/x86/kernel/fpu/xstate.c:1003\n";
        assert_eq!(complaints(text), ["[    0.2] BUG: soft lockup"]);
    }
}
