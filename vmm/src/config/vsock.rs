//! The socket device.

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use devices::virtio::vsock::MOST_PATH;
use serde::{Deserialize, Serialize};

use super::ConfigError;

/// Stream sockets between the guest (`AF_VSOCK`) and programs of the host (Unix sockets).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// Context ID of the guest: its address, from 3 to 2^32 - 2. It need not be unique on the host.
    pub guest_cid: u32,
    /// Unix socket by which programs of the host reach the guest. A guest that connects to port P of the host (CID 2) is
    /// connected to the Unix socket at this path with `_P` behind it. The socket is made when the VM is built and removed
    /// when the process ends; who may use it is up to the process's umask. One that nobody listens on any more is replaced.
    pub uds_path: PathBuf,
    /// Without effect: Firecracker has it for old files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
    /// Name of a thread of its own, 1 to 15 bytes. Devices with the same one share it. Tandem's own field.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_thread: Option<String>,
}

impl VsockConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(3..u32::MAX).contains(&self.guest_cid) {
            return Err(ConfigError::new(
                "vsock.guest_cid",
                format!("is {}, which is reserved", self.guest_cid),
                "give 3 to 4294967294",
            ));
        }
        let path = self.uds_path.as_os_str().as_bytes();
        if path.is_empty() || path.len() > MOST_PATH || path.contains(&0) {
            let problem = match path.len() {
                0 => "is empty".into(),
                len if len > MOST_PATH => format!("has {len} bytes"),
                _ => "has a zero byte in it".into(),
            };
            return Err(ConfigError::new(
                "vsock.uds_path",
                problem,
                format!("give a path of 1 to {MOST_PATH} bytes"),
            ));
        }
        if let Some(name) = &self.io_thread
            && (!(1..=15).contains(&name.len()) || name.contains('\0'))
        {
            return Err(ConfigError::new(
                "vsock.io_thread",
                format!("has {} bytes, or a zero byte in it", name.len()),
                "give a name of 1 to 15 bytes",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut VsockConfig)) -> Option<String> {
        let mut vsock = VsockConfig {
            guest_cid: 3,
            uds_path: "v.sock".into(),
            vsock_id: None,
            io_thread: None,
        };
        change(&mut vsock);
        vsock.validate().err().map(|error| error.field)
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(check(|_| ()), None);
        assert_eq!(check(|v| v.guest_cid = u32::MAX - 1), None);
        for cid in [0, 1, 2, u32::MAX] {
            assert_eq!(
                check(|v| v.guest_cid = cid).as_deref(),
                Some("vsock.guest_cid")
            );
        }
        assert_eq!(check(|v| v.uds_path = "x".repeat(107).into()), None);
        for path in [String::new(), "x".repeat(108), "a\0b".into()] {
            let field = check(|v| v.uds_path = path.into());
            assert_eq!(field.as_deref(), Some("vsock.uds_path"));
        }
        assert_eq!(check(|v| v.io_thread = Some("x".repeat(15))), None);
        for name in [String::new(), "x".repeat(16), "a\0".into()] {
            let field = check(|v| v.io_thread = Some(name));
            assert_eq!(field.as_deref(), Some("vsock.io_thread"));
        }
    }
}
