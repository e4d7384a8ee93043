//! Why a machine could not be built.

use std::io;

use devices::bus::BusError;
use devices::pci::SlotTaken;
use devices::virtio::block::BlockError;
use devices::virtio::vsock::ListenError;

use crate::acpi::AcpiError;
use crate::config::ConfigError;
use crate::cpu::CpuError;
use crate::exit;
use crate::kernel::KernelError;
use crate::memory::MemoryError;

/// How many times the host's memory a guest may have.
///
/// Memory is taken when it is touched, so more than the host has can be fine. But KVM's own tables take 8 bytes a page at
/// once: without a limit, one number too long in a configuration would take all of the host's memory.
pub const OVERCOMMIT: u64 = 4;

/// Why a machine could not be built. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A value in the configuration is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Kernel or initrd cannot be loaded.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Memory cannot be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Far more memory than the host has.
    #[error(
        "machine-config.mem_size_mib: is {mib}, more than {OVERCOMMIT} times the {host_mib} that this host has; lower it"
    )]
    BeyondHost {
        /// Size of the memory in MiB.
        mib: u64,
        /// Memory of the host in MiB.
        host_mib: u64,
    },
    /// The guest's memory would have addresses that the CPU does not have.
    #[error(
        "machine-config.mem_size_mib: is {mib}, beyond the {bits} address bits of this CPU; lower it"
    )]
    TooMuchMemory {
        /// Size of the memory in MiB.
        mib: u64,
        /// Guest-physical address bits.
        bits: u32,
    },
    /// More vCPUs than this host's KVM runs.
    #[error("machine-config.vcpu_count: is {vcpus}, and this KVM runs {max} at most; lower it")]
    TooManyVcpus {
        /// vCPUs that were asked for.
        vcpus: u8,
        /// vCPUs that KVM runs.
        max: usize,
    },
    /// /dev/kvm cannot be opened.
    #[error("cannot open /dev/kvm; run `tandem doctor` to see why")]
    OpenKvm(#[source] kvm_ioctls::Error),
    /// KVM is too old, or is not KVM.
    #[error("this KVM has no {0}; run `tandem doctor`")]
    Capability(&'static str),
    /// KVM refused something.
    #[error("cannot {what}")]
    Kvm {
        /// What was being done.
        what: &'static str,
        /// What KVM said.
        source: kvm_ioctls::Error,
    },
    /// A vCPU cannot be set up.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The CPUID list is too long for KVM.
    #[error("cannot make the CPUID of a vCPU: {0:?}")]
    Cpuid(vmm_sys_util::fam::Error),
    /// The ACPI tables cannot be written.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Boot structures cannot be written.
    #[error("cannot write boot structures into guest memory")]
    BootStructures(#[source] vm_memory::GuestMemoryError),
    /// Two devices were given the same address.
    #[error("cannot put a device on its bus")]
    Bus(#[from] BusError),
    /// Two PCI devices were given the same place, or there are too many.
    #[error("cannot put a device on the PCI bus")]
    Pci(#[from] SlotTaken),
    /// A disk cannot be used.
    #[error("drives[{index}].{}: {error}", .error.field())]
    Drive {
        /// Position in the configuration.
        index: usize,
        /// What is wrong; its text has the cause in it.
        error: BlockError,
    },
    /// The socket device's host side cannot be made.
    #[error("vsock.uds_path: {0}")]
    Vsock(ListenError),
    /// The host is out of descriptors or memory.
    #[error("cannot make an event descriptor")]
    Event(#[source] io::Error),
}

impl BuildError {
    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_)
            | Self::Kernel(_)
            | Self::BeyondHost { .. }
            | Self::TooMuchMemory { .. }
            | Self::TooManyVcpus { .. }
            | Self::Drive { .. }
            | Self::Vsock(_) => exit::BAD_CONFIGURATION,
            _ => exit::HOST_ERROR,
        }
    }
}
