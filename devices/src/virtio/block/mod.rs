//! Block device (5.2): a disk of the host's for the guest.
//!
//! | file        | what lives there                                                       |
//! |-------------|------------------------------------------------------------------------|
//! | [`request`] | a chain of buffers to a checked request                                  |
//! | [`disk`]    | what the bytes are kept in: files as they are                             |
//! | `job`       | a request under way, as a series of system calls                          |
//! | `work`      | jobs and what makes their calls: one after the other, or io_uring         |
//! | `uring`     | asynchronous system calls                                                 |
//! | `bounce`    | memory that `O_DIRECT` takes                                              |
//! | `config`    | what the driver reads in the device's configuration                       |
//!
//! A kick is answered by taking what is in the ring, up to a limit, giving the kernel all of it in one call, and giving
//! back what is complete by then, with one interrupt at most; what completes later comes by the host's side. Jobs that
//! are under way use guest memory: `quiesce`, `reset` and the end of the device wait for them.
//!
//! A flush covers the writes that were given back before it was made (5.2.6.2): these are in the file, and `fdatasync`
//! makes them safe.

mod bounce;
mod config;
pub mod disk;
mod job;
pub mod request;
mod uring;
mod work;

use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vm_memory::Bytes;

use super::rate_limiter::{RateLimiter, RateLimiterConfig};
use super::{
    Activation, Broken, Counters, DeviceState, DeviceType, Progress, QueueReset, Ring, RingState,
    Update, UpdateError, VirtioDevice, feature,
};
use crate::limit::LogLimit;
use disk::{Clear, Disk, DiskOptions, Geometry, OpenError, Place};
use job::{Job, Kind, Origin};
use request::{ID_BYTES, Limits, Outcome, Request};
use work::Work;

/// Feature bits of block devices (5.2.3).
mod bit {
    pub const SEG_MAX: u64 = 1 << 2;
    pub const RO: u64 = 1 << 5;
    pub const BLK_SIZE: u64 = 1 << 6;
    pub const FLUSH: u64 = 1 << 9;
    pub const TOPOLOGY: u64 = 1 << 10;
    pub const CONFIG_WCE: u64 = 1 << 11;
    pub const MQ: u64 = 1 << 12;
    pub const DISCARD: u64 = 1 << 13;
    pub const WRITE_ZEROES: u64 = 1 << 14;
}

/// Largest size of each queue.
const QUEUE_SIZE: u16 = 256;
/// Buffers of data in a request: what is left of a queue's entries besides header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Chains that are taken before it is another queue's turn.
const CHAINS_A_TURN: usize = 64;
/// Bytes to be read, written and cleared after which it is: that may be done at once, while everybody else waits.
const BYTES_A_TURN: u64 = 16 << 20;

/// When a write is safe, as Firecracker has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// When the host gets to it: there are no flushes.
    #[default]
    Unsafe,
    /// When the guest has flushed.
    Writeback,
}

/// How system calls are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Engine {
    /// One after the other.
    Sync,
    /// Many at once, by io_uring.
    Async,
}

/// What a device is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockOptions {
    /// What the guest sees as its serial number: the first 20 bytes.
    pub id: String,
    /// The disk.
    pub disk: DiskOptions,
    /// When a write is safe.
    pub cache: CacheType,
    /// How calls are made; `None` for io_uring where it can be had.
    pub engine: Option<Engine>,
    /// Number of queues, at least one.
    pub queues: u16,
    /// Limits of bytes and requests.
    pub limits: RateLimiterConfig,
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The disk cannot be used.
    #[error(transparent)]
    Disk(#[from] OpenError),
    /// io_uring was asked for and cannot be had.
    #[error(
        "Async needs io_uring, which this process cannot have here: {0}; leave io_engine out or give Sync, or look at kernel.io_uring_disabled and the seccomp filter"
    )]
    Engine(io::Error),
}

impl BlockError {
    /// The field of a drive's configuration that is to blame.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Disk(error) => error.field(),
            Self::Engine(_) => "io_engine",
        }
    }
}

/// What is to be changed in a device; the disk's size is looked at again in any case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockUpdate {
    /// The disk's file. If that is another path than before, and another file, it takes its place, opened in the same way.
    pub path: Option<PathBuf>,
    /// Other limits. A bucket that is not given stays as it is; one of size 0 is no limit.
    pub limits: RateLimiterConfig,
}

/// The device.
pub struct Block {
    options: BlockOptions,
    /// Goes after everything that uses its file.
    disk: Box<dyn Disk>,
    /// The disk's, as the driver knows it.
    geometry: Geometry,
    sizes: Vec<u16>,
    /// The driver wants writes to be safe by its flushes, not each by itself.
    writeback: bool,
    active: Option<Active>,
    work: Work,
    limiter: RateLimiter,
    counts: Counts,
    log: LogLimit,
    /// What was found while nobody could be told.
    broken: Option<Broken>,
}

/// A device with its driver.
struct Active {
    activation: Activation,
    queues: Vec<Option<Queue>>,
    limits: Limits,
}

struct Queue {
    ring: Ring,
    /// What is to be given back: heads, and the bytes that were written.
    done: Vec<(u16, u32)>,
    /// It has more, for when a job is free.
    waits: bool,
}

impl Queue {
    fn new(ring: Ring) -> Self {
        Self {
            ring,
            done: Vec::new(),
            waits: false,
        }
    }
}

/// Counters.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    reads: u64,
    read_bytes: u64,
    writes: u64,
    written_bytes: u64,
    flushes: u64,
    discards: u64,
    discarded_bytes: u64,
    write_zeroes: u64,
    zeroed_bytes: u64,
    errors: u64,
    throttled: u64,
}

/// Saved [`Block`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockState {
    /// Position in each queue that is in use, if the device was active.
    pub rings: Vec<Option<RingState>>,
    /// Whether the driver relies on its flushes.
    pub writeback: bool,
}

/// What a request that was taken needs next.
enum Todo {
    Transfer { write: bool, at: u64 },
    Flush,
    Clear { how: Clear },
    Answer(Outcome),
}

impl Block {
    /// Opens the disk and makes the device.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn new(options: BlockOptions) -> Result<Self, BlockError> {
        let disk = disk::open(&options.disk)?;
        let work = Work::new(options.engine).map_err(BlockError::Engine)?;
        Ok(Self {
            geometry: disk.geometry(),
            disk,
            sizes: vec![QUEUE_SIZE; options.queues.max(1).into()],
            writeback: true,
            active: None,
            work,
            limiter: RateLimiter::new(&options.limits, Instant::now()),
            counts: Counts::default(),
            log: LogLimit::default(),
            broken: None,
            options,
        })
    }

    /// Whether calls are made by io_uring.
    pub fn engine(&self) -> Engine {
        self.work.engine()
    }

    /// Whether each write has to be safe by itself.
    fn durable(&self) -> bool {
        self.options.cache == CacheType::Writeback && !self.writeback
    }

    /// Takes requests of a queue and begins them.
    fn take(&mut self, index: u16) -> Result<Progress, Broken> {
        let mut moved = 0;
        for _ in 0..CHAINS_A_TURN {
            if moved >= BYTES_A_TURN {
                return Ok(Progress::More);
            }
            let Some(active) = &mut self.active else {
                return Ok(Progress::Done);
            };
            let queue = active.queues.get_mut(usize::from(index));
            let Some(queue) = queue.and_then(Option::as_mut) else {
                return Ok(Progress::Done);
            };
            if !self.limiter.is_unlimited()
                && let Err(wait) = self.limiter.admit(Instant::now())
            {
                self.counts.throttled += 1;
                return Ok(Progress::Wait(wait));
            }
            let Some(slot) = self.work.slot() else {
                queue.waits = true;
                return Ok(Progress::Done);
            };
            let (job, buffers) = self.work.job(slot);
            let Some(head) = queue.ring.pop(buffers)? else {
                if queue.ring.ask_for_kick()? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            let memory = &active.activation.memory;
            job.begin();
            let parsed = request::parse(memory, buffers, &active.limits, &mut job.ranges)?;
            job.origin = Origin {
                queue: index,
                head,
                written: parsed.written,
                status: parsed.status,
            };
            let todo = match parsed.request {
                Request::Read { at, data } => {
                    data.io_vecs(&mut job.pieces)?;
                    job.bytes = data.len();
                    Todo::Transfer { write: false, at }
                }
                Request::Write { at, data } => {
                    data.io_vecs(&mut job.pieces)?;
                    job.bytes = data.len();
                    Todo::Transfer { write: true, at }
                }
                Request::Flush => Todo::Flush,
                Request::Identify { mut data } => {
                    let bytes = identification(&self.options.id);
                    let len = data.len().min(ID_BYTES as u64) as usize;
                    data.write(bytes.get(..len).unwrap_or_default())?;
                    Todo::Answer(Outcome::Ok)
                }
                Request::Discard => Todo::Clear {
                    how: Clear::Discard,
                },
                Request::WriteZeroes => Todo::Clear { how: Clear::Zero },
                Request::Refused(outcome) => Todo::Answer(outcome),
            };
            moved += job.bytes;
            moved += job.ranges.iter().map(|range| range.len).sum::<u64>();
            self.limiter.charge(job.bytes);
            self.begin(slot, todo)?;
        }
        Ok(Progress::More)
    }

    /// Begins what a request needs, and answers it if it is over at once.
    fn begin(&mut self, slot: u16, todo: Todo) -> Result<(), Broken> {
        let durable = self.durable();
        let result = match todo {
            Todo::Answer(outcome) => return self.answer(slot, outcome),
            Todo::Transfer { write, at } => {
                let (job, _) = self.work.job(slot);
                job.kind = if write {
                    Kind::Write { durable }
                } else {
                    Kind::Read
                };
                match self.disk.place(write, at, &job.pieces) {
                    Place::File { fd, at } => {
                        (job.fd, job.at) = (fd, at);
                        // To copy into the page cache takes less time than to have a kernel thread do it, as io_uring does
                        // on most file systems: half the time for 4 KiB, measured on ext4.
                        job.at_once = !(write && durable) && self.disk.at_once(write);
                        self.work.run(slot)
                    }
                    place => {
                        if place == Place::InsideAlone {
                            self.settle()?;
                        }
                        let (job, _) = self.work.job(slot);
                        let mut result = self.disk.transfer(write, at, &job.pieces);
                        if write && durable && result.is_ok() {
                            result = self.sync_disk();
                        }
                        Some(result)
                    }
                }
            }
            Todo::Flush => match self.disk.before_sync() {
                Ok(fd) => {
                    let (job, _) = self.work.job(slot);
                    (job.kind, job.fd) = (Kind::Sync, fd);
                    self.work.run(slot)
                }
                Err(error) => Some(Err(error)),
            },
            Todo::Clear { how } => self.clear(slot, how, durable)?,
        };
        match result {
            Some(result) => self.finish(slot, result),
            None => Ok(()),
        }
    }

    /// Begins to clear a job's ranges; `Some` if it is over at once.
    fn clear(
        &mut self,
        slot: u16,
        how: Clear,
        durable: bool,
    ) -> Result<Option<io::Result<()>>, Broken> {
        let (job, _) = self.work.job(slot);
        job.kind = match how {
            Clear::Discard => Kind::Discard,
            Clear::Unmap | Clear::Zero => Kind::Zero,
        };
        job.bytes = job.ranges.iter().map(|range| range.len).sum();
        job.sync_after = durable;
        if let Some(fd) = self.disk.clears_in(how) {
            job.fd = fd;
            return Ok(self.work.run(slot));
        }
        self.settle()?;
        let (job, _) = self.work.job(slot);
        let mut result = Ok(());
        for range in &job.ranges {
            let how = match how {
                Clear::Zero if range.unmap => Clear::Unmap,
                how => how,
            };
            result = result.and_then(|()| self.disk.clear(how, range.at, range.len));
        }
        if durable {
            result = result.and_then(|()| self.sync_disk());
        }
        Ok(Some(result))
    }

    /// Makes safe what was written, at once.
    fn sync_disk(&mut self) -> io::Result<()> {
        let fd = self.disk.before_sync()?;
        disk::sync(fd).inspect_err(|error| self.disk.sync_failed(error))
    }

    /// Counts and answers a job that is over.
    fn finish(&mut self, slot: u16, result: io::Result<()>) -> Result<(), Broken> {
        let (job, _) = self.work.job(slot);
        let outcome = match result {
            Ok(()) => {
                self.counts.count(job);
                Outcome::Ok
            }
            Err(error) => {
                if job.kind == Kind::Sync {
                    self.disk.sync_failed(&error);
                }
                if self.log.allow() {
                    let (id, path) = (&self.options.id, self.options.disk.path.display());
                    log::error!(
                        "drive {id} ({path}): {} of {} bytes failed: {error}",
                        job.verb(),
                        job.bytes
                    );
                }
                Job::outcome(&error)
            }
        };
        self.answer(slot, outcome)
    }

    /// Writes the status and lists the chain to be given back; the job is free then.
    fn answer(&mut self, slot: u16, outcome: Outcome) -> Result<(), Broken> {
        let origin = self.work.job(slot).0.origin;
        self.work.release(slot);
        if outcome != Outcome::Ok {
            self.counts.errors += 1;
        }
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let written = active
            .activation
            .memory
            .write_obj(outcome.byte(), origin.status);
        written.map_err(|_| Broken("a buffer is not in memory"))?;
        let queue = active.queues.get_mut(usize::from(origin.queue));
        if let Some(queue) = queue.and_then(Option::as_mut) {
            let written = match outcome {
                Outcome::Ok => origin.written,
                // The status, and nothing that the driver should look at.
                _ => 1,
            };
            queue.done.push((origin.head, written));
        }
        Ok(())
    }

    /// Answers what is complete.
    fn reap(&mut self) -> Result<(), Broken> {
        while let Some((slot, result)) = self.work.reap() {
            self.finish(slot, result)?;
        }
        Ok(())
    }

    /// Gives back what was answered, with an interrupt for each queue that wants one.
    fn give_back(&mut self) -> Result<(), Broken> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        for (index, queue) in (0_u16..).zip(&mut active.queues) {
            let Some(queue) = queue.as_mut().filter(|queue| !queue.done.is_empty()) else {
                continue;
            };
            queue.ring.give_back_all(&queue.done)?;
            queue.done.clear();
            if queue.ring.wants_interrupt()? {
                active.activation.interrupt.used(index);
            }
        }
        Ok(())
    }

    /// Waits for everything that is under way, and answers it.
    fn settle(&mut self) -> Result<(), Broken> {
        self.reap()?;
        while self.work.under_way() {
            self.work.wait();
            self.reap()?;
        }
        Ok(())
    }

    /// Puts the disk's present size where the driver and the checks find it.
    fn resized(&mut self, swapped: bool) {
        let before = self.geometry.sectors();
        self.geometry.bytes = self.disk.geometry().bytes;
        let sectors = self.geometry.sectors();
        if sectors != before {
            log::info!(
                "drive {}: has {sectors} sectors now, not {before}",
                self.options.id
            );
        }
        if let Some(active) = &mut self.active {
            active.limits.sectors = sectors;
            if sectors != before || swapped {
                active.activation.interrupt.config_changed();
            }
        }
    }

    /// Brings another file into the disk's place, unless it is the same. Nothing is under way.
    fn swap(&mut self, path: PathBuf) -> Result<bool, UpdateError> {
        let options = DiskOptions {
            path,
            ..self.options.disk.clone()
        };
        let same = match (
            std::fs::metadata(&options.path),
            self.disk.file().metadata(),
        ) {
            (Ok(new), Ok(old)) => {
                (new.dev(), new.ino(), new.rdev()) == (old.dev(), old.ino(), old.rdev())
            }
            _ => false,
        };
        if options.path == self.options.disk.path {
            if !same {
                // A guest that has the disk mounted must not find another one because somebody wanted other limits.
                log::warn!(
                    "drive {}: {} is not the file any more that was opened, and the guest keeps that one; give another path to have it replaced",
                    self.options.id,
                    options.path.display()
                );
            }
            return Ok(false);
        }
        if same {
            self.options.disk = options;
            return Ok(false);
        }
        let disk = disk::open(&options).map_err(|error| UpdateError::Refused(error.to_string()))?;
        if disk.geometry().block > self.geometry.block {
            let block = disk.geometry().block;
            return Err(UpdateError::Refused(format!(
                "{} has blocks of {block} bytes, and the guest knows the disk by smaller ones; give a disk that has these",
                options.path.display()
            )));
        }
        if self.options.cache == CacheType::Writeback {
            // The guest's next flush is the new disk's.
            self.sync_disk().map_err(|error| {
                let path = self.options.disk.path.display();
                UpdateError::Refused(format!("cannot make {path} safe first: {error}"))
            })?;
        }
        self.disk = disk;
        self.options.disk = options;
        Ok(true)
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn features(&self) -> u64 {
        let when = |there: bool, bits: u64| if there { bits } else { 0 };
        let writable = !self.options.disk.read_only;
        feature::COMMON
            | bit::SEG_MAX
            | bit::BLK_SIZE
            | when(self.geometry.physical > self.geometry.block, bit::TOPOLOGY)
            | when(!writable, bit::RO)
            | when(
                self.options.cache == CacheType::Writeback,
                bit::FLUSH | bit::CONFIG_WCE,
            )
            | when(self.sizes.len() > 1, bit::MQ)
            | when(self.geometry.discard, bit::DISCARD)
            | when(self.geometry.write_zeroes, bit::WRITE_ZEROES)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.sizes
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let fields = config::Fields {
            geometry: &self.geometry,
            seg_max: SEG_MAX,
            queues: self.sizes.len() as u16,
            writeback: self.writeback,
        };
        config::read(&fields, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // 5.2.5.2: the one field that may be written, where it is offered.
        if let (config::WRITEBACK, [value]) = (offset, data)
            && self.options.cache == CacheType::Writeback
        {
            self.writeback = *value != 0;
        }
    }

    fn activate(&mut self, mut activation: Activation) {
        let has = |bit: u64| activation.features & bit != 0;
        if !has(bit::CONFIG_WCE) {
            // 5.2.6.2: without flushes, each write is safe when it is given back.
            self.writeback = has(bit::FLUSH);
        }
        let limits = Limits {
            sectors: self.geometry.sectors(),
            read_only: self.options.disk.read_only,
            flush: has(bit::FLUSH),
            discard: has(bit::DISCARD),
            write_zeroes: has(bit::WRITE_ZEROES),
        };
        let rings = std::mem::take(&mut activation.rings);
        let queues = rings.into_iter().map(|ring| ring.map(Queue::new));
        let queues = queues.collect();
        self.active = Some(Active {
            activation,
            queues,
            limits,
        });
    }

    fn process(&mut self, queue: u16) -> Result<Progress, Broken> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        match self.turn(queue)? {
            Progress::Done => self.serve_waiting(),
            progress => Ok(progress),
        }
    }

    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        self.work.event()
    }

    fn process_host(&mut self) -> Result<Progress, Broken> {
        if let Some(broken) = self.broken.take() {
            return Err(broken);
        }
        self.work.submit();
        self.reap()?;
        self.give_back()?;
        self.serve_waiting()
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        Some(self)
    }

    fn quiesce(&mut self) {
        if let Err(broken) = self.settle().and_then(|()| self.give_back()) {
            self.work.drain();
            self.broken = Some(broken);
        }
        self.remind();
    }

    fn update(&mut self, update: &Update) -> Result<(), UpdateError> {
        let Update::Block(update) = update else {
            return Err(UpdateError::Unsupported);
        };
        self.quiesce();
        let swapped = match &update.path {
            Some(path) => self.swap(path.clone())?,
            None => false,
        };
        if let Err(error) = self.disk.measure() {
            return Err(UpdateError::Refused(format!(
                "cannot learn the size of {}: {error}",
                self.options.disk.path.display()
            )));
        }
        self.limiter.update(&update.limits, Instant::now());
        self.resized(swapped);
        Ok(())
    }

    fn counters(&self) -> Counters {
        let counts = &self.counts;
        vec![
            ("reads", counts.reads),
            ("read_bytes", counts.read_bytes),
            ("writes", counts.writes),
            ("written_bytes", counts.written_bytes),
            ("flushes", counts.flushes),
            ("discards", counts.discards),
            ("discarded_bytes", counts.discarded_bytes),
            ("write_zeroes", counts.write_zeroes),
            ("zeroed_bytes", counts.zeroed_bytes),
            ("errors", counts.errors),
            ("throttled", counts.throttled),
            ("in_flight_max", self.work.most_under_way()),
        ]
    }

    fn reset(&mut self) {
        self.work.drain();
        self.active = None;
        self.broken = None;
        self.writeback = true;
    }

    fn save(&self) -> DeviceState {
        let queues = self.active.iter().flat_map(|active| &active.queues);
        let position = |queue: &Option<Queue>| queue.as_ref().map(|queue| queue.ring.save());
        DeviceState::Block(BlockState {
            rings: queues.map(position).collect(),
            writeback: self.writeback,
        })
    }

    fn restore(&mut self, state: &DeviceState) {
        let DeviceState::Block(state) = state else {
            return;
        };
        self.writeback = state.writeback;
        let queues = self.active.iter_mut().flat_map(|active| &mut active.queues);
        for (queue, position) in queues.zip(&state.rings) {
            if let (Some(queue), Some(position)) = (queue, position) {
                queue.ring.restore(*position);
            }
        }
    }
}

impl QueueReset for Block {
    fn reset_queue(&mut self, queue: u16) {
        let active = self.active.as_mut();
        if let Some(queue) = active.and_then(|active| active.queues.get_mut(usize::from(queue))) {
            *queue = None;
        }
        // What is under way for it ends with nobody told; the other queues hear of theirs.
        self.quiesce();
    }

    fn start_queue(&mut self, queue: u16, ring: Ring) {
        let active = self.active.as_mut();
        if let Some(place) = active.and_then(|active| active.queues.get_mut(usize::from(queue))) {
            *place = Some(Queue::new(ring));
        }
    }
}

impl Block {
    /// Takes from a queue, and answers what is complete.
    fn turn(&mut self, queue: u16) -> Result<Progress, Broken> {
        let progress = self.take(queue)?;
        self.work.submit();
        self.reap()?;
        self.give_back()?;
        Ok(progress)
    }

    /// Serves queues that have waited for a job to be free. When the last job is over nothing of the host's tells any
    /// more, so none may be left waiting while one is free.
    fn serve_waiting(&mut self) -> Result<Progress, Broken> {
        let mut all = Progress::Done;
        for index in 0..self.sizes.len() {
            if !self.work.has_slot() {
                break;
            }
            let queue = self.active.as_mut().and_then(|active| {
                let queue = active.queues.get_mut(index)?.as_mut()?;
                std::mem::take(&mut queue.waits).then_some(())
            });
            if queue.is_none() {
                continue;
            }
            match self.turn(index as u16)? {
                Progress::Done => {}
                Progress::More => {
                    // Its turn comes again with this side's.
                    self.wait_on(index);
                    all = Progress::More;
                }
                Progress::Wait(time) => {
                    if all == Progress::Done {
                        all = Progress::Wait(time);
                    }
                    self.wait_on(index);
                }
            }
        }
        if all == Progress::Done && self.has_waiting() && self.work.has_slot() {
            all = Progress::More;
        }
        Ok(all)
    }

    /// Has the host's side looked at where a queue waits for jobs that are all free by now: no completion will tell. A
    /// queue's reset on a vCPU's thread comes to that.
    fn remind(&mut self) {
        if !self.work.under_way() && self.has_waiting() {
            self.work.wake();
        }
    }

    fn has_waiting(&self) -> bool {
        let mut queues = self.active.iter().flat_map(|active| &active.queues);
        queues.any(|queue| queue.as_ref().is_some_and(|queue| queue.waits))
    }

    /// Has a queue looked at when the host's side comes again.
    fn wait_on(&mut self, index: usize) {
        let active = self.active.as_mut();
        let queue = active.and_then(|active| active.queues.get_mut(index));
        if let Some(queue) = queue.and_then(Option::as_mut) {
            queue.waits = true;
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // The kernel must not write to memory that is somebody else's by then.
        self.work.drain();
    }
}

impl Counts {
    fn count(&mut self, job: &Job) {
        let (count, bytes) = match job.kind {
            Kind::Read => (&mut self.reads, Some(&mut self.read_bytes)),
            Kind::Write { .. } => (&mut self.writes, Some(&mut self.written_bytes)),
            Kind::Sync => (&mut self.flushes, None),
            Kind::Discard => (&mut self.discards, Some(&mut self.discarded_bytes)),
            Kind::Zero => (&mut self.write_zeroes, Some(&mut self.zeroed_bytes)),
        };
        *count += 1;
        if let Some(total) = bytes {
            *total += job.bytes;
        }
    }
}

/// The first 20 bytes of the id, filled with zeros (5.2.6, `VIRTIO_BLK_T_GET_ID`).
fn identification(id: &str) -> [u8; ID_BYTES] {
    let mut bytes = [0; ID_BYTES];
    for (to, from) in bytes.iter_mut().zip(id.bytes()) {
        *to = from;
    }
    bytes
}

#[cfg(test)]
mod tests;
