//! Exit codes. 0 is success and 1 to 63 are each command's own, documented in its help; the shared
//! ones are those of sysexits.h, so that they collide with no command's.

/// Success.
pub const OK: u8 = 0;
/// The command line was not understood (`EX_USAGE`).
pub const USAGE: u8 = 64;
/// The output could not be written (`EX_IOERR`).
pub const IO: u8 = 74;
