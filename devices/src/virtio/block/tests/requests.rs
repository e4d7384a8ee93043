//! Requests, and what becomes of the disk by them.

use super::*;

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
fn a_read_only_disk_is_not_written() {
    for engine in BOTH {
        let mut fixture = Fixture::with(engine, |options| options.disk.read_only = true, u64::MAX);
        assert_eq!(fixture.request(1, 0, 512, false), 1);
        assert_eq!(fixture.request(0, 5, 512, true), 0);
        assert_eq!(fixture.data(0, 1), [5]);
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
