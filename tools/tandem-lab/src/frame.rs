//! What host and guest say to each other: frames of one byte of kind, four of length (little endian), and a body.
//!
//! A session on a port is `Start`, then anything, until the guest's one `Exit`; then the host's `Done`, and the guest's
//! `Free`, after which the next may begin. The host never stops in the middle of a frame.

use std::io::{self, Read, Write};

use crate::spec::{self, CommandSpec, Fields};

/// The longest body there is: a `Start` with the largest arguments and environment that Linux allows.
pub const MAX_BODY: usize = 16 << 20;
/// The most that one data frame carries.
pub const MAX_DATA: usize = 32 << 10;
/// How much of its standard input a client may have under way: more only as the guest makes room.
pub const STDIN_WINDOW: usize = 256 << 10;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
    /// There is no such program.
    NotFound(String),
    /// It could not be executed.
    NotExecutable(String),
    /// The lab could not run it.
    Failed(String),
}

/// One message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Host: run this.
    Start(CommandSpec),
    /// Host: bytes for its standard input.
    Stdin(Vec<u8>),
    /// Host: no more of them.
    StdinEof,
    /// Guest: the command took this many bytes of its standard input.
    StdinRoom(u32),
    /// Supervisor: its turn has come, and it runs.
    Started,
    /// Guest: bytes from its standard output (or from its terminal).
    Stdout(Vec<u8>),
    /// Guest: bytes from its standard error.
    Stderr(Vec<u8>),
    /// Host: nobody reads standard output (1) or error (2) any more.
    CloseOutput(u8),
    /// Host: this signal is for the command's process group.
    Signal(u8),
    /// Host: the terminal now has this many rows and columns.
    WindowSize(u16, u16),
    /// Host: end the command and all it started.
    End,
    /// Guest: it ended; nothing follows.
    Exit(Exit),
    /// Host: the session is over.
    Done,
    /// Guest: the port is ready for another session.
    Free,
    /// Host: are you there?
    Ping,
    /// Guest: yes.
    Pong,
    /// Guest: the machine is up, and is this kernel.
    Hello(String),
    /// Client: stop the lab. Supervisor to guest: write everything out and power off.
    Shutdown,
    /// Client: how are you? Supervisor: like this.
    Status(String),
    /// The lab is dead, and why.
    Dead(String),
}

/// A lab that is up speaks the protocol of its day: whenever that changes, so does this number, and a program of another
/// day gets a clear answer instead of nonsense.
const START: u8 = 1;
const STDIN: u8 = 2;
const STDIN_EOF: u8 = 3;
const STDIN_ROOM: u8 = 4;
const STDOUT: u8 = 5;
const STDERR: u8 = 6;
const CLOSE_OUTPUT: u8 = 7;
const SIGNAL: u8 = 8;
const WINDOW_SIZE: u8 = 9;
const END: u8 = 10;
const EXIT: u8 = 11;
const DONE: u8 = 12;
const PING: u8 = 13;
const PONG: u8 = 14;
const HELLO: u8 = 15;
const SHUTDOWN: u8 = 16;
const STATUS: u8 = 17;
const DEAD: u8 = 18;
const STARTED: u8 = 19;
const FREE: u8 = 20;

impl Frame {
    /// The frame as it goes over the wire.
    pub fn encode(&self) -> Vec<u8> {
        let text = |kind, text: &String| (kind, text.clone().into_bytes());
        let (kind, body) = match self {
            Frame::Start(spec) => (START, spec.encode()),
            Frame::Stdin(data) => return data_frame(STDIN, data),
            Frame::StdinEof => (STDIN_EOF, vec![]),
            Frame::Started => (STARTED, vec![]),
            Frame::StdinRoom(count) => (STDIN_ROOM, count.to_le_bytes().to_vec()),
            Frame::Stdout(data) => return data_frame(STDOUT, data),
            Frame::Stderr(data) => return data_frame(STDERR, data),
            Frame::CloseOutput(stream) => (CLOSE_OUTPUT, vec![*stream]),
            Frame::Signal(number) => (SIGNAL, vec![*number]),
            Frame::WindowSize(rows, columns) => {
                let mut body = rows.to_le_bytes().to_vec();
                body.extend(columns.to_le_bytes());
                (WINDOW_SIZE, body)
            }
            Frame::End => (END, vec![]),
            Frame::Exit(exit) => (EXIT, encode_exit(exit)),
            Frame::Done => (DONE, vec![]),
            Frame::Free => (FREE, vec![]),
            Frame::Ping => (PING, vec![]),
            Frame::Pong => (PONG, vec![]),
            Frame::Hello(release) => text(HELLO, release),
            Frame::Shutdown => (SHUTDOWN, vec![]),
            Frame::Status(status) => text(STATUS, status),
            Frame::Dead(reason) => text(DEAD, reason),
        };
        data_frame(kind, &body)
    }

    fn decode(kind: u8, body: &[u8]) -> io::Result<Frame> {
        let text = || String::from_utf8_lossy(body).into_owned();
        let mut fields = Fields::new(body);
        let frame = match kind {
            START => Frame::Start(CommandSpec::decode(body)?),
            STDIN => Frame::Stdin(body.to_vec()),
            STDIN_EOF => Frame::StdinEof,
            STDIN_ROOM => Frame::StdinRoom(fields.u32()?),
            STARTED => Frame::Started,
            STDOUT => Frame::Stdout(body.to_vec()),
            STDERR => Frame::Stderr(body.to_vec()),
            CLOSE_OUTPUT => Frame::CloseOutput(fields.u8()?),
            SIGNAL => Frame::Signal(fields.u8()?),
            WINDOW_SIZE => Frame::WindowSize(fields.u16()?, fields.u16()?),
            END => Frame::End,
            EXIT => Frame::Exit(decode_exit(&mut fields)?),
            DONE => Frame::Done,
            FREE => Frame::Free,
            PING => Frame::Ping,
            PONG => Frame::Pong,
            HELLO => Frame::Hello(text()),
            SHUTDOWN => Frame::Shutdown,
            STATUS => Frame::Status(text()),
            DEAD => Frame::Dead(text()),
            _ => return Err(spec::bad(format!("unknown frame kind {kind}"))),
        };
        Ok(frame)
    }

    /// Writes the frame to a blocking stream.
    pub fn write_to(&self, mut stream: impl Write) -> io::Result<()> {
        stream.write_all(&self.encode())
    }

    /// Reads one frame from a blocking stream; `None` at its orderly end.
    pub fn read_from(mut stream: impl Read) -> io::Result<Option<Frame>> {
        let mut header = [0; 5];
        let mut have = 0;
        while have < header.len() {
            match stream.read(&mut header[have..]) {
                Ok(0) if have == 0 => return Ok(None),
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => have += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let (kind, length) = parse_header(header)?;
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        Frame::decode(kind, &body).map(Some)
    }
}

/// A frame around `body`, without a copy in between.
fn data_frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(5 + body.len());
    bytes.push(kind);
    bytes.extend((body.len() as u32).to_le_bytes());
    bytes.extend(body);
    bytes
}

fn parse_header(header: [u8; 5]) -> io::Result<(u8, usize)> {
    let [kind, a, b, c, d] = header;
    let length = u32::from_le_bytes([a, b, c, d]) as usize;
    if length > MAX_BODY {
        return Err(spec::bad(format!("a frame of {length} bytes")));
    }
    Ok((kind, length))
}

fn encode_exit(exit: &Exit) -> Vec<u8> {
    let (kind, number, text) = match exit {
        Exit::Code(code) => (0u8, *code, ""),
        Exit::Signal(signal) => (1, *signal, ""),
        Exit::NotFound(text) => (2, 0, text.as_str()),
        Exit::NotExecutable(text) => (3, 0, text.as_str()),
        Exit::Failed(text) => (4, 0, text.as_str()),
    };
    let mut body = vec![kind];
    body.extend(number.to_le_bytes());
    body.extend(text.as_bytes());
    body
}

fn decode_exit(fields: &mut Fields<'_>) -> io::Result<Exit> {
    let kind = fields.u8()?;
    let number = fields.u32()? as i32;
    let text = String::from_utf8_lossy(fields.rest()).into_owned();
    Ok(match kind {
        0 => Exit::Code(number),
        1 => Exit::Signal(number),
        2 => Exit::NotFound(text),
        3 => Exit::NotExecutable(text),
        4 => Exit::Failed(text),
        _ => return Err(spec::bad(format!("unknown kind of exit {kind}"))),
    })
}

/// Takes frames out of a byte stream that arrives in pieces.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if there is one.
    pub fn next_frame(&mut self) -> io::Result<Option<Frame>> {
        let rest = &self.buffer[self.start..];
        let Some((header, body)) = rest.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let (kind, length) = parse_header(*header)?;
        let Some(body) = body.get(..length) else {
            return Ok(None);
        };
        let frame = Frame::decode(kind, body)?;
        self.start += 5 + length;
        Ok(Some(frame))
    }

    /// Is there nothing left, not even part of a frame?
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Terminal;

    fn samples() -> Vec<Frame> {
        vec![
            Frame::Start(CommandSpec {
                arguments: vec![b"echo".to_vec(), b"a b\n\"'\xff".to_vec(), vec![]],
                environment: vec![
                    (b"PATH".to_vec(), b"/bin".to_vec()),
                    (b"E".to_vec(), vec![]),
                ],
                directory: b"/tmp/\xfe".to_vec(),
                umask: 0o27,
                terminal: Some(Terminal {
                    rows: 24,
                    columns: 80,
                }),
            }),
            Frame::Stdin(vec![0, 1, 255]),
            Frame::StdinEof,
            Frame::Started,
            Frame::StdinRoom(77),
            Frame::Stdout(vec![9; 70_000]),
            Frame::Stderr(vec![]),
            Frame::CloseOutput(1),
            Frame::Signal(2),
            Frame::WindowSize(50, 132),
            Frame::End,
            Frame::Exit(Exit::Code(-1)),
            Frame::Exit(Exit::Signal(9)),
            Frame::Exit(Exit::NotFound("no such".into())),
            Frame::Exit(Exit::NotExecutable("denied".into())),
            Frame::Exit(Exit::Failed("odd".into())),
            Frame::Done,
            Frame::Free,
            Frame::Ping,
            Frame::Pong,
            Frame::Hello("6.12".into()),
            Frame::Shutdown,
            Frame::Status("up".into()),
            Frame::Dead("because".into()),
        ]
    }

    #[test]
    fn frames_survive_any_fragmentation() {
        let stream: Vec<u8> = samples().iter().flat_map(Frame::encode).collect();
        for piece in [1, 2, 3, 7, 4096, stream.len()] {
            let mut decoder = Decoder::default();
            let mut seen = vec![];
            for part in stream.chunks(piece) {
                decoder.push(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push(frame);
                }
            }
            assert!(decoder.is_empty());
            assert_eq!(seen, samples());
        }
    }

    #[test]
    fn blocking_reads_see_the_same_frames_and_the_end() {
        let stream: Vec<u8> = samples().iter().flat_map(Frame::encode).collect();
        let mut reader = stream.as_slice();
        for expected in samples() {
            assert_eq!(Frame::read_from(&mut reader).unwrap(), Some(expected));
        }
        assert_eq!(Frame::read_from(&mut reader).unwrap(), None);
        assert!(Frame::read_from(&[STDIN, 9, 0, 0, 0, 1][..]).is_err());
    }

    #[test]
    fn nonsense_is_an_error() {
        let mut decoder = Decoder::default();
        decoder.push(&[STDIN, 255, 255, 255, 255]);
        assert!(decoder.next_frame().is_err());
        assert!(Frame::decode(99, &[]).is_err());
        assert!(Frame::decode(START, &[255; 8]).is_err());
        assert!(Frame::decode(WINDOW_SIZE, &[1]).is_err());
        assert!(Frame::decode(EXIT, &[0, 1]).is_err());
        assert!(Frame::decode(EXIT, &[9, 0, 0, 0, 0]).is_err());
    }
}
