//! CPUID as guests expect it: what KVM supports, and what only the VMM can know.
//!
//! KVM's list says what the host's CPU and KVM can do; no feature is added to it but those that KVM emulates and
//! leaves to the VMM to announce. What is filled in is each vCPU's place in the topology and the frequencies, so
//! that a guest need not calibrate anything (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; Linux
//! `Documentation/virt/kvm/x86/cpuid.rst`).

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

const LEAF_FEATURES: u32 = 0x1;
const LEAF_CACHES: u32 = 0x4;
const LEAF_POWER: u32 = 0x6;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TSC: u32 = 0x15;
const LEAF_FREQUENCY: u32 = 0x16;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_KVM: u32 = 0x4000_0000;
const LEAF_KVM_TIMING: u32 = 0x4000_0010;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_ADDRESS_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHES: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

/// Leaf 1, ECX: the local APIC's timer takes TSC deadlines. KVM emulates it and does not list it.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: there is a hypervisor.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: leaf 1's count of logical CPUs means something.
const MULTI_THREADING: u32 = 1 << 28;
/// Leaf 6, EAX: the local APIC's timer always runs.
const ALWAYS_RUNNING_TIMER: u32 = 1 << 2;
/// Leaf 0x8000_0001, ECX (AMD): the logical CPUs of leaf 1 are cores.
const CORE_MULTI_PROCESSING: u32 = 1 << 1;
/// The local APIC's bus frequency under KVM, in kHz (`APIC_BUS_FREQUENCY`, 1 GHz).
const APIC_BUS_KHZ: u32 = 1_000_000;
/// Crystal frequency that leaf 0x15 names: guests take the local APIC's timer to run at it (Intel SDM volume 3, 12.5.4).
const CRYSTAL_HZ: u32 = APIC_BUS_KHZ * 1_000;

/// How vCPUs look like threads and cores of one package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs, 1 to 32.
    pub vcpus: u8,
    /// Whether each core has two threads.
    pub smt: bool,
}

impl Topology {
    fn threads_per_core(self) -> u32 {
        if self.smt && self.vcpus > 1 { 2 } else { 1 }
    }

    fn cores(self) -> u32 {
        u32::from(self.vcpus).div_ceil(self.threads_per_core())
    }

    /// Bits of an APIC ID that tell threads of a core apart.
    fn thread_bits(self) -> u32 {
        self.threads_per_core().ilog2()
    }

    /// Bits of an APIC ID that tell all vCPUs apart.
    fn package_bits(self) -> u32 {
        u32::from(self.vcpus).next_power_of_two().ilog2()
    }
}

/// Makes what KVM supports, changed by a template, what all vCPUs of a VM have in common: adds the timer bits that KVM leaves
/// to the VMM. `deadline` says whether the timer takes TSC deadlines (`KVM_CAP_TSC_DEADLINE_TIMER`).
pub fn normalise(cpuid: &mut CpuId, deadline: bool) {
    for entry in cpuid.as_mut_slice() {
        match entry.function {
            LEAF_FEATURES => {
                entry.ecx |= HYPERVISOR;
                if deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
            }
            // KVM's timer runs whatever the host's CPU does.
            LEAF_POWER => {
                entry.eax |= ALWAYS_RUNNING_TIMER;
                entry.ebx = 0;
                entry.ecx = 0;
            }
            _ => {}
        }
    }
}

/// Bits of a guest-physical address, by the template.
pub fn physical_bits(template: &CpuId) -> u32 {
    template
        .as_slice()
        .iter()
        .find(|entry| entry.function == LEAF_ADDRESS_SIZES)
        // Without the leaf, the architecture says 36.
        .map_or(36, |entry| entry.eax & 0xff)
}

/// The CPUID of vCPU number `index`; its APIC ID is the same number.
///
/// # Errors
/// The list would be longer than KVM takes.
pub fn for_vcpu(
    template: &CpuId,
    index: u8,
    topology: Topology,
    tsc_khz: Option<u32>,
) -> Result<CpuId, vmm_sys_util::fam::Error> {
    let apic_id = u32::from(index);
    let amd = is_amd(template);
    let mut entries: Vec<kvm_cpuid_entry2> = template
        .as_slice()
        .iter()
        .filter(|entry| !matches!(entry.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2))
        .copied()
        .collect();
    for entry in &mut entries {
        place(entry, apic_id, topology, amd);
    }
    entries.extend(topology_leaves(LEAF_TOPOLOGY, apic_id, topology));
    if has_leaf(template, LEAF_TOPOLOGY_V2) && !amd {
        entries.extend(topology_leaves(LEAF_TOPOLOGY_V2, apic_id, topology));
    }
    if let Some(khz) = tsc_khz {
        announce_frequencies(&mut entries, khz, amd);
    }
    CpuId::from_entries(&entries)
}

/// Writes a vCPU's place into a leaf that has one.
fn place(entry: &mut kvm_cpuid_entry2, apic_id: u32, topology: Topology, amd: bool) {
    let vcpus = u32::from(topology.vcpus);
    match entry.function {
        LEAF_FEATURES => {
            entry.ebx = (entry.ebx & 0xffff) | (vcpus << 16) | (apic_id << 24);
            set(&mut entry.edx, MULTI_THREADING, vcpus > 1);
        }
        LEAF_CACHES if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 0x7;
            let sharing = if level < 3 {
                1 << topology.thread_bits()
            } else {
                1 << topology.package_bits()
            };
            let core_ids = 1 << (topology.package_bits() - topology.thread_bits());
            entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14) | ((core_ids - 1) << 26);
        }
        LEAF_AMD_FEATURES if amd => set(&mut entry.ecx, CORE_MULTI_PROCESSING, vcpus > 1),
        LEAF_ADDRESS_SIZES => {
            entry.ecx = (topology.package_bits() << 12) | (vcpus - 1);
        }
        LEAF_AMD_CACHES if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 0x7;
            let sharing = if level < 3 {
                topology.threads_per_core()
            } else {
                vcpus
            };
            entry.eax = (entry.eax & 0x3fff) | ((sharing - 1) << 14);
        }
        LEAF_AMD_TOPOLOGY => {
            entry.eax = apic_id;
            entry.ebx =
                (apic_id >> topology.thread_bits()) | ((topology.threads_per_core() - 1) << 8);
            entry.ecx = 0;
        }
        _ => {}
    }
}

/// Leaves 0xb and 0x1f: threads, then cores, then the end.
fn topology_leaves(leaf: u32, apic_id: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1;
    const CORES: u32 = 2;
    let level = |index: u32, kind: u32, shift: u32, count: u32| kvm_cpuid_entry2 {
        function: leaf,
        index,
        flags: kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: (kind << 8) | index,
        edx: apic_id,
        ..Default::default()
    };
    [
        level(
            0,
            THREADS,
            topology.thread_bits(),
            topology.threads_per_core(),
        ),
        level(
            1,
            CORES,
            topology.package_bits(),
            topology.cores() * topology.threads_per_core(),
        ),
        level(2, 0, 0, 0),
    ]
}

/// Tells the TSC's frequency in every place where guests look for it.
fn announce_frequencies(entries: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32, amd: bool) {
    let mut put = |new: kvm_cpuid_entry2| {
        entries.retain(|entry| entry.function != new.function);
        entries.push(new);
    };
    put(kvm_cpuid_entry2 {
        function: LEAF_KVM_TIMING,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    });
    // Only Intel's CPUs have these, and Linux reads them on these only.
    if !amd {
        put(kvm_cpuid_entry2 {
            function: LEAF_TSC,
            eax: CRYSTAL_HZ / 1_000,
            ebx: tsc_khz,
            ecx: CRYSTAL_HZ,
            ..Default::default()
        });
        put(kvm_cpuid_entry2 {
            function: LEAF_FREQUENCY,
            eax: tsc_khz / 1_000,
            ebx: tsc_khz / 1_000,
            ecx: 100,
            ..Default::default()
        });
    }
    for entry in entries {
        match entry.function {
            0 if !amd => entry.eax = entry.eax.max(LEAF_FREQUENCY),
            LEAF_KVM => entry.eax = entry.eax.max(LEAF_KVM_TIMING),
            _ => {}
        }
    }
}

fn has_leaf(cpuid: &CpuId, leaf: u32) -> bool {
    cpuid.as_slice().iter().any(|entry| entry.function == leaf)
}

/// Whether leaf 0 spells AuthenticAMD or HygonGenuine; both have AMD's leaves.
fn is_amd(cpuid: &CpuId) -> bool {
    let vendor = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0)
        .map(|entry| entry.ebx.to_le_bytes());
    matches!(vendor.as_ref(), Some(b"Auth" | b"Hygo"))
}

fn set(word: &mut u32, bit: u32, on: bool) {
    if on {
        *word |= bit;
    } else {
        *word &= !bit;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(vendor: &[u8; 4]) -> CpuId {
        let leaf = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ..Default::default()
        };
        let mut vendor_leaf = leaf(0, 0, 0xd);
        vendor_leaf.ebx = u32::from_le_bytes(*vendor);
        CpuId::from_entries(&[
            vendor_leaf,
            leaf(LEAF_FEATURES, 0, 0),
            leaf(LEAF_CACHES, 0, 0x121),
            leaf(LEAF_CACHES, 3, 0x163),
            leaf(LEAF_CACHES, 4, 0),
            leaf(LEAF_TOPOLOGY, 0, 99),
            leaf(LEAF_TOPOLOGY_V2, 0, 99),
            leaf(LEAF_KVM, 0, 0x4000_0001),
            leaf(LEAF_AMD_FEATURES, 0, 0),
            leaf(LEAF_ADDRESS_SIZES, 0, 0x3028),
            leaf(LEAF_AMD_CACHES, 3, 0x163),
            leaf(LEAF_AMD_TOPOLOGY, 0, 0),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found = cpuid
            .as_slice()
            .iter()
            .filter(|entry| (entry.function, entry.index) == (function, index));
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} is there twice");
        entry
    }

    #[test]
    fn every_vcpu_has_its_place() {
        for (vcpus, smt) in [
            (1, false),
            (1, true),
            (2, false),
            (2, true),
            (6, true),
            (32, false),
        ] {
            let topology = Topology { vcpus, smt };
            for index in 0..vcpus {
                let cpuid = for_vcpu(&host(b"Genu"), index, topology, Some(2_000_000)).unwrap();
                let features = find(&cpuid, LEAF_FEATURES, 0);
                assert_eq!(features.ebx >> 24, u32::from(index));
                assert_eq!(features.ebx >> 16 & 0xff, u32::from(vcpus));
                assert_eq!(features.edx & MULTI_THREADING != 0, vcpus > 1);
                for leaf in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
                    let (threads, cores) = (find(&cpuid, leaf, 0), find(&cpuid, leaf, 1));
                    assert_eq!(threads.edx, u32::from(index));
                    assert_eq!(threads.ebx, if smt && vcpus > 1 { 2 } else { 1 });
                    assert_eq!(cores.ebx, u32::from(vcpus));
                    assert!(1 << cores.eax >= vcpus);
                    assert_eq!(find(&cpuid, leaf, 2).ebx, 0);
                }
            }
        }
    }

    #[test]
    fn caches_are_shared_as_the_topology_says() {
        let topology = Topology {
            vcpus: 4,
            smt: true,
        };
        let cpuid = for_vcpu(&host(b"Genu"), 0, topology, None).unwrap();
        let sharing = |entry: kvm_cpuid_entry2| (entry.eax >> 14 & 0xfff) + 1;
        assert_eq!(sharing(find(&cpuid, LEAF_CACHES, 0)), 2);
        assert_eq!(sharing(find(&cpuid, LEAF_CACHES, 3)), 4);
        assert_eq!(find(&cpuid, LEAF_CACHES, 4).eax, 0);
        assert_eq!(sharing(find(&cpuid, LEAF_AMD_CACHES, 3)), 4);
    }

    #[test]
    fn amd_has_its_own_leaves_and_not_intels() {
        let topology = Topology {
            vcpus: 4,
            smt: true,
        };
        let cpuid = for_vcpu(&host(b"Auth"), 3, topology, Some(2_000_000)).unwrap();
        let place = find(&cpuid, LEAF_AMD_TOPOLOGY, 0);
        assert_eq!((place.eax, place.ebx), (3, 0x101));
        assert_eq!(find(&cpuid, LEAF_ADDRESS_SIZES, 0).ecx, 0x2003);
        assert_ne!(
            find(&cpuid, LEAF_AMD_FEATURES, 0).ecx & CORE_MULTI_PROCESSING,
            0
        );
        assert!(!has_leaf(&cpuid, LEAF_TSC));
        assert!(!has_leaf(&cpuid, LEAF_TOPOLOGY_V2));
        assert_eq!(find(&cpuid, 0, 0).eax, 0xd);
        assert_eq!(find(&cpuid, LEAF_KVM_TIMING, 0).eax, 2_000_000);
    }

    #[test]
    fn the_tsc_frequency_is_told() {
        let topology = Topology {
            vcpus: 1,
            smt: false,
        };
        let cpuid = for_vcpu(&host(b"Genu"), 0, topology, Some(2_345_678)).unwrap();
        let tsc = find(&cpuid, LEAF_TSC, 0);
        assert_eq!(tsc.ecx / 1_000, APIC_BUS_KHZ, "the APIC timer's frequency");
        let hz = u64::from(tsc.ecx) * u64::from(tsc.ebx) / u64::from(tsc.eax);
        assert_eq!(hz, 2_345_678_000);
        assert_eq!(find(&cpuid, 0, 0).eax, LEAF_FREQUENCY);
        assert_eq!(find(&cpuid, LEAF_KVM, 0).eax, LEAF_KVM_TIMING);

        let silent = for_vcpu(&host(b"Genu"), 0, topology, None).unwrap();
        assert!(!has_leaf(&silent, LEAF_TSC));
        assert!(!has_leaf(&silent, LEAF_KVM_TIMING));
    }

    #[test]
    fn address_bits_come_from_the_template() {
        assert_eq!(physical_bits(&host(b"Genu")), 0x28);
        assert_eq!(physical_bits(&CpuId::new(0).unwrap()), 36);
    }
}
