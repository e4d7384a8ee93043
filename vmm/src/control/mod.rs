//! The VM's owner: put together before the start, asked and changed from then on.
//!
//! | file       | what lives there                                                                |
//! |------------|---------------------------------------------------------------------------------|
//! | `draft`    | before the start: a configuration, piece by piece                                 |
//! | `start`    | from a configuration to a guest that runs, with what it takes of the host         |
//! | `running`  | from the start on: requests to a machine, and its configuration as it is now        |
//! | `updates`  | changes of devices that wait for their device                                     |
//! | `pause`    | a pause, until all has stopped                                                     |
//! | `power`    | the power button, and the time that a guest has to switch itself off                |
//! | `input`    | standard input, to the guest                                                       |
//! | `metrics`  | counters as lines of JSON                                                           |
//! | `signals`  | signals as a descriptor                                                             |
//!
//! [`Vmm`] is a subscriber of the main thread's loop ([`run`](crate::run)). [`handle`](Vmm::handle) answers a request at once or,
//! where the answer takes time, later; it never waits for a guest or a disk. Requests come on the loop's own thread, so a request
//! never meets a half-done one.

mod draft;
mod input;
mod metrics;
mod pause;
mod power;
mod running;
mod signals;
mod start;
mod updates;

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use devices::mmds::Mmds;
use event_manager::{EventOps, Events, MutEventSubscriber};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::config::{LoggerConfig, MetricsConfig, VmConfig};
use crate::events::{Event, Listener};
use crate::exit::ExitReason;
use crate::machine::Host;
use crate::request::{Boot, Instance, Request, RequestError, Response, State};
use crate::timeline::{Report, Timeline};
use draft::Draft;
use running::Running;
use signals::SignalFd;

pub use start::StartError;

/// Takes the answer to a request that was not answered at once. It is called on the loop's thread.
pub type Reply = Box<dyn FnOnce(Answer) + Send>;

/// The answer to a request.
pub type Answer = Result<Response, RequestError>;

/// Changes the log; the error is one line.
pub type ConfigureLog = Box<dyn FnMut(&LoggerConfig) -> Result<(), String> + Send>;

/// Reads the configuration again; the error is one line.
pub type Reload = Box<dyn FnMut() -> Result<VmConfig, String> + Send>;

/// What a VM has of its process.
pub struct Setup {
    /// Name of the program.
    pub app_name: &'static str,
    /// Its version.
    pub version: String,
    /// Name of the VM.
    pub id: String,
    /// What the machine takes from its host.
    pub host: Host,
    /// Time that the guest has to switch itself off after a signal pressed the power button.
    pub grace: Duration,
    /// When what is reached.
    pub timeline: Arc<Timeline>,
    /// Changes the log.
    pub configure_log: ConfigureLog,
    /// Reads the configuration again at SIGUSR1, where there is a file that has it.
    pub reload: Option<Reload>,
}

/// The VM of this process, in whatever phase.
pub struct Vmm {
    setup: Setup,
    phase: Phase,
    signals: SignalFd,
    /// Has the loop look for a machine whose events it does not know yet, or for the end.
    wake: EventFd,
}

/// What there is of the VM.
enum Phase {
    /// A configuration.
    Before(Box<Draft>),
    /// A machine.
    Running(Box<Running>),
    /// Nothing any more.
    Over(ExitReason),
}

/// Numbers of event sources. Those of a machine begin at [`MACHINE`].
const SIGNAL: u32 = 0;
const WAKE: u32 = 1;
const MACHINE: u32 = 2;

impl Vmm {
    /// Before the start. Takes the signals over: call it before any thread is made, so that all leave them to the loop.
    ///
    /// # Errors
    /// Signals or descriptors cannot be had.
    pub fn new(setup: Setup) -> io::Result<Self> {
        Ok(Self {
            setup,
            phase: Phase::Before(Box::default()),
            signals: SignalFd::new()?,
            wake: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
        })
    }

    /// Answers a request. `None` where the answer takes time: then `reply` gets it.
    pub fn handle(&mut self, request: Request, reply: Reply) -> Option<Answer> {
        match request {
            Request::Instance => return Some(Ok(Response::Instance(self.instance()))),
            Request::Timeline => return Some(Ok(Response::Timeline(self.boot()))),
            Request::Mmds | Request::PutMmds(_) | Request::PatchMmds(_) => {
                return Some(metadata(&self.setup.host.mmds, request));
            }
            _ => {}
        }
        match &mut self.phase {
            Phase::Before(_) if request == Request::Start => Some(self.start_draft()),
            Phase::Before(draft) => Some(draft.handle(request, &mut self.setup)),
            Phase::Running(running) => running.handle(request, reply),
            Phase::Over(reason) => Some(Err(RequestError::Refused(format!(
                "the microVM is over: {reason}"
            )))),
        }
    }

    /// Builds a machine from `config`, in place of what was configured before, and lets the guest run.
    ///
    /// # Errors
    /// [`StartError`]; the configuration is kept, and can be changed.
    pub fn start(&mut self, config: VmConfig) -> Result<(), StartError> {
        if let Phase::Before(draft) = &mut self.phase {
            draft.replace(config)?;
        }
        self.start_now()
    }

    /// Has counters written to a file from the start on, before the first request.
    ///
    /// # Errors
    /// [`StartError::Output`].
    pub fn count_to(&mut self, metrics: MetricsConfig) -> Result<(), StartError> {
        match &mut self.phase {
            Phase::Before(draft) => draft.count_to(metrics),
            Phase::Running(_) | Phase::Over(_) => Ok(()),
        }
    }

    fn start_draft(&mut self) -> Answer {
        self.start_now()?;
        Ok(Response::Done)
    }

    fn start_now(&mut self) -> Result<(), StartError> {
        if let Phase::Before(draft) = &mut self.phase {
            let running = Running::start(draft, &self.setup)?;
            self.phase = Phase::Running(Box::new(running));
            self.wake();
        }
        Ok(())
    }

    /// Name and state.
    fn instance(&self) -> Instance {
        Instance {
            app_name: self.setup.app_name,
            id: self.setup.id.clone(),
            state: self.state(),
            vmm_version: self.setup.version.clone(),
        }
    }

    fn boot(&self) -> Boot {
        Boot {
            version: Report::VERSION,
            id: self.setup.id.clone(),
            marks: self.setup.timeline.marks(),
        }
    }

    fn state(&self) -> State {
        match &self.phase {
            Phase::Before(_) | Phase::Over(_) => State::NotStarted,
            Phase::Running(running) => running.state(),
        }
    }

    /// Has `listener` hear of the state, the marks so far, and all that happens from now on. False if there are
    /// [too many](crate::events::MOST_LISTENERS) already.
    pub fn listen(&self, mut listener: Listener) -> bool {
        let timeline = &self.setup.timeline;
        let state = Event::State {
            state: self.state(),
            wall_us: timeline.now_us(),
        };
        !listener(&state) || timeline.listen(listener)
    }

    /// Why it is all over, once it is.
    pub(crate) fn exit_reason(&self) -> Option<ExitReason> {
        match &self.phase {
            Phase::Before(_) => None,
            Phase::Running(running) => running.exit_reason(),
            Phase::Over(reason) => Some(reason.clone()),
        }
    }

    /// Tells of the end, while listeners and clients can still be told.
    pub(crate) fn tell_end(&mut self, reason: &ExitReason) {
        if let Phase::Running(running) = &mut self.phase {
            running.end(reason);
        }
        let timeline = &self.setup.timeline;
        timeline.events().tell(&Event::End {
            reason: reason.to_string(),
            exit_code: reason.code(),
            wall_us: timeline.now_us(),
        });
    }

    /// Takes the machine down, and writes out what the guest had said.
    pub(crate) fn finish(&mut self, reason: &ExitReason) {
        let phase = std::mem::replace(&mut self.phase, Phase::Over(reason.clone()));
        if let Phase::Running(running) = phase {
            running.finish();
        }
    }

    fn wake(&self) {
        if let Err(error) = self.wake.write(1) {
            log::error!("cannot wake the loop: {error}");
        }
    }

    fn on_signal(&mut self, ops: &mut EventOps) {
        let signal = match self.signals.read() {
            Ok(Some(signal)) => signal,
            Ok(None) => return,
            Err(error) => return log::error!("cannot read a signal: {error}"),
        };
        match &mut self.phase {
            Phase::Running(running) => match signal {
                libc::SIGUSR1 => match &mut self.setup.reload {
                    Some(reload) => running.reload(reload),
                    None => log::warn!(
                        "SIGUSR1: there is no --config-file to read again; the control socket changes what can be changed"
                    ),
                },
                _ => running.on_signal(signal, ops),
            },
            Phase::Before(_) if signals::ENDING.contains(&signal) => {
                log::info!("signal {signal}: there is no guest, ending at once");
                self.phase = Phase::Over(ExitReason::Stopped { signal });
            }
            Phase::Before(_) | Phase::Over(_) => {}
        }
    }
}

impl MutEventSubscriber for Vmm {
    fn init(&mut self, ops: &mut EventOps) {
        let sources = [
            Events::with_data(&self.signals, SIGNAL, EventSet::IN),
            Events::with_data(&self.wake, WAKE, EventSet::IN),
        ];
        for source in sources {
            if let Err(error) = ops.add(source) {
                // Without its sources the loop could never end.
                log::error!("cannot wait for events: {error}");
                self.phase = Phase::Over(ExitReason::Stopped {
                    signal: libc::SIGTERM,
                });
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            SIGNAL => self.on_signal(ops),
            WAKE => {
                let _ = self.wake.read();
                if let Phase::Running(running) = &mut self.phase {
                    running.join_loop(ops);
                }
            }
            source => {
                if let Phase::Running(running) = &mut self.phase {
                    running.process(source, ops);
                }
            }
        }
    }
}

/// Requests for the metadata service's document, in every phase.
fn metadata(mmds: &Mmds, request: Request) -> Answer {
    match request {
        Request::PutMmds(document) => mmds.put(document)?,
        Request::PatchMmds(patch) => mmds.patch(&patch)?,
        _ => return Ok(Response::Mmds(mmds.document())),
    }
    Ok(Response::Done)
}

/// An error with all its causes, in one line without control characters: a path may have a line feed in it.
pub fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    without_controls(&text)
}

/// `text` with its control characters written out.
pub fn without_controls(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            clean.extend(character.escape_default());
        } else {
            clean.push(character);
        }
    }
    clean
}
