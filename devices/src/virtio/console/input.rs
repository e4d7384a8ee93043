//! Input on its way to the guest.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// Bytes that wait for the guest at most. What it has no room for stays with the sender.
pub const CAPACITY: usize = 4096;

/// Bytes that were typed and that the guest has not taken yet.
pub struct Input {
    waiting: Mutex<VecDeque<u8>>,
    /// Tells the device.
    wake: EventFd,
    /// Tells the sender.
    space: EventFd,
}

impl Input {
    pub(super) fn new(wake: EventFd, space: EventFd) -> Self {
        Self {
            waiting: Mutex::default(),
            wake,
            space,
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Offers input and returns how many bytes from its start were taken: less than all where the guest does not take what
    /// it was given before. The space event is signalled when it has.
    ///
    /// # Errors
    /// The device could not be told.
    pub fn offer(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut waiting = self.lock();
        let room = CAPACITY.saturating_sub(waiting.len());
        let (taken, _) = bytes.split_at(bytes.len().min(room));
        waiting.extend(taken);
        drop(waiting);
        if !taken.is_empty() {
            self.wake.write(1)?;
        }
        Ok(taken.len())
    }

    /// Whether nothing waits.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Hands over the next bytes, `most` at most. They are gone if `take` succeeds.
    pub(super) fn take<E>(
        &self,
        most: u64,
        take: impl FnOnce(&[u8]) -> Result<(), E>,
    ) -> Result<u32, E> {
        let mut waiting = self.lock();
        let count = waiting
            .len()
            .min(usize::try_from(most).unwrap_or(usize::MAX));
        let (bytes, _) = waiting.make_contiguous().split_at(count);
        take(bytes)?;
        waiting.drain(..count);
        if waiting.is_empty() {
            // It fails only where the counter is full, which says the same.
            let _ = self.space.write(1);
        }
        Ok(count as u32)
    }

    /// All that waits.
    pub(super) fn save(&self) -> Vec<u8> {
        self.lock().iter().copied().collect()
    }

    /// Only that waits from now on.
    pub(super) fn restore(&self, bytes: &[u8]) {
        let mut waiting = self.lock();
        waiting.clear();
        waiting.extend(bytes.iter().take(CAPACITY));
        // As above.
        let _ = self.wake.write(1);
    }
}
