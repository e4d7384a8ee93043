//! Runs one command in a lab that is up: carries the streams, signals and terminal there, and the way it ended back.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::{Context, EXIT_LAB, EXIT_TIMEOUT, LabError, Result};
use crate::frame::{Exit, Frame, MAX_DATA, STDIN_WINDOW};
use crate::spec::CommandSpec;
use crate::sys;
use crate::sys::process::{self, Signals};
use crate::sys::terminal::{self, RawTerminal};

/// How much longer than its time a command may take to be ended.
const PATIENCE: Duration = Duration::from_secs(30);

/// Variables that name what only the host has, and those that are set anew.
const HOST_ONLY: &[&str] = &[
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "SSH_AUTH_SOCK",
    "TANDEM_IN_LAB",
    "TANDEM_LAB",
    "TANDEM_LAB_SCRIPT",
    "TMPDIR",
    "WAYLAND_DISPLAY",
    "XDG_RUNTIME_DIR",
];

/// Signals that are the command's.
const FORWARDED: &[i32] = &[
    libc::SIGINT,
    libc::SIGTERM,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
];

/// Describes the command as this process would run it here.
pub fn describe(arguments: Vec<std::ffi::OsString>) -> Result<CommandSpec> {
    // A job in the background leaves the terminal to the foreground.
    let both_terminals = terminal::window_of(1).is_some() && terminal::in_foreground(0);
    let directory = std::env::current_dir().during("finding the working directory")?;
    let mut environment: Vec<_> = std::env::vars_os()
        .filter(|(name, _)| !HOST_ONLY.iter().any(|host| name == host))
        .map(|(name, value)| (name.into_vec(), value.into_vec()))
        .collect();
    // There, /tmp is the host's: what needs sockets, FIFOs or shared mappings goes to memory. A lab in the lab is direct.
    for (name, value) in [
        ("TMPDIR", "/var/tmp"),
        ("TANDEM_IN_LAB", "1"),
        ("TANDEM_LAB", "direct"),
    ] {
        environment.push((name.into(), value.into()));
    }
    Ok(CommandSpec {
        arguments: arguments.into_iter().map(OsStringExt::into_vec).collect(),
        environment,
        directory: directory.into_os_string().into_vec(),
        umask: process::umask(),
        terminal: terminal::window_of(0).filter(|_| both_terminals),
    })
}

/// Keeps the forwarded signals for the command. To be called before any thread is started.
pub fn hold_signals() -> Result<Signals> {
    let signals = Signals::of(FORWARDED);
    signals.block().during("blocking signals")?;
    Ok(signals)
}

struct Line {
    to_lab: Mutex<UnixStream>,
    /// How much of standard input the lab has room for.
    room: Mutex<usize>,
    more_room: Condvar,
    timed_out: AtomicBool,
}

impl Line {
    fn send(&self, frame: &Frame) -> io::Result<()> {
        let mut stream = self.to_lab.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write_to(&mut *stream)
    }

    fn add_room(&self, count: usize) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) += count;
        self.more_room.notify_all();
    }

    /// Takes up to `most` of the room, waiting until there is some.
    fn take_room(&self, most: usize) -> usize {
        let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        while *room == 0 {
            room = self
                .more_room
                .wait(room)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let count = most.min(*room);
        *room -= count;
        count
    }
}

/// Runs the command and returns the exit code for this process.
pub fn run(
    lab: UnixStream,
    spec: CommandSpec,
    signals: Signals,
    timeout: Option<Duration>,
) -> Result<i32> {
    let in_terminal = spec.terminal.is_some();
    let line = Arc::new(Line {
        to_lab: Mutex::new(lab.try_clone().during("the lab's socket")?),
        room: Mutex::new(STDIN_WINDOW),
        more_room: Condvar::new(),
        timed_out: AtomicBool::new(false),
    });
    line.send(&Frame::Start(spec))
        .during("sending the command to the lab")?;
    let raw = if in_terminal {
        Some(RawTerminal::enter(0).during("setting up the terminal")?)
    } else {
        None
    };
    forward_signals(&line, signals);
    forward_input(&line);
    let end = relay_output(lab, &line, || {
        if let Some(timeout) = timeout {
            enforce(&line, timeout, raw);
        }
    });
    if let Some(raw) = raw {
        raw.restore();
    }
    let limit = timeout.unwrap_or_default().as_secs();
    match end? {
        _ if line.timed_out.load(Ordering::SeqCst) => {
            eprintln!(
                "tandem-lab: the command ran longer than {limit} s (--timeout) and was ended"
            );
            Ok(EXIT_TIMEOUT)
        }
        Exit::Code(code) => Ok(code),
        Exit::Signal(signal) => Ok(128 + signal),
        Exit::NotFound(what) => told(&what, 127),
        Exit::NotExecutable(what) => told(&what, 126),
        Exit::Failed(what) => told(&what, EXIT_LAB),
    }
}

fn told(what: &str, code: i32) -> Result<i32> {
    eprintln!("tandem-lab: {what}");
    Ok(code)
}

fn forward_signals(line: &Arc<Line>, signals: Signals) {
    let line = Arc::clone(line);
    thread::spawn(move || {
        while let Ok(number) = signals.wait() {
            let frame = match (number, terminal::window_of(0)) {
                (libc::SIGWINCH, Some(size)) => Frame::WindowSize(size.rows, size.columns),
                (libc::SIGWINCH, None) => continue,
                _ => Frame::Signal(number as u8),
            };
            if line.send(&frame).is_err() {
                return;
            }
        }
    });
}

fn forward_input(line: &Arc<Line>) {
    let line = Arc::clone(line);
    // In the background a read from the terminal is to fail, not to stop this process.
    process::ignore(libc::SIGTTIN);
    thread::spawn(move || {
        let Ok(input) = sys::duplicate(&sys::standard(0)).map(File::from) else {
            return;
        };
        let mut bytes = vec![0; MAX_DATA];
        loop {
            let room = line.take_room(MAX_DATA);
            let count = sys::read_waiting(&input, &mut bytes[..room]).unwrap_or(0);
            line.add_room(room - count);
            let frame = match count {
                0 => Frame::StdinEof,
                _ => Frame::Stdin(bytes[..count].to_vec()),
            };
            if line.send(&frame).is_err() || count == 0 {
                return;
            }
        }
    });
}

/// Ends the command after its time, and this process if even that does not happen.
fn enforce(line: &Arc<Line>, timeout: Duration, raw: Option<RawTerminal>) {
    let line = Arc::clone(line);
    thread::spawn(move || {
        thread::sleep(timeout);
        line.timed_out.store(true, Ordering::SeqCst);
        let _ = line.send(&Frame::End);
        thread::sleep(PATIENCE);
        if let Some(raw) = raw {
            raw.restore();
        }
        eprintln!(
            "tandem-lab: error: the lab could not end a command that ran out of time: is its machine stuck?"
        );
        std::process::exit(EXIT_LAB);
    });
}

/// Writes what comes until the command has ended.
fn relay_output(lab: UnixStream, line: &Line, started: impl Fn()) -> Result<Exit> {
    let streams = [1, 2].map(|fd| sys::duplicate(&sys::standard(fd)).map(File::from));
    let [Ok(stdout), Ok(stderr)] = streams else {
        return Err(LabError::Told("the standard streams cannot be used".into()));
    };
    let mut lab = BufReader::with_capacity(MAX_DATA, lab);
    let mut open = [true; 2];
    loop {
        match Frame::read_from(&mut lab) {
            Ok(Some(Frame::Started)) => started(),
            Ok(Some(Frame::Stdout(bytes))) => {
                write_or_close(&mut open[0], 1, &stdout, &bytes, line)
            }
            Ok(Some(Frame::Stderr(bytes))) => {
                write_or_close(&mut open[1], 2, &stderr, &bytes, line)
            }
            Ok(Some(Frame::StdinRoom(count))) => line.add_room(count as usize),
            Ok(Some(Frame::Exit(exit))) => return Ok(exit),
            Ok(Some(Frame::Dead(reason))) => {
                return Err(LabError::Told(format!("the lab died: {reason}")));
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => {
                return Err(LabError::Told(
                    "the lab died: its supervisor was killed, and its machine with it".into(),
                ));
            }
        }
    }
}

/// When nobody reads what the command writes, it is to learn that as it would here.
fn write_or_close(open: &mut bool, number: u8, stream: &File, bytes: &[u8], line: &Line) {
    if *open && sys::write_waiting(stream, bytes).is_err() {
        *open = false;
        let _ = line.send(&Frame::CloseOutput(number));
    }
}
