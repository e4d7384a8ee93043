//! Status, features, queues: from the first step to `DRIVER_OK` and back.

use super::*;

/// 3.1.1 from the first step to the last, and 2.4.
#[test]
fn a_driver_that_does_all_right_gets_its_bytes() {
    on_each(entropy, |device| {
        assert_eq!(device.offered(), feature::COMMON | feature::RING_RESET);
        device.start(feature::COMMON);
        assert!(device.ends().kicked(0), "kicked once by itself (3.1.1)");
        assert_eq!(device.interrupts(), 0);
        assert!(device.works());
        assert_eq!(device.interrupts(), 1);
        let _ = device.set_status(0);
        assert_eq!((device.status(), device.enabled()), (0, false));
        device.ends().driver.offer(&[0, 0]);
        device.ends().serve();
        assert_eq!(device.ends().driver.used().len(), 1, "stopped (2.4.1)");
        device.ends().driver.clear();
        device.start(feature::VERSION_1);
        assert!(device.works());
    });
}

/// 2.2.1, 2.2.2, 6.1: `FEATURES_OK` stays off.
#[test]
fn features_that_were_not_offered_or_a_legacy_driver_are_refused() {
    on_each(entropy, |device| {
        for features in [
            0,
            feature::EVENT_IDX,
            feature::VERSION_1 | 1,
            feature::VERSION_1 | 1 << 63,
            u64::MAX,
        ] {
            let _ = device.set_status(0);
            device.agree(features);
            assert_eq!(device.status(), 3, "{features:#x}");
            assert_eq!(device.set_status(15), Action::Continue, "{features:#x}");
            assert_eq!(device.status(), 3, "{features:#x}");
        }
        // There are no features beyond bit 63.
        for half in [2, 3, u32::MAX] {
            assert_eq!(device.features(half), 0);
            device.accept(half, u32::MAX);
        }
        let _ = device.set_status(0);
        device.agree(feature::VERSION_1);
        assert_eq!(device.status(), AGREED);
        // 3.1.1, step 5: not after FEATURES_OK.
        device.accept(0, 0x1000_0000);
        assert_eq!(
            device.save().negotiation.accepted,
            feature::VERSION_1,
            "agreed is agreed"
        );
    });
}

/// 2.1.1, 3.1.1: steps out of order lead nowhere, and no bit is taken back but by a reset.
#[test]
fn the_status_only_grows_and_only_in_order() {
    on_each(entropy, |device| {
        for status in [4, 8, 12, 64] {
            let _ = device.set_status(status);
            assert_eq!(device.status(), 0, "{status}");
        }
        device.agree(feature::VERSION_1);
        let _ = device.set_status(1);
        assert_eq!(device.status(), AGREED);
        // 2.1.2: FAILED is the end, until the reset.
        let _ = device.set_status(Status::FAILED);
        assert_eq!(device.set_status(READY), Action::Continue);
        assert_eq!(device.status(), AGREED | Status::FAILED);
        let _ = device.set_status(0);
        device.start(feature::VERSION_1);
        let _ = device.set_status(Status::FAILED);
        assert!(!device.works(), "the guest has given up");
    });
}

/// 2.7, 3.1.1 step 7, 4.1.4.3.2, 4.2.2.2: what a queue cannot be ends in `DEVICE_NEEDS_RESET`.
#[test]
fn queues_that_cannot_be_need_a_reset() {
    let good = Driver::setup();
    let bad: [(u16, [u64; 3]); 10] = [
        (0, good.areas),
        (3, good.areas),
        (512, good.areas),
        (u16::MAX, good.areas),
        (8, [0, 0, 0]),
        (8, [0x1001, 0x2000, 0x3000]),
        (8, [0x1000, 0x2001, 0x3000]),
        (8, [0x1000, 0x2000, 0x3002]),
        (8, [0x1000, 0xffff_0000, 0x3000]),
        (8, [0x1000, 0x2000, !3]),
    ];
    on_each(entropy, |device| {
        for (size, areas) in bad {
            let _ = device.set_status(0);
            device.agree(feature::VERSION_1);
            let setup = QueueSetup {
                size,
                areas,
                ..good
            };
            device.set_up(0, &setup);
            device.enable();
            assert!(!device.enabled(), "{size} {areas:x?}");
            let broken = AGREED | Status::NEEDS_RESET;
            assert_eq!(device.status(), broken, "{size} {areas:x?}");
            assert_eq!(device.set_status(READY), Action::Continue);
            assert_eq!(device.status(), broken, "2.1.2");
            assert_eq!(device.interrupts(), 0, "2.1.2: only after DRIVER_OK");
        }
        let _ = device.set_status(0);
        device.set_up(0, &good);
        device.enable();
        assert_eq!(device.status(), Status::NEEDS_RESET, "no features yet");
        let _ = device.set_status(0);
        device.start(feature::VERSION_1);
        assert!(device.works());
    });
}

/// 2.1.2: a ring that goes wrong later; the driver hears of it.
#[test]
fn a_broken_ring_needs_a_reset() {
    on_each(entropy, |device| {
        device.start(feature::VERSION_1);
        device.ends().driver.set_available(9);
        device.ends().serve();
        assert_eq!(device.status(), READY | Status::NEEDS_RESET);
        assert_eq!(device.interrupts(), 1);
        // Nothing helps but the reset.
        device.ends().driver.clear();
        assert!(!device.works());
        device.reset_queue();
        device.set_up(0, &Driver::setup());
        device.enable();
        assert!(!device.works());
        let _ = device.set_status(0);
        device.ends().driver.clear();
        device.start(feature::VERSION_1);
        assert!(device.works());
    });
}

/// 4.1.4.3.1, 4.2.2: a queue that is not there has size zero and takes nothing.
#[test]
fn queues_that_are_not_there_take_nothing() {
    on_each(entropy, |device| {
        device.agree(feature::VERSION_1 | feature::RING_RESET);
        for queue in [1, 2, 0x100, u16::MAX] {
            device.set_up(queue, &Driver::setup());
            device.enable();
            device.reset_queue();
            assert_eq!((device.largest_size(), device.enabled()), (0, false));
            assert_eq!(device.status(), AGREED, "{queue}");
        }
        device.select_queue(0);
        assert_eq!((device.largest_size(), device.enabled()), (256, false));
    });
}

/// 4.1.4.3.2, 4.2.2.2: an enabled queue is fixed.
#[test]
fn an_enabled_queue_does_not_change() {
    on_each(entropy, |device| {
        device.start(feature::VERSION_1);
        let before = device.save();
        let other = QueueSetup {
            size: 4,
            areas: [0x4000, 0x5000, 0x6000],
            ..Driver::setup()
        };
        device.set_up(0, &other);
        device.enable();
        assert_eq!(device.save(), before);
        assert!(device.works());
    });
}

/// 3.1.1: no kicks before `DRIVER_OK`, and none of queues that are not there.
#[test]
fn kicks_that_mean_nothing_are_lost() {
    on_each(entropy, |device| {
        device.notify(0);
        assert!(!device.ends().kicked(0));
        device.start(feature::VERSION_1);
        assert!(device.ends().kicked(0));
        for queue in [1, 2, 1023, u16::MAX] {
            device.notify(queue);
        }
        assert!(!device.ends().kicked(0));
        let _ = device.set_status(0);
        device.notify(0);
        assert!(!device.ends().kicked(0));
    });
}
