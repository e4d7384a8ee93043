//! The main thread's event loop: signals, input, the machine's end.
//!
//! One `event-manager` loop with one subscriber. SIGTERM, SIGINT, SIGHUP and SIGQUIT press the power button, again and again
//! while the grace time lasts: a guest that is still booting does not feel the first press. If it has not switched itself off
//! then, or a second signal comes, the machine is stopped. SIGUSR1 has the configuration looked at again, and what can be
//! changed while the machine runs is changed; SIGUSR2 writes a line of metrics.

mod metrics;
mod signals;

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use devices::virtio::Update;
use event_manager::{EventManager, EventOps, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use crate::config::VmConfig;
use crate::console::{self, Input, Output, RawTerminal};
use crate::exit::ExitReason;
use crate::machine::{self, Changes, Machine};
use metrics::Metrics;
use signals::SignalFd;

/// How long output that nobody reads may hold up the end of the process.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);

/// Time between presses of the power button.
const PRESS_AGAIN: Duration = Duration::from_millis(500);

/// Why a machine could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A descriptor, thread or timer could not be had.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The event loop failed.
    #[error("the event loop failed: {0}")]
    Loop(event_manager::Error),
}

impl RunError {
    fn io(what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}

/// How a machine is run.
pub struct Options {
    /// Time that the guest has to switch itself off after the power button was pressed.
    pub grace: Duration,
    /// Whether standard input is the guest's: its serial port's or its virtio console's.
    pub input: bool,
    /// The virtio console's output, if it is not the serial port's.
    pub console: Option<Output>,
    /// What the machine was built from.
    pub config: VmConfig,
    /// Reads the configuration again; the error is one line.
    pub reload: Box<dyn FnMut() -> Result<VmConfig, String> + Send>,
    /// Where metrics go. The file does not block.
    pub metrics: Option<File>,
}

/// Runs `machine` until it is over. Returns why it is.
///
/// # Errors
/// [`RunError`]; the machine is stopped then.
pub fn run(machine: Machine, output: Output, options: Options) -> Result<ExitReason, RunError> {
    // Before any thread is made, so that all of them leave the signals to this loop.
    let signals = SignalFd::new().map_err(RunError::io("take over the signals"))?;
    let (input, terminal) = if options.input {
        let input = Input::stdin().map_err(RunError::io("open standard input"))?;
        let terminal = RawTerminal::enter().map_err(RunError::io("make the terminal raw"))?;
        (Some(input), terminal)
    } else {
        (None, None)
    };
    let timer = TimerFd::new().map_err(|error| {
        RunError::io("make a timer")(io::Error::from_raw_os_error(error.errno()))
    })?;
    let metrics = options.metrics.map(Metrics::new).transpose();
    let controller = Arc::new(Mutex::new(Controller {
        machine,
        signals,
        timer,
        grace: options.grace,
        config: options.config,
        reload: options.reload,
        metrics: metrics.map_err(RunError::io("make a timer"))?,
        stopping: None,
        terminal,
        input,
        listening: false,
    }));
    let mut events = EventManager::new().map_err(RunError::Loop)?;
    let id = events.add_subscriber(controller.clone());
    // The guest first, as everybody waits for it; what it says is kept until the console's thread is there.
    let started = lock(&controller).machine.start();
    started.map_err(RunError::io("start the vCPUs' threads"))?;
    let mut outputs = vec![output];
    outputs.extend(options.console);
    for output in &mut outputs {
        let started = output.start();
        started.map_err(RunError::io("start the console's thread"))?;
    }
    let reason = loop {
        events.run().map_err(RunError::Loop)?;
        let mut controller = lock(&controller);
        if let Some(reason) = controller.machine.exit_reason() {
            controller.write_metrics();
            break reason;
        }
    };
    // The machine goes with the controller, and its vCPUs with it.
    drop(events.remove_subscriber(id));
    drop(controller);
    for mut output in outputs {
        output.finish(OUTPUT_PATIENCE);
    }
    Ok(reason)
}

fn lock(controller: &Mutex<Controller>) -> MutexGuard<'_, Controller> {
    controller.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Owner of the machine in the event loop.
struct Controller {
    machine: Machine,
    signals: SignalFd,
    timer: TimerFd,
    grace: Duration,
    /// What the machine is like now.
    config: VmConfig,
    reload: Box<dyn FnMut() -> Result<VmConfig, String> + Send>,
    metrics: Option<Metrics>,
    stopping: Option<Stopping>,
    terminal: Option<RawTerminal>,
    input: Option<Input>,
    /// Whether the loop waits for input. It does not while the guest has no room for it.
    listening: bool,
}

/// The guest has been asked to switch itself off.
#[derive(Clone, Copy)]
struct Stopping {
    /// The signal that asked for the end.
    signal: i32,
    deadline: Instant,
}

const ENDED: u32 = 0;
const SIGNAL: u32 = 1;
const PRESS: u32 = 2;
const INPUT: u32 = 3;
const INPUT_SPACE: u32 = 4;
const METRICS: u32 = 5;

impl Controller {
    fn on_signal(&mut self, ops: &mut EventOps) {
        let signal = match self.signals.read() {
            Ok(Some(signal)) => signal,
            Ok(None) => return,
            Err(error) => {
                log::error!("cannot read a signal: {error}");
                return;
            }
        };
        match signal {
            libc::SIGCONT => self.on_continued(ops),
            libc::SIGWINCH => self.tell_size(),
            libc::SIGUSR1 => self.reconfigure(),
            libc::SIGUSR2 => self.write_metrics(),
            _ => self.on_ending_signal(signal),
        }
    }

    fn write_metrics(&mut self) {
        if let Some(metrics) = &mut self.metrics {
            metrics.write(&self.machine);
        }
    }

    /// Looks at the configuration again. What is wrong with it, or cannot be changed, is told and changes nothing.
    fn reconfigure(&mut self) {
        let wanted = match (self.reload)() {
            Ok(wanted) => wanted,
            Err(problem) => return log::error!("the configuration stays as it is: {problem}"),
        };
        let Changes {
            updates,
            refused,
            reached,
        } = machine::changes(&self.config, &wanted);
        for field in refused {
            log::warn!("{field}: cannot be changed while the machine runs; start it again");
        }
        let mut all = true;
        for (name, update) in &updates {
            match self.machine.update(name, update) {
                Ok(()) => log::info!("{name}: changed"),
                Err(error) => {
                    all = false;
                    log::error!("{name}: {error}; it stays as it was");
                }
            }
        }
        // What did not succeed is tried again the next time.
        if all {
            self.config = reached;
        }
    }

    fn on_ending_signal(&mut self, signal: i32) {
        if self.stopping.is_some() {
            log::info!("signal {signal} again: stopping at once");
            self.machine.end(ExitReason::Stopped { signal });
        } else {
            log::info!(
                "signal {signal}: pressing the power button, the guest has {} s to switch itself off",
                self.grace.as_secs_f32()
            );
            self.stopping = Some(Stopping {
                signal,
                deadline: Instant::now() + self.grace,
            });
            self.press_or_stop();
        }
    }

    /// Presses the power button, if there is time left, and sets the timer for the next press.
    fn press_or_stop(&mut self) {
        let Some(Stopping { signal, deadline }) = self.stopping else {
            return;
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            log::warn!("the guest did not switch itself off in time");
            return self.machine.end(ExitReason::Stopped { signal });
        }
        let pressed = self.machine.press_power_button().and_then(|()| {
            self.timer
                .reset(left.min(PRESS_AGAIN), None)
                .map_err(|error| io::Error::from_raw_os_error(error.errno()))
        });
        if let Err(error) = pressed {
            log::error!("cannot press the power button: {error}");
            self.machine.end(ExitReason::Stopped { signal });
        }
    }

    /// Tells a virtio console on the terminal how large that is.
    fn tell_size(&self) {
        if self.config.console_has_input()
            && let Some(size) = console::terminal_size()
        {
            // It fails where there was no terminal when the console was made.
            let _ = self.machine.update("console", &Update::ConsoleSize(size));
        }
    }

    /// This process was stopped and goes on: the terminal may be its own again, or no longer.
    fn on_continued(&mut self, ops: &mut EventOps) {
        if let Some(Err(error)) = self.terminal.as_ref().map(RawTerminal::reenter) {
            log::warn!("cannot make the terminal raw: {error}");
        }
        self.tell_size();
        self.feed(false, ops);
    }

    /// Passes input on for as long as the guest takes it and none must be waited for. `readable` tells that the loop
    /// has announced input: nothing else is read where one can wait, as the read could block.
    fn feed(&mut self, mut readable: bool, ops: &mut EventOps) {
        while let Some(input) = &mut self.input {
            if !input.pending().is_empty() {
                match self.machine.offer_input(input.pending()) {
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

impl MutEventSubscriber for Controller {
    fn init(&mut self, ops: &mut EventOps) {
        let sources = [
            Events::with_data(self.machine.ended(), ENDED, EventSet::IN),
            Events::with_data(&self.signals, SIGNAL, EventSet::IN),
            Events::with_data(&self.timer, PRESS, EventSet::IN),
            Events::with_data(self.machine.input_space(), INPUT_SPACE, EventSet::IN),
        ];
        let metrics = self.metrics.as_ref().map(Metrics::timer);
        let metrics = metrics.map(|timer| Events::with_data(timer, METRICS, EventSet::IN));
        for source in sources.into_iter().chain(metrics) {
            if let Err(error) = ops.add(source) {
                // Without its sources the loop could never end.
                log::error!("cannot wait for events: {error}");
                self.machine.end(ExitReason::Stopped {
                    signal: libc::SIGTERM,
                });
            }
        }
        self.tell_size();
        self.feed(false, ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            SIGNAL => self.on_signal(ops),
            PRESS => {
                let _ = self.timer.wait();
                self.press_or_stop();
            }
            METRICS => {
                if let Some(metrics) = &mut self.metrics {
                    metrics.on_timer(&self.machine);
                }
            }
            INPUT => self.feed(true, ops),
            INPUT_SPACE => {
                let _ = self.machine.input_space().read();
                self.feed(false, ops);
            }
            // The loop looks for the machine's end after every event.
            _ => {}
        }
    }
}
