//! The lab: any command, run where `/dev/kvm` is complete.
//!
//! Two programs share this library. `tandem-lab` ([`host`]) is what `tools/lab` calls: it starts an emulated machine where
//! the host's own KVM cannot run stock kernels, and brings commands into it. `tandem-lab-agent` ([`guest`]) is the first
//! process of that machine. They talk in [`frame`]s over virtio-serial ports, one command at a time on each:
//!
//! ```text
//! client --Unix socket-- supervisor --socketpair, QEMU, virtio-serial-- worker -> session -> the command
//! ```
//!
//! The supervisor holds QEMU and its ports for the lab's whole life, so that a client may die at any moment without
//! leaving half a frame in a port, and so that someone always knows why a lab died.
//! Start reading at [`host`], then [`frame`], then [`guest`].

pub mod frame;
pub mod guest;
pub mod host;
pub mod spec;
pub mod sys;
