//! Which virtio devices a configuration asks for, in the order in which the guest finds them.

use std::sync::Arc;

use devices::mmds::Mmds;
use devices::virtio::VirtioDevice;
use devices::virtio::balloon::Balloon;
use devices::virtio::block::Block;
use devices::virtio::console::{self, Console, Input, Size};
use devices::virtio::net::passt::Passt;
use devices::virtio::net::tap::Tap;
use devices::virtio::net::vhost::Vhost;
use devices::virtio::net::{self, Link, Net};
use devices::virtio::rng::Entropy;
use devices::virtio::vsock::Vsock;
use vmm_sys_util::eventfd::EventFd;

use super::error::BuildError;
use crate::config::{ConfigError, MmdsConfig, NetBackend, NetworkInterface, VmConfig};
use crate::console::Output;

/// A device to be.
pub struct Spec {
    /// Name in the timeline and among the counters, unique in its machine: `entropy`, `block_ID`, `net_ID`.
    pub name: String,
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// The thread that serves it: those of the same name share one. `None` for [`IO`].
    pub thread: Option<String>,
}

/// The thread of devices that have not been given another.
pub const IO: &str = "io";

/// Makes them, which opens what they need on the host.
///
/// # Errors
/// [`BuildError`].
pub fn make(config: &VmConfig, mmds: &Mmds) -> Result<Vec<Spec>, BuildError> {
    let mut specs = Vec::new();
    for (index, drive) in config.drives_in_order() {
        let options = drive.options(config.machine_config.vcpu_count);
        let device = Block::new(options).map_err(|error| BuildError::Drive { index, error })?;
        specs.push(Spec {
            name: format!("block_{}", drive.drive_id),
            device: Box::new(device),
            thread: drive.io_thread.clone(),
        });
    }
    let metadata = config.mmds_config.as_ref();
    if let Some(metadata) = metadata {
        mmds.configure(metadata.behaviour());
    }
    for (index, interface) in config.network_interfaces.iter().enumerate() {
        let mut device = network_device(index, interface)?;
        let reaches = |mmds: &&MmdsConfig| mmds.network_interfaces.contains(&interface.iface_id);
        if let Some(metadata) = metadata.filter(reaches) {
            let there = device.with_mmds(mmds, metadata.address());
            device = there.map_err(BuildError::Event)?;
        }
        specs.push(Spec {
            name: net_name(interface),
            device: Box::new(device),
            thread: interface.io_thread.clone(),
        });
    }
    if let Some(entropy) = &config.entropy {
        let limits = entropy.rate_limiter.unwrap_or_default();
        specs.push(Spec {
            name: "entropy".into(),
            device: Box::new(Entropy::new(&limits)),
            thread: None,
        });
    }
    if let Some(balloon) = &config.balloon {
        let settings = balloon.settings(&config.machine_config);
        specs.push(Spec {
            name: "balloon".into(),
            device: Box::new(Balloon::new(settings)),
            thread: None,
        });
    }
    if let Some(vsock) = &config.vsock {
        let device = Vsock::new(vsock.guest_cid, &vsock.uds_path);
        specs.push(Spec {
            name: "vsock".into(),
            device: Box::new(device.map_err(BuildError::Vsock)?),
            thread: vsock.io_thread.clone(),
        });
    }
    Ok(specs)
}

/// Name of an interface's device.
pub fn net_name(interface: &NetworkInterface) -> String {
    format!("net_{}", interface.iface_id)
}

fn network_device(index: usize, interface: &NetworkInterface) -> Result<Net, BuildError> {
    let name = interface.host_dev_name.as_deref().unwrap_or_default();
    let path = interface.socket_path.as_deref().unwrap_or("".as_ref());
    let wrong = |field: &str| {
        let field = format!("network-interfaces[{index}].{field}");
        move |error: net::OpenError| {
            let problem = format!("{}: {}", error.problem, error.error);
            ConfigError::new(field, problem, error.remedy)
        }
    };
    let tap = || Tap::open(name, interface.pairs()).map_err(wrong("host_dev_name"));
    let link = match interface.backend {
        NetBackend::Tap => Link::Tap(tap()?),
        NetBackend::VhostNet => {
            let vhost = Vhost::new(tap()?).map_err(wrong("backend"))?;
            Link::Vhost(Box::new(vhost))
        }
        NetBackend::Passt => Link::Passt(Passt::open(path).map_err(wrong("socket_path"))?),
    };
    let mac = match interface.guest_mac {
        Some(mac) => mac.0,
        None => net::random_address().map_err(BuildError::Event)?,
    };
    let options = net::Options {
        name: interface.iface_id.clone(),
        mac,
        mtu: interface.mtu,
        pairs: interface.pairs(),
        rx_limits: interface.rx_rate_limiter.unwrap_or_default(),
        tx_limits: interface.tx_rate_limiter.unwrap_or_default(),
    };
    Net::new(options, link).map_err(BuildError::Event)
}

/// Makes a virtio console, and the way of input to it. `space` is signalled when the guest has taken all of that.
///
/// # Errors
/// [`BuildError`].
pub fn console(
    output: &Output,
    space: &EventFd,
    size: Option<Size>,
) -> Result<(Spec, Arc<Input>), BuildError> {
    let wake = console::wake_event().map_err(BuildError::Event)?;
    let writer = output.waking_writer(wake.try_clone().map_err(BuildError::Event)?);
    let space = space.try_clone().map_err(BuildError::Event)?;
    let device = Console::new(Box::new(writer), wake, space, size).map_err(BuildError::Event)?;
    let input = device.input();
    let spec = Spec {
        name: "console".into(),
        device: Box::new(device),
        thread: None,
    };
    Ok((spec, input))
}
