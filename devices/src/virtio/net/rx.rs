//! Receiving: frames from the host into the driver's buffers (5.1.6.3, 5.1.6.4).
//!
//! A tap's frames are read into guest memory at once. Nobody tells how long the next one is, so the buffers that are held
//! out are made to be enough for the longest of the last frames, and a `spare` of the host's catches what is beyond: it is
//! copied to further buffers then, or dropped with its frame.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::link::Link;
use super::{feature, header};
use crate::virtio::{Broken, Buffer, Cursor, IoVec, Memory, Ring, RingState};

/// Bytes of the longest frame with its header.
const MOST: usize = header::LEN + header::LONGEST_FRAME;
/// Bytes that are held out at least: a frame of the usual MTU.
const LEAST: usize = 2048;
/// Pieces up to which buffers are held out. A chain has 513 at most, and the kernel takes 1024, the spare among them.
const PIECES: usize = 500;
/// How long a frame waits for buffers.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Frames after which the longest of them is forgotten.
const MEMORY_OF_LENGTHS: u32 = 128;

/// One receive queue.
pub struct Rx {
    ring: Ring,
    /// Chains that are held out, in the driver's order.
    posted: VecDeque<Posted>,
    /// Their memory, from `first` on.
    pieces: Vec<IoVec>,
    first: usize,
    /// Bytes of all of them.
    room: usize,
    /// A frame that the driver has not had buffers for yet.
    held: Option<Held>,
    spare: Vec<u8>,
    lengths: Lengths,
    buffers: Vec<Buffer>,
    given: Vec<(u16, u32)>,
    /// The driver has no buffers, and kicks when it has.
    pub starved: bool,
    /// A limit holds it up.
    pub throttled: bool,
}

/// A chain that is held out.
#[derive(Clone, Copy, Debug)]
struct Posted {
    head: u16,
    room: usize,
    pieces: usize,
    /// Where the header's `flags` and the bytes of its `num_buffers` are.
    marks: [GuestAddress; 3],
}

/// A frame that is partly in guest memory, or not at all.
#[derive(Clone, Debug)]
struct Held {
    /// Bytes, with the header.
    total: usize,
    /// Bytes that are in the posted chains.
    placed: usize,
    source: Source,
    /// When it came.
    since: Instant,
}

/// Where the rest of a held frame is.
#[derive(Clone, Debug)]
enum Source {
    /// In the spare, whose first byte is this byte of the frame.
    Spare(usize),
    /// In passt's buffer, without a header.
    Passt(Range<usize>),
    /// Here, without a header.
    Own(Vec<u8>),
}

/// What came of an attempt to receive a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A frame of so many bytes, without the header.
    Frame(usize),
    /// A frame, which was dropped: it does not fit the driver's buffers.
    Dropped,
    /// There is none.
    Nothing,
    /// The driver has no buffers (any more); it has been asked for a kick.
    NoBuffers,
}

/// Why there is no frame.
#[derive(Debug)]
pub enum Failed {
    /// The driver's fault.
    Broken(Broken),
    /// The host's.
    Host(io::Error),
}

impl From<Broken> for Failed {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl Rx {
    /// With nothing held out.
    pub fn new(ring: Ring) -> Self {
        Self {
            ring,
            posted: VecDeque::new(),
            pieces: Vec::new(),
            first: 0,
            room: 0,
            held: None,
            spare: Vec::new(),
            lengths: Lengths::default(),
            buffers: Vec::new(),
            given: Vec::new(),
            starved: false,
            throttled: false,
        }
    }

    /// Carries on from `position`, with nothing held out.
    pub fn restore(&mut self, position: RingState) {
        self.put_back();
        self.held = None;
        self.ring.restore(position);
    }

    /// Position of the queue, as if nothing was held out.
    pub fn position(&self) -> RingState {
        let mut position = self.ring.save();
        let held = self.posted.len() as u16;
        position.next_avail = position.next_avail.wrapping_sub(held);
        position
    }

    /// Whether a frame waits for buffers: it is to be looked at again after [`PATIENCE`].
    pub fn holds(&self) -> bool {
        self.held.is_some()
    }

    /// Whether the driver wants to hear of what it was given.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        self.ring.wants_interrupt()
    }

    /// Tries to receive one frame.
    ///
    /// # Errors
    /// [`Failed`].
    pub fn receive(
        &mut self,
        memory: &Memory,
        features: u64,
        link: &mut Link,
        pair: usize,
    ) -> Result<Received, Failed> {
        if self.held.is_none()
            && let Some(result) = self.fetch(memory, features, link, pair)?
        {
            return Ok(result);
        }
        Ok(self.place(memory, features, link)?)
    }

    /// Receives a frame that was made here. Nothing is held: [`holds`](Self::holds).
    ///
    /// # Errors
    /// [`Failed`].
    pub fn receive_own(
        &mut self,
        memory: &Memory,
        features: u64,
        link: &Link,
        frame: Vec<u8>,
    ) -> Result<Received, Failed> {
        // Chains that are held out for a tap come after those of this frame.
        self.put_back();
        self.held = Some(Held {
            total: header::LEN + frame.len(),
            placed: 0,
            source: Source::Own(frame),
            since: Instant::now(),
        });
        Ok(self.place(memory, features, link)?)
    }

    /// Fetches a frame from the host. `None`: it is held, and still to be placed.
    fn fetch(
        &mut self,
        memory: &Memory,
        features: u64,
        link: &mut Link,
        pair: usize,
    ) -> Result<Option<Received>, Failed> {
        let tap = match link {
            Link::Tap(tap) => tap,
            Link::Vhost(_) => return Ok(Some(Received::Nothing)),
            Link::Passt(passt) => {
                let frame = match passt.receive() {
                    Ok(frame) => frame,
                    Err(error) => return nothing(error),
                };
                self.held = Some(Held {
                    total: header::LEN + frame.len(),
                    placed: 0,
                    source: Source::Passt(frame),
                    since: Instant::now(),
                });
                return Ok(None);
            }
        };
        let several = features & feature::MRG_RXBUF != 0;
        let wanted = if several { self.lengths.longest() } else { 1 };
        let front = loop {
            while self.room < wanted && self.pieces.len() - self.first < PIECES {
                if !self.post(memory)? {
                    break;
                }
            }
            if let Some(front) = self.posted.front() {
                break front;
            }
            if !self.ring.ask_for_kick()? {
                self.starved = true;
                return Ok(Some(Received::NoBuffers));
            }
        };
        let room = if several { self.room } else { front.room };
        let held_out = if several {
            self.pieces.len()
        } else {
            self.first + front.pieces
        };
        if self.spare.is_empty() {
            self.spare = vec![0; MOST + 1];
        }
        self.pieces.insert(held_out, spare_piece(&mut self.spare));
        let pieces = self.pieces.get(self.first..=held_out).unwrap_or_default();
        // SAFETY: the pieces are guest memory that `memory` keeps, checked to be there, and the spare, which is ours.
        let result = unsafe { tap.receive(pair, pieces) };
        self.pieces.remove(held_out);
        let total = match result {
            Ok(total) => total,
            Err(error) => return nothing(error),
        };
        if !(header::LEN + header::SHORTEST_FRAME..=MOST).contains(&total) {
            return Ok(Some(Received::Dropped));
        }
        self.lengths.note(total);
        if total <= room {
            self.complete(memory, features, total)?;
            return Ok(Some(Received::Frame(total - header::LEN)));
        }
        if !several {
            return Ok(Some(Received::Dropped));
        }
        self.held = Some(Held {
            total,
            placed: room,
            source: Source::Spare(room),
            since: Instant::now(),
        });
        Ok(None)
    }

    /// Copies the rest of the held frame to the driver's next buffers.
    fn place(&mut self, memory: &Memory, features: u64, link: &Link) -> Result<Received, Broken> {
        let several = features & feature::MRG_RXBUF != 0;
        let Some(mut held) = self.held.take() else {
            return Ok(Received::Nothing);
        };
        loop {
            if held.placed >= held.total {
                self.complete(memory, features, held.total)?;
                return Ok(Received::Frame(held.total - header::LEN));
            }
            if !several && !self.posted.is_empty() {
                break;
            }
            if !self.post(memory)? {
                // A kick may be an old one: only time tells that the driver has no more.
                let all = self.posted.len() >= usize::from(self.ring.size());
                if all || held.since.elapsed() >= PATIENCE {
                    break;
                }
                if !self.ring.ask_for_kick()? {
                    self.starved = true;
                    self.held = Some(held);
                    return Ok(Received::NoBuffers);
                }
                continue;
            }
            let room = self.posted.back().map_or(0, |chain| chain.room);
            let end = held.total.min(held.placed + room);
            let mut chain = Cursor::new(memory, &self.buffers);
            for piece in held.source.bytes(held.placed..end, &self.spare, link) {
                chain.write(piece)?;
            }
            held.placed = end;
        }
        // The driver can have its buffers for the next one.
        self.put_back();
        Ok(Received::Dropped)
    }

    /// Holds the driver's next chain out. False if there is none.
    fn post(&mut self, memory: &Memory) -> Result<bool, Broken> {
        let Some(head) = self.ring.pop(&mut self.buffers)? else {
            return Ok(false);
        };
        let marks = marks(&self.buffers)?;
        let before = self.pieces.len();
        let chain = Cursor::new(memory, &self.buffers).take(MOST as u64);
        chain.io_vecs(&mut self.pieces)?;
        let room = chain.len() as usize;
        self.posted.push_back(Posted {
            head,
            room,
            pieces: self.pieces.len() - before,
            marks,
        });
        self.room += room;
        Ok(true)
    }

    /// Gives the driver a frame of `total` bytes that is in the posted chains: all of them at once (5.1.6.4.1).
    fn complete(&mut self, memory: &Memory, features: u64, total: usize) -> Result<(), Broken> {
        let marks = self.posted.front().map(|chain| chain.marks);
        self.given.clear();
        let mut left = total;
        while left > 0 {
            let Some(chain) = self.posted.pop_front() else {
                break;
            };
            let used = left.min(chain.room);
            left -= used;
            self.room -= chain.room;
            self.first += chain.pieces;
            self.given.push((chain.head, used as u32));
        }
        if self.posted.is_empty() {
            self.pieces.clear();
            self.first = 0;
        } else if self.first > PIECES {
            self.pieces.drain(..self.first);
            self.first = 0;
        }
        if let Some([flags, low, high]) = marks {
            let missing = |_| Broken("a buffer is not in memory");
            let [count_0, count_1] = (self.given.len() as u16).to_le_bytes();
            memory.write_obj(count_0, low).map_err(missing)?;
            memory.write_obj(count_1, high).map_err(missing)?;
            // 5.1.6.4.1: nothing is said of checksums to a driver that does not know it.
            if features & feature::GUEST_CSUM == 0 {
                memory.write_obj(0_u8, flags).map_err(missing)?;
            }
        }
        self.ring.give_back_all(&self.given)
    }

    /// Holds nothing out any more.
    fn put_back(&mut self) {
        self.ring.put_back(self.posted.len() as u16);
        self.posted.clear();
        self.pieces.clear();
        (self.first, self.room) = (0, 0);
    }
}

/// What an error of the host's means.
fn nothing(error: io::Error) -> Result<Option<Received>, Failed> {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Some(Received::Nothing)),
        _ => Err(Failed::Host(error)),
    }
}

fn spare_piece(spare: &mut [u8]) -> IoVec {
    IoVec(libc::iovec {
        iov_base: spare.as_mut_ptr().cast(),
        iov_len: spare.len(),
    })
}

impl Source {
    /// The bytes of the frame in that range, in two parts: of the header, and of the rest.
    fn bytes<'a>(&'a self, range: Range<usize>, spare: &'a [u8], link: &'a Link) -> [&'a [u8]; 2] {
        match self {
            Self::Spare(first) => {
                let within = range.start - first..range.end - first;
                [&[], spare.get(within).unwrap_or_default()]
            }
            Self::Passt(frame) => {
                let Link::Passt(passt) = link else {
                    return [&[], &[]];
                };
                behind_header(passt.frame(frame.clone()), range)
            }
            Self::Own(frame) => behind_header(frame, range),
        }
    }
}

/// The bytes in that range of an empty header with a frame behind it.
fn behind_header(frame: &[u8], range: Range<usize>) -> [&[u8]; 2] {
    let head = range.start.min(header::LEN)..range.end.min(header::LEN);
    let body = range.start.saturating_sub(header::LEN)..range.end.saturating_sub(header::LEN);
    let head = [0; header::LEN].as_slice().get(head);
    [
        head.unwrap_or_default(),
        frame.get(body).unwrap_or_default(),
    ]
}

/// Where `flags` and the two bytes of `num_buffers` are in a chain.
fn marks(buffers: &[Buffer]) -> Result<[GuestAddress; 3], Broken> {
    if buffers.first().is_some_and(|buffer| !buffer.writable) {
        return Err(Broken("a readable buffer is in a receive queue"));
    }
    let mut marks = [0, header::NUM_BUFFERS, header::NUM_BUFFERS + 1].map(GuestAddress);
    for mark in &mut marks {
        let mut offset = mark.0;
        let mut found = None;
        for buffer in buffers {
            if offset < buffer.len.into() {
                // The buffer is in memory, so its addresses do not overflow.
                found = Some(GuestAddress(buffer.address.0.wrapping_add(offset)));
                break;
            }
            offset -= u64::from(buffer.len);
        }
        // 5.1.6.3.1: a buffer has room for the header at least.
        *mark = found.ok_or(Broken("a receive buffer is shorter than its header"))?;
    }
    Ok(marks)
}

/// The longest of the last frames, between one and two times [`MEMORY_OF_LENGTHS`] of them.
#[derive(Default)]
struct Lengths {
    now: usize,
    before: usize,
    count: u32,
}

impl Lengths {
    fn note(&mut self, len: usize) {
        self.now = self.now.max(len);
        self.count += 1;
        if self.count == MEMORY_OF_LENGTHS {
            *self = Self {
                now: 0,
                before: self.now,
                count: 0,
            };
        }
    }

    fn longest(&self) -> usize {
        self.now.max(self.before).max(LEAST)
    }
}
