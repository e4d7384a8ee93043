//! Single queues are reset, and used again.

use super::*;

/// 2.6.1, 4.1.4.3, 4.2.2.1: a queue that is reset is not touched, and can begin anew with another size.
#[test]
fn a_queue_is_reset_and_used_again() {
    on_each(entropy, |device| {
        device.start(feature::COMMON | feature::RING_RESET);
        assert!(device.works());
        device.interrupts();
        for (round, size) in [4, 8, 2].into_iter().enumerate() {
            device.reset_queue();
            assert!(!device.queue_in_reset() && !device.enabled());
            let setup = &device.save().negotiation.queues[0];
            assert_eq!((setup.size, setup.areas), (256, [0; 3]), "defaults");
            device.ends().driver.clear();
            assert!(!device.works(), "round {round}");
            assert_eq!(device.interrupts(), 0);
            // Twice does no harm.
            device.reset_queue();
            let saved = device.save();
            assert_eq!(
                saved.device,
                DeviceState::Entropy(EntropyState { ring: None })
            );
            while device.ends().kicked(0) {}
            let setup = QueueSetup {
                size,
                ..Driver::setup()
            };
            device.prepare();
            device.set_up(0, &setup);
            device.enable();
            assert!(device.enabled() && device.ends().kicked(0));
            assert_eq!(device.status(), READY, "the device goes on");
            assert!(device.works(), "round {round}: from the start of the ring");
            assert_eq!(device.interrupts(), 1);
        }
    });
}

/// 2.6.1: only where it was negotiated. 3.1.1: enabled before `DRIVER_OK`.
#[test]
fn a_queue_reset_that_was_not_negotiated_has_no_effect() {
    on_each(entropy, |device| {
        device.start(feature::COMMON);
        device.reset_queue();
        assert!(device.enabled() && device.works());
    });
    on_each(plain, |device| {
        assert_eq!(device.offered() & feature::RING_RESET, 0);
        device.agree(feature::COMMON | feature::RING_RESET);
        assert_eq!(device.status(), 3, "not offered");
        let _ = device.set_status(0);
        device.start(feature::VERSION_1);
        let setup = QueueSetup {
            size: 4,
            ..Driver::setup()
        };
        device.set_up(1, &setup);
        device.enable();
        assert_eq!(device.status(), READY | Status::NEEDS_RESET);
        assert_eq!(device.interrupts(), 1);
    });
}

/// A queue is reset before the device is started: its setup begins again.
#[test]
fn a_queue_reset_before_the_start_is_fine() {
    on_each(entropy, |device| {
        device.agree(feature::VERSION_1 | feature::RING_RESET);
        device.prepare();
        device.set_up(0, &Driver::setup());
        device.enable();
        device.reset_queue();
        assert!(!device.enabled());
        assert_eq!(device.set_status(READY), Action::DriverOk(NUMBER));
        assert!(!device.works(), "there is no queue");
        device.prepare();
        device.set_up(0, &Driver::setup());
        device.enable();
        assert!(device.works());
    });
}
