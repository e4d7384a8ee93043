//! Firecracker's static CPU templates, and the CPUs that each is for.
//!
//! The same as `resources/cpu-templates/*.json`, which can be changed and given as `cpu-config`: a test compares them. As in
//! Firecracker (`docs/cpu_templates/cpu-templates.md`), a template on another CPU than its own is refused.

use crate::config::{
    Bitmap, CpuConfig, CpuTemplate, CpuidModifier, CpuidRegister, MsrModifier, RegisterModifier,
};

use CpuidRegister::{Eax, Ebx, Ecx, Edx};

/// A register of a leaf and subleaf, the bits that are cleared or set, and of these the set ones.
type Row = (u32, u32, CpuidRegister, u32, u32);

/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`, for the leaves whose subleaf counts.
const INDEXED: [u32; 2] = [0x7, 0xd];
const IA32_ARCH_CAPABILITIES: u32 = 0x10a;

/// What the T2 family has in common: instructions and model of a Haswell (family 6, model 63, stepping 2).
const HASWELL: &[Row] = &[
    (0x1, 0, Eax, 0x0fff_3fff, 0x0003_06f2),
    (0x1, 0, Ecx, 0x0004_cdfc, 0),
    (0x1, 0, Edx, 0xe864_1080, 0x1080),
    (0x7, 0, Ebx, 0xffef_da14, 0x200),
    (0x7, 0, Ecx, 0x4041_5f5e, 0),
    (0x7, 0, Edx, 0x11c, 0),
    (0xd, 0, Eax, 0x2f8, 0),
    (0xd, 1, Eax, 0xe, 0),
];
const T2: &[Row] = &[
    (0x8000_0001, 0, Ecx, 0x2000_0100, 0),
    (0x8000_0001, 0, Edx, 0x0400_0000, 0),
    (0x8000_0008, 0, Ebx, 0x200, 0),
];
const T2CL: &[Row] = &[
    (0x8000_0001, 0, Ecx, 0x2000_01c0, 0),
    (0x8000_0001, 0, Edx, 0x07c0_0000, 0),
    (0x8000_0008, 0, Ebx, 0x200, 0),
];
const T2A: &[Row] = &[
    (0x8000_0001, 0, Ecx, 0x2000_01c4, 0),
    (0x8000_0001, 0, Edx, 0x0640_0000, 0),
    (0x8000_0008, 0, Ebx, 0x001c_0205, 0x001c_0004),
];
/// An Ivy Bridge (family 6, model 62, stepping 4).
const C3: &[Row] = &[
    (0x1, 0, Eax, 0x0fff_3fff, 0x0003_06e4),
    (0x1, 0, Ecx, 0x0040_dd3c, 0),
    (0x1, 0, Edx, 0xa864_1080, 0x1080),
    (0x7, 0, Ebx, 0xffaf_dd3c, 0),
    (0x7, 0, Ecx, 0x4041_481e, 0),
    (0x7, 0, Edx, 0xc, 0),
    (0xd, 0, Eax, 0x2f8, 0),
    (0xd, 1, Eax, 0xe, 0),
    (0x8000_0001, 0, Ecx, 0x120, 0),
    (0x8000_0001, 0, Edx, 0x0400_0000, 0),
];

/// A CPU that templates are for: leaf 1's EAX (Intel SDM volume 2, CPUID, "version information"), and its name.
type Cpu = (u32, &'static str);

const SKYLAKE: Cpu = (0x0005_0654, "Intel Skylake");
const CASCADE_LAKE: Cpu = (0x0005_0657, "Intel Cascade Lake");
const ICE_LAKE: Cpu = (0x0006_06a6, "Intel Ice Lake");
const MILAN: Cpu = (0x00a0_0f11, "AMD Milan");

/// The servers' CPUs that a template is for.
pub fn cpus(template: CpuTemplate) -> &'static [Cpu] {
    match template {
        CpuTemplate::None => &[],
        CpuTemplate::C3 | CpuTemplate::T2 => &[SKYLAKE, CASCADE_LAKE, ICE_LAKE],
        CpuTemplate::T2S => &[SKYLAKE, CASCADE_LAKE],
        CpuTemplate::T2CL => &[CASCADE_LAKE, ICE_LAKE],
        CpuTemplate::T2A => &[MILAN],
    }
}

/// A static template's changes.
pub fn changes(template: CpuTemplate) -> CpuConfig {
    let (rows, capabilities): (&[&[Row]], _) = match template {
        CpuTemplate::None => (&[], None),
        CpuTemplate::C3 => (&[C3], None),
        CpuTemplate::T2 => (&[HASWELL, T2], None),
        // All bits: what both a Skylake and a Cascade Lake with current microcode have.
        CpuTemplate::T2S => (&[HASWELL, T2], Some((u64::MAX, 0x0c0a_0c4c))),
        // Only what KVM passes through stays of the host's.
        CpuTemplate::T2CL => (&[HASWELL, T2CL], Some((0xffff_ffff_e2f5_1e00, 0))),
        CpuTemplate::T2A => (&[HASWELL, T2A], None),
    };
    let mut config = CpuConfig::default();
    let leaves = &mut config.cpuid_modifiers;
    for &(leaf, subleaf, register, mask, value) in rows.iter().copied().flatten() {
        let change = RegisterModifier {
            register,
            bitmap: Bitmap {
                mask: mask.into(),
                value: value.into(),
            },
        };
        match leaves.last_mut() {
            Some(last) if (last.leaf, last.subleaf) == (leaf, subleaf) => {
                last.modifiers.push(change);
            }
            _ => leaves.push(CpuidModifier {
                leaf,
                subleaf,
                flags: INDEXED.contains(&leaf).into(),
                modifiers: vec![change],
            }),
        }
    }
    config.msr_modifiers = Vec::from_iter(capabilities.map(|(mask, value)| MsrModifier {
        addr: IA32_ARCH_CAPABILITIES,
        bitmap: Bitmap { mask, value },
    }));
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_the_same() {
        for (template, name) in [
            (CpuTemplate::C3, "c3"),
            (CpuTemplate::T2, "t2"),
            (CpuTemplate::T2S, "t2s"),
            (CpuTemplate::T2CL, "t2cl"),
            (CpuTemplate::T2A, "t2a"),
        ] {
            let path = format!(
                "{}/../resources/cpu-templates/{name}.json",
                env!("CARGO_MANIFEST_DIR")
            );
            let text = std::fs::read_to_string(&path).unwrap();
            let config: CpuConfig = serde_json::from_str(&text).unwrap();
            assert_eq!(config, changes(template), "{path}");
        }
    }

    #[test]
    fn a_template_does_not_set_what_it_does_not_mask() {
        for template in [
            CpuTemplate::C3,
            CpuTemplate::T2,
            CpuTemplate::T2S,
            CpuTemplate::T2CL,
            CpuTemplate::T2A,
        ] {
            let config = changes(template);
            let registers = config
                .cpuid_modifiers
                .iter()
                .flat_map(|leaf| &leaf.modifiers);
            let cpuid = registers.map(|change| (change.bitmap.mask, change.bitmap.value));
            let msrs = config.msr_modifiers.iter();
            let msrs = msrs.map(|change| (change.bitmap.mask, change.bitmap.value));
            for (mask, value) in cpuid.chain(msrs) {
                assert_eq!(value & !mask, 0, "{template:?}");
            }
            assert!(!cpus(template).is_empty());
        }
        assert_eq!(changes(CpuTemplate::None), CpuConfig::default());
    }
}
