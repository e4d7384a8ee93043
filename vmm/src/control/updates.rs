//! Changes of devices, which wait for their device.
//!
//! A device is changed while it does nothing else. One that is busy, with a slow disk perhaps, is tried again every few
//! milliseconds, and the loop serves everybody else meanwhile.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use devices::virtio::{Update, UpdateError};

use super::{Answer, Reply};
use crate::config::VmConfig;
use crate::machine::Machine;
use crate::request::{RequestError, Response};

/// How long the loop itself waits for a device.
const AT_ONCE: Duration = Duration::from_millis(1);
/// Time between two attempts.
pub const AGAIN: Duration = Duration::from_millis(2);
/// How long a device may be busy before it is not changed.
const PATIENCE: Duration = Duration::from_secs(2);

/// A change of one device.
pub struct Change {
    /// Name of the device.
    pub device: String,
    /// What it is told.
    pub update: Update,
    /// What that makes of the configuration.
    pub configure: Box<dyn FnOnce(&mut VmConfig) + Send>,
}

/// A change that waits.
struct Waiting {
    change: Change,
    reply: Reply,
    deadline: Instant,
}

/// Changes that wait, in the order in which they came.
#[derive(Default)]
pub struct Updates(VecDeque<Waiting>);

impl Updates {
    /// Makes a change, at once or when the device has time. `None` if that is later.
    pub fn make(
        &mut self,
        change: Change,
        reply: Reply,
        machine: &Machine,
        config: &mut VmConfig,
    ) -> Option<Answer> {
        let behind = self.0.iter().any(|w| w.change.device == change.device);
        if !behind {
            match machine.update(&change.device, &change.update, AT_ONCE) {
                Some(result) => return Some(settle(change, result, config)),
                None => log::debug!("{}: is busy, trying again", change.device),
            }
        }
        self.0.push_back(Waiting {
            change,
            reply,
            deadline: Instant::now() + PATIENCE,
        });
        None
    }

    /// Tries those that wait again.
    pub fn try_again(&mut self, machine: &Machine, config: &mut VmConfig) {
        // A device's changes keep their order.
        let mut busy: Vec<String> = Vec::new();
        for _ in 0..self.0.len() {
            let Some(waiting) = self.0.pop_front() else {
                return;
            };
            let device = &waiting.change.device;
            let result = if busy.contains(device) {
                None
            } else {
                machine.update(device, &waiting.change.update, Duration::ZERO)
            };
            let result = result.or_else(|| {
                let over = waiting.deadline <= Instant::now();
                over.then(|| Err(UpdateError::Refused(BUSY.into())))
            });
            match result {
                Some(result) => (waiting.reply)(settle(waiting.change, result, config)),
                None => {
                    busy.push(device.clone());
                    self.0.push_back(waiting);
                }
            }
        }
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The machine is over.
    pub fn end(&mut self, reason: &str) {
        for waiting in self.0.drain(..) {
            let problem = format!("the microVM is over: {reason}");
            (waiting.reply)(Err(RequestError::Refused(problem)));
        }
    }
}

/// Why a device was not changed in time.
pub const BUSY: &str = "is busy with a request that its host does not finish; try again later";

fn settle(change: Change, result: Result<(), UpdateError>, config: &mut VmConfig) -> Answer {
    let device = change.device;
    result.map_err(|error| RequestError::Update { device, error })?;
    (change.configure)(config);
    Ok(Response::Done)
}
