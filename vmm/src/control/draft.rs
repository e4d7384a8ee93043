//! Before the start: a configuration, piece by piece.
//!
//! Each piece is checked as far as it can be alone: what is impossible, and files that are not there, are told at once. The
//! whole is checked at the start.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::start::{StartError, unwritable};
use super::{Answer, Setup};
use crate::config::{
    BootSource, ConfigError, DriveConfig, LoggerConfig, MetricsConfig, NetworkInterface, VmConfig,
};
use crate::console::append_to;
use crate::request::{Request, RequestError, Response};

/// A configuration in the making.
pub struct Draft {
    pub(super) config: VmConfig,
    /// Where metrics go, once that is known.
    pub(super) metrics: Option<File>,
}

impl Default for Draft {
    fn default() -> Self {
        Self {
            config: VmConfig::new(BootSource::new("")),
            metrics: None,
        }
    }
}

impl Draft {
    /// Answers a request, all but the one to start.
    pub fn handle(&mut self, request: Request, setup: &mut Setup) -> Answer {
        match request {
            Request::Config => return Ok(Response::Config(Box::new(self.config.clone()))),
            Request::MachineConfig => {
                return Ok(Response::Machine(self.config.machine_config.clone()));
            }
            Request::Balloon => {
                let balloon = self.config.balloon.ok_or_else(no_balloon)?;
                return Ok(Response::Balloon(balloon));
            }
            Request::Counters => return Ok(Response::Counters(Vec::new())),
            Request::PutConfig(config) => self.put_config(*config, setup)?,
            Request::PutBootSource(source) => {
                check_boot_source(&source)?;
                self.change(|config| config.boot_source = source)?;
            }
            Request::PutMachineConfig(machine) => {
                self.change(|config| config.set_machine_config(machine))?;
            }
            Request::PatchMachineConfig(patch) => {
                let machine = patch.applied_to(&self.config.machine_config);
                self.change(|config| config.set_machine_config(machine))?;
            }
            Request::PutCpuConfig(template) => {
                self.change(|config| config.set_cpu_config(template))?;
            }
            Request::PutDrive(drive) => self.put_drive(*drive)?,
            Request::PutInterface(interface) => self.put_interface(*interface)?,
            Request::PutVsock(vsock) => self.change(|config| config.vsock = Some(vsock))?,
            Request::PutEntropy(entropy) => self.change(|config| config.entropy = Some(entropy))?,
            Request::PutBalloon(balloon) => self.change(|config| config.balloon = Some(balloon))?,
            Request::PutMmdsConfig(mmds) => {
                self.change(|config| config.mmds_config = Some(mmds))?;
            }
            Request::PutSerial(serial) => self.change(|config| config.serial = Some(serial))?,
            Request::PutLogger(logger) => self.put_logger(logger, setup)?,
            Request::PutMetrics(metrics) => self.put_metrics(metrics)?,
            Request::Pause
            | Request::Resume
            | Request::PatchDrive(_)
            | Request::PatchInterface(_)
            | Request::PatchBalloon(_)
            | Request::PatchBalloonStatistics(_)
            | Request::BalloonStatistics
            | Request::FlushMetrics
            | Request::SendCtrlAltDel
            | Request::PowerButton
            | Request::Reset
            | Request::Stop => return Err(RequestError::BeforeStart(request.name())),
            // The owner of all phases answers these.
            Request::Instance
            | Request::Timeline
            | Request::Mmds
            | Request::PutMmds(_)
            | Request::PatchMmds(_)
            | Request::Start => {
                return Err(RequestError::BeforeStart(request.name()));
            }
        }
        Ok(Response::Done)
    }

    /// Makes a change, if what comes of it is possible.
    fn change(&mut self, change: impl FnOnce(&mut VmConfig)) -> Result<(), ConfigError> {
        let mut config = self.config.clone();
        change(&mut config);
        config.validate_so_far()?;
        self.config = config;
        Ok(())
    }

    /// Takes a whole configuration; the log is set up already.
    pub(super) fn replace(&mut self, config: VmConfig) -> Result<(), StartError> {
        config.validate()?;
        if let Some(metrics) = config.metrics.clone() {
            self.count_to(metrics)?;
        }
        self.config = config;
        Ok(())
    }

    /// Has counters written to a file.
    pub(super) fn count_to(&mut self, metrics: MetricsConfig) -> Result<(), StartError> {
        let path = metrics.metrics_path.as_path();
        let opened = append_to(path).map_err(unwritable("metrics.metrics_path", path));
        self.metrics = Some(opened?);
        self.config.metrics = Some(metrics);
        Ok(())
    }

    fn put_config(&mut self, config: VmConfig, setup: &mut Setup) -> Result<(), RequestError> {
        config.validate()?;
        check_boot_source(&config.boot_source)?;
        for (index, drive) in config.drives.iter().enumerate() {
            check_drive(&format!("drives[{index}]"), drive)?;
        }
        // What cannot be taken back comes last.
        let metrics = config.metrics.as_ref().map(open_metrics).transpose()?;
        if let Some(logger) = &config.logger {
            (setup.configure_log)(logger).map_err(RequestError::Refused)?;
        }
        self.metrics = metrics;
        self.config = config;
        Ok(())
    }

    fn put_drive(&mut self, drive: DriveConfig) -> Result<(), RequestError> {
        let drives = &self.config.drives;
        let same = |other: &DriveConfig| other.drive_id == drive.drive_id;
        let index = drives.iter().position(same);
        let at = format!("drives[{}]", index.unwrap_or(drives.len()));
        check_drive(&at, &drive)?;
        self.change(|config| put(&mut config.drives, index, drive))?;
        Ok(())
    }

    fn put_interface(&mut self, interface: NetworkInterface) -> Result<(), ConfigError> {
        let interfaces = &self.config.network_interfaces;
        let same = |other: &NetworkInterface| other.iface_id == interface.iface_id;
        let index = interfaces.iter().position(same);
        self.change(|config| put(&mut config.network_interfaces, index, interface))
    }

    fn put_logger(&mut self, logger: LoggerConfig, setup: &mut Setup) -> Result<(), RequestError> {
        (setup.configure_log)(&logger).map_err(RequestError::Refused)?;
        self.config.logger = Some(logger);
        Ok(())
    }

    fn put_metrics(&mut self, metrics: MetricsConfig) -> Result<(), RequestError> {
        if self.metrics.is_some() {
            let problem = "metrics.metrics_path: is set already; it can be set once";
            return Err(RequestError::Refused(problem.into()));
        }
        self.metrics = Some(open_metrics(&metrics)?);
        self.config.metrics = Some(metrics);
        Ok(())
    }
}

/// There is no balloon to look at or to change.
pub(super) fn no_balloon() -> RequestError {
    let problem = "balloon: is not part of this microVM; configure it before starting";
    RequestError::Refused(problem.into())
}

fn put<T>(list: &mut Vec<T>, index: Option<usize>, value: T) {
    match index.and_then(|index| list.get_mut(index)) {
        Some(slot) => *slot = value,
        None => list.push(value),
    }
}

fn check_boot_source(source: &BootSource) -> Result<(), RequestError> {
    if source.kernel_image_path.as_os_str().is_empty() {
        let problem =
            "boot-source.kernel_image_path: is empty; give the path of a vmlinux or bzImage";
        return Err(RequestError::Refused(problem.into()));
    }
    readable("boot-source.kernel_image_path", &source.kernel_image_path)?;
    match &source.initrd_path {
        Some(path) => readable("boot-source.initrd_path", path),
        None => Ok(()),
    }
}

fn check_drive(at: &str, drive: &DriveConfig) -> Result<(), RequestError> {
    match &drive.path_on_host {
        Some(path) if !path.as_os_str().is_empty() => readable(&format!("{at}.path_on_host"), path),
        // Told by the configuration's own check.
        _ => Ok(()),
    }
}

/// Whether a file is there and can be read. A FIFO does not hold this up.
fn readable(field: &str, path: &Path) -> Result<(), RequestError> {
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    opened.map(|_| ()).map_err(|error| {
        RequestError::Refused(format!(
            "{field}: cannot open {}: {error}; give the path of a file that can be read",
            path.display()
        ))
    })
}

fn open_metrics(metrics: &MetricsConfig) -> Result<File, RequestError> {
    let path = &metrics.metrics_path;
    append_to(path).map_err(|error: io::Error| {
        RequestError::Refused(format!(
            "metrics.metrics_path: cannot write to {}: {error}; give a path that can be written to",
            path.display()
        ))
    })
}
