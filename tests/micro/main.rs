//! Micro-guests: a few instructions each, on any `/dev/kvm`, through the real `tandem-vmm`.
//!
//! | file        | what is proved                                                                  |
//! |-------------|---------------------------------------------------------------------------------|
//! | `boot`      | both boot protocols, how a kernel gets into memory, the memory layout            |
//! | `cpu`       | CPU templates: CPUID and MSRs as the guest sees them                             |
//! | `serial`    | output whole and exact; input with back-pressure                                 |
//! | `exits`     | every way in which a machine ends, and its exit code                             |
//! | `devices`   | debug port, clock, boot timer, string I/O, interrupts                            |
//! | `pci`       | virtio over PCI: a driver in good order, hostile ones, and pause                  |
//! | `reconfigure` | a configuration that is read again while the machine runs, and metrics        |
//! | `mmio`      | the same over MMIO, and a queue that is reset                                    |
//! | `hostile`   | hostile drivers against every kind of device, over both transports                |
//! | `signals`   | the power button, and stopping at once                                           |
//! | `terminal`  | a terminal is raw while the guest runs, and always given back                    |
//! | `machine`   | pause and resume, several vCPUs, memory of the process                           |
//! | `api`       | a VM by requests on its control socket: phases, states, events, signals, the socket |
//! | `api_races` | requests at the same time as others, as the start, as signals                     |
//! | `api_clients` | clients that leave, are killed, flood it or send nonsense                         |
//! | `api_phases` | requests at random, held against a model of the phases                           |
//! | `command`   | `tandem api` against a control socket                                             |
//! | `seccomp`   | every thread has its filter, and a call that is not listed is named               |
//! | `bad_input` | one line that names the field, and an exit code, for all that is not right       |

// Test code throughout: what is broken ends in a panic that says so.
#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]

mod api;
mod api_clients;
mod api_phases;
mod api_races;
mod bad_input;
mod boot;
mod command;
mod cpu;
mod devices;
mod exits;
mod guest;
mod hostile;
mod machine;
mod mmio;
mod pci;
mod reconfigure;
mod seccomp;
mod serial;
mod signals;
mod terminal;
