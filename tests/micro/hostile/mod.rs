//! Hostile drivers against every kind of device and every queue of it, over both transports.
//!
//! A device may say that it needs a reset, and has to where a chain is hopeless; it may serve what is strange; and it may do
//! nothing. What counts: the VM process lives and answers, the other devices go on working, the device itself works
//! again after a reset, the log stays small, and memory outside the guest does not grow.
//!
//! | file      | what lives there                                                       |
//! |-----------|------------------------------------------------------------------------|
//! | `script`  | a guest that does what a script says                                     |
//! | `driver`  | registers and rings, by either transport                                  |
//! | `kinds`   | the devices, and how each is used well                                    |
//! | `shapes`  | shapes that no queue should have                                          |

mod driver;
mod kinds;
mod script;
mod shapes;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use serde_json::json;
use tests::vm::{Ended, Vm, VmBuilder};
use tests::{in_emulated_lab, patience};

use driver::{BUFFER, Device, TABLE, Transport, describe, offer, ring};
use kinds::{ALL, Kind, MARK};
use script::Script;

/// Lines that a guest may cause in the log by all of it: some sites, with 20 each.
const MOST_LINES: usize = 300;
/// KiB by which the process may grow between the first use of all devices and the end: buffers get their largest size.
const MOST_GROWTH_KIB: u64 = 512;

/// As often as `count` says; less where everything takes long.
fn rounds(count: u32) -> u32 {
    if in_emulated_lab() { count / 5 } else { count }
}

/// Devices of a machine that has all kinds.
fn devices(transport: Transport) -> Vec<(Kind, Device)> {
    ALL.map(|kind| (kind, kind.device(transport))).into()
}

/// A machine with all kinds of devices, of two vCPUs.
fn machine(script: Script, transport: Transport) -> VmBuilder {
    let mut builder = script.vm().vcpus(2);
    if transport == Transport::Mmio {
        builder.config["machine-config"]["transport"] = json!("mmio");
    }
    for kind in ALL {
        kind.configure(&mut builder);
    }
    let mut disk = MARK.to_vec();
    disk.resize(1 << 20, 0x11);
    fs::write(builder.path("disk"), disk).unwrap();
    serve_network(&builder);
    builder
}

/// Somebody at the other end of the network, for as long as the device is: takes all frames, and sends some all the time, as
/// a network does.
fn serve_network(builder: &VmBuilder) {
    let listener = UnixListener::bind(builder.path("passt")).unwrap();
    thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let frame = [&[0, 0, 0, 60][..], &[7; 60]].concat();
        peer.set_read_timeout(Some(Duration::from_millis(2)))
            .unwrap();
        peer.set_nonblocking(false).unwrap();
        let mut sender = peer.try_clone().unwrap();
        thread::spawn(move || while sender.write_all(&frame).is_ok() {});
        let mut bytes = vec![0; 1 << 16];
        loop {
            match peer.read(&mut bytes) {
                Ok(0) => return,
                Err(error)
                    if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    return;
                }
                _ => {}
            }
        }
    });
}

/// Runs what `attack` writes between two uses of all devices, and looks at the process.
fn survive(transport: Transport, attack: impl FnOnce(&mut Script, &[(Kind, Device)])) -> Ended {
    let devices = devices(transport);
    let mut script = Script::default();
    for (kind, device) in &devices {
        device.find(&mut script);
        kind.use_well(&mut script, device);
    }
    script.say("ready\n");
    script.receive();
    attack(&mut script, &devices);
    for (_, device) in &devices {
        device.put_in_place(&mut script);
        device.set_status(&mut script, 0);
    }
    for (kind, device) in &devices {
        kind.use_well(&mut script, device);
    }
    script.say("alive\n");
    script.receive();
    let mut vm = machine(script, transport).start();
    vm.wait_for("ready\n");
    let before = vm.footprint_kib();
    vm.send(b"x");
    wait_long_for(&vm, "alive\n");
    let after = vm.footprint_kib();
    println!("memory outside the guest: {before} KiB, then {after} KiB");
    vm.send(b"x");
    let ended = vm.wait();
    ended.expect(0, "ready\nalive\n");
    assert!(
        after <= before + MOST_GROWTH_KIB,
        "{before} KiB, then {after} KiB"
    );
    let lines = ended.stderr.lines().count();
    assert!(lines <= MOST_LINES, "{lines} lines\n{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    ended
}

/// Waits longer than for other things: a storm takes its time where every instruction is emulated.
fn wait_long_for(vm: &Vm, text: &str) {
    let found = |bytes: &[u8]| {
        let seen = String::from_utf8_lossy(bytes);
        (seen.contains(text) || seen.contains('!')).then_some(())
    };
    if let Err(seen) = vm.output().wait_until(4 * patience(), found) {
        panic!("{text:?} did not come: {seen}\n{}", vm.errors());
    }
    let seen = String::from_utf8_lossy(&vm.output().so_far()).into_owned();
    assert!(seen.contains(text), "{seen}\n{}", vm.errors());
}

/// Every shape in every queue of every device; another device is used in between.
fn drive_shapes(transport: Transport) {
    let _ = survive(transport, |script, devices| {
        for (kind, device) in devices {
            let (innocent_kind, innocent) =
                devices.iter().find(|(other, _)| other != kind).unwrap();
            for queue in 0..device.queues {
                for shape in shapes::all(queue, device.registers()) {
                    device.set_up(script);
                    describe(script, ring(queue), &shape.descriptors);
                    describe(script, TABLE, &shape.table);
                    offer(script, queue, &shape.heads);
                    if let Some(index) = shape.index {
                        script.write(2, ring(queue) + 0x202, index.into());
                    }
                    device.start(script);
                    for kicked in [queue.into(), 1000, device.queues.into(), 7] {
                        device.kick(script, kicked);
                    }
                    if shape.hopeless && kind.is_eager(queue) {
                        device.wait_for_its_verdict(script);
                    } else {
                        script.pass(300);
                    }
                }
                // Rings are where they all have them.
                device.set_status(script, 0);
                innocent_kind.use_well(script, innocent);
            }
        }
    });
}

/// Queues that are not ready, kicks of queues that do not exist, and writes at random to all that a device has.
fn drive_storms(transport: Transport) {
    let _ = survive(transport, |script, devices| {
        for (kind, device) in devices {
            // Kicks before anything is set up, and without a queue.
            for queue in [0, 1, u32::MAX] {
                device.kick(script, queue & 0x3ff);
            }
            device.negotiate(script);
            device.start(script);
            for queue in 0..16 {
                device.kick(script, queue);
            }
            // Only the last queue; then no DRIVER_OK.
            device.negotiate(script);
            device.enable(script, device.queues - 1);
            device.start(script);
            device.kick(script, 0);
            device.set_up(script);
            device.kick(script, 0);
            script.storm(200, device.config(), 0xff);
            let (count, mask) = match device.transport {
                Transport::Pci => (60, 0x3fff),
                Transport::Mmio => (60, 0xfff),
            };
            Kind::prepare(script);
            script.repeat(rounds(60), |script| {
                device.set_up(script);
                kind.offer_something(script, device);
                device.start(script);
                script.storm(count, device.registers(), mask);
                script.storm(20, device.registers(), 0x3f);
                script.storm(20, device.config(), 0x3f);
                if device.transport == Transport::Pci {
                    script.storm(40, device.registers() + 0x4000, 0x1fff);
                    script.storm(4, device.config_space(), 0xff);
                    script.storm(20, device.registers(), mask);
                    device.put_in_place(script);
                }
            });
            device.set_status(script, 0);
        }
    });
}

/// Another vCPU changes rings while the device works.
fn drive_races(transport: Transport) {
    let ended = survive(transport, |script, devices| {
        script.start_the_second();
        script.wait(4, STARTED, 0xffff, 1);
        for (kind, device) in devices {
            script.repeat(rounds(40), |script| {
                Kind::prepare(script);
                device.set_up(script);
                kind.offer_something(script, device);
                device.start(script);
                for _ in 0..4 {
                    for queue in 0..device.queues {
                        device.kick(script, queue.into());
                    }
                    script.pass(30);
                }
            });
            device.set_status(script, 0);
        }
        script.write(2, STOP, 1);
        script.wait(4, STOPPED, 0xffff, 1);
        script.clear(BUFFER, 0x40_0000);
    });
    // If nothing was found wrong at all, nothing was changed.
    assert!(
        ended.stderr.contains("it needs a reset"),
        "{}",
        ended.stderr
    );
}

/// Tells the second vCPU to stop, and what it says.
const STOP: u64 = 0x4_fff0;
const STOPPED: u64 = 0x4_fff4;
const STARTED: u64 = 0x4_fff8;

#[test]
fn shapes_over_pci() {
    drive_shapes(Transport::Pci);
}

#[test]
fn shapes_over_mmio() {
    drive_shapes(Transport::Mmio);
}

#[test]
fn storms_over_pci() {
    drive_storms(Transport::Pci);
}

#[test]
fn storms_over_mmio() {
    drive_storms(Transport::Mmio);
}

#[test]
fn races_over_pci() {
    drive_races(Transport::Pci);
}

#[test]
fn races_over_mmio() {
    drive_races(Transport::Mmio);
}
