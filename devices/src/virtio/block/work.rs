//! Jobs, and what makes their calls: one after the other at once, or io_uring.

use std::io;
use std::os::fd::BorrowedFd;

use super::super::Buffer;
use super::Engine;
use super::job::{Job, Next};
use super::uring::{MOST_UNDER_WAY, Uring};

/// The jobs of a device.
pub struct Work {
    ring: Option<Uring>,
    jobs: Vec<Job>,
    /// Jobs that are not in use.
    free: Vec<u16>,
    /// The buffers of the chain that was taken last.
    buffers: Vec<Buffer>,
    most_under_way: u64,
    /// Where there is no job: all is written to it, and nothing read from it.
    nowhere: Job,
}

impl Work {
    /// Jobs for calls by `engine`; `None` for io_uring where it can be had.
    ///
    /// # Errors
    /// io_uring was asked for and cannot be had.
    pub fn new(engine: Option<Engine>) -> io::Result<Self> {
        let ring = match engine {
            Some(Engine::Sync) => None,
            Some(Engine::Async) => Some(Uring::new()?),
            None => Uring::new()
                .inspect_err(|error| {
                    log::info!("no io_uring here ({error}): disks do one thing at a time")
                })
                .ok(),
        };
        Ok(Self {
            ring,
            jobs: Vec::new(),
            free: Vec::new(),
            buffers: Vec::new(),
            most_under_way: 0,
            nowhere: Job::default(),
        })
    }

    pub fn engine(&self) -> Engine {
        match self.ring {
            Some(_) => Engine::Async,
            None => Engine::Sync,
        }
    }

    /// Readable when calls have completed.
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.ring.as_ref().map(Uring::event)
    }

    /// A job that is not in use, if there is one. It stays free until a call of it is under way.
    pub fn slot(&mut self) -> Option<u16> {
        if let Some(slot) = self.free.last() {
            return Some(*slot);
        }
        let slot = self.jobs.len() as u16;
        (slot < self.most()).then(|| {
            self.jobs.push(Job::default());
            self.free.push(slot);
            slot
        })
    }

    /// Whether there is a job that is not in use.
    pub fn has_slot(&self) -> bool {
        !self.free.is_empty() || self.jobs.len() < usize::from(self.most())
    }

    /// How many jobs there are at most.
    fn most(&self) -> u16 {
        if self.ring.is_some() {
            MOST_UNDER_WAY
        } else {
            1
        }
    }

    /// A job, and the list of buffers that goes with all of them.
    pub fn job(&mut self, slot: u16) -> (&mut Job, &mut Vec<Buffer>) {
        let job = self.jobs.get_mut(usize::from(slot));
        (job.unwrap_or(&mut self.nowhere), &mut self.buffers)
    }

    /// Makes a job's calls, or begins to. `Some` when it is over.
    pub fn run(&mut self, slot: u16) -> Option<io::Result<()>> {
        let job = self.jobs.get_mut(usize::from(slot))?;
        loop {
            let at_once = job.at_once;
            let Some(call) = job.call() else {
                return Some(Ok(()));
            };
            match &mut self.ring {
                Some(ring) if !at_once && ring.works() => {
                    // SAFETY: a job's lists are not touched while it is not free and its completion was not taken;
                    // the device waits for its jobs before guest memory or the disk's file goes.
                    if let Err(error) = unsafe { ring.push(&call, slot.into()) } {
                        if !ring.works() {
                            continue;
                        }
                        return Some(Err(error));
                    }
                    if !job.under_way {
                        job.under_way = true;
                        // It is the last one, unless others were released since.
                        if self.free.pop_if(|free| *free == slot).is_none() {
                            self.free.retain(|free| *free != slot);
                        }
                        let under_way = self.jobs.len() - self.free.len();
                        self.most_under_way = self.most_under_way.max(under_way as u64);
                    }
                    return None;
                }
                _ => {
                    let result = call.make();
                    match job.result(result) {
                        Next::Call => {}
                        Next::Done => return Some(Ok(())),
                        Next::Failed(error) => return Some(Err(error)),
                    }
                }
            }
        }
    }

    /// Makes a job free.
    pub fn release(&mut self, slot: u16) {
        if let Some(job) = self.jobs.get_mut(usize::from(slot))
            && std::mem::take(&mut job.under_way)
        {
            self.free.push(slot);
        }
    }

    /// Gives the kernel all calls that were begun.
    pub fn submit(&mut self) {
        if let Some(ring) = &mut self.ring
            && let Err(error) = ring.submit()
        {
            // It is short of memory; the calls go with the next ones, or while these are waited for.
            log::debug!("io_uring takes no more for now: {error}");
        }
    }

    /// The next job that is over. What is not over yet goes on.
    pub fn reap(&mut self) -> Option<(u16, io::Result<()>)> {
        loop {
            let mut completion = self.ring.as_mut()?.completion();
            if completion.is_none() {
                // What was begun anew meanwhile. It comes back if the kernel takes no more.
                self.submit();
                completion = self.ring.as_mut()?.completion();
            }
            let (token, result) = completion?;
            let slot = token as u16;
            let next = self.jobs.get_mut(usize::from(slot))?.result(result);
            let over = match next {
                Next::Call => self.run(slot),
                Next::Done => Some(Ok(())),
                Next::Failed(error) => Some(Err(error)),
            };
            if let Some(result) = over {
                return Some((slot, result));
            }
        }
    }

    /// Whether calls are under way.
    pub fn under_way(&self) -> bool {
        self.ring.as_ref().is_some_and(|ring| ring.under_way() > 0)
    }

    /// Most jobs that have been under way at once.
    pub fn most_under_way(&self) -> u64 {
        self.most_under_way
    }

    /// Has the host's side looked at again.
    pub fn wake(&mut self) {
        if let Some(Err(error)) = self.ring.as_mut().map(Uring::wake) {
            log::error!("io_uring cannot wake its own thread: {error}");
        }
    }

    /// Waits until a call has completed; one must be under way.
    pub fn wait(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.wait();
        }
    }

    /// Waits for all calls. Nobody hears of their results, and all jobs are free.
    pub fn drain(&mut self) {
        while let Some(ring) = self.ring.as_mut().filter(|ring| ring.under_way() > 0) {
            if ring.completion().is_none() {
                ring.wait();
            }
        }
        // Nobody needs to be reminded of anything, either.
        while self.ring.as_mut().and_then(Uring::completion).is_some() {}
        self.jobs.clear();
        self.free.clear();
    }
}
