use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::super::Interrupt;
use super::super::testing::{Driver, NEXT, WRITE};
use super::input::CAPACITY;
use super::*;

/// What was sent, and whether there is room for more.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<(Vec<u8>, usize)>>);

impl Screen {
    fn with_room(bytes: usize) -> Self {
        Self(Arc::new(Mutex::new((Vec::new(), bytes))))
    }

    fn text(&self) -> Vec<u8> {
        self.0.lock().unwrap().0.clone()
    }

    fn make_room(&self, bytes: usize) {
        self.0.lock().unwrap().1 += bytes;
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().0.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Screen {
    fn is_congested(&self) -> bool {
        let state = self.0.lock().unwrap();
        state.0.len() >= state.1
    }
}

/// Nobody reads.
struct Gone;

impl Write for Gone {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Gone {
    fn is_congested(&self) -> bool {
        false
    }
}

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

fn console(output: impl Output + 'static, size: Option<Size>) -> (Console, EventFd) {
    let space = wake_event().unwrap();
    let copy = space.try_clone().unwrap();
    let console = Console::new(Box::new(output), wake_event().unwrap(), copy, size).unwrap();
    (console, space)
}

fn start(console: &mut Console, driver: &Driver, queue: u16) -> Arc<Told> {
    let told = Arc::new(Told::default());
    let mut rings = vec![None, None];
    rings[usize::from(queue)] = Some(driver.ring());
    console.activate(Activation {
        memory: driver.memory.clone(),
        rings,
        features: feature::COMMON,
        interrupt: told.clone(),
    });
    told
}

fn counter(console: &Console, name: &str) -> u64 {
    let all = console.counters();
    all.iter().find(|(other, _)| *other == name).unwrap().1
}

/// Memory from 0x8000 on has bytes that tell where they are.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn output_arrives_whole_and_in_order() {
    let driver = Driver::new();
    let bytes = pattern(0x9000);
    driver
        .memory
        .write_slice(&bytes, GuestAddress(0x8000))
        .unwrap();
    driver.descriptor(0, 0x8000, 3, NEXT, 1);
    driver.descriptor(1, 0x8003, 0, NEXT, 2);
    // Longer than a piece; what is to be written to has no meaning.
    driver.descriptor(2, 0x8003, 0x8ff0, NEXT, 3);
    driver.descriptor(3, 0x4000, 100, WRITE, 0);
    driver.descriptor(4, 0x8000 + 0x8ff3, 13, 0, 0);
    driver.offer(&[0, 4]);
    let screen = Screen::with_room(usize::MAX);
    let (mut console, _) = console(screen.clone(), None);
    let told = start(&mut console, &driver, TRANSMIT);
    assert_eq!(console.process(TRANSMIT), Ok(Progress::Done));
    assert_eq!(screen.text(), bytes);
    assert_eq!(driver.used(), [(0, 0), (4, 0)]);
    assert_eq!(told.used.load(Ordering::Relaxed), 1);
    assert_eq!(counter(&console, "sent_bytes"), 0x9000);
}

#[test]
fn a_congested_output_leaves_the_rest_in_the_queue() {
    let driver = Driver::new();
    let bytes = pattern(3 * PIECE);
    driver
        .memory
        .write_slice(&bytes, GuestAddress(0x8000))
        .unwrap();
    driver.descriptor(0, 0x8000, 3 * PIECE as u32, 0, 0);
    driver.offer(&[0]);
    let screen = Screen::with_room(1);
    let (mut console, _) = console(screen.clone(), None);
    start(&mut console, &driver, TRANSMIT);
    assert_eq!(console.process(TRANSMIT), Ok(Progress::Done));
    assert_eq!(screen.text().len(), PIECE);
    assert_eq!(console.process(TRANSMIT), Ok(Progress::Done));
    assert_eq!(screen.text().len(), PIECE, "no room yet");
    assert!(driver.used().is_empty());

    // It goes on elsewhere where it was, and as soon as there is room.
    let saved = console.save();
    let (mut other, _) = self::console(screen.clone(), None);
    start(&mut other, &driver, TRANSMIT);
    other.restore(&saved);
    assert_eq!(other.save(), saved);
    screen.make_room(PIECE);
    assert_eq!(other.process_host(), Ok(Progress::Done));
    assert_eq!(screen.text().len(), 2 * PIECE);
    screen.make_room(usize::MAX / 2);
    assert_eq!(other.process_host(), Ok(Progress::Done));
    assert_eq!(screen.text(), bytes);
    assert_eq!(driver.used(), [(0, 0)]);
}

#[test]
fn a_guest_that_changes_a_chain_meanwhile_harms_nobody() {
    let driver = Driver::new();
    driver.descriptor(0, 0x8000, 3 * PIECE as u32, 0, 0);
    driver.offer(&[0]);
    let screen = Screen::with_room(1);
    let (mut console, _) = console(screen.clone(), None);
    start(&mut console, &driver, TRANSMIT);
    assert_eq!(console.process(TRANSMIT), Ok(Progress::Done));
    driver.descriptor(0, 0x8000, 10, 0, 0);
    screen.make_room(usize::MAX / 2);
    assert_eq!(console.process_host(), Ok(Progress::Done));
    assert_eq!(screen.text().len(), PIECE);
    assert_eq!(driver.used(), [(0, 0)]);
    driver.descriptor(0, 0x1_fff0, 17, 0, 0);
    driver.set_available(2);
    assert!(console.process(TRANSMIT).is_err(), "not in memory");
}

#[test]
fn output_that_nobody_reads_is_given_back() {
    let driver = Driver::new();
    driver.descriptor(0, 0x8000, 10, 0, 0);
    driver.offer(&[0]);
    let (mut console, _) = console(Gone, None);
    start(&mut console, &driver, TRANSMIT);
    assert_eq!(console.process(TRANSMIT), Ok(Progress::Done));
    assert_eq!(driver.used(), [(0, 0)]);
    assert_eq!(counter(&console, "lost_bytes"), 10);
}

#[test]
fn a_queue_that_never_ends_does_not_keep_the_loop() {
    let driver = Driver::new();
    driver.descriptor(0, 0x8000, 0, 0, 0);
    driver.descriptor(1, 0x8000, u32::from(u16::MAX), 0, 0);
    let (mut console, _) = console(Screen::with_room(usize::MAX), None);
    start(&mut console, &driver, TRANSMIT);
    driver.offer(&[1; 8]);
    for turn in 0..5 {
        assert_eq!(console.process(TRANSMIT), Ok(Progress::More), "{turn}");
    }
    assert!(counter(&console, "sent_bytes") <= 5 * (CHAINS_A_TURN * PIECE) as u64);
}

#[test]
fn input_waits_for_a_driver_and_for_its_buffers() {
    let driver = Driver::new();
    let (mut console, space) = console(Screen::default(), None);
    let input = console.input();
    assert_eq!(input.offer(b"hello, ").unwrap(), 7);
    let event = console.host_event().unwrap().as_raw_fd();
    let mut poll = libc::pollfd {
        fd: event,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry that is there.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 1);
    assert_eq!(console.process_host(), Ok(Progress::Done));
    // SAFETY: as above.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 0) }, 0, "taken away");

    driver.descriptor(0, 0x8000, 2, NEXT | WRITE, 1);
    driver.descriptor(1, 0x8002, 3, WRITE, 0);
    driver.descriptor(2, 0x9000, 100, WRITE, 0);
    let told = start(&mut console, &driver, RECEIVE);
    assert_eq!(console.process(RECEIVE), Ok(Progress::Done));
    assert!(driver.used().is_empty(), "no buffers");
    driver.offer(&[0]);
    assert_eq!(console.process(RECEIVE), Ok(Progress::Done));
    assert_eq!(driver.used(), [(0, 5)]);
    assert!(space.read().is_err(), "some is left");
    assert_eq!(input.offer(b"world").unwrap(), 5);
    driver.offer(&[0, 2]);
    assert_eq!(console.process_host(), Ok(Progress::Done));
    assert_eq!(driver.used(), [(0, 5), (2, 7)]);
    assert!(space.read().is_ok());
    // The driver has asked to be told of the first only.
    assert_eq!(told.used.load(Ordering::Relaxed), 1);
    let mut text = [0; 7];
    driver
        .memory
        .read_slice(&mut text, GuestAddress(0x9000))
        .unwrap();
    assert_eq!(&text, b", world");
    assert_eq!(counter(&console, "received_bytes"), 12);

    // No more than so much waits.
    let much = vec![b'x'; 3 * CAPACITY];
    assert_eq!(input.offer(&much).unwrap(), CAPACITY);
    assert_eq!(input.offer(&much).unwrap(), 0);
    let saved = console.save();
    assert!(matches!(&saved, DeviceState::Console(state) if state.input.len() == CAPACITY));
    let (mut other, _) = self::console(Screen::default(), None);
    start(&mut other, &driver, RECEIVE);
    other.restore(&saved);
    assert_eq!(other.save(), saved);
}

#[test]
fn buffers_that_are_not_for_input_get_none() {
    let driver = Driver::new();
    driver.descriptor(0, 0x8000, 100, 0, 0);
    driver.descriptor(1, 0x9000, 0, WRITE, 0);
    driver.descriptor(2, 0x1_fff0, 100, WRITE, 0);
    driver.offer(&[0, 1, 2]);
    let (mut console, _) = console(Screen::default(), None);
    start(&mut console, &driver, RECEIVE);
    console.input().offer(b"abc").unwrap();
    assert!(console.process(RECEIVE).is_err(), "beyond memory");
    assert_eq!(driver.used(), [(0, 0), (1, 0)]);
    console.reset();
    assert_eq!(console.process(RECEIVE), Ok(Progress::Done));
    assert_eq!(console.input().save(), b"abc");
}

#[test]
fn the_terminals_size_is_told() {
    let size = |columns, rows| Size { columns, rows };
    let (mut console, _) = console(Screen::default(), Some(size(0x102, 0x304)));
    assert_eq!(console.features() & feature::SIZE, feature::SIZE);
    let mut data = [0; 12];
    console.read_config(0, &mut data);
    assert_eq!(data, [2, 1, 4, 3, 0, 0, 0, 0, 0, 0, 0, 0]);
    let driver = Driver::new();
    let told = start(&mut console, &driver, RECEIVE);
    for _ in 0..2 {
        console.update(&Update::ConsoleSize(size(5, 6))).unwrap();
    }
    assert_eq!(told.changed.load(Ordering::Relaxed), 1, "once");
    let mut data = [0; 2];
    console.read_config(2, &mut data);
    assert_eq!(data, [6, 0]);
    console.read_config(u64::MAX, &mut data);

    let (mut console, _) = self::console(Screen::default(), None);
    assert_eq!(console.features() & feature::SIZE, 0);
    assert!(console.update(&Update::ConsoleSize(size(5, 6))).is_err());
}

#[test]
fn emergency_writes_need_no_driver_and_no_memory() {
    let screen = Screen::with_room(3);
    let (mut console, _) = console(screen.clone(), None);
    for byte in b"panic" {
        console.write_config(EMERGENCY_WRITE, &u32::from(*byte).to_le_bytes());
    }
    console.write_config(0, b"x");
    console.write_config(u64::MAX, b"x");
    console.write_config(EMERGENCY_WRITE, b"");
    assert_eq!(screen.text(), b"pan", "only while there is room");
    assert_eq!(counter(&console, "lost_bytes"), 2);
}

#[test]
fn queues_are_reset_one_by_one() {
    let driver = Driver::new();
    driver.descriptor(0, 0x8000, 2 * PIECE as u32, 0, 0);
    driver.offer(&[0]);
    let screen = Screen::with_room(1);
    let (mut console, _) = console(screen.clone(), None);
    start(&mut console, &driver, TRANSMIT);
    assert_eq!(console.process(TRANSMIT), Ok(Progress::Done));
    screen.make_room(usize::MAX / 2);
    let resets = console.queue_reset().unwrap();
    resets.reset_queue(TRANSMIT);
    resets.reset_queue(9);
    assert_eq!(console.process_host(), Ok(Progress::Done));
    assert_eq!(screen.text().len(), PIECE);
    console
        .queue_reset()
        .unwrap()
        .start_queue(TRANSMIT, driver.ring());
    assert_eq!(console.process(TRANSMIT), Ok(Progress::Done));
    assert_eq!(screen.text().len(), 3 * PIECE, "from its start");
}

proptest! {
    /// However input is cut, on its way in and by the driver's buffers, it arrives as it was.
    #[test]
    fn input_stays_in_order(
        offers in prop::collection::vec(0_usize..3000, 1..6),
        rooms in prop::collection::vec(0_u32..3000, 1..8),
    ) {
        let driver = Driver::new();
        let (mut console, _) = console(Screen::default(), None);
        start(&mut console, &driver, RECEIVE);
        for (index, len) in rooms.iter().enumerate() {
            driver.descriptor(index as u16, 0x8000 + 0x1000 * index as u64, *len, WRITE, 0);
        }
        let bytes = pattern(offers.iter().sum());
        let (mut rest, mut taken) = (&bytes[..], 0);
        for (index, len) in offers.iter().enumerate() {
            let (now, later) = rest.split_at(*len);
            rest = later;
            let count = console.input().offer(now).unwrap();
            taken += count;
            if count < now.len() {
                break;
            }
            let heads: Vec<_> = (0..rooms.len().min(index + 1) as u16).collect();
            driver.offer(&heads);
            prop_assert_eq!(console.process(RECEIVE), Ok(Progress::Done));
        }
        let mut got = Vec::new();
        for (head, len) in driver.used() {
            let mut piece = vec![0; len as usize];
            let at = GuestAddress(0x8000 + 0x1000 * u64::from(head));
            driver.memory.read_slice(&mut piece, at).unwrap();
            got.extend(piece);
        }
        got.extend(console.input().save());
        prop_assert_eq!(&got[..], &bytes[..taken]);
    }
}
