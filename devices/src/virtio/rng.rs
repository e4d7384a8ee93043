//! Entropy device (5.4): fills the driver's buffers with random bytes of the host's kernel.

use std::io;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use vm_memory::Bytes;

use super::rate_limiter::{RateLimiter, RateLimiterConfig};
use super::{
    Activation, Broken, Buffer, Counters, DeviceState, DeviceType, Memory, Progress, QueueReset,
    Ring, RingState, Update, UpdateError, VirtioDevice, feature,
};
use crate::limit::LogLimit;

/// Most bytes that one chain gets. A longer one is given back partly filled, which the driver is told.
const MOST_BYTES: usize = 64 << 10;
/// Chains that are served before it is another device's turn.
const CHAINS_A_TURN: usize = 16;
/// Bytes that are fetched at once.
const PIECE: usize = 4096;
/// Largest size of the queue.
const QUEUE_SIZE: u16 = 256;

/// The device.
#[derive(Default)]
pub struct Entropy {
    active: Option<Activation>,
    buffers: Vec<Buffer>,
    limiter: RateLimiter,
    limit: LogLimit,
    counts: Counts,
}

/// Counters.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    requests: u64,
    bytes: u64,
    throttled: u64,
}

impl Entropy {
    /// A device with these limits.
    pub fn new(limits: &RateLimiterConfig) -> Self {
        Self {
            limiter: RateLimiter::new(limits, Instant::now()),
            ..Self::default()
        }
    }
}

/// Saved [`Entropy`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntropyState {
    /// Position in the queue, if the device was active.
    pub ring: Option<RingState>,
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> DeviceType {
        DeviceType::Entropy
    }

    fn features(&self) -> u64 {
        feature::COMMON
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }

    fn process(&mut self, queue: u16) -> Result<Progress, Broken> {
        let Some(active) = &mut self.active else {
            return Ok(Progress::Done);
        };
        let Some(Some(ring)) = active.rings.get_mut(usize::from(queue)) else {
            return Ok(Progress::Done);
        };
        let mut progress = Progress::More;
        let mut served = false;
        for _ in 0..CHAINS_A_TURN {
            if !self.limiter.is_unlimited()
                && let Err(wait) = self.limiter.admit(Instant::now())
            {
                progress = Progress::Wait(wait);
                self.counts.throttled += 1;
                break;
            }
            let Some(head) = ring.pop_or_ask(&mut self.buffers)? else {
                progress = Progress::Done;
                break;
            };
            let len = fill(&active.memory, &self.buffers, &self.limit)?;
            self.limiter.charge(len.into());
            ring.give_back(head, len)?;
            self.counts.requests += 1;
            self.counts.bytes += u64::from(len);
            served = true;
        }
        if served && ring.wants_interrupt()? {
            active.interrupt.used(queue);
        }
        Ok(progress)
    }

    fn queue_reset(&mut self) -> Option<&mut dyn QueueReset> {
        Some(self)
    }

    fn update(&mut self, update: &Update) -> Result<(), UpdateError> {
        match update {
            Update::Entropy(limits) => {
                self.limiter.update(limits, Instant::now());
                Ok(())
            }
            _ => Err(UpdateError::Unsupported),
        }
    }

    fn counters(&self) -> Counters {
        vec![
            ("requests", self.counts.requests),
            ("bytes", self.counts.bytes),
            ("throttled", self.counts.throttled),
        ]
    }

    fn reset(&mut self) {
        self.active = None;
        self.buffers = Vec::new();
    }

    fn save(&self) -> DeviceState {
        let rings = self.active.as_ref().map(|active| &active.rings);
        let ring = rings.and_then(|rings| rings.first()?.as_ref());
        let ring = ring.map(Ring::save);
        DeviceState::Entropy(EntropyState { ring })
    }

    fn restore(&mut self, state: &DeviceState) {
        let DeviceState::Entropy(state) = state else {
            return;
        };
        let rings = self.active.iter_mut().flat_map(|active| &mut active.rings);
        if let (Some(ring), Some(position)) = (rings.flatten().next(), state.ring) {
            ring.restore(position);
        }
    }
}

impl QueueReset for Entropy {
    fn reset_queue(&mut self, queue: u16) {
        let rings = self.active.as_mut().map(|active| &mut active.rings);
        if let Some(slot) = rings.and_then(|rings| rings.get_mut(usize::from(queue))) {
            *slot = None;
        }
    }

    fn start_queue(&mut self, queue: u16, ring: Ring) {
        let rings = self.active.as_mut().map(|active| &mut active.rings);
        if let Some(slot) = rings.and_then(|rings| rings.get_mut(usize::from(queue))) {
            *slot = Some(ring);
        }
    }
}

/// Fills a chain, up to [`MOST_BYTES`]. Returns how many bytes it has got.
fn fill(memory: &Memory, buffers: &[Buffer], limit: &LogLimit) -> Result<u32, Broken> {
    let mut piece = [0; PIECE];
    let mut total = 0;
    for buffer in buffers {
        // 5.4.6.1: the driver gives no readable buffers.
        if !buffer.writable {
            return Err(Broken("a readable buffer is in the entropy queue"));
        }
        let mut at = buffer.address;
        let mut left = (buffer.len as usize).min(MOST_BYTES - total);
        while left > 0 {
            let bytes = &mut piece[..left.min(PIECE)];
            if let Err(error) = get_random(bytes) {
                if limit.allow() {
                    log::error!("cannot get random bytes: {error}");
                }
                return Ok(total as u32);
            }
            let bad = |_| Broken("a buffer is not in memory");
            memory.write_slice(bytes, at).map_err(bad)?;
            total += bytes.len();
            left -= bytes.len();
            // The buffer is in memory, so its addresses do not overflow.
            at.0 = at.0.wrapping_add(bytes.len() as u64);
        }
    }
    Ok(total as u32)
}

/// Fills all of `bytes`, by the kernel's generator.
pub(crate) fn get_random(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        // SAFETY: the kernel writes at most `rest.len()` bytes to `rest`.
        let got = unsafe { libc::getrandom(rest.as_mut_ptr().cast(), rest.len(), 0) };
        match usize::try_from(got) {
            Ok(got) => done += got,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use vm_memory::GuestAddress;

    use super::super::rate_limiter::BucketConfig;
    use super::super::testing::{Driver, NEXT, WRITE};
    use super::super::{Interrupt, SharedWorker};
    use super::*;

    #[derive(Default)]
    struct Counts {
        used: AtomicU32,
        broken: AtomicU32,
    }

    impl Interrupt for Counts {
        fn used(&self, _queue: u16) {
            self.used.fetch_add(1, Ordering::Relaxed);
        }
        fn config_changed(&self) {}
        fn needs_reset(&self) {
            self.broken.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn started(driver: &Driver) -> (SharedWorker, Arc<Counts>) {
        started_with(driver, &RateLimiterConfig::default())
    }

    fn started_with(driver: &Driver, limits: &RateLimiterConfig) -> (SharedWorker, Arc<Counts>) {
        let worker = SharedWorker::new(Box::new(Entropy::new(limits)));
        let counts = Arc::new(Counts::default());
        worker.lock().start(Activation {
            memory: driver.memory.clone(),
            rings: vec![Some(driver.ring())],
            features: feature::COMMON,
            interrupt: counts.clone(),
        });
        (worker, counts)
    }

    #[test]
    fn scattered_buffers_are_filled() {
        let driver = Driver::new();
        driver.descriptor(0, 0x8000, 5000, WRITE | NEXT, 1);
        driver.descriptor(1, 0xa000, 0, WRITE | NEXT, 2);
        driver.descriptor(2, 0xb000, 64, WRITE, 0);
        driver.offer(&[0]);
        let (worker, counts) = started(&driver);
        assert_eq!(worker.lock().service(0), Progress::Done);
        assert_eq!(driver.used(), [(0, 5064)]);
        assert_eq!(counts.used.load(Ordering::Relaxed), 1);
        let mut bytes = [0; 64];
        driver
            .memory
            .read_slice(&mut bytes, GuestAddress(0xb000))
            .unwrap();
        assert!(bytes.iter().any(|byte| *byte != 0));
        let mut after = [0; 64];
        let end = GuestAddress(0x8000 + 5000);
        driver.memory.read_slice(&mut after, end).unwrap();
        assert_eq!(after, [0; 64], "nothing behind the buffer");
        assert_eq!(worker.lock().service(0), Progress::Done);
        assert_eq!(worker.lock().service(7), Progress::Done);
        assert_eq!(counts.used.load(Ordering::Relaxed), 1, "nothing new");
    }

    #[test]
    fn a_chain_gets_only_so_much() {
        let driver = Driver::new();
        for index in 0..8 {
            let flags = if index < 7 { WRITE | NEXT } else { WRITE };
            driver.descriptor(index, 0x8000, 0x1_0000, flags, index + 1);
        }
        driver.offer(&[0]);
        let (worker, _) = started(&driver);
        let _ = worker.lock().service(0);
        assert_eq!(driver.used(), [(0, MOST_BYTES as u32)]);
    }

    #[test]
    fn a_limit_holds_up_what_is_beyond_it() {
        let driver = Driver::new();
        driver.descriptor(0, 0x8000, 16, WRITE, 0);
        driver.offer(&[0; 5]);
        let ops = BucketConfig {
            size: 3,
            one_time_burst: None,
            refill_time: 3_600_000,
        };
        let limits = RateLimiterConfig {
            bandwidth: None,
            ops: Some(ops),
        };
        let (worker, counts) = started_with(&driver, &limits);
        let Progress::Wait(time) = worker.lock().service(0) else {
            panic!("no limit");
        };
        assert!(time.as_secs() > 1000);
        assert_eq!(driver.used().len(), 3);
        assert_eq!(counts.used.load(Ordering::Relaxed), 1, "for what was done");
    }

    #[test]
    fn a_driver_that_breaks_the_rules_must_reset() {
        let driver = Driver::new();
        driver.descriptor(0, 0x8000, 16, 0, 0);
        driver.offer(&[0]);
        let (worker, counts) = started(&driver);
        for _ in 0..3 {
            assert_eq!(worker.lock().service(0), Progress::Done);
        }
        assert_eq!(counts.broken.load(Ordering::Relaxed), 1);
        assert!(driver.used().is_empty());
        worker.lock().stop();
        assert_eq!(worker.lock().service(0), Progress::Done);
    }

    #[test]
    fn a_queue_that_never_ends_does_not_keep_the_loop() {
        let driver = Driver::new();
        driver.descriptor(0, 0x8000, 16, WRITE, 0);
        driver.offer(&[0; 8]);
        let (worker, _) = started(&driver);
        // The driver offers everything again before the device can come to an end.
        let mut rounds = 0_u16;
        for turn in 0..10_u16 {
            driver.set_available(8 + 8 * turn);
            let _ = worker.lock().service(0);
            rounds += 1;
        }
        assert_eq!(rounds, 10);
        assert_eq!(
            worker.lock().device().save(),
            DeviceState::Entropy(EntropyState {
                ring: Some(RingState {
                    next_avail: 80,
                    next_used: 80
                }),
            })
        );
    }
}
