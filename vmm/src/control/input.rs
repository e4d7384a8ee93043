//! Standard input, to the guest.

use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;

use super::StartError;
use super::running::INPUT;
use crate::console::{Input, RawTerminal};
use crate::machine::Machine;

/// Passes input on, as far as the guest takes it.
#[derive(Default)]
pub struct Feed {
    terminal: Option<RawTerminal>,
    input: Option<Input>,
    /// Whether the loop waits for input. It does not while the guest has no room for it.
    listening: bool,
}

impl Feed {
    /// Takes standard input over; a terminal is made raw.
    ///
    /// # Errors
    /// There is none, or the terminal is out of order.
    pub fn stdin() -> Result<Self, StartError> {
        let input = Input::stdin().map_err(StartError::io("open standard input"))?;
        let terminal = RawTerminal::enter().map_err(StartError::io("make the terminal raw"))?;
        Ok(Self {
            terminal,
            input: Some(input),
            listening: false,
        })
    }

    /// This process was stopped and goes on: the terminal may be its own again, or no longer.
    pub fn on_continued(&self) {
        if let Some(Err(error)) = self.terminal.as_ref().map(RawTerminal::reenter) {
            log::warn!("cannot make the terminal raw: {error}");
        }
    }

    /// Passes input on for as long as the guest takes it and none must be waited for. `readable` tells that the loop
    /// has announced input: nothing else is read where one can wait, as the read could block.
    pub fn feed(&mut self, machine: &Machine, mut readable: bool, ops: &mut EventOps) {
        while let Some(input) = &mut self.input {
            if !input.pending().is_empty() {
                match machine.offer_input(input.pending()) {
                    Ok(taken) => input.take(taken),
                    Err(error) => log::warn!("cannot tell the guest of its input: {error}"),
                }
                if !input.pending().is_empty() {
                    // The guest has no room; its next word is INPUT_SPACE.
                    return self.stop_listening(ops);
                }
            } else if input.is_over() {
                self.stop_listening(ops);
                self.input = None;
            } else if input.is_somebody_elses() {
                // Until SIGCONT says that this job is in the foreground again.
                return self.stop_listening(ops);
            } else if input.can_wait() && !readable {
                return self.listen(ops);
            } else {
                readable = false;
                if let Err(error) = input.read() {
                    log::warn!("cannot read standard input any more: {error}");
                    self.stop_listening(ops);
                    self.input = None;
                }
            }
        }
    }

    fn listen(&mut self, ops: &mut EventOps) {
        let Some(input) = self.input.as_mut().filter(|_| !self.listening) else {
            return;
        };
        match ops.add(Events::with_data(input, INPUT, EventSet::IN)) {
            Ok(()) => self.listening = true,
            Err(error) => {
                log::warn!("cannot wait for standard input: {error}");
                self.input = None;
            }
        }
    }

    fn stop_listening(&mut self, ops: &mut EventOps) {
        if let Some(input) = self.input.as_ref().filter(|_| self.listening) {
            if let Err(error) = ops.remove(Events::empty(input)) {
                log::warn!("cannot stop waiting for standard input: {error}");
            }
            self.listening = false;
        }
    }
}
