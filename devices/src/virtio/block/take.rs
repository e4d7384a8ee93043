//! Taking requests from a queue, and beginning what they need.

use std::io;
use std::time::Instant;

use super::super::{Broken, Progress};
use super::disk::{Clear, Place};
use super::job::{Kind, Origin};
use super::request::{self, ID_BYTES, Outcome, Request};
use super::{Block, disk};

/// Chains that are taken before it is another queue's turn.
const CHAINS_A_TURN: usize = 64;
/// Bytes to be read, written and cleared after which it is: that may be done at once, while everybody else waits.
const BYTES_A_TURN: u64 = 16 << 20;

/// What a request that was taken needs next.
enum Todo {
    Transfer { write: bool, at: u64 },
    Flush,
    Clear { how: Clear },
    Answer(Outcome),
}

impl Block {
    /// Takes requests of a queue and begins them.
    pub(super) fn take(&mut self, index: u16) -> Result<Progress, Broken> {
        let mut moved = 0;
        for _ in 0..CHAINS_A_TURN {
            if moved >= BYTES_A_TURN {
                return Ok(Progress::More);
            }
            let Some(active) = &mut self.active else {
                return Ok(Progress::Done);
            };
            let queue = active.queues.get_mut(usize::from(index));
            let Some(queue) = queue.and_then(Option::as_mut) else {
                return Ok(Progress::Done);
            };
            if !self.limiter.is_unlimited()
                && let Err(wait) = self.limiter.admit(Instant::now())
            {
                self.counts.throttled += 1;
                return Ok(Progress::Wait(wait));
            }
            let Some(slot) = self.work.slot() else {
                queue.waits = true;
                return Ok(Progress::Done);
            };
            let (job, buffers) = self.work.job(slot);
            let Some(head) = queue.ring.pop_or_ask(buffers)? else {
                return Ok(Progress::Done);
            };
            let memory = &active.activation.memory;
            job.begin();
            let parsed = request::parse(memory, buffers, &active.limits, &mut job.ranges)?;
            job.origin = Origin {
                queue: index,
                head,
                written: parsed.written,
                status: parsed.status,
            };
            let todo = match parsed.request {
                Request::Read { at, data } => {
                    data.io_vecs(&mut job.pieces)?;
                    job.bytes = data.len();
                    Todo::Transfer { write: false, at }
                }
                Request::Write { at, data } => {
                    data.io_vecs(&mut job.pieces)?;
                    job.bytes = data.len();
                    Todo::Transfer { write: true, at }
                }
                Request::Flush => Todo::Flush,
                Request::Identify { mut data } => {
                    let bytes = identification(&self.options.id);
                    let len = data.len().min(ID_BYTES as u64) as usize;
                    data.write(bytes.get(..len).unwrap_or_default())?;
                    Todo::Answer(Outcome::Ok)
                }
                Request::Discard => Todo::Clear {
                    how: Clear::Discard,
                },
                Request::WriteZeroes => Todo::Clear { how: Clear::Zero },
                Request::Refused(outcome) => Todo::Answer(outcome),
            };
            let cleared = job.ranges.iter().map(|range| range.len).sum::<u64>();
            moved += job.bytes + cleared;
            self.limiter.charge(match todo {
                // They may have to be written; without them the guest would write them itself.
                Todo::Clear { how: Clear::Zero } => cleared,
                // A discard moves no bytes, and a guest gives back a whole disk at once: it is one request.
                _ => job.bytes,
            });
            self.begin(slot, todo)?;
        }
        Ok(Progress::More)
    }

    /// Begins what a request needs, and answers it if it is over at once.
    fn begin(&mut self, slot: u16, todo: Todo) -> Result<(), Broken> {
        let durable = self.durable();
        let result = match todo {
            Todo::Answer(outcome) => return self.answer(slot, outcome),
            Todo::Transfer { write, at } => {
                let (job, _) = self.work.job(slot);
                job.kind = if write {
                    Kind::Write { durable }
                } else {
                    Kind::Read
                };
                match self.disk.place(write, at, &job.pieces) {
                    Place::File { fd, at } => {
                        (job.fd, job.at) = (fd, at);
                        // To copy into the page cache takes less time than to have a kernel thread do it, as io_uring does
                        // on most file systems: half the time for 4 KiB, measured on ext4.
                        job.at_once = !(write && durable) && self.disk.at_once(write);
                        self.work.run(slot)
                    }
                    place => {
                        if place == Place::InsideAlone {
                            self.settle()?;
                        }
                        let (job, _) = self.work.job(slot);
                        let mut result = self.disk.transfer(write, at, &job.pieces);
                        if write && durable && result.is_ok() {
                            result = self.sync_disk();
                        }
                        Some(result)
                    }
                }
            }
            Todo::Flush => match self.disk.before_sync() {
                Ok(fd) => {
                    let (job, _) = self.work.job(slot);
                    (job.kind, job.fd) = (Kind::Sync, fd);
                    self.work.run(slot)
                }
                Err(error) => Some(Err(error)),
            },
            Todo::Clear { how } => self.clear(slot, how, durable)?,
        };
        match result {
            Some(result) => self.finish(slot, result),
            None => Ok(()),
        }
    }

    /// Begins to clear a job's ranges; `Some` if it is over at once.
    fn clear(
        &mut self,
        slot: u16,
        how: Clear,
        durable: bool,
    ) -> Result<Option<io::Result<()>>, Broken> {
        let (job, _) = self.work.job(slot);
        job.kind = match how {
            Clear::Discard => Kind::Discard,
            Clear::Unmap | Clear::Zero => Kind::Zero,
        };
        job.bytes = job.ranges.iter().map(|range| range.len).sum();
        job.sync_after = durable;
        if let Some(fd) = self.disk.clears_in(how) {
            job.fd = fd;
            return Ok(self.work.run(slot));
        }
        self.settle()?;
        let (job, _) = self.work.job(slot);
        let mut result = Ok(());
        for range in &job.ranges {
            let how = match how {
                Clear::Zero if range.unmap => Clear::Unmap,
                how => how,
            };
            result = result.and_then(|()| self.disk.clear(how, range.at, range.len));
        }
        if durable {
            result = result.and_then(|()| self.sync_disk());
        }
        Ok(Some(result))
    }

    /// Makes safe what was written, at once.
    pub(super) fn sync_disk(&mut self) -> io::Result<()> {
        let fd = self.disk.before_sync()?;
        disk::sync(fd).inspect_err(|error| self.disk.sync_failed(error))
    }
}

/// The first 20 bytes of the id, filled with zeros (5.2.6, `VIRTIO_BLK_T_GET_ID`).
fn identification(id: &str) -> [u8; ID_BYTES] {
    let mut bytes = [0; ID_BYTES];
    for (to, from) in bytes.iter_mut().zip(id.bytes()) {
        *to = from;
    }
    bytes
}
