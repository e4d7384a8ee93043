//! The command line of `tools/lab`.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::machine::{self, Plan};
use super::state::{self, Lock, Place};
use super::supervisor::{self, Orders};
use super::{Context, EXIT_LAB, LabError, Result, client, direct, initramfs, kvm};
use crate::frame::Frame;
use crate::sys;
use crate::sys::process::{self, ChildSetup};

const HELP: &str = "\
Runs a command where /dev/kvm is complete: here if this machine's is, else in an emulated machine that shares the host's
file tree. The command gets the arguments, standard streams, environment, working directory, signals and terminal.

usage: tools/lab [OPTIONS] [--] COMMAND [ARGUMENTS...]   run it, in the lab that is up or in one for this command
       tools/lab [OPTIONS] up                            start a lab that stays
       tools/lab [OPTIONS] down [--all]                  stop it (all of them)
       tools/lab [OPTIONS] status                        say which labs are up (exit code 0), or that none is (1)

options:
  --name NAME        which lab: several can be up side by side (default: $TANDEM_LAB_NAME, else 'default')
  --timeout SECONDS  end the command, and all it started, after this time; 0: never (default: 1800)
  --memory MIB       memory of a lab that is to be started (default: 4096)
  --help             this text

exit codes: the command's own, 128+N if signal N killed it; 124 out of time; 125 the lab failed; 126 the command cannot
be executed; 127 it was not found.

environment: TANDEM_LAB=direct|emulated|auto decides by hand where commands run. In an emulated lab: TANDEM_IN_LAB=1 and
TMPDIR=/var/tmp are set; /run, /var/tmp and /dev/shm are in its memory, and all else is the host's. It has no network.
";

const DEFAULT_TIMEOUT: u64 = 1800;
const DEFAULT_MEMORY: u32 = 4096;

struct Options {
    name: String,
    timeout: Option<Duration>,
    memory: u32,
    command: Vec<OsString>,
    /// After `--`, nothing is one of our own words.
    literal: bool,
}

/// Runs, and returns the exit code.
pub fn main() -> i32 {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|word| word == "__supervise") {
        return supervise(&arguments.split_off(1));
    }
    match parse(arguments).and_then(|options| options.map_or(Ok(0), |options| dispatch(&options))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tandem-lab: error: {error}");
            EXIT_LAB
        }
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Option<Options>> {
    let mut options = Options {
        name: std::env::var("TANDEM_LAB_NAME").unwrap_or_else(|_| "default".into()),
        timeout: Some(Duration::from_secs(DEFAULT_TIMEOUT)),
        memory: DEFAULT_MEMORY,
        command: vec![],
        literal: false,
    };
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or_default();
        let (word, attached) = match text.split_once('=') {
            Some((word, value)) if word.starts_with("--") => (word, Some(value.to_string())),
            _ => (text, None),
        };
        let mut value = || {
            let next = || arguments.next().and_then(|value| value.into_string().ok());
            attached
                .clone()
                .or_else(next)
                .ok_or_else(|| LabError::Told(format!("{word} needs a value (see --help)")))
        };
        match word {
            "--name" => options.name = value()?,
            "--timeout" => {
                let seconds: u64 = number(word, &value()?)?;
                options.timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
            }
            "--memory" => options.memory = number(word, &value()?)?,
            "--help" | "-h" => {
                print!("{HELP}");
                return Ok(None);
            }
            "--" => {
                options.literal = true;
                options.command = arguments.collect();
                break;
            }
            _ if word.starts_with('-') => {
                return Err(LabError::Told(format!(
                    "unknown option {word} (see --help)"
                )));
            }
            _ => {
                options.command = std::iter::once(argument).chain(arguments).collect();
                break;
            }
        }
    }
    if options.command.is_empty() {
        return Err(LabError::Told("no command was given (see --help)".into()));
    }
    Ok(Some(options))
}

fn number<T: std::str::FromStr>(option: &str, value: &str) -> Result<T> {
    value
        .parse()
        .map_err(|_| LabError::Told(format!("{option} needs a number, not {value:?}")))
}

fn dispatch(options: &Options) -> Result<i32> {
    let word = options.command[0].to_str().filter(|_| !options.literal);
    match word {
        Some("up") if options.command.len() == 1 => up(options),
        Some("down") => down(options),
        Some("status") if options.command.len() == 1 => status(),
        _ if kvm::host_kvm_complete()? => direct::run(&options.command, options.timeout),
        _ => run(options),
    }
}

fn up(options: &Options) -> Result<i32> {
    let place = Place::named(&options.name)?;
    if kvm::host_kvm_complete()? {
        println!(
            "/dev/kvm is complete on this machine: commands run directly, and no lab is needed"
        );
        return Ok(0);
    }
    state::sweep()?;
    let begin = Instant::now();
    loop {
        if let Some(lock) = place.try_lock()? {
            let leash = start(&place, lock, options.memory, false)?;
            // It shall outlive this process.
            (&leash).write_all(b"k").during("letting the lab go")?;
            let seconds = begin.elapsed().as_secs_f64();
            println!("lab '{}' is up after {seconds:.1} s", place.name());
            return Ok(0);
        }
        // Another is starting it, or it is up; should that come to nothing, it is our turn.
        if connect(&place)?.is_some() {
            println!("lab '{}' is up already", place.name());
            return Ok(0);
        }
    }
}

fn down(options: &Options) -> Result<i32> {
    let places = match options.command.get(1).map(|word| word.to_str()) {
        None => vec![Place::named(&options.name)?],
        Some(Some("--all")) => state::sweep()?,
        Some(_) => return Err(LabError::Told("down takes nothing but --all".into())),
    };
    state::sweep()?;
    for place in places {
        match connect(&place)? {
            Some(lab) => {
                Frame::Shutdown
                    .write_to(&lab)
                    .during("talking to the lab")?;
                // Its socket ends when all is cleaned up, or with the supervisor.
                let _ = (&lab).read_to_end(&mut vec![]);
                let deadline = Instant::now() + Duration::from_secs(10);
                while place.taken()? && Instant::now() < deadline {
                    std::thread::sleep(Duration::from_millis(10));
                }
                println!("lab '{}' is down", place.name());
            }
            None => println!("lab '{}' was not up", place.name()),
        }
    }
    Ok(0)
}

fn status() -> Result<i32> {
    let places = state::sweep()?;
    for place in &places {
        match UnixStream::connect(place.socket()) {
            Ok(lab) => {
                Frame::Status(String::new())
                    .write_to(&lab)
                    .during("talking to the lab")?;
                match Frame::read_from(&lab).during("talking to the lab")? {
                    Some(Frame::Status(text)) => println!("{text}"),
                    _ => println!("lab '{}' does not answer", place.name()),
                }
            }
            Err(_) => println!("lab '{}' is starting or ending", place.name()),
        }
    }
    if places.is_empty() {
        println!("no lab is up");
    }
    Ok(places.is_empty().into())
}

/// Connects to a lab, waiting for one that is on its way; `None` when there is none.
fn connect(place: &Place) -> Result<Option<UnixStream>> {
    while place.taken()? {
        if let Ok(lab) = UnixStream::connect(place.socket()) {
            return Ok(Some(lab));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(None)
}

fn run(options: &Options) -> Result<i32> {
    let place = Place::named(&options.name)?;
    let spec = client::describe(options.command.clone())?;
    if let Some(lab) = connect(&place)? {
        return client::run(lab, spec, client::hold_signals()?, options.timeout);
    }
    state::sweep()?;
    let place = Place::named(&format!("run-{}", std::process::id()))?;
    let lock = loop {
        // Only one who sweeps at this very moment can have it.
        match place.try_lock()? {
            Some(lock) => break lock,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let leash = start(&place, lock, options.memory, true)?;
    let lab = UnixStream::connect(place.socket()).during("connecting to the lab")?;
    let code = client::run(lab, spec, client::hold_signals()?, options.timeout);
    // The lab ends with the leash, and says by its end of it that nothing is left.
    let _ = leash.shutdown(std::net::Shutdown::Write);
    let _ = (&leash).read_to_end(&mut vec![]);
    code
}

/// Starts a lab's supervisor and waits until the lab is up; returns the leash.
fn start(place: &Place, lock: Lock, memory: u32, one_shot: bool) -> Result<UnixStream> {
    if memory < 512 {
        return Err(LabError::Told(format!(
            "--memory {memory}: the lab needs 512 MiB at least"
        )));
    }
    if std::io::stderr().is_terminal() {
        eprintln!(
            "tandem-lab: /dev/kvm is not complete here: starting an emulated machine (some seconds)"
        );
    }
    let (kernel, cache) = prepare()?;
    let program = std::env::current_exe().during("finding this program")?;
    let initramfs =
        initramfs::prepare(&cache, &kernel, &program.with_file_name("tandem-lab-agent"))?;
    place.prepare(&lock)?;
    let qemu = machine::find_program("qemu-system-x86_64")?;
    let plan = Plan {
        qemu,
        kernel,
        initramfs,
        console: place.console(),
        memory,
    };
    let orders = Orders {
        place: place.clone(),
        plan,
        one_shot,
        lock: lock.0.as_raw_fd(),
    };
    let (leash, end) = UnixStream::pair().during("making a socket pair")?;
    let end: std::os::fd::OwnedFd = end.into();
    let mut command = Command::new(program);
    command
        .arg("__supervise")
        .args(supervisor::to_arguments(&orders))
        .current_dir("/");
    command
        .stdin(Stdio::from(end))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let setup = ChildSetup {
        new_session: true,
        ..ChildSetup::default()
    };
    process::set_up_child(&mut command, setup, vec![orders.lock]);
    command.spawn().during("starting the lab's supervisor")?;
    drop(command);
    drop(lock);
    let mut line = String::new();
    let mut reader = BufReader::new(&leash);
    reader.read_line(&mut line).during("waiting for the lab")?;
    match line.trim_end() {
        "ready" => Ok(leash),
        "" => Err(LabError::Told(
            "the lab did not start: its supervisor ended without a word".into(),
        )),
        reason => Err(LabError::Told(format!(
            "the lab did not start: {}",
            reason.replace('\x1f', "\n")
        ))),
    }
}

/// Lets the script see to packages and the kernel; it prints where the kernel and the cache are.
fn prepare() -> Result<(PathBuf, PathBuf)> {
    let script = std::env::var_os("TANDEM_LAB_SCRIPT").ok_or_else(|| {
        LabError::Told("TANDEM_LAB_SCRIPT is not set: call this by tools/lab".into())
    })?;
    let output = Command::new(&script)
        .arg("__prepare")
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .during(format!("running {}", script.to_string_lossy()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.lines().collect::<Vec<_>>().as_slice() {
        [kernel, cache] if output.status.success() => Ok((kernel.into(), cache.into())),
        _ => Err(LabError::Told(
            "what the lab needs could not be prepared; see above".into(),
        )),
    }
}

fn supervise(arguments: &[OsString]) -> i32 {
    let Some(orders) = supervisor::from_arguments(arguments) else {
        return EXIT_LAB;
    };
    let leash = match sys::duplicate(&sys::standard(0)) {
        Ok(leash) => UnixStream::from(leash),
        Err(_) => return EXIT_LAB,
    };
    // The leash is the only descriptor of its kind: its end must be seen when this one is closed.
    if let Ok(null) = std::fs::File::open("/dev/null") {
        sys::replace(&null, 0);
    }
    match supervisor::run(orders, leash) {
        Ok(()) => 0,
        Err(_) => EXIT_LAB,
    }
}
