//! The power button, and the time that a guest has to switch itself off.
//!
//! A signal presses it again and again while that time lasts: a guest that is still booting does not feel the first press. If it
//! has not switched itself off then, or a second signal comes, the machine is stopped.

use std::io;
use std::time::{Duration, Instant};

use vmm_sys_util::timerfd::TimerFd;

use super::StartError;
use crate::exit::ExitReason;
use crate::machine::Machine;

/// Time between presses of the power button.
const PRESS_AGAIN: Duration = Duration::from_millis(500);

/// What signals ask of the guest's power.
pub struct Power {
    timer: TimerFd,
    grace: Duration,
    stopping: Option<Stopping>,
}

/// The guest has been asked to switch itself off.
#[derive(Clone, Copy)]
struct Stopping {
    /// The signal that asked for the end.
    signal: i32,
    deadline: Instant,
}

impl Power {
    /// With so much time for the guest.
    ///
    /// # Errors
    /// There is no timer to be had.
    pub fn new(grace: Duration) -> Result<Self, StartError> {
        Ok(Self {
            timer: timer()?,
            grace,
            stopping: None,
        })
    }

    /// Readable when it is time for the next press.
    pub fn timer(&self) -> &TimerFd {
        &self.timer
    }

    /// A signal asks for the end.
    pub fn on_ending_signal(&mut self, signal: i32, machine: &Machine) {
        if self.stopping.is_some() {
            log::info!("signal {signal} again: stopping at once");
            machine.end(ExitReason::Stopped { signal });
        } else {
            log::info!(
                "signal {signal}: pressing the power button, the guest has {} s to switch itself off",
                self.grace.as_secs_f32()
            );
            self.stopping = Some(Stopping {
                signal,
                deadline: Instant::now() + self.grace,
            });
            self.press_or_stop(machine);
        }
    }

    /// The timer was seen.
    pub fn on_timer(&mut self, machine: &Machine) {
        let _ = self.timer.wait();
        self.press_or_stop(machine);
    }

    /// Presses the power button, if there is time left, and sets the timer for the next press.
    fn press_or_stop(&mut self, machine: &Machine) {
        let Some(Stopping { signal, deadline }) = self.stopping else {
            return;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            log::warn!("the guest did not switch itself off in time");
            return machine.end(ExitReason::Stopped { signal });
        }
        let pressed = machine
            .press_power_button()
            .and_then(|()| set(&mut self.timer, left.min(PRESS_AGAIN)));
        if let Err(error) = pressed {
            log::error!("cannot press the power button: {error}");
            machine.end(ExitReason::Stopped { signal });
        }
    }
}

/// A timer that is not set.
pub(super) fn timer() -> Result<TimerFd, StartError> {
    TimerFd::new().map_err(|error| {
        StartError::io("make a timer")(io::Error::from_raw_os_error(error.errno()))
    })
}

/// Has `timer` go off once, after `time`.
pub(super) fn set(timer: &mut TimerFd, time: Duration) -> io::Result<()> {
    let result = timer.reset(time, None);
    result.map_err(|error| io::Error::from_raw_os_error(error.errno()))
}
