//! A pause, until all has stopped.
//!
//! vCPUs stop within microseconds. A device thread finishes first what its host does for it: a disk that does not answer can
//! hold up a pause for as long as it likes. So a pause is answered when it is complete, and given up after a while.

use std::time::{Duration, Instant};

use super::{Answer, Reply};
use crate::machine::Machine;
use crate::request::{RequestError, Response, State};

/// How long a pause may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the guest runs.
#[derive(Default)]
pub enum Motion {
    /// It does.
    #[default]
    Going,
    /// It shall not.
    Stopping {
        /// Who waits for that.
        waiting: Vec<Reply>,
        /// When the pause is given up.
        deadline: Instant,
    },
    /// It does not.
    Still,
}

impl Motion {
    /// As clients are told.
    pub fn state(&self) -> State {
        match self {
            Self::Going | Self::Stopping { .. } => State::Running,
            Self::Still => State::Paused,
        }
    }

    /// Begins a pause; `reply` is answered at its end. `None` while it is under way.
    pub fn pause(&mut self, machine: &Machine, reply: Reply) -> Option<Answer> {
        match self {
            Self::Still => return Some(Ok(Response::Done)),
            Self::Stopping { waiting, .. } => waiting.push(reply),
            Self::Going => {
                machine.begin_pause();
                *self = Self::Stopping {
                    waiting: vec![reply],
                    deadline: Instant::now() + PATIENCE,
                };
            }
        }
        None
    }

    /// Lets the guest go on; a pause that is under way is given up. Returns whether it stood still.
    pub fn resume(&mut self, machine: &Machine) -> bool {
        machine.resume();
        match std::mem::take(self) {
            Self::Going => false,
            Self::Still => true,
            Self::Stopping { waiting, .. } => {
                refuse(waiting, "the microVM was resumed before it had paused");
                false
            }
        }
    }

    /// Something has stopped. Returns whether all has, since a pause was begun.
    pub fn on_still(&mut self, machine: &Machine) -> bool {
        if !matches!(self, Self::Stopping { .. }) || !machine.is_still() {
            return false;
        }
        if let Self::Stopping { waiting, .. } = std::mem::replace(self, Self::Still) {
            for reply in waiting {
                reply(Ok(Response::Done));
            }
        }
        true
    }

    /// Gives a pause up that takes too long.
    pub fn on_time(&mut self, machine: &Machine) {
        if self
            .deadline()
            .is_some_and(|deadline| deadline <= Instant::now())
        {
            machine.resume();
            if let Self::Stopping { waiting, .. } = std::mem::take(self) {
                refuse(
                    waiting,
                    "the microVM cannot be paused: a device waits for its host, perhaps a disk that does not answer; it runs on, try again later",
                );
            }
        }
    }

    /// When a pause that is under way is given up.
    pub fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Stopping { deadline, .. } => Some(*deadline),
            Self::Going | Self::Still => None,
        }
    }

    /// The machine is over.
    pub fn end(&mut self, reason: &str) {
        if let Self::Stopping { waiting, .. } = std::mem::take(self) {
            refuse(waiting, &format!("the microVM is over: {reason}"));
        }
    }
}

fn refuse(waiting: Vec<Reply>, problem: &str) {
    for reply in waiting {
        reply(Err(RequestError::Refused(problem.into())));
    }
}
