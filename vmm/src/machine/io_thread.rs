//! The `io` thread: device work, on one event loop.
//!
//! Each queue has an event, its kick. A turn does a bounded piece of a queue's work; what has more to do kicks itself,
//! so that every device gets its turn. The thread passes the machine's gate between turns: a pause stops it too.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::limit::LogLimit;
use devices::virtio::{Progress, SharedWorker};
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::timerfd::TimerFd;

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
    /// Wakes the device when its limit allows more; made when first needed.
    timer: Option<TimerFd>,
}

impl IoDevice {
    /// A device and the kick of each of its queues.
    pub fn new(worker: SharedWorker, kicks: Arc<[EventFd]>) -> Self {
        Self {
            worker,
            kicks,
            timer: None,
        }
    }

    /// Has the loop hear of the device's timer after `time`.
    fn wait(&mut self, time: Duration, data: u32, ops: &mut EventOps) -> io::Result<()> {
        let errno = |error: vmm_sys_util::errno::Error| io::Error::from_raw_os_error(error.errno());
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None => {
                let timer = TimerFd::new().map_err(errno)?;
                ops.add(Events::with_data(&timer, data, EventSet::IN))
                    .map_err(|error| io::Error::other(format!("{error:?}")))?;
                self.timer.insert(timer)
            }
        };
        timer.reset(time, None).map_err(errno)
    }
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
            limit: LogLimit::default(),
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
/// Set in the number of a device's timer.
const TIMER: u32 = 1 << 31;

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
    limit: LogLimit,
}

impl Loop {
    fn serve(&mut self, index: u16, queue: u16, ops: &mut EventOps) {
        let Some(device) = self.devices.get_mut(usize::from(index)) else {
            return;
        };
        let Some(kick) = device.kicks.get(usize::from(queue)) else {
            return;
        };
        // EAGAIN: somebody else was faster.
        let _ = kick.read();
        let progress = device.worker.lock().service(queue);
        let result = match progress {
            Progress::Done => Ok(()),
            Progress::More => kick.write(1),
            Progress::Wait(time) => device.wait(time, TIMER | u32::from(index) << 16, ops),
        };
        if let Err(error) = result
            && self.limit.allow()
        {
            log::error!("cannot go on with a queue: {error}");
        }
    }

    /// A device's timer is over: all its queues may have something to do.
    fn on_timer(&mut self, index: u16) {
        if let Some(device) = self.devices.get_mut(usize::from(index)) {
            if let Some(timer) = &mut device.timer {
                let _ = timer.wait();
            }
            for kick in device.kicks.iter() {
                // It fails only where a kick is there already.
                let _ = kick.write(1);
            }
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

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            WAKE => {
                let _ = self.wake.read();
            }
            data if data & TIMER != 0 => self.on_timer(((data & !TIMER) >> 16) as u16),
            data => self.serve((data >> 16) as u16, data as u16, ops),
        }
    }
}
