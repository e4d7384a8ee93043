//! CPU templates: what the guest's own `cpuid` and `rdmsr` say.

use serde_json::{Value, json};
use tests::vm::VmBuilder;

use crate::guest::guest;

/// PAT (Intel SDM volume 3, 13.12.2): a byte for each kind of memory, and any CPU's KVM has it.
const PAT: &str = "0x277";

guest!(
    tell,
    r#"
    mov eax, 0x80000003
    cpuid
    show32
    mov eax, 1
    cpuid
    mov eax, ecx
    show32
    xor eax, eax
    cpuid
    mov eax, ebx
    show32
    mov ecx, 0x277
    rdmsr
    show32
    mov ecx, 0x1a0
    rdmsr
    show32
    power_off
    "#
);

/// Four letters of the CPU's name, leaf 1's ECX, the vendor, the low half of PAT, and MISC_ENABLE's.
fn told(config: Value) -> [u32; 5] {
    let mut builder = VmBuilder::with_code(tell());
    builder.config["cpu-config"] = config;
    let ended = builder.run();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let words: Vec<_> = ended
        .text()
        .lines()
        .map(|line| u32::from_str_radix(line, 16).unwrap())
        .collect();
    words.try_into().unwrap()
}

fn leaf(leaf: &str, flags: u32, register: &str, bitmap: &str) -> Value {
    json!({"leaf": leaf, "subleaf": "0x0", "flags": flags,
        "modifiers": [{"register": register, "bitmap": bitmap}]})
}

#[test]
fn the_guest_sees_what_the_template_says() {
    let [name, features, vendor, pat, misc] = told(Value::Null);
    // The lowest letter's bits are turned over.
    let turned: String = (0..8)
        .rev()
        .map(|bit| if name >> bit & 1 == 0 { '1' } else { '0' })
        .collect();
    let changed = told(json!({
        "kvm_capabilities": ["!0", "3"],
        "cpuid_modifiers": [
            leaf("0x80000003", 0, "eax", &format!("0b{turned}")),
            // The machine's own bits win: that there is a hypervisor, and the vendor.
            leaf("0x1", 0, "ecx", "0b0xxxxxxx_xxxxxxxx_xxxxxxxx_xxxxxxx0"),
            leaf("0x0", 0, "ebx", "0b00000000000000000000000000000000"),
        ],
        "msr_modifiers": [
            {"addr": PAT, "bitmap": "0b0000_0101"},
            {"addr": "0x1a0", "bitmap": "0b1_xxxx_xxxx_xxxx_xxx0"},
        ],
    }));
    assert_eq!(changed[0], name ^ 0xff);
    // A software KVM runs the leaf of features on the host's CPU itself. The lab has tests of them, too.
    assert_eq!(changed[1] | 1, features | 1);
    assert_eq!(changed[1] >> 31, 1, "there is a hypervisor all the same");
    assert_eq!(changed[2], vendor);
    assert_eq!(changed[3], (pat & !0xff) | 0b101);
    assert_eq!(changed[4], misc | 1 << 16 | 1, "fast strings stay on");
}

#[test]
fn what_the_host_does_not_have_is_named() {
    for (config, words) in [
        (
            json!({"cpuid_modifiers": [leaf("0x99999999", 0, "eax", "0b1")]}),
            [
                "cpu-config.cpuid_modifiers[0]",
                "leaf 0x99999999 subleaf 0x0",
            ],
        ),
        (
            json!({"msr_modifiers": [
                {"addr": PAT, "bitmap": "0b"}, {"addr": "0xdeadbeef", "bitmap": "0b1"}]}),
            ["cpu-config.msr_modifiers[1]", "no MSR 0xdeadbeef"],
        ),
        (
            // Reserved bits of the local APIC's base.
            json!({"msr_modifiers": [{"addr": "0x1b", "bitmap": "0b1111"}]}),
            ["cpu-config.msr_modifiers[0]", "in MSR 0x1b"],
        ),
        (
            json!({"kvm_capabilities": ["0", "99999"]}),
            ["cpu-config.kvm_capabilities[1]", "capability 99999"],
        ),
        (
            json!({"reg_modifiers": [{"addr": "0x1", "bitmap": "0b1"}]}),
            ["cpu-config.reg_modifiers", "for ARM CPUs"],
        ),
        (
            json!([[], [], []]),
            ["cpu-config", "invalid type: sequence"],
        ),
    ] {
        let mut builder = VmBuilder::with_code(tell());
        builder.config["cpu-config"] = config.clone();
        let ended = builder.run();
        assert_eq!((ended.code, ended.text().as_str()), (152, ""), "{config}");
        for word in words {
            assert!(ended.one_line().contains(word), "{}", ended.one_line());
        }
    }
}

#[test]
fn a_static_template_is_for_its_own_cpus() {
    // SAFETY: leaf 1 is on every x86_64.
    let signature = std::arch::x86_64::__cpuid(1).eax;
    for (template, cpus) in [
        ("C3", &[0x5_0654, 0x5_0657, 0x6_06a6][..]),
        ("T2", &[0x5_0654, 0x5_0657, 0x6_06a6]),
        ("T2S", &[0x5_0654, 0x5_0657]),
        ("T2CL", &[0x5_0657, 0x6_06a6]),
        ("T2A", &[0xa0_0f11]),
    ] {
        let mut builder = VmBuilder::with_code(tell());
        builder.config["machine-config"]["cpu_template"] = json!(template);
        let ended = builder.run();
        if cpus.contains(&signature) {
            assert_eq!(ended.code, 0, "{}", ended.stderr);
        } else {
            assert_eq!((ended.code, ended.text().as_str()), (152, ""));
            let line = ended.one_line();
            assert!(
                line.contains(&format!("machine-config.cpu_template: {template} is for")),
                "{line}"
            );
            assert!(line.contains("cpu-config"), "{line}");
        }
    }
}
