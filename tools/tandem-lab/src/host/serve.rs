//! Serves a lab's clients: a thread for each, a port for each command, and the reason for everyone when the lab dies.

use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::machine;
use super::state::Place;
use crate::frame::Frame;

/// How long dying waits for clients to be told.
const FAREWELL: Duration = Duration::from_secs(2);

/// What there is to tell about a lab that is up.
#[derive(Debug)]
pub struct About {
    /// Whose lab.
    pub place: Place,
    /// Its kernel.
    pub release: String,
    /// MiB.
    pub memory: u32,
    /// QEMU's process.
    pub qemu: u32,
}

/// The lab as its clients see it. No two of its locks are ever held together, but for `free` and then `death`.
pub struct Service {
    about: About,
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
    /// What to do when a client wishes the lab to end.
    end: Box<dyn Fn() + Send + Sync>,
}
/// The value, which no holder leaves half changed.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Service {
    /// A lab with these ports; `end` is called when a client asks for its end.
    pub fn new(
        about: About,
        ports: Vec<UnixStream>,
        end: Box<dyn Fn() + Send + Sync>,
    ) -> Arc<Self> {
        Arc::new(Service {
            about,
            started: Instant::now(),
            free: Mutex::new(ports),
            freed: Condvar::new(),
            death: Mutex::default(),
            died: Condvar::new(),
            clients: Mutex::new(0),
            left: Condvar::new(),
            end,
        })
    }

    /// Serves whoever connects, until the process ends.
    pub fn listen(self: &Arc<Self>, listener: UnixListener) {
        let service = Arc::clone(self);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let service = Arc::clone(&service);
                *hold(&service.clients) += 1;
                thread::spawn(move || {
                    // A client that went away, or spoke nonsense, is its own trouble: nobody is left to be told.
                    let _ = service.attend(client);
                    *hold(&service.clients) -= 1;
                    service.left.notify_all();
                });
            }
        });
    }

    /// Tells every client why the lab ends, and gives them a moment to hear it.
    pub fn farewell(&self, reason: &str) {
        *hold(&self.death) = Some(reason.into());
        self.died.notify_all();
        // With the lock, so that no one is between looking and waiting.
        drop(hold(&self.free));
        self.freed.notify_all();
        let clients = hold(&self.clients);
        let _ = self
            .left
            .wait_timeout_while(clients, FAREWELL, |count| *count > 0);
    }

    fn attend(&self, mut client: UnixStream) -> io::Result<()> {
        let first = match Frame::read_from(&mut client) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                let advice =
                    "it was started by another version of this program: tools/lab down, and up";
                return Frame::Dead(format!("{advice} ({error})")).write_to(client);
            }
            other => other?,
        };
        match first {
            Some(start @ Frame::Start(_)) => self.run_command(client, &start),
            Some(Frame::Status(_)) => Frame::Status(self.status()).write_to(client),
            Some(Frame::Shutdown) => {
                (self.end)();
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
            self.about.place.name(),
            self.about.release,
            self.about.memory,
            self.started.elapsed().as_secs(),
            machine::PORTS,
            std::process::id(),
            self.about.qemu,
            self.about.place.directory().display(),
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
    fn run_command(&self, client: UnixStream, start: &Frame) -> io::Result<()> {
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
        if !matches!(Frame::read_from(&port), Ok(Some(Frame::Free))) {
            // The machine is dying, as everyone will hear; nobody shall use this port.
            return Ok(());
        }
        hold(&self.free).push(port);
        self.freed.notify_one();
        Ok(())
    }
}
