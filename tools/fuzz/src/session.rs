//! Follows a script with a device, and checks what must hold.
//!
//! The session is transport and loop in one: it negotiates, activates, calls `process` for a kick and `process_host` for
//! as long as the device's descriptor is readable. Whatever the script does:
//!
//! - nothing panics, overflows, or is done for ever: a kick is over after so many turns, and a device that has done all that it
//!   can does not leave its descriptor readable (the loop would spin);
//! - a driver in good order is served as [`driver`](crate::driver) says;
//! - what is saved can be written, read and carried on from;
//! - the log stays small.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use devices::virtio::{
    Activation, Broken, DeviceState, Interrupt, Memory, Negotiation, Progress, Ring, Status,
    Update, VirtioDevice, feature,
};

use crate::driver::Driver;
use crate::memory::{self, MOST_ENTRIES, MOST_QUEUES};
use crate::messages;
use crate::script::{Move, Reader};
use crate::seeds::Reached;

/// Moves of a script that are followed.
const MOVES: usize = 200;
/// Turns after which a kick is over: a ring has 256 chains, and each may be megabytes.
const TURNS: usize = 5000;

/// A kind of device with its surroundings on the host.
pub trait Rig {
    /// Makes the device. The one before, if any, is gone.
    fn device(&mut self) -> Box<dyn VirtioDevice>;
    /// Something happens on the host.
    fn host(&mut self, bytes: &[u8]) {
        let _ = bytes;
    }
    /// The change that these bytes mean.
    fn update(&mut self, bytes: &[u8]) -> Option<Update> {
        let _ = bytes;
        None
    }
    /// Milliseconds in which the host completes most of what the device has begun.
    fn patience(&self) -> i32 {
        0
    }
    /// Whether memory that the device has not been given keeps its contents.
    fn keeps_memory(&self) -> bool {
        true
    }
    /// Brings what a driver sends into better shape, where random bytes would never get far.
    fn polish(&mut self, queue: u8, bytes: &mut Vec<u8>) {
        let _ = (queue, bytes);
    }
    /// Looks at the host's side, after each move.
    fn look(&mut self) {}
    /// What else was reached.
    fn reached(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}

/// What the device told its driver.
#[derive(Default)]
struct Notes {
    /// A bit for each queue.
    used: AtomicU64,
    config_changes: AtomicU64,
}

impl Interrupt for Notes {
    fn used(&self, queue: u16) {
        self.used.fetch_or(1 << (queue % 64), Ordering::Relaxed);
    }
    fn config_changed(&self) {
        self.config_changes.fetch_add(1, Ordering::Relaxed);
    }
    fn needs_reset(&self) {}
}

struct Session<'a> {
    rig: &'a mut dyn Rig,
    /// Always there but while it is replaced.
    device: Option<Box<dyn VirtioDevice>>,
    memory: Memory,
    negotiation: Negotiation,
    status: Status,
    driver: Driver,
    notes: Arc<Notes>,
    active: bool,
    /// The host's side has asked for another turn.
    more: bool,
    /// Something was begun since the host's side was last waited for.
    begun: bool,
    broken: u64,
    migrations: u64,
    reached: Reached,
}

/// Follows `script` to its end with a device of `rig`.
///
/// # Panics
/// Something does not hold.
pub fn follow(rig: &mut dyn Rig, script: &mut Reader) -> Reached {
    messages::begin();
    let memory = memory::fresh();
    let device = rig.device();
    let mut session = Session {
        negotiation: negotiation(&*device),
        rig,
        device: Some(device),
        driver: Driver::new(memory.clone()),
        memory,
        status: Status::default(),
        notes: Arc::default(),
        active: false,
        more: false,
        begun: false,
        broken: 0,
        migrations: 0,
        reached: Reached::new(),
    };
    session.restart(0, 0, 0);
    for _ in 0..MOVES {
        if script.is_empty() {
            break;
        }
        let one = Move::read(script);
        session.make(one);
        session.settle();
        session.look();
    }
    let reached = session.end();
    messages::end();
    reached
}

fn negotiation(device: &dyn VirtioDevice) -> Negotiation {
    Negotiation::new(
        device.features() | feature::RING_RESET,
        device.queue_sizes(),
    )
}

impl Session<'_> {
    fn device(&mut self) -> &mut dyn VirtioDevice {
        &mut **self.device.as_mut().expect("there is a device")
    }

    fn make(&mut self, one: Move) {
        match one {
            Move::Offer(mut chain) => {
                self.rig.polish(chain.queue, &mut chain.readable);
                self.driver.offer(&chain);
            }
            Move::Kick(queue) => self.kick(queue.into()),
            Move::Host(bytes) => {
                self.rig.host(&bytes);
                // As after a time that the device has waited.
                self.more = true;
            }
            Move::ReadConfig(offset, len) => {
                let mut data = vec![0; usize::from(len % 9)];
                self.device().read_config(offset.into(), &mut data);
            }
            Move::WriteConfig(offset, bytes) => {
                let len = bytes.len().min(8);
                self.device().write_config(offset.into(), &bytes[..len]);
            }
            Move::Update(bytes) => {
                if let Some(update) = self.rig.update(&bytes) {
                    // A refusal is an answer too.
                    if let Err(error) = self.device().update(&update) {
                        let _ = error.to_string();
                    }
                }
            }
            Move::Restart(without, size, queues) => self.restart(without, size, queues),
            Move::Migrate => self.migrate(),
            Move::Poke(at, bytes) => self.driver.poke(at, &bytes),
            Move::Events(queue, flags, event) => self.driver.set_events(queue.into(), flags, event),
            Move::RestartQueue(queue, size) => self.restart_queue(queue, size),
            Move::Quiesce => self.device().quiesce(),
        }
    }

    /// Sizes a queue that is selected: a power of two, as large as there is room.
    fn size(&mut self, wanted: u16) -> Option<u16> {
        let (_, queue) = self.negotiation.queue_to_set_up()?;
        let most = queue.max.min(MOST_ENTRIES);
        let wanted = wanted.checked_next_power_of_two().unwrap_or(most);
        let small = (2..most).contains(&wanted);
        queue.size = if small { wanted } else { most };
        Some(queue.size)
    }

    fn restart(&mut self, without: u64, size: u16, leave_out: u8) {
        let device = self.device();
        device.reset();
        let offered = device.features() | feature::RING_RESET;
        self.negotiation.reset(&self.status);
        self.driver.start_over();
        self.notes.used.store(0, Ordering::Relaxed);
        let _ = self.negotiation.write_status(&self.status, 3);
        let accepted = (offered & !without) | feature::VERSION_1;
        for (half, bits) in [(0, accepted as u32), (1, (accepted >> 32) as u32)] {
            *self.negotiation.selectors().1 = half;
            self.negotiation.accept_half(&self.status, bits);
        }
        let _ = self.negotiation.write_status(&self.status, 11);
        let queues = usize::from(self.negotiation.queues()).min(MOST_QUEUES);
        for number in (0..queues).filter(|number| *number > 7 || leave_out >> number & 1 == 0) {
            self.set_up(number, size);
        }
        let _ = self.negotiation.write_status(&self.status, 15);
        self.activate(None);
    }

    fn set_up(&mut self, number: usize, size: u16) -> Option<Ring> {
        *self.negotiation.selectors().2 = number as u16;
        let size = self.size(size)?;
        let (_, queue) = self.negotiation.queue_to_set_up()?;
        queue.areas = memory::areas(number);
        let enabled = self.negotiation.enable_queue(&self.status, &self.memory);
        let (_, ring) = enabled.expect("the queue is sound")?;
        self.driver.set_up(number, size);
        Some(ring)
    }

    fn rings(&self) -> Vec<Option<Ring>> {
        let rings = self.negotiation.rings(&self.memory);
        rings.expect("the queues are sound")
    }

    fn activate(&mut self, saved: Option<&DeviceState>) {
        let activation = Activation {
            memory: self.memory.clone(),
            rings: self.rings(),
            features: self.negotiation.accepted(),
            interrupt: self.notes.clone(),
        };
        let device = self.device();
        device.activate(activation);
        if let Some(saved) = saved {
            device.restore(saved);
        }
        self.active = true;
        for queue in 0..self.negotiation.queues() {
            self.kick(queue);
        }
    }

    fn migrate(&mut self) {
        self.device().quiesce();
        let state = self.device().save();
        self.note_counters();
        self.device = None;
        self.more = false;
        let text = serde_json::to_string(&state).expect("a state can be written");
        let state: DeviceState = serde_json::from_str(&text).expect("what was written can be read");
        self.device = Some(self.rig.device());
        self.migrations += 1;
        if self.active {
            self.activate(Some(&state));
        } else {
            self.device().restore(&state);
        }
    }

    fn restart_queue(&mut self, queue: u8, size: u16) {
        let number = u16::from(queue);
        if usize::from(queue) >= MOST_QUEUES || !self.active {
            return;
        }
        let Some(resets) = self.device().queue_reset() else {
            return;
        };
        resets.reset_queue(number);
        self.driver.forget(queue.into());
        self.kick(number);
        if number >= self.negotiation.queues() {
            return;
        }
        *self.negotiation.selectors().2 = number;
        self.negotiation.disable_queue();
        if let Some(ring) = self.set_up(queue.into(), size) {
            if let Some(resets) = self.device().queue_reset() {
                resets.start_queue(number, ring);
            }
            self.kick(number);
        }
    }

    fn kick(&mut self, queue: u16) {
        if !self.active {
            return;
        }
        self.begun = true;
        for turn in 0.. {
            assert!(turn < TURNS, "queue {queue}: a kick that is never over");
            match self.device().process(queue) {
                Ok(Progress::More) => {}
                Ok(Progress::Done | Progress::Wait(_)) => return,
                Err(broken) => return self.break_off(broken),
            }
        }
    }

    fn break_off(&mut self, broken: Broken) {
        let _ = broken.to_string();
        self.broken += 1;
        self.active = false;
        self.device().reset();
    }

    fn host_event(&mut self) -> Option<RawFd> {
        self.device().host_event().map(|fd| fd.as_raw_fd())
    }

    /// Has the host's side done, as the loop does.
    fn settle(&mut self) {
        let Some(event) = self.host_event() else {
            return;
        };
        for turn in 0.. {
            let begun = self.begun && self.active && self.driver.waits();
            let patience = if begun { self.rig.patience() } else { 0 };
            if !std::mem::take(&mut self.more) && !readable(event, patience) {
                self.begun = false;
                return;
            }
            assert!(turn < TURNS, "the host's side is never done");
            match self.device().process_host() {
                Ok(progress) => self.more = progress == Progress::More,
                Err(broken) => self.break_off(broken),
            }
            assert_eq!(self.host_event(), Some(event), "another descriptor");
        }
    }

    fn look(&mut self) {
        let used = self.notes.used.swap(0, Ordering::Relaxed);
        let told = |queue: u16| used >> (queue % 64) & 1 != 0;
        let told: Option<&dyn Fn(u16) -> bool> = if self.active { Some(&told) } else { None };
        let event_idx = self.negotiation.accepted() & feature::EVENT_IDX != 0;
        self.driver.look(event_idx, self.rig.keeps_memory(), told);
        self.rig.look();
    }

    fn note_counters(&mut self) {
        for (name, count) in self.device().counters() {
            // Some of them are the guest's own numbers.
            let sum = self.reached.entry(name.into()).or_default();
            *sum = sum.saturating_add(count);
        }
    }

    fn end(mut self) -> Reached {
        self.note_counters();
        // Before anything else goes.
        self.device = None;
        let mut reached = self.reached;
        let own = [
            ("completed", self.driver.completed),
            ("written", self.driver.written),
            ("broken", self.broken),
            ("migrations", self.migrations),
            (
                "config_changes",
                self.notes.config_changes.load(Ordering::Relaxed),
            ),
        ];
        for (name, count) in own.into_iter().chain(self.rig.reached()) {
            *reached.entry(name.into()).or_default() += count;
        }
        reached
    }
}

/// Whether a descriptor is readable, or gets so in as many milliseconds.
fn readable(fd: RawFd, patience: i32) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: the kernel reads and writes one structure.
    let count = unsafe { libc::poll(&raw mut poll, 1, patience) };
    count == 1 && poll.revents & libc::POLLIN != 0
}
