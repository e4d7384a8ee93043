//! Sending: frames from the driver to the host (5.1.6.2).

use std::io;
use std::time::Instant;

use super::header::{self, Unsound};
use super::link::Link;
use crate::mmds::{self, Stack};
use crate::virtio::{Broken, Buffer, Cursor, IoVec, Memory, Ring, RingState};

/// One transmit queue.
pub struct Tx {
    ring: Ring,
    buffers: Vec<Buffer>,
    pieces: Vec<IoVec>,
    /// The host has no room, and tells when it has.
    pub blocked: bool,
}

/// What came of an attempt to send a frame.
#[derive(Debug)]
pub enum Sent {
    /// A frame of so many bytes, without the header.
    Frame(u64),
    /// A frame of so many bytes for the metadata service.
    Metadata(u64),
    /// A frame, which was dropped for that reason.
    Dropped(Unsound),
    /// A frame, which the host did not take.
    Failed(io::Error),
    /// There is none; the driver has been asked for a kick.
    Nothing,
    /// The host has no room. The frame waits.
    NoRoom,
}

impl Tx {
    /// With nothing sent.
    pub fn new(ring: Ring) -> Self {
        Self {
            ring,
            buffers: Vec::new(),
            pieces: Vec::new(),
            blocked: false,
        }
    }

    /// Carries on from `position`.
    pub fn restore(&mut self, position: RingState) {
        self.ring.restore(position);
    }

    /// Whether the driver wants to hear of what was sent.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        self.ring.wants_interrupt()
    }

    /// Position of the queue.
    pub fn position(&self) -> RingState {
        self.ring.save()
    }

    /// Tries to send one frame, over the link's queue of `pair`, or to the metadata service. Without a link, all others go nowhere.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn send(
        &mut self,
        memory: &Memory,
        features: u64,
        link: Option<&mut Link>,
        pair: usize,
        mmds: Option<&mut Stack>,
    ) -> Result<Sent, Broken> {
        self.blocked = false;
        let Some(head) = self.ring.pop_or_ask(&mut self.buffers)? else {
            return Ok(Sent::Nothing);
        };
        let readable = self.buffers.partition_point(|buffer| !buffer.writable);
        let readable = self.buffers.get(..readable).unwrap_or_default();
        let mut frame = Cursor::new(memory, readable);
        let checked = match header::check_len(frame.len()) {
            Ok(()) => {
                let mut bytes = [0; header::LEN];
                frame.read(&mut bytes)?;
                header::check(bytes, frame.len() as usize, features)
            }
            Err(unsound) => Err(unsound),
        };
        let metadata = match mmds {
            Some(stack) if checked.is_ok() => divert(&frame, stack)?,
            _ => false,
        };
        let sent = match (checked, link) {
            (Err(unsound), _) => Sent::Dropped(unsound),
            (Ok(_), _) if metadata => Sent::Metadata(frame.len()),
            (Ok(_), None) => Sent::Failed(io::ErrorKind::NotConnected.into()),
            (Ok(header), Some(link)) => {
                match transmit(&header, &frame, link, pair, &mut self.pieces) {
                    Ok(()) => Sent::Frame(frame.len()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.ring.put_back(1);
                        self.blocked = true;
                        return Ok(Sent::NoRoom);
                    }
                    Err(error) => Sent::Failed(error),
                }
            }
        };
        self.ring.give_back(head, 0)?;
        Ok(sent)
    }
}

/// Gives the metadata service a frame that is for it. False if it is not.
fn divert(frame: &Cursor, stack: &mut Stack) -> Result<bool, Broken> {
    let mut start = [0; mmds::START];
    let len = frame.len().min(mmds::START as u64) as usize;
    let start = start.get_mut(..len).unwrap_or_default();
    frame.clone().read(start)?;
    if !stack.is_for_it(start) {
        return Ok(false);
    }
    // Its length was checked; what is in it may be something else by now, and the service looks again.
    let mut bytes = vec![0; frame.len() as usize];
    frame.clone().read(&mut bytes)?;
    stack.take(&bytes, Instant::now());
    Ok(true)
}

fn transmit(
    header: &[u8; header::LEN],
    frame: &Cursor,
    link: &mut Link,
    pair: usize,
    pieces: &mut Vec<IoVec>,
) -> io::Result<()> {
    let tap = match link {
        Link::Passt(passt) => return passt.send(frame, pieces),
        Link::Tap(tap) => tap,
        Link::Vhost(_) => return Err(io::ErrorKind::Unsupported.into()),
    };
    pieces.clear();
    // The header that was checked, not the one in guest memory, which the guest may change meanwhile.
    pieces.push(IoVec(libc::iovec {
        iov_base: header.as_ptr().cast_mut().cast(),
        iov_len: header::LEN,
    }));
    let missing = |_| io::Error::from(io::ErrorKind::InvalidData);
    frame.io_vecs(pieces).map_err(missing)?;
    // SAFETY: the header is borrowed, the frame's pieces are guest memory that its cursor borrows.
    let result = unsafe { tap.send(pair, pieces) };
    pieces.clear();
    result
}
