use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::super::testing::{Driver, NEXT, WRITE};
use super::*;

/// What has reached the driver.
#[derive(Default)]
struct Told {
    used: AtomicU32,
    changed: AtomicU32,
}

impl Interrupt for Told {
    fn used(&self, _queue: u16) {
        self.used.fetch_add(1, Ordering::Relaxed);
    }
    fn config_changed(&self) {
        self.changed.fetch_add(1, Ordering::Relaxed);
    }
    fn needs_reset(&self) {}
}

const SETTINGS: Settings = Settings {
    memory_mib: 16,
    deflate_on_oom: true,
    free_page_reporting: true,
    wanted: Wanted {
        amount_mib: 8,
        stats_polling_interval_s: 0,
    },
};

/// A balloon with the driver's queue as that one.
fn started(driver: &Driver, queue: usize, features: u64) -> (Balloon, Arc<Told>) {
    let mut balloon = Balloon::new(SETTINGS);
    let told = Arc::new(Told::default());
    let mut rings = [const { None }; queues::COUNT];
    rings[queue] = Some(driver.ring());
    balloon.activate(Activation {
        memory: driver.memory.clone(),
        rings: rings.into(),
        features: feature::COMMON | features,
        interrupt: told.clone(),
    });
    (balloon, told)
}

fn counter(balloon: &Balloon, name: &str) -> Option<u64> {
    let all = balloon.counters();
    all.iter()
        .find(|(other, _)| *other == name)
        .map(|(_, value)| *value)
}

/// Fills the pages behind the first 8, which the queue is in, and tells which are filled.
fn fill(driver: &Driver) {
    let at = GuestAddress(8 * PAGE);
    let bytes = vec![0xaa; 24 * PAGE as usize];
    driver.memory.write_slice(&bytes, at).unwrap();
}

fn filled(driver: &Driver) -> Vec<u64> {
    let is_filled = |page: &u64| {
        driver
            .memory
            .read_obj::<u8>(GuestAddress(page * PAGE))
            .unwrap()
            == 0xaa
    };
    (8..32).filter(is_filled).collect()
}

fn write_numbers(driver: &Driver, at: u64, numbers: &[u32]) {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
    driver.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
}

#[test]
fn pages_of_the_inflate_queue_are_given_back() {
    let driver = Driver::new();
    fill(&driver);
    let numbers = [31, 9, 30, 9, 11, 32, u32::MAX, 10];
    write_numbers(&driver, 0x4000, &numbers);
    // The numbers are cut anywhere, and the last one is not whole. A buffer to write to has no meaning here.
    driver.descriptor(0, 0x4000, 6, NEXT, 1);
    driver.descriptor(1, 0x4006, 0, NEXT, 2);
    driver.descriptor(2, 0x4006, 28, NEXT, 3);
    driver.descriptor(3, 0xc000, 4096, WRITE, 0);
    driver.offer(&[0]);
    let (mut balloon, told) = started(&driver, 0, 0);
    assert_eq!(balloon.process(0), Ok(Progress::Done));
    assert_eq!(driver.used(), [(0, 0)]);
    let rest: Vec<u64> = (8..32)
        .filter(|page| ![9, 10, 11, 30, 31].contains(page))
        .collect();
    assert_eq!(filled(&driver), rest);
    assert_eq!(counter(&balloon, "inflate_count"), Some(1));
    assert_eq!(counter(&balloon, "inflated_bytes"), Some(5 * PAGE));
    assert_eq!(
        counter(&balloon, "release_fails"),
        Some(2),
        "32 and the largest"
    );
    assert_eq!(told.used.load(Ordering::Relaxed), 1);
    assert_eq!(balloon.process(0), Ok(Progress::Done));
    assert_eq!(told.used.load(Ordering::Relaxed), 1, "nothing new");
}

#[test]
fn a_long_request_is_done_in_turns_and_begun_again_elsewhere() {
    let driver = Driver::new();
    // More numbers than a turn's, all of them 0.
    let bytes = 4 * 9 * 1024;
    driver.descriptor(0, 0x8000, bytes, 0, 0);
    driver.offer(&[0]);
    let (mut balloon, told) = started(&driver, 0, 0);
    assert_eq!(balloon.process(0), Ok(Progress::More));
    assert!(driver.used().is_empty());
    let DeviceState::Balloon(state) = balloon.save() else {
        panic!("another device's state");
    };
    assert_eq!(state.rings[0], Some(RingState::default()));
    assert_eq!(balloon.process(0), Ok(Progress::Done));
    assert_eq!(driver.used(), [(0, 0)]);
    assert_eq!(counter(&balloon, "inflate_count"), Some(1));
    assert_eq!(told.used.load(Ordering::Relaxed), 1);

    // A queue that is reset has forgotten the request.
    let resets = balloon.queue_reset().unwrap();
    resets.reset_queue(0);
    resets.reset_queue(99);
    assert_eq!(balloon.process(0), Ok(Progress::Done));
    let resets = balloon.queue_reset().unwrap();
    resets.start_queue(99, driver.ring());
    resets.start_queue(0, driver.ring());
    assert_eq!(balloon.process(0), Ok(Progress::More));

    let (mut other, _) = started(&driver, 0, 0);
    other.restore(&DeviceState::Balloon(state.clone()));
    assert_eq!(other.save(), DeviceState::Balloon(state));
    assert_eq!(other.process(0), Ok(Progress::More));
}

#[test]
fn a_deflated_page_costs_nothing() {
    let driver = Driver::new();
    fill(&driver);
    write_numbers(&driver, 0x4000, &[9, 10]);
    driver.descriptor(0, 0x4000, 8, 0, 0);
    driver.offer(&[0]);
    let (mut balloon, _) = started(&driver, 1, 0);
    assert_eq!(balloon.process(1), Ok(Progress::Done));
    assert_eq!(driver.used(), [(0, 0)]);
    assert_eq!(filled(&driver).len(), 24);
    assert_eq!(counter(&balloon, "deflated_bytes"), Some(2 * PAGE));
}

#[test]
fn reported_ranges_are_given_back() {
    let driver = Driver::new();
    fill(&driver);
    driver.descriptor(0, 0x9000, 0x2000, WRITE | NEXT, 1);
    // Whole pages only: 14.
    driver.descriptor(1, 0xd800, 0x2000, WRITE | NEXT, 2);
    driver.descriptor(2, 0x1_f000, 0x1000, WRITE, 0);
    driver.offer(&[0]);
    // By the number that the specification gives it, and by the one that Linux does.
    for queue in [4, 2] {
        fill(&driver);
        let (mut balloon, _) = started(&driver, queue, feature::PAGE_REPORTING);
        assert_eq!(balloon.process(queue as u16), Ok(Progress::Done));
        assert_eq!(driver.used(), [(0, 0)]);
        let rest: Vec<u64> = (8..32)
            .filter(|page| ![9, 10, 14, 31].contains(page))
            .collect();
        assert_eq!(filled(&driver), rest);
        assert_eq!(counter(&balloon, "free_page_report_count"), Some(1));
        assert_eq!(counter(&balloon, "free_page_report_freed"), Some(4 * PAGE));
        assert_eq!(counter(&balloon, "release_fails"), Some(0));
    }
    // Without the feature there is no such queue.
    fill(&driver);
    let (mut balloon, _) = started(&driver, 4, 0);
    assert_eq!(balloon.process(4), Ok(Progress::Done));
    assert_eq!(filled(&driver).len(), 24);
}

#[test]
fn what_is_not_in_memory_is_told_to_the_driver() {
    for (queue, address, len, flags) in [
        (0, 0x1_fff0, 32, 0),
        (1, 0x1_fff0, 32, 0),
        (2, 0xffff_f000, 10, 0),
        (4, 0x1_f000, 0x2000, WRITE),
        (4, 0x8000, u32::MAX, WRITE),
    ] {
        let driver = Driver::new();
        fill(&driver);
        driver.descriptor(0, address, len, flags, 0);
        driver.offer(&[0]);
        let features = feature::STATS_VQ | feature::PAGE_REPORTING;
        let features = if queue == 4 {
            feature::PAGE_REPORTING
        } else {
            features
        };
        let (mut balloon, _) = started(&driver, queue, features);
        let number = queue as u16;
        assert!(balloon.process(number).is_err(), "queue {queue}");
        assert_eq!(filled(&driver).len(), 24);
        balloon.reset();
        assert_eq!(balloon.process(number), Ok(Progress::Done));
    }
}

/// Entries of a statistics buffer.
fn write_statistics(driver: &Driver, at: u64, entries: &[(u16, u64)]) -> u32 {
    let bytes: Vec<u8> = entries
        .iter()
        .flat_map(|(tag, value)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat())
        .collect();
    driver.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    bytes.len() as u32
}

#[test]
fn statistics_are_asked_for_again_and_again() {
    let driver = Driver::new();
    let entries = [
        (4, 4096),
        (0, 7),
        (4, 1 << 40),
        (10, 3),
        (99, 1),
        (u16::MAX, 1),
    ];
    let len = write_statistics(&driver, 0x8000, &entries);
    // Cut off in its last entry.
    driver.descriptor(0, 0x8000, len - 1, 0, 0);
    driver.offer(&[0]);
    let (mut balloon, told) = started(&driver, 2, feature::STATS_VQ);
    assert_eq!(balloon.process(2), Ok(Progress::Done));
    assert!(driver.used().is_empty(), "kept");
    assert_eq!(counter(&balloon, "free_memory"), None, "not asked for");

    let wanted = |amount_mib, stats_polling_interval_s| {
        Update::Balloon(Wanted {
            amount_mib,
            stats_polling_interval_s,
        })
    };
    balloon.update(&wanted(8, 3600)).unwrap();
    assert_eq!(
        counter(&balloon, "free_memory"),
        Some(1 << 40),
        "the last one"
    );
    assert_eq!(counter(&balloon, "swap_in"), Some(7));
    assert_eq!(counter(&balloon, "oom_kill"), Some(3));
    assert_eq!(counter(&balloon, "swap_out"), None);
    let Ok(Progress::Wait(left)) = balloon.process(2) else {
        panic!("not waiting");
    };
    assert!((3500..=3600).contains(&left.as_secs()));
    assert!(driver.used().is_empty());
    assert_eq!(told.used.load(Ordering::Relaxed), 0);

    // The time is over.
    balloon.active.as_mut().unwrap().told -= Duration::from_secs(3600);
    assert_eq!(balloon.process(2), Ok(Progress::Done));
    assert_eq!(driver.used(), [(0, 0)]);
    assert_eq!(told.used.load(Ordering::Relaxed), 1);
    assert_eq!(balloon.process(2), Ok(Progress::Done), "the driver's turn");

    // The driver answers, twice: one buffer is kept.
    let len = write_statistics(&driver, 0x9000, &[(5, 11)]);
    driver.descriptor(1, 0x9000, len, 0, 0);
    driver.offer(&[0, 0, 1]);
    assert!(matches!(balloon.process(2), Ok(Progress::Wait(_))));
    assert_eq!(driver.used(), [(0, 0), (0, 0)]);
    assert_eq!(counter(&balloon, "total_memory"), Some(11));
    assert_eq!(counter(&balloon, "free_memory"), None, "of the time before");
    assert_eq!(counter(&balloon, "stats_updates_count"), Some(3));
    let DeviceState::Balloon(state) = balloon.save() else {
        panic!("another device's state");
    };
    // The kept one comes again.
    let kept = RingState {
        next_avail: 2,
        next_used: 2,
    };
    assert_eq!(state.rings[2], Some(kept));
    assert_eq!(state.wanted.stats_polling_interval_s, 3600);
}

#[test]
fn a_flood_of_statistics_is_taken_in_turns() {
    let driver = Driver::new();
    driver.descriptor(0, 0x8000, 0x1_0000, 0, 0);
    driver.offer(&[0; 8]);
    let (mut balloon, _) = started(&driver, 2, feature::STATS_VQ);
    assert_eq!(balloon.process(2), Ok(Progress::More));
    assert_eq!(driver.used().len(), 7);
}

#[test]
fn the_target_is_told_and_the_size_is_heard() {
    let driver = Driver::new();
    let (mut balloon, told) = started(&driver, 0, 0);
    let read = |balloon: &Balloon, offset, len| {
        let mut data = vec![0; len];
        balloon.read_config(offset, &mut data);
        data
    };
    assert_eq!(read(&balloon, 0, 8), [0, 8, 0, 0, 0, 0, 0, 0]);
    balloon.write_config(4, &0x0102_0304_u32.to_le_bytes());
    balloon.write_config(6, &[9]);
    // Nothing else can be written.
    for offset in [0, 8, 4096, u64::MAX] {
        balloon.write_config(offset, &[0xff; 4]);
    }
    assert_eq!(read(&balloon, 0, 12), [0, 8, 0, 0, 4, 3, 9, 1, 0, 0, 0, 0]);
    assert_eq!(read(&balloon, u64::MAX, 4), [0; 4]);
    assert_eq!(counter(&balloon, "actual_pages"), Some(0x0109_0304));
    assert_eq!(counter(&balloon, "target_pages"), Some(8 * 256));

    let wanted = |amount_mib| {
        Update::Balloon(Wanted {
            amount_mib,
            stats_polling_interval_s: 0,
        })
    };
    balloon.update(&wanted(16)).unwrap();
    assert_eq!(read(&balloon, 0, 4), [0, 16, 0, 0]);
    balloon.update(&wanted(16)).unwrap();
    assert_eq!(told.changed.load(Ordering::Relaxed), 1, "only once");
    let error = balloon.update(&wanted(17)).unwrap_err().to_string();
    assert!(error.contains("give 16 at most"), "{error}");
    assert_eq!(read(&balloon, 0, 4), [0, 16, 0, 0]);
    assert!(
        balloon
            .update(&Update::Entropy(Default::default()))
            .is_err()
    );

    balloon.reset();
    assert_eq!(counter(&balloon, "actual_pages"), Some(0));
    balloon.update(&wanted(0)).unwrap();
    assert_eq!(
        told.changed.load(Ordering::Relaxed),
        1,
        "there is no driver"
    );
}

#[test]
fn features_are_what_was_asked_for() {
    let all = Balloon::new(SETTINGS).features();
    let few = Balloon::new(Settings::default()).features();
    let optional = feature::DEFLATE_ON_OOM | feature::PAGE_REPORTING;
    assert_eq!(all & !few, optional);
    assert_eq!(few, feature::COMMON | feature::STATS_VQ);
}
