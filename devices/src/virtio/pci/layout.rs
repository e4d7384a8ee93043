//! Where the structures are in the BAR, and the capabilities that say so (4.1.4).

use crate::pci::{ConfigSpace, Ids, Msix};
use crate::virtio::DeviceType;

/// Bytes of the BAR; a page for each structure.
pub const BAR_SIZE: u32 = 0x8000;
/// Vectors that the table's page has room for.
pub const MOST_VECTORS: u16 = 256;
/// Bytes from one queue's doorbell to the next (`notify_off_multiplier`).
pub const NOTIFY_STEP: u32 = 4;

const PAGE: u32 = 0x1000;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const NOTIFY: u32 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x5000;

/// PCI vendor of all virtio devices, and the id from which a modern one's counts (4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// Vendor-specific capability.
const CAPABILITY: u8 = 0x09;

/// `cfg_type` (4.1.4).
const COMMON_CFG: u8 = 1;
const NOTIFY_CFG: u8 = 2;
const ISR_CFG: u8 = 3;
const DEVICE_CFG: u8 = 4;
const PCI_CFG: u8 = 5;

/// A structure in the BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Structure {
    Common,
    Isr,
    Device,
    Notify,
    MsixTable,
    MsixPending,
}

/// The structure that has all of an access, and the offset in it.
pub fn find(offset: u64, len: usize) -> Option<(Structure, u64)> {
    let structure = match u32::try_from(offset).ok()? & !(PAGE - 1) {
        0 => Structure::Common,
        ISR => Structure::Isr,
        DEVICE => Structure::Device,
        NOTIFY => Structure::Notify,
        MSIX_TABLE => Structure::MsixTable,
        MSIX_PENDING => Structure::MsixPending,
        _ => return None,
    };
    let within = offset & u64::from(PAGE - 1);
    (within + len as u64 <= u64::from(PAGE)).then_some((structure, within))
}

/// Where a queue's doorbell is in the BAR.
pub fn notify_offset(queue: u16) -> u64 {
    u64::from(NOTIFY) + u64::from(queue) * u64::from(NOTIFY_STEP)
}

/// Where the capabilities are that the function itself looks at.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    msix: u16,
    access: u16,
}

impl Capabilities {
    /// Message control of MSI-X.
    pub fn msix_control(self, config: &ConfigSpace) -> u16 {
        config.u16_at(self.msix + 2)
    }

    /// BAR, offset and length of the access that the guest describes.
    pub fn access(self, config: &ConfigSpace) -> (u8, u32, u32) {
        let [bar, _] = config.u16_at(self.access + 4).to_le_bytes();
        let offset = config.u32_at(self.access + 8);
        (bar, offset, config.u32_at(self.access + 12))
    }

    /// Where the guest accesses it (`pci_cfg_data`).
    pub fn access_data(self) -> u16 {
        self.access + 16
    }
}

/// Configuration space of a device of that type.
pub fn config_space(kind: DeviceType, bar: u32, vectors: u16) -> (ConfigSpace, Capabilities) {
    let id = FIRST_DEVICE + kind.id();
    let mut config = ConfigSpace::new(Ids {
        vendor: VENDOR,
        device: id,
        // 4.1.2.1: from 1 for a device that is not transitional.
        revision: 1,
        class: kind.pci_class(),
        subsystem_vendor: VENDOR,
        subsystem: id,
    });
    config.set_bar(bar, BAR_SIZE);
    let mut body = (vectors - 1).to_le_bytes().to_vec();
    body.extend(MSIX_TABLE.to_le_bytes());
    body.extend(MSIX_PENDING.to_le_bytes());
    let control = (Msix::ENABLE | Msix::FUNCTION_MASK).to_le_bytes();
    // Capabilities need 112 of the 192 bytes: none can fail.
    let msix = config
        .add_capability(Msix::CAPABILITY, &body, &control)
        .unwrap_or_default();
    for (kind, offset, len, extra) in [
        (COMMON_CFG, 0, super::common::LEN, None),
        (NOTIFY_CFG, NOTIFY, PAGE, Some(NOTIFY_STEP)),
        (ISR_CFG, ISR, 1, None),
        (DEVICE_CFG, DEVICE, PAGE, None),
    ] {
        config.add_capability(CAPABILITY, &capability(kind, offset, len, extra), &[]);
    }
    let body = capability(PCI_CFG, 0, 0, Some(0));
    let mut writable = vec![0; 2];
    // BAR, then offset and length.
    writable.extend([0xff, 0, 0, 0]);
    writable.extend([0xff; 8]);
    let access = config
        .add_capability(CAPABILITY, &body, &writable)
        .unwrap_or_default();
    (config, Capabilities { msix, access })
}

/// `struct virtio_pci_cap` behind its first two bytes, in BAR 0.
fn capability(kind: u8, offset: u32, len: u32, extra: Option<u32>) -> Vec<u8> {
    let total = if extra.is_some() { 20 } else { 16 };
    // cap_len, cfg_type, bar, id, padding.
    let mut body = vec![total, kind, 0, 0, 0, 0];
    for word in [Some(offset), Some(len), extra].into_iter().flatten() {
        body.extend(word.to_le_bytes());
    }
    body
}
