//! The device as its driver sees it, on real files.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vm_memory::GuestAddress;

use super::super::rate_limiter::BucketConfig;
use super::super::testing::{Driver, NEXT, WRITE};
use super::super::{Interrupt, SharedWorker};
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

#[test]
fn several_requests_are_one_batch() {
    for engine in BOTH {
        let mut fixture = Fixture::new(engine);
        fixture.prepare(0, 0, 3, 1024, true);
        fixture.prepare(1, 1, 10, 512, false);
        fixture.set_data(1, &[0xab; 512]);
        fixture.offer(&[0, 1]);
        fixture.serve();
        let mut used = fixture.driver.used();
        used.sort();
        assert_eq!(used, [(0, 1025), (3, 1)]);
        assert_eq!((fixture.status(0), fixture.status(1)), (0, 0));
        assert_eq!(fixture.data(0, 1024), [[3; 512], [4; 512]].concat());
        assert_eq!(fixture.sector(10), [0xab; 512]);
        assert_eq!((fixture.sector(9)[0], fixture.sector(11)[0]), (9, 11));
        assert!(fixture.counts.used.load(Ordering::Relaxed) <= 2);
        for (name, value) in [
            ("reads", 1),
            ("read_bytes", 1024),
            ("writes", 1),
            ("written_bytes", 512),
            ("errors", 0),
        ] {
            assert_eq!(fixture.counter(name), value, "{name}");
        }
    }
}

#[test]
fn each_kind_of_request() {
    for engine in BOTH {
        let mut fixture = Fixture::new(engine);
        assert_eq!(fixture.request(4, 0, 0, false), 0, "flush");
        assert_eq!(fixture.request(8, 0, 20, true), 0, "identification");
        assert_eq!(fixture.data(0, 21), b"a_name_of_over_20_by\0");
        fixture.set_data(0, &range(8, 16, 0));
        assert_eq!(fixture.request(11, 0, 16, false), 0, "discard");
        fixture.set_data(0, &[range(30, 2, 0), range(33, 1, 1)].concat());
        assert_eq!(fixture.request(13, 0, 32, false), 0, "zeroes");
        for (number, zero) in [(29, false), (30, true), (31, true), (32, false), (33, true)] {
            assert_eq!(fixture.sector(number) == [0; 512], zero, "{number}");
        }
        assert_eq!(fixture.request(7, 0, 0, false), 2, "unknown");
        assert_eq!(fixture.request(0, SECTORS, 512, true), 1, "beyond the end");
        let size = fixture.disk().metadata().unwrap().size();
        assert_eq!(size, SECTORS * 512, "its size is what it was");
        assert_eq!(fixture.counter("flushes"), 1);
        assert_eq!(fixture.counter("discarded_bytes"), 16 * 512);
        assert_eq!(fixture.counter("zeroed_bytes"), 3 * 512);
        assert_eq!(fixture.counter("errors"), 2);
    }
}

/// 2.7.8: a driver that goes by the length does not take for data what was there before.
#[test]
fn the_length_is_what_was_written() {
    for engine in BOTH {
        let mut fixture = Fixture::new(engine);
        for (kind, sector, room, status, written) in [
            (0, 3, 1024, 0, 1025),
            (0, SECTORS, 1024, 1, 1),
            (8, 0, 20, 0, 21),
            (8, 0, 30, 0, 21),
            (8, 0, 7, 0, 8),
            (7, 0, 100, 2, 1),
            (4, 0, 100, 0, 1),
        ] {
            assert_eq!(fixture.request(kind, sector, room, true), status, "{kind}");
            assert_eq!(fixture.driver.used(), [(0, written)], "{kind}");
        }
        // The host's failure: the file got shorter.
        let path = fixture.dir.path().join("disk");
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(512).unwrap();
        assert_eq!(fixture.request(0, 8, 4096, true), 1);
        assert_eq!(fixture.driver.used(), [(0, 1)]);
    }
}

#[test]
fn past_the_page_cache_wherever_buffers_are() {
    for engine in BOTH {
        // Only where there is a file system that has it: on tmpfs, it is the same as without.
        let direct = |options: &mut BlockOptions| options.disk.direct = true;
        let mut fixture = Fixture::with(engine, direct, u64::MAX);
        let put = |fixture: &Fixture, at: u64, len: u32, first: u16| {
            fixture
                .driver
                .descriptor(first + 1, at, len, NEXT, first + 2);
        };
        // Aligned; not aligned in memory; not whole blocks; and both.
        for (sector, at, len) in [
            (8, DATA, 4096),
            (8, DATA + 1, 4096),
            (9, DATA, 512),
            (13, DATA + 3, 1536),
            (63, DATA + 7, 512),
        ] {
            let bytes: Vec<u8> = (0..len).map(|index| (index % 251) as u8 | 1).collect();
            fixture
                .driver
                .memory
                .write_slice(&bytes, GuestAddress(at))
                .unwrap();
            fixture.prepare(0, 1, sector, len, false);
            put(&fixture, at, len, 0);
            fixture.heads.clear();
            fixture.driver.clear_used();
            let ring = fixture.driver.ring();
            let mut worker = fixture.worker.lock();
            worker.device().queue_reset().unwrap().reset_queue(0);
            worker.device().queue_reset().unwrap().start_queue(0, ring);
            drop(worker);
            fixture.offer(&[0]);
            fixture.serve();
            assert_eq!(fixture.status(0), 0, "{sector} {at:#x} {len}");
            let mut found = vec![0; len as usize];
            fixture
                .disk()
                .read_exact_at(&mut found, sector * 512)
                .unwrap();
            assert!(found == bytes, "{sector} {at:#x} {len}");
        }
        assert_eq!((fixture.sector(7)[0], fixture.sector(16)[0]), (7, 16));
        assert_eq!(fixture.request(0, 62, 512, true), 0);
        assert_eq!(fixture.data(0, 512), [62; 512]);
    }
}

/// A file that has a last block of which there is a part only: it is read and written, and keeps its length.
#[test]
fn past_the_page_cache_up_to_the_last_sector() {
    for engine in BOTH {
        let direct = |options: &mut BlockOptions| {
            options.disk.direct = true;
            let disk = File::options().write(true).open(&options.disk.path);
            disk.unwrap().set_len(61 * 512 + 100).unwrap();
        };
        let mut fixture = Fixture::with(engine, direct, u64::MAX);
        for (sector, count) in [(60, 1), (56, 5), (54, 7), (57, 2)] {
            let len = 512 * count;
            assert_eq!(fixture.request(0, sector, len, true), 0, "{sector} {count}");
            let expected = (sector..).take(count as usize);
            let expected: Vec<u8> = expected.flat_map(|number| [number as u8; 512]).collect();
            assert!(fixture.data(0, len as usize) == expected);
        }
        for (sector, count, byte) in [(60, 1, 0xa0), (55, 3, 0xb0), (59, 1, 0xc0)] {
            fixture.set_data(0, &vec![byte; 512 * count as usize]);
            assert_eq!(fixture.request(1, sector, 512 * count, false), 0);
            assert_eq!(fixture.request(4, 0, 0, false), 0);
        }
        for (sector, byte) in [
            (54, 54),
            (55, 0xb0),
            (57, 0xb0),
            (58, 58),
            (59, 0xc0),
            (60, 0xa0),
        ] {
            assert_eq!(fixture.sector(sector), [byte; 512], "{sector}");
            assert_eq!(fixture.request(0, sector, 512, true), 0);
            assert_eq!(fixture.data(0, 512), [byte; 512], "{sector}");
        }
        assert_eq!(fixture.disk().metadata().unwrap().size(), 61 * 512 + 100);
    }
}

/// Where the file system can do neither holes nor zeros, they are written; with `O_DIRECT`, and in no whole blocks.
#[test]
fn zeros_are_written_past_the_page_cache_where_nothing_else_works() {
    use job::Next;

    let dir = TempDir::new().unwrap();
    let mut options = disk_in(&dir, Engine::Sync).disk;
    options.direct = true;
    let mut disk = disk::open(&options).unwrap();
    let mut job = Job::default();
    job.begin();
    (job.kind, job.fd) = (Kind::Zero, disk.clears_in(Clear::Zero).unwrap());
    job.ranges.push(request::Range {
        at: 3 * 512,
        len: 18 * 512,
        unmap: true,
    });
    for _ in 0..2 {
        assert!(matches!(job.call(), Some(disk::Call::Allocate { .. })));
        let refused = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
        assert!(matches!(job.result(Err(refused)), Next::Call));
    }
    loop {
        let result = job.call().unwrap().make();
        match job.result(result) {
            Next::Call => {}
            Next::Done => break,
            Next::Failed(error) => panic!("{error}"),
        }
    }
    let bytes = fs::read(&options.path).unwrap();
    for (number, sector) in bytes.chunks(512).enumerate() {
        let byte = if (3..21).contains(&number) { 0 } else { number };
        assert_eq!(sector, [byte as u8; 512], "{number}");
    }
}

#[test]
fn what_the_driver_is_offered() {
    let features = |change: fn(&mut BlockOptions)| {
        let fixture = Fixture::with(Engine::Sync, change, u64::MAX);
        fixture.worker.lock().device().features() & 0xff_ffff
    };
    let always = bit::SEG_MAX | bit::BLK_SIZE | bit::TOPOLOGY;
    let clears = bit::DISCARD | bit::WRITE_ZEROES;
    assert_eq!(
        features(|_| ()),
        always | clears | bit::FLUSH | bit::CONFIG_WCE
    );
    assert_eq!(
        features(|options| options.cache = CacheType::Unsafe),
        always | clears
    );
    assert_eq!(
        features(|options| (options.disk.read_only, options.queues) = (true, 4)),
        always | bit::RO | bit::MQ | bit::FLUSH | bit::CONFIG_WCE
    );
}

#[test]
fn a_driver_that_does_not_flush_gets_writes_that_are_safe() {
    let fixture = Fixture::with(Engine::Sync, |_| (), !(bit::FLUSH | bit::CONFIG_WCE));
    let writeback = |fixture: &Fixture| {
        let mut byte = [9];
        fixture.worker.lock().device().read_config(32, &mut byte);
        byte[0]
    };
    assert_eq!(writeback(&fixture), 0);
    let mut fixture = Fixture::new(Engine::Async);
    assert_eq!(writeback(&fixture), 1);
    fixture.worker.lock().device().write_config(32, &[0]);
    assert_eq!(writeback(&fixture), 0);
    assert_eq!(fixture.request(1, 5, 512, false), 0);
    fixture.set_data(0, &range(6, 1, 0));
    assert_eq!(fixture.request(13, 0, 16, false), 0);
    fixture.worker.lock().stop();
    assert_eq!(writeback(&fixture), 1);
}

#[test]
fn a_read_only_disk_is_not_written() {
    for engine in BOTH {
        let mut fixture = Fixture::with(engine, |options| options.disk.read_only = true, u64::MAX);
        assert_eq!(fixture.request(1, 0, 512, false), 1);
        assert_eq!(fixture.request(0, 5, 512, true), 0);
        assert_eq!(fixture.data(0, 1), [5]);
    }
}

#[test]
fn a_disk_grows_shrinks_and_is_replaced() {
    for engine in BOTH {
        let mut fixture = Fixture::new(engine);
        let path = fixture.dir.path().join("disk");
        let set_len = |sectors: u64| {
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(sectors * 512).unwrap();
        };
        let capacity = |fixture: &Fixture| {
            let mut bytes = [0; 8];
            fixture.worker.lock().device().read_config(0, &mut bytes);
            u64::from_le_bytes(bytes)
        };
        set_len(100);
        assert_eq!(fixture.request(0, 99, 512, true), 1, "not looked at yet");
        fixture.update(BlockUpdate::default()).unwrap();
        assert_eq!(capacity(&fixture), 100);
        assert_eq!(fixture.counts.config.load(Ordering::Relaxed), 1);
        assert_eq!(fixture.request(0, 99, 512, true), 0);
        // A file that got shorter behind the device's back: an error, and nothing worse.
        set_len(50);
        assert_eq!(fixture.request(0, 60, 512, true), 1);
        fixture.update(BlockUpdate::default()).unwrap();
        assert_eq!(capacity(&fixture), 50);
        // Nothing is new: the driver hears nothing.
        let same = BlockUpdate {
            path: Some(path.clone()),
            ..BlockUpdate::default()
        };
        fixture.update(same).unwrap();
        assert_eq!(fixture.counts.config.load(Ordering::Relaxed), 2);
        // Another file. If it cannot be had, all stays as it was.
        let other = fixture.dir.path().join("other");
        let replace = BlockUpdate {
            path: Some(other.clone()),
            ..BlockUpdate::default()
        };
        fixture.update(replace.clone()).unwrap_err();
        assert_eq!(fixture.request(0, 7, 512, true), 0);
        fs::write(&other, [0x77; 512 * 3]).unwrap();
        fixture.update(replace).unwrap();
        assert_eq!(fixture.request(0, 2, 512, true), 0);
        assert_eq!(fixture.data(0, 1), [0x77]);
        assert_eq!(capacity(&fixture), 3);
        // A file that has taken the place of the one that is open does not become the guest's disk by itself.
        fs::rename(&other, fixture.dir.path().join("moved")).unwrap();
        fs::write(&other, [0x88; 512 * 4]).unwrap();
        let again = BlockUpdate {
            path: Some(other),
            ..BlockUpdate::default()
        };
        fixture.update(again).unwrap();
        assert_eq!(fixture.request(0, 2, 512, true), 0);
        assert_eq!((fixture.data(0, 1), capacity(&fixture)), (vec![0x77], 3));
        assert!(fixture.update(BlockUpdate::default()).is_ok());
        let error = fixture
            .worker
            .lock()
            .device()
            .update(&Update::Entropy(RateLimiterConfig::default()));
        assert!(error.is_err());
    }
}

#[test]
fn limits_hold_requests_up() {
    let bucket = |size| {
        Some(BucketConfig {
            size,
            one_time_burst: None,
            refill_time: 3_600_000,
        })
    };
    for engine in BOTH {
        let limit = |options: &mut BlockOptions| options.limits.ops = bucket(1);
        let mut fixture = Fixture::with(engine, limit, u64::MAX);
        fixture.prepare(0, 4, 0, 0, false);
        fixture.prepare(1, 4, 0, 0, false);
        fixture.offer(&[0, 1]);
        let progress = fixture.worker.lock().service(0);
        assert!(matches!(progress, Progress::Wait(time) if time.as_secs() > 1000));
        fixture.worker.lock().device().quiesce();
        assert_eq!(fixture.driver.used().len(), 1);
        assert_eq!(fixture.counter("throttled"), 1);
        let limits = RateLimiterConfig {
            bandwidth: None,
            ops: bucket(0),
        };
        fixture.update(BlockUpdate { path: None, limits }).unwrap();
        fixture.serve();
        assert_eq!(fixture.driver.used().len(), 2);
    }
}

#[test]
fn nothing_is_under_way_after_a_reset() {
    for _ in 0..50 {
        let mut fixture = Fixture::new(Engine::Async);
        for slot in 0..2 {
            fixture.prepare(slot, 0, 0, 4096, true);
        }
        fixture.offer(&[0, 1]);
        let _ = fixture.worker.lock().service(0);
        fixture.worker.lock().stop();
        let before = fixture.driver.used();
        fixture.set_data(0, &[0xee; 4096]);
        assert!(!fixture.wait_for_host(0));
        assert_eq!(fixture.worker.lock().service_host(), Progress::Done);
        assert_eq!(fixture.driver.used(), before);
        assert_eq!(fixture.data(0, 4096), [0xee; 4096]);
    }
}

#[test]
fn a_chain_without_a_status_ends_it() {
    let mut fixture = Fixture::new(Engine::Async);
    fixture.driver.descriptor(0, HEADER, 16, 0, 0);
    fixture.offer(&[0]);
    let _ = fixture.worker.lock().service(0);
    assert_eq!(fixture.counts.broken.load(Ordering::Relaxed), 1);
}

#[test]
fn state_is_saved_and_restored() {
    let mut fixture = Fixture::new(Engine::Async);
    fixture.prepare(0, 0, 1, 512, true);
    fixture.offer(&[0]);
    fixture.serve();
    fixture.worker.lock().device().write_config(32, &[0]);
    let state = fixture.worker.lock().device().save();
    let json = serde_json::to_string(&state).unwrap();
    assert_eq!(serde_json::from_str::<DeviceState>(&json).unwrap(), state);
    let DeviceState::Block(block) = &state else {
        panic!("another state");
    };
    let position = RingState {
        next_avail: 1,
        next_used: 1,
    };
    assert_eq!(block.rings, [Some(position)]);
    let other = Fixture::new(Engine::Sync);
    other.worker.lock().device().restore(&state);
    assert_eq!(other.worker.lock().device().save(), state);
}

/// With 4 more requests than there are jobs, done after `begun` had all jobs that were begun and none of them free; served
/// as the loop serves it then: on completions, and when it has said that there is more.
fn more_requests_than_jobs(begun: impl FnOnce(&mut Block) -> Progress) {
    use std::os::fd::AsRawFd;

    let dir = TempDir::new().unwrap();
    let mut block = Block::new(disk_in(&dir, Engine::Async)).unwrap();
    let driver = Driver::new();
    let entries = 256;
    let setup = super::super::negotiation::QueueSetup {
        max: entries,
        size: entries,
        ..Driver::setup()
    };
    let ring = Ring::new(&setup, feature::COMMON, &driver.memory).unwrap();
    // All of them are one and the same read.
    driver.descriptor(0, HEADER, 16, NEXT, 1);
    driver.descriptor(1, DATA, 512, NEXT | WRITE, 2);
    driver.descriptor(2, STATUS, 1, WRITE, 0);
    block.activate(Activation {
        memory: driver.memory.clone(),
        rings: vec![Some(ring)],
        features: block.features(),
        interrupt: Arc::new(Counts::default()),
    });
    driver.set_available(entries);
    while block.work.has_slot() {
        let _ = block.take(0).unwrap();
    }
    driver.set_available(entries + 4);
    // All jobs are begun and none is free. What is given to the kernel from here on may be complete at once.
    let readable = |block: &Block| {
        let mut poll = libc::pollfd {
            fd: block.host_event().unwrap().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry.
        unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
    };
    let mut progress = begun(&mut block);
    let limit = Instant::now() + Duration::from_secs(20);
    loop {
        assert!(Instant::now() < limit);
        if progress == Progress::More {
            progress = block.process(0).unwrap();
        } else if readable(&block) {
            progress = block.process_host().unwrap();
        } else if !block.work.under_way() {
            break;
        }
    }
    assert_eq!(driver.used().len(), usize::from(entries) + 4);
}

#[test]
fn a_queue_that_waits_for_a_job_is_not_forgotten() {
    more_requests_than_jobs(|block| block.process(0).unwrap());
}

/// On a vCPU's thread, which takes all completions, while the loop waits for them.
#[test]
fn nor_is_it_when_another_queue_is_reset() {
    more_requests_than_jobs(|block| {
        assert_eq!(block.take(0).unwrap(), Progress::Done);
        block.reset_queue(1);
        Progress::Done
    });
}
