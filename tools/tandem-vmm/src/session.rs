//! From arguments to the guest's end.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api_server::config::{self, DocumentError, MAX_BYTES};
use vmm::config::{LoggerConfig, VmConfig};
use vmm::console::{Output, append_to, terminal_size};
use vmm::exit::{self, ExitReason};
use vmm::machine::{BuildError, Host, MachineBuilder};
use vmm::run::{self, Options, RunError};
use vmm::timeline::{Launch, Report, Start, Timeline};

use crate::args::Args;
use crate::{logger, report};

/// Why there was no guest, or none to the end.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The configuration file cannot be read.
    #[error("--config-file: cannot read {}; give the path of a readable file of 1 MiB at most", .0.display())]
    ReadConfig(PathBuf, #[source] io::Error),
    /// The configuration is not valid.
    #[error("{}", .0.display())]
    Config(PathBuf, #[source] DocumentError),
    /// A file for output cannot be opened.
    #[error("{option}: cannot write to {}; give a path that can be written to", .path.display())]
    Output {
        /// Option or field that names the file.
        option: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Standard output is closed.
    #[error(
        "cannot use standard output for the guest's console; set serial.serial_out_path, and console.output_path if there is a console"
    )]
    Stdout(#[source] io::Error),
    /// The machine cannot be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The machine cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Failure {
    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ReadConfig(..) | Self::Config(..) | Self::Output { .. } => {
                exit::BAD_CONFIGURATION
            }
            Self::Build(error) => error.exit_code(),
            Self::Stdout(_) | Self::Run(_) => exit::HOST_ERROR,
        }
    }
}

/// A failure with all its causes, in one line.
pub struct OneLine<'a>(pub &'a Failure);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut text = self.0.to_string();
        let mut cause = self.0.source();
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        // A path may have a line feed in it.
        for character in text.chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        Ok(())
    }
}

/// Runs one guest to its end. `start` is taken first thing in `main`.
///
/// # Errors
/// [`Failure`]; there is no guest then.
pub fn run(args: &Args, start: Start) -> Result<ExitReason, Failure> {
    let config = read_config(&args.config_file)?;
    start_log(args, config.logger.as_ref())?;
    allow_descriptors();
    let launch = Launch {
        start_time_us: args.start_time_us,
        start_cpu_us: args.start_time_cpu_us,
        parent_cpu_us: args.parent_cpu_time_us,
    };
    let timeline = Arc::new(Timeline::new(start, launch));
    // Opened now: a guest that ran for days shall not end with "cannot write". What is there stays until there is more to say.
    let timeline_file = args.boot_timeline.as_deref().map(open_report).transpose()?;

    let metrics = config.metrics.as_ref().map(|metrics| {
        let path = metrics.metrics_path.as_path();
        append_to(path).map_err(unwritable("metrics.metrics_path", path))
    });
    let metrics = metrics.transpose()?;
    let output = Output::new(match config.serial_path() {
        Some(path) => Output::file(path).map_err(unwritable("serial.serial_out_path", path))?,
        None => Output::stdout().map_err(Failure::Stdout)?,
    });
    // What goes to standard output goes through one thread.
    let console = match (&config.console, config.console_path()) {
        (Some(_), Some(path)) => {
            Some(Output::file(path).map_err(unwritable("console.output_path", path))?)
        }
        (Some(_), None) if config.serial_path().is_some() => {
            Some(Output::stdout().map_err(Failure::Stdout)?)
        }
        _ => None,
    };
    let console = console.map(Output::new);
    let size = terminal_size().filter(|_| config.console_has_input());
    let host = Host {
        kernel_cache: args.kernel_cache(),
        boot_timer: args.boot_timer || args.boot_timeline.is_some(),
    };
    let machine = MachineBuilder::new(&config, &host, timeline.clone())
        .console(console.as_ref().unwrap_or(&output), size)
        .build(&output)?;
    let config_file = args.config_file.clone();
    let options = Options {
        grace: args.stop_timeout,
        input: config.serial_has_input() || config.console_has_input(),
        console,
        reload: Box::new(move || {
            read_config(&config_file).map_err(|failure| OneLine(&failure).to_string())
        }),
        config,
        metrics,
    };
    let reason = run::run(machine, output, options)?;
    if let (Some(file), Some(path)) = (timeline_file, &args.boot_timeline) {
        // The guest's end is what counts; a full disk does not change how it ended.
        if let Err(error) = report::write(file, &Report::new(&args.id, &reason, &timeline)) {
            log::error!(
                "cannot write the boot timeline to {}: {error}",
                path.display()
            );
        }
    }
    Ok(reason)
}

/// Takes as many descriptors as this process may have. A shell gives 1024 for the sake of programs that use select(2); vsock
/// alone can have as many connections.
fn allow_descriptors() {
    // SAFETY: both calls get a struct of their own, which the first fills.
    let result = unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        let mut result = libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        if result == 0 && limit.rlim_cur < limit.rlim_max {
            limit.rlim_cur = limit.rlim_max;
            result = libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
        result
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

fn read_config(path: &Path) -> Result<VmConfig, Failure> {
    let unreadable = |source| Failure::ReadConfig(path.to_owned(), source);
    let mut document = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut document))
        .map_err(unreadable)?;
    if document.len() as u64 > MAX_BYTES {
        return Err(unreadable(io::ErrorKind::FileTooLarge.into()));
    }
    config::parse(&document).map_err(|error| Failure::Config(path.to_owned(), error))
}

/// The command line has the last word over the configuration's `logger` section.
fn start_log(args: &Args, config: Option<&LoggerConfig>) -> Result<(), Failure> {
    let path = args
        .log_path
        .as_deref()
        .map(|path| ("--log-path", path))
        .or_else(|| Some(("logger.log_path", config?.log_path.as_deref()?)));
    let level = args.level.or_else(|| config?.level);
    let settings = logger::Settings {
        id: &args.id,
        path: path.map(|(_, path)| path),
        level: level.map(Into::into),
        module: args.module.as_deref().or_else(|| config?.module.as_deref()),
        show_level: args.show_level || config.is_some_and(|log| log.show_level == Some(true)),
        show_origin: args.show_log_origin
            || config.is_some_and(|log| log.show_log_origin == Some(true)),
    };
    let (option, path) = path.unwrap_or(("--log-path", Path::new("-")));
    logger::start(&settings).map_err(unwritable(option, path))
}

fn open_report(path: &Path) -> Result<File, Failure> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(unwritable("--boot-timeline", path))
}

fn unwritable(option: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    move |source| Failure::Output {
        option,
        path: path.to_owned(),
        source,
    }
}
