//! When each phase of a boot was reached, in wall and CPU time.
//!
//! Works on an unmodified guest. Wall time counts from the start of the process, or from the moment that the
//! launcher names (`--start-time-us`); CPU time is the whole process's, all threads together, from its birth.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::events::{Bus, Event, Listener};
use crate::exit::ExitReason;

/// A phase of a boot that was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// The process runs its first own instructions.
    ProcessStart,
    /// Requests are taken on the control socket.
    ApiReady,
    /// The configuration is read and valid.
    ConfigComplete,
    /// Guest memory is mapped.
    MemoryReady,
    /// Kernel, initrd and boot data are in guest memory.
    KernelLoaded,
    /// vCPUs, tables and devices are set up: the machine is complete.
    MachineReady,
    /// A vCPU enters the guest for the first time.
    FirstVcpuEntry,
    /// The guest wrote its first byte to the serial port.
    FirstSerialByte,
    /// The guest's driver has taken over a device (`DRIVER_OK`); the mark names it.
    DriverOk,
    /// The guest's init signalled that it runs (boot timer).
    InitReached,
    /// The guest is over, whichever way.
    Shutdown,
}

impl Phase {
    /// Name in JSON and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::ProcessStart => "process_start",
            Self::ApiReady => "api_ready",
            Self::ConfigComplete => "config_complete",
            Self::MemoryReady => "memory_ready",
            Self::KernelLoaded => "kernel_loaded",
            Self::MachineReady => "machine_ready",
            Self::FirstVcpuEntry => "first_vcpu_entry",
            Self::FirstSerialByte => "first_serial_byte",
            Self::DriverOk => "driver_ok",
            Self::InitReached => "init_reached",
            Self::Shutdown => "shutdown",
        }
    }
}

/// One phase, reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Which.
    pub phase: Phase,
    /// Name of the device, for a phase that each device has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Microseconds since the start.
    pub wall_us: u64,
    /// Microseconds of CPU time that the process has used.
    pub cpu_us: u64,
}

/// A boot from start to end: the document that `tandem-vmm --boot-timeline` writes, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the document, [`Report::VERSION`]; raised when a field changes its meaning.
    pub version: u32,
    /// Name of the machine.
    pub id: String,
    /// Exit code of the VM process.
    pub exit_code: u8,
    /// Why the machine was over, in one line.
    pub reason: String,
    /// In the order in which they were reached.
    pub marks: Vec<Mark>,
}

impl Report {
    /// The version that this code writes and reads.
    pub const VERSION: u32 = 1;

    /// Of a machine that is over.
    pub fn new(id: &str, reason: &ExitReason, timeline: &Timeline) -> Self {
        Self {
            version: Self::VERSION,
            id: id.to_owned(),
            exit_code: reason.code(),
            reason: reason.to_string(),
            marks: timeline.marks(),
        }
    }
}

/// What happened before the process ran, as its launcher tells (`--start-time-us` and its like).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Launch {
    /// When the launcher started, in microseconds of the monotonic clock; without it, wall time counts from the
    /// first own instructions.
    pub start_time_us: Option<u64>,
    /// CPU time that this process had used when it took over from the launcher, in microseconds; not counted.
    pub start_cpu_us: u64,
    /// CPU time that the launcher used, in microseconds; counted.
    pub parent_cpu_us: u64,
}

/// The moment at which this process ran its first own instructions.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    wall: Instant,
    cpu_us: u64,
}

impl Start {
    /// Now: the first thing that a program does.
    pub fn now() -> Self {
        Self {
            wall: Instant::now(),
            cpu_us: clock_us(libc::CLOCK_PROCESS_CPUTIME_ID),
        }
    }
}

/// The marks of one boot.
#[derive(Debug)]
pub struct Timeline {
    start: Instant,
    /// Microseconds that had passed at `start`.
    before_start_us: u64,
    launch: Launch,
    marks: Mutex<Vec<Mark>>,
    events: Bus,
}

impl Timeline {
    /// A timeline whose first mark, [`Phase::ProcessStart`], is at `start`.
    pub fn new(start: Start, launch: Launch) -> Self {
        let started_us = monotonic_us().saturating_sub(start.wall.elapsed().as_micros() as u64);
        let before_start_us = launch
            .start_time_us
            .map_or(0, |launched| started_us.saturating_sub(launched));
        let timeline = Self {
            start: start.wall,
            before_start_us,
            launch,
            // All phases of a small machine fit.
            marks: Mutex::new(Vec::with_capacity(16)),
            events: Bus::default(),
        };
        timeline.note(Phase::ProcessStart, None, before_start_us, start.cpu_us);
        timeline
    }

    /// Notes that `phase` is reached now, unless it was before.
    pub fn mark(&self, phase: Phase) {
        self.mark_now(phase, None);
    }

    /// Notes that the driver of the device of that name is ready now, unless it was before.
    pub fn mark_driver_ok(&self, device: &str) {
        self.mark_now(Phase::DriverOk, Some(device));
    }

    fn mark_now(&self, phase: Phase, device: Option<&str>) {
        self.note(
            phase,
            device,
            self.now_us(),
            clock_us(libc::CLOCK_PROCESS_CPUTIME_ID),
        );
    }

    fn note(&self, phase: Phase, device: Option<&str>, wall_us: u64, process_cpu_us: u64) {
        let cpu_us = process_cpu_us
            .saturating_sub(self.launch.start_cpu_us)
            .saturating_add(self.launch.parent_cpu_us);
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let is_this = |mark: &Mark| mark.phase == phase && mark.device.as_deref() == device;
        if marks.iter().any(is_this) {
            return;
        }
        let mark = Mark {
            phase,
            device: device.map(str::to_owned),
            wall_us,
            cpu_us,
        };
        self.events.tell(&Event::Mark(mark.clone()));
        marks.push(mark);
        drop(marks);
        let of = device.map(|name| format!(" of {name}")).unwrap_or_default();
        log::info!("{}{of}: {wall_us} us wall, {cpu_us} us CPU", phase.name());
    }

    /// Microseconds since the start, as in a mark.
    pub fn now_us(&self) -> u64 {
        self.before_start_us + self.start.elapsed().as_micros() as u64
    }

    /// Where its marks are told, and whatever else happens to the VM.
    pub fn events(&self) -> &Bus {
        &self.events
    }

    /// Has `listener` hear of all marks, first of those that were reached before, and of all else from now on. False if
    /// there are too many listeners.
    pub fn listen(&self, mut listener: Listener) -> bool {
        // Nothing is marked meanwhile.
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        let stays = marks
            .iter()
            .all(|mark| listener(&Event::Mark(mark.clone())));
        !stays || self.events.add(listener)
    }

    /// The marks so far, in the order in which they were reached.
    pub fn marks(&self) -> Vec<Mark> {
        self.marks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Microseconds of the clock that Firecracker's launchers read (`CLOCK_MONOTONIC`).
fn monotonic_us() -> u64 {
    clock_us(libc::CLOCK_MONOTONIC)
}

fn clock_us(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime writes only to `time`. It cannot fail: every Linux has the clocks used here.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_is_reached_once_and_time_runs_forward() {
        let launch = Launch {
            start_time_us: Some(monotonic_us() - 1_000),
            parent_cpu_us: 5_000_000,
            ..Default::default()
        };
        let timeline = Timeline::new(Start::now(), launch);
        timeline.mark(Phase::ConfigComplete);
        std::thread::sleep(std::time::Duration::from_millis(2));
        timeline.mark(Phase::ConfigComplete);
        timeline.mark_driver_ok("a");
        timeline.mark_driver_ok("b");
        timeline.mark_driver_ok("a");
        timeline.mark(Phase::Shutdown);
        let marks = timeline.marks();
        let phases: Vec<_> = marks.iter().map(|mark| mark.phase).collect();
        assert_eq!(
            phases,
            [
                Phase::ProcessStart,
                Phase::ConfigComplete,
                Phase::DriverOk,
                Phase::DriverOk,
                Phase::Shutdown
            ]
        );
        let devices: Vec<_> = marks
            .iter()
            .filter_map(|mark| mark.device.as_deref())
            .collect();
        assert_eq!(devices, ["a", "b"]);
        assert!((1_000..1_000_000).contains(&marks[0].wall_us));
        assert!(marks[0].cpu_us >= 5_000_000);
        assert!(marks.is_sorted_by_key(|mark| mark.wall_us));
        assert!(marks[2].wall_us - marks[1].wall_us >= 2_000);
    }

    #[test]
    fn names_are_those_of_the_json() {
        for phase in [
            Phase::ProcessStart,
            Phase::FirstVcpuEntry,
            Phase::InitReached,
        ] {
            let json = serde_json::to_string(&phase).unwrap();
            assert_eq!(json, format!("\"{}\"", phase.name()));
        }
    }
}
