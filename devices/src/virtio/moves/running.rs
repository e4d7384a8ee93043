//! Configuration, saved state, and several vCPUs at once.

use super::*;

/// 2.5.1: the generation is another when the configuration is; 4.2.2.2: fields of any width.
#[test]
fn the_generation_changes_with_the_configuration() {
    on_each(plain, |device| {
        let read = |offset, len: usize| {
            let mut data = [0xaa; 8];
            device.config(offset, &mut data[..len]);
            data
        };
        assert_eq!(&read(0, 8), b"01234567");
        assert_eq!(&read(2, 2)[..2], b"23");
        assert_eq!(&read(4, 4)[..4], b"4567");
        assert_eq!(&read(7, 1)[..1], b"7");
        assert_eq!(&read(8, 8), &[0; 8]);
        device.set_config(0, b"x");
        assert_eq!(device.generation(), 0, "nobody is there to be told");
        device.start(feature::VERSION_1);
        let before = device.generation();
        assert_eq!((before, device.generation()), (0, 0));
        for (round, byte) in (1..=300).zip(0_u32..) {
            device.set_config(1, &[byte as u8, 2]);
            // One byte of it on PCI (4.1.4.3).
            assert_eq!(device.generation() & 0xff, round & 0xff);
            assert_eq!(device.interrupts(), 1);
        }
        assert_eq!(&read(0, 4)[..4], &[b'x', 43, 2, b'3']);
        device.set_config(0xf00, &[1; 8]);
    });
}

#[test]
fn a_queue_may_be_served_at_its_kick() {
    on_each(plain, |device| {
        let ends = device.ends();
        let served = || {
            let counters = ends.worker.lock().device().counters();
            counters.iter().map(|(_, count)| *count).collect::<Vec<_>>()
        };
        device.notify(1);
        assert_eq!(served(), [0, 0], "nobody is ready");
        device.start(feature::VERSION_1);
        assert!(ends.kicked(0) && ends.kicked(1), "the loop looks first");
        device.notify(1);
        assert_eq!(served(), [0, 1]);
        assert!(ends.kicked(1), "the loop does the rest");
        device.notify(1);
        assert_eq!(served(), [0, 2]);
        assert!(!ends.kicked(1));
        device.notify(0);
        assert_eq!(served(), [0, 2]);
        assert!(ends.kicked(0));
    });
}

#[test]
fn what_is_saved_carries_on() {
    on_each(entropy, |device| {
        device.start(feature::COMMON);
        assert!(device.works());
        let saved = device.save();
        let text = serde_json::to_string(&saved).unwrap();
        let _ = device.set_status(0);
        assert_ne!(device.save(), saved);
        device.restore(&serde_json::from_str(&text).unwrap());
        assert_eq!(device.status(), READY);
        assert_eq!(device.save(), saved);
        let driver = &device.ends().driver;
        driver.descriptor(1, 0x9000, 16, WRITE, 0);
        driver.offer(&[0, 1]);
        device.ends().serve();
        assert_eq!(driver.used(), [(0, 32), (1, 16)]);
        // A device that is broken, or given up, stays so.
        for status in [Status::NEEDS_RESET, Status::FAILED] {
            let mut broken = saved.clone();
            broken.negotiation.status |= status;
            let _ = device.set_status(0);
            device.restore(&broken);
            driver.clear();
            assert!(!device.works());
        }
        // A state that cannot be is a driver that breaks the rules.
        let mut broken = saved.clone();
        broken.negotiation.queues[0].areas[0] = u64::MAX;
        let _ = device.set_status(0);
        device.restore(&broken);
        assert_eq!(device.status(), READY | Status::NEEDS_RESET);
    });
}

/// Accesses of any shape, at random, from several vCPUs and with the loop at work.
#[test]
fn accesses_of_any_shape_are_harmless() {
    for device in [entropy, plain] {
        on_each(device, |device| {
            device.start(feature::VERSION_1);
            std::thread::scope(|scope| {
                for seed in 0..4_u64 {
                    scope.spawn(move || {
                        let mut state = seed;
                        for _ in 0..20_000 {
                            // A cheap generator is random enough here.
                            state = state.wrapping_mul(6364136223846793005);
                            state = state.wrapping_add(1442695040888963407);
                            let bits = state >> 16;
                            if bits & 15 == 0 {
                                let part = (bits >> 8 & 3) as u16;
                                let _ = device.ends().worker.lock().service(part);
                            }
                            device.poke(bits >> 4);
                        }
                    });
                }
            });
            let _ = device.set_status(0);
            device.ends().driver.clear();
            device.start(feature::VERSION_1);
        });
    }
}
