//! A command's standard streams: three pipes, or one terminal.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::process::{Command, Stdio};

use crate::frame::{Frame, MAX_DATA};
use crate::spec::Terminal;
use crate::sys::{self, terminal::open_terminal};

/// The command's ends of its standard streams; a terminal is both input and output.
#[derive(Default)]
pub struct Streams {
    pub stdin: Option<File>,
    pub stdout: Option<File>,
    pub stderr: Option<File>,
    pub terminal: bool,
}

/// Three pipes for the command.
pub fn pipes(command: &mut Command) -> io::Result<Streams> {
    let (stdin_read, stdin_write) = sys::pipe()?;
    let (stdout_read, stdout_write) = sys::pipe()?;
    let (stderr_read, stderr_write) = sys::pipe()?;
    command
        .stdin(stdin_read)
        .stdout(stdout_write)
        .stderr(stderr_write);
    for file in [&stdin_write, &stdout_read, &stderr_read] {
        sys::set_nonblocking(file)?;
    }
    Ok(Streams {
        stdin: Some(stdin_write),
        stdout: Some(stdout_read),
        stderr: Some(stderr_read),
        terminal: false,
    })
}

/// A terminal for the command.
pub fn terminal(command: &mut Command, size: Terminal) -> io::Result<Streams> {
    let (ours, theirs) = open_terminal(size)?;
    sys::set_nonblocking(&ours)?;
    command
        .stdin(theirs.try_clone()?)
        .stdout(theirs.try_clone()?)
        .stderr(Stdio::from(theirs));
    Ok(Streams {
        stdin: Some(ours.try_clone()?),
        stdout: Some(ours),
        stderr: None,
        terminal: true,
    })
}

/// Moves what one read gives; `false` when there is nothing now. A stream at its end is closed.
pub fn read_stream(
    stream: &mut Option<File>,
    outgoing: &mut VecDeque<u8>,
    frame: impl Fn(Vec<u8>) -> Frame,
) -> io::Result<bool> {
    let Some(file) = stream else { return Ok(false) };
    let mut bytes = vec![0; MAX_DATA];
    match file.read(&mut bytes) {
        Ok(count) if count > 0 => {
            bytes.truncate(count);
            outgoing.extend(frame(bytes).encode());
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        // EIO is how a terminal says that its last user is gone.
        Err(error) if error.raw_os_error() != Some(libc::EIO) => Err(error),
        _ => {
            *stream = None;
            Ok(false)
        }
    }
}
