//! What guests do, the legal and the illegal, with every transport.
//!
//! | file          | what is proved                                                       |
//! |---------------|----------------------------------------------------------------------|
//! | `setup`       | status, features, queues: from the first step to `DRIVER_OK` and back   |
//! | `queue_reset` | single queues are reset, and used again                                |
//! | `running`     | configuration, saved state, several vCPUs at once                      |

mod queue_reset;
mod running;
mod setup;

use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::negotiation::QueueSetup;
use super::rng::{Entropy, EntropyState};
use super::testing::{Driver, WRITE};
use super::{
    Activation, Backend, Broken, Counters, DeviceState, DeviceType, FrontState, Progress,
    SharedWorker, Status, VirtioDevice, feature, mmio, pci,
};
use crate::bus::Action;

const AGREED: u8 = Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK;
const READY: u8 = AGREED | Status::DRIVER_OK;
const NUMBER: u8 = 3;

/// What a transport stands between.
pub struct Ends {
    pub worker: SharedWorker,
    pub kicks: Arc<[EventFd]>,
    pub driver: Driver,
}

impl Ends {
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let queues = device.queue_sizes().len();
        let kicks = (0..queues).map(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        Self {
            worker: SharedWorker::new(device),
            kicks: kicks.collect(),
            driver: Driver::new(),
        }
    }

    pub fn backend(&self) -> Backend {
        Backend {
            number: NUMBER,
            worker: self.worker.clone(),
            kicks: self.kicks.clone(),
            memory: self.driver.memory.clone(),
        }
    }

    fn kicked(&self, queue: usize) -> bool {
        self.kicks[queue].read().is_ok()
    }

    fn serve(&self) {
        let _ = self.worker.lock().service(0);
    }
}

/// A transport's registers, by what they mean.
pub trait Registers: Sync {
    fn ends(&self) -> &Ends;
    /// All that a driver does before it looks at queues.
    fn prepare(&self) {}
    fn features(&self, half: u32) -> u32;
    fn accept(&self, half: u32, bits: u32);
    fn status(&self) -> u8;
    fn set_status(&self, status: u8) -> Action;
    fn select_queue(&self, queue: u16);
    fn largest_size(&self) -> u16;
    fn set_size(&self, size: u16);
    fn set_area(&self, area: usize, address: u64);
    fn enable(&self);
    fn enabled(&self) -> bool;
    fn reset_queue(&self);
    fn queue_in_reset(&self) -> bool;
    fn notify(&self, queue: u16);
    fn generation(&self) -> u32;
    fn config(&self, offset: u64, data: &mut [u8]);
    fn set_config(&self, offset: u64, data: &[u8]);
    /// How often the driver was interrupted since the last time.
    fn interrupts(&self) -> usize;
    fn save(&self) -> FrontState;
    fn restore(&self, saved: &FrontState);
    /// An access of any kind, made of random bits.
    fn poke(&self, bits: u64);
}

impl dyn Registers + '_ {
    fn agree(&self, features: u64) {
        let _ = self.set_status(1);
        let _ = self.set_status(3);
        for half in 0..2 {
            self.accept(half, (features >> (32 * half)) as u32);
        }
        let _ = self.set_status(AGREED);
    }

    fn offered(&self) -> u64 {
        u64::from(self.features(0)) | u64::from(self.features(1)) << 32
    }

    fn set_up(&self, queue: u16, setup: &QueueSetup) {
        self.select_queue(queue);
        self.set_size(setup.size);
        for (area, address) in setup.areas.iter().enumerate() {
            self.set_area(area, *address);
        }
    }

    fn start(&self, features: u64) {
        self.agree(features);
        assert_eq!(self.status(), AGREED);
        self.prepare();
        self.set_up(0, &Driver::setup());
        self.enable();
        assert_eq!(self.set_status(READY), Action::DriverOk(NUMBER));
        assert_eq!(self.status(), READY);
    }

    /// Whether the device fills a buffer that is made available now, as the first one.
    fn works(&self) -> bool {
        let driver = &self.ends().driver;
        driver.descriptor(0, 0x8000, 32, WRITE, 0);
        driver.offer(&[0]);
        self.notify(0);
        self.ends().serve();
        driver.used() == [(0, 32)]
    }
}

/// With configuration and two queues; none of them can be reset alone. The second is served at its kick, and has more to do after
/// the first time.
struct Plain {
    config: [u8; 8],
    active: Option<Activation>,
    served: [u64; 2],
}

impl VirtioDevice for Plain {
    fn device_type(&self) -> DeviceType {
        DeviceType::Console
    }
    fn features(&self) -> u64 {
        feature::COMMON | 1
    }
    fn queue_sizes(&self) -> &[u16] {
        &[8, 4]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::pci::read_bytes(&self.config, offset as usize, data);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let at = usize::try_from(offset).unwrap().saturating_add(index);
            if let Some(slot) = self.config.get_mut(at) {
                *slot = *byte;
            }
        }
        if let Some(active) = &self.active {
            active.interrupt.config_changed();
        }
    }
    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }
    fn process(&mut self, queue: u16) -> Result<Progress, Broken> {
        if let Some(served) = self.served.get_mut(usize::from(queue)) {
            *served = served.wrapping_add(1);
        }
        Ok(if self.served == [0, 1] {
            Progress::More
        } else {
            Progress::Done
        })
    }
    fn serves_at_kick(&self, queue: u16) -> bool {
        queue == 1
    }
    fn counters(&self) -> Counters {
        vec![("first", self.served[0]), ("second", self.served[1])]
    }
    fn reset(&mut self) {
        self.active = None;
    }
    fn save(&self) -> DeviceState {
        DeviceState::Entropy(EntropyState::default())
    }
    fn restore(&mut self, _state: &DeviceState) {}
}

fn entropy() -> Box<dyn VirtioDevice> {
    Box::new(Entropy::default())
}

fn plain() -> Box<dyn VirtioDevice> {
    Box::new(Plain {
        config: *b"01234567",
        active: None,
        served: [0; 2],
    })
}

fn on_each(device: fn() -> Box<dyn VirtioDevice>, test: impl Fn(&dyn Registers)) {
    for transport in [pci::rig::registers, mmio::tests::registers] {
        test(&*transport(device()));
    }
}
