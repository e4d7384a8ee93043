//! Answering requests, giving their chains back, and not forgetting queues that wait for a job to be free.

use std::io;

use vm_memory::Bytes;

use super::super::{Broken, Progress};
use super::Block;
use super::job::{Job, Kind};
use super::request::Outcome;

impl Block {
    /// Counts and answers a job that is over.
    pub(super) fn finish(&mut self, slot: u16, result: io::Result<()>) -> Result<(), Broken> {
        let (job, _) = self.work.job(slot);
        let outcome = match result {
            Ok(()) => {
                self.counts.count(job);
                Outcome::Ok
            }
            Err(error) => {
                if job.kind == Kind::Sync {
                    self.disk.sync_failed(&error);
                }
                if self.log.allow() {
                    let (id, path) = (&self.options.id, self.options.disk.path.display());
                    log::error!(
                        "drive {id} ({path}): {} of {} bytes failed: {error}",
                        job.verb(),
                        job.bytes
                    );
                }
                Job::outcome(&error)
            }
        };
        self.answer(slot, outcome)
    }

    /// Writes the status and lists the chain to be given back; the job is free then.
    pub(super) fn answer(&mut self, slot: u16, outcome: Outcome) -> Result<(), Broken> {
        let origin = self.work.job(slot).0.origin;
        self.work.release(slot);
        if outcome != Outcome::Ok {
            self.counts.errors += 1;
        }
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let written = active
            .activation
            .memory
            .write_obj(outcome.byte(), origin.status);
        written.map_err(|_| Broken("a buffer is not in memory"))?;
        let queue = active.queues.get_mut(usize::from(origin.queue));
        if let Some(queue) = queue.and_then(Option::as_mut) {
            let written = match outcome {
                Outcome::Ok => origin.written,
                // The status, and nothing that the driver should look at.
                _ => 1,
            };
            queue.done.push((origin.head, written));
        }
        Ok(())
    }

    /// Answers what is complete.
    pub(super) fn reap(&mut self) -> Result<(), Broken> {
        while let Some((slot, result)) = self.work.reap() {
            self.finish(slot, result)?;
        }
        Ok(())
    }

    /// Gives back what was answered, with an interrupt for each queue that wants one.
    pub(super) fn give_back(&mut self) -> Result<(), Broken> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        for (index, queue) in (0_u16..).zip(&mut active.queues) {
            let Some(queue) = queue.as_mut().filter(|queue| !queue.done.is_empty()) else {
                continue;
            };
            queue.ring.give_back_all(&queue.done)?;
            queue.done.clear();
            if queue.ring.wants_interrupt()? {
                active.activation.interrupt.used(index);
            }
        }
        Ok(())
    }

    /// Waits for everything that is under way, and answers it.
    pub(super) fn settle(&mut self) -> Result<(), Broken> {
        self.reap()?;
        while self.work.under_way() {
            self.work.wait();
            self.reap()?;
        }
        Ok(())
    }

    /// Takes from a queue, and answers what is complete.
    pub(super) fn turn(&mut self, queue: u16) -> Result<Progress, Broken> {
        let progress = self.take(queue)?;
        self.work.submit();
        self.reap()?;
        self.give_back()?;
        Ok(progress)
    }

    /// Serves queues that have waited for a job to be free. When the last job is over nothing of the host's tells any
    /// more, so none may be left waiting while one is free.
    pub(super) fn serve_waiting(&mut self) -> Result<Progress, Broken> {
        let mut all = Progress::Done;
        for index in 0..self.sizes.len() {
            if !self.work.has_slot() {
                break;
            }
            let queue = self.active.as_mut().and_then(|active| {
                let queue = active.queues.get_mut(index)?.as_mut()?;
                std::mem::take(&mut queue.waits).then_some(())
            });
            if queue.is_none() {
                continue;
            }
            match self.turn(index as u16)? {
                Progress::Done => {}
                Progress::More => {
                    // Its turn comes again with this side's.
                    self.wait_on(index);
                    all = Progress::More;
                }
                Progress::Wait(time) => {
                    if all == Progress::Done {
                        all = Progress::Wait(time);
                    }
                    self.wait_on(index);
                }
            }
        }
        if all == Progress::Done && self.has_waiting() && self.work.has_slot() {
            all = Progress::More;
        }
        Ok(all)
    }

    /// Has the host's side looked at where a queue waits for jobs that are all free by now: no completion will tell. A
    /// queue's reset on a vCPU's thread comes to that.
    pub(super) fn remind(&mut self) {
        if !self.work.under_way() && self.has_waiting() {
            self.work.wake();
        }
    }

    fn has_waiting(&self) -> bool {
        let mut queues = self.active.iter().flat_map(|active| &active.queues);
        queues.any(|queue| queue.as_ref().is_some_and(|queue| queue.waits))
    }

    /// Has a queue looked at when the host's side comes again.
    fn wait_on(&mut self, index: usize) {
        let active = self.active.as_mut();
        let queue = active.and_then(|active| active.queues.get_mut(index));
        if let Some(queue) = queue.and_then(Option::as_mut) {
            queue.waits = true;
        }
    }
}
