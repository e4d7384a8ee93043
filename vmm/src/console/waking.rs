//! A writer that is woken when there is room, for a device that does not wait.

use std::io::{self, Write};
use std::sync::Arc;

use devices::legacy::serial;
use vmm_sys_util::eventfd::EventFd;

use super::{Output, Pending, Shared};

/// A virtio console's side of an [`Output`].
pub struct WakingWriter(Arc<Shared>);

impl Output {
    /// A writer for a virtio console. When it has said that it is congested, `wake` is signalled once it is not. An output has
    /// one at most.
    pub fn waking_writer(&self, wake: EventFd) -> WakingWriter {
        self.shared.lock().wake = Some(wake);
        WakingWriter(self.shared.clone())
    }
}

impl Pending {
    /// There is room, or nobody takes anything any more.
    pub(super) fn tell_of_room(&mut self) {
        if std::mem::take(&mut self.wanted)
            && let Some(wake) = &self.wake
        {
            // It fails only where the counter is full, which says the same.
            let _ = wake.write(1);
        }
    }
}

impl Write for WakingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.append(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl serial::Output for WakingWriter {
    fn is_congested(&self) -> bool {
        let mut state = self.0.lock();
        // Under the same lock as the writing thread's look: no room comes unseen.
        state.wanted = state.is_full();
        state.wanted
    }
}
