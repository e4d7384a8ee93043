//! vCPUs and memory.

use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Most vCPUs that a VM can have.
pub const MAX_VCPUS: u8 = 32;
/// Least memory that a VM can have, in MiB.
pub const MIN_MEMORY_MIB: u64 = 16;
/// Most memory that a VM can have, in MiB: 16 TiB, far below what 46 physical address bits reach.
const MAX_MEMORY_MIB: u64 = 16 << 20;

/// The machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// vCPUs, 1 to [`MAX_VCPUS`].
    pub vcpu_count: u8,
    /// Memory in MiB, from [`MIN_MEMORY_MIB`].
    pub mem_size_mib: u64,
    /// Whether two vCPUs each look like the threads of one core.
    #[serde(default, deserialize_with = "super::null_is_default")]
    pub smt: bool,
    /// CPU template of Firecracker's.
    #[serde(default, deserialize_with = "super::null_is_default")]
    pub cpu_template: CpuTemplate,
    /// Whether KVM keeps a log of the pages that the guest writes.
    #[serde(default, deserialize_with = "super::null_is_default")]
    pub track_dirty_pages: bool,
    /// Pages that back the guest's memory.
    #[serde(default, deserialize_with = "super::null_is_default")]
    pub huge_pages: HugePages,
    /// What the guest finds its virtio devices by; [`VmConfig::transport`](super::VmConfig::transport) where it is left out.
    /// Tandem's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
}

/// What a guest finds its virtio devices by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// PCI: any kernel's drivers are there from the start.
    #[default]
    Pci,
    /// Registers in memory, named by ACPI: less to look for, in a kernel that has the driver (`CONFIG_VIRTIO_MMIO`).
    Mmio,
}

/// Size of the pages that back the guest's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum HugePages {
    /// Ordinary pages.
    #[default]
    None,
    /// Pages of 2 MiB from the host's hugetlbfs pool.
    #[serde(rename = "2M")]
    Mib2,
}

/// A static CPU template of Firecracker's, for some CPUs of servers only; `cpu-config` is for all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CpuTemplate {
    /// The host's CPU as KVM offers it, with what `cpu-config` changes.
    #[default]
    None,
    /// As the instances of that name: Intel Skylake, Cascade Lake and Ice Lake.
    C3,
    /// As the instances of that name: Intel Skylake, Cascade Lake and Ice Lake.
    T2,
    /// T2, alike on Intel Skylake and Cascade Lake.
    T2S,
    /// Intel Cascade Lake and Ice Lake, with T2A's instructions.
    T2CL,
    /// AMD Milan, with T2CL's instructions.
    T2A,
}

impl Default for MachineConfig {
    /// Firecracker's: one vCPU, 128 MiB.
    fn default() -> Self {
        Self {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: CpuTemplate::None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
            transport: None,
        }
    }
}

impl MachineConfig {
    /// Memory in bytes.
    pub fn memory_bytes(&self) -> u64 {
        self.mem_size_mib << 20
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.vcpu_count == 0 || self.vcpu_count > MAX_VCPUS {
            return Err(ConfigError::new(
                "machine-config.vcpu_count",
                format!("is {}", self.vcpu_count),
                format!("give 1 to {MAX_VCPUS}"),
            ));
        }
        if self.smt && self.vcpu_count > 1 && !self.vcpu_count.is_multiple_of(2) {
            return Err(ConfigError::new(
                "machine-config.vcpu_count",
                format!("is {}, odd, while smt is on", self.vcpu_count),
                "give 1 or an even number, or switch smt off",
            ));
        }
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&self.mem_size_mib) {
            return Err(ConfigError::new(
                "machine-config.mem_size_mib",
                format!("is {}", self.mem_size_mib),
                format!("give {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} (MiB)"),
            ));
        }
        if self.huge_pages == HugePages::Mib2 && !self.mem_size_mib.is_multiple_of(2) {
            return Err(ConfigError::new(
                "machine-config.mem_size_mib",
                format!("is {}, odd, while huge_pages is 2M", self.mem_size_mib),
                "give an even number",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut MachineConfig)) -> Option<String> {
        let mut config = MachineConfig::default();
        change(&mut config);
        config.validate().err().map(|error| error.field)
    }

    #[test]
    fn sizes_have_limits() {
        let vcpus = Some("machine-config.vcpu_count");
        let memory = Some("machine-config.mem_size_mib");
        assert_eq!(check(|c| c.vcpu_count = 0).as_deref(), vcpus);
        assert_eq!(check(|c| c.vcpu_count = 1).as_deref(), None);
        assert_eq!(check(|c| c.vcpu_count = 32).as_deref(), None);
        assert_eq!(check(|c| c.vcpu_count = 33).as_deref(), vcpus);
        assert_eq!(check(|c| c.mem_size_mib = 15).as_deref(), memory);
        assert_eq!(check(|c| c.mem_size_mib = 16).as_deref(), None);
        assert_eq!(check(|c| c.mem_size_mib = u64::MAX).as_deref(), memory);
        assert_eq!(
            check(|c| (c.smt, c.vcpu_count) = (true, 3)).as_deref(),
            vcpus
        );
        assert_eq!(
            check(|c| (c.smt, c.vcpu_count) = (true, 1)).as_deref(),
            None
        );
        let odd = |c: &mut MachineConfig| (c.huge_pages, c.mem_size_mib) = (HugePages::Mib2, 129);
        assert_eq!(check(odd).as_deref(), memory);
    }
}
