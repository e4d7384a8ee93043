//! Configuration to machine to lifecycle: the only crate that talks to KVM.
//!
//! The way of a boot is one line: [`VmConfig`](config::VmConfig) (plain serde data, and the file format),
//! validated, [`MachineBuilder`](machine::MachineBuilder), [`Machine`](machine::Machine) (running),
//! [`ExitReason`](exit::ExitReason). There is one constructor and no half-built machine.
//!
//! | module      | what lives there                                                              |
//! |-------------|-------------------------------------------------------------------------------|
//! | [`config`]  | the configuration: fields, defaults, limits                                    |
//! | [`layout`]  | every guest address that is fixed                                              |
//! | [`memory`]  | guest memory, with its hole below 4 GiB                                        |
//! | [`kernel`]  | kernel, initrd and command line into guest memory; the boot protocols          |
//! | [`bzimage`] | bzImage kernels: decompression on the host, and its cache                      |
//! | [`cpu`]     | CPUID, MSRs, registers and local APIC of a vCPU                                |
//! | [`acpi`]    | the ACPI tables                                                                |
//! | [`firmware`]| what firmware leaves in low memory: page tables, reset vector                   |
//! | [`console`] | the other end of serial port and virtio console: terminal, pipe or file        |
//! | [`machine`] | building a machine and running it: vCPU threads, pause, stop                   |
//! | [`request`] | what can be asked of a VM process, and what it answers                         |
//! | [`control`] | the VM's owner: put together before the start, asked and changed from then on  |
//! | [`events`]  | what happens to a VM, told to whoever listens                                  |
//! | [`run`]     | the main thread's event loop: signals, requests, input, the machine's end      |
//! | [`timeline`]| when each phase of a boot was reached, in wall and CPU time                    |
//! | [`confine`] | what each thread gives up before its work                                      |
//! | [`exit`]    | how a machine can end, with the exit code of each way                          |
//! | [`probe`]   | what this host's KVM can do, found by running a probe guest                    |
//!
//! The library knows no HTTP and no command line. It never prints; it logs through the `log` crate.

pub mod acpi;
pub mod bzimage;
pub mod config;
pub mod confine;
pub mod console;
pub mod control;
pub mod cpu;
pub mod events;
pub mod exit;
pub mod firmware;
pub mod kernel;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod probe;
pub mod request;
pub mod run;
pub mod timeline;

mod kick;
mod kvm;
