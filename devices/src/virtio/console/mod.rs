//! Console (5.3) with one port: in place of the serial port, at a fraction of its exits.
//!
//! Output goes to an [`Output`]. While that is congested, what the driver sends stays in its queue: a reader that does not read
//! holds up the guest's console, and nothing is lost. Linux waits for its output with a spinning vCPU, so that vCPU's thread
//! is the one that takes it.
//!
//! Input is offered to the [`Input`], and waits there for a driver that takes it.

mod input;
#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{
    Activation, Broken, Buffer, Counters, DeviceState, DeviceType, Progress, QueueReset, Ring,
    RingState, Update, UpdateError, VirtioDevice, chain,
};
use crate::legacy::serial::Output;
use crate::limit::LogLimit;
use crate::pci::read_bytes;
pub use input::Input;

/// Feature bits (5.3.3), with those that all devices have.
mod feature {
    pub use super::super::feature::COMMON;
    /// The size of the terminal is known.
    pub const SIZE: u64 = 1 << 0;
    /// Bytes can be written without a queue.
    pub const EMERG_WRITE: u64 = 1 << 2;
}

/// Queues (5.3.2) of port 0.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Largest sizes of these. Linux fills the first with a page for each entry.
const QUEUE_SIZES: [u16; 2] = [16, 64];
/// Chains that are served before it is another device's turn.
const CHAINS_A_TURN: usize = 16;
/// Bytes of a chain that are sent at once.
const PIECE: usize = 4096;
/// Where bytes are written without a queue (5.3.4).
const EMERGENCY_WRITE: u64 = 8;

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// The device.
pub struct Console {
    size: Option<Size>,
    output: Box<dyn Output>,
    input: Arc<Input>,
    /// Readable when there is input, or room for output again.
    wake: EventFd,
    active: Option<Activation>,
    buffers: Vec<Buffer>,
    /// Bytes of the next chain to send that were sent already.
    sent: u64,
    counts: Counts,
    limit: LogLimit,
}

/// Counters.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    received: u64,
    sent: u64,
    lost: u64,
}

/// Saved [`Console`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Positions in the queues, of those that are in use.
    pub rings: Vec<Option<RingState>>,
    /// Bytes of the next chain to send that were sent already.
    pub sent: u64,
    /// Input that the guest has not taken.
    pub input: Vec<u8>,
}

/// What wakes a console. Its [`Output`] has a copy, to signal that it is no longer congested.
///
/// # Errors
/// The host is out of descriptors.
pub fn wake_event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}

impl Console {
    /// A console that sends to `output` and is woken by `wake`, a [`wake_event`]. After `output` has said that it is congested, it
    /// signals `wake` when it is no longer. `space` is signalled when the guest has taken all input. With a `size` the driver
    /// is told of it, and of its changes.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(
        output: Box<dyn Output>,
        wake: EventFd,
        space: EventFd,
        size: Option<Size>,
    ) -> io::Result<Self> {
        Ok(Self {
            size,
            output,
            input: Arc::new(Input::new(wake.try_clone()?, space)),
            wake,
            active: None,
            buffers: Vec::new(),
            sent: 0,
            counts: Counts::default(),
            limit: LogLimit::default(),
        })
    }

    /// Where input is offered.
    pub fn input(&self) -> Arc<Input> {
        self.input.clone()
    }

    /// Sends what the driver has queued, for as long as there is room.
    fn transmit(&mut self) -> Result<Progress, Broken> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let Some(Some(ring)) = active.rings.get_mut(usize::from(TRANSMIT)) else {
            return Ok(Progress::Done);
        };
        let mut progress = Progress::More;
        for _ in 0..CHAINS_A_TURN {
            if self.output.is_congested() {
                // The rest stays where it is until the output wakes this device.
                progress = Progress::Done;
                break;
            }
            let Some(head) = ring.pop_or_ask(&mut self.buffers)? else {
                progress = Progress::Done;
                break;
            };
            let (mut rest, _) = chain::split(&active.memory, &self.buffers);
            rest.skip(self.sent);
            let mut bytes = [0; PIECE];
            let (bytes, _) = bytes.split_at_mut(rest.len().min(PIECE as u64) as usize);
            rest.read(bytes)?;
            let len = bytes.len() as u64;
            match self.output.write_all(bytes) {
                Ok(()) => self.counts.sent += len,
                Err(error) => {
                    self.counts.lost += len;
                    if self.limit.allow() {
                        log::warn!("console output was lost: {error}");
                    }
                }
            }
            if rest.is_empty() {
                self.sent = 0;
                ring.give_back(head, 0)?;
            } else {
                self.sent += len;
                ring.put_back(1);
            }
        }
        if ring.wants_interrupt()? {
            active.interrupt.used(TRANSMIT);
        }
        Ok(progress)
    }

    /// Gives input to the driver, for as long as it has buffers for it.
    fn receive(&mut self) -> Result<Progress, Broken> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let Some(Some(ring)) = active.rings.get_mut(usize::from(RECEIVE)) else {
            return Ok(Progress::Done);
        };
        let mut progress = Progress::More;
        for _ in 0..CHAINS_A_TURN {
            if self.input.is_empty() {
                progress = Progress::Done;
                break;
            }
            let Some(head) = ring.pop_or_ask(&mut self.buffers)? else {
                progress = Progress::Done;
                break;
            };
            let (_, mut room) = chain::split(&active.memory, &self.buffers);
            let len = self.input.take(room.len(), |bytes| room.write(bytes))?;
            self.counts.received += u64::from(len);
            ring.give_back(head, len)?;
        }
        if ring.wants_interrupt()? {
            active.interrupt.used(RECEIVE);
        }
        Ok(progress)
    }

    /// Device-specific configuration (5.3.4), as far as it can be read: the number of ports has no meaning with one.
    fn config(&self) -> [u8; 4] {
        let Size { columns, rows } = self.size.unwrap_or_default();
        (u32::from(columns) | u32::from(rows) << 16).to_le_bytes()
    }

    fn rings(&mut self) -> impl Iterator<Item = &mut Option<Ring>> {
        self.active.iter_mut().flat_map(|active| &mut active.rings)
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }

    fn features(&self) -> u64 {
        let size = if self.size.is_some() {
            feature::SIZE
        } else {
            0
        };
        feature::COMMON | feature::EMERG_WRITE | size
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = offset.try_into().unwrap_or(usize::MAX);
        read_bytes(&self.config(), offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // One character in the lowest byte, at any time (5.3.6.1). Nothing holds the guest up here, so without room it is lost.
        if let (EMERGENCY_WRITE, Some(byte)) = (offset, data.first()) {
            let sent = !self.output.is_congested() && self.output.write_all(&[*byte]).is_ok();
            let count = if sent {
                &mut self.counts.sent
            } else {
                &mut self.counts.lost
            };
            *count += 1;
        }
    }

    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }

    fn process(&mut self, queue: u16) -> Result<Progress, Broken> {
        match queue {
            RECEIVE => self.receive(),
            TRANSMIT => self.transmit(),
            _ => Ok(Progress::Done),
        }
    }

    fn serves_at_kick(&self, queue: u16) -> bool {
        queue == TRANSMIT
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor is open for as long as `self` is there.
        Some(unsafe { BorrowedFd::borrow_raw(self.wake.as_raw_fd()) })
    }

    fn process_host(&mut self) -> Result<Progress, Broken> {
        // EAGAIN: this is another turn.
        let _ = self.wake.read();
        let (received, sent) = (self.receive()?, self.transmit()?);
        Ok(match (received, sent) {
            (Progress::Done, Progress::Done) => Progress::Done,
            _ => Progress::More,
        })
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        Some(self)
    }

    fn update(&mut self, update: &Update) -> Result<(), UpdateError> {
        let (Update::ConsoleSize(size), Some(before)) = (update, &mut self.size) else {
            return Err(UpdateError::Unsupported);
        };
        let changed = std::mem::replace(before, *size) != *size;
        if let Some(active) = self.active.as_ref().filter(|_| changed) {
            active.interrupt.config_changed();
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        vec![
            ("received_bytes", self.counts.received),
            ("sent_bytes", self.counts.sent),
            ("lost_bytes", self.counts.lost),
        ]
    }

    fn reset(&mut self) {
        self.active = None;
        self.sent = 0;
    }

    fn save(&self) -> DeviceState {
        let rings = self.active.iter().flat_map(|active| &active.rings);
        DeviceState::Console(ConsoleState {
            rings: rings.map(|ring| ring.as_ref().map(Ring::save)).collect(),
            sent: self.sent,
            input: self.input.save(),
        })
    }

    fn restore(&mut self, state: &DeviceState) {
        let DeviceState::Console(state) = state else {
            return;
        };
        self.sent = state.sent;
        self.input.restore(&state.input);
        for (ring, position) in self.rings().zip(&state.rings) {
            if let (Some(ring), Some(position)) = (ring, position) {
                ring.restore(*position);
            }
        }
    }
}

impl QueueReset for Console {
    fn reset_queue(&mut self, queue: u16) {
        if queue == TRANSMIT {
            self.sent = 0;
        }
        if let Some(slot) = self.rings().nth(queue.into()) {
            *slot = None;
        }
    }

    fn start_queue(&mut self, queue: u16, ring: Ring) {
        if let Some(slot) = self.rings().nth(queue.into()) {
            *slot = Some(ring);
        }
    }
}
