//! The device as its driver sees it, on real files.

mod driver;
mod requests;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::super::rate_limiter::{BucketConfig, RateLimiterConfig};
use super::super::testing::{Driver, NEXT, WRITE};
use super::super::{
    DeviceState, Interrupt, Progress, QueueReset, SharedWorker, Update, UpdateError, VirtioDevice,
    feature,
};
use super::disk::{Clear, DiskOptions};
use super::job::{Job, Kind};
use super::*;

const HEADER: u64 = 0x4000;
const DATA: u64 = 0x8000;
const STATUS: u64 = 0x4800;
const SECTORS: u64 = 64;
const BOTH: [Engine; 2] = [Engine::Sync, Engine::Async];

#[derive(Default)]
struct Counts {
    used: AtomicU32,
    config: AtomicU32,
    broken: AtomicU32,
}

impl Interrupt for Counts {
    fn used(&self, _queue: u16) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }
    fn config_changed(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }
    fn needs_reset(&self) {
        self.broken.fetch_add(1, Ordering::Relaxed);
    }
}

/// A device with a disk of 64 sectors, each filled with its number, and its driver.
struct Fixture {
    dir: TempDir,
    driver: Driver,
    worker: SharedWorker,
    counts: Arc<Counts>,
    /// What was offered so far.
    heads: Vec<u16>,
}

fn disk_in(dir: &TempDir, engine: Engine) -> BlockOptions {
    let path = dir.path().join("disk");
    let sectors = (0..SECTORS).flat_map(|number| [number as u8; 512]);
    fs::write(&path, sectors.collect::<Vec<_>>()).unwrap();
    BlockOptions {
        id: "a_name_of_over_20_bytes".into(),
        disk: DiskOptions {
            path,
            read_only: false,
            direct: false,
            format: disk::Format::Raw,
            backing: None,
            flushes: true,
        },
        cache: CacheType::Writeback,
        engine: Some(engine),
        queues: 1,
        limits: RateLimiterConfig::default(),
    }
}

impl Fixture {
    fn new(engine: Engine) -> Self {
        Self::with(engine, |_| (), u64::MAX)
    }

    fn with(engine: Engine, change: impl FnOnce(&mut BlockOptions), accept: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let mut options = disk_in(&dir, engine);
        change(&mut options);
        let device = Block::new(options).unwrap();
        let driver = Driver::new();
        let features = device.features() & accept;
        let worker = SharedWorker::new(Box::new(device));
        let counts = Arc::new(Counts::default());
        worker.lock().start(Activation {
            memory: driver.memory.clone(),
            rings: vec![Some(driver.ring())],
            features,
            interrupt: counts.clone(),
        });
        Self {
            dir,
            driver,
            worker,
            counts,
            heads: Vec::new(),
        }
    }

    fn disk(&self) -> File {
        File::open(self.dir.path().join("disk")).unwrap()
    }

    fn sector(&self, number: u64) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.disk().read_exact_at(&mut bytes, number * 512).unwrap();
        bytes
    }

    /// Writes the header of request `slot`, and its descriptors from `3 * slot` on; the data is at `DATA + 0x1000 * slot`.
    fn prepare(&self, slot: u16, kind: u32, sector: u64, len: u32, write: bool) {
        let header = HEADER + 32 * u64::from(slot);
        let put = |at, bytes: &[u8]| {
            self.driver
                .memory
                .write_slice(bytes, GuestAddress(at))
                .unwrap()
        };
        put(header, &kind.to_le_bytes());
        put(header + 8, &sector.to_le_bytes());
        put(STATUS + u64::from(slot), &[0xff]);
        let first = 3 * slot;
        let data = DATA + 0x1000 * u64::from(slot);
        let flags = if write { NEXT | WRITE } else { NEXT };
        self.driver.descriptor(first, header, 16, NEXT, first + 1);
        self.driver
            .descriptor(first + 1, data, len, flags, first + 2);
        self.driver
            .descriptor(first + 2, STATUS + u64::from(slot), 1, WRITE, 0);
    }

    fn offer(&mut self, slots: &[u16]) {
        self.heads.extend(slots.iter().map(|slot| 3 * slot));
        // The ring has 8 entries.
        assert!(self.heads.len() <= 8);
        self.driver.offer(&self.heads);
    }

    /// Serves until everything that was offered is given back.
    fn serve(&self) {
        let _ = self.worker.lock().service(0);
        self.serve_host();
    }

    /// The same, with no kick.
    fn serve_host(&self) {
        let limit = Instant::now() + Duration::from_secs(20);
        while self.driver.used().len() < self.heads.len() {
            assert!(Instant::now() < limit, "it is not given back");
            self.wait_for_host(1000);
            let _ = self.worker.lock().service_host();
        }
    }

    /// Whether the host has something within so many milliseconds.
    fn wait_for_host(&self, milliseconds: i32) -> bool {
        use std::os::fd::AsRawFd;
        let mut worker = self.worker.lock();
        let Some(fd) = worker.device().host_event() else {
            return false;
        };
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry.
        unsafe { libc::poll(&raw mut poll, 1, milliseconds) == 1 }
    }

    fn status(&self, slot: u16) -> u8 {
        let at = GuestAddress(STATUS + u64::from(slot));
        self.driver.memory.read_obj(at).unwrap()
    }

    fn data(&self, slot: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let at = GuestAddress(DATA + 0x1000 * u64::from(slot));
        self.driver.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }

    fn set_data(&self, slot: u16, bytes: &[u8]) {
        let at = GuestAddress(DATA + 0x1000 * u64::from(slot));
        self.driver.memory.write_slice(bytes, at).unwrap();
    }

    /// One request, from beginning to end: its status.
    fn request(&mut self, kind: u32, sector: u64, len: u32, write: bool) -> u8 {
        self.prepare(0, kind, sector, len, write);
        self.heads.clear();
        self.worker.lock().device().quiesce();
        // A new ring each time: this is about requests.
        let mut worker = self.worker.lock();
        let block = worker.device();
        let ring = {
            self.driver.clear_used();
            self.driver.ring()
        };
        let queues = block.queue_reset().unwrap();
        queues.reset_queue(0);
        queues.start_queue(0, ring);
        drop(worker);
        self.offer(&[0]);
        self.serve();
        self.status(0)
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.worker.lock().device().counters();
        counters.iter().find(|(other, _)| *other == name).unwrap().1
    }

    fn update(&self, update: BlockUpdate) -> Result<(), UpdateError> {
        self.worker.lock().device().update(&Update::Block(update))
    }
}

fn range(sector: u64, count: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(count.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}
