//! Console: output that gets congested, input that waits, a terminal that changes its size, single characters by the
//! configuration.
//!
//! The far end counts what comes, which must be what the device says it has sent.

use std::cell::RefCell;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use devices::legacy::serial::Output;
use devices::virtio::console::{self, Console, Input, Size};
use devices::virtio::{Update, VirtioDevice};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::script::{Chain, Move, Reader, Spoil};
use crate::seeds::{Reached, Seed, seed};
use crate::session::{self, Rig};

/// What the far end of the output is like.
#[derive(Default)]
struct Far {
    congested: AtomicBool,
    broken: AtomicBool,
    bytes: AtomicU64,
}

#[derive(Clone)]
struct Line(Arc<Far>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.0
            .bytes
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Line {
    fn is_congested(&self) -> bool {
        self.0.congested.load(Ordering::Relaxed)
    }
}

struct Terminal {
    far: Arc<Far>,
    wake: RefCell<Option<EventFd>>,
    input: Option<Arc<Input>>,
    size: Option<Size>,
    offered: u64,
}

impl Rig for Terminal {
    fn device(&mut self) -> Box<dyn VirtioDevice> {
        let wake = console::wake_event().expect("an eventfd");
        let space = EventFd::new(EFD_NONBLOCK).expect("an eventfd");
        *self.wake.borrow_mut() = Some(wake.try_clone().expect("another descriptor"));
        let line = Box::new(Line(self.far.clone()));
        let device = Console::new(line, wake, space, self.size).expect("descriptors");
        self.input = Some(device.input());
        Box::new(device)
    }

    fn host(&mut self, bytes: &[u8]) {
        let mut from = Reader::new(bytes);
        match from.u8() % 4 {
            0 => {
                if let Some(input) = &self.input {
                    let count = usize::from(from.u16());
                    let bytes = vec![b'x'; count];
                    let taken = input.offer(&bytes).expect("the device can be told");
                    assert!(taken <= count);
                    self.offered += taken as u64;
                }
            }
            1 => self.far.congested.store(true, Ordering::Relaxed),
            2 => {
                self.far.congested.store(false, Ordering::Relaxed);
                if let Some(wake) = &*self.wake.borrow() {
                    wake.write(1).expect("the device can be told");
                }
            }
            _ => self.far.broken.store(from.u8() & 1 != 0, Ordering::Relaxed),
        }
    }

    fn update(&mut self, bytes: &[u8]) -> Option<Update> {
        let mut from = Reader::new(bytes);
        Some(Update::ConsoleSize(Size {
            columns: from.u16(),
            rows: from.u16(),
        }))
    }

    fn reached(&self) -> Vec<(&'static str, u64)> {
        let came = self.far.bytes.load(Ordering::Relaxed);
        vec![("came", came), ("offered", self.offered)]
    }
}

/// Runs the target.
///
/// # Panics
/// Something does not hold.
pub fn run(data: &[u8]) -> Reached {
    let mut script = Reader::new(data);
    let choice = script.u8();
    let mut terminal = Terminal {
        far: Arc::default(),
        wake: RefCell::default(),
        input: None,
        size: (choice & 1 == 0).then_some(Size {
            columns: 80,
            rows: 25,
        }),
        offered: 0,
    };
    let reached = session::follow(&mut terminal, &mut script);
    assert_eq!(
        reached["came"], reached["sent_bytes"],
        "bytes that were sent"
    );
    assert!(reached["received_bytes"] <= reached["offered"]);
    reached
}

/// Its seeds.
pub fn seeds() -> Vec<Seed> {
    let print = |padding| Chain {
        padding,
        cuts: vec![1, 0, 100],
        ..Chain::new(1, b"hello\n", &[])
    };
    let host = |bytes: &[u8]| Move::Host(bytes.to_vec());
    let usual = [
        Move::ReadConfig(0, 4),
        print(0).offer(),
        print(10_000).offer(),
        Move::Kick(1),
        Chain::new(0, &[], &[10, 4000]).offer(),
        Move::Kick(0),
        host(&[0, 20, 0]),
        Chain::new(0, &[], &[10]).offer(),
        Move::Kick(0),
        host(&[0, 255, 255]),
        Move::Update(vec![100, 0, 30, 0]),
        Move::Migrate,
        Chain::new(0, &[], &[5000]).offer(),
        Move::Kick(0),
        Move::WriteConfig(8, vec![b'e', 0, 0, 0]),
    ];
    let congested = [
        host(&[1]),
        print(9000).offer(),
        Move::Kick(1),
        Move::WriteConfig(8, vec![b'e']),
        host(&[2]),
        host(&[3, 1]),
        print(9).offer(),
        Move::Kick(1),
        host(&[1]),
        print(5).offer(),
        Move::Kick(1),
        Move::RestartQueue(1, 8),
        Move::RestartQueue(0, 8),
        host(&[3, 0]),
        host(&[2]),
    ];
    let spoil = Some(Spoil {
        descriptor: 0,
        field: 1,
        value: 0x10_0000,
    });
    let long = [Chain { spoil, ..print(1) }.offer(), Move::Kick(1)];
    let wrong = [
        Chain::new(1, &[], &[9]).offer(),
        Move::Kick(1),
        Chain::new(0, &[1, 2], &[]).offer(),
        Move::Kick(0),
        host(&[0, 9, 0]),
        Chain {
            spoil: Some(Spoil {
                descriptor: 0,
                field: 0,
                value: u64::MAX,
            }),
            ..print(1)
        }
        .offer(),
        Move::Kick(1),
    ];
    vec![
        seed(
            "usual",
            Move::script(0, &usual),
            &[
                "sent_bytes",
                "received_bytes",
                "config_changes",
                "migrations",
                "completed",
            ],
        ),
        seed(
            "congested",
            Move::script(1, &congested),
            &["sent_bytes", "lost_bytes"],
        ),
        seed("long", Move::script(0, &long), &["sent_bytes"]),
        seed("wrong", Move::script(0, &wrong), &["completed", "broken"]),
    ]
}

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_reach_what_they_are_meant_to() {
        crate::seeds::check(super::run, super::seeds);
    }
}
