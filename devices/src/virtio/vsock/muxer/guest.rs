//! Packets for the guest: whose turn it is.

use std::time::Instant;

use super::super::super::{Broken, Cursor};
use super::super::packet::{HOST_CID, Header, TYPE_STREAM, op};
use super::{Key, Muxer};

/// The next packet for the guest.
pub enum Next {
    /// There is none.
    Nothing,
    /// One without data.
    Control(Header),
    /// Data: at most so many bytes, for which so many chains are worth a try.
    Data {
        /// Bytes.
        room: u32,
        /// Chains.
        chains: usize,
    },
}

impl Muxer {
    /// The next packet for the guest. [`told`](Self::told) or [`read`](Self::read) has to follow, unless there is no room
    /// for it: then it is the next one again.
    pub fn next_packet(&mut self) -> Next {
        if let Some(header) = self.strays.front() {
            return Next::Control(*header);
        }
        while let Some(key) = self.ready.front().copied() {
            if let Some(connection) = self.connections.get_mut(&key) {
                if let Some((op, flags)) = connection.control() {
                    let base = self.base(key);
                    let connection = self.connections.get_mut(&key);
                    if let Some(connection) = connection {
                        return Next::Control(connection.header(&base, op, flags, 0));
                    }
                } else if connection.wants_data() {
                    let (room, chains) = connection.room();
                    return Next::Data { room, chains };
                } else {
                    connection.listed = false;
                }
            }
            self.ready.pop_front();
        }
        Next::Nothing
    }

    /// What all headers of a connection have.
    fn base(&self, key: Key) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.guest_cid,
            src_port: key.host,
            dst_port: key.guest,
            kind: TYPE_STREAM,
            ..Header::default()
        }
    }

    /// The guest has got the packet that [`next_packet`](Self::next_packet) has returned.
    pub fn told(&mut self, header: &Header, now: Instant) {
        self.counts.packets_to_guest += 1;
        if self.strays.pop_front().is_some() {
            return;
        }
        if let Some(key) = self.ready.pop_front()
            && let Some(connection) = self.connections.get_mut(&key)
        {
            connection.listed = false;
            connection.told(header.op, header.flags, now);
            self.settle(key);
        }
    }

    /// Reads data of the connection whose turn it is into `rooms`, and calls `put` for each room that has got some, with
    /// its number and the header for it. Returns how many have.
    ///
    /// # Errors
    /// [`Broken`]: a room is not in memory; what `put` returns.
    pub fn read(
        &mut self,
        rooms: &[Cursor],
        mut put: impl FnMut(usize, &Header) -> Result<(), Broken>,
    ) -> Result<usize, Broken> {
        let Some(key) = self.ready.pop_front() else {
            return Ok(0);
        };
        let base = self.base(key);
        let Some(connection) = self.connections.get_mut(&key) else {
            return Ok(0);
        };
        connection.listed = false;
        let bytes = connection.read(rooms, &mut self.pieces)?;
        let mut left = bytes;
        let mut used = 0;
        for (index, room) in rooms.iter().enumerate() {
            if left == 0 {
                break;
            }
            // No more than was read.
            let here = u64::from(left).min(room.len()) as u32;
            put(index, &connection.header(&base, op::RW, 0, here))?;
            left -= here;
            used += 1;
        }
        self.counts.packets_to_guest += used as u64;
        self.counts.bytes_to_guest += u64::from(bytes);
        self.settle(key);
        Ok(used)
    }
}
