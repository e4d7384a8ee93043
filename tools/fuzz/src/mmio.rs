//! MMIO registers of a virtio device, with queues that work behind them.

use devices::virtio::mmio::{VirtioMmio, VirtioMmioState};
use devices::{Action, BusDevice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::driver::Driver;
use crate::memory;
use crate::messages;
use crate::script::{Chain, Reader};
use crate::seeds::{Reached, Seed, seed};
use crate::transport::{self, Board, Registers};

const MOVES: usize = 300;

struct Page(VirtioMmio);

impl Page {
    fn put(&self, offset: u64, value: u32) -> Action {
        self.0.write(offset, &value.to_le_bytes())
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0xff; 4];
        self.0.read(offset, &mut data);
        u32::from_le_bytes(data)
    }
}

impl Registers for Page {
    fn status(&self) -> u8 {
        u8::try_from(self.get(0x70)).expect("the status is a byte")
    }
    fn set_status(&self, status: u8) {
        let action = self.put(0x70, status.into());
        if let Action::DriverOk(_) = action {
            assert_eq!(self.status() & 4, 4);
        }
    }
    fn features(&self, half: u32) -> u32 {
        let _ = self.put(0x14, half);
        self.get(0x10)
    }
    fn accept(&self, half: u32, bits: u32) {
        let _ = self.put(0x24, half);
        let _ = self.put(0x20, bits);
    }
    fn select(&self, queue: u16) {
        let _ = self.put(0x30, queue.into());
    }
    fn enable(&self, _queue: u16, size: u16, areas: [u64; 3]) {
        let _ = self.put(0x38, size.into());
        for (index, area) in (0_u64..).zip(areas) {
            let _ = self.put(0x80 + 0x10 * index, area as u32);
            let _ = self.put(0x84 + 0x10 * index, (area >> 32) as u32);
        }
        let _ = self.put(0x44, 1);
    }
}

/// A page of a board, and its interrupt line.
fn page(board: &Board) -> (Page, EventFd) {
    let line = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
    let other = line.try_clone().expect("another descriptor");
    (Page(VirtioMmio::new(board.backend(0), other)), line)
}

/// Runs the target.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) -> Reached {
    messages::begin();
    let mut from = Reader::new(data);
    let memory = memory::fresh();
    let mut board = Board::new(from.u8() & 7, Driver::new(memory.clone()), memory);
    let (mut device, mut line) = page(&board);
    let (mut live, mut raised, mut reset) = (0, 0, 0);
    for _ in 0..MOVES {
        if from.is_empty() {
            break;
        }
        match from.u8() % 10 {
            0..=2 => {
                let at = u64::from(from.u16() & 0xfff);
                let (len, value) = (usize::from(from.u8() % 9), from.array::<8>());
                let _ = device.0.write(at, &value[..len]);
                board.driver.give_up();
            }
            3 => {
                let at = u64::from(from.u16() & 0xfff);
                let len = usize::from(from.u8() % 9);
                device.0.read(at, &mut [0xff; 8][..len]);
            }
            // Words at their own places, which random accesses seldom are.
            4 => {
                let _ = device.put(u64::from(from.u8()) << 2, from.u32());
                board.driver.give_up();
            }
            5 => {
                let (without, size) = (from.u64(), 1 << (from.u8() % 9));
                transport::set_up(&device, &mut board, without, size);
            }
            6 => {
                let chain = Chain::new(from.u8() & 7, &[], &[from.u16()]);
                board.driver.offer(&chain);
                let _ = device.put(VirtioMmio::NOTIFY, chain.queue.into());
            }
            7 => {
                board.serve();
                let status = device.get(0x60);
                raised += u64::from(line.read().is_ok());
                let _ = device.put(0x64, status);
                assert_eq!(device.get(0x60), 0, "acknowledged");
            }
            8 => {
                board.worker.lock().device().quiesce();
                let state = device.0.save();
                let text = serde_json::to_string(&state).expect("a state can be written");
                let state: VirtioMmioState =
                    serde_json::from_str(&text).expect("what was written can be read");
                board.replace_device();
                (device, line) = page(&board);
                device.0.restore(&state);
                let (old, new) = (&state.front.negotiation, device.0.save().front.negotiation);
                assert_eq!(old.queues, new.queues);
            }
            _ => {
                // 2.1.2: after a reset everything is as at first.
                let _ = device.put(0x70, 0);
                assert_eq!((device.get(0x70), device.get(0x60)), (0, 0));
                board.driver.start_over();
                reset += 1;
            }
        }
        assert_eq!((device.get(0), device.get(4)), (0x7472_6976, 2));
        live += u64::from(device.status() & 4 != 0);
    }
    let mut reached = board.end();
    for (name, count) in [("live", live), ("raised", raised), ("reset", reset)] {
        reached.insert(name.into(), count);
    }
    messages::end();
    reached
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let set_up = [&[5][..], &[0; 8], &[4]].concat();
    let fill = [6, 0, 64, 0, 7];
    let word = |register: u16, value: u32| {
        let mut bytes = vec![4, (register >> 2) as u8];
        bytes.extend(value.to_le_bytes());
        bytes
    };
    let good = [&[0][..], &set_up, &fill, &[8], &fill, &[9]].concat();
    let queue_reset = [
        &[0][..],
        &set_up,
        &fill,
        &word(0xc0, 1),
        &fill,
        &word(0x38, 8),
        &word(0x44, 1),
        &fill,
        &word(0x44, 0),
    ]
    .concat();
    let by_hand = [
        &[0][..],
        &word(0x70, 1),
        &word(0x70, 3),
        &word(0x24, 1),
        &word(0x20, 1),
        &word(0x70, 11),
        &word(0x30, 0),
        &word(0x38, 16),
        &word(0x80, 0x1_0000),
        &word(0x90, 0x1_1000),
        &word(0xa0, 0x1_2000),
        &word(0x44, 1),
        &word(0x70, 15),
        &word(0x50, 0),
        &[7],
        &[3, 0x70, 0, 4],
        &[0, 0x00, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8],
        &word(0x70, 128),
    ]
    .concat();
    vec![
        seed(
            "good",
            good,
            &["live", "raised", "completed", "reset", "bytes"],
        ),
        seed("queue-reset", queue_reset, &["live", "completed"]),
        seed("by-hand", by_hand, &["live"]),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
