//! What to run: the command as the guest gets it, and how it is written into a [`Frame::Start`](crate::frame::Frame).

use std::io;

/// A terminal for the command, as large as the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terminal {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// A command. Bytes throughout: nothing of it need be UTF-8.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandSpec {
    /// The program and its arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Its whole environment.
    pub environment: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where it starts.
    pub directory: Vec<u8>,
    /// Its file mode mask.
    pub umask: u32,
    /// Its terminal; without one its standard streams are pipes.
    pub terminal: Option<Terminal>,
}

impl CommandSpec {
    /// Numbers little endian, each list and each string after its length.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![];
        let number = |out: &mut Vec<u8>, value: usize| out.extend((value as u32).to_le_bytes());
        let string = |out: &mut Vec<u8>, value: &[u8]| {
            number(out, value.len());
            out.extend(value);
        };
        number(&mut out, self.arguments.len());
        for argument in &self.arguments {
            string(&mut out, argument);
        }
        number(&mut out, self.environment.len());
        for (name, value) in &self.environment {
            string(&mut out, name);
            string(&mut out, value);
        }
        string(&mut out, &self.directory);
        out.extend(self.umask.to_le_bytes());
        let (rows, columns) = self.terminal.map_or((0, 0), |t| (t.rows, t.columns));
        out.push(self.terminal.is_some().into());
        out.extend(rows.to_le_bytes());
        out.extend(columns.to_le_bytes());
        out
    }

    /// The inverse of [`encode`](Self::encode).
    pub fn decode(body: &[u8]) -> io::Result<Self> {
        let mut fields = Fields::new(body);
        let mut spec = CommandSpec::default();
        for _ in 0..fields.u32()? {
            spec.arguments.push(fields.string()?);
        }
        for _ in 0..fields.u32()? {
            spec.environment.push((fields.string()?, fields.string()?));
        }
        spec.directory = fields.string()?;
        spec.umask = fields.u32()?;
        let terminal = fields.u8()? != 0;
        let (rows, columns) = (fields.u16()?, fields.u16()?);
        spec.terminal = terminal.then_some(Terminal { rows, columns });
        Ok(spec)
    }
}

/// Reads fields off the front of a body.
#[derive(Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// All of `body` is to be read.
    pub fn new(body: &'a [u8]) -> Self {
        Fields(body)
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let (head, rest) = self
            .0
            .split_first_chunk()
            .ok_or_else(|| bad("a frame that ends early".into()))?;
        self.0 = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> io::Result<u8> {
        self.take().map(u8::from_le_bytes)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> io::Result<u16> {
        self.take().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> io::Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    /// A length, and as many bytes.
    pub fn string(&mut self) -> io::Result<Vec<u8>> {
        let length = self.u32()? as usize;
        let (head, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| bad("a frame that ends early".into()))?;
        self.0 = rest;
        Ok(head.to_vec())
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// The error for bytes that are not the protocol.
pub fn bad(what: String) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("broken protocol: {what}"),
    )
}
