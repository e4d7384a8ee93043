//! What happens to a VM, told to whoever listens: state changes, marks of the boot, devices that need a reset, the end.
//!
//! Listeners are called on the thread on which it happens, which may be a vCPU's: they hand on what they hear and do not wait.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::request::State;
use crate::timeline::Mark;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// A phase of the boot was reached.
    Mark(Mark),
    /// The VM is in another state.
    State {
        /// Which.
        state: State,
        /// Microseconds since the start of the process.
        wall_us: u64,
    },
    /// A device stands still, or is not what it was.
    Device {
        /// Name of the device.
        device: String,
        /// What is the matter.
        problem: String,
        /// Microseconds since the start of the process.
        wall_us: u64,
    },
    /// The machine is over, and the process ends.
    End {
        /// Why.
        reason: String,
        /// Exit code of the process.
        exit_code: u8,
        /// Microseconds since the start of the process.
        wall_us: u64,
    },
}

/// Hears of events for as long as it returns true.
pub type Listener = Box<dyn FnMut(&Event) -> bool + Send>;

/// Most listeners at once.
pub const MOST_LISTENERS: usize = 64;

/// The listeners. Its lock is the last to be taken.
#[derive(Default)]
pub struct Bus(Mutex<Vec<Listener>>);

impl Bus {
    /// Tells all listeners.
    pub fn tell(&self, event: &Event) {
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain_mut(|listener| listener(event));
    }

    /// One listener more. False if there are [`MOST_LISTENERS`] already.
    pub fn add(&self, listener: Listener) -> bool {
        let mut listeners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = listeners.len() < MOST_LISTENERS;
        if room {
            listeners.push(listener);
        }
        room
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("Bus")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    fn state(state: State) -> Event {
        Event::State { state, wall_us: 5 }
    }

    #[test]
    fn a_listener_hears_until_it_leaves() {
        let bus = Bus::default();
        let (sender, heard) = mpsc::channel();
        let mut left = 2;
        bus.add(Box::new(move |event| {
            left -= 1;
            sender.send(event.clone()).unwrap();
            left > 0
        }));
        for next in [State::Running, State::Paused, State::Running] {
            bus.tell(&state(next));
        }
        let heard: Vec<_> = heard.iter().collect();
        assert_eq!(heard, [state(State::Running), state(State::Paused)]);
    }

    #[test]
    fn events_are_flat_objects() {
        let json = serde_json::to_value(state(State::NotStarted)).unwrap();
        let expected = serde_json::json!({"event": "state", "state": "Not started", "wall_us": 5});
        assert_eq!(json, expected);
    }
}
