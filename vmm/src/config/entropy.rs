//! The entropy device.

use serde::{Deserialize, Serialize};

use super::unsupported::{Unsupported, absent};

/// A virtio entropy device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EntropyConfig {
    /// Firecracker's limit of bytes and requests: not there yet.
    #[serde(default, skip_serializing_if = "absent")]
    rate_limiter: Unsupported,
}
