//! A device with the state that its transport and its loop share.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use super::{Activation, Broken, Interrupt, Progress, Ring, VirtioDevice};
use crate::limit::LogLimit;

/// A device, and whether it runs.
pub struct Worker {
    device: Box<dyn VirtioDevice>,
    /// While the device runs.
    interrupt: Option<Arc<dyn Interrupt>>,
    limit: LogLimit,
    /// Is told, as often as the log, why the device stands still.
    watcher: Option<Watcher>,
}

/// Hears of a device that needs a reset, on the thread that found that out.
pub type Watcher = Box<dyn Fn(&str) + Send>;

/// The worker as its transport (on vCPU threads) and its loop hold it.
#[derive(Clone)]
pub struct SharedWorker(Arc<Mutex<Worker>>);

impl SharedWorker {
    /// Of a device that does not run yet.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self(Arc::new(Mutex::new(Worker {
            device,
            interrupt: None,
            limit: LogLimit::default(),
            watcher: None,
        })))
    }

    /// Takes it, for a bounded time.
    pub fn lock(&self) -> MutexGuard<'_, Worker> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it if it is free within `patience`: a device whose disk does not answer keeps it for as long as that takes.
    pub fn lock_within(&self, patience: Duration) -> Option<MutexGuard<'_, Worker>> {
        let deadline = Instant::now() + patience;
        loop {
            match self.0.try_lock() {
                Ok(worker) => return Some(worker),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= deadline => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(A_MOMENT),
            }
        }
    }
}

/// Between two attempts to take a worker that is busy.
const A_MOMENT: Duration = Duration::from_millis(1);

impl Worker {
    /// The device.
    pub fn device(&mut self) -> &mut dyn VirtioDevice {
        &mut *self.device
    }

    /// Has `watcher` hear of it when the device needs a reset.
    pub fn watch(&mut self, watcher: Watcher) {
        self.watcher = Some(watcher);
    }

    /// Starts the device.
    pub fn start(&mut self, activation: Activation) {
        self.interrupt = Some(activation.interrupt.clone());
        self.device.activate(activation);
    }

    /// Stops and resets the device. It touches guest memory no more.
    pub fn stop(&mut self) {
        self.interrupt = None;
        self.device.reset();
    }

    /// Resets a queue of a device that runs, so that it touches that queue no more (2.6.1.1). False if it cannot.
    pub fn reset_queue(&mut self, queue: u16) -> bool {
        let Some(resets) = self.device.queue_reset() else {
            return false;
        };
        if self.interrupt.is_some() {
            resets.reset_queue(queue);
        }
        true
    }

    /// Starts a queue that does not run, of a device that does (2.6.1.2). False if it cannot.
    pub fn start_queue(&mut self, queue: u16, ring: Ring) -> bool {
        let Some(resets) = self.device.queue_reset() else {
            return false;
        };
        if self.interrupt.is_some() {
            resets.start_queue(queue, ring);
        }
        true
    }

    /// Does a bounded piece of a queue's work. A driver that has broken the rules is told, and the device stands still.
    pub fn service(&mut self, queue: u16) -> Progress {
        if self.interrupt.is_none() {
            return Progress::Done;
        }
        let result = self.device.process(queue);
        self.judge(format_args!("queue {queue}"), result)
    }

    /// The same for the host's side; a device hears of its host before there is a driver, too.
    pub fn service_host(&mut self) -> Progress {
        let result = self.device.process_host();
        self.judge(format_args!("host side"), result)
    }

    fn judge(&mut self, part: fmt::Arguments, result: Result<Progress, Broken>) -> Progress {
        let broken = match result {
            Ok(progress) => return progress,
            Err(broken) => broken,
        };
        if let Some(interrupt) = self.interrupt.take() {
            if self.limit.allow() {
                let kind = self.device.device_type();
                log::warn!("{kind:?} device, {part}: {broken}; it needs a reset");
                if let Some(watcher) = &self.watcher {
                    watcher(&format!("{part}: {broken}; it needs a reset"));
                }
            }
            interrupt.needs_reset();
            // Nothing more of this driver's is looked at.
            self.device.reset();
        }
        Progress::Done
    }
}

#[cfg(test)]
mod tests {
    use super::super::rng::Entropy;
    use super::*;

    #[test]
    fn a_busy_worker_is_not_waited_for_without_end() {
        let worker = SharedWorker::new(Box::new(Entropy::new(&Default::default())));
        let moment = Duration::from_millis(5);
        assert!(worker.lock_within(Duration::ZERO).is_some());
        let busy = worker.lock();
        assert!(worker.lock_within(moment).is_none());
        drop(busy);
        assert!(worker.lock_within(moment).is_some());
    }
}
