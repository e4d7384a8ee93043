//! Which virtio devices a configuration asks for, in the order in which the guest finds them.

use devices::virtio::VirtioDevice;
use devices::virtio::balloon::Balloon;
use devices::virtio::block::Block;
use devices::virtio::rng::Entropy;

use super::error::BuildError;
use crate::config::VmConfig;

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
pub fn make(config: &VmConfig) -> Result<Vec<Spec>, BuildError> {
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
    Ok(specs)
}
