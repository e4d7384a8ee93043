//! Changes of single sections: what a request gives of them, plain data like the sections themselves.
//!
//! What is left out, or `null`, stays as it is.

use std::path::PathBuf;

use devices::virtio::rate_limiter::RateLimiterConfig;
use serde::{Deserialize, Serialize};

use super::{CpuTemplate, HugePages, MachineConfig, Transport};

/// A change of the [`MachineConfig`], before the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachinePatch {
    /// vCPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_count: Option<u8>,
    /// Memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mem_size_mib: Option<u64>,
    /// Whether two vCPUs each look like the threads of one core.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smt: Option<bool>,
    /// CPU template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_template: Option<CpuTemplate>,
    /// Whether KVM keeps a log of the pages that the guest writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// Pages that back the guest's memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub huge_pages: Option<HugePages>,
    /// What the guest finds its virtio devices by. Tandem's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
}

impl MachinePatch {
    /// Whether it changes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// `machine` with the change.
    pub fn applied_to(&self, machine: &MachineConfig) -> MachineConfig {
        let mut changed = machine.clone();
        set(&mut changed.vcpu_count, self.vcpu_count);
        set(&mut changed.mem_size_mib, self.mem_size_mib);
        set(&mut changed.smt, self.smt);
        set(&mut changed.cpu_template, self.cpu_template);
        set(&mut changed.track_dirty_pages, self.track_dirty_pages);
        set(&mut changed.huge_pages, self.huge_pages);
        changed.transport = self.transport.or(changed.transport);
        changed
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// A change of a drive that is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrivePatch {
    /// Name of the drive.
    pub drive_id: String,
    /// File or block device that takes the place of the present one; the same path has it opened again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<PathBuf>,
    /// Limits of bytes and requests. A bucket that is left out stays as it is; one of size 0 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiterConfig>,
}

/// A change of a network interface that is in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InterfacePatch {
    /// Name of the interface.
    pub iface_id: String,
    /// Limits of what the guest receives, as in [`DrivePatch::rate_limiter`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiterConfig>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiterConfig>,
}

/// Another size of the balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonPatch {
    /// Memory in MiB that the guest shall do without.
    pub amount_mib: u32,
}

/// Another time between two statistics of the balloon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BalloonStatisticsPatch {
    /// Seconds.
    pub stats_polling_interval_s: u16,
}

/// `limits` with the buckets that `change` has in the place of the old ones; one of size 0 is none.
pub fn changed_limits(
    limits: Option<RateLimiterConfig>,
    change: &RateLimiterConfig,
) -> Option<RateLimiterConfig> {
    let limits = limits.unwrap_or_default();
    let limiting = |bucket: &devices::virtio::rate_limiter::BucketConfig| {
        bucket.size > 0 && bucket.refill_time > 0
    };
    let changed = RateLimiterConfig {
        bandwidth: change.bandwidth.or(limits.bandwidth).filter(limiting),
        ops: change.ops.or(limits.ops).filter(limiting),
    };
    (changed != RateLimiterConfig::default()).then_some(changed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use devices::virtio::rate_limiter::BucketConfig;

    #[test]
    fn what_is_left_out_stays() {
        let patch: MachinePatch = serde_json::from_str(r#"{"vcpu_count": 2}"#).unwrap();
        let machine = MachineConfig {
            mem_size_mib: 77,
            ..MachineConfig::default()
        };
        let changed = patch.applied_to(&machine);
        assert_eq!((changed.vcpu_count, changed.mem_size_mib), (2, 77));
        let nothing: MachinePatch = serde_json::from_str(r#"{"smt": null}"#).unwrap();
        assert!(nothing.is_empty() && !patch.is_empty());
        assert!(serde_json::from_str::<MachinePatch>(r#"{"ht": true}"#).is_err());
    }

    #[test]
    fn limits_change_bucket_by_bucket() {
        let bucket = |size| {
            Some(BucketConfig {
                size,
                one_time_burst: None,
                refill_time: 100,
            })
        };
        let limits = |bandwidth, ops| RateLimiterConfig { bandwidth, ops };
        let before = Some(limits(bucket(1), bucket(2)));
        let changed = changed_limits(before, &limits(None, bucket(3)));
        assert_eq!(changed, Some(limits(bucket(1), bucket(3))));
        let changed = changed_limits(before, &limits(bucket(0), None));
        assert_eq!(changed, Some(limits(None, bucket(2))));
        let changed = changed_limits(before, &limits(bucket(0), bucket(0)));
        assert_eq!(changed, None);
    }
}
