//! Threads for device work, each on an event loop: `io`, and those that devices are given of their own.
//!
//! Each queue has an event, its kick, and a device may have one of its host side. A turn does a bounded piece of work;
//! what has more to do comes again after all others. A thread passes the machine's gate between turns: a pause stops it
//! too, with nothing of its devices' under way in guest memory.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use devices::virtio::{Progress, SharedWorker};
use event_manager::{
    EventManager, EventOps, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::gate::{Gate, Passage};
use super::vcpu::Shared;
use crate::confine::Role;
use crate::exit::ExitReason;
use crate::memory::THREAD_STACK;

/// A device that a thread serves.
pub struct IoDevice {
    worker: SharedWorker,
    /// The kick of each queue.
    kicks: Arc<[EventFd]>,
    /// Which of them are this thread's to read.
    waits: Vec<bool>,
    /// The host side's descriptor, which the device keeps open.
    host: Option<RawFd>,
    /// When a limit of the device allows more.
    wake_at: Option<Instant>,
    /// Which parts are in the loop's list: the queues, then the host side.
    listed: Vec<bool>,
}

impl IoDevice {
    /// A device and the kick of each of its queues.
    pub fn new(worker: SharedWorker, kicks: Arc<[EventFd]>) -> Self {
        let (host, waits) = {
            let mut worker = worker.lock();
            let device = worker.device();
            let waits = (0..kicks.len() as u16).map(|queue| device.waits_for_kicks(queue));
            let waits = waits.collect();
            (device.host_event().map(|fd| fd.as_raw_fd()), waits)
        };
        let listed = vec![false; kicks.len() + 1];
        Self {
            worker,
            kicks,
            waits,
            host,
            wake_at: None,
            listed,
        }
    }

    /// The part that stands for the host side.
    fn host_part(&self) -> u16 {
        self.kicks.len() as u16
    }
}

/// A running thread.
pub struct IoThread {
    thread: Option<JoinHandle<()>>,
    wake: EventFd,
}

impl IoThread {
    /// Starts it, for at least one device. It waits at the gate first.
    ///
    /// # Errors
    /// The thread or its loop could not be had.
    pub fn start(name: &str, devices: Vec<IoDevice>, shared: Arc<Shared>) -> io::Result<Self> {
        let failed = |error| io::Error::other(format!("{error:?}"));
        let wake = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let mut events = EventManager::new_with_capacity(READY_EVENTS).map_err(failed)?;
        let id = events.add_subscriber(Loop {
            devices,
            again: VecDeque::new(),
            quiet: false,
            wake: wake.try_clone()?,
            lost: None,
        });
        shared.gate.enter();
        let spawned = thread::Builder::new()
            .name(name.into())
            .stack_size(THREAD_STACK)
            .spawn({
                let shared = shared.clone();
                move || run(events, id, &shared)
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
            log::error!("cannot wake a device thread: {error}");
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
/// The wake event's number; a part's is its device's index and its own.
const WAKE: u32 = u32::MAX;

/// Counts the thread out, also when it panics.
struct Presence<'a>(&'a Gate);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

fn run(mut events: EventManager<Loop>, id: SubscriberId, shared: &Shared) {
    let gate = &shared.gate;
    let _presence = Presence(gate);
    if let Err(error) = (shared.confine)(Role::Io) {
        let detail = format!("their thread cannot be confined: {error}");
        return gate.end(ExitReason::DevicesLost { detail });
    }
    loop {
        let turn = events.subscriber_mut(id).map(|devices| {
            if let Some(detail) = devices.lost.take() {
                gate.end(ExitReason::DevicesLost { detail });
            }
            let passage = gate.pass_after(|| devices.quiesce());
            (passage != Passage::Over).then(|| {
                devices.resume();
                devices.turn()
            })
        });
        let result = match turn {
            Ok(None) => return,
            Ok(Some(timeout)) => events.run_with_timeout(timeout).map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let detail = format!("their event loop failed: {error:?}");
            return gate.end(ExitReason::DevicesLost { detail });
        }
    }
}

struct Loop {
    devices: Vec<IoDevice>,
    /// Parts that have more to do, and their devices: each once.
    again: VecDeque<(u16, u16)>,
    /// Nothing is under way for a pause.
    quiet: bool,
    wake: EventFd,
    /// Why events cannot be waited for.
    lost: Option<String>,
}

impl Loop {
    fn quiesce(&mut self) {
        for device in &self.devices {
            device.worker.lock().device().quiesce();
        }
        self.quiet = true;
    }

    /// Goes on after [`quiesce`](Self::quiesce), if that was before. Completions that were taken then are told of by nobody
    /// any more, so every part looks whether it has something to do.
    fn resume(&mut self) {
        if std::mem::take(&mut self.quiet) {
            for device in &self.devices {
                device.worker.lock().device().resume();
            }
            for index in 0..self.devices.len() as u16 {
                self.list_all(index);
            }
        }
    }

    /// Gives every part a turn that has waited for one. Returns how many milliseconds to wait for events then; less than
    /// zero for as long as it takes.
    fn turn(&mut self) -> i32 {
        let now = Instant::now();
        for index in 0..self.devices.len() as u16 {
            let device = self.devices.get_mut(usize::from(index));
            if let Some(device) = device.filter(|device| device.wake_at.is_some_and(|at| at <= now))
            {
                device.wake_at = None;
                self.list_all(index);
            }
        }
        for _ in 0..self.again.len() {
            if let Some((index, part)) = self.again.pop_front() {
                self.serve(index, part);
            }
        }
        if !self.again.is_empty() {
            return 0;
        }
        let next = self.devices.iter().filter_map(|d| d.wake_at).min();
        next.map_or(-1, |at| {
            let left = at.saturating_duration_since(now);
            // Rounded up: not too early, to go round for nothing.
            i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
        })
    }

    /// Has all parts of a device come again: each may have something to do.
    fn list_all(&mut self, index: u16) {
        let device = self.devices.get(usize::from(index));
        let Some(last) = device.map(IoDevice::host_part) else {
            return;
        };
        for part in 0..=last {
            self.list(index, part);
        }
    }

    /// Has a part come again.
    fn list(&mut self, index: u16, part: u16) {
        let device = self.devices.get_mut(usize::from(index));
        let listed = device.and_then(|device| device.listed.get_mut(usize::from(part)));
        if let Some(listed) = listed.filter(|listed| !**listed) {
            *listed = true;
            self.again.push_back((index, part));
        }
    }

    fn serve(&mut self, index: u16, part: u16) {
        let Some(device) = self.devices.get_mut(usize::from(index)) else {
            return;
        };
        if let Some(listed) = device.listed.get_mut(usize::from(part)) {
            *listed = false;
        }
        let mut worker = device.worker.lock();
        let progress = if part == device.host_part() {
            worker.service_host()
        } else {
            worker.service(part)
        };
        drop(worker);
        match progress {
            Progress::Done => {}
            Progress::More => self.list(index, part),
            Progress::Wait(time) => {
                let at = Instant::now().checked_add(time);
                // A limit that is beyond the end of time is looked at again every day.
                let at = at.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
                device.wake_at = Some(device.wake_at.map_or(at, |before| before.min(at)));
            }
        }
    }
}

impl MutEventSubscriber for Loop {
    fn init(&mut self, ops: &mut EventOps) {
        let mut sources = vec![Events::with_data(&self.wake, WAKE, EventSet::IN)];
        for (index, device) in (0_u32..).zip(&self.devices) {
            let kicks = (0_u32..).zip(device.kicks.iter());
            for ((part, kick), _) in kicks.zip(&device.waits).filter(|(_, waits)| **waits) {
                // Each kick is an event of its own, whatever the counter says: nobody has to read it back to zero, which is
                // a system call for each.
                let edges = EventSet::IN | EventSet::EDGE_TRIGGERED;
                sources.push(Events::with_data(kick, index << 16 | part, edges));
            }
            if let Some(host) = device.host {
                let data = index << 16 | u32::from(device.host_part());
                sources.push(Events::with_data_raw(host, data, EventSet::IN));
            }
        }
        for source in sources {
            if let Err(error) = ops.add(source) {
                let detail = format!("their thread cannot wait for its events: {error:?}");
                self.lost.get_or_insert(detail);
            }
        }
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps) {
        if events.data() == WAKE {
            let _ = self.wake.read();
            return;
        }
        let (index, part) = ((events.data() >> 16) as u16, events.data() as u16);
        let device = self.devices.get(usize::from(index));
        let listed = device.and_then(|device| device.listed.get(usize::from(part)));
        if listed == Some(&true) {
            // Its turn comes anyway, and it shall not have one more for each kick.
            return;
        }
        self.serve(index, part);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use devices::virtio::{
        Activation, Broken, DeviceState, DeviceType, Interrupt, VirtioDevice, console,
    };
    use vm_memory::GuestAddress;

    use super::*;

    /// Has always more to do, in its one queue.
    struct Busy(Arc<AtomicU32>);

    impl VirtioDevice for Busy {
        fn device_type(&self) -> DeviceType {
            DeviceType::Console
        }
        fn features(&self) -> u64 {
            0
        }
        fn queue_sizes(&self) -> &[u16] {
            &[8]
        }
        fn read_config(&self, _offset: u64, _data: &mut [u8]) {}
        fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
        fn activate(&mut self, _activation: Activation) {}
        fn process(&mut self, _queue: u16) -> Result<Progress, Broken> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Progress::More)
        }
        fn reset(&mut self) {}
        fn save(&self) -> DeviceState {
            DeviceState::Console(console::ConsoleState::default())
        }
        fn restore(&mut self, _state: &DeviceState) {}
    }

    struct Nobody;

    impl Interrupt for Nobody {
        fn used(&self, _queue: u16) {}
        fn config_changed(&self) {}
        fn needs_reset(&self) {}
    }

    #[test]
    fn kicks_do_not_add_to_the_turns_of_a_busy_queue() {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
        let turns = Arc::new(AtomicU32::new(0));
        let worker = SharedWorker::new(Box::new(Busy(turns.clone())));
        let memory = [(GuestAddress(0), 0x1000)];
        worker.lock().start(Activation {
            memory: devices::virtio::Memory::from_ranges(&memory).unwrap(),
            rings: Vec::new(),
            features: 0,
            interrupt: Arc::new(Nobody),
        });
        let kicks: Arc<[EventFd]> = vec![event()].into();
        let mut events = EventManager::new_with_capacity(READY_EVENTS).unwrap();
        let id = events.add_subscriber(Loop {
            devices: vec![IoDevice::new(worker, kicks.clone())],
            again: VecDeque::new(),
            quiet: false,
            wake: event(),
            lost: None,
        });
        for round in 0..100 {
            kicks[0].write(1).unwrap();
            let wait = events.subscriber_mut(id).unwrap().turn();
            assert_eq!(wait, if round == 0 { -1 } else { 0 });
            events.run_with_timeout(wait).unwrap();
        }
        assert_eq!(events.subscriber_mut(id).unwrap().again.len(), 1);
        assert_eq!(turns.load(Ordering::Relaxed), 100);
        // After a pause everything is looked at once.
        let devices = events.subscriber_mut(id).unwrap();
        devices.quiesce();
        devices.resume();
        assert_eq!(devices.again.len(), 2, "the queue, and the host's side");
    }
}
