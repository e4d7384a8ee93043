//! The main thread's event loop, from the start of the process to its end: signals, requests, input, the machine's end.
//!
//! One `event-manager` loop. Its first subscriber is the VM's owner ([`Vmm`]), with or without a machine yet; others join, such as
//! the server of a control socket. SIGTERM, SIGINT, SIGHUP and SIGQUIT press the power button, or end a process that has no guest.
//! SIGUSR1 has the configuration file looked at again, and what can be changed while the machine runs is changed; SIGUSR2 writes a
//! line of metrics.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use event_manager::{EventManager, MutEventSubscriber, SubscriberOps};

use crate::control::Vmm;
use crate::exit::ExitReason;

/// A part of the loop.
pub type Subscriber = Arc<Mutex<dyn MutEventSubscriber + Send>>;

/// Times that the loop goes round at the end, so that clients are told of it.
const LAST_ROUNDS: usize = 4;

/// The event loop failed.
#[derive(Debug, thiserror::Error)]
#[error("the event loop failed: {0}")]
pub struct RunError(event_manager::Error);

/// Runs `vmm`, and `others` beside it, until all is over. Returns why it is.
///
/// # Errors
/// [`RunError`]; a machine is stopped then.
pub fn run(vmm: &Arc<Mutex<Vmm>>, others: Vec<Subscriber>) -> Result<ExitReason, RunError> {
    let mut events = EventManager::<Subscriber>::new().map_err(RunError)?;
    events.add_subscriber(vmm.clone());
    for other in others {
        events.add_subscriber(other);
    }
    let reason = loop {
        if let Some(reason) = lock(vmm).exit_reason() {
            break reason;
        }
        events.run().map_err(RunError)?;
    };
    lock(vmm).tell_end(&reason);
    for _ in 0..LAST_ROUNDS {
        if events.run_with_timeout(0).map_err(RunError)? == 0 {
            break;
        }
    }
    lock(vmm).finish(&reason);
    Ok(reason)
}

fn lock(vmm: &Mutex<Vmm>) -> MutexGuard<'_, Vmm> {
    vmm.lock().unwrap_or_else(PoisonError::into_inner)
}
