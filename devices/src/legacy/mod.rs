//! What a PC always had, as far as stock kernels still look for it.
//!
//! | module           | device                                     | address                        |
//! |------------------|--------------------------------------------|--------------------------------|
//! | [`serial`]       | 16550A serial port                         | ports 0x3f8 to 0x3ff           |
//! | [`i8042`]        | keyboard controller: the reset line only   | ports 0x60 and 0x64            |
//! | [`rtc`]          | MC146818 CMOS clock                        | ports 0x70 and 0x71            |
//! | [`debug_console`]| Bochs-style debug console                  | port 0xe9                      |
//! | [`pvpanic`]      | panic notification                         | port 0x505                     |
//! | [`boot_timer`]   | "init runs" signal, as Firecracker's guests send it | one MMIO page         |

pub mod boot_timer;
pub mod debug_console;
pub mod i8042;
pub mod pvpanic;
pub mod rtc;
pub mod serial;
