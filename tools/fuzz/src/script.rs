//! Bytes to the moves of a driver and its host, and back.
//!
//! Reading is total: what is missing at the end is zero, every number stands for something. It is plain on purpose, a
//! letter and fields of fixed widths, so that a fuzzer's small changes of an input are small changes of the script.

/// Bytes that are read from the front.
#[derive(Clone, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// All of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let bytes = self.bytes(N);
        array[..bytes.len()].copy_from_slice(bytes);
        array
    }

    /// A byte.
    pub fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    /// Four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// The next `count` bytes, or all where there are fewer.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// Bytes behind their number, of two bytes.
    pub fn counted(&mut self) -> Vec<u8> {
        let count = self.u16();
        self.bytes(count.into()).to_vec()
    }

    /// Items behind their number, which is below `most`.
    fn list<T>(&mut self, most: u8, item: impl Fn(&mut Self) -> T) -> Vec<T> {
        let count = self.u8() % most;
        (0..count).map(|_| item(self)).collect()
    }
}

/// A chain of buffers that is made available.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// The queue.
    pub queue: u8,
    /// By an indirect table.
    pub indirect: bool,
    /// The available index does not move yet; it does with the next chain that has this not set.
    pub held: bool,
    /// What the device reads.
    pub readable: Vec<u8>,
    /// So many times more of its last byte.
    pub padding: u16,
    /// Lengths of the buffers that hold it; the last one holds the rest.
    pub cuts: Vec<u16>,
    /// Lengths of the buffers that the device writes.
    pub writable: Vec<u16>,
    /// What is then made wrong about it.
    pub spoil: Option<Spoil>,
}

/// A field of a descriptor, or of the ring, that gets another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoil {
    /// Which descriptor of the chain.
    pub descriptor: u8,
    /// Which field: address, length, flags, next, the entry of the available ring, the available index.
    pub field: u8,
    /// The value.
    pub value: u64,
}

/// One thing that a driver or its host does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Makes a chain available.
    Offer(Chain),
    /// Kicks a queue.
    Kick(u8),
    /// Something happens on the host; the bytes say what, to the target.
    Host(Vec<u8>),
    /// Reads so many bytes of device-specific configuration.
    ReadConfig(u16, u8),
    /// Writes device-specific configuration.
    WriteConfig(u16, Vec<u8>),
    /// The operator changes the device; the bytes say how, to the target.
    Update(Vec<u8>),
    /// Resets the device and sets it up again: features to leave out, largest queue size, queues to leave out.
    Restart(u64, u16, u8),
    /// Saves the device and carries on with another one.
    Migrate,
    /// Writes to memory, anywhere.
    Poke(u64, Vec<u8>),
    /// Sets the flags and the used event of a queue.
    Events(u8, u16, u16),
    /// Resets a queue and starts it again, with another size.
    RestartQueue(u8, u16),
    /// A pause and its end.
    Quiesce,
}

impl Move {
    /// Reads one.
    pub fn read(from: &mut Reader) -> Self {
        match from.u8() % 16 {
            0..=4 => Self::Offer(Chain::read(from)),
            5 | 6 => Self::Kick(from.u8()),
            7 => Self::Host(from.counted()),
            8 => Self::ReadConfig(from.u16(), from.u8()),
            9 => Self::WriteConfig(from.u16(), from.counted()),
            10 => Self::Update(from.counted()),
            11 => Self::Restart(from.u64(), from.u16(), from.u8()),
            12 => Self::Migrate,
            13 => Self::Poke(from.u64(), from.counted()),
            14 => Self::Events(from.u8(), from.u16(), from.u16()),
            _ => match from.u8() % 2 {
                0 => Self::RestartQueue(from.u8(), from.u16()),
                _ => Self::Quiesce,
            },
        }
    }

    /// Appends its bytes.
    pub fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Offer(chain) => {
                to.push(0);
                chain.write(to);
            }
            Self::Kick(queue) => to.extend([5, *queue]),
            Self::Host(bytes) => {
                to.push(7);
                counted(to, bytes);
            }
            Self::ReadConfig(offset, len) => {
                to.push(8);
                to.extend(offset.to_le_bytes());
                to.push(*len);
            }
            Self::WriteConfig(offset, bytes) => {
                to.push(9);
                to.extend(offset.to_le_bytes());
                counted(to, bytes);
            }
            Self::Update(bytes) => {
                to.push(10);
                counted(to, bytes);
            }
            Self::Restart(without, size, queues) => {
                to.push(11);
                to.extend(without.to_le_bytes());
                to.extend(size.to_le_bytes());
                to.push(*queues);
            }
            Self::Migrate => to.push(12),
            Self::Poke(at, bytes) => {
                to.push(13);
                to.extend(at.to_le_bytes());
                counted(to, bytes);
            }
            Self::Events(queue, flags, event) => {
                to.extend([14, *queue]);
                to.extend(flags.to_le_bytes());
                to.extend(event.to_le_bytes());
            }
            Self::RestartQueue(queue, size) => {
                to.extend([15, 0, *queue]);
                to.extend(size.to_le_bytes());
            }
            Self::Quiesce => to.extend([15, 1]),
        }
    }

    /// The bytes of a script that begins with a target's own choice.
    pub fn script(choice: u8, moves: &[Self]) -> Vec<u8> {
        let mut bytes = vec![choice];
        for one in moves {
            one.write(&mut bytes);
        }
        bytes
    }
}

fn counted(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend((bytes.len() as u16).to_le_bytes());
    to.extend(bytes);
}

const INDIRECT: u8 = 1;
const HELD: u8 = 2;
/// Three bits, so that few chains are spoiled.
const SPOILT: u8 = 0x1c;

impl Chain {
    /// One that the device reads `readable` of and may write buffers of these lengths.
    pub fn new(queue: u8, readable: &[u8], writable: &[u16]) -> Self {
        Self {
            queue,
            readable: readable.to_vec(),
            writable: writable.to_vec(),
            ..Self::default()
        }
    }

    /// The move that makes it available.
    pub fn offer(self) -> Move {
        Move::Offer(self)
    }

    fn read(from: &mut Reader) -> Self {
        let (queue, flags) = (from.u8(), from.u8());
        let (cuts, writable) = (from.list(24, Reader::u16), from.list(24, Reader::u16));
        let padding = from.u16();
        let spoil = (flags & SPOILT == SPOILT).then(|| Spoil {
            descriptor: from.u8(),
            field: from.u8(),
            value: from.u64(),
        });
        Self {
            queue,
            indirect: flags & INDIRECT != 0,
            held: flags & HELD != 0,
            readable: from.counted(),
            padding,
            cuts,
            writable,
            spoil,
        }
    }

    fn write(&self, to: &mut Vec<u8>) {
        let flag = |set: bool, bits: u8| if set { bits } else { 0 };
        let flags = flag(self.indirect, INDIRECT) | flag(self.held, HELD);
        to.extend([self.queue, flags | flag(self.spoil.is_some(), SPOILT)]);
        for list in [&self.cuts, &self.writable] {
            to.push(list.len() as u8);
            to.extend(list.iter().flat_map(|len| len.to_le_bytes()));
        }
        to.extend(self.padding.to_le_bytes());
        if let Some(spoil) = self.spoil {
            to.extend([spoil.descriptor, spoil.field]);
            to.extend(spoil.value.to_le_bytes());
        }
        counted(to, &self.readable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let chain = Chain {
            queue: 3,
            indirect: true,
            held: true,
            readable: vec![1, 2, 3],
            padding: 300,
            cuts: vec![1, 1],
            writable: vec![512, 1],
            spoil: Some(Spoil {
                descriptor: 1,
                field: 2,
                value: u64::MAX,
            }),
        };
        let moves = [
            chain.offer(),
            Chain::new(0, &[], &[64]).offer(),
            Move::Kick(1),
            Move::Host(vec![1]),
            Move::ReadConfig(8, 4),
            Move::WriteConfig(8, vec![1]),
            Move::Update(vec![]),
            Move::Restart(1 << 40, 16, 1),
            Move::Migrate,
            Move::Poke(0x1_0000, vec![5; 20]),
            Move::Events(1, 1, 7),
            Move::RestartQueue(1, 8),
            Move::Quiesce,
        ];
        let bytes = Move::script(7, &moves);
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u8(), 7);
        for expected in &moves {
            assert_eq!(&Move::read(&mut reader), expected);
        }
        assert!(reader.is_empty());
        // Beyond the end everything is zero.
        assert_eq!(Move::read(&mut reader), Chain::default().offer());
    }
}
