//! The common configuration structure (4.1.4.3).
//!
//! Fields are accessed whole, those of 8 bytes also by halves (4.1.3.1); other accesses read zero and write nothing.

use super::{State, VirtioPci};
use crate::bus::Action;
use crate::virtio::front::Line;

/// Bytes of the structure.
pub const LEN: u32 = 0x3c;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: u64 = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const NUM_QUEUES: u64 = 0x12;
const DEVICE_STATUS: u64 = 0x14;
const CONFIG_GENERATION: u64 = 0x15;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFFSET: u64 = 0x1e;
const QUEUE_AREAS: u64 = 0x20;
const QUEUE_AREAS_END: u64 = 0x38;
const QUEUE_RESET: u64 = 0x3a;

/// Reads. `data` is zeroed.
pub fn read(function: &VirtioPci, state: &mut State, offset: u64, data: &mut [u8]) {
    let signals = function.front.line();
    let negotiation = &mut state.negotiation;
    let (offered_select, accepted_select, queue_select) = negotiation.selectors();
    let (offered_select, accepted_select, selected) =
        (*offered_select, *accepted_select, *queue_select);
    let queue = negotiation.queue();
    let value: u64 = match (offset, data.len()) {
        (DEVICE_FEATURE_SELECT, 4) => offered_select.into(),
        (DEVICE_FEATURE, 4) => negotiation.offered_half().into(),
        (DRIVER_FEATURE_SELECT, 4) => accepted_select.into(),
        (DRIVER_FEATURE, 4) => negotiation.accepted_half().into(),
        (CONFIG_VECTOR, 2) => signals.config_vector().into(),
        (NUM_QUEUES, 2) => negotiation.queues().into(),
        (DEVICE_STATUS, 1) => signals.signs().status.get().into(),
        (CONFIG_GENERATION, 1) => signals.signs().generation().into(),
        (QUEUE_SELECT, 2) => selected.into(),
        // Zero where there is no such queue.
        (QUEUE_SIZE, 2) => queue.map_or(0, |queue| queue.size).into(),
        (QUEUE_VECTOR, 2) => signals.queue_vector(selected).into(),
        (QUEUE_ENABLE, 2) => queue.is_some_and(|queue| queue.enabled).into(),
        (QUEUE_NOTIFY_OFFSET, 2) if queue.is_some() => selected.into(),
        (QUEUE_AREAS..QUEUE_AREAS_END, 4 | 8) if offset.is_multiple_of(data.len() as u64) => {
            let at = offset - QUEUE_AREAS;
            let area = queue.and_then(|queue| queue.areas.get((at / 8) as usize));
            area.map_or(0, |area| area >> (8 * (at % 8)))
        }
        // QUEUE_RESET among them: a reset is done before its write is.
        _ => 0,
    };
    for (slot, byte) in data.iter_mut().zip(value.to_le_bytes()) {
        *slot = byte;
    }
}

/// Writes.
pub fn write(function: &VirtioPci, state: &mut State, offset: u64, data: &[u8]) -> Action {
    let signals = function.front.line();
    let negotiation = &mut state.negotiation;
    let mut bytes = [0; 8];
    for (slot, byte) in bytes.iter_mut().zip(data) {
        *slot = *byte;
    }
    let value = u64::from_le_bytes(bytes);
    let (low, word) = (value as u32, value as u16);
    match (offset, data.len()) {
        (DEVICE_FEATURE_SELECT, 4) => *negotiation.selectors().0 = low,
        (DRIVER_FEATURE_SELECT, 4) => *negotiation.selectors().1 = low,
        (DRIVER_FEATURE, 4) => negotiation.accept_half(&signals.signs().status, low),
        (CONFIG_VECTOR, 2) => signals.set_config_vector(word),
        (DEVICE_STATUS, 1) => {
            let action = function.front.write_status(negotiation, value as u8);
            function.place(state);
            return action;
        }
        (QUEUE_SELECT, 2) => *negotiation.selectors().2 = word,
        (QUEUE_SIZE, 2) => {
            if let Some((_, queue)) = negotiation.queue_to_set_up() {
                queue.size = word;
            }
        }
        (QUEUE_VECTOR, 2) => signals.set_queue_vector(*negotiation.selectors().2, word),
        // There is no way to disable a queue but a reset.
        (QUEUE_ENABLE, 2) if word == 1 => function.front.enable_queue(negotiation),
        (QUEUE_RESET, 2) if word == 1 => function.front.reset_queue(negotiation),
        (QUEUE_AREAS..QUEUE_AREAS_END, 4 | 8) if offset.is_multiple_of(data.len() as u64) => {
            let half = ((offset - QUEUE_AREAS) / 4) as usize;
            negotiation.write_area_half(half, low);
            if data.len() == 8 {
                negotiation.write_area_half(half + 1, (value >> 32) as u32);
            }
        }
        _ => {}
    }
    Action::Continue
}
