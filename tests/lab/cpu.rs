//! CPU templates, as a stock kernel sees them.

use serde_json::{Value, json};
use tests::guest_shell::GuestShell;

use crate::kernels::{Kernel, commands};

/// The words of a line of each vCPU in `/proc/cpuinfo`.
fn words(shell: &mut GuestShell, line: &str) -> Vec<Vec<String>> {
    let text = shell.ok(&format!("grep '^{line}' /proc/cpuinfo"));
    let of = |line: &str| line.split_whitespace().map(str::to_owned).collect();
    text.lines().map(of).collect()
}

fn boot(config: Value) -> GuestShell {
    let mut builder = commands(Kernel::CLOUD_6_12).vcpus(2);
    builder.config["cpu-config"] = config;
    GuestShell::boot(builder)
}

#[test]
fn what_a_template_takes_the_kernel_does_not_find() {
    let mut shell = boot(Value::Null);
    let before = words(&mut shell, "flags");
    assert_eq!(before.len(), 2);
    for flags in &before {
        for flag in ["aes", "smap", "hypervisor", "tsc_deadline_timer"] {
            assert!(flags.iter().any(|word| word == flag), "{flag}: {flags:?}");
        }
    }
    let bugs = words(&mut shell, "bugs");
    assert!(bugs[0].iter().any(|bug| bug == "spec_store_bypass"));
    shell.power_off();

    let mut shell = boot(json!({
        // There are interrupt controllers (0), looked for or not, and user memory (3).
        "kvm_capabilities": ["!0", "3"],
        "cpuid_modifiers": [
            {"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": [
                // No AES; the hypervisor's bit and the timer's are the machine's own.
                {"register": "ecx", "bitmap": "0b0xxx_xx00_xxxx_xxxx_xxxx_xxxx_xxxx_xxxx"}]},
            {"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [
                // No SMAP; there is IA32_ARCH_CAPABILITIES.
                {"register": "ebx", "bitmap": "0b0_xxxx_xxxx_xxxx_xxxx_xxxx"},
                {"register": "edx", "bitmap": "0b1x_xxxx_xxxx_xxxx_xxxx_xxxx_xxxx_xxxx"}]},
        ],
        // SSB_NO: stores are not bypassed.
        "msr_modifiers": [{"addr": "0x10a", "bitmap": "0b1_xxxx"}],
    }));
    for flags in words(&mut shell, "flags") {
        for flag in ["aes", "smap"] {
            assert!(!flags.iter().any(|word| word == flag), "{flag}: {flags:?}");
        }
        for flag in ["hypervisor", "tsc_deadline_timer", "arch_capabilities"] {
            assert!(flags.iter().any(|word| word == flag), "{flag}: {flags:?}");
        }
        // All else is as before.
        let lost = before[0].iter().filter(|flag| !flags.contains(flag));
        let lost: Vec<_> = lost.collect();
        assert_eq!(lost, ["aes", "smap"]);
    }
    let bugs = words(&mut shell, "bugs");
    assert!(
        !bugs[0].iter().any(|bug| bug == "spec_store_bypass"),
        "{bugs:?}"
    );
    shell.power_off();
}
