use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::virtio::moves::{Ends, Registers};
use crate::virtio::rng::Entropy;
use crate::virtio::testing::{Driver, WRITE};
use crate::virtio::{Status, VirtioDevice};

struct Rig {
    device: VirtioMmio,
    ends: Ends,
    line: EventFd,
}

impl Rig {
    fn new(device: Box<dyn VirtioDevice>) -> Self {
        let ends = Ends::new(device);
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        let device = VirtioMmio::new(ends.backend(), line.try_clone().unwrap());
        Self { device, ends, line }
    }

    fn get(&self, offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn put(&self, offset: u64, value: u32) -> Action {
        self.device.write(offset, &value.to_le_bytes())
    }
}

pub fn registers(device: Box<dyn VirtioDevice>) -> Box<dyn Registers> {
    Box::new(Rig::new(device))
}

impl Registers for Rig {
    fn ends(&self) -> &Ends {
        &self.ends
    }
    fn features(&self, half: u32) -> u32 {
        let _ = self.put(0x14, half);
        self.get(0x10)
    }
    fn accept(&self, half: u32, bits: u32) {
        let _ = self.put(0x24, half);
        let _ = self.put(0x20, bits);
    }
    fn status(&self) -> u8 {
        self.get(0x70).try_into().unwrap()
    }
    fn set_status(&self, status: u8) -> Action {
        self.put(0x70, status.into())
    }
    fn select_queue(&self, queue: u16) {
        let _ = self.put(0x30, queue.into());
    }
    fn largest_size(&self) -> u16 {
        self.get(0x34).try_into().unwrap()
    }
    fn set_size(&self, size: u16) {
        let _ = self.put(0x38, size.into());
    }
    fn set_area(&self, area: usize, address: u64) {
        let at = 0x80 + 0x10 * area as u64;
        let _ = self.put(at, address as u32);
        let _ = self.put(at + 4, (address >> 32) as u32);
    }
    fn enable(&self) {
        let _ = self.put(0x44, 1);
    }
    fn enabled(&self) -> bool {
        self.get(0x44) == 1
    }
    fn reset_queue(&self) {
        let _ = self.put(0xc0, 1);
    }
    fn queue_in_reset(&self) -> bool {
        self.get(0xc0) != 0
    }
    fn notify(&self, queue: u16) {
        let _ = self.put(0x50, queue.into());
    }
    fn generation(&self) -> u32 {
        self.get(0xfc)
    }
    fn config(&self, offset: u64, data: &mut [u8]) {
        self.device.read(0x100 + offset, data);
    }
    fn set_config(&self, offset: u64, data: &[u8]) {
        let _ = self.device.write(0x100 + offset, data);
    }
    fn interrupts(&self) -> usize {
        self.line.read().unwrap_or(0) as usize
    }
    fn save(&self) -> FrontState {
        self.device.save().front
    }
    fn restore(&self, saved: &FrontState) {
        self.device.restore(&VirtioMmioState {
            front: saved.clone(),
        });
    }
    fn poke(&self, bits: u64) {
        let len = [1, 2, 4, 8][(bits & 3) as usize];
        // Most of them where the registers are.
        let offset = (bits >> 8) & if bits & 4 == 0 { 0xff } else { 0xfff };
        let offset = if bits & 8 == 0 { offset & !3 } else { offset };
        let value = (bits >> 20).to_le_bytes();
        if bits & 0x30 == 0 {
            self.device.read(offset, &mut [0; 8][..len]);
        } else {
            let _ = self.device.write(offset, &value[..len]);
        }
    }
}

/// A driver in good order, up to `DRIVER_OK`.
fn live() -> Rig {
    let rig = Rig::new(Box::new(Entropy::default()));
    let _ = rig.set_status(3);
    rig.accept(1, 1);
    let _ = rig.set_status(11);
    let setup = Driver::setup();
    rig.set_size(setup.size);
    for (area, address) in setup.areas.iter().enumerate() {
        rig.set_area(area, *address);
    }
    rig.enable();
    assert_eq!(rig.set_status(15), Action::DriverOk(3));
    rig
}

/// 4.2.2.1.
#[test]
fn the_registers_say_what_the_device_is() {
    let rig = Rig::new(Box::new(Entropy::default()));
    assert_eq!(rig.get(0x00).to_le_bytes(), *b"virt");
    assert_eq!((rig.get(0x04), rig.get(0x08)), (2, 4));
    assert_eq!(rig.get(0x34), 256);
    for offset in [0xb0, 0xb4, 0xb8, 0xbc] {
        let _ = rig.put(0xac, 0);
        assert_eq!(rig.get(offset), u32::MAX, "no shared memory");
    }
    // What can only be written, and what is not there.
    let _ = rig.set_status(3);
    rig.set_area(0, u64::MAX);
    for offset in [
        0x18, 0x20, 0x28, 0x3c, 0x50, 0x64, 0x80, 0x84, 0xac, 0xc0, 0xf8,
    ] {
        assert_eq!(rig.get(offset), 0, "{offset:#x}");
    }
}

/// 4.2.2.2: 32 bits wide and aligned.
#[test]
fn registers_are_accessed_whole() {
    let rig = live();
    for (offset, len) in [
        (0x70, 1),
        (0x70, 2),
        (0x70, 8),
        (0x71, 4),
        (0x6f, 4),
        (0x6e, 8),
    ] {
        let mut data = [0xaa; 8];
        rig.device.read(offset, &mut data[..len]);
        assert_eq!(data[..len], [0; 8][..len], "{offset:#x} {len}");
        assert_eq!(rig.device.write(offset, &[0; 8][..len]), Action::Continue);
        assert_eq!(rig.status(), 15, "{offset:#x} {len}");
    }
    // More than a byte is no status; more than 16 bits no queue.
    let _ = rig.put(0x70, 0x100);
    let _ = rig.put(0x70, 0x8000_0080);
    assert_eq!(rig.status(), 15);
    let _ = rig.put(0x30, 0x1_0000);
    assert_eq!(rig.get(0x34), 0, "not queue 0");
    rig.ends.kicks[0].read().unwrap();
    let _ = rig.put(0x50, 0x1_0000);
    assert!(rig.ends.kicks[0].read().is_err());
}

/// 4.2.2.1: an event shows from when it takes place until it is acknowledged.
#[test]
fn interrupts_are_acknowledged_bit_by_bit() {
    let rig = live();
    rig.ends.driver.descriptor(0, 0x8000, 32, WRITE, 0);
    rig.ends.driver.offer(&[0]);
    let _ = rig.ends.worker.lock().service(0);
    assert_eq!((rig.get(0x60), rig.interrupts()), (1, 1));
    assert_eq!(rig.get(0x60), 1, "reading takes nothing away");
    let _ = rig.put(0x64, 2);
    assert_eq!(rig.get(0x60), 1);
    // Another edge, although nobody has acknowledged the first.
    rig.ends.driver.offer(&[0, 0]);
    let _ = rig.ends.worker.lock().service(0);
    assert_eq!((rig.get(0x60), rig.interrupts()), (1, 1));
    rig.ends.driver.set_available(100);
    let _ = rig.ends.worker.lock().service(0);
    assert_eq!(
        (rig.get(0x60), rig.interrupts()),
        (3, 1),
        "it needs a reset"
    );
    let _ = rig.put(0x64, 1);
    assert_eq!(rig.get(0x60), 2);
    let _ = rig.put(0x64, u32::MAX);
    assert_eq!(rig.get(0x60), 0);
    let _ = rig.set_status(0);
    assert_eq!(rig.interrupts(), 0);
}

/// 4.2.2.1: reset clears the interrupt status. What was not acknowledged is told again after a restore.
#[test]
fn interrupt_status_is_reset_and_restored() {
    let rig = live();
    rig.ends.driver.descriptor(0, 0x8000, 32, WRITE, 0);
    rig.ends.driver.offer(&[0]);
    let _ = rig.ends.worker.lock().service(0);
    assert_eq!(rig.interrupts(), 1);
    let saved = rig.device.save();
    let _ = rig.set_status(0);
    assert_eq!(rig.get(0x60), 0);
    rig.device.restore(&saved);
    assert_eq!((rig.get(0x60), rig.interrupts()), (1, 1));
}

/// 4.2.2.2: the driver stops using a queue by `QueueReady`, also without queue reset.
#[test]
fn a_queue_that_is_not_ready_is_not_touched() {
    let rig = live();
    let _ = rig.put(0x44, 0);
    assert!(!rig.enabled());
    rig.ends.driver.descriptor(0, 0x8000, 32, WRITE, 0);
    rig.ends.driver.offer(&[0]);
    let _ = rig.ends.worker.lock().service(0);
    assert!(rig.ends.driver.used().is_empty());
    assert_eq!(rig.status(), 15);
    // Neither 0 nor 1 means nothing.
    let _ = rig.put(0x44, 2);
    assert!(!rig.enabled());
    rig.enable();
    let _ = rig.ends.worker.lock().service(0);
    assert_eq!(rig.ends.driver.used(), [(0, 32)]);
}

/// A device that cannot part with a single queue stands still instead.
#[test]
fn a_device_without_queue_reset_stands_still_when_a_queue_is_taken_back() {
    let rig = live();
    let other = Rig::new(Box::new(NoReset(Entropy::default())));
    other.restore(&rig.save());
    assert_eq!(other.status(), 15);
    other.interrupts();
    let _ = other.put(0x44, 0);
    assert_eq!(other.status(), 15 | Status::NEEDS_RESET);
    assert_eq!(other.interrupts(), 1);
    other.ends.driver.descriptor(0, 0x8000, 32, WRITE, 0);
    other.ends.driver.offer(&[0]);
    let _ = other.ends.worker.lock().service(0);
    assert!(other.ends.driver.used().is_empty());
}

struct NoReset(Entropy);

impl VirtioDevice for NoReset {
    fn device_type(&self) -> crate::virtio::DeviceType {
        self.0.device_type()
    }
    fn features(&self) -> u64 {
        self.0.features()
    }
    fn queue_sizes(&self) -> &[u16] {
        self.0.queue_sizes()
    }
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    fn activate(&mut self, activation: crate::virtio::Activation) {
        self.0.activate(activation);
    }
    fn process(&mut self, queue: u16) -> Result<crate::virtio::Progress, crate::virtio::Broken> {
        self.0.process(queue)
    }
    fn reset(&mut self) {
        self.0.reset();
    }
    fn save(&self) -> crate::virtio::DeviceState {
        self.0.save()
    }
    fn restore(&mut self, state: &crate::virtio::DeviceState) {
        self.0.restore(state);
    }
}
