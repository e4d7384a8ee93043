//! From the start on: requests to a machine, and its configuration as it is now.

use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::virtio::block::BlockUpdate;
use devices::virtio::{Update, UpdateError};
use event_manager::{EventOps, Events};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::draft::{Draft, no_balloon};
use super::input::Feed;
use super::metrics::Metrics;
use super::pause::Motion;
use super::power::{self, Power};
use super::updates::{self, Change, Updates};
use super::{Answer, MACHINE, Reload, Reply, Setup, StartError, start};
use crate::config::patch::{
    BalloonPatch, BalloonStatisticsPatch, DrivePatch, InterfacePatch, changed_limits,
};
use crate::config::{BalloonConfig, NetworkInterface, VmConfig};
use crate::console::{self, Output};
use crate::events::Event;
use crate::exit::ExitReason;
use crate::machine::{self, Changes, Machine};
use crate::request::{Request, RequestError, Response, State};
use crate::timeline::Timeline;

/// How long output that nobody reads may hold up the end of the process.
const OUTPUT_PATIENCE: Duration = Duration::from_secs(2);
/// How long a device that is busy may hold up the reading of the configuration file.
const RELOAD_PATIENCE: Duration = Duration::from_millis(200);

const ENDED: u32 = MACHINE;
const PRESS: u32 = MACHINE + 1;
pub const INPUT: u32 = MACHINE + 2;
const INPUT_SPACE: u32 = MACHINE + 3;
const METRICS: u32 = MACHINE + 4;
const STILL: u32 = MACHINE + 5;
const TICK: u32 = MACHINE + 6;

/// A machine and all that belongs to it.
pub struct Running {
    machine: Machine,
    /// What the machine is like now.
    config: VmConfig,
    outputs: Vec<Output>,
    feed: Feed,
    metrics: Option<Metrics>,
    power: Power,
    motion: Motion,
    updates: Updates,
    /// Goes off when an update is to be tried again, or a pause given up.
    tick: TimerFd,
    timeline: Arc<Timeline>,
}

impl Running {
    /// Builds a machine and lets the guest run.
    ///
    /// # Errors
    /// [`StartError`]; `draft` is as it was.
    pub fn start(draft: &mut Draft, setup: &Setup) -> Result<Self, StartError> {
        let config = draft.config.clone();
        let built = start::build(&config, setup)?;
        let feed = if config.serial_has_input() || config.console_has_input() {
            Feed::stdin()?
        } else {
            Feed::default()
        };
        let metrics = draft.metrics.as_ref().map(|file| {
            let file = file.try_clone();
            file.and_then(Metrics::new)
        });
        let metrics = metrics.transpose();
        let mut running = Self {
            machine: built.machine,
            config,
            outputs: built.outputs,
            feed,
            metrics: metrics.map_err(StartError::io("make a timer"))?,
            power: Power::new(setup.grace)?,
            motion: Motion::default(),
            updates: Updates::default(),
            tick: power::timer()?,
            timeline: setup.timeline.clone(),
        };
        // The guest first, as everybody waits for it; what it says is kept until the console's thread is there.
        let started = running.machine.start();
        started.map_err(StartError::io("start the vCPUs' threads"))?;
        for output in &mut running.outputs {
            let started = output.start(setup.host.confine);
            started.map_err(StartError::io("start the console's thread"))?;
        }
        running.tell_state();
        Ok(running)
    }

    /// Answers a request, or has `reply` get the answer later.
    pub fn handle(&mut self, request: Request, reply: Reply) -> Option<Answer> {
        let answer = match request {
            Request::Pause => self.motion.pause(&self.machine, reply),
            Request::PatchDrive(patch) => self.patch_drive(patch, reply),
            Request::PatchInterface(patch) => self.patch_interface(patch, reply),
            Request::PatchBalloon(patch) => self.patch_balloon(patch, reply),
            Request::PatchBalloonStatistics(patch) => self.patch_statistics(patch, reply),
            other => Some(self.handle_now(other)),
        };
        self.set_tick();
        answer
    }

    fn handle_now(&mut self, request: Request) -> Answer {
        match request {
            Request::Config => return Ok(Response::Config(Box::new(self.config.clone()))),
            Request::MachineConfig => {
                return Ok(Response::Machine(self.config.machine_config.clone()));
            }
            Request::Balloon => return Ok(Response::Balloon(self.balloon()?)),
            Request::BalloonStatistics => return self.balloon_statistics(),
            Request::Counters => return Ok(Response::Counters(self.counters())),
            Request::Resume => {
                if self.motion.resume(&self.machine) {
                    self.tell_state();
                }
            }
            Request::FlushMetrics => self.write_metrics(),
            Request::SendCtrlAltDel | Request::PowerButton => {
                self.machine.press_power_button().map_err(|error| {
                    RequestError::Refused(format!("cannot press the power button: {error}"))
                })?;
            }
            Request::Reset => self.machine.end(ExitReason::ResetByRequest),
            Request::Stop => self.machine.end(ExitReason::StoppedByRequest),
            Request::PutConfig(_)
            | Request::PutBootSource(_)
            | Request::PutMachineConfig(_)
            | Request::PatchMachineConfig(_)
            | Request::PutCpuConfig(_)
            | Request::PutDrive(_)
            | Request::PutInterface(_)
            | Request::PutVsock(_)
            | Request::PutEntropy(_)
            | Request::PutBalloon(_)
            | Request::PutMmdsConfig(_)
            | Request::PutSerial(_)
            | Request::PutLogger(_)
            | Request::PutMetrics(_)
            | Request::Start => return Err(RequestError::AfterStart(request.name())),
            // Answered elsewhere: by the owner of all phases, or not at once.
            Request::Instance
            | Request::Timeline
            | Request::Mmds
            | Request::PutMmds(_)
            | Request::PatchMmds(_)
            | Request::Pause
            | Request::PatchDrive(_)
            | Request::PatchInterface(_)
            | Request::PatchBalloon(_)
            | Request::PatchBalloonStatistics(_) => {
                return Err(RequestError::AfterStart(request.name()));
            }
        }
        Ok(Response::Done)
    }

    fn make(&mut self, change: Change, reply: Reply) -> Option<Answer> {
        let Self {
            updates,
            machine,
            config,
            ..
        } = self;
        updates.make(change, reply, machine, config)
    }

    fn patch_drive(&mut self, patch: DrivePatch, reply: Reply) -> Option<Answer> {
        let id = patch.drive_id.clone();
        if !self.config.drives.iter().any(|drive| drive.drive_id == id) {
            return Some(Err(unknown("drive", id)));
        }
        let update = BlockUpdate {
            path: patch.path_on_host.clone(),
            reopen: true,
            limits: patch.rate_limiter.unwrap_or_default(),
        };
        let change = Change {
            device: format!("block_{id}"),
            update: Update::Block(update),
            configure: Box::new(move |config| {
                let drive = config.drives.iter_mut().find(|drive| drive.drive_id == id);
                if let Some(drive) = drive {
                    if patch.path_on_host.is_some() {
                        drive.path_on_host = patch.path_on_host;
                    }
                    let limits = patch.rate_limiter.unwrap_or_default();
                    drive.rate_limiter = changed_limits(drive.rate_limiter, &limits);
                }
            }),
        };
        self.make(change, reply)
    }

    fn patch_interface(&mut self, patch: InterfacePatch, reply: Reply) -> Option<Answer> {
        let id = patch.iface_id;
        let same = |interface: &NetworkInterface| interface.iface_id == id;
        let Some(interface) = self.config.network_interfaces.iter().find(|i| same(i)) else {
            return Some(Err(unknown("network interface", id)));
        };
        let (rx, tx) = (
            patch.rx_rate_limiter.unwrap_or_default(),
            patch.tx_rate_limiter.unwrap_or_default(),
        );
        let change = Change {
            device: machine::net_name(interface),
            update: Update::Net { rx, tx },
            configure: Box::new(move |config| {
                let mut all = config.network_interfaces.iter_mut();
                if let Some(interface) = all.find(|interface| interface.iface_id == id) {
                    interface.rx_rate_limiter = changed_limits(interface.rx_rate_limiter, &rx);
                    interface.tx_rate_limiter = changed_limits(interface.tx_rate_limiter, &tx);
                }
            }),
        };
        self.make(change, reply)
    }

    fn balloon(&self) -> Result<BalloonConfig, RequestError> {
        self.config.balloon.ok_or_else(no_balloon)
    }

    fn patch_balloon(&mut self, patch: BalloonPatch, reply: Reply) -> Option<Answer> {
        self.change_balloon(reply, |balloon| {
            balloon.amount_mib = patch.amount_mib;
            Ok(())
        })
    }

    fn patch_statistics(&mut self, patch: BalloonStatisticsPatch, reply: Reply) -> Option<Answer> {
        self.change_balloon(reply, |balloon| {
            let interval = &mut balloon.stats_polling_interval_s;
            if (*interval == 0) != (patch.stats_polling_interval_s == 0) {
                let problem = "balloon.stats_polling_interval_s: statistics cannot be switched on or off after starting the microVM; give a time other than 0 before";
                return Err(RequestError::Refused(problem.into()));
            }
            *interval = patch.stats_polling_interval_s;
            Ok(())
        })
    }

    fn change_balloon(
        &mut self,
        reply: Reply,
        change: impl FnOnce(&mut BalloonConfig) -> Result<(), RequestError>,
    ) -> Option<Answer> {
        let changed = || {
            let mut balloon = self.balloon()?;
            change(&mut balloon)?;
            let mut config = self.config.clone();
            config.balloon = Some(balloon);
            config.validate()?;
            Ok(balloon)
        };
        let balloon = match changed() {
            Ok(balloon) => balloon,
            Err(error) => return Some(Err(error)),
        };
        let change = Change {
            device: "balloon".into(),
            update: Update::Balloon(balloon.wanted()),
            configure: Box::new(move |config| config.balloon = Some(balloon)),
        };
        self.make(change, reply)
    }

    fn balloon_statistics(&self) -> Answer {
        if self.balloon()?.stats_polling_interval_s == 0 {
            let problem = "balloon.stats_polling_interval_s: is 0, so there are no statistics; set it before starting the microVM";
            return Err(RequestError::Refused(problem.into()));
        }
        let counters = self.machine.counters();
        let balloon = counters.into_iter().find(|(name, _)| *name == "balloon");
        let (_, statistics) = balloon.ok_or_else(no_balloon)?;
        Ok(Response::BalloonStatistics(statistics))
    }

    fn counters(&self) -> Vec<(String, devices::virtio::Counters)> {
        let all = self.machine.counters().into_iter();
        all.map(|(name, counters)| (name.to_owned(), counters))
            .collect()
    }

    fn write_metrics(&mut self) {
        if let Some(metrics) = &mut self.metrics {
            metrics.write(&self.machine);
        }
    }

    /// As clients are told.
    pub fn state(&self) -> State {
        self.motion.state()
    }

    fn tell_state(&self) {
        self.timeline.events().tell(&Event::State {
            state: self.state(),
            wall_us: self.timeline.now_us(),
        });
    }

    /// Why the machine is over, once it is.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.machine.exit_reason()
    }

    /// The machine is over: whoever waits is told, and what is counted is written.
    pub fn end(&mut self, reason: &ExitReason) {
        self.write_metrics();
        let reason = reason.to_string();
        self.motion.end(&reason);
        self.updates.end(&reason);
    }

    /// Takes the machine down and writes out what the guest has said.
    pub fn finish(self) {
        // Its vCPUs and devices go with it.
        drop(self.machine);
        for mut output in self.outputs {
            output.finish(OUTPUT_PATIENCE);
        }
    }

    /// Sets the timer for what waits: for updates, or for the end of a pause that takes too long.
    fn set_tick(&mut self) {
        let next = match self.motion.deadline() {
            _ if !self.updates.is_empty() => Some(updates::AGAIN),
            deadline => deadline.map(|at| {
                let left = at.saturating_duration_since(Instant::now());
                left.max(updates::AGAIN)
            }),
        };
        // Without anything to wait for it may go off once for nothing.
        if let Some(next) = next
            && let Err(error) = power::set(&mut self.tick, next)
        {
            log::error!("cannot set a timer: {error}");
        }
    }

    /// Looks at the configuration file again. What is wrong with it, or cannot be changed, is told and changes nothing.
    pub fn reload(&mut self, reload: &mut Reload) {
        let wanted = match reload() {
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
            let result = self.machine.update(name, update, RELOAD_PATIENCE);
            match result.unwrap_or_else(|| Err(UpdateError::Refused(updates::BUSY.into()))) {
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

    /// A signal that is not for the owner of all phases.
    pub fn on_signal(&mut self, signal: i32, ops: &mut EventOps) {
        match signal {
            libc::SIGCONT => {
                self.feed.on_continued();
                self.tell_size();
                self.feed.feed(&self.machine, false, ops);
            }
            libc::SIGWINCH => self.tell_size(),
            libc::SIGUSR2 => self.write_metrics(),
            _ => self.power.on_ending_signal(signal, &self.machine),
        }
    }

    /// Tells a virtio console on the terminal how large that is.
    fn tell_size(&self) {
        if self.config.console_has_input()
            && let Some(size) = console::terminal_size()
        {
            let update = Update::ConsoleSize(size);
            // It fails where there was no terminal when the console was made.
            let _ = self.machine.update("console", &update, RELOAD_PATIENCE);
        }
    }

    /// Has the loop wait for the machine's events.
    pub fn join_loop(&mut self, ops: &mut EventOps) {
        let sources = [
            Events::with_data(self.machine.ended(), ENDED, EventSet::IN),
            Events::with_data(self.power.timer(), PRESS, EventSet::IN),
            Events::with_data(self.machine.input_space(), INPUT_SPACE, EventSet::IN),
            Events::with_data(self.machine.still(), STILL, EventSet::IN),
            Events::with_data(&self.tick, TICK, EventSet::IN),
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
        self.feed.feed(&self.machine, false, ops);
    }

    /// One of them has come.
    pub fn process(&mut self, source: u32, ops: &mut EventOps) {
        match source {
            PRESS => self.power.on_timer(&self.machine),
            METRICS => {
                if let Some(metrics) = &mut self.metrics {
                    metrics.on_timer(&self.machine);
                }
            }
            INPUT => self.feed.feed(&self.machine, true, ops),
            INPUT_SPACE => {
                let _ = self.machine.input_space().read();
                self.feed.feed(&self.machine, false, ops);
            }
            STILL => {
                let _ = self.machine.still().read();
                if self.motion.on_still(&self.machine) {
                    self.tell_state();
                }
            }
            TICK => {
                let _ = self.tick.wait();
                self.updates.try_again(&self.machine, &mut self.config);
                self.motion.on_time(&self.machine);
                self.set_tick();
            }
            // The loop looks for the machine's end after every event.
            _ => {}
        }
    }
}

fn unknown(kind: &'static str, name: String) -> RequestError {
    RequestError::Unknown { kind, name }
}
