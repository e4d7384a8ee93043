//! The guest side: the first process of the emulated machine, and the processes it makes.
//!
//! [`main`] is PID 1: [`boot`] makes the machine look like the host, then one *worker* for each port waits for commands.
//! A worker forks a [`session`] for each command, so that the session can adopt and end all that the command started.
//! All of them are single-threaded: what forks is whole. When PID 1 ends, the kernel panics and the lab is known dead.

pub mod boot;
pub mod session;
mod streams;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use crate::frame::{Decoder, Exit, Frame};
use crate::sys::process::{self, Signals};
use crate::sys::{self, machine};

/// PID 1 of the emulated machine. Does not return.
pub fn main() {
    let Err(error) = run();
    // The console is all there is to say it on; the end of PID 1 then ends the machine.
    eprintln!("tandem-lab-agent: {error}");
    std::process::exit(1);
}

fn run() -> io::Result<std::convert::Infallible> {
    let mut ports = boot::boot()?;
    let control = ports.remove(0);
    let mut workers = vec![];
    for port in ports {
        match process::fork()? {
            Some(pid) => workers.push(pid),
            None => {
                let error = work(port)
                    .err()
                    .map_or_else(String::new, |error| error.to_string());
                eprintln!("tandem-lab-agent: a worker ended: {error}");
                std::process::exit(1);
            }
        }
    }
    let children = Signals::of(&[libc::SIGCHLD]);
    children.block()?;
    let signals = children.descriptor()?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut control = Port::new(control);
    control.send(&Frame::Hello(release.trim().into()))?;
    loop {
        let mut entries = [
            sys::poll_entry(control.file.as_raw_fd(), libc::POLLIN),
            sys::poll_entry(signals.as_raw_fd(), libc::POLLIN),
        ];
        sys::poll(&mut entries, -1)?;
        if entries[1].revents != 0 {
            let _ = (&signals).read(&mut [0; 128]);
            while let Some((pid, _)) = process::reap() {
                if workers.contains(&pid) {
                    control.send(&Frame::Dead(
                        "one of the agent's workers died in the machine".into(),
                    ))?;
                }
            }
        }
        if entries[0].revents != 0 {
            match control.receive()? {
                Frame::Ping => control.send(&Frame::Pong)?,
                Frame::Shutdown => {
                    let _ = process::kill(-1, libc::SIGKILL);
                    machine::power_off();
                }
                _ => {}
            }
        }
    }
}

/// A port, read and written one frame after the other.
struct Port {
    file: File,
    decoder: Decoder,
}

impl Port {
    fn new(file: File) -> Self {
        Port {
            file,
            decoder: Decoder::default(),
        }
    }

    fn wait(&self, events: i16) -> io::Result<()> {
        let mut entries = [sys::poll_entry(self.file.as_raw_fd(), events)];
        sys::poll(&mut entries, -1).map(drop)
    }

    /// The next frame, waiting for it.
    fn receive(&mut self) -> io::Result<Frame> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            match (&self.file).read(&mut bytes) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.decoder.push(&bytes[..count]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(libc::POLLIN)?
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Writes a whole frame, waiting for room.
    fn send(&mut self, frame: &Frame) -> io::Result<()> {
        let bytes = frame.encode();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            match (&self.file).write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(libc::POLLOUT)?
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// A worker's life: command after command on one port.
fn work(port: File) -> io::Result<std::convert::Infallible> {
    let root = File::open("/")?;
    let mut port = Port::new(port);
    loop {
        let Frame::Start(spec) = port.receive()? else {
            return Err(io::Error::other(
                "a session that does not begin with a start",
            ));
        };
        // The host changed files behind this machine's back: nothing that is cached of its tree may be believed.
        machine::sync_file_system(&root)?;
        std::fs::write("/proc/sys/vm/drop_caches", "3")?;
        // The session takes over the port with all that is buffered, and leaves it empty.
        match process::fork()? {
            None => {
                let failed = session::run(
                    &mut port.file,
                    std::mem::take(&mut port.decoder),
                    &spec,
                    &root,
                );
                if let Err(error) = &failed {
                    eprintln!("tandem-lab-agent: a session failed: {error}");
                }
                std::process::exit(failed.is_err().into());
            }
            Some(pid) => {
                port.decoder = Decoder::default();
                if process::wait_for(pid)? != 0 {
                    return Err(io::Error::other(
                        "a session ended in the middle of a command",
                    ));
                }
                port.send(&Frame::Free)?;
            }
        }
    }
}

/// The answer to a command that could not be started.
fn start_failure(error: &io::Error, program: &str) -> Exit {
    match error.kind() {
        io::ErrorKind::NotFound => Exit::NotFound(format!("{program}: not found")),
        _ => Exit::NotExecutable(format!("{program}: {error}")),
    }
}
