//! Fuzzing: a hostile driver, hostile host programs and bad documents, made up by libFuzzer.
//!
//! A *target* takes bytes and does what they say to a real part of the project: a device behind its public interface with
//! real files and sockets of the host's, a transport with a device behind it, a parser. It ends in a panic where something
//! holds no longer that must hold whatever the bytes are. `tools/fuzz/run` runs all of them, each for a minute by default;
//! in `tools/fuzz`, `cargo fuzz run TARGET` does one for as long as you like.
//!
//! | module        | what lives there                                                            |
//! |---------------|-----------------------------------------------------------------------------|
//! | [`script`]    | bytes to the moves of a driver and its host, and back                          |
//! | [`memory`]    | guest memory, and where a driver keeps what                                    |
//! | [`driver`]    | a driver's side of queues, with what it may expect of the device                |
//! | [`session`]   | follows a script with a device, and checks what must hold                       |
//! | [`transport`] | what the targets of transports have in common                                    |
//! | [`seeds`]     | inputs to begin with, and the proof that they reach what they are meant to      |
//! | [`messages`]  | the log, which a guest must not flood                                          |
//!
//! and the targets, each with a seed for every thing that it is said to reach:
//!
//! | target        | what it drives                                                              |
//! |---------------|-----------------------------------------------------------------------------|
//! | [`rings`]     | a virtqueue and its chains, beside a second, simple-minded reading of the ring    |
//! | [`entropy`]   | entropy device                                                               |
//! | [`block`]     | block device, over files                                                       |
//! | [`qcow2`]     | the same over images in QEMU's format                                           |
//! | [`net`]       | network device, over a socket; headers and commands                               |
//! | [`mmds`]      | the metadata service's connections, by frames of a guest's                        |
//! | [`tap`]       | network device, at a tap                                                       |
//! | [`vsock`]     | socket device, with programs of the host's                                      |
//! | [`balloon`]   | balloon                                                                      |
//! | [`console`]   | console                                                                      |
//! | [`pci`]       | PCI configuration space and the virtio function's BAR, by all their ways            |
//! | [`mmio`]      | MMIO registers of a virtio device                                               |
//! | [`document`]  | the configuration document                                                     |
//! | [`http`]      | conversations over the control socket, cut anywhere                              |
//!
//! Scripts are total: any bytes are one. The device must not know whether it is fuzzed: nothing in the crates that are
//! tested looks at `cfg(fuzzing)`.

pub mod driver;
pub mod memory;
pub mod messages;
pub mod script;
pub mod seeds;
pub mod session;
pub mod transport;

pub mod balloon;
pub mod block;
pub mod console;
pub mod document;
pub mod entropy;
pub mod http;
pub mod mmds;
pub mod mmio;
pub mod net;
pub mod pci;
pub mod qcow2;
pub mod rings;
pub mod tap;
pub mod vsock;
