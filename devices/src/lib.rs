//! Everything a guest can touch through a bus.
//!
//! A device is a value with an owner. It takes `&self`, answers reads, and turns each write into an
//! [`Action`] that travels back to the vCPU thread which made the access: a device never calls into
//! the VMM. Interrupts leave through an [`EventFd`](vmm_sys_util::eventfd::EventFd) that somebody else
//! has connected to an interrupt controller (an irqfd), so nothing here knows KVM, HTTP or the command line.
//!
//! | module     | what lives there                                                        |
//! |------------|-------------------------------------------------------------------------|
//! | [`bus`]    | address ranges to devices, for port I/O and for MMIO                     |
//! | [`acpi`]   | sleep and reset registers, the Generic Event Device's register           |
//! | [`legacy`] | what a PC always had: serial port, i8042 reset, CMOS clock, debug ports  |
//! | [`mmds`]   | the metadata service: a document that the guest reads over HTTP           |
//! | [`pci`]    | host bridge, configuration space, MSI-X                                  |
//! | [`virtio`] | virtio devices, and the transports that a guest's drivers find them by    |
//! | [`limit`]  | a limit for log messages that a guest can cause                          |
//! | [`utc`]    | date and time of day                                                     |
//!
//! Every device that has state has it as a plain serde struct too, with `save` and `restore`.
//!
//! The guest is hostile: an access may have any offset within a device's range, any width from 1 to 8
//! bytes and any value, at any time and from several vCPUs at once. No access may panic, block without
//! end, or allocate without bound.

pub mod acpi;
pub mod bus;
pub mod legacy;
pub mod pci;
pub mod utc;
pub mod virtio;

pub mod limit;
pub mod mmds;

pub use bus::{Action, Bus, BusDevice};
