//! Stock kernels, where `/dev/kvm` is complete: run this through `tools/lab`.
//!
//! | file        | what is proved                                                                  |
//! |-------------|---------------------------------------------------------------------------------|
//! | `api`       | a VM by requests on a control socket alone                                       |
//! | `balloon`   | a memory balloon, seen in the memory of the process                              |
//! | `commands`  | shell commands in a guest, and what its toolbox holds                            |
//! | `console`   | a virtio console in place of the serial port                                     |
//! | `cpu`       | CPU templates: flags and bugs in the kernel's own words                          |
//! | `jailer`    | a VM in a jail: what the host shows of its process, and what it reaches          |
//! | `kernels`   | (the kernels, and what they need)                                                |
//! | `block`     | disks: what is written, read, discarded, flushed is so in the image              |
//! | `boots`     | kernels, formats, vCPUs, memory: init is reached and sees the right machine       |
//! | `lifecycle` | reboot, panic, power button, console                                             |
//! | `messages`  | the kernels find nothing wrong with the machine                                  |
//! | `transports` | virtio devices over PCI and over MMIO, found and driven by the kernels' own drivers |
//! | `mmds`      | the metadata service, read by the guest's own programs                           |
//! | `net`       | network devices: taps, passt, queues, offloads, links that are lost                |
//! | `server`    | a Debian server's disk, which knows nothing of Tandem: network, shutdown, file system |
//! | `lost`      | a vCPU that cannot go on                                                         |
//! | `vsock`     | streams between the guest and programs of the host                               |

// Test code throughout: what is broken ends in a panic that says so.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod api;
mod balloon;
mod block;
mod boots;
mod commands;
mod console;
mod cpu;
#[path = "../micro/guest.rs"]
mod guest;
mod jailer;
mod kernels;
mod lifecycle;
mod lost;
mod messages;
mod mmds;
mod net;
mod server;
mod transports;
mod vsock;
