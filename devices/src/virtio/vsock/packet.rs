//! Packets (5.10.6): a header, and the payload behind it.

use super::super::{Broken, Cursor};

/// Bytes of a header (`struct virtio_vsock_hdr`).
pub const HEADER_LEN: usize = 44;
/// CID of the host (5.10.4).
pub const HOST_CID: u64 = 2;
/// Type of stream sockets (5.10.6.2).
pub const TYPE_STREAM: u16 = 1;
/// A port that no socket has (`VMADDR_PORT_ANY` of linux/vm_sockets.h).
pub const PORT_ANY: u32 = u32::MAX;

/// Operations (5.10.6).
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Answers that with yes.
    pub const RESPONSE: u16 = 2;
    /// There is no such connection, or no more.
    pub const RST: u16 = 3;
    /// No more data will be sent or received, as the flags say.
    pub const SHUTDOWN: u16 = 4;
    /// Data.
    pub const RW: u16 = 5;
    /// Tells the sender's buffer space.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for the receiver's buffer space.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`] (5.10.6.6).
pub mod shutdown {
    /// The sender will not receive any more.
    pub const RECEIVE: u32 = 1;
    /// The sender will not send any more.
    pub const SEND: u32 = 2;
    /// Both.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// CID of the sender.
    pub src_cid: u64,
    /// CID of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of the payload.
    pub len: u32,
    /// Type of the sockets.
    pub kind: u16,
    /// Operation: one of [`op`], or anything.
    pub op: u16,
    /// What the operation makes of it.
    pub flags: u32,
    /// Bytes of the sender's buffer for this connection.
    pub buf_alloc: u32,
    /// Bytes that the sender has taken out of that buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

/// Takes the first `N` bytes of what is left. Callers stay within the header.
fn piece<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk::<N>() {
        Some((first, later)) => {
            *rest = later;
            *first
        }
        None => [0; N],
    }
}

impl Header {
    /// Reads the wire format. Any bytes are a header.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut rest = bytes.as_slice();
        let rest = &mut rest;
        Self {
            src_cid: u64::from_le_bytes(piece(rest)),
            dst_cid: u64::from_le_bytes(piece(rest)),
            src_port: u32::from_le_bytes(piece(rest)),
            dst_port: u32::from_le_bytes(piece(rest)),
            len: u32::from_le_bytes(piece(rest)),
            kind: u16::from_le_bytes(piece(rest)),
            op: u16::from_le_bytes(piece(rest)),
            flags: u32::from_le_bytes(piece(rest)),
            buf_alloc: u32::from_le_bytes(piece(rest)),
            fwd_cnt: u32::from_le_bytes(piece(rest)),
        }
    }

    /// The wire format.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        let all = fields.into_iter().flatten();
        for (to, from) in bytes.iter_mut().zip(all) {
            *to = *from;
        }
        bytes
    }

    /// Reads the header of the packet in `chain`, which may be cut anywhere. Returns it with the payload; what is in the
    /// chain behind that is left out (5.10.6).
    ///
    /// # Errors
    /// [`Broken`]: the chain is shorter than a header, or than the header says.
    pub fn read<'a>(chain: &mut Cursor<'a>) -> Result<(Self, Cursor<'a>), Broken> {
        let mut bytes = [0; HEADER_LEN];
        chain.read(&mut bytes)?;
        let header = Self::from_bytes(&bytes);
        if chain.len() < u64::from(header.len) {
            return Err(Broken("a packet is shorter than its header says"));
        }
        Ok((header, chain.take(header.len.into())))
    }

    /// What is sent back to the sender of this: the same connection and type, the other way round.
    #[must_use]
    pub fn reply(&self, op: u16) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vm_memory::{Bytes, GuestAddress};

    use super::super::super::Buffer;
    use super::super::super::testing::memory;
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let bytes: [u8; HEADER_LEN] = std::array::from_fn(|index| index as u8);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(
            (header.src_port, header.dst_port),
            (0x1312_1110, 0x1716_1514)
        );
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!((header.kind, header.op), (0x1d1c, 0x1f1e));
        assert_eq!(header.flags, 0x2322_2120);
        assert_eq!(
            (header.buf_alloc, header.fwd_cnt),
            (0x2726_2524, 0x2b2a_2928)
        );
        assert_eq!(header.to_bytes(), bytes);
    }

    proptest! {
        /// A header that is cut over descriptors at any place is read whole, with its payload and no more.
        #[test]
        fn cuts_do_not_matter(
            cuts in prop::collection::vec(0_u32..30, 1..9),
            len in 0_u32..100,
        ) {
            let memory = memory();
            let header = Header { len, op: op::RW, src_cid: 3, fwd_cnt: 7, ..Header::default() };
            let mut bytes = header.to_bytes().to_vec();
            bytes.extend((0..len).map(|index| index as u8));
            let mut buffers = Vec::new();
            let mut put = 0;
            for (index, cut) in cuts.iter().enumerate() {
                let address = GuestAddress(0x1000 * (index as u64 + 1));
                let end = (put + *cut as usize).min(bytes.len());
                memory.write_slice(&bytes[put..end], address).unwrap();
                put = end;
                buffers.push(Buffer { address, len: *cut, writable: false });
            }
            let total: u32 = cuts.iter().sum();
            let mut chain = Cursor::new(&memory, &buffers);
            match Header::read(&mut chain) {
                Ok((read, mut payload)) => {
                    prop_assert_eq!(read, header);
                    prop_assert_eq!(payload.len(), u64::from(len));
                    let mut got = vec![0; len as usize];
                    payload.read(&mut got).unwrap();
                    prop_assert_eq!(&got[..], &bytes[HEADER_LEN..]);
                }
                Err(_) => prop_assert!(total < HEADER_LEN as u32 + len),
            }
        }
    }
}
