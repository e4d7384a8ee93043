//! The PCI bus and its devices, and KVM's side of them: interrupts by irqfd, kicks by ioeventfd.
//!
//! Lock order: a device's own locks, then the router's. Neither is held while the guest runs.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use devices::pci::{ConfigPorts, Ecam, MsiMessage, MsiSink, PciRoot};
use devices::virtio::pci::{Doorbells, Parts, VirtioPci};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::Attached;
use super::builder::event;
use super::error::BuildError;
use super::specs::Spec;
use super::vcpu::Buses;
use crate::config::VmConfig;
use crate::layout;
use crate::memory::GuestMemory;

/// Pins of the two legacy interrupt controllers, and of the I/O APIC.
const PIC_PINS: u32 = 16;
const IO_APIC_PINS: u32 = 24;

/// Makes the bus, and puts `specs` on it.
///
/// # Errors
/// [`BuildError`].
pub fn attach(
    specs: Vec<Spec>,
    config: &VmConfig,
    vm: &Arc<VmFd>,
    memory: &GuestMemory,
    buses: &Buses,
) -> Result<Vec<Attached>, BuildError> {
    let arguments = config.command_line();
    if arguments.split_whitespace().any(|word| word == "pci=off") {
        log::warn!(
            "boot-source.boot_args: has pci=off, so a Linux guest will not find its devices; remove it"
        );
    }
    let root = Arc::new(PciRoot::new());
    let ports = Arc::new(ConfigPorts::new(root.clone()));
    buses
        .ports
        .insert(ConfigPorts::PORT, ConfigPorts::LEN, ports)?;
    let ecam = Arc::new(Ecam::new(root.clone()));
    buses.mmio.insert(layout::ECAM, Ecam::LEN, ecam)?;

    let router = Arc::new(Router {
        vm: vm.clone(),
        _memory: memory.clone(),
        routes: Mutex::new(Routes::default()),
    });
    let mut attached = Vec::new();
    // The host bridge is 0.
    for (slot, spec) in (1_u8..).zip(specs) {
        let device = Attached::new(slot, spec)?;
        let vectors = VirtioPci::vectors(device.kicks.len() as u16);
        let bar = layout::PCI_WINDOW.start + u64::from(slot) * u64::from(VirtioPci::BAR_SIZE);
        let function = VirtioPci::new(Parts {
            backend: device.backend(memory),
            bus: Arc::downgrade(&buses.mmio),
            window: layout::PCI_WINDOW,
            // The window is below 4 GiB.
            bar: bar as u32,
            sink: Box::new(Router::vectors(&router, vectors)?),
            doorbells: Box::new(KvmDoorbells(router.clone())),
        });
        root.add(slot, function)?;
        attached.push(device);
    }
    Ok(attached)
}

/// Owner of the VM's interrupt routes.
struct Router {
    vm: Arc<VmFd>,
    /// The VM uses this memory for as long as it is there.
    _memory: GuestMemory,
    routes: Mutex<Routes>,
}

#[derive(Default)]
struct Routes {
    /// GSI of each message.
    messages: BTreeMap<u32, MsiMessage>,
    /// How many GSIs are given away.
    given: u32,
}

impl Router {
    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `count` vectors, connected to nothing yet.
    fn vectors(router: &Arc<Self>, count: u16) -> Result<Vectors, BuildError> {
        let events: Result<Vec<_>, _> = (0..count).map(|_| event()).collect();
        let mut routes = router.lock();
        let first = IO_APIC_PINS + routes.given;
        routes.given += u32::from(count);
        drop(routes);
        Ok(Vectors {
            router: router.clone(),
            first,
            events: events?,
            connected: Mutex::new(vec![false; count.into()]),
        })
    }

    /// Takes over changed messages: one call, as KVM takes nothing less than all routes.
    fn update(&self, changes: impl Iterator<Item = (u32, MsiMessage)>) -> io::Result<()> {
        let mut routes = self.lock();
        routes.messages.extend(changes);
        let mut entries = controller_routes();
        entries.extend(routes.messages.iter().map(|(gsi, msi)| message(*gsi, *msi)));
        let too_many = |_| io::Error::other("more interrupt routes than KVM takes");
        let table = KvmIrqRouting::from_entries(&entries).map_err(too_many)?;
        self.vm.set_gsi_routing(&table).map_err(errno)
    }
}

/// The routes that KVM begins with: each GSI to the pin of its number, on the I/O APIC and, below 16, on the PICs too.
fn controller_routes() -> Vec<kvm_irq_routing_entry> {
    let route = |gsi, controller, pin| {
        let mut entry = kvm_irq_routing_entry {
            gsi,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            ..Default::default()
        };
        entry.u.irqchip.irqchip = controller;
        entry.u.irqchip.pin = pin;
        entry
    };
    let mut entries = Vec::new();
    for gsi in 0..PIC_PINS {
        let half = PIC_PINS / 2;
        let controller = if gsi < half {
            KVM_IRQCHIP_PIC_MASTER
        } else {
            KVM_IRQCHIP_PIC_SLAVE
        };
        entries.push(route(gsi, controller, gsi % half));
    }
    entries.extend((0..IO_APIC_PINS).map(|gsi| route(gsi, KVM_IRQCHIP_IOAPIC, gsi)));
    entries
}

fn message(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

/// The vectors of one function: an irqfd each, connected when it is first routed, and taken away only where somebody else
/// signals it while it is masked.
struct Vectors {
    router: Arc<Router>,
    first: u32,
    events: Vec<EventFd>,
    connected: Mutex<Vec<bool>>,
}

impl MsiSink for Vectors {
    fn route(&self, changes: &[(u16, MsiMessage)]) -> io::Result<()> {
        let gsi = |vector: u16| self.first + u32::from(vector);
        let known = |vector: u16| usize::from(vector) < self.events.len();
        let changes = changes.iter().filter(|(vector, _)| known(*vector));
        let messages = changes.clone().map(|(vector, msi)| (gsi(*vector), *msi));
        self.router.update(messages)?;
        for (vector, _) in changes {
            self.connect(*vector, true)?;
        }
        Ok(())
    }

    fn trigger(&self, vector: u16) -> io::Result<()> {
        match self.events.get(usize::from(vector)) {
            Some(event) => event.write(1),
            None => Ok(()),
        }
    }

    fn event(&self, vector: u16) -> Option<EventFd> {
        self.events.get(usize::from(vector))?.try_clone().ok()
    }

    fn connect(&self, vector: u16, wanted: bool) -> io::Result<()> {
        let connected = self.connected.lock();
        let mut connected = connected.unwrap_or_else(PoisonError::into_inner);
        let index = usize::from(vector);
        let (Some(event), Some(state)) = (self.events.get(index), connected.get_mut(index)) else {
            return Ok(());
        };
        if *state != wanted {
            let (vm, gsi) = (&self.router.vm, self.first + u32::from(vector));
            if wanted {
                vm.register_irqfd(event, gsi).map_err(errno)?;
            } else {
                vm.unregister_irqfd(event, gsi).map_err(errno)?;
            }
            *state = wanted;
        }
        Ok(())
    }
}

/// Doorbells by ioeventfd.
struct KvmDoorbells(Arc<Router>);

impl Doorbells for KvmDoorbells {
    fn attach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let at = IoEventAddress::Mmio(address);
        let vm = &self.0.vm;
        vm.register_ioevent(event, &at, NoDatamatch).map_err(errno)
    }

    fn detach(&self, address: u64, event: &EventFd) -> io::Result<()> {
        let at = IoEventAddress::Mmio(address);
        let vm = &self.0.vm;
        vm.unregister_ioevent(event, &at, NoDatamatch)
            .map_err(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_begins_with_what_kvm_has() {
        let entries = controller_routes();
        assert_eq!(entries.len(), 40);
        let first: Vec<u32> = entries.iter().take(16).map(|entry| entry.gsi).collect();
        assert_eq!(first, (0..16).collect::<Vec<_>>());
        assert!(entries.iter().all(|entry| entry.gsi < IO_APIC_PINS));
    }
}
