//! What a running machine has to change to be as another configuration says.

use devices::virtio::Update;
use devices::virtio::block::BlockUpdate;
use devices::virtio::rate_limiter::{BucketConfig, RateLimiterConfig};
use serde_json::Value;

use super::specs::net_name;
use crate::config::{NetworkInterface, VmConfig};

/// The difference between two configurations of a machine that runs.
#[derive(Debug, PartialEq, Eq)]
pub struct Changes {
    /// What can be changed now, by the device's name.
    pub updates: Vec<(String, Update)>,
    /// Fields that differ and can only be changed by starting the machine again.
    pub refused: Vec<String>,
    /// The configuration that is reached by `updates`.
    pub reached: VmConfig,
}

/// What to do about a machine that was started by `from` so that it is as `to` says.
pub fn changes(from: &VmConfig, to: &VmConfig) -> Changes {
    let mut updates = Vec::new();
    // `from` with all that can be changed taken over: what differs after that cannot.
    let mut reached = from.clone();
    if let (Some(entropy), Some(wanted)) = (&mut reached.entropy, &to.entropy)
        && entropy != wanted
    {
        let limits = whole(wanted.rate_limiter.as_ref());
        updates.push(("entropy".into(), Update::Entropy(limits)));
        *entropy = *wanted;
    }
    if let (Some(balloon), Some(wanted)) = (&mut reached.balloon, &to.balloon)
        && balloon.wanted() != wanted.wanted()
    {
        updates.push(("balloon".into(), Update::Balloon(wanted.wanted())));
        balloon.amount_mib = wanted.amount_mib;
        balloon.stats_polling_interval_s = wanted.stats_polling_interval_s;
    }
    for (index, drive) in reached.drives.iter_mut().enumerate() {
        let wanted = to.drives.get(index);
        let Some(wanted) = wanted.filter(|wanted| wanted.drive_id == drive.drive_id) else {
            continue;
        };
        // Also where nothing differs: the file may have another size now.
        let update = BlockUpdate {
            path: wanted.path_on_host.clone(),
            reopen: false,
            limits: whole(wanted.rate_limiter.as_ref()),
        };
        updates.push((format!("block_{}", drive.drive_id), Update::Block(update)));
        drive.path_on_host.clone_from(&wanted.path_on_host);
        drive.rate_limiter = wanted.rate_limiter;
    }
    for (interface, wanted) in reached
        .network_interfaces
        .iter_mut()
        .zip(&to.network_interfaces)
    {
        let limits = |of: &NetworkInterface| (of.rx_rate_limiter, of.tx_rate_limiter);
        if interface.iface_id == wanted.iface_id && limits(interface) != limits(wanted) {
            let (rx, tx) = limits(wanted);
            let update = Update::Net {
                rx: whole(rx.as_ref()),
                tx: whole(tx.as_ref()),
            };
            updates.push((net_name(interface), update));
            (interface.rx_rate_limiter, interface.tx_rate_limiter) = (rx, tx);
        }
    }
    let text = |config: &VmConfig| serde_json::to_value(config).unwrap_or_default();
    let mut refused = Vec::new();
    differing(&text(&reached), &text(to), &mut String::new(), &mut refused);
    Changes {
        updates,
        refused,
        reached,
    }
}

/// Limits as an update that leaves none of the old ones: no limit where there is none.
fn whole(limits: Option<&RateLimiterConfig>) -> RateLimiterConfig {
    const UNLIMITED: BucketConfig = BucketConfig {
        size: 0,
        one_time_burst: None,
        refill_time: 0,
    };
    let limits = limits.copied().unwrap_or_default();
    RateLimiterConfig {
        bandwidth: Some(limits.bandwidth.unwrap_or(UNLIMITED)),
        ops: Some(limits.ops.unwrap_or(UNLIMITED)),
    }
}

/// Adds the path of each field that is not the same.
fn differing(from: &Value, to: &Value, path: &mut String, found: &mut Vec<String>) {
    let (Value::Object(from), Value::Object(to)) = (from, to) else {
        if from != to {
            found.push(path.clone());
        }
        return;
    };
    let both = from
        .keys()
        .chain(to.keys().filter(|key| !from.contains_key(*key)));
    for key in both {
        let len = path.len();
        if len > 0 {
            path.push('.');
        }
        path.push_str(key);
        let field = |object: &serde_json::Map<_, _>| object.get(key).cloned().unwrap_or_default();
        differing(&field(from), &field(to), path, found);
        path.truncate(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{BalloonConfig, BootSource, EntropyConfig};
    use devices::virtio::balloon::Wanted;

    fn config(ops: Option<u64>) -> VmConfig {
        let ops = ops.map(|size| BucketConfig {
            size,
            one_time_burst: None,
            refill_time: 100,
        });
        let rate_limiter = ops.map(|_| RateLimiterConfig {
            bandwidth: None,
            ops,
        });
        let mut config = VmConfig::new(BootSource::new("/k"));
        config.entropy = Some(EntropyConfig { rate_limiter });
        config
    }

    #[test]
    fn nothing_changes_where_nothing_differs() {
        let config = config(Some(5));
        let found = changes(&config, &config);
        assert_eq!((found.updates.len(), found.refused.len()), (0, 0));
        assert_eq!(found.reached, config);
    }

    #[test]
    fn limits_can_be_changed_and_taken_away() {
        let ops = |changes: Changes| match changes.updates.as_slice() {
            [(name, Update::Entropy(limits))] if name == "entropy" => limits.ops.map(|b| b.size),
            other => panic!("{other:?}"),
        };
        let (five, six, none) = (config(Some(5)), config(Some(6)), config(None));
        assert_eq!(ops(changes(&five, &six)), Some(6));
        assert_eq!(ops(changes(&five, &none)), Some(0));
        let found = changes(&five, &none);
        assert!(found.refused.is_empty());
        assert_eq!(found.reached, none);
    }

    #[test]
    fn a_balloon_can_be_told_another_size() {
        let mut from = config(None);
        from.balloon = Some(BalloonConfig::default());
        let mut to = from.clone();
        to.balloon = Some(BalloonConfig {
            amount_mib: 5,
            stats_polling_interval_s: 7,
            free_page_reporting: true,
            ..BalloonConfig::default()
        });
        let found = changes(&from, &to);
        let wanted = Update::Balloon(Wanted {
            amount_mib: 5,
            stats_polling_interval_s: 7,
        });
        assert_eq!(found.updates, [("balloon".into(), wanted)]);
        assert_eq!(found.refused, ["balloon.free_page_reporting"]);
        assert_eq!(found.reached.balloon.map(|b| b.amount_mib), Some(5));
        assert!(changes(&found.reached, &to).updates.is_empty());
    }

    #[test]
    fn an_interface_gets_other_limits() {
        let mut from = config(None);
        from.network_interfaces = vec![NetworkInterface::new("eth0", "tap0")];
        let mut to = from.clone();
        let limits = config(Some(7)).entropy.unwrap().rate_limiter;
        to.network_interfaces[0].rx_rate_limiter = limits;
        let found = changes(&from, &to);
        let [(name, Update::Net { rx, tx })] = found.updates.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(name, "net_eth0");
        assert_eq!(rx.ops.map(|bucket| bucket.size), Some(7));
        assert_eq!(tx.ops.map(|bucket| bucket.size), Some(0));
        assert_eq!((found.refused.len(), &found.reached), (0, &to));
        to.network_interfaces[0].iface_id = "eth1".into();
        let found = changes(&from, &to);
        assert_eq!((found.updates.len(), found.refused.len()), (0, 1));
    }

    #[test]
    fn what_needs_a_new_start_is_named() {
        let from = config(None);
        let mut to = from.clone();
        to.machine_config.vcpu_count = 7;
        to.boot_source.boot_args = Some("x".into());
        to.entropy = None;
        let found = changes(&from, &to);
        assert!(found.updates.is_empty());
        assert_eq!(found.reached, from);
        let mut refused = found.refused;
        refused.sort();
        assert_eq!(
            refused,
            [
                "boot-source.boot_args",
                "entropy",
                "machine-config.vcpu_count"
            ]
        );
    }
}
