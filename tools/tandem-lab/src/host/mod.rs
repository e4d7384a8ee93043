//! The host side: [`cli`] decides, [`direct`] or [`client`] runs the command, [`supervisor`] keeps an emulated machine, and
//! [`serve`] lends it to clients.
//!
//! [`kvm`] says whether there is need of one; [`state`] says which labs there are; [`machine`] makes what QEMU needs.

pub mod cli;
pub mod client;
pub mod direct;
pub mod initramfs;
pub mod kvm;
pub mod machine;
pub mod serve;
pub mod state;
pub mod supervisor;

/// The lab itself failed (as with `docker run`).
pub const EXIT_LAB: i32 = 125;
/// The command ran out of time (as with `timeout`).
pub const EXIT_TIMEOUT: i32 = 124;

/// What ends the lab's own work: one line for the user.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// An operation of the operating system failed.
    #[error("{0}: {1}")]
    Io(String, #[source] std::io::Error),
    /// Anything that is told by a sentence.
    #[error("{0}")]
    Told(String),
}

/// Results of the host side.
pub type Result<T> = std::result::Result<T, LabError>;

/// Says what was being done when an error came.
pub trait Context<T> {
    /// `what` was being done, as in "opening the lock".
    fn during(self, what: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for std::io::Result<T> {
    fn during(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|error| LabError::Io(what.into(), error))
    }
}
