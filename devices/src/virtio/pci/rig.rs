//! A function on a bus of its own, for tests.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::pci::MsiMessage;
use crate::virtio::VirtioDevice;
use crate::virtio::moves::{Ends, Registers};
use crate::virtio::rng::Entropy;
use crate::virtio::testing::Driver;

pub const BAR: u32 = 0xf000_0000;
/// Ends in the middle of where a BAR could be.
const WINDOW: Range<u64> = 0xf000_0000..0xf00f_c000;

/// What reached the outside, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Route(Vec<(u16, MsiMessage)>),
    Trigger(u16),
    Attach(u64),
    Detach(u64),
    Connect(u16, bool),
}

#[derive(Clone, Default)]
pub struct Outside {
    events: Arc<Mutex<Vec<Event>>>,
    pub fail: Arc<AtomicBool>,
}

impl Outside {
    fn note(&self, event: Event) -> io::Result<()> {
        self.events.lock().unwrap().push(event);
        if self.fail.load(Ordering::Relaxed) {
            return Err(io::Error::other("as the test wants it"));
        }
        Ok(())
    }

    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.events.lock().unwrap())
    }
}

impl MsiSink for Outside {
    fn route(&self, changes: &[(u16, MsiMessage)]) -> io::Result<()> {
        self.note(Event::Route(changes.to_vec()))
    }
    fn trigger(&self, vector: u16) -> io::Result<()> {
        self.note(Event::Trigger(vector))
    }
    fn event(&self, vector: u16) -> Option<EventFd> {
        (vector < 8).then(|| EventFd::new(0).unwrap())
    }
    fn connect(&self, vector: u16, connected: bool) -> io::Result<()> {
        self.note(Event::Connect(vector, connected))
    }
}

impl Doorbells for Outside {
    fn attach(&self, address: u64, _event: &EventFd) -> io::Result<()> {
        self.note(Event::Attach(address))
    }
    fn detach(&self, address: u64, _event: &EventFd) -> io::Result<()> {
        self.note(Event::Detach(address))
    }
}

pub struct Rig {
    pub function: Arc<VirtioPci>,
    pub bus: Arc<Bus>,
    pub ends: Ends,
    pub outside: Outside,
    pub bar: u64,
}

impl Rig {
    pub fn new() -> Self {
        Self::with(Box::new(Entropy::default()))
    }

    pub fn with(device: Box<dyn VirtioDevice>) -> Self {
        let bus = Arc::new(Bus::new());
        let (ends, outside) = (Ends::new(device), Outside::default());
        let function = VirtioPci::new(Parts {
            backend: ends.backend(),
            bus: Arc::downgrade(&bus),
            window: WINDOW,
            bar: BAR,
            sink: Box::new(outside.clone()),
            doorbells: Box::new(outside.clone()),
        });
        let _ = function.write_config(4, &[6, 0]);
        Self {
            function,
            bus,
            ends,
            outside,
            bar: BAR.into(),
        }
    }

    pub fn driver(&self) -> &Driver {
        &self.ends.driver
    }

    pub fn put(&self, offset: u64, data: &[u8]) -> Action {
        self.bus.write(self.bar + offset, data)
    }

    pub fn get<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xaa; N];
        self.bus.read(self.bar + offset, &mut data);
        data
    }

    pub fn agree(&self) {
        let _ = self.set_status(1);
        let _ = self.set_status(3);
        self.accept(1, 1);
        let _ = self.set_status(11);
        assert_eq!(self.status(), 11);
    }

    pub fn set_up_queue(&self) {
        let setup = Driver::setup();
        self.set_size(setup.size);
        for (index, area) in setup.areas.iter().enumerate() {
            self.set_area(index, *area);
        }
        self.enable();
    }

    /// MSI-X on, vector 0 for the configuration and 1 for the queue.
    pub fn set_up_vectors(&self) {
        let _ = self.function.write_config(0x42, &0xc000_u16.to_le_bytes());
        for vector in 0..2_u32 {
            let at = 0x4000 + 16 * u64::from(vector);
            let _ = self.put(at, &0xfee0_0000_u32.to_le_bytes());
            let _ = self.put(at + 8, &(0x30 + vector).to_le_bytes());
            let _ = self.put(at + 12, &[0; 4]);
        }
        let _ = self.function.write_config(0x42, &0x8000_u16.to_le_bytes());
        let _ = self.put(0x10, &0_u16.to_le_bytes());
        let _ = self.put(0x1a, &1_u16.to_le_bytes());
    }

    pub fn live() -> Self {
        let rig = Self::new();
        rig.agree();
        rig.set_up_vectors();
        rig.set_up_queue();
        assert_eq!(rig.outside.take(), [], "nothing before the driver is ready");
        assert_eq!(rig.set_status(15), Action::DriverOk(3));
        rig
    }
}

pub fn registers(device: Box<dyn VirtioDevice>) -> Box<dyn Registers> {
    Box::new(Rig::with(device))
}

impl Registers for Rig {
    fn ends(&self) -> &Ends {
        &self.ends
    }
    fn prepare(&self) {
        self.set_up_vectors();
    }
    fn features(&self, half: u32) -> u32 {
        let _ = self.put(0x00, &half.to_le_bytes());
        u32::from_le_bytes(self.get(0x04))
    }
    fn accept(&self, half: u32, bits: u32) {
        let _ = self.put(0x08, &half.to_le_bytes());
        let _ = self.put(0x0c, &bits.to_le_bytes());
    }
    fn status(&self) -> u8 {
        self.get::<1>(0x14)[0]
    }
    fn set_status(&self, status: u8) -> Action {
        self.put(0x14, &[status])
    }
    fn select_queue(&self, queue: u16) {
        let _ = self.put(0x16, &queue.to_le_bytes());
    }
    fn largest_size(&self) -> u16 {
        u16::from_le_bytes(self.get(0x18))
    }
    fn set_size(&self, size: u16) {
        let _ = self.put(0x18, &size.to_le_bytes());
    }
    fn set_area(&self, area: usize, address: u64) {
        let at = 0x20 + 8 * area as u64;
        if area == 1 {
            // Whole, or by halves (4.1.3.1).
            let _ = self.put(at, &address.to_le_bytes());
            return;
        }
        let _ = self.put(at, &(address as u32).to_le_bytes());
        let _ = self.put(at + 4, &((address >> 32) as u32).to_le_bytes());
    }
    fn enable(&self) {
        let _ = self.put(0x1c, &1_u16.to_le_bytes());
    }
    fn enabled(&self) -> bool {
        self.get(0x1c) == 1_u16.to_le_bytes()
    }
    fn reset_queue(&self) {
        let _ = self.put(0x3a, &1_u16.to_le_bytes());
    }
    fn queue_in_reset(&self) -> bool {
        self.get(0x3a) != [0, 0]
    }
    fn notify(&self, queue: u16) {
        let _ = self.put(0x3000 + 4 * u64::from(queue), &queue.to_le_bytes());
    }
    fn generation(&self) -> u32 {
        self.get::<1>(0x15)[0].into()
    }
    fn config(&self, offset: u64, data: &mut [u8]) {
        self.bus.read(self.bar + 0x2000 + offset, data);
    }
    fn set_config(&self, offset: u64, data: &[u8]) {
        let _ = self.put(0x2000 + offset, data);
    }
    fn interrupts(&self) -> usize {
        let events = self.outside.take();
        let fired = |event: &&Event| matches!(event, Event::Trigger(_));
        events.iter().filter(fired).count()
    }
    fn save(&self) -> FrontState {
        self.function.save().front
    }
    fn restore(&self, saved: &FrontState) {
        let state = VirtioPciState {
            front: saved.clone(),
            ..self.function.save()
        };
        self.function.restore(&state);
    }
    fn poke(&self, bits: u64) {
        let len = [1, 2, 4, 8][(bits & 3) as usize];
        let offset = (bits >> 2) & if bits & 4 == 0 { 0x3f } else { 0x7fff };
        let value = (bits >> 20).to_le_bytes();
        let (register, mut data) = (offset as u16 & 0xfff, [0; 8]);
        match (bits >> 40) & 7 {
            0 => self.bus.read(self.bar + offset, &mut data[..len]),
            1 => self.function.read_config(register, &mut data[..len]),
            2 => {
                let _ = self.function.write_config(register, &value[..len]);
                let _ = self.function.write_config(0x10, &BAR.to_le_bytes());
                let _ = self.function.write_config(4, &[2]);
            }
            _ => {
                let _ = self.put(offset, &value[..len]);
            }
        }
    }
}
