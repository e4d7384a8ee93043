//! Building a machine and running it.
//!
//! | file      | what lives there                                                               |
//! |-----------|--------------------------------------------------------------------------------|
//! | `builder` | [`MachineBuilder`]: the one constructor, from configuration to [`Machine`]      |
//! | `error`   | why a machine could not be built                                               |
//! | `gate`    | where vCPU threads wait while paused, and learn that it is over                |
//! | `vcpu`    | a vCPU's thread: run, exit, device, run                                        |
//! | `changes` | what to change while it runs, to be as another configuration says               |
//! | `specs`   | which virtio devices a configuration asks for                                   |
//! | `pci`     | the PCI bus and its devices; their interrupts and kicks by KVM's means          |
//! | `mmio`    | the same for devices on MMIO                                                    |
//! | `io_thread` | the threads that do the devices' work                                          |
//! | `fault`   | the words for a vCPU that cannot go on                                         |
//! | `reset`   | whether a reset was a reboot or an emergency                                   |
//!
//! A machine is born paused. [`start`](Machine::start) makes its threads and lets them go; [`pause`](Machine::pause) and
//! [`resume`](Machine::resume) stop and continue all vCPUs at an instruction boundary, and device work with them; when it ends,
//! [`ended`](Machine::ended) becomes readable and [`exit_reason`](Machine::exit_reason) tells why.
//!
//! Locks: a device's own lock may be held while the console's or the timeline's is taken, never the other way round; the
//! gate's is taken alone. None is held while the guest runs or a vCPU waits.

mod builder;
mod changes;
mod error;
mod fault;
mod gate;
mod io_thread;
mod mmio;
mod pci;
mod reset;
mod specs;
mod vcpu;

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use devices::acpi::EventRegister;
use devices::legacy::serial::Serial;
use devices::mmds::Mmds;
use devices::virtio::console::Input;
use devices::virtio::{Backend, Counters, SharedWorker, Update, UpdateError};
use vmm_sys_util::eventfd::EventFd;

use crate::confine::{Confine, Role};
use crate::events::Event;
use crate::exit::ExitReason;
use crate::kick;
use crate::memory::{GuestMemory, THREAD_STACK};
use crate::timeline::{Phase, Timeline};

pub use builder::{Host, MachineBuilder};
pub use changes::{Changes, changes};
pub use error::BuildError;
use io_thread::{IoDevice, IoThread};
pub(crate) use specs::net_name;
use vcpu::{Shared, Vcpu};

/// How long devices that are busy with something else may take, all together, before what they counted last has to do.
const COUNTERS_PATIENCE: Duration = Duration::from_millis(20);

/// A virtio device that is part of a machine.
struct Attached {
    /// Number on its bus.
    number: u8,
    /// Name, unique in the machine.
    name: String,
    /// The thread that serves it, if not [`specs::IO`].
    thread: Option<String>,
    worker: SharedWorker,
    /// The kick of each queue.
    kicks: Arc<[EventFd]>,
    /// Its counters as they were when it was last asked.
    counted: Mutex<Counters>,
}

impl Attached {
    /// On its bus with that number.
    fn new(number: u8, spec: specs::Spec) -> Result<Self, BuildError> {
        let queues = spec.device.queue_sizes().len();
        let kicks: Result<_, _> = (0..queues).map(|_| builder::event()).collect();
        let kicks = kicks?;
        let mut device = spec.device;
        device.take_kicks(&kicks);
        Ok(Self {
            number,
            name: spec.name,
            thread: spec.thread,
            counted: Mutex::new(device.counters()),
            worker: SharedWorker::new(device),
            kicks,
        })
    }

    /// Has everybody who listens to events hear of it when the device needs a reset.
    fn watch(&self, timeline: Arc<Timeline>) {
        let device = self.name.clone();
        let watcher = move |problem: &str| {
            timeline.events().tell(&Event::Device {
                device: device.clone(),
                problem: problem.to_owned(),
                wall_us: timeline.now_us(),
            });
        };
        self.worker.lock().watch(Box::new(watcher));
    }

    /// Its counters, or what they were when it was last asked if it is busy with something else for as long as `patience`.
    fn counters(&self, patience: Duration) -> Counters {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut worker) = self.worker.lock_within(patience) {
            *counted = worker.device().counters();
        }
        counted.clone()
    }

    /// What its transport is given of it.
    fn backend(&self, memory: &GuestMemory) -> Backend {
        Backend {
            number: self.number,
            worker: self.worker.clone(),
            kicks: self.kicks.clone(),
            memory: memory.clone(),
        }
    }
}

/// What takes the input.
enum InputSink {
    Serial(Arc<Serial>),
    Console(Arc<Input>),
}

/// A complete machine.
pub struct Machine {
    threads: Vec<JoinHandle<()>>,
    waiting: Vec<Vcpu>,
    attached: Vec<Attached>,
    io: Vec<IoThread>,
    shared: Arc<Shared>,
    input: InputSink,
    events: Arc<EventRegister>,
    input_space: EventFd,
    /// The metadata service, where an interface reaches it.
    mmds: Option<Mmds>,
}

impl Machine {
    /// Starts the threads of vCPUs and devices, confines the calling thread as [`Role::Main`], and lets the guest run.
    ///
    /// # Errors
    /// A thread could not be started, or this one not be confined; the machine is then stopped.
    pub fn start(&mut self) -> io::Result<()> {
        vcpu::install_kick_handler()?;
        for vcpu in self.waiting.drain(..) {
            let name = format!("vcpu {}", vcpu.index());
            self.shared.gate.enter();
            let thread = thread::Builder::new()
                .name(name)
                .stack_size(THREAD_STACK)
                .spawn(move || vcpu.run())
                .inspect_err(|_| self.shared.gate.leave())?;
            self.threads.push(thread);
        }
        let mut threads = BTreeMap::<&str, Vec<IoDevice>>::new();
        for device in &self.attached {
            device.watch(self.shared.timeline.clone());
            let name = device.thread.as_deref().unwrap_or(specs::IO);
            let served = IoDevice::new(device.worker.clone(), device.kicks.clone());
            threads.entry(name).or_default().push(served);
        }
        for (name, served) in threads {
            let thread = IoThread::start(name, served, self.shared.clone())?;
            self.io.push(thread);
        }
        // After the threads, which would have both filters else, and look at both at every call.
        (self.shared.confine)(Role::Main)?;
        self.shared.gate.open();
        Ok(())
    }

    /// What threads of the machine's owner are to do first.
    pub fn confine(&self) -> Confine {
        self.shared.confine
    }

    /// Stops all vCPUs where they are, and device work between two pieces; returns when nothing of it runs.
    pub fn pause(&self) {
        self.shared.gate.close();
        self.kick();
        self.shared.gate.wait_until_parked();
    }

    /// The same without waiting: [`still`](Self::still) becomes readable when nothing runs, and [`is_still`](Self::is_still)
    /// tells whether that is so.
    pub fn begin_pause(&self) {
        self.shared.gate.close();
        self.kick();
    }

    /// Whether a pause is complete: nothing runs.
    pub fn is_still(&self) -> bool {
        self.shared.gate.is_still()
    }

    /// Becomes readable when a pause is complete; it may have been ended since.
    pub fn still(&self) -> &EventFd {
        self.shared.gate.still()
    }

    /// Lets paused vCPUs run on.
    pub fn resume(&self) {
        self.shared.gate.open();
    }

    /// Ends the machine for `reason`, unless it has ended already.
    pub fn end(&self, reason: ExitReason) {
        self.shared.gate.end(reason);
    }

    /// Presses the power button; what follows is up to the guest.
    ///
    /// # Errors
    /// The interrupt could not be raised.
    pub fn press_power_button(&self) -> io::Result<()> {
        self.events.press_power_button()
    }

    /// Becomes readable when the machine has ended.
    pub fn ended(&self) -> &EventFd {
        self.shared.gate.ended()
    }

    /// Why the machine has ended, once it has.
    pub fn exit_reason(&self) -> Option<ExitReason> {
        self.shared.gate.exit_reason()
    }

    /// Offers input to the serial port, or the virtio console that has taken its place, and returns how many bytes from its
    /// start were taken. When the guest is ready for more, [`input_space`](Self::input_space) tells.
    ///
    /// # Errors
    /// The guest could not be told.
    pub fn offer_input(&self, bytes: &[u8]) -> io::Result<usize> {
        match &self.input {
            InputSink::Serial(serial) => serial.offer(bytes),
            InputSink::Console(input) => input.offer(bytes),
        }
    }

    /// Becomes readable when the guest has read all input.
    pub fn input_space(&self) -> &EventFd {
        &self.input_space
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.shared.memory
    }

    /// When what was reached.
    pub fn timeline(&self) -> &Arc<Timeline> {
        &self.shared.timeline
    }

    /// Changes the device of that name. `None` where it was busy with something else for as long as `patience`: this is
    /// the thread that answers requests and signals, and it does not wait for a disk that does not answer.
    ///
    /// # Errors
    /// [`UpdateError`]; nothing has changed.
    pub fn update(
        &self,
        name: &str,
        update: &Update,
        patience: Duration,
    ) -> Option<Result<(), UpdateError>> {
        let device = self.attached.iter().find(|device| device.name == name);
        let Some(device) = device else {
            let unknown = format!("there is no device {name} in this machine");
            return Some(Err(UpdateError::Refused(unknown)));
        };
        let mut worker = device.worker.lock_within(patience)?;
        let result = worker.device().update(update);
        // Whoever asks next is to find the change, if it is busy with it by then.
        let counters = worker.device().counters();
        drop(worker);
        let mut counted = device
            .counted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *counted = counters;
        // What the old limits held up may go on now; and whatever came of it, completions may have been taken meanwhile.
        for kick in device.kicks.iter() {
            // It fails only after 2^64 of them.
            let _ = kick.write(1);
        }
        Some(result)
    }

    /// What each virtio device has done so far, by its name, and the metadata service. Of one that is busy with something long,
    /// this is what it had done when it was last asked, or changed.
    pub fn counters(&self) -> Vec<(&str, Counters)> {
        let deadline = Instant::now() + COUNTERS_PATIENCE;
        let left = || deadline.saturating_duration_since(Instant::now());
        let all = self.attached.iter();
        let all = all.map(|device| (device.name.as_str(), device.counters(left())));
        let mmds = self.mmds.iter().map(|mmds| ("mmds", mmds.counters()));
        all.chain(mmds).collect()
    }

    /// Makes every vCPU leave the guest, and the devices' threads their wait.
    fn kick(&self) {
        for thread in &self.threads {
            kick::send(thread);
        }
        for io in &self.io {
            io.kick();
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shared.gate.shut();
        self.kick();
        for thread in self.threads.drain(..) {
            // A vCPU thread that panicked has nothing more to say here.
            let _ = thread.join();
        }
        for io in &mut self.io {
            io.join();
        }
        self.shared.timeline.mark(Phase::Shutdown);
    }
}
