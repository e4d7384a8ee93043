//! What can be asked of a VM process, and what it answers: plain data, without HTTP and without JSON text.
//!
//! [`Vmm::handle`](crate::control::Vmm::handle) takes a [`Request`]. What it says depends on the phase: before the start the VM
//! is put together piece by piece, from then on it runs. A request in the wrong phase is refused by name.

pub use devices::mmds::StoreError;
pub use devices::virtio::balloon::STATISTICS as BALLOON_STATISTICS;
use devices::virtio::{Counters, UpdateError};
use serde::Serialize;
use serde_json::Value;

use crate::config::patch::{
    BalloonPatch, BalloonStatisticsPatch, DrivePatch, InterfacePatch, MachinePatch,
};
use crate::config::{
    BalloonConfig, BootSource, ConfigError, CpuConfig, DriveConfig, EntropyConfig, LoggerConfig,
    MachineConfig, MetricsConfig, MmdsConfig, NetworkInterface, SerialConfig, VmConfig,
    VsockConfig,
};
use crate::control::StartError;
use crate::timeline::Mark;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    // In every phase.
    /// Who and in what state: [`Response::Instance`].
    Instance,
    /// The whole configuration, as it is now: [`Response::Config`].
    Config,
    /// vCPUs and memory: [`Response::Machine`].
    MachineConfig,
    /// The balloon: [`Response::Balloon`].
    Balloon,
    /// When each phase of the boot was reached: [`Response::Timeline`].
    Timeline,
    /// What the devices have done: [`Response::Counters`].
    Counters,
    /// The metadata service's document: [`Response::Mmds`].
    Mmds,
    /// Another document in its place.
    PutMmds(Value),
    /// Changes it (JSON Merge Patch, RFC 7396).
    PatchMmds(Value),

    // Before the start.
    /// The whole configuration, in place of all that was given before.
    PutConfig(Box<VmConfig>),
    /// What to boot.
    PutBootSource(BootSource),
    /// vCPUs and memory.
    PutMachineConfig(MachineConfig),
    /// Some fields of the same.
    PatchMachineConfig(MachinePatch),
    /// A custom CPU template, in the place of one that the machine names.
    PutCpuConfig(CpuConfig),
    /// A drive; one of the same name is replaced.
    PutDrive(Box<DriveConfig>),
    /// A network interface; one of the same name is replaced.
    PutInterface(Box<NetworkInterface>),
    /// The socket device.
    PutVsock(VsockConfig),
    /// The entropy device.
    PutEntropy(EntropyConfig),
    /// The balloon.
    PutBalloon(BalloonConfig),
    /// Which interfaces reach the metadata service.
    PutMmdsConfig(MmdsConfig),
    /// Where the serial port's output goes.
    PutSerial(SerialConfig),
    /// Where the log goes; at once.
    PutLogger(LoggerConfig),
    /// Where the counters go; once.
    PutMetrics(MetricsConfig),
    /// Builds the machine and lets the guest run.
    Start,

    // From the start on.
    /// Stops the guest between two instructions. Answered when it has stopped.
    Pause,
    /// Lets it go on.
    Resume,
    /// Changes a drive.
    PatchDrive(DrivePatch),
    /// Changes the limits of a network interface.
    PatchInterface(InterfacePatch),
    /// Another size of the balloon.
    PatchBalloon(BalloonPatch),
    /// Another time between statistics.
    PatchBalloonStatistics(BalloonStatisticsPatch),
    /// What the guest tells of its memory: [`Response::BalloonStatistics`].
    BalloonStatistics,
    /// Writes a line of counters.
    FlushMetrics,
    /// Asks the guest to switch itself off, as Ctrl+Alt+Del does on a PC: by the power button, see
    /// [`Machine::press_power_button`](crate::machine::Machine::press_power_button). One request is one press: what the guest does at
    /// a second one is its own affair, so that it is for the client to ask again where nobody has listened yet.
    SendCtrlAltDel,
    /// Presses the power button, once.
    PowerButton,
    /// Ends the machine as its reset button would.
    Reset,
    /// Ends the machine at once.
    Stop,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Response {
    /// Done; there is nothing more to say.
    Done,
    /// Who this is.
    Instance(Instance),
    /// The configuration.
    Config(Box<VmConfig>),
    /// vCPUs and memory.
    Machine(MachineConfig),
    /// The balloon.
    Balloon(BalloonConfig),
    /// The balloon's counters and the guest's statistics, by the names of
    /// [`Balloon::counters`](devices::virtio::VirtioDevice::counters).
    BalloonStatistics(Counters),
    /// When what was reached.
    Timeline(Boot),
    /// Counters of each device, by its name.
    Counters(Vec<(String, Counters)>),
    /// The metadata service's document. `None` where there was none yet.
    Mmds(Option<Value>),
}

/// The process and its guest, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instance {
    /// Name of the program.
    pub app_name: &'static str,
    /// Name of the VM.
    pub id: String,
    /// Its state.
    pub state: State,
    /// Version of the program.
    pub vmm_version: String,
}

/// State of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum State {
    /// There is no guest yet.
    #[serde(rename = "Not started")]
    NotStarted,
    /// The guest runs.
    Running,
    /// The guest stands still.
    Paused,
}

/// A boot so far.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Boot {
    /// Version of the document: that of [`Report`](crate::timeline::Report).
    pub version: u32,
    /// Name of the VM.
    pub id: String,
    /// In the order in which they were reached.
    pub marks: Vec<Mark>,
}

/// Why a request was refused. Nothing has changed then. Each is one line that names what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is for the time before the start.
    #[error("{0} is not supported after starting the microVM")]
    AfterStart(&'static str),
    /// It is for the time after the start.
    #[error("{0} is not supported before starting the microVM")]
    BeforeStart(&'static str),
    /// A value is impossible.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine could not be started.
    #[error("cannot start the microVM: {}", crate::control::in_one_line(.0))]
    Start(#[from] StartError),
    /// There is nothing of that name.
    #[error("{kind} {name:?} is not part of this microVM")]
    Unknown {
        /// What it would be.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// A device could not be changed.
    #[error("{device}: {error}")]
    Update {
        /// Name of the device.
        device: String,
        /// Why not.
        error: UpdateError,
    },
    /// The metadata service's document cannot be that.
    #[error(transparent)]
    Mmds(#[from] StoreError),
    /// Something else is in the way; the text says what, and what to do.
    #[error("{0}")]
    Refused(String),
}

impl Request {
    /// What it asks for, in the words of an error.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Instance => "looking at the instance",
            Self::Config => "looking at the configuration",
            Self::MachineConfig => "looking at the machine",
            Self::Balloon => "looking at the balloon",
            Self::Timeline => "looking at the boot timeline",
            Self::Counters => "looking at counters",
            Self::Mmds => "looking at the metadata",
            Self::PutMmds(_) => "giving metadata",
            Self::PatchMmds(_) => "changing the metadata",
            Self::PutMmdsConfig(_) => "configuring the metadata service",
            Self::PutConfig(_) => "giving a configuration",
            Self::PutBootSource(_) => "configuring the boot source",
            Self::PutMachineConfig(_) | Self::PatchMachineConfig(_) => "configuring the machine",
            Self::PutCpuConfig(_) => "configuring the CPU",
            Self::PutDrive(_) => "configuring a drive",
            Self::PutInterface(_) => "configuring a network interface",
            Self::PutVsock(_) => "configuring the vsock device",
            Self::PutEntropy(_) => "configuring the entropy device",
            Self::PutBalloon(_) => "configuring the balloon",
            Self::PutSerial(_) => "configuring the serial port",
            Self::PutLogger(_) => "configuring the logger",
            Self::PutMetrics(_) => "configuring metrics",
            Self::Start => "InstanceStart",
            Self::Pause => "pausing",
            Self::Resume => "resuming",
            Self::PatchDrive(_) => "changing a drive",
            Self::PatchInterface(_) => "changing a network interface",
            Self::PatchBalloon(_) => "changing the balloon",
            Self::PatchBalloonStatistics(_) => "changing the balloon's statistics",
            Self::BalloonStatistics => "looking at the balloon's statistics",
            Self::FlushMetrics => "FlushMetrics",
            Self::SendCtrlAltDel => "SendCtrlAltDel",
            Self::PowerButton => "PowerButton",
            Self::Reset => "Reset",
            Self::Stop => "Stop",
        }
    }
}
