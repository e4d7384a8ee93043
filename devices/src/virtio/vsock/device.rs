//! The device: queues on one side, the [`Muxer`] on the other.

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::super::{
    Activation, Broken, Buffer, Counters, Cursor, DeviceState, DeviceType, Interrupt, Memory,
    Progress, Ring, RingState, VirtioDevice, chain, feature,
};
use super::connection::BURST;
use super::listener::{ListenError, Listener};
use super::muxer::{Muxer, Next};
use super::packet::{HEADER_LEN, Header};

/// Stream sockets (5.10.3).
const F_STREAM: u64 = 1 << 0;
/// Largest size of each queue.
const QUEUE_SIZE: u16 = 256;
const RX: u16 = 0;
const TX: u16 = 1;
const EVENT: u16 = 2;
/// Packets, either way, before it is another device's turn; and bytes of the guest's.
const PACKETS_A_TURN: usize = 64;
const BYTES_A_TURN: u64 = 1 << 20;
/// Bytes that are read from a host's socket at once, and so the most that a packet has.
const BURST_BYTES: u32 = 64 << 10;

/// The device.
pub struct Vsock {
    guest_cid: u32,
    muxer: Muxer,
    active: Option<Active>,
    /// The guest has to hear that its connections are gone (5.10.6.7).
    announce_reset: bool,
}

/// What there is while there is a driver.
struct Active {
    memory: Memory,
    rx: Ring,
    tx: Ring,
    event: Option<Ring>,
    interrupt: Arc<dyn Interrupt>,
    /// A chain of the guest's.
    buffers: Vec<Buffer>,
    /// Chains for packets to the guest: heads and buffers.
    chains: Vec<(u16, Vec<Buffer>)>,
    /// Those that have got one, with their lengths.
    used: Vec<(u16, u32)>,
}

/// Saved [`Vsock`]. Connections are not part of it: they are reset.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VsockState {
    /// Positions in the queues rx, tx and event, if the device was active.
    pub rings: Option<[Option<RingState>; 3]>,
    /// The next port for a client of the host's, so that none comes twice.
    pub next_port: u32,
}

impl Vsock {
    /// A device for a guest with that CID, whose host side is at `path`.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn new(guest_cid: u32, path: &Path) -> Result<Self, ListenError> {
        let listener = Listener::new(path)?;
        let muxer = Muxer::new(guest_cid, listener).map_err(|error| ListenError::Wait {
            path: path.into(),
            error,
        })?;
        Ok(Self {
            guest_cid,
            muxer,
            active: None,
            announce_reset: false,
        })
    }

    /// Takes what the guest has sent. True if there may be more.
    fn transmit(&mut self, now: Instant) -> Result<bool, Broken> {
        let Some(active) = &mut self.active else {
            return Ok(false);
        };
        let mut bytes = 0;
        for _ in 0..PACKETS_A_TURN {
            if bytes >= BYTES_A_TURN {
                return Ok(true);
            }
            let Some(head) = active.tx.pop_or_ask(&mut active.buffers)? else {
                return Ok(false);
            };
            let (mut readable, writable) = chain::split(&active.memory, &active.buffers);
            if !writable.is_empty() {
                return Err(Broken("a writable buffer is in the tx queue"));
            }
            let (header, payload) = Header::read(&mut readable)?;
            bytes += payload.len();
            self.muxer.take_packet(&header, payload, now)?;
            active.tx.give_back(head, 0)?;
        }
        Ok(true)
    }

    /// Gives the guest what there is for it. True if there may be more, and room.
    fn deliver(&mut self, now: Instant) -> Result<bool, Broken> {
        let Some(active) = &mut self.active else {
            return Ok(false);
        };
        let mut packets = 0;
        while packets < PACKETS_A_TURN {
            let (room, wanted) = match self.muxer.next_packet() {
                Next::Nothing => return Ok(false),
                Next::Control(header) => {
                    if active.take_chains(1, 1)? == 0 {
                        return Ok(false);
                    }
                    active.put(0, &header)?;
                    active.give_back()?;
                    self.muxer.told(&header, now);
                    packets += 1;
                    continue;
                }
                Next::Data { room, chains } => (room.min(BURST_BYTES), chains.min(BURST)),
            };
            let count = active.take_chains(wanted, room)?;
            if count == 0 {
                return Ok(false);
            }
            let mut left = u64::from(room);
            let mut rooms = Vec::with_capacity(count);
            for (_, buffers) in active.chains.iter().take(count) {
                let mut chain = Cursor::new(&active.memory, buffers);
                chain.skip(HEADER_LEN as u64);
                let piece = chain.take(left);
                left -= piece.len();
                rooms.push(piece);
            }
            if rooms.first().is_some_and(Cursor::is_empty) {
                return Err(Broken("a buffer in the rx queue has no room for data"));
            }
            let used = &mut active.used;
            let (chains, memory) = (&active.chains, &active.memory);
            let filled = self.muxer.read(&rooms, |index, header| {
                put(memory, chains, used, index, header)
            })?;
            // Those that have got nothing are the last.
            active.rx.put_back((count - filled) as u16);
            active.give_back()?;
            packets += filled.max(1);
        }
        Ok(true)
    }

    /// Tells the guest that its connections are gone, if it has to hear that.
    fn send_event(&mut self) -> Result<(), Broken> {
        let Some(active) = self.active.as_mut().filter(|_| self.announce_reset) else {
            return Ok(());
        };
        let Some(ring) = &mut active.event else {
            return Ok(());
        };
        loop {
            if let Some(head) = ring.pop(&mut active.buffers)? {
                // VIRTIO_VSOCK_EVENT_TRANSPORT_RESET is 0.
                let event = 0_u32.to_le_bytes();
                let (_, mut writable) = chain::split(&active.memory, &active.buffers);
                writable.write(&event)?;
                ring.give_back(head, event.len() as u32)?;
                self.announce_reset = false;
                return Ok(());
            }
            if !ring.ask_for_kick()? {
                return Ok(());
            }
        }
    }

    /// What every turn ends with: packets for the guest, interrupts, and what is left to do.
    fn finish(&mut self, more: bool, now: Instant) -> Result<Progress, Broken> {
        self.muxer.check(now);
        let more = self.deliver(now)? || more;
        if let Some(active) = &mut self.active {
            let rings = [
                (RX, Some(&mut active.rx)),
                (TX, Some(&mut active.tx)),
                (EVENT, active.event.as_mut()),
            ];
            for (queue, ring) in rings {
                if let Some(ring) = ring
                    && ring.wants_interrupt()?
                {
                    active.interrupt.used(queue);
                }
            }
        }
        Ok(match self.muxer.next_check(now) {
            _ if more => Progress::More,
            Some(time) => Progress::Wait(time),
            None => Progress::Done,
        })
    }
}

/// Writes a header into chain `index`, which becomes one of the used ones.
fn put(
    memory: &Memory,
    chains: &[(u16, Vec<Buffer>)],
    used: &mut Vec<(u16, u32)>,
    index: usize,
    header: &Header,
) -> Result<(), Broken> {
    if let Some((head, buffers)) = chains.get(index) {
        Cursor::new(memory, buffers).write(&header.to_bytes())?;
        used.push((*head, HEADER_LEN as u32 + header.len));
    }
    Ok(())
}

impl Active {
    /// Takes up to `most` chains, until they have room for `bytes` of data. Returns how many; the guest will kick if none.
    fn take_chains(&mut self, most: usize, bytes: u32) -> Result<usize, Broken> {
        let mut count = 0;
        let mut room = 0;
        while count < most && room < u64::from(bytes) {
            let Some((head, buffers)) = self.chains.get_mut(count) else {
                break;
            };
            match self.rx.pop(buffers)? {
                Some(index) => {
                    if buffers.first().is_some_and(|first| !first.writable) {
                        return Err(Broken("a readable buffer is in the rx queue"));
                    }
                    let len = Cursor::new(&self.memory, buffers).len();
                    let Some(here) = len.checked_sub(HEADER_LEN as u64) else {
                        return Err(Broken("a buffer in the rx queue is shorter than a header"));
                    };
                    (*head, count) = (index, count + 1);
                    room += here;
                }
                None if count == 0 && self.rx.ask_for_kick()? => {}
                None => break,
            }
        }
        Ok(count)
    }

    fn put(&mut self, index: usize, header: &Header) -> Result<(), Broken> {
        put(&self.memory, &self.chains, &mut self.used, index, header)
    }

    /// Gives all used chains back.
    fn give_back(&mut self) -> Result<(), Broken> {
        self.rx.give_back_all(&self.used)?;
        self.used.clear();
        Ok(())
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType::Vsock
    }

    fn features(&self) -> u64 {
        feature::COMMON | F_STREAM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 3]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.guest_cid).to_le_bytes();
        let from = usize::try_from(offset).ok().and_then(|at| config.get(at..));
        for (to, from) in data.iter_mut().zip(from.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, mut activation: Activation) {
        let mut ring = |index| activation.rings.get_mut(usize::from(index))?.take();
        let (rx, tx, event) = (ring(RX), ring(TX), ring(EVENT));
        if let (Some(rx), Some(tx)) = (rx, tx) {
            self.active = Some(Active {
                memory: activation.memory,
                rx,
                tx,
                event,
                interrupt: activation.interrupt,
                buffers: Vec::new(),
                chains: vec![(0, Vec::new()); BURST],
                used: Vec::new(),
            });
            self.muxer.start();
        }
    }

    fn process(&mut self, queue: u16) -> Result<Progress, Broken> {
        let now = Instant::now();
        let more = match queue {
            TX => self.transmit(now)?,
            EVENT => {
                self.send_event()?;
                false
            }
            _ => false,
        };
        self.finish(more, now)
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.muxer.host_event())
    }

    fn process_host(&mut self) -> Result<Progress, Broken> {
        let now = Instant::now();
        self.muxer.host_events(now);
        self.finish(false, now)
    }

    fn counters(&self) -> Counters {
        let counts = self.muxer.counts();
        vec![
            ("connections_open", self.muxer.open() as u64),
            ("connections_by_host", counts.by_host),
            ("connections_by_guest", counts.by_guest),
            ("connections_refused", counts.refused),
            ("connections_reset", counts.reset),
            ("packets_to_guest", counts.packets_to_guest),
            ("packets_from_guest", counts.packets_from_guest),
            ("bytes_to_guest", counts.bytes_to_guest),
            ("bytes_from_guest", counts.bytes_from_guest),
            ("bytes_held", self.muxer.held() as u64),
            ("credit_stalls", counts.credit_stalls),
            ("drops", counts.drops),
        ]
    }

    fn reset(&mut self) {
        self.active = None;
        self.announce_reset = false;
        self.muxer.stop();
    }

    fn save(&self) -> DeviceState {
        let rings = self.active.as_ref().map(|active| {
            [
                Some(active.rx.save()),
                Some(active.tx.save()),
                active.event.as_ref().map(Ring::save),
            ]
        });
        DeviceState::Vsock(VsockState {
            rings,
            next_port: self.muxer.next_port(),
        })
    }

    fn restore(&mut self, state: &DeviceState) {
        let DeviceState::Vsock(state) = state else {
            return;
        };
        self.muxer.set_next_port(state.next_port);
        if let (Some(active), Some([rx, tx, event])) = (&mut self.active, state.rings) {
            let rings = [
                (Some(&mut active.rx), rx),
                (Some(&mut active.tx), tx),
                (active.event.as_mut(), event),
            ];
            for (ring, position) in rings {
                if let (Some(ring), Some(position)) = (ring, position) {
                    ring.restore(position);
                }
            }
            self.announce_reset = true;
        }
    }
}
