//! The control registers (4.2.2): 32 bits wide, each accessed whole.
//!
//! What is not a register, or not in that direction, reads zero and takes no writes.

use super::VirtioMmio;
use crate::bus::Action;
use crate::virtio::front::Line;

const MAGIC_VALUE: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
pub const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC_LOW: u64 = 0x080;
const QUEUE_DESC_HIGH: u64 = 0x084;
const QUEUE_DRIVER_LOW: u64 = 0x090;
const QUEUE_DRIVER_HIGH: u64 = 0x094;
const QUEUE_DEVICE_LOW: u64 = 0x0a0;
const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
const SHM_LEN_LOW: u64 = 0x0b0;
const SHM_BASE_HIGH: u64 = 0x0bc;
const QUEUE_RESET: u64 = 0x0c0;
const CONFIG_GENERATION: u64 = 0x0fc;
/// Device-specific configuration, to the end of the page.
pub const CONFIG: u64 = 0x100;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
/// Not a legacy device.
const MODERN: u32 = 2;
/// The vendor of virtio devices on PCI.
const VENDOR: u32 = 0x1af4;

pub fn read(device: &VirtioMmio, offset: u64) -> u32 {
    let signs = device.front.line().signs();
    match offset {
        MAGIC_VALUE => MAGIC,
        VERSION => MODERN,
        DEVICE_ID => device.front.kind().id().into(),
        VENDOR_ID => VENDOR,
        DEVICE_FEATURES => device.lock().offered_half(),
        // Zero where there is no such queue.
        QUEUE_NUM_MAX => device.lock().queue().map_or(0, |queue| queue.max.into()),
        QUEUE_READY => device
            .lock()
            .queue()
            .is_some_and(|queue| queue.enabled)
            .into(),
        INTERRUPT_STATUS => signs.isr().into(),
        STATUS => signs.status.get().into(),
        // There are no shared memory regions: length and address are -1.
        SHM_LEN_LOW..=SHM_BASE_HIGH if offset.is_multiple_of(4) => u32::MAX,
        CONFIG_GENERATION => signs.generation(),
        // QUEUE_RESET among them: a reset is done before its write is.
        _ => 0,
    }
}

pub fn write(device: &VirtioMmio, offset: u64, value: u32) -> Action {
    // Those of everyday use need no lock.
    match offset {
        QUEUE_NOTIFY => {
            device.front.notify(value.into());
            return Action::Continue;
        }
        INTERRUPT_ACK => {
            device.front.line().signs().clear_isr(value as u8);
            return Action::Continue;
        }
        _ => {}
    }
    let negotiation = &mut *device.lock();
    let signs = device.front.line().signs();
    // No queue has such a number, and none is that large.
    let small = u16::try_from(value).unwrap_or(u16::MAX);
    match offset {
        DEVICE_FEATURES_SEL => *negotiation.selectors().0 = value,
        DRIVER_FEATURES => negotiation.accept_half(&signs.status, value),
        DRIVER_FEATURES_SEL => *negotiation.selectors().1 = value,
        QUEUE_SEL => *negotiation.selectors().2 = small,
        QUEUE_NUM => {
            if let Some((_, queue)) = negotiation.queue_to_set_up() {
                queue.size = small;
            }
        }
        QUEUE_READY if value == 1 => device.front.enable_queue(negotiation),
        QUEUE_READY if value == 0 => device.front.disable_queue(negotiation),
        // The status is a byte.
        STATUS => {
            if let Ok(status) = u8::try_from(value) {
                return device.front.write_status(negotiation, status);
            }
        }
        QUEUE_DESC_LOW => negotiation.write_area_half(0, value),
        QUEUE_DESC_HIGH => negotiation.write_area_half(1, value),
        QUEUE_DRIVER_LOW => negotiation.write_area_half(2, value),
        QUEUE_DRIVER_HIGH => negotiation.write_area_half(3, value),
        QUEUE_DEVICE_LOW => negotiation.write_area_half(4, value),
        QUEUE_DEVICE_HIGH => negotiation.write_area_half(5, value),
        QUEUE_RESET if value == 1 => device.front.reset_queue(negotiation),
        _ => {}
    }
    Action::Continue
}
