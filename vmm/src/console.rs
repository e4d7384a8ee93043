//! The other end of serial port and virtio console: terminal, pipe or file.
//!
//! Output: vCPU threads put bytes into a buffer and a thread of its own writes them out, so that a guest's print
//! costs no system call per byte. When the buffer is full the vCPU that wrote waits, holding no lock, until there is room or
//! it is called to the gate: a stuck reader holds up that vCPU and nobody else, and nothing is lost. A virtio console's
//! output stays in its queue instead until the writing thread tells of room. Both may share an output.
//!
//! Input: read as the guest takes it. What it does not take stays with the sender.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::legacy::serial;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::confine::{Confine, Role};
use crate::memory::THREAD_STACK;
use crate::timeline::{Phase, Timeline};

mod terminal;
mod waking;

pub use terminal::{RawTerminal, restore as restore_terminal, size as terminal_size};
pub use waking::WakingWriter;

/// Bytes that wait for the writer at most before the guest waits.
const CAPACITY: usize = 64 * 1024;
/// How long the writer lets bytes gather after the first one: one system call then takes a whole line.
const GATHER: Duration = Duration::from_micros(500);

/// The buffer between vCPU threads and the writing thread.
#[derive(Debug, Default)]
struct Shared {
    state: Mutex<Pending>,
    /// Signalled when there are bytes, or there will be none.
    filled: Condvar,
    /// Signalled when bytes were written out, or none will be any more.
    drained: Condvar,
}

#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// Bytes that were written out so far.
    written: u64,
    /// No more bytes will come.
    closed: bool,
    /// Nobody takes bytes any more.
    broken: bool,
    /// A [`WakingWriter`]'s way to be told of room.
    wake: Option<EventFd>,
    /// It waits for that.
    wanted: bool,
}

impl Pending {
    fn is_full(&self) -> bool {
        self.bytes.len() >= CAPACITY && !self.broken
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to what is to be written out.
    fn append(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.lock();
        if state.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if state.bytes.is_empty() {
            self.filled.notify_one();
        }
        state.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Nothing is written any more, and nobody waits for it.
    fn give_up(&self) {
        let mut state = self.lock();
        state.broken = true;
        state.bytes = Vec::new();
        state.tell_of_room();
        drop(state);
        self.drained.notify_all();
    }
}

/// Where output goes, and the thread that writes it.
#[derive(Debug)]
pub struct Output {
    shared: Arc<Shared>,
    file: Option<File>,
    writer: Option<JoinHandle<()>>,
}

/// A serial port's side of an [`Output`].
pub struct OutputWriter {
    shared: Arc<Shared>,
    timeline: Arc<Timeline>,
    silent: bool,
}

impl Output {
    /// Output to `file`. Nothing is written before [`start`](Self::start).
    pub fn new(file: File) -> Self {
        Self {
            shared: Arc::new(Shared::default()),
            file: Some(file),
            writer: None,
        }
    }

    /// Starts the thread that writes, which does `confine` first. Once is enough.
    ///
    /// # Errors
    /// The thread could not be started.
    pub fn start(&mut self, confine: Confine) -> io::Result<()> {
        if let Some(file) = self.file.take() {
            let shared = self.shared.clone();
            let writer = thread::Builder::new()
                .name("console".into())
                .stack_size(THREAD_STACK)
                .spawn(move || match confine(Role::Console) {
                    Ok(()) => write_out(file, &shared),
                    Err(error) => {
                        log::error!("the console's thread cannot be confined: {error}");
                        shared.give_up();
                    }
                })?;
            self.writer = Some(writer);
        }
        Ok(())
    }

    /// Standard output.
    ///
    /// # Errors
    /// It is closed.
    pub fn stdout() -> io::Result<File> {
        duplicate(libc::STDOUT_FILENO)
    }

    /// Opens `path` to append to, as [`append_to`] does, for blocking writes.
    ///
    /// # Errors
    /// The file cannot be opened for writing.
    pub fn file(path: &Path) -> io::Result<File> {
        append_to(path).and_then(|file| set_blocking(file.as_raw_fd()).map(|()| file))
    }

    /// A writer for the serial port.
    pub fn writer(&self, timeline: Arc<Timeline>) -> OutputWriter {
        OutputWriter {
            shared: self.shared.clone(),
            timeline,
            silent: true,
        }
    }

    /// What a vCPU waits with when the buffer is full.
    pub fn room(&self) -> Room {
        Room(self.shared.clone())
    }

    /// Writes out what there is, for as long as it moves; `patience` is how long it may stand still.
    pub fn finish(&mut self, patience: Duration) {
        let Some(writer) = self.writer.take() else {
            return;
        };
        self.shared.lock().closed = true;
        self.shared.filled.notify_all();
        let mut state = self.shared.lock();
        let finished = loop {
            let before = state.written;
            let moved = |state: &mut Pending| !state.broken && state.written == before;
            state = self
                .shared
                .drained
                .wait_timeout_while(state, patience, moved)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if state.broken || state.written == before {
                break state.broken;
            }
        };
        drop(state);
        if finished {
            // Its result is its own affair: it has logged what went wrong.
            let _ = writer.join();
        } else {
            // In a write that nobody reads; the process ends without it.
            log::warn!("the console's reader is stuck: output was lost");
        }
    }
}

/// Waiting for room in an [`Output`].
#[derive(Clone, Debug)]
pub struct Room(Arc<Shared>);

impl Room {
    /// How often a waiting vCPU looks whether it is wanted elsewhere.
    const LOOK: Duration = Duration::from_millis(5);

    /// Waits until there is room, or `give_up` says that something else is more urgent.
    pub fn wait(&self, give_up: impl Fn() -> bool) {
        let mut state = self.0.lock();
        while state.is_full() && !give_up() {
            state = self
                .0
                .drained
                .wait_timeout(state, Self::LOOK)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Write for OutputWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if mem::take(&mut self.silent) {
            self.timeline.mark(Phase::FirstSerialByte);
        }
        self.shared.append(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        // vm-superio flushes after every byte; the writing thread decides.
        Ok(())
    }
}

impl serial::Output for OutputWriter {
    fn is_congested(&self) -> bool {
        self.shared.lock().is_full()
    }
}

/// Writes all of `bytes`. That the file does not block is no error: whoever shares it may have made it so.
fn write_all(file: &mut File, mut bytes: &[u8], shared: &Shared) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                shared.lock().written += count as u64;
                shared.drained.notify_all();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_until_writable(file)?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn wait_until_writable(file: &File) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: the kernel reads and writes the one entry that it is told of.
    match unsafe { libc::poll(&mut poll, 1, -1) } {
        -1 => Err(io::Error::last_os_error()).or_else(|error| match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        }),
        _ => Ok(()),
    }
}

/// The writing thread.
fn write_out(mut file: File, shared: &Shared) {
    let mut batch = Vec::new();
    loop {
        let mut state = shared.lock();
        while state.bytes.is_empty() && !state.closed {
            state = shared
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if !state.closed {
            drop(state);
            thread::sleep(GATHER);
            state = shared.lock();
        }
        mem::swap(&mut state.bytes, &mut batch);
        state.tell_of_room();
        let last = state.closed && batch.is_empty();
        drop(state);
        shared.drained.notify_all();
        let result = write_all(&mut file, &batch, shared);
        batch.clear();
        if let Err(error) = &result {
            log::warn!("cannot write the guest's console output: {error}");
        }
        if last || result.is_err() {
            return shared.give_up();
        }
    }
}

/// Where the guest's input comes from.
#[derive(Debug)]
pub struct Input {
    file: File,
    buffer: Vec<u8>,
    ended: bool,
    can_wait: bool,
    is_terminal: bool,
}

impl Input {
    /// Bytes that are read at once: the FIFO of the serial port.
    const CHUNK: usize = 64;

    /// Standard input.
    ///
    /// # Errors
    /// It is closed, or cannot be waited for.
    pub fn stdin() -> io::Result<Self> {
        duplicate(libc::STDIN_FILENO).and_then(Self::new)
    }

    fn new(file: File) -> io::Result<Self> {
        // epoll itself tells for which files there is no waiting: those that always have something to read, or their end.
        let event = EpollEvent::new(EventSet::IN, 0);
        let can_wait = match Epoll::new()?.ctl(ControlOperation::Add, file.as_raw_fd(), event) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => false,
            Err(error) => return Err(error),
        };
        Ok(Self {
            is_terminal: file.is_terminal(),
            file,
            buffer: Vec::with_capacity(Self::CHUNK),
            ended: false,
            can_wait,
        })
    }

    /// Whether reading would stop this process: the terminal is another job's now.
    pub fn is_somebody_elses(&self) -> bool {
        self.is_terminal && !terminal::in_foreground()
    }

    /// Whether one can wait for input; if not, it is always there, until it ends.
    pub fn can_wait(&self) -> bool {
        self.can_wait
    }

    /// Whether all input has been taken.
    pub fn is_over(&self) -> bool {
        self.ended && self.buffer.is_empty()
    }

    /// What was read and not yet taken.
    pub fn pending(&self) -> &[u8] {
        &self.buffer
    }

    /// Reads once, if nothing is pending. Blocks where there is nothing to read: whoever [can wait](Self::can_wait)
    /// reads only what the event loop has announced.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(&mut self) -> io::Result<()> {
        if !self.buffer.is_empty() || self.ended {
            return Ok(());
        }
        self.buffer.resize(Self::CHUNK, 0);
        let read = self.file.read(&mut self.buffer);
        self.buffer.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.ended = true,
            Ok(_) => {}
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
                ) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Forgets `count` bytes from the start of what is pending.
    pub fn take(&mut self, count: usize) {
        self.buffer.drain(..count.min(self.buffer.len()));
    }
}

impl AsRawFd for Input {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// Opens `path` to append to, without blocking; it is made if it is not there, with mode 0600, as a console or a log may
/// show secrets. A terminal does not become this process's own.
///
/// A FIFO is opened for reading too, so that there need be no reader yet: what is written waits in it.
///
/// # Errors
/// The file cannot be opened for writing.
pub fn append_to(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    match options.open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => options.read(true).open(path),
        result => result,
    }
}

/// A descriptor of one's own for a standard stream.
fn duplicate(fd: RawFd) -> io::Result<File> {
    // SAFETY: F_DUPFD_CLOEXEC takes no pointer; it makes a new descriptor or fails.
    let fd = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was made just now and belongs to nobody else.
    Ok(unsafe { File::from_raw_fd(fd) })
}

fn set_blocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: F_GETFL and F_SETFL take no pointers.
    let result = unsafe {
        match libc::fcntl(fd, libc::F_GETFL) {
            -1 => -1,
            flags => libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK),
        }
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
