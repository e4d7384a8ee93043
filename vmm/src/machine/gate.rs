//! Where vCPU threads wait while paused, and learn that it is over.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::exit::ExitReason;

/// What vCPU threads shall do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Position {
    Closed,
    Open,
    /// For good: threads end.
    Shut,
}

#[derive(Debug)]
struct State {
    position: Position,
    /// Threads that have entered and not left.
    threads: usize,
    /// Of these, the ones that wait here.
    parked: usize,
    reason: Option<ExitReason>,
}

impl State {
    fn is_still(&self) -> bool {
        self.position == Position::Closed && self.parked >= self.threads
    }
}

/// The gate that every vCPU thread passes before it runs the guest.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    moved: Condvar,
    parked: Condvar,
    /// Signalled when nothing runs at a closed gate.
    still: EventFd,
    ended: EventFd,
}

/// What a thread learns at the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// Run the guest. The flag tells whether the thread had to wait.
    Go {
        /// The thread had to wait.
        waited: bool,
    },
    /// End.
    Over,
}

impl Gate {
    /// A closed gate.
    ///
    /// # Errors
    /// The event could not be made.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            state: Mutex::new(State {
                position: Position::Closed,
                threads: 0,
                parked: 0,
                reason: None,
            }),
            moved: Condvar::new(),
            parked: Condvar::new(),
            still: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            ended: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a thread in, before it starts.
    pub fn enter(&self) {
        self.lock().threads += 1;
    }

    /// Counts a thread out.
    pub fn leave(&self) {
        let mut state = self.lock();
        state.threads -= 1;
        self.tell_if_still(&state);
    }

    /// After a thread has parked or gone.
    fn tell_if_still(&self, state: &State) {
        self.parked.notify_all();
        if state.is_still()
            && let Err(error) = self.still.write(1)
        {
            log::error!("cannot tell that the machine stands still: {error}");
        }
    }

    /// Waits until the gate is open or shut.
    pub fn pass(&self) -> Passage {
        self.pass_after(|| ())
    }

    /// The same; where there is no way on, `prepare` is done before the thread counts as parked or over.
    pub fn pass_after(&self, prepare: impl FnOnce()) -> Passage {
        let mut state = self.lock();
        if state.position != Position::Open {
            drop(state);
            prepare();
            state = self.lock();
        }
        let mut waited = false;
        while state.position == Position::Closed {
            waited = true;
            state.parked += 1;
            self.tell_if_still(&state);
            state = self
                .moved
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.parked -= 1;
        }
        match state.position {
            Position::Shut => Passage::Over,
            _ => Passage::Go { waited },
        }
    }

    /// Lets threads through, unless the gate is shut.
    pub fn open(&self) {
        self.move_to(Position::Open);
    }

    /// Holds threads up, unless the gate is shut.
    pub fn close(&self) {
        self.move_to(Position::Closed);
    }

    /// Ends every thread that comes to the gate, from now on.
    pub fn shut(&self) {
        self.move_to(Position::Shut);
    }

    fn move_to(&self, position: Position) {
        let mut state = self.lock();
        if state.position != Position::Shut {
            state.position = position;
        }
        self.moved.notify_all();
    }

    /// Waits until no thread runs the guest. The gate is closed or shut, and the threads were kicked.
    pub fn wait_until_parked(&self) {
        let state = self.lock();
        let _all_parked = self
            .parked
            .wait_while(state, |state| {
                state.parked < state.threads && state.position == Position::Closed
            })
            .unwrap_or_else(PoisonError::into_inner);
    }

    /// Whether the gate is closed and no thread runs the guest.
    pub fn is_still(&self) -> bool {
        self.lock().is_still()
    }

    /// Becomes readable when that is so; it may be so no longer.
    pub fn still(&self) -> &EventFd {
        &self.still
    }

    /// Notes why the machine is over, if it is not over yet, and tells whoever waits for that.
    pub fn end(&self, reason: ExitReason) {
        let mut state = self.lock();
        if state.reason.is_none() {
            state.reason = Some(reason);
            if let Err(error) = self.ended.write(1) {
                log::error!("cannot tell that the machine has ended: {error}");
            }
        }
    }

    /// Whether threads may run the guest now.
    pub fn is_open(&self) -> bool {
        self.lock().position == Position::Open
    }

    /// Why the machine is over, once it is.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.lock().reason.clone()
    }

    /// Readable once the machine is over.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    #[test]
    fn threads_stop_at_a_closed_gate_and_end_at_a_shut_one() {
        let gate = Arc::new(Gate::new().unwrap());
        let rounds = Arc::new(AtomicU64::new(0));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (gate, rounds) = (gate.clone(), rounds.clone());
                gate.enter();
                thread::spawn(move || {
                    while gate.pass() != Passage::Over {
                        rounds.fetch_add(1, Ordering::SeqCst);
                        thread::yield_now();
                    }
                    gate.leave();
                })
            })
            .collect();
        for _ in 0..20 {
            gate.close();
            gate.wait_until_parked();
            assert!(gate.is_still());
            assert!(gate.still().read().is_ok());
            let before = rounds.load(Ordering::SeqCst);
            thread::yield_now();
            assert_eq!(rounds.load(Ordering::SeqCst), before);
            gate.open();
            while rounds.load(Ordering::SeqCst) == before {
                thread::yield_now();
            }
        }
        gate.shut();
        gate.open();
        for thread in threads {
            thread.join().unwrap();
        }
        gate.wait_until_parked();
    }

    #[test]
    fn the_first_reason_counts() {
        let gate = Gate::new().unwrap();
        assert_eq!(gate.exit_reason(), None);
        assert!(gate.ended().read().is_err());
        gate.end(ExitReason::PowerOff);
        gate.end(ExitReason::Reset);
        assert_eq!(gate.exit_reason(), Some(ExitReason::PowerOff));
        assert_eq!(gate.ended().read().unwrap(), 1);
    }
}
