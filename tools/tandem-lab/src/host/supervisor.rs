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
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use super::machine::{self, Machine, Plan};
use super::serve::{About, Service, hold};
use super::state::{Lock, Place};
use super::{Context, LabError, Result};
use crate::frame::Frame;
use crate::sys;
use crate::sys::process::{self, Signals};

/// How long the machine may take to come up: 4 s on an idle host.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// How often the agent is asked whether it is there, and how long it may take to answer. Long: an emulated processor on
/// a busy host is slow, and a machine that died says so at once by other ways.
const HEARTBEAT: Duration = Duration::from_secs(5);
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

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

/// Runs the lab until it ends. `leash` gets one line: `ready`, or why not.
pub fn run(orders: Orders, leash: UnixStream) -> Result<()> {
    // SAFETY: the parent passed this descriptor for this purpose, and nothing else here knows of it.
    let lock = Lock(unsafe { sys::adopt(orders.lock) }.into());
    // QEMU serves every file that the machine has open.
    process::raise_open_files();
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
    let mut service = None;
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
            let place = orders.place.clone();
            let listener = UnixListener::bind(place.socket()).during("listening for clients")?;
            let about = About {
                place,
                release,
                memory: orders.plan.memory,
                qemu: process.id(),
            };
            let wish = Mutex::new(sender);
            let end = Box::new(move || drop(hold(&wish).send(Event::End(End::Wished))));
            service
                .insert(Service::new(about, ports, end))
                .listen(listener);
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
    let _ = std::fs::remove_file(orders.place.socket());
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
    if let Some(service) = service {
        service.farewell(&reason);
    }
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
    let limit = silence_limit();
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
            if last.elapsed() > limit {
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

/// The limit, or what `TANDEM_LAB_SILENCE_SECONDS` says (the test of it has no minute to wait).
fn silence_limit() -> Duration {
    let seconds = std::env::var("TANDEM_LAB_SILENCE_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok());
    seconds.map_or(SILENCE_LIMIT, Duration::from_secs)
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
