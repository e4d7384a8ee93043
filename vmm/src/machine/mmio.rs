//! Virtio devices on MMIO, and KVM's side of them: an interrupt line by irqfd, kicks by ioeventfd.

use std::sync::Arc;

use devices::virtio::mmio::VirtioMmio;
use kvm_ioctls::{IoEventAddress, VmFd};

use super::Attached;
use super::builder::interrupt;
use super::error::BuildError;
use super::specs::Spec;
use super::vcpu::Buses;
use crate::layout::DeviceBus;
use crate::memory::GuestMemory;

/// Puts `specs` on the places that `bus` has for them.
///
/// # Errors
/// [`BuildError`].
pub fn attach(
    specs: Vec<Spec>,
    bus: DeviceBus,
    vm: &VmFd,
    memory: &GuestMemory,
    buses: &Buses,
) -> Result<Vec<Attached>, BuildError> {
    let mut attached = Vec::new();
    for (place, spec) in bus.mmio_places().zip(specs) {
        let device = Attached::new(place.number, spec)?;
        let doorbell = IoEventAddress::Mmio(place.base + VirtioMmio::NOTIFY);
        for (queue, kick) in (0_u32..).zip(device.kicks.iter()) {
            if device.worker.lock().device().serves_at_kick(queue as u16) {
                continue;
            }
            if let Err(error) = vm.register_ioevent(kick, &doorbell, queue) {
                // The device's register does the same.
                log::warn!("{}: slower kicks of queue {queue}: {error}", device.name);
            }
        }
        let line = interrupt(vm, place.gsi)?;
        let registers = VirtioMmio::new(device.backend(memory), line);
        let registers = Arc::new(registers);
        buses.mmio.insert(place.base, VirtioMmio::LEN, registers)?;
        attached.push(device);
    }
    Ok(attached)
}
