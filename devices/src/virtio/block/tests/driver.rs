//! What the driver is told, what changes while it is there, and queues that wait.

use super::*;

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
        let mut again = BlockUpdate {
            path: Some(other),
            ..BlockUpdate::default()
        };
        fixture.update(again.clone()).unwrap();
        assert_eq!(fixture.request(0, 2, 512, true), 0);
        assert_eq!((fixture.data(0, 1), capacity(&fixture)), (vec![0x77], 3));
        // Unless that is asked for, any number of times.
        again.reopen = true;
        for _ in 0..2 {
            fixture.update(again.clone()).unwrap();
            assert_eq!(fixture.request(0, 2, 512, true), 0);
            assert_eq!((fixture.data(0, 1), capacity(&fixture)), (vec![0x88], 4));
        }
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
        let update = BlockUpdate {
            limits,
            ..BlockUpdate::default()
        };
        fixture.update(update).unwrap();
        fixture.serve();
        assert_eq!(fixture.driver.used().len(), 2);
    }
}

/// Zeros count as if they were written; space that is given back does not.
#[test]
fn zeros_are_bytes_to_the_limit() {
    for (kind, held) in [(13, true), (11, false)] {
        let limit = |options: &mut BlockOptions| {
            options.limits.bandwidth = Some(BucketConfig {
                size: 16 << 10,
                one_time_burst: None,
                refill_time: 3_600_000,
            });
        };
        let mut fixture = Fixture::with(Engine::Sync, limit, u64::MAX);
        fixture.set_data(0, &range(8, 32, 0));
        fixture.prepare(0, kind, 0, 16, false);
        fixture.prepare(1, 0, 0, 512, true);
        fixture.offer(&[0, 1]);
        let progress = fixture.worker.lock().service(0);
        assert_eq!(matches!(progress, Progress::Wait(_)), held, "{kind}");
        assert_eq!(fixture.status(0), 0);
        assert_eq!(fixture.driver.used().len(), if held { 1 } else { 2 });
    }
}

/// A ring that the kernel takes nothing from any more: all is done one after the other from then on.
#[test]
fn a_ring_that_is_none_any_more_is_done_without() {
    use std::os::fd::AsRawFd;

    let mut fixture = Fixture::new(Engine::Async);
    assert_eq!(fixture.request(0, 3, 512, true), 0);
    let event = |block: &mut dyn VirtioDevice| block.host_event().unwrap().as_raw_fd();
    let ring = event(fixture.worker.lock().device());
    let no_ring = File::open("/dev/null").unwrap();
    // SAFETY: the device's descriptor stays open, and is another file's.
    assert!(unsafe { libc::dup2(no_ring.as_raw_fd(), ring) } >= 0);
    for sector in [5, 6] {
        assert_eq!(fixture.request(0, sector, 512, true), 0);
        assert_eq!(fixture.data(0, 512), [sector as u8; 512]);
    }
    assert_eq!(fixture.request(1, 7, 512, false), 0);
    assert_eq!(fixture.request(4, 0, 0, false), 0);
    assert_eq!(fixture.sector(7), [6; 512]);
    fixture.set_data(0, &range(30, 2, 0));
    assert_eq!(fixture.request(13, 0, 16, false), 0);
    assert_eq!(fixture.sector(31), [0; 512]);
    assert_eq!(fixture.counter("errors"), 0);
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
    let setup = super::super::super::negotiation::QueueSetup {
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
