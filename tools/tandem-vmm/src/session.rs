//! From arguments to the guest's end.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use api_server::config::{self, DocumentError, MAX_BYTES};
use api_server::http::{BindError, Limits, Outbox, Server};
use api_server::routes::Api;
use devices::mmds::{Mmds, StoreError};
use vmm::config::{LoggerConfig, MetricsConfig, VmConfig};
use vmm::confine::Confine;
use vmm::control::{Reload, Setup, StartError, Vmm, in_one_line};
use vmm::exit::{self, ExitReason};
use vmm::machine::Host;
use vmm::run::{self, RunError, Subscriber};
use vmm::timeline::{Launch, Phase, Report, Start, Timeline};

use crate::args::Args;
use crate::sandbox::{self, SandboxError};
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
    /// The document for the metadata service cannot be read.
    #[error("--metadata: cannot read {}; give the path of a readable file of 1 MiB at most", .0.display())]
    ReadMetadata(PathBuf, #[source] io::Error),
    /// It is no JSON.
    #[error("--metadata: {} is not valid JSON; give a file with a JSON object", .0.display())]
    Metadata(PathBuf, #[source] serde_json::Error),
    /// It cannot be what the guest reads.
    #[error("--metadata: {}; give a JSON object of --mmds-size-limit bytes at most", .0.display())]
    MetadataRefused(PathBuf, #[source] StoreError),
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
    /// Descriptors for signals and events are not to be had.
    #[error("cannot have signals and events as descriptors")]
    Signals(#[source] io::Error),
    /// The process cannot be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The control socket cannot be had.
    #[error("--api-sock")]
    Socket(#[from] BindError),
    /// The machine cannot be started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The machine cannot be run.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Failure {
    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::ReadConfig(..)
            | Self::Config(..)
            | Self::ReadMetadata(..)
            | Self::Metadata(..)
            | Self::MetadataRefused(..)
            | Self::Output { .. } => exit::BAD_CONFIGURATION,
            Self::Sandbox(error) => error.exit_code(),
            Self::Start(error) => error.exit_code(),
            Self::Signals(_) | Self::Socket(_) | Self::Run(_) => exit::HOST_ERROR,
        }
    }
}

/// Runs one guest to its end. `start` is taken first thing in `main`.
///
/// # Errors
/// [`Failure`]; there is no guest then.
pub fn run(args: &Args, start: Start) -> Result<ExitReason, Failure> {
    let config = args.config_file.as_deref().map(read_config).transpose()?;
    let logger = config.as_ref().and_then(|config| config.logger.as_ref());
    start_log(args, logger)?;
    allow_descriptors();
    let launch = Launch {
        start_time_us: args.start_time_us,
        start_cpu_us: args.start_time_cpu_us,
        parent_cpu_us: args.parent_cpu_time_us,
    };
    let timeline = Arc::new(Timeline::new(start, launch));
    // Opened now: a guest that ran for days shall not end with "cannot write". What is there stays until there is more to say.
    let timeline_file = args.boot_timeline.as_deref().map(open_report).transpose()?;

    let confine = sandbox::start(args)?;
    let mmds = Mmds::new(args.mmds_size_limit());
    if let Some(path) = &args.metadata {
        read_metadata(path, &mmds)?;
    }
    let setup = setup(args, timeline.clone(), mmds, confine);
    let vmm = Vmm::new(setup).map_err(Failure::Signals)?;
    let vmm = Arc::new(Mutex::new(vmm));
    let server = args.api_socket().map(|path| serve(path, args, &vmm));
    let server = server.transpose()?;
    if server.is_some() {
        timeline.mark(Phase::ApiReady);
    }
    configure(&vmm, args, config)?;
    let reason = run::run(&vmm, server.into_iter().collect())?;
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

/// Takes requests at `path`, once the loop runs.
fn serve(path: &Path, args: &Args, vmm: &Arc<Mutex<Vmm>>) -> Result<Subscriber, Failure> {
    let outbox = Outbox::new().map_err(Failure::Signals)?;
    let api = Api::new(vmm.clone(), outbox.clone());
    let limits = Limits {
        body: args.http_api_max_payload_size,
        ..Limits::default()
    };
    let server = Server::bind(path, limits, api, outbox)?;
    Ok(Arc::new(Mutex::new(server)))
}

/// Does what the command line asks for before the first request: a machine, or counters.
fn configure(vmm: &Mutex<Vmm>, args: &Args, config: Option<VmConfig>) -> Result<(), Failure> {
    let mut vmm = vmm.lock().unwrap_or_else(PoisonError::into_inner);
    let metrics = |path: &PathBuf| MetricsConfig {
        metrics_path: path.clone(),
    };
    let metrics = args.metrics_path.as_ref().map(metrics);
    match config {
        Some(mut config) => {
            config.metrics = metrics.or(config.metrics);
            vmm.start(config)?;
        }
        None => {
            if let Some(metrics) = metrics {
                vmm.count_to(metrics)?;
            }
        }
    }
    Ok(())
}

/// What the VM has of this process.
fn setup(args: &Args, timeline: Arc<Timeline>, mmds: Mmds, confine: Confine) -> Setup {
    let reload = args.config_file.clone().map(|path| -> Reload {
        Box::new(move || read_config(&path).map_err(|failure| in_one_line(&failure)))
    });
    Setup {
        app_name: "Tandem",
        version: env!("CARGO_PKG_VERSION").into(),
        id: args.id.clone(),
        host: Host {
            kernel_cache: args.kernel_cache(),
            boot_timer: args.boot_timer || args.boot_timeline.is_some(),
            mmds,
            confine,
        },
        grace: args.stop_timeout,
        timeline,
        configure_log: Box::new(|config| {
            logger::configure(config).map_err(|error| {
                let path = config.log_path.as_deref().unwrap_or(Path::new("-"));
                in_one_line(&unwritable("logger.log_path", path)(error))
            })
        }),
        reload,
    }
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
    let document =
        read_document(path).map_err(|source| Failure::ReadConfig(path.to_owned(), source))?;
    config::parse(&document).map_err(|error| Failure::Config(path.to_owned(), error))
}

/// Gives the metadata service what is in the file.
fn read_metadata(path: &Path, mmds: &Mmds) -> Result<(), Failure> {
    let document =
        read_document(path).map_err(|source| Failure::ReadMetadata(path.to_owned(), source))?;
    let document = serde_json::from_slice(&document)
        .map_err(|source| Failure::Metadata(path.to_owned(), source))?;
    mmds.put(document)
        .map_err(|source| Failure::MetadataRefused(path.to_owned(), source))
}

/// Reads a file of [`MAX_BYTES`] at most.
fn read_document(path: &Path) -> io::Result<Vec<u8>> {
    let mut document = Vec::new();
    let file = File::open(path)?;
    file.take(MAX_BYTES + 1).read_to_end(&mut document)?;
    if document.len() as u64 > MAX_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(document)
}

/// Starts the log. The command line has the last word over the configuration's `logger` section, which it is given in turn
/// where that comes later.
fn start_log(args: &Args, config: Option<&LoggerConfig>) -> Result<(), Failure> {
    let option = match (&args.log_path, config) {
        (None, Some(_)) => "logger.log_path",
        _ => "--log-path",
    };
    let look = with_arguments(args, config);
    let path = look.log_path.as_deref().unwrap_or(Path::new("-"));
    logger::start(&args.id)
        .and_then(|()| logger::configure(&look))
        .map_err(unwritable(option, path))
}

/// A `logger` section with what the command line says about it.
fn with_arguments(args: &Args, config: Option<&LoggerConfig>) -> LoggerConfig {
    let mut look = config.cloned().unwrap_or_default();
    if args.log_path.is_some() {
        look.log_path.clone_from(&args.log_path);
    }
    if args.module.is_some() {
        look.module.clone_from(&args.module);
    }
    look.level = args.level.or(look.level);
    look.show_level = args.show_level.then_some(true).or(look.show_level);
    look.show_log_origin = args
        .show_log_origin
        .then_some(true)
        .or(look.show_log_origin);
    look
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
