//! Network device (5.1): frames between a driver and a tap of the host's kernel, or a passt process.
//!
//! | file         | what lives there                                                            |
//! |--------------|-----------------------------------------------------------------------------|
//! | [`feature`]  | feature bits (5.1.3), and which of them hold together                         |
//! | [`header`]   | the header before each frame (5.1.6)                                          |
//! | [`control`]  | commands of the control queue (5.1.6.5)                                       |
//! | `rx`, `tx`   | one queue of each kind                                                        |
//! | `link`       | the host's end, and what is waited for there                                  |
//! | [`tap`]      | a tap: offloads, several queues, no copies                                    |
//! | [`vhost`]    | a tap that the host's kernel serves; `kernel` is its interface, `monitor` tells when the tap is gone |
//! | [`passt`]    | passt: no privilege needed, no offloads                                       |
//! | `work`       | the device's turns: receiving, sending, commands, a link that is lost          |
//! | `counts`     | what the device counts                                                        |
//!
//! The queues are those of 5.1.2: receive and transmit by turns for each pair, then control. Only the pairs that the
//! driver has asked for are used. An interface that the metadata service ([`mmds`](crate::mmds)) is at has the frames for that
//! taken out before the link. A link that breaks (the tap is deleted, passt ends) is reported as down; frames are
//! dropped then, and a passt that comes back is found within a second or two.

pub mod control;
mod counts;
pub mod feature;
pub mod header;
mod kernel;
mod link;
mod monitor;
pub mod passt;
mod rx;
pub mod tap;
#[cfg(test)]
mod tests;
mod tx;
pub mod vhost;
mod work;

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use vmm_sys_util::eventfd::EventFd;

use super::rate_limiter::{BucketConfig, RateLimiter, RateLimiterConfig};
use super::{
    Activation, Broken, Buffer, Counters, DeviceState, DeviceType, Interrupt, Memory, Progress,
    QueueReset, Ring, RingState, Update, UpdateError, VirtioDevice, feature as common, rng,
};
use crate::limit::LogLimit;
use crate::mmds::{Mmds, Stack};
use crate::pci::read_bytes;
use counts::Counts;
use link::Waiting;
pub use link::{Link, OpenError};
use rx::Rx;
use tx::Tx;

/// Largest size of each queue.
const QUEUE_SIZE: u16 = 256;
/// Commands of the control queue in a time: each may take a lock that all of the host's network shares.
const COMMANDS: RateLimiterConfig = RateLimiterConfig {
    bandwidth: None,
    ops: Some(BucketConfig {
        size: 100,
        one_time_burst: None,
        refill_time: 1000,
    }),
};
/// Number of the control queue behind one pair.
const CONTROL_OF_ONE_PAIR: u16 = 2;
/// `status`: the link is up (5.1.4).
const LINK_UP: u16 = 1;

/// What a device is made of, beyond its link.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name, for messages.
    pub name: String,
    /// Address of the guest's interface.
    pub mac: [u8; 6],
    /// MTU that the driver is told: 68 to 65535.
    pub mtu: Option<u16>,
    /// Pairs of queues: as many as the link has.
    pub pairs: u16,
    /// Limits of what the guest receives.
    pub rx_limits: RateLimiterConfig,
    /// Limits of what the guest sends.
    pub tx_limits: RateLimiterConfig,
}

/// An address that is locally administered and of one interface, the rest random.
///
/// # Errors
/// The kernel has no random bytes.
pub fn random_address() -> io::Result<[u8; 6]> {
    let mut address = [0; 6];
    rng::get_random(&mut address)?;
    address[0] = address[0] & !1 | 2;
    Ok(address)
}

/// The device.
pub struct Net {
    options: Options,
    offered: u64,
    sizes: Vec<u16>,
    link: Link,
    /// The metadata service, where this interface has it.
    mmds: Option<Box<Stack>>,
    up: bool,
    paused: bool,
    errors_in_a_row: u32,
    waiting: Waiting,
    active: Option<Active>,
    rx_limiter: RateLimiter,
    tx_limiter: RateLimiter,
    commands_limiter: RateLimiter,
    counts: Counts,
    limit: LogLimit,
    ready: Vec<usize>,
}

/// While there is a driver.
struct Active {
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    /// What both sides have, without what does not hold together.
    features: u64,
    /// Which of them the driver takes at the moment.
    offloads: u64,
    rx: Vec<Option<Rx>>,
    tx: Vec<Option<Tx>>,
    control: Option<Ring>,
    /// Number of the control queue.
    control_index: Option<u16>,
    buffers: Vec<Buffer>,
    /// Pairs that the driver uses.
    pairs: u16,
}

/// Saved [`Net`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetState {
    /// Position in each queue that the driver uses, by number.
    pub rings: Vec<Option<RingState>>,
    /// Pairs of queues that the driver uses.
    pub pairs: u16,
    /// What the driver takes.
    pub offloads: u64,
    /// Address.
    pub mac: [u8; 6],
}

impl Net {
    /// A device at that link.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn new(options: Options, link: Link) -> io::Result<Self> {
        let now = Instant::now();
        let mut offered =
            common::COMMON | feature::MAC | feature::STATUS | feature::MRG_RXBUF | link.features();
        let mut sizes = vec![QUEUE_SIZE; 2 * usize::from(options.pairs)];
        if link.tap().is_some() {
            offered |= feature::CTRL_VQ | feature::CTRL_GUEST_OFFLOADS;
            sizes.push(QUEUE_SIZE);
        }
        if options.pairs > 1 {
            offered |= feature::MQ;
        }
        if options.mtu.is_some() {
            offered |= feature::MTU;
        }
        if let Link::Vhost(vhost) = &link {
            offered = vhost.possible(offered);
        }
        Ok(Self {
            paused: false,
            offered,
            sizes,
            link,
            mmds: None,
            up: true,
            errors_in_a_row: 0,
            waiting: Waiting::new(options.pairs)?,
            active: None,
            rx_limiter: RateLimiter::new(&options.rx_limits, now),
            tx_limiter: RateLimiter::new(&options.tx_limits, now),
            commands_limiter: RateLimiter::new(&COMMANDS, now),
            counts: Counts::default(),
            limit: LogLimit::default(),
            ready: Vec::new(),
            options,
        })
    }

    /// Puts the metadata service at `address` in front of the link. It must not be one that the host's kernel serves.
    ///
    /// # Errors
    /// The kernel has no random bytes.
    pub fn with_mmds(mut self, mmds: &Mmds, address: Ipv4Addr) -> io::Result<Self> {
        self.mmds = Some(Box::new(Stack::new(mmds, address)?));
        Ok(self)
    }

    /// The status field (5.1.4).
    fn status(&self) -> u16 {
        if self.up { LINK_UP } else { 0 }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType::Net
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = self.options.mac.to_vec();
        bytes.extend(self.status().to_le_bytes());
        bytes.extend(self.options.pairs.to_le_bytes());
        bytes.extend(self.options.mtu.unwrap_or(0).to_le_bytes());
        read_bytes(&bytes, offset.try_into().unwrap_or(usize::MAX), data);
    }

    /// Nothing in it is the driver's to write (5.1.4: of a device that is not a legacy one).
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) {
        let features = feature::sound(activation.features);
        let mut rings = activation.rings;
        let pairs = if features & feature::MQ != 0 {
            self.options.pairs
        } else {
            1
        };
        // 5.1.2: it comes behind the queues that the driver knows of.
        let control = (features & feature::CTRL_VQ != 0).then_some(2 * pairs);
        if let Link::Vhost(vhost) = &mut self.link {
            let queues = rings.iter_mut().take(2 * usize::from(pairs));
            let queues = queues.map(Option::take);
            let interrupt = &*activation.interrupt;
            let done = vhost.activate(&activation.memory, features, queues, interrupt);
            if let Err(error) = done {
                self.lose(&error);
            }
        }
        let mut take = |index: u16| rings.get_mut(usize::from(index)).and_then(Option::take);
        self.active = Some(Active {
            rx: (0..pairs).map(|pair| take(2 * pair).map(Rx::new)).collect(),
            tx: (0..pairs)
                .map(|pair| take(2 * pair + 1).map(Tx::new))
                .collect(),
            control: control.and_then(take),
            control_index: control,
            memory: activation.memory,
            interrupt: activation.interrupt,
            features,
            offloads: 0,
            buffers: Vec::new(),
            pairs: 1,
        });
        self.take_offloads(features & feature::GUEST_OFFLOADS);
        self.use_pairs(1);
    }

    fn process(&mut self, queue: u16) -> Result<Progress, Broken> {
        let control = self.active.as_ref().and_then(|a| a.control_index);
        let progress = if control == Some(queue) {
            self.obey()
        } else if queue.is_multiple_of(2) {
            self.receive(usize::from(queue / 2))
        } else {
            self.send_and_receive(usize::from(queue / 2))
        };
        Ok(self.and_what_takes_time(progress?))
    }

    fn take_kicks(&mut self, kicks: &Arc<[EventFd]>) {
        if let Link::Vhost(vhost) = &mut self.link {
            vhost.set_kicks(kicks);
        }
    }

    fn waits_for_kicks(&self, queue: u16) -> bool {
        // A driver without MQ has its control queue where the second pair is otherwise (5.1.2).
        queue == CONTROL_OF_ONE_PAIR
            || !matches!(&self.link, Link::Vhost(vhost) if vhost.serves(queue))
    }

    fn quiesce(&mut self) {
        self.paused = true;
        self.settle();
    }

    fn resume(&mut self) {
        self.paused = false;
        self.settle();
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.waiting.event())
    }

    fn process_host(&mut self) -> Result<Progress, Broken> {
        if !self.up {
            self.look_for_the_link();
        }
        self.listen_to_the_kernel()?;
        let mut ready = std::mem::take(&mut self.ready);
        self.waiting.ready(&mut ready);
        let mut progress = Progress::Done;
        for pair in &ready {
            let wish = self.wish(*pair);
            if wish.room {
                progress = both(progress, self.send_the_rest(*pair)?);
            }
            if wish.frames {
                progress = both(progress, self.receive(*pair)?);
            }
        }
        self.ready = ready;
        Ok(self.and_what_takes_time(progress))
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        Some(self)
    }

    fn update(&mut self, update: &Update) -> Result<(), UpdateError> {
        let Update::Net { rx, tx } = update else {
            return Err(UpdateError::Unsupported);
        };
        if matches!(self.link, Link::Vhost(_)) {
            let problem =
                "the host's kernel serves this device and knows no limits; give it backend \"tap\"";
            return Err(UpdateError::Refused(problem.into()));
        }
        let now = Instant::now();
        self.rx_limiter.update(rx, now);
        self.tx_limiter.update(tx, now);
        Ok(())
    }

    fn counters(&self) -> Counters {
        let mut counts = self.counts;
        if let Link::Vhost(vhost) = &self.link {
            // What the tap sends is what the guest receives.
            let tap = vhost.tap();
            counts.rx_packets = tap.statistic("tx_packets");
            counts.rx_bytes = tap.statistic("tx_bytes");
            counts.tx_packets = tap.statistic("rx_packets");
            counts.tx_bytes = tap.statistic("rx_bytes");
        }
        let mut list = counts.list();
        list.push(("vhost", u64::from(matches!(self.link, Link::Vhost(_)))));
        list
    }

    fn reset(&mut self) {
        if let Link::Vhost(vhost) = &mut self.link {
            vhost.reset();
        }
        if let Some(mmds) = &mut self.mmds {
            mmds.clear();
        }
        self.active = None;
        self.settle();
        for pair in 0..usize::from(self.options.pairs) {
            self.wait_for(pair);
        }
        if let Some(tap) = self.link.tap_mut() {
            // Both fail only where the tap is gone, and then there is nothing to be reset.
            let _ = tap.set_offloads(0);
            let _ = tap.use_queues(1);
        }
    }

    fn save(&self) -> DeviceState {
        let mut state = NetState {
            mac: self.options.mac,
            ..NetState::default()
        };
        if let Some(active) = &self.active {
            for (pair, (rx, tx)) in active.rx.iter().zip(&active.tx).enumerate() {
                let positions = match &self.link {
                    Link::Vhost(vhost) => [vhost.position(2 * pair), vhost.position(2 * pair + 1)],
                    _ => [rx.as_ref().map(Rx::position), tx.as_ref().map(Tx::position)],
                };
                state.rings.extend(positions);
            }
            state.rings.push(active.control.as_ref().map(Ring::save));
            (state.pairs, state.offloads) = (active.pairs, active.offloads);
        }
        DeviceState::Net(state)
    }

    fn restore(&mut self, state: &DeviceState) {
        let DeviceState::Net(state) = state else {
            return;
        };
        self.options.mac = state.mac;
        let paused = std::mem::replace(&mut self.paused, true);
        self.settle();
        self.paused = paused;
        let Some(active) = &mut self.active else {
            return;
        };
        let at = |index: usize| state.rings.get(index).copied().flatten();
        for (pair, (rx, tx)) in active.rx.iter_mut().zip(&mut active.tx).enumerate() {
            if let Link::Vhost(vhost) = &mut self.link {
                for number in [2 * pair, 2 * pair + 1] {
                    if let Some(position) = at(number) {
                        vhost.restore(number, position);
                    }
                }
            }
            if let (Some(rx), Some(position)) = (rx, at(2 * pair)) {
                rx.restore(position);
            }
            if let (Some(tx), Some(position)) = (tx, at(2 * pair + 1)) {
                tx.restore(position);
            }
        }
        if let (Some(ring), Some(position)) = (&mut active.control, at(2 * active.rx.len())) {
            ring.restore(position);
        }
        self.take_offloads(state.offloads);
        self.use_pairs(state.pairs);
    }
}

impl QueueReset for Net {
    fn reset_queue(&mut self, queue: u16) {
        if let Link::Vhost(vhost) = &mut self.link
            && vhost.serves(queue)
        {
            vhost.remove(queue);
            return self.settle();
        }
        let Some(active) = &mut self.active else {
            return;
        };
        let pair = usize::from(queue / 2);
        if active.control_index == Some(queue) {
            active.control = None;
        } else if queue.is_multiple_of(2) {
            active.rx.get_mut(pair).map(Option::take);
        } else {
            active.tx.get_mut(pair).map(Option::take);
        }
        self.wait_for(pair);
    }

    fn start_queue(&mut self, queue: u16, ring: Ring) {
        let Some(active) = &mut self.active else {
            return;
        };
        if let Link::Vhost(vhost) = &mut self.link
            && active.control_index != Some(queue)
        {
            if let Err(error) = vhost.add(queue, ring, &*active.interrupt) {
                self.lose(&error);
            }
            return self.settle();
        }
        let pair = usize::from(queue / 2);
        if active.control_index == Some(queue) {
            active.control = Some(ring);
        } else if queue.is_multiple_of(2) {
            if let Some(slot) = active.rx.get_mut(pair) {
                *slot = Some(Rx::new(ring));
            }
        } else if let Some(slot) = active.tx.get_mut(pair) {
            *slot = Some(Tx::new(ring));
        }
        self.wait_for(pair);
    }
}

/// What is left to do after two pieces of work.
fn both(one: Progress, other: Progress) -> Progress {
    match (one, other) {
        (Progress::More, _) | (_, Progress::More) => Progress::More,
        (Progress::Wait(one), Progress::Wait(other)) => Progress::Wait(one.min(other)),
        (Progress::Wait(time), _) | (_, Progress::Wait(time)) => Progress::Wait(time),
        (Progress::Done, Progress::Done) => Progress::Done,
    }
}
