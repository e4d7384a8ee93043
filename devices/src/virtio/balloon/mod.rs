//! Memory balloon (5.5): the driver does without as many pages as it is asked to, and their memory goes back to the host.
//!
//! | file         | what lives there                                         |
//! |--------------|----------------------------------------------------------|
//! | `queues`     | which queue is for what (5.5.2)                            |
//! | `requests`   | what a driver asks for, piece by piece                     |
//! | `pages`      | page numbers, and the memory of pages back to the host     |
//! | `statistics` | what the driver tells of its memory (5.5.6.4)              |
//!
//! Pages come from the driver in three ways: it *inflates* the balloon until it has the size that is wanted, and *reports* what is
//! free anyway, if that is switched on. Nothing need be done when it *deflates* the balloon or uses a reported page: memory
//! that was given back is there again when it is touched. For that reason `VIRTIO_BALLOON_F_MUST_TELL_HOST` is not offered.
//! Nor is `VIRTIO_BALLOON_F_PAGE_POISON`: a page is not found as the driver has left it, so a kernel that counts on what it has
//! written to free pages must not report them, and without that feature Linux does not.
//!
//! A guest can give pages that it still needs: it then finds them empty, and harms nobody else.

mod pages;
mod queues;
mod requests;
mod statistics;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{
    Activation, Broken, Counters, DeviceState, DeviceType, Interrupt, Memory, Progress, QueueReset,
    Ring, RingState, Update, UpdateError, VirtioDevice, chain,
};
use pages::PAGE;
use queues::{Queue, Role, Work};
use requests::Counts;
pub use statistics::STATISTICS;
use statistics::Statistics;

/// Feature bits (5.5.3), with those that all devices have.
mod feature {
    pub use super::super::feature::COMMON;
    /// There is a queue for statistics.
    pub const STATS_VQ: u64 = 1 << 1;
    /// The driver may take pages back before its guest has to kill for memory.
    pub const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// There is a queue for reports of free pages.
    pub const PAGE_REPORTING: u64 = 1 << 5;
}

/// Largest size of a queue. Linux reports up to 32 ranges at once, and needs room for these.
const QUEUE_SIZE: u16 = 128;
/// Pieces of work before it is another device's turn.
const PIECES_A_TURN: usize = 8;
/// Balloon pages in a MiB.
const PAGES_A_MIB: u64 = (1 << 20) / PAGE;

/// How a balloon is made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Memory of the guest in MiB: the balloon cannot be larger.
    pub memory_mib: u64,
    /// Whether the driver may deflate the balloon by itself before its guest has to kill for memory.
    pub deflate_on_oom: bool,
    /// Whether the driver shall report free pages.
    pub free_page_reporting: bool,
    /// What can be changed later.
    pub wanted: Wanted,
}

/// What is wanted of a balloon, and can be changed while it is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Size in MiB.
    pub amount_mib: u32,
    /// Seconds between two times that the driver is asked for statistics; 0 for never.
    pub stats_polling_interval_s: u16,
}

impl Wanted {
    /// Size in pages, as far as the field has room: 16 TiB.
    fn pages(self) -> u32 {
        let pages = u64::from(self.amount_mib) * PAGES_A_MIB;
        u32::try_from(pages).unwrap_or(u32::MAX)
    }
}

/// The device.
#[derive(Default)]
pub struct Balloon {
    settings: Settings,
    /// Pages that the driver says it does without.
    actual: u32,
    active: Option<Active>,
    statistics: Statistics,
    counts: Counts,
}

/// What there is while the driver is ready.
struct Active {
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    roles: [Option<Role>; queues::COUNT],
    queues: [Option<Queue>; queues::COUNT],
    /// When the driver has last told of its memory. It waits to be asked for more (5.5.6.3) while the queue's work is there.
    told: Instant,
}

/// Saved [`Balloon`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BalloonState {
    /// What is wanted of it.
    pub wanted: Wanted,
    /// Pages that the driver does without.
    pub actual_pages: u32,
    /// Positions in the queues, of those that are in use.
    pub rings: Vec<Option<RingState>>,
}

impl Balloon {
    /// A balloon that is empty, and shall have the size that is wanted.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            ..Self::default()
        }
    }

    /// Device-specific configuration (5.5.4): the size that is wanted, and the one that is.
    fn config(&self) -> [u8; 8] {
        let (target, actual) = (self.settings.wanted.pages(), self.actual);
        (u64::from(target) | u64::from(actual) << 32).to_le_bytes()
    }

    fn interval(&self) -> Duration {
        Duration::from_secs(self.settings.wanted.stats_polling_interval_s.into())
    }
}

impl Active {
    /// Works on the requests of a queue, and gives back those that are done.
    fn serve(&mut self, number: u16, counts: &mut Counts) -> Result<Progress, Broken> {
        let Some(Some(queue)) = self.queues.get_mut(usize::from(number)) else {
            return Ok(Progress::Done);
        };
        let mut progress = Progress::More;
        let mut served = false;
        for _ in 0..PIECES_A_TURN {
            let mut work = match queue.work.take() {
                Some(work) => work,
                None => match queue.ring.pop_or_ask(&mut queue.buffers)? {
                    Some(head) => Work { head, done: 0 },
                    None => {
                        progress = Progress::Done;
                        break;
                    }
                },
            };
            if requests::do_piece(queue, &mut work, &self.memory, counts)? {
                queue.ring.give_back(work.head, 0)?;
                served = true;
            } else {
                queue.work = Some(work);
            }
        }
        if served && queue.ring.wants_interrupt()? {
            self.interrupt.used(number);
        }
        Ok(progress)
    }

    /// Takes what the driver tells of its memory, and keeps its buffer until there shall be more: with the buffer back it
    /// tells again.
    fn listen(
        &mut self,
        number: u16,
        interval: Duration,
        statistics: &mut Statistics,
        counts: &mut Counts,
    ) -> Result<Progress, Broken> {
        let Some(Some(queue)) = self.queues.get_mut(usize::from(number)) else {
            return Ok(Progress::Done);
        };
        let mut progress = Progress::More;
        for _ in 0..PIECES_A_TURN {
            let Some(head) = queue.ring.pop_or_ask(&mut queue.buffers)? else {
                progress = Progress::Done;
                break;
            };
            let mut sent = chain::split(&self.memory, &queue.buffers).0;
            *statistics = Statistics::read(&mut sent)?;
            counts.updates += 1;
            self.told = Instant::now();
            // One is enough: a driver that sends more has the one before back.
            if let Some(before) = queue.work.replace(Work { head, done: 0 }) {
                queue.ring.give_back(before.head, 0)?;
            }
        }
        if queue.work.is_some() && !interval.is_zero() && progress == Progress::Done {
            let left = interval.saturating_sub(self.told.elapsed());
            if !left.is_zero() {
                progress = Progress::Wait(left);
            } else if let Some(work) = queue.work.take() {
                queue.ring.give_back(work.head, 0)?;
            }
        }
        if queue.ring.wants_interrupt()? {
            self.interrupt.used(number);
        }
        Ok(progress)
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn features(&self) -> u64 {
        let offered = [
            // Always, so that statistics can be switched on later.
            (true, feature::STATS_VQ),
            (self.settings.deflate_on_oom, feature::DEFLATE_ON_OOM),
            (self.settings.free_page_reporting, feature::PAGE_REPORTING),
        ];
        let bits = offered.iter().filter(|(offer, _)| *offer);
        bits.fold(feature::COMMON, |all, (_, bit)| all | bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; queues::COUNT]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let bytes = usize::try_from(offset).ok().and_then(|at| config.get(at..));
        for (slot, byte) in data.iter_mut().zip(bytes.unwrap_or_default()) {
            *slot = *byte;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut config = self.config();
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|at| config.get_mut(at..));
        for (slot, byte) in bytes.unwrap_or_default().iter_mut().zip(data) {
            *slot = *byte;
        }
        // The rest is not for the driver to write.
        if let Some(actual) = config.last_chunk() {
            self.actual = u32::from_le_bytes(*actual);
        }
    }

    fn activate(&mut self, activation: Activation) {
        let mut rings = activation.rings.into_iter();
        let rings: [_; queues::COUNT] = std::array::from_fn(|_| rings.next().flatten());
        let roles = queues::roles(activation.features, rings.each_ref().map(Option::is_some));
        self.active = Some(Active {
            memory: activation.memory,
            interrupt: activation.interrupt,
            roles,
            queues: [const { None }; queues::COUNT],
            told: Instant::now(),
        });
        for (number, ring) in (0..).zip(rings) {
            if let Some(ring) = ring {
                self.start_queue(number, ring);
            }
        }
    }

    fn process(&mut self, queue: u16) -> Result<Progress, Broken> {
        let interval = self.interval();
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let role = active.queues.get(usize::from(queue));
        match role.and_then(|queue| Some(queue.as_ref()?.role)) {
            None => Ok(Progress::Done),
            Some(Role::Statistics) => {
                active.listen(queue, interval, &mut self.statistics, &mut self.counts)
            }
            Some(_) => active.serve(queue, &mut self.counts),
        }
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        Some(self)
    }

    fn update(&mut self, update: &Update) -> Result<(), UpdateError> {
        let Update::Balloon(wanted) = update else {
            return Err(UpdateError::Unsupported);
        };
        let most = self.settings.memory_mib;
        if u64::from(wanted.amount_mib) > most {
            return Err(UpdateError::Refused(format!(
                "amount_mib: is {}, more than the guest's memory; give {most} at most",
                wanted.amount_mib
            )));
        }
        let before = std::mem::replace(&mut self.settings.wanted, *wanted);
        if let Some(active) = &self.active
            && before.amount_mib != wanted.amount_mib
        {
            active.interrupt.config_changed();
        }
        Ok(())
    }

    fn counters(&self) -> Counters {
        let counts = &self.counts;
        let mut counters = vec![
            ("target_pages", self.settings.wanted.pages().into()),
            ("actual_pages", self.actual.into()),
            ("inflate_count", counts.inflates),
            ("inflated_bytes", counts.inflated_bytes),
            ("deflate_count", counts.deflates),
            ("deflated_bytes", counts.deflated_bytes),
            ("free_page_report_count", counts.reports),
            ("free_page_report_freed", counts.reported_bytes),
            ("release_fails", counts.failures),
            ("stats_updates_count", counts.updates),
        ];
        // What a driver has told at its start would be taken for what is.
        if !self.interval().is_zero() {
            counters.extend(self.statistics.counters());
        }
        counters
    }

    fn reset(&mut self) {
        self.active = None;
        self.actual = 0;
        self.statistics = Statistics::default();
    }

    fn save(&self) -> DeviceState {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        DeviceState::Balloon(BalloonState {
            wanted: self.settings.wanted,
            actual_pages: self.actual,
            rings: queues.map(|q| q.as_ref().map(Queue::save)).collect(),
        })
    }

    fn restore(&mut self, state: &DeviceState) {
        let DeviceState::Balloon(state) = state else {
            return;
        };
        self.settings.wanted = state.wanted;
        self.actual = state.actual_pages;
        let queues = self.active.iter_mut().flat_map(|active| &mut active.queues);
        for (queue, position) in queues.zip(&state.rings) {
            if let (Some(queue), Some(position)) = (queue, position) {
                queue.ring.restore(*position);
            }
        }
    }
}

impl QueueReset for Balloon {
    fn reset_queue(&mut self, queue: u16) {
        let queues = self.active.as_mut().map(|active| &mut active.queues);
        if let Some(slot) = queues.and_then(|queues| queues.get_mut(usize::from(queue))) {
            *slot = None;
        }
    }

    fn start_queue(&mut self, queue: u16, ring: Ring) {
        let Some(active) = &mut self.active else {
            return;
        };
        let number = usize::from(queue);
        let role = active.roles.get(number).copied().flatten();
        if let (Some(slot), Some(role)) = (active.queues.get_mut(number), role) {
            *slot = Some(Queue::new(role, ring));
        }
    }
}
