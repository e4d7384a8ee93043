//! A tap whose queues are served by the host's kernel, an instance of `/dev/vhost-net` for each pair. Kicks reach it and
//! interrupts leave it without this process; only control commands, and what goes wrong, are the device's.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::OpenError;
use super::kernel::{self, Events, VhostNet};
use super::monitor::Monitor;
use super::tap::Tap;
use crate::virtio::{Broken, Interrupt, Memory, Ring, RingState};

/// The tap and its servants.
#[derive(Debug)]
pub struct Vhost {
    tap: Tap,
    nets: Vec<VhostNet>,
    features: u64,
    /// By number of the queue.
    kicks: Arc<[EventFd]>,
    queues: Vec<Option<Queue>>,
    /// Signalled where a ring is impossible.
    error: EventFd,
    monitor: Monitor,
}

#[derive(Debug)]
struct Queue {
    /// Its position is that of the last stop.
    ring: Ring,
    call: EventFd,
    /// Whether the call has to be handed on by the device.
    forwarded: bool,
    running: bool,
}

impl Vhost {
    /// Has the kernel serve that tap's queues.
    ///
    /// # Errors
    /// [`OpenError`], with the remedy.
    pub fn new(tap: Tap) -> Result<Self, OpenError> {
        let nets: Result<Vec<_>, _> = (0..tap.queues()).map(|_| VhostNet::open()).collect();
        let nets = nets?;
        let unusable = |error| OpenError {
            problem: "cannot use /dev/vhost-net".into(),
            error,
            remedy: "give backend \"tap\"".into(),
        };
        let features = nets.iter().try_fold(kernel::FEATURES, |all, net| {
            net.features().map(|features| all & features)
        });
        Ok(Self {
            tap,
            features: features.map_err(unusable)?,
            nets,
            kicks: Arc::default(),
            queues: Vec::new(),
            error: event().map_err(unusable)?,
            monitor: Monitor::new().map_err(unusable)?,
        })
    }

    /// The tap.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// The same, to be changed.
    pub fn tap_mut(&mut self) -> &mut Tap {
        &mut self.tap
    }

    /// `offered` without what the kernel does not have.
    pub fn possible(&self, offered: u64) -> u64 {
        offered & (self.features | !kernel::FEATURES)
    }

    /// The kick of each queue.
    pub fn set_kicks(&mut self, kicks: &Arc<[EventFd]>) {
        self.kicks = kicks.clone();
    }

    /// Whether it serves that queue of the device's.
    pub fn serves(&self, queue: u16) -> bool {
        usize::from(queue) < 2 * self.nets.len()
    }

    /// Descriptors that are readable when [`look`](Self::look) has something to do.
    pub fn fds(&self) -> impl Iterator<Item = RawFd> {
        let calls = self.queues.iter().flatten().filter(|queue| queue.forwarded);
        [self.error.as_raw_fd(), self.monitor.fd()]
            .into_iter()
            .chain(calls.map(|queue| queue.call.as_raw_fd()))
    }

    /// Takes the driver's queues, by number. None of them runs yet.
    ///
    /// # Errors
    /// Of the kernel.
    pub fn activate(
        &mut self,
        memory: &Memory,
        features: u64,
        rings: impl Iterator<Item = Option<Ring>>,
        interrupt: &dyn Interrupt,
    ) -> io::Result<()> {
        for net in &self.nets {
            net.set_up(features, memory)?;
        }
        self.queues.clear();
        for (number, ring) in (0_u16..).zip(rings.take(2 * self.nets.len())) {
            let queue = ring.map(|ring| Queue::new(number, ring, interrupt));
            self.queues.push(queue.transpose()?);
        }
        Ok(())
    }

    /// Takes a queue that was not in use.
    ///
    /// # Errors
    /// The host is out of descriptors.
    pub fn add(&mut self, number: u16, ring: Ring, interrupt: &dyn Interrupt) -> io::Result<()> {
        let queue = Queue::new(number, ring, interrupt)?;
        if let Some(slot) = self.queues.get_mut(usize::from(number)) {
            *slot = Some(queue);
        }
        Ok(())
    }

    /// Drops a queue. Nothing of it is under way then.
    pub fn remove(&mut self, number: u16) {
        // Stopping a queue that runs does not fail.
        let _ = self.run(number.into(), None);
        if let Some(slot) = self.queues.get_mut(usize::from(number)) {
            *slot = None;
        }
    }

    /// Drops all queues.
    pub fn reset(&mut self) {
        for number in 0..self.queues.len() {
            let _ = self.run(number, None);
        }
        self.queues.clear();
        // What was signalled has no meaning any more.
        let _ = self.error.read();
    }

    /// Has the queues of the first `pairs` pairs run, and no others. Returns the first error.
    ///
    /// # Errors
    /// Of the kernel: that queue does not run.
    pub fn settle(&mut self, memory: &Memory, pairs: u16) -> io::Result<()> {
        let mut result = Ok(());
        for number in 0..self.queues.len() {
            let wanted = number < 2 * usize::from(pairs);
            let done = self.run(number, wanted.then_some(memory));
            result = result.and(done);
        }
        result
    }

    /// Starts a queue in that memory, or stops it.
    fn run(&mut self, number: usize, memory: Option<&Memory>) -> io::Result<()> {
        let pair = number / 2;
        let index = (number % 2) as u32;
        let (Some(Some(queue)), Some(net)) = (self.queues.get_mut(number), self.nets.get(pair))
        else {
            return Ok(());
        };
        match memory {
            Some(memory) if !queue.running => {
                let missing = || io::Error::from(io::ErrorKind::NotFound);
                let events = Events {
                    kick: self.kicks.get(number).ok_or_else(missing)?,
                    call: &queue.call,
                    error: &self.error,
                };
                let backend = self.tap.fd(pair).ok_or_else(missing)?;
                net.start(index, memory, &queue.ring, &events, backend)?;
                queue.running = true;
            }
            None if queue.running => {
                queue.running = false;
                let next = net.stop(index)?;
                // All that was taken was given back.
                queue.ring.restore(RingState {
                    next_avail: next,
                    next_used: next,
                });
            }
            _ => {}
        }
        Ok(())
    }

    /// Position of a queue that stands still.
    pub fn position(&self, number: usize) -> Option<RingState> {
        let queue = self.queues.get(number)?.as_ref();
        queue.map(|queue| queue.ring.save())
    }

    /// Has a queue that stands still carry on from `position`.
    pub fn restore(&mut self, number: usize, position: RingState) {
        if let Some(Some(queue)) = self.queues.get_mut(number) {
            queue.ring.restore(position);
        }
    }

    /// Looks at what the kernel has to say: hands calls on. False if the tap is gone.
    ///
    /// # Errors
    /// [`Broken`]: a ring is impossible.
    pub fn look(&self, interrupt: Option<&dyn Interrupt>) -> Result<bool, Broken> {
        for (number, queue) in (0_u16..).zip(&self.queues) {
            if let (Some(queue), Some(interrupt)) = (queue, interrupt)
                && queue.forwarded
                && queue.call.read().is_ok()
            {
                interrupt.used(number);
            }
        }
        if self.error.read().is_ok() {
            return Err(Broken("the host's kernel cannot follow a ring"));
        }
        Ok(!self.monitor.take() || self.tap.is_there())
    }
}

impl Queue {
    fn new(number: u16, ring: Ring, interrupt: &dyn Interrupt) -> io::Result<Self> {
        let direct = interrupt.used_event(number);
        Ok(Self {
            ring,
            forwarded: direct.is_none(),
            call: match direct {
                Some(event) => event,
                None => event()?,
            },
            running: false,
        })
    }
}

fn event() -> io::Result<EventFd> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
}
