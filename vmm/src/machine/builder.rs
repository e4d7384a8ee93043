//! From configuration to [`Machine`].

use std::path::PathBuf;
use std::sync::Arc;

use devices::acpi::{EventRegister, PowerRegisters};
use devices::legacy::boot_timer::BootTimer;
use devices::legacy::debug_console::DebugConsole;
use devices::legacy::i8042::I8042;
use devices::legacy::pvpanic::PvPanic;
use devices::legacy::rtc::Rtc;
use devices::legacy::serial::Serial;
use devices::mmds::Mmds;
use devices::virtio::console::Size;
use devices::{Bus, BusDevice};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::error::{BuildError, OVERCOMMIT};
use super::gate::Gate;
use super::vcpu::{Buses, Shared, Vcpu};
use super::{InputSink, Machine, mmio, pci, specs};
use crate::bzimage::KernelCache;
use crate::config::{ConfigError, Transport, VmConfig};
use crate::confine::Confine;
use crate::console::Output;
use crate::cpu::{self, Template, Topology};
use crate::kernel;
use crate::layout::{self, DeviceBus};
use crate::memory::{self, GuestMemory};
use crate::timeline::{Phase, Timeline};
use crate::{acpi, firmware};

/// What a machine takes from its host beyond its configuration.
#[derive(Clone, Debug)]
pub struct Host {
    /// Where decompressed kernels are kept.
    pub kernel_cache: PathBuf,
    /// Whether there is a boot timer device.
    pub boot_timer: bool,
    /// What the guest reads from the metadata service, if an interface reaches it.
    pub mmds: Mmds,
    /// What each thread does first.
    pub confine: Confine,
}

/// Builds one machine.
pub struct MachineBuilder<'a> {
    config: &'a VmConfig,
    host: &'a Host,
    timeline: Arc<Timeline>,
    console: Option<(&'a Output, Option<Size>)>,
}

impl<'a> MachineBuilder<'a> {
    /// Takes what the machine is made from.
    pub fn new(config: &'a VmConfig, host: &'a Host, timeline: Arc<Timeline>) -> Self {
        Self {
            config,
            host,
            timeline,
            console: None,
        }
    }

    /// Connects the virtio console, if there is one, to `output` rather than to the serial port's, and tells it the size
    /// of the terminal that shows it.
    #[must_use]
    pub fn console(self, output: &'a Output, size: Option<Size>) -> Self {
        Self {
            console: Some((output, size)),
            ..self
        }
    }

    /// Builds the machine, its serial port connected to `output`. The guest does not run yet.
    ///
    /// # Errors
    /// [`BuildError`]; nothing is left of the machine then.
    pub fn build(self, output: &Output) -> Result<Machine, BuildError> {
        self.config.validate()?;
        let machine = &self.config.machine_config;
        self.timeline.mark(Phase::ConfigComplete);

        let kvm = Kvm::new().map_err(BuildError::OpenKvm)?;
        let template = Template::of(self.config);
        check_capabilities(&kvm, machine.vcpu_count, &template)?;
        let cpuid = common_cpuid(&kvm, &template)?;
        self.check_memory_size(cpu::physical_bits(&cpuid))?;

        let memory = memory::allocate(machine.memory_bytes(), machine.huge_pages)?;
        self.timeline.mark(Phase::MemoryReady);

        let mut wanted = specs::make(self.config, &self.host.mmds)?;
        let input_space = event()?;
        let mut console = None;
        if self.config.console.is_some() {
            let (output, size) = self.console.unwrap_or((output, None));
            let (spec, input) = specs::console(output, &input_space, size)?;
            wanted.push(spec);
            console = Some(input).filter(|_| self.config.console_has_input());
        }
        let bus = self.device_bus(wanted.len())?;
        let cache = KernelCache::new(&self.host.kernel_cache);
        let source = &self.config.boot_source;
        let line = self.config.command_line();
        let entry = kernel::load(source, &line, &memory, machine.huge_pages, &cache, bus)?;
        firmware::write(&memory, entry).map_err(BuildError::BootStructures)?;
        acpi::write(&memory, machine.vcpu_count, bus)?;
        self.timeline.mark(Phase::KernelLoaded);

        let vm = Arc::new(create_vm(&kvm, &memory, machine.track_dirty_pages)?);
        let legacy = self.attach_legacy(&vm, output, &input_space)?;
        let attached = match bus {
            DeviceBus::None => Vec::new(),
            DeviceBus::Pci => pci::attach(wanted, self.config, &vm, &memory, &legacy.buses)?,
            DeviceBus::Mmio { .. } => mmio::attach(wanted, bus, &vm, &memory, &legacy.buses)?,
        };
        let topology = Topology {
            vcpus: machine.vcpu_count,
            smt: machine.smt,
        };
        let shared = Arc::new(Shared {
            vm,
            buses: legacy.buses,
            names: attached
                .iter()
                .map(|a| (a.number, a.name.clone()))
                .collect(),
            gate: Gate::new().map_err(BuildError::Event)?,
            room: output.room(),
            timeline: self.timeline.clone(),
            memory,
            confine: self.host.confine,
        });
        let mut waiting = Vec::with_capacity(topology.vcpus.into());
        for index in 0..topology.vcpus {
            let fd = shared
                .vm
                .create_vcpu(index.into())
                .map_err(kvm_error("create a vCPU"))?;
            // Not every KVM tells its frequency; the guest then calibrates.
            let tsc_khz = fd.get_tsc_khz().ok().filter(|khz| *khz > 0);
            let cpuid =
                cpu::for_vcpu(&cpuid, index, topology, tsc_khz).map_err(BuildError::Cpuid)?;
            cpu::set_cpuid(&fd, index, &cpuid)?;
            template.change_msrs(&fd)?;
            cpu::configure(&fd, index, entry)?;
            waiting.push(Vcpu::new(index, fd, shared.clone()));
        }
        self.timeline.mark(Phase::MachineReady);
        Ok(Machine {
            threads: Vec::with_capacity(waiting.len()),
            waiting,
            attached,
            io: Vec::new(),
            shared,
            input: console.map_or(InputSink::Serial(legacy.serial), InputSink::Console),
            events: legacy.events,
            mmds: self
                .config
                .mmds_config
                .as_ref()
                .map(|_| self.host.mmds.clone()),
            input_space,
        })
    }

    /// What the machine's virtio devices are on.
    fn device_bus(&self, devices: usize) -> Result<DeviceBus, ConfigError> {
        let transport = self.config.transport();
        match (devices, transport) {
            (0, _) => Ok(DeviceBus::None),
            (_, Transport::Pci) => Ok(DeviceBus::Pci),
            // Fits into a byte.
            (1..=DeviceBus::MAX_MMIO, Transport::Mmio) => Ok(DeviceBus::Mmio {
                devices: devices as u8,
            }),
            (_, Transport::Mmio) => Err(ConfigError::new(
                "machine-config.transport",
                format!(
                    "is mmio, which has interrupt lines for {} devices, and there are {devices}",
                    DeviceBus::MAX_MMIO
                ),
                "set it to pci, or take devices away",
            )),
        }
    }

    fn check_memory_size(&self, bits: u32) -> Result<(), BuildError> {
        let machine = &self.config.machine_config;
        let host = memory::of_host();
        if machine.memory_bytes() > host.saturating_mul(OVERCOMMIT) {
            return Err(BuildError::BeyondHost {
                mib: machine.mem_size_mib,
                host_mib: host >> 20,
            });
        }
        let hole = layout::HOLE_END - layout::HOLE_START;
        let end = machine.memory_bytes().saturating_add(hole);
        if bits < u64::BITS && end > 1 << bits {
            return Err(BuildError::TooMuchMemory {
                mib: machine.mem_size_mib,
                bits,
            });
        }
        Ok(())
    }

    fn attach_legacy(
        &self,
        vm: &VmFd,
        output: &Output,
        input_space: &EventFd,
    ) -> Result<Legacy, BuildError> {
        let serial = Serial::new(
            interrupt(vm, layout::SERIAL_GSI)?,
            input_space.try_clone().map_err(BuildError::Event)?,
            Box::new(output.writer(self.timeline.clone())),
        );
        let serial = Arc::new(serial.map_err(BuildError::Event)?);
        let events = Arc::new(EventRegister::new(interrupt(vm, layout::EVENT_GSI)?));
        let buses = Buses {
            ports: Bus::new(),
            mmio: Arc::new(Bus::new()),
        };
        let ports: [(u64, u64, Arc<dyn BusDevice>); 7] = [
            (Serial::COM1, Serial::LEN, serial.clone()),
            (layout::EVENT_PORT, EventRegister::LEN, events.clone()),
            (
                layout::POWER_PORT,
                PowerRegisters::LEN,
                Arc::new(PowerRegisters),
            ),
            (I8042::PORT, I8042::LEN, Arc::new(I8042)),
            (Rtc::PORT, Rtc::LEN, Arc::new(Rtc::default())),
            (PvPanic::PORT, PvPanic::LEN, Arc::new(PvPanic::default())),
            (
                DebugConsole::PORT,
                DebugConsole::LEN,
                Arc::new(DebugConsole::default()),
            ),
        ];
        for (base, len, device) in ports {
            buses.ports.insert(base, len, device)?;
        }
        if self.host.boot_timer {
            for base in layout::BOOT_TIMERS {
                buses
                    .mmio
                    .insert(base, BootTimer::LEN, Arc::new(BootTimer))?;
            }
        }
        Ok(Legacy {
            buses,
            serial,
            events,
        })
    }
}

/// The devices that every machine has, and the ends of them that the machine's owner needs.
struct Legacy {
    buses: Buses,
    serial: Arc<Serial>,
    events: Arc<EventRegister>,
}

fn kvm_error(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { what, source }
}

pub(super) fn event() -> Result<EventFd, BuildError> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(BuildError::Event)
}

/// An event that raises an edge-triggered interrupt.
pub(super) fn interrupt(vm: &VmFd, gsi: u32) -> Result<EventFd, BuildError> {
    let event = event()?;
    vm.register_irqfd(&event, gsi)
        .map_err(kvm_error("connect an interrupt"))?;
    Ok(event)
}

/// What KVM supports, as the template and the machine have it.
fn common_cpuid(kvm: &Kvm, template: &Template) -> Result<CpuId, BuildError> {
    let mut cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm_error("get the supported CPUID"))?;
    template.change_cpuid(&mut cpuid)?;
    cpu::normalise(&mut cpuid, kvm.check_extension(Cap::TscDeadlineTimer));
    for address in template.lost_msrs() {
        log::warn!(
            "cpu-config.msr_modifiers: MSR {address:#x} is set at the start of every guest, whatever a template says"
        );
    }
    Ok(cpuid)
}

fn check_capabilities(kvm: &Kvm, vcpus: u8, template: &Template) -> Result<(), BuildError> {
    let needed = [
        (Cap::Irqchip, "interrupt controller (KVM_CAP_IRQCHIP)"),
        (Cap::UserMemory, "user memory (KVM_CAP_USER_MEMORY)"),
        (Cap::Irqfd, "irqfd (KVM_CAP_IRQFD)"),
        (Cap::Ioeventfd, "ioeventfd (KVM_CAP_IOEVENTFD)"),
        (
            Cap::ImmediateExit,
            "immediate exit (KVM_CAP_IMMEDIATE_EXIT)",
        ),
        (Cap::ExtCpuid, "CPUID list (KVM_CAP_EXT_CPUID)"),
    ];
    for (capability, name) in needed {
        if template.looks_for(capability as u32) && !kvm.check_extension(capability) {
            return Err(BuildError::Capability(name));
        }
    }
    template.check_capabilities(|number| kvm.check_extension_raw(number.into()) > 0)?;
    let max = kvm.get_max_vcpus();
    if usize::from(vcpus) > max {
        return Err(BuildError::TooManyVcpus { vcpus, max });
    }
    Ok(())
}

fn create_vm(kvm: &Kvm, memory: &GuestMemory, track_dirty: bool) -> Result<VmFd, BuildError> {
    let vm = crate::kvm::create_vm(kvm).map_err(kvm_error("create a VM"))?;
    // Memory first: once the VM has interrupt controllers, giving it memory waits for an RCU grace period (milliseconds).
    for (slot, region) in memory.iter().enumerate() {
        let address = region
            .get_host_address(vm_memory::MemoryRegionAddress(0))
            .map_err(BuildError::BootStructures)?;
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: region.start_addr().raw_value(),
            memory_size: region.len(),
            userspace_addr: address as u64,
            flags: if track_dirty {
                KVM_MEM_LOG_DIRTY_PAGES
            } else {
                0
            },
        };
        // SAFETY: the region is mapped memory of that length, and outlives the VM: whoever holds the VM (`Shared`, the
        // router of interrupts) holds the memory too, and drops the VM first.
        unsafe { vm.set_user_memory_region(slot) }.map_err(kvm_error("give memory to the VM"))?;
    }
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(kvm_error("place KVM's identity map"))?;
    vm.set_tss_address(layout::KVM_TSS)
        .map_err(kvm_error("place KVM's TSS"))?;
    vm.create_irq_chip()
        .map_err(kvm_error("create the interrupt controllers"))?;
    Ok(vm)
}
