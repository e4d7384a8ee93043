use super::*;
use crate::virtio::testing::memory;

const READY: u8 = Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK | Status::DRIVER_OK;

fn start() -> (Negotiation, Status) {
    (
        Negotiation::new(feature::COMMON | 1, &[8, 4]),
        Status::default(),
    )
}

fn accept(negotiation: &mut Negotiation, status: &Status, features: u64) {
    for select in 0..2 {
        *negotiation.selectors().1 = select;
        negotiation.accept_half(status, half(features, select));
    }
}

#[test]
fn the_usual_way() {
    let (mut negotiation, status) = start();
    for bits in [1, 3] {
        assert_eq!(negotiation.write_status(&status, bits), Step::Stay);
    }
    accept(&mut negotiation, &status, feature::VERSION_1 | 1);
    assert_eq!(negotiation.write_status(&status, 11), Step::Stay);
    assert_eq!(status.get(), 11);
    // Agreed: later changes have no effect.
    accept(&mut negotiation, &status, 0);
    assert_eq!(negotiation.accepted(), feature::VERSION_1 | 1);
    assert_eq!(negotiation.write_status(&status, READY), Step::Start);
    assert_eq!(negotiation.write_status(&status, READY), Step::Stay, "once");
    assert_eq!(negotiation.write_status(&status, 1), Step::Stay);
    assert_eq!(status.get(), READY, "bits are never taken back");
    assert_eq!(negotiation.write_status(&status, 0), Step::Reset);
    negotiation.reset(&status);
    assert_eq!((status.get(), negotiation.accepted()), (0, 0));
}

#[test]
fn features_are_refused_without_version_1_or_with_what_was_not_offered() {
    for features in [0, 1, feature::EVENT_IDX, feature::VERSION_1 | 2, u64::MAX] {
        let (mut negotiation, status) = start();
        accept(&mut negotiation, &status, features);
        assert_eq!(negotiation.write_status(&status, READY), Step::Stay);
        assert_eq!(status.get(), 3, "{features:#x}");
    }
}

#[test]
fn steps_out_of_order_lead_nowhere() {
    let (mut negotiation, status) = start();
    accept(&mut negotiation, &status, feature::VERSION_1);
    assert_eq!(
        negotiation.write_status(&status, Status::FEATURES_OK),
        Step::Stay
    );
    assert_eq!(
        negotiation.write_status(&status, Status::DRIVER_OK),
        Step::Stay
    );
    assert_eq!(
        negotiation.write_status(&status, Status::NEEDS_RESET),
        Step::Stay
    );
    assert_eq!(status.get(), 0);
    status.set(Status::NEEDS_RESET);
    assert_eq!(negotiation.write_status(&status, READY), Step::Stay);
    assert!(!status.has(Status::DRIVER_OK));
    negotiation.reset(&status);
    assert_eq!(
        negotiation.write_status(&status, Status::FAILED),
        Step::Stop
    );
    assert_eq!(negotiation.write_status(&status, READY), Step::Stay);
    assert_eq!(status.get(), Status::FAILED);
}

#[test]
fn selectors_beyond_the_end_show_nothing() {
    let (mut negotiation, status) = start();
    *negotiation.selectors().0 = 2;
    *negotiation.selectors().1 = u32::MAX;
    *negotiation.selectors().2 = 2;
    negotiation.accept_half(&status, u32::MAX);
    assert_eq!(negotiation.offered_half(), 0);
    assert_eq!(
        (negotiation.accepted_half(), negotiation.accepted()),
        (0, 0)
    );
    assert!(negotiation.queue().is_none() && negotiation.queue_to_set_up().is_none());
    status.set(Status::FEATURES_OK);
    negotiation.enable_queue(&status, &memory()).unwrap();
}

#[test]
fn impossible_queues_are_not_enabled() {
    let good = [0x1000, 0x2000, 0x3000];
    for (size, areas) in [
        (0, good),
        (3, good),
        (16, good),
        (8, [0, 0, 0]),
        (8, [0x1001, 0x2000, 0x3000]),
        (8, [0x1000, 0x2001, 0x3000]),
        (8, [0x1000, 0x2000, 0x3002]),
        (8, [0xfff8, 0x2000, 0x3000]),
        (8, [0x1000, 0xffff_0000, 0x3000]),
        (8, [0x1000, 0x2000, !3]),
    ] {
        let (mut negotiation, status) = start();
        accept(&mut negotiation, &status, feature::VERSION_1);
        let (_, queue) = negotiation.queue_to_set_up().unwrap();
        (queue.size, queue.areas) = (8, good);
        negotiation.enable_queue(&status, &memory()).unwrap_err();
        let _ = negotiation.write_status(&status, 11);
        let (_, queue) = negotiation.queue_to_set_up().unwrap();
        (queue.size, queue.areas) = (size, areas);
        let result = negotiation.enable_queue(&status, &memory());
        assert!(result.is_err(), "{size} {areas:x?}");
        assert!(!negotiation.queue().unwrap().enabled);
    }
}

#[test]
fn an_enabled_queue_is_fixed_and_what_is_saved_comes_back() {
    let (mut negotiation, status) = start();
    accept(&mut negotiation, &status, feature::VERSION_1);
    let _ = negotiation.write_status(&status, 11);
    let (_, queue) = negotiation.queue_to_set_up().unwrap();
    queue.areas = [0x1000, 0x2000, 0x3000];
    negotiation.enable_queue(&status, &memory()).unwrap();
    assert!(negotiation.queue_to_set_up().is_none());
    let rings = negotiation.rings(&memory()).unwrap();
    assert!(rings[0].is_some() && rings[1].is_none());

    let saved = negotiation.save(&status);
    let (mut other, other_status) = start();
    other.restore(&other_status, &saved);
    assert_eq!(other.save(&other_status), saved);
}
