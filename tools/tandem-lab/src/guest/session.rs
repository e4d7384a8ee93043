//! One command: started, fed, listened to, and ended with everything that it started where that is asked for.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::process::Command;
use std::time::{Duration, Instant};

use super::start_failure;
use super::streams::{Streams, pipes, read_stream, terminal};
use crate::frame::{Decoder, Exit, Frame, MAX_DATA};
use crate::spec::{CommandSpec, Terminal};
use crate::sys::machine;
use crate::sys::process::{self, ChildSetup, Signals};
use crate::sys::{self, terminal as tty};

/// Nothing more is read from the command while this much waits for the host.
const OUTPUT_LIMIT: usize = 256 << 10;
/// How long a command that is to end has between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);

/// Runs `spec` and speaks on `port` until the host says `Done`.
pub fn run(port: &mut File, decoder: Decoder, spec: &CommandSpec, root: &File) -> io::Result<()> {
    // What the command starts and leaves behind becomes ours, and can be found.
    process::prctl(libc::PR_SET_CHILD_SUBREAPER, 1)?;
    let children = Signals::of(&[libc::SIGCHLD]);
    children.block()?;
    let mut session = Session {
        port: port.try_clone()?,
        decoder,
        outgoing: VecDeque::new(),
        signals: children.descriptor()?,
        streams: Streams::default(),
        stdin: VecDeque::new(),
        stdin_eof: false,
        pid: 0,
        ended: None,
        end_at: None,
    };
    match session.start(spec) {
        // What came together with the start is here already: nothing more need come that would wake the relay.
        Ok(()) => session.obey_buffered()?,
        Err(exit) => session.ended = Some(exit),
    }
    session.relay()?;
    let exit = session
        .ended
        .take()
        .unwrap_or(Exit::Failed("the command's end was not seen".into()));
    // What the command wrote is the host's before the host hears that it ended.
    machine::sync_file_system(root)?;
    session.finish(exit)
}

struct Session {
    port: File,
    decoder: Decoder,
    outgoing: VecDeque<u8>,
    signals: File,
    streams: Streams,
    stdin: VecDeque<u8>,
    stdin_eof: bool,
    pid: i32,
    ended: Option<Exit>,
    end_at: Option<Instant>,
}

impl Session {
    fn start(&mut self, spec: &CommandSpec) -> Result<(), Exit> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let failed = |what: &str, error: io::Error| Exit::Failed(format!("{what}: {error}"));
        let [program, arguments @ ..] = spec.arguments.as_slice() else {
            return Err(Exit::Failed("no command was given".into()));
        };
        std::env::set_current_dir(OsStr::from_bytes(&spec.directory)).map_err(|error| {
            let directory = text(&spec.directory);
            Exit::Failed(format!(
                "the working directory {directory} cannot be entered in the lab: {error} \
                 (/run, /var/tmp and /dev are the lab's own)"
            ))
        })?;
        let mut command = Command::new(OsStr::from_bytes(program));
        command
            .args(arguments.iter().map(|argument| OsStr::from_bytes(argument)))
            .env_clear();
        let pair = |(name, value): &(Vec<u8>, Vec<u8>)| {
            (
                OsStr::from_bytes(name).to_owned(),
                OsStr::from_bytes(value).to_owned(),
            )
        };
        command.envs(spec.environment.iter().map(pair));
        let setup = ChildSetup {
            umask: Some(spec.umask),
            new_session: true,
            controlling_terminal: spec.terminal.is_some(),
            ordinary: true,
            ..ChildSetup::default()
        };
        process::set_up_child(&mut command, setup, vec![]);
        let streams = match spec.terminal {
            Some(size) => terminal(&mut command, size),
            None => pipes(&mut command),
        };
        self.streams = streams.map_err(|error| failed("making the standard streams", error))?;
        // The child is reaped with all others, by its number.
        self.pid = command
            .spawn()
            .map_err(|error| start_failure(&error, &text(program)))?
            .id() as i32;
        // Nothing of us may keep the host's tree busy.
        std::env::set_current_dir("/").map_err(|error| failed("/", error))
    }

    /// Carries bytes both ways until the command has ended and all it wrote is on its way.
    fn relay(&mut self) -> io::Result<()> {
        while self.ended.is_none() {
            let room = self.outgoing.len() < OUTPUT_LIMIT;
            let of = |file: &Option<File>, wanted| match file {
                Some(file) if wanted => file.as_raw_fd(),
                _ => -1,
            };
            let has_input = !self.stdin.is_empty();
            let port_events = if self.outgoing.is_empty() {
                libc::POLLIN
            } else {
                libc::POLLIN | libc::POLLOUT
            };
            let mut entries = [
                sys::poll_entry(self.port.as_raw_fd(), port_events),
                sys::poll_entry(self.signals.as_raw_fd(), libc::POLLIN),
                sys::poll_entry(of(&self.streams.stdout, room), libc::POLLIN),
                sys::poll_entry(of(&self.streams.stderr, room), libc::POLLIN),
                sys::poll_entry(of(&self.streams.stdin, has_input), libc::POLLOUT),
            ];
            sys::poll(&mut entries, self.timeout())?;
            if entries[0].revents & (libc::POLLIN | libc::POLLHUP) != 0 {
                self.read_port()?;
            }
            if entries[4].revents != 0 {
                self.feed()?;
            }
            // Before the outputs are read for the last time: what is in them then is all there is.
            if entries[1].revents != 0 {
                self.reap();
            }
            if self.ended.is_some() {
                self.drain()?;
            } else {
                if entries[2].revents != 0 {
                    read_stream(&mut self.streams.stdout, &mut self.outgoing, Frame::Stdout)?;
                }
                if entries[3].revents != 0 {
                    read_stream(&mut self.streams.stderr, &mut self.outgoing, Frame::Stderr)?;
                }
            }
            self.write_port()?;
            if self.end_at.is_some_and(|at| at <= Instant::now()) {
                kill_descendants();
            }
        }
        Ok(())
    }

    fn timeout(&self) -> i32 {
        match self.end_at {
            // Once the grace is over it is tried again until all are gone.
            Some(at) => at
                .saturating_duration_since(Instant::now())
                .as_millis()
                .clamp(20, 60_000) as i32,
            None => -1,
        }
    }

    fn read_port(&mut self) -> io::Result<()> {
        let mut bytes = [0; MAX_DATA];
        match (&self.port).read(&mut bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => self.decoder.push(&bytes[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        self.obey_buffered()
    }

    fn obey_buffered(&mut self) -> io::Result<()> {
        while let Some(frame) = self.decoder.next_frame()? {
            self.obey(frame)?;
        }
        Ok(())
    }

    fn obey(&mut self, frame: Frame) -> io::Result<()> {
        match frame {
            Frame::Stdin(bytes) if self.streams.stdin.is_some() => self.stdin.extend(bytes),
            Frame::Stdin(bytes) => self.push(&Frame::StdinRoom(bytes.len() as u32)),
            Frame::StdinEof => {
                self.stdin_eof = true;
                if self.streams.terminal {
                    self.stdin.push_back(4); // as its keyboard says it
                }
            }
            Frame::CloseOutput(1) if !self.streams.terminal => self.streams.stdout = None,
            Frame::CloseOutput(2) => self.streams.stderr = None,
            Frame::CloseOutput(_) => self.signal(libc::SIGHUP),
            Frame::Signal(number) => self.signal(number.into()),
            Frame::WindowSize(rows, columns) => {
                if let (true, Some(terminal)) = (self.streams.terminal, &self.streams.stdout) {
                    tty::set_window(terminal, Terminal { rows, columns })?;
                }
            }
            Frame::End if self.end_at.is_none() => {
                self.signal(libc::SIGTERM);
                self.signal(libc::SIGCONT);
                self.end_at = Some(Instant::now() + GRACE);
            }
            _ => {}
        }
        self.feed()
    }

    fn signal(&self, number: i32) {
        // Gone already is what was wanted.
        let _ = process::kill(-self.pid, number);
    }

    fn push(&mut self, frame: &Frame) {
        self.outgoing.extend(frame.encode());
    }

    /// Gives the command what it takes of its standard input, and tells the host how much that was.
    fn feed(&mut self) -> io::Result<()> {
        let mut taken = 0;
        while let (Some(mut file), false) = (self.streams.stdin.as_ref(), self.stdin.is_empty()) {
            match file.write(self.stdin.as_slices().0) {
                Ok(count) => {
                    self.stdin.drain(..count);
                    taken += count;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // It does not read any more: what comes is taken and dropped.
                Err(_) => {
                    taken += self.stdin.len();
                    self.stdin.clear();
                    self.streams.stdin = None;
                }
            }
        }
        if taken > 0 {
            self.push(&Frame::StdinRoom(taken as u32));
        }
        if self.stdin_eof && self.stdin.is_empty() && !self.streams.terminal {
            self.streams.stdin = None;
        }
        Ok(())
    }

    fn reap(&mut self) {
        let _ = (&self.signals).read(&mut [0; 1024]);
        while let Some((pid, status)) = process::reap() {
            if pid == self.pid {
                self.ended = Some(if libc::WIFSIGNALED(status) {
                    Exit::Signal(libc::WTERMSIG(status))
                } else {
                    Exit::Code(libc::WEXITSTATUS(status))
                });
            }
        }
    }

    /// The command has ended: what its pipes hold now is all that it wrote. Others may hold them open: not waited for.
    fn drain(&mut self) -> io::Result<()> {
        for (stream, frame) in [
            (
                &mut self.streams.stdout,
                Frame::Stdout as fn(Vec<u8>) -> Frame,
            ),
            (&mut self.streams.stderr, Frame::Stderr),
        ] {
            // A bound, for what goes on writing in the background.
            for _ in 0..256 {
                if !read_stream(stream, &mut self.outgoing, frame)? {
                    break;
                }
            }
        }
        self.streams = Streams::default();
        if self.end_at.is_some() {
            // The command is gone, but it was to end with all that it started.
            while kill_descendants() {
                while process::reap().is_some() {}
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    fn write_port(&mut self) -> io::Result<()> {
        while !self.outgoing.is_empty() {
            match (&self.port).write(self.outgoing.as_slices().0) {
                Ok(count) => drop(self.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Says how it ended, and waits until the host has nothing more to say about it.
    fn finish(&mut self, exit: Exit) -> io::Result<()> {
        self.push(&Frame::Exit(exit));
        let mut bytes = [0; 4096];
        loop {
            self.write_port()?;
            while let Some(frame) = self.decoder.next_frame()? {
                if frame == Frame::Done {
                    return if self.decoder.is_empty() {
                        Ok(())
                    } else {
                        Err(io::Error::other("bytes after the end of a session"))
                    };
                }
            }
            let events = if self.outgoing.is_empty() {
                libc::POLLIN
            } else {
                libc::POLLIN | libc::POLLOUT
            };
            sys::poll(&mut [sys::poll_entry(self.port.as_raw_fd(), events)], -1)?;
            match (&self.port).read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Kills all that descends from this process; were there any?
fn kill_descendants() -> bool {
    let mut found = false;
    let mut parents = vec![std::process::id().to_string()];
    while let Some(parent) = parents.pop() {
        for task in fs::read_dir(format!("/proc/{parent}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                if let Ok(pid) = child.parse() {
                    found = true;
                    let _ = process::kill(pid, libc::SIGKILL);
                }
                parents.push(child.into());
            }
        }
    }
    found
}
