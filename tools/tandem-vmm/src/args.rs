//! The command line. Names are Firecracker's wherever Firecracker has them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use vmm::bzimage::default_cache_dir;
use vmm::config::Level;

/// Runs one virtual machine, from a configuration file or by requests on a socket,
/// and ends with it.
#[derive(Debug, Parser)]
#[command(
    name = "tandem-vmm",
    version,
    verbatim_doc_comment,
    after_help = "\
The guest's serial port, or its virtio console if it has one, is standard input
and output. SIGTERM, SIGINT, SIGHUP and SIGQUIT press the power button; a second
one stops the machine at once. Before the start they end the process.
SIGUSR1 reads the configuration file again and changes what can be changed
while the machine runs; SIGUSR2 writes a line to metrics.metrics_path.

Exit codes:
    0  the guest switched itself off
    1  the host could not set up or run the machine
   64  the guest reset itself, or a request did
   65  the guest's kernel panicked, or restarted in an emergency
   66  triple fault
   67  KVM could not go on with the guest
   68  a vCPU was lost
   69  the devices were lost
   70  stopped by a request
  128+N  stopped by signal N before the guest had switched itself off
  148  a thread made a system call that its seccomp filter does not allow
  152  the configuration is not valid
  153  the command line is not valid"
)]
pub struct Args {
    /// Configuration of the machine (JSON): it is built and started at once
    #[arg(long, value_name = "PATH")]
    pub config_file: Option<PathBuf>,

    /// Take requests on a Unix socket at PATH [default: /run/tandem.socket,
    /// unless there is a --config-file]
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "no_api",
        verbatim_doc_comment
    )]
    pub api_sock: Option<PathBuf>,

    /// What the guest reads from the metadata service at first (JSON)
    #[arg(long, value_name = "PATH")]
    pub metadata: Option<PathBuf>,

    /// Most bytes that the metadata may have as JSON [default: as
    /// --http-api-max-payload-size]
    #[arg(long, value_name = "BYTES", verbatim_doc_comment)]
    pub mmds_size_limit: Option<usize>,

    /// Run without a control socket, as with a --config-file and no --api-sock
    #[arg(long, requires = "config_file")]
    pub no_api: bool,

    /// Largest body of a request, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 51200)]
    pub http_api_max_payload_size: usize,

    /// Name of the machine, for the log and for clients: 1 to 64 letters, digits
    /// and hyphens
    #[arg(long, default_value = "anonymous-instance", value_parser = instance_id, verbatim_doc_comment)]
    pub id: String,

    /// Run without seccomp filters, which let each thread make the system calls that it
    /// needs and no others
    #[arg(long, conflicts_with = "seccomp_filter", verbatim_doc_comment)]
    pub no_seccomp: bool,

    /// Seccomp filters in place of the built-in ones: a file that `tandem-seccomp
    /// compile` has made
    #[arg(long, value_name = "PATH", verbatim_doc_comment)]
    pub seccomp_filter: Option<PathBuf>,

    /// Append the log to this file or FIFO [default: standard error]
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<PathBuf>,

    /// Least important level that is logged: Off, Error, Warning, Info, Debug or
    /// Trace [default: Info with a log file, Warning on standard error]
    #[arg(long, value_name = "LEVEL", value_parser = level, verbatim_doc_comment)]
    pub level: Option<Level>,

    /// Log only messages whose module path starts with this
    #[arg(long, value_name = "PREFIX")]
    pub module: Option<String>,

    /// Show the level in log lines
    #[arg(long)]
    pub show_level: bool,

    /// Show source file and line in log lines
    #[arg(long)]
    pub show_log_origin: bool,

    /// Append counters to this file or FIFO, as metrics.metrics_path does
    #[arg(long, value_name = "PATH")]
    pub metrics_path: Option<PathBuf>,

    /// For launchers that give it: devices are on PCI anyway, unless the
    /// configuration says "transport": "mmio"
    #[arg(long, verbatim_doc_comment)]
    pub enable_pci: bool,

    /// Refused: this version has no snapshots
    #[arg(long, value_parser = no_snapshots, num_args = 0..=1, default_missing_value = "")]
    pub snapshot_version: Option<String>,

    /// Refused: this version has no snapshots
    #[arg(long, value_name = "PATH", value_parser = no_snapshots)]
    pub describe_snapshot: Option<String>,

    /// Give the guest a boot timer: writing 123 to the first byte at 0xc0000000
    /// or 0xd0000000 marks "init reached" in the timeline
    #[arg(long, verbatim_doc_comment)]
    pub boot_timer: bool,

    /// Write the boot timeline to this file (JSON) when the guest is over;
    /// implies --boot-timer
    #[arg(long, value_name = "PATH", verbatim_doc_comment)]
    pub boot_timeline: Option<PathBuf>,

    /// Time that the guest has to switch itself off after the power button
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = seconds)]
    pub stop_timeout: Duration,

    /// Where decompressed kernels are kept [default: kernels/ in TANDEM_CACHE, or
    /// tandem/kernels/ in XDG_CACHE_HOME, ~/.cache or /var/cache]
    #[arg(long, value_name = "DIR", verbatim_doc_comment)]
    pub kernel_cache: Option<PathBuf>,

    /// When the launcher started, in microseconds of the monotonic clock
    #[arg(long, value_name = "MICROSECONDS")]
    pub start_time_us: Option<u64>,

    /// CPU time of this process that the timeline leaves out, in microseconds
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub start_time_cpu_us: u64,

    /// CPU time of the launcher that the timeline counts, in microseconds
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    pub parent_cpu_time_us: u64,
}

/// What clap found wrong, in one line.
pub fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    // Usage and hints are paragraphs of their own.
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = first.split_whitespace().collect();
    let line = words.join(" ");
    let problem = line.strip_prefix("error: ").unwrap_or(&line);
    format!("{problem}; see --help")
}

impl Args {
    /// Bytes that the metadata may have.
    pub fn mmds_size_limit(&self) -> usize {
        self.mmds_size_limit
            .unwrap_or(self.http_api_max_payload_size)
    }

    /// Where decompressed kernels are kept.
    pub fn kernel_cache(&self) -> PathBuf {
        self.kernel_cache.clone().unwrap_or_else(default_cache_dir)
    }

    /// Where requests are taken, if anywhere.
    pub fn api_socket(&self) -> Option<&Path> {
        match (&self.api_sock, &self.config_file) {
            (Some(path), _) => Some(path),
            (None, Some(_)) => None,
            (None, None) => Some(Path::new(DEFAULT_SOCKET)),
        }
    }
}

/// Where requests are taken by a process that is given nothing else to do.
const DEFAULT_SOCKET: &str = "/run/tandem.socket";

fn no_snapshots(_: &str) -> Result<String, &'static str> {
    Err("this version has no snapshots; leave it out")
}

fn instance_id(text: &str) -> Result<String, &'static str> {
    let fits = (1..=64).contains(&text.len());
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fits && plain {
        Ok(text.to_owned())
    } else {
        Err("give 1 to 64 letters, digits and hyphens")
    }
}

fn level(text: &str) -> Result<Level, &'static str> {
    text.parse()
}

/// Longest time that the guest can be given: a year.
const MAX_STOP_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 3600);

fn seconds(text: &str) -> Result<Duration, &'static str> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .filter(|time| *time <= MAX_STOP_TIMEOUT)
        .ok_or("give a number of seconds up to a year, such as 10 or 0.5")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn mistakes_are_one_line() {
        let problem = |words: &[&str]| {
            let error = Args::try_parse_from([&["tandem-vmm"], words].concat()).unwrap_err();
            in_one_line(&error)
        };
        assert_eq!(
            problem(&["--no-api"]),
            "the following required arguments were not provided: --config-file <PATH>; see --help"
        );
        let refused = problem(&["--describe-snapshot", "x"]);
        assert!(refused.contains("no snapshots"), "{refused}");
        let refused = problem(&["--snapshot-version"]);
        assert!(refused.contains("no snapshots"), "{refused}");
        assert_eq!(
            problem(&["--config-file", "x", "--nonsense"]),
            "unexpected argument '--nonsense' found; see --help"
        );
        assert_eq!(
            problem(&["--config-file", "x", "--level", "loud"]),
            "invalid value 'loud' for '--level <LEVEL>': give Off, Error, Warning, Info, Debug or Trace; see --help"
        );
    }

    #[test]
    fn a_socket_is_there_when_asked_for_or_needed() {
        let socket = |words: &[&str]| {
            let args = Args::try_parse_from([&["tandem-vmm"], words].concat()).unwrap();
            args.api_socket().map(Path::to_owned)
        };
        assert_eq!(socket(&["--config-file", "c"]), None);
        assert_eq!(socket(&["--config-file", "c", "--no-api"]), None);
        assert_eq!(socket(&[]), Some(DEFAULT_SOCKET.into()));
        for config in [&[][..], &["--config-file", "c"]] {
            let words = [config, &["--api-sock", "s"]].concat();
            assert_eq!(socket(&words), Some("s".into()));
        }
    }

    #[test]
    fn identifiers_are_plain() {
        assert!(instance_id("vm-1").is_ok());
        assert!(instance_id(&"x".repeat(64)).is_ok());
        for bad in ["", "a b", "../x", "ä", &"x".repeat(65)] {
            assert!(instance_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_are_numbers_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(seconds("0"), Ok(Duration::ZERO));
        for bad in ["", "-1", "x", "inf", "nan", "1e400", "1e19"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn help_fits_a_terminal() {
        use clap::CommandFactory;
        let help = Args::command().render_long_help().to_string();
        for line in help.lines() {
            assert!(line.len() <= 90, "{line}");
        }
    }
}
