//! The process that keeps one lab: it holds QEMU, its ports and the lab's lock, and serves clients on a Unix socket.
//!
//! It ends, and takes the machine and the lab's directory with it, when QEMU ends, the agent falls silent, a client asks
//! for it, or its *leash* is let go: the socket to the process that started it, which a lab for one command hangs on for
//! life and any other until it is up. Should it be killed, QEMU dies with it (its death signal).

use std::io::{BufReader, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::machine::{self, Machine, Plan};
use super::state::{Lock, Place};
use super::{Context, LabError, Result};
use crate::frame::Frame;
use crate::sys::{self, Signals};

/// How long the machine may take to come up: 4 s on an idle host.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How often the agent is asked whether it is there, and how long it may take to answer. Long: an emulated processor on
/// a busy host is slow, and a machine that died says so at once by other ways.
const HEARTBEAT: Duration = Duration::from_secs(5);
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long dying waits for clients to be told.
const FAREWELL: Duration = Duration::from_secs(2);

/// What the supervisor is started with.
#[derive(Debug)]
pub struct Orders {
    /// Whose lab.
    pub place: Place,
    /// What to start.
    pub plan: Plan,
    /// The lab ends with the process at the other end of the leash.
    pub one_shot: bool,
    /// The descriptor of the lab's lock, held already.
    pub lock: RawFd,
}

/// Why the lab ends.
#[derive(Debug)]
enum End {
    /// As was wished.
    Wished,
    /// It died.
    Died(String),
}

enum Event {
    Hello(String),
    End(End),
}

struct Shared {
    place: Place,
    release: Mutex<String>,
    started: Instant,
    /// Ports that no command uses.
    free: Mutex<Vec<UnixStream>>,
    freed: Condvar,
    /// Why the lab is dead, once it is.
    death: Mutex<Option<String>>,
    died: Condvar,
    /// Clients that are being served.
    clients: Mutex<usize>,
    left: Condvar,
    events: Mutex<Sender<Event>>,
    memory: u32,
    qemu: u32,
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No holder leaves a value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the lab until it ends. `leash` gets one line: `ready`, or why not.
pub fn run(orders: Orders, leash: UnixStream) -> Result<()> {
    // SAFETY: the parent passed this descriptor for this purpose, and nothing else here knows of it.
    let lock = Lock(unsafe { sys::adopt(orders.lock) }.into());
    // QEMU serves every file that the machine has open.
    sys::raise_open_files();
    let outcome = keep(&orders, &leash);
    if let Err(error) = &outcome {
        let _ = writeln!(&leash, "{}", error.to_string().replace('\n', "\x1f"));
    }
    orders.place.remove(&lock);
    outcome
}

fn keep(orders: &Orders, leash: &UnixStream) -> Result<()> {
    let signals = Signals::of(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
    signals.block().during("blocking signals")?;
    let (sender, events) = mpsc::channel();
    // On this thread, which lives as long as the supervisor: QEMU dies with the thread that started it.
    let Machine {
        mut process,
        control,
        ports,
    } = machine::start(&orders.plan)?;
    let shared = Arc::new(Shared {
        place: orders.place.clone(),
        release: Mutex::default(),
        started: Instant::now(),
        free: Mutex::new(ports),
        freed: Condvar::new(),
        death: Mutex::default(),
        died: Condvar::new(),
        clients: Mutex::new(0),
        left: Condvar::new(),
        events: Mutex::new(sender.clone()),
        memory: orders.plan.memory,
        qemu: process.id(),
    });
    watch_signals(signals, sender.clone());
    watch_leash(
        leash.try_clone().during("the leash")?,
        orders.one_shot,
        sender.clone(),
    );
    let mut shutdown = control.try_clone().during("the control port")?;
    watch_agent(control, sender.clone());
    // The machine's end shows as the end of its control port, so the process is only waited for then.
    let end = match events.recv_timeout(BOOT_LIMIT) {
        Ok(Event::Hello(release)) => {
            *hold(&shared.release) = release;
            let listener =
                UnixListener::bind(shared.place.socket()).during("listening for clients")?;
            serve(listener, &shared);
            let _ = writeln!(&mut &*leash, "ready");
            wait_for_end(&events)
        }
        Ok(Event::End(end)) => end,
        Err(RecvTimeoutError::Timeout) => End::Died(format!(
            "the machine did not come up in {} s",
            BOOT_LIMIT.as_secs()
        )),
        Err(RecvTimeoutError::Disconnected) => End::Died("nobody watches the machine".into()),
    };
    let _ = std::fs::remove_file(shared.place.socket());
    let reason = match &end {
        End::Wished => {
            if !orders.one_shot && Frame::Shutdown.write_to(&mut shutdown).is_ok() {
                wait_up_to(&mut process, Duration::from_secs(10));
            }
            "it was shut down".to_string()
        }
        End::Died(reason) => {
            let status = wait_up_to(&mut process, Duration::from_millis(500));
            let status = status.map_or_else(String::new, |status| format!(" (QEMU: {status})"));
            format!(
                "{reason}{status}{}",
                machine::last_words(&orders.plan.console)
            )
        }
    };
    let _ = process.kill();
    let _ = process.wait();
    say_farewell(&shared, &reason);
    match end {
        End::Wished => Ok(()),
        End::Died(_) => Err(LabError::Told(reason)),
    }
}

fn wait_for_end(events: &mpsc::Receiver<Event>) -> End {
    loop {
        match events.recv() {
            Ok(Event::End(end)) => return end,
            Ok(Event::Hello(_)) => {}
            Err(_) => return End::Died("nobody watches the machine".into()),
        }
    }
}

fn wait_up_to(process: &mut std::process::Child, limit: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Ok(Some(status)) = process.try_wait() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
    None
}

/// Tells every client why, and gives them a moment to hear it.
fn say_farewell(shared: &Shared, reason: &str) {
    *hold(&shared.death) = Some(reason.into());
    shared.died.notify_all();
    shared.freed.notify_all();
    let clients = hold(&shared.clients);
    let _ = shared
        .left
        .wait_timeout_while(clients, FAREWELL, |count| *count > 0);
}

fn watch_signals(signals: Signals, events: Sender<Event>) {
    thread::spawn(move || {
        if signals.wait().is_ok() {
            let _ = events.send(Event::End(End::Wished));
        }
    });
}

fn watch_leash(mut leash: UnixStream, one_shot: bool, events: Sender<Event>) {
    thread::spawn(move || {
        let mut byte = [0];
        // One byte says that the lab shall live on without the leash; only its end is the end.
        let kept = matches!(leash.read(&mut byte), Ok(1)) && !one_shot;
        if !kept {
            let _ = events.send(Event::End(End::Wished));
        }
    });
}

/// Asks the agent whether it is there, and notices when it is not.
fn watch_agent(control: UnixStream, events: Sender<Event>) {
    let Ok(mut asking) = control.try_clone() else {
        return;
    };
    let heard = Arc::new(Mutex::new(None::<Instant>));
    let hearing = Arc::clone(&heard);
    let silent = events.clone();
    thread::spawn(move || {
        let mut control = BufReader::new(control);
        loop {
            match Frame::read_from(&mut control) {
                Ok(Some(Frame::Hello(release))) => {
                    *hold(&hearing) = Some(Instant::now());
                    let _ = events.send(Event::Hello(release));
                }
                Ok(Some(Frame::Pong)) => *hold(&hearing) = Some(Instant::now()),
                Ok(Some(Frame::Dead(reason))) => {
                    let _ = events.send(Event::End(End::Died(reason)));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    let _ = events.send(Event::End(End::Died("the emulated machine ended".into())));
                    return;
                }
            }
        }
    });
    thread::spawn(move || {
        loop {
            thread::sleep(HEARTBEAT);
            // Until it said hello, the limit on booting counts.
            let Some(last) = *hold(&heard) else { continue };
            if last.elapsed() > SILENCE_LIMIT {
                let reason = format!(
                    "the agent in the machine has been silent for {} s",
                    last.elapsed().as_secs()
                );
                let _ = silent.send(Event::End(End::Died(reason)));
                return;
            }
            if Frame::Ping.write_to(&mut asking).is_err() {
                return;
            }
        }
    });
}

fn serve(listener: UnixListener, shared: &Arc<Shared>) {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let shared = Arc::clone(&shared);
            *hold(&shared.clients) += 1;
            thread::spawn(move || {
                // A client that went away, or spoke nonsense, is its own trouble: nobody is left to be told.
                let _ = shared.attend(client);
                *hold(&shared.clients) -= 1;
                shared.left.notify_all();
            });
        }
    });
}

impl Shared {
    fn attend(&self, mut client: UnixStream) -> std::io::Result<()> {
        match Frame::read_from(&mut client)? {
            Some(start @ Frame::Start(_)) => self.run_command(client, &start),
            Some(Frame::Status(_)) => Frame::Status(self.status()).write_to(client),
            Some(Frame::Shutdown) => {
                let _ = hold(&self.events).send(Event::End(End::Wished));
                // Told as everyone else, when it is over.
                Frame::Dead(self.await_death()).write_to(client)
            }
            _ => Ok(()),
        }
    }

    fn status(&self) -> String {
        let busy = machine::PORTS - hold(&self.free).len();
        format!(
            "lab '{}' is up: Linux {}, {} MiB, for {} s, {busy} of {} command slots in use, \
             supervisor {}, QEMU {}, in {}",
            self.place.name(),
            hold(&self.release),
            self.memory,
            self.started.elapsed().as_secs(),
            machine::PORTS,
            std::process::id(),
            self.qemu,
            self.place.directory().display(),
        )
    }

    fn await_death(&self) -> String {
        let mut death = hold(&self.death);
        loop {
            match &*death {
                Some(reason) => return reason.clone(),
                None => {
                    death = self
                        .died
                        .wait(death)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    /// A free port; `None` when the lab died before there was one.
    fn take_port(&self) -> Option<UnixStream> {
        let mut free = hold(&self.free);
        loop {
            if hold(&self.death).is_some() {
                return None;
            }
            match free.pop() {
                Some(port) => return Some(port),
                None => {
                    free = self
                        .freed
                        .wait(free)
                        .unwrap_or_else(PoisonError::into_inner)
                }
            }
        }
    }

    /// One session on one port, after which the port is free again, whatever the client did.
    fn run_command(&self, client: UnixStream, start: &Frame) -> std::io::Result<()> {
        let Some(port) = self.take_port() else {
            return Frame::Dead(self.await_death()).write_to(client);
        };
        start.write_to(&port)?;
        // A client that is gone by now is noticed below.
        let _ = Frame::Started.write_to(&client);
        let (mut from_client, mut to_port) =
            (BufReader::new(client.try_clone()?), port.try_clone()?);
        let upstream = thread::spawn(move || {
            while let Ok(Some(frame)) = Frame::read_from(&mut from_client) {
                let allowed = matches!(
                    frame,
                    Frame::Stdin(_)
                        | Frame::StdinEof
                        | Frame::Signal(_)
                        | Frame::WindowSize(..)
                        | Frame::CloseOutput(_)
                        | Frame::End
                );
                if !allowed || frame.write_to(&mut to_port).is_err() {
                    break;
                }
            }
            // It has gone, or it is over: in either case the command is to end.
            let _ = Frame::End.write_to(&mut to_port);
        });
        let mut from_port = &port;
        let mut listening = true;
        loop {
            let Ok(Some(frame)) = Frame::read_from(&mut from_port) else {
                return Frame::Dead(self.await_death()).write_to(&client);
            };
            listening = listening && frame.write_to(&client).is_ok();
            if matches!(frame, Frame::Exit(_)) {
                break;
            }
        }
        let _ = client.shutdown(std::net::Shutdown::Both);
        let _ = upstream.join();
        Frame::Done.write_to(&port)?;
        hold(&self.free).push(port);
        self.freed.notify_one();
        Ok(())
    }
}

/// The arguments that carry orders to a new supervisor, and back: paths and numbers, in this order.
pub fn to_arguments(orders: &Orders) -> Vec<std::ffi::OsString> {
    vec![
        orders.place.base().into(),
        orders.place.name().into(),
        orders.plan.qemu.clone().into(),
        orders.plan.kernel.clone().into(),
        orders.plan.initramfs.clone().into(),
        orders.plan.memory.to_string().into(),
        u8::from(orders.one_shot).to_string().into(),
        orders.lock.to_string().into(),
    ]
}

/// The inverse of [`to_arguments`].
pub fn from_arguments(arguments: &[std::ffi::OsString]) -> Option<Orders> {
    let [base, name, qemu, kernel, initramfs, memory, one_shot, lock] = arguments else {
        return None;
    };
    let place = Place::at(&PathBuf::from(base), name.to_str()?);
    let plan = Plan {
        qemu: qemu.into(),
        kernel: kernel.into(),
        initramfs: initramfs.into(),
        console: place.console(),
        memory: memory.to_str()?.parse().ok()?,
    };
    let number = |text: &std::ffi::OsString| text.to_str()?.parse::<i32>().ok();
    Some(Orders {
        place,
        plan,
        one_shot: number(one_shot)? == 1,
        lock: number(lock)?,
    })
}
