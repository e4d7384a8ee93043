use std::sync::atomic::Ordering;

use super::rig::{Event, Rig};
use super::signals::NO_VECTOR;
use super::*;
use crate::pci::MsiMessage;
use crate::virtio::moves::Registers;
use crate::virtio::testing::WRITE;
use crate::virtio::{Progress, feature};

fn message(data: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_0000,
        data,
    }
}

#[test]
fn a_driver_that_does_all_right_gets_its_bytes() {
    let rig = Rig::live();
    let routes = vec![(0, message(0x30)), (1, message(0x31))];
    let expected = [Event::Route(routes), Event::Attach(0xf000_3000)];
    assert_eq!(rig.outside.take(), expected, "one batch of routes");
    rig.driver().descriptor(0, 0x8000, 32, WRITE, 0);
    rig.driver().offer(&[0]);
    assert_eq!(
        rig.ends.kicks[0].read().unwrap(),
        1,
        "kicked once by itself"
    );
    let _ = rig.put(0x3000, &[0, 0]);
    assert_eq!(rig.ends.kicks[0].read().unwrap(), 1);
    assert_eq!(rig.ends.worker.lock().service(0), Progress::Done);
    assert_eq!(rig.driver().used(), [(0, 32)]);
    assert_eq!(rig.outside.take(), [Event::Trigger(1)]);
    assert_eq!(
        rig.get(0x1000),
        [0],
        "the ISR status is not used with MSI-X"
    );
}

#[test]
fn what_a_masked_vector_has_to_say_waits() {
    let rig = Rig::live();
    rig.outside.take();
    let _ = rig.put(0x401c, &1_u32.to_le_bytes());
    rig.driver().descriptor(0, 0x8000, 32, WRITE, 0);
    rig.driver().offer(&[0]);
    let _ = rig.ends.worker.lock().service(0);
    assert_eq!(rig.outside.take(), []);
    assert_eq!(rig.get(0x5000), [2]);
    let _ = rig.put(0x401c, &0_u32.to_le_bytes());
    assert_eq!(rig.outside.take(), [Event::Trigger(1)], "and no new route");
    assert_eq!(rig.get(0x5000), [0]);
}

#[test]
fn the_bar_moves_and_its_doorbells_with_it() {
    let mut rig = Rig::live();
    rig.outside.take();
    let _ = rig.function.write_config(0x10, &u32::MAX.to_le_bytes());
    let mut size = [0; 4];
    rig.function.read_config(0x10, &mut size);
    assert_eq!(u32::from_le_bytes(size), !(VirtioPci::BAR_SIZE - 1));
    assert_eq!(rig.get(0x14), [0xff], "gone from the bus");
    let _ = rig
        .function
        .write_config(0x10, &0xf004_0000_u32.to_le_bytes());
    rig.bar = 0xf004_0000;
    assert_eq!(rig.status(), 15);
    let moved = [Event::Detach(0xf000_3000), Event::Attach(0xf004_3000)];
    assert_eq!(rig.outside.take(), moved);
    let _ = rig.function.write_config(4, &[0, 0]);
    assert_eq!(rig.get(0x14), [0xff], "decoding is off");
    assert_eq!(rig.outside.take(), [Event::Detach(0xf004_3000)]);
    // Out of the window, across its end, or over another device: nowhere.
    rig.bus
        .insert(0xf008_0000, 1, rig.function.clone())
        .unwrap();
    for address in [
        0_u32,
        0xc000_0000,
        0xfee0_0000,
        0xf00f_8000,
        0xf008_0000,
        0xf010_0000,
    ] {
        let _ = rig.function.write_config(0x10, &address.to_le_bytes());
        let _ = rig.function.write_config(4, &[2, 0]);
        assert_eq!(rig.outside.take(), [], "{address:#x}");
        assert_eq!(rig.function.lock().mapped, None, "{address:#x}");
        let _ = rig.function.write_config(4, &[0, 0]);
    }
}

#[test]
fn a_reset_stops_everything_and_another_start_works() {
    let rig = Rig::live();
    rig.outside.take();
    let _ = rig.set_status(0);
    assert_eq!(rig.status(), 0);
    assert_eq!(rig.outside.take(), [Event::Detach(0xf000_3000)]);
    assert_eq!(rig.get(0x1a), NO_VECTOR.to_le_bytes());
    assert_eq!(rig.get(0x1c), [0, 0]);
    rig.driver().descriptor(0, 0x8000, 32, WRITE, 0);
    rig.driver().offer(&[0]);
    assert_eq!(rig.ends.worker.lock().service(0), Progress::Done);
    assert!(rig.driver().used().is_empty());
    rig.agree();
    rig.set_up_queue();
    assert_eq!(rig.set_status(15), Action::DriverOk(3));
    let _ = rig.ends.worker.lock().service(0);
    assert_eq!(rig.driver().used(), [(0, 32)]);
    // The vectors were not given again: no route changed, none fires.
    assert_eq!(rig.outside.take(), [Event::Attach(0xf000_3000)]);
}

#[test]
fn a_driver_that_breaks_the_rules_hears_of_it_by_the_configuration_vector() {
    let rig = Rig::live();
    rig.outside.take();
    rig.driver().set_available(9);
    assert_eq!(rig.ends.worker.lock().service(0), Progress::Done);
    assert_eq!(rig.outside.take(), [Event::Trigger(0)]);
}

#[test]
fn vectors_and_queues_that_are_not_there_are_none() {
    let rig = Rig::new();
    for (offset, vector) in [(0x10, 2_u16), (0x1a, 2), (0x10, 0xfffe), (0x1a, NO_VECTOR)] {
        let _ = rig.put(offset, &vector.to_le_bytes());
        assert_eq!(rig.get(offset), NO_VECTOR.to_le_bytes());
    }
    let _ = rig.put(0x16, &1_u16.to_le_bytes());
    assert_eq!((rig.get(0x18), rig.get(0x20)), ([0; 2], [0; 8]));
    for offset in 0x18..0x38 {
        let _ = rig.put(offset, &[0xff; 2]);
        let _ = rig.put(offset, &[0xff; 4]);
    }
    assert_eq!(rig.get(0x1a), NO_VECTOR.to_le_bytes());
    assert_eq!(rig.get(0x12), [1, 0], "one queue");
}

#[test]
fn the_doorbell_page_has_a_doorbell_for_each_queue() {
    let rig = Rig::live();
    rig.ends.kicks[0].read().unwrap();
    for offset in [0x3004, 0x3ffc, 0x3fff, 0x6000, 0x7ffe] {
        let _ = rig.put(offset, &[0, 0]);
    }
    assert!(rig.ends.kicks[0].read().is_err());
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let rig = Rig::new();
    // The last capability: bar, offset and length, then the data.
    let at = rig.function.capabilities.access_data() - 16;
    let access = |offset: u32, len: u32| {
        let _ = rig.function.write_config(at + 8, &offset.to_le_bytes());
        let _ = rig.function.write_config(at + 12, &len.to_le_bytes());
    };
    let mut data = [0xaa; 2];
    access(0x12, 2);
    rig.function.read_config(at + 16, &mut data);
    assert_eq!(data, [1, 0], "number of queues");
    access(0x14, 1);
    let _ = rig.function.write_config(at + 16, &[1]);
    assert_eq!(rig.status(), 1);
    for (offset, len) in [
        (0x14, 0),
        (0x14, 3),
        (0x13, 2),
        (u32::MAX, 1),
        (0x8000, 4),
        (0x14, u32::MAX),
    ] {
        access(offset, len);
        let _ = rig.function.write_config(at + 16, &[0; 4]);
        rig.function.read_config(at + 16, &mut [0; 4]);
    }
    access(0x14, 1);
    let _ = rig.function.write_config(at + 4, &[1]);
    let _ = rig.function.write_config(at + 16, &[3]);
    assert_eq!(rig.status(), 1, "another BAR");
}

#[test]
fn without_msix_the_isr_status_tells_once() {
    let rig = Rig::new();
    rig.agree();
    rig.set_up_queue();
    let _ = rig.set_status(15);
    rig.driver().descriptor(0, 0x8000, 32, WRITE, 0);
    rig.driver().offer(&[0]);
    let _ = rig.ends.worker.lock().service(0);
    assert_eq!((rig.get(0x1000), rig.get(0x1000)), ([1], [0]));
}

#[test]
fn accesses_of_any_shape_are_harmless_also_when_everything_outside_fails() {
    let rig = Rig::new();
    rig.outside.fail.store(true, Ordering::Relaxed);
    let mut bits = 1_u64;
    for _ in 0..100_000 {
        // A cheap generator is random enough here.
        bits = bits.wrapping_mul(6364136223846793005);
        bits = bits.wrapping_add(1442695040888963407);
        rig.poke(bits >> 16);
    }
    let _ = rig.set_status(0);
    assert_eq!(rig.status(), 0);
}

#[test]
fn what_is_saved_carries_on() {
    let rig = Rig::live();
    rig.driver().descriptor(0, 0x8000, 32, WRITE, 0);
    rig.driver().offer(&[0]);
    let _ = rig.ends.worker.lock().service(0);
    let saved = rig.function.save();
    let text = serde_json::to_string(&saved).unwrap();
    let other = Rig::new();
    let _ = other.function.write_config(4, &[0, 0]);
    other.outside.take();
    other
        .function
        .restore(&serde_json::from_str(&text).unwrap());
    assert_eq!(other.status(), 15);
    assert!(other.outside.take().contains(&Event::Attach(0xf000_3000)));
    assert_eq!(other.function.save(), saved);
    assert_eq!(saved.front.negotiation.accepted, feature::VERSION_1);
}

#[test]
fn a_function_that_is_no_bus_master_any_more_touches_nothing() {
    let rig = Rig::live();
    rig.outside.take();
    rig.driver().descriptor(0, 0x8000, 32, WRITE, 0);
    rig.driver().offer(&[0]);
    let _ = rig.function.write_config(4, &[2, 0]);
    let _ = rig.ends.worker.lock().service(0);
    assert_eq!(rig.driver().used(), []);
    assert_eq!(rig.outside.take(), [Event::Detach(0xf000_3000)]);
    assert_eq!(rig.status(), 15 | 64);
    // The next driver begins with a reset.
    let _ = rig.function.write_config(4, &[6, 0]);
    let _ = rig.put(0x14, &[0]);
    rig.agree();
    rig.set_up_queue();
    rig.set_up_vectors();
    let _ = rig.put(0x14, &[15]);
    let _ = rig.ends.worker.lock().service(0);
    assert_eq!(rig.driver().used(), [(0, 32)]);
}
