//! Answers that come later, and streams.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::message::Response;
use super::service::Ticket;

/// Most bytes of streams that wait for the loop, in all. The loop takes them within a turn; only one that stands still has more.
const MOST_BYTES: usize = 1 << 20;

/// The way into the server from any thread, and from the loop itself. A clone leads to the same server.
#[derive(Clone, Debug)]
pub struct Outbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    wake: EventFd,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    letters: VecDeque<(Ticket, Letter)>,
    /// Bytes of chunks among the letters.
    bytes: usize,
}

/// What goes to a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Letter {
    /// The whole answer.
    Response(Response),
    /// A piece of a stream.
    Chunk(Vec<u8>),
    /// A piece had to be thrown away, and the stream is no longer whole.
    Lost,
    /// The stream is complete.
    End,
}

impl Outbox {
    /// An outbox, for the service and for the server.
    ///
    /// # Errors
    /// There is no descriptor to be had for the eventfd.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(Shared {
            wake: EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?,
            queue: Mutex::default(),
        })))
    }

    /// Answers a request whose answer was to come [`Later`](super::Answer::Later). Nothing happens if the client is gone.
    pub fn send(&self, ticket: Ticket, response: Response) {
        self.put(ticket, Letter::Response(response));
    }

    /// Adds to a stream. A client that does not read fast enough is dropped, which
    /// [`Service::gone`](super::Service::gone) tells; nobody waits for it.
    pub fn chunk(&self, ticket: Ticket, bytes: Vec<u8>) {
        // An empty chunk would end the stream (RFC 9112, 7.1).
        if !bytes.is_empty() {
            self.put(ticket, Letter::Chunk(bytes));
        }
    }

    /// Completes a stream.
    pub fn end(&self, ticket: Ticket) {
        self.put(ticket, Letter::End);
    }

    fn put(&self, ticket: Ticket, letter: Letter) {
        let mut queue = self.queue();
        let letter = match letter {
            Letter::Chunk(bytes) if queue.bytes.saturating_add(bytes.len()) > MOST_BYTES => {
                // One word for the stream is enough.
                if queue.letters.contains(&(ticket, Letter::Lost)) {
                    return;
                }
                Letter::Lost
            }
            letter => letter,
        };
        if let Letter::Chunk(bytes) = &letter {
            queue.bytes += bytes.len();
        }
        let first = queue.letters.is_empty();
        queue.letters.push_back((ticket, letter));
        drop(queue);
        if first {
            self.wake();
        }
    }

    /// Has the loop look here.
    pub(super) fn wake(&self) {
        // Fails only where the count is full, and then the loop is awake.
        let _ = self.0.wake.write(1);
    }

    /// Takes everything, after [`Self::wake`] was noticed.
    pub(super) fn take(&self) -> VecDeque<(Ticket, Letter)> {
        let _ = self.0.wake.read();
        let mut queue = self.queue();
        queue.bytes = 0;
        std::mem::take(&mut queue.letters)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // The queue is whole between any two statements.
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsRawFd for Outbox {
    fn as_raw_fd(&self) -> RawFd {
        self.0.wake.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_keep_their_order_and_wake_the_loop() {
        let outbox = Outbox::new().unwrap();
        let ticket = Ticket { slot: 1, serial: 2 };
        outbox.chunk(ticket, b"a".to_vec());
        outbox.chunk(ticket, Vec::new());
        outbox.clone().end(ticket);
        outbox.send(Ticket::default(), Response::empty(204));
        assert_eq!(outbox.0.wake.read().unwrap(), 1);
        outbox.wake();
        let letters = [
            (ticket, Letter::Chunk(b"a".to_vec())),
            (ticket, Letter::End),
            (Ticket::default(), Letter::Response(Response::empty(204))),
        ];
        assert_eq!(outbox.take(), letters);
        assert!(outbox.0.wake.read().is_err());
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn a_loop_that_stands_still_does_not_fill_the_memory() {
        let outbox = Outbox::new().unwrap();
        let ticket = Ticket::default();
        for _ in 0..100 {
            outbox.chunk(ticket, vec![0; MOST_BYTES / 2]);
        }
        let letters = outbox.take();
        assert_eq!(letters.len(), 3);
        assert_eq!(letters[2].1, Letter::Lost);
        outbox.chunk(ticket, vec![0; MOST_BYTES]);
        assert_eq!(outbox.take().len(), 1);
    }
}
