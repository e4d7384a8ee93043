//! The `io` thread: device work, on one event loop.
//!
//! Each queue has an event, its kick. A turn does a bounded piece of a queue's work; what has more to do kicks itself,
//! so that every device gets its turn. The thread passes the machine's gate between turns: a pause stops it too.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use devices::virtio::{Progress, SharedWorker};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::gate::{Gate, Passage};
use super::vcpu::Shared;
use crate::exit::ExitReason;
use crate::memory::THREAD_STACK;

/// A device that the thread serves.
pub struct IoDevice {
    /// The device.
    pub worker: SharedWorker,
    /// The kick of each queue.
    pub kicks: Arc<[EventFd]>,
}

/// The running thread.
pub struct IoThread {
    thread: Option<JoinHandle<()>>,
    wake: EventFd,
}

impl IoThread {
    /// Starts it, for at least one device. It waits at the gate first.
    ///
    /// # Errors
    /// The thread or its loop could not be had.
    pub fn start(devices: Vec<IoDevice>, shared: Arc<Shared>) -> io::Result<Self> {
        let failed = |error| io::Error::other(format!("{error:?}"));
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let mut events = EventManager::new_with_capacity(READY_EVENTS).map_err(failed)?;
        events.add_subscriber(Loop {
            devices,
            wake: wake.try_clone()?,
            shared: shared.clone(),
        });
        shared.gate.enter();
        let spawned = thread::Builder::new()
            .name("io".into())
            .stack_size(THREAD_STACK)
            .spawn({
                let shared = shared.clone();
                move || run(events, &shared.gate)
            });
        let thread = spawned.inspect_err(|_| shared.gate.leave())?;
        Ok(Self {
            thread: Some(thread),
            wake,
        })
    }

    /// Makes the thread look at the gate.
    pub fn kick(&self) {
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot wake the io thread: {error}");
        }
    }

    /// Waits for its end. The gate is shut, and the thread was kicked.
    pub fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            // If it panicked, it has nothing more to say here.
            let _ = thread.join();
        }
    }
}

/// Events that the loop takes from the host at once.
const READY_EVENTS: usize = 32;
/// The wake event's number; a queue's is its device's index and its own.
const WAKE: u32 = u32::MAX;

/// Counts the thread out, also when it panics.
struct Presence<'a>(&'a Gate);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn run(mut events: EventManager<Loop>, gate: &Gate) {
    let _presence = Presence(gate);
    while gate.pass() != Passage::Over {
        if let Err(error) = events.run() {
            let detail = format!("its event loop failed: {error:?}");
            return gate.end(ExitReason::DevicesLost { detail });
        }
    }
}

struct Loop {
    devices: Vec<IoDevice>,
    wake: EventFd,
    shared: Arc<Shared>,
}

impl Loop {
    fn serve(&self, device: u16, queue: u16) {
        let Some(device) = self.devices.get(usize::from(device)) else {
            return;
        };
        let Some(kick) = device.kicks.get(usize::from(queue)) else {
            return;
        };
        // EAGAIN: somebody else was faster.
        let _ = kick.read();
        if device.worker.lock().service(queue) == Progress::More
            && let Err(error) = kick.write(1)
        {
            log::error!("cannot go on with a queue: {error}");
        }
    }
}

impl MutEventSubscriber for Loop {
    fn init(&mut self, ops: &mut EventOps) {
        let mut sources = vec![Events::with_data(&self.wake, WAKE, EventSet::IN)];
        for (index, device) in (0_u16..).zip(&self.devices) {
            for (queue, kick) in (0_u16..).zip(device.kicks.iter()) {
                let data = u32::from(index) << 16 | u32::from(queue);
                sources.push(Events::with_data(kick, data, EventSet::IN));
            }
        }
        for source in sources {
            if let Err(error) = ops.add(source) {
                let detail = format!("it cannot wait for its events: {error:?}");
                self.shared.gate.end(ExitReason::DevicesLost { detail });
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        match events.data() {
            WAKE => {
                let _ = self.wake.read();
            }
            data => self.serve((data >> 16) as u16, data as u16),
        }
    }
}
