//! `boot`: cold boots of every VMM, a fresh process each, interleaved in random order.
//!
//! [`adapters`] knows how to start each VMM, [`sample`] measures one boot, [`entry`] sees the first vCPU entry, [`report`]
//! makes the table and the JSON document.

mod adapters;
mod entry;
mod report;
mod sample;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use self::adapters::{Adapter, Guest, Launch};
use self::entry::EntryTrace;
use self::report::{Report, Results};
use self::sample::Failure;
use crate::binary::{FileFacts, Program};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::random::Random;
use crate::signals;
use crate::stage::{self, Stage, StagedProgram};

/// A VMM whose first boots fail is given up, so that the others' turn comes.
const ATTEMPTS: usize = 2;

/// Cold boots of each VMM, interleaved: time to each phase, CPU time, memory
#[derive(Debug, clap::Args)]
#[command(after_help = "\
All VMMs boot the same kernel and initrd, from memory, with the same command
line but for its end: they reset by triple fault (reboot=t), Cloud Hypervisor
powers off. The guest's user space is reached when its line arrives on the
serial port. The first vCPU entry is the kernel's kvm_entry tracepoint; it
needs root and tracefs. Memory is looked at when user space is reached.

Kinds of VMM: tandem, firecracker, qemu (microvm), cloud-hypervisor.

Exit codes: 0, 1 if a boot failed, 2 if nothing could be measured, 130 if
interrupted.")]
pub struct Args {
    /// Boots of each VMM
    #[arg(short = 'n', long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Boots of each VMM before those, which do not count
    #[arg(long, default_value_t = 1, value_name = "N")]
    warmup: u32,

    /// Kernel to boot, an ELF file [default: Debian's 6.12 cloud kernel]
    #[arg(long, value_name = "VMLINUX")]
    kernel: PathBuf,

    /// Initrd whose init prints TANDEM-GUEST [default: the tests' busybox]
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,

    /// Kernel command line, but for how the guest ends
    #[arg(
        long,
        default_value = "console=ttyS0 quiet loglevel=1 panic=-1",
        value_name = "TEXT"
    )]
    boot_args: String,

    /// vCPUs of each guest
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    vcpus: u8,

    /// Memory of each guest
    #[arg(long, default_value_t = 128, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..1_000_000))]
    memory: u64,

    /// A VMM to compare with; NAME tells its kind, or else the file's name does
    #[arg(long = "vmm", value_name = "NAME=PATH")]
    vmms: Vec<String>,

    /// Tandem's VM process [default: built from this tree]
    #[arg(long, value_name = "PATH")]
    tandem: PathBuf,

    /// Write all samples, and what they were measured on, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Decides the order of the boots [default: from the clock]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Longest time for one boot
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time_limit: u64,

    /// Do without the tracepoint (it costs a little at each entry)
    #[arg(long)]
    no_tracepoint: bool,
}

/// A VMM that is to be measured.
struct Contender {
    /// How to start it; none if it cannot be.
    launch: Option<(StagedProgram, Launch)>,
    results: Results,
}

/// Measures and reports.
///
/// # Errors
/// What keeps anything from being measured.
pub fn run(args: &Args) -> Result<ExitCode> {
    let vmms = named_vmms(args)?;
    // Opened now: an hour of boots shall not end with "cannot write".
    let json = args.json.as_deref().map(create).transpose()?;
    let seed = args
        .seed
        .unwrap_or_else(|| unix_time().subsec_nanos().into());
    signals::watch();

    let mut notes = Vec::new();
    let stage = Stage::new()?;
    if !stage.in_memory() {
        notes.push("there is no tmpfs: kernel and initrd were read from a disk".into());
    }
    let guest = Guest {
        kernel: stage.copy(&args.kernel, "vmlinux")?,
        initrd: stage.copy(&args.initrd, "initrd")?,
        boot_args: args.boot_args.clone(),
        vcpus: args.vcpus,
        memory_mib: args.memory,
    };
    let trace = match args.no_tracepoint {
        true => Err("--no-tracepoint".to_owned()),
        false => EntryTrace::new(),
    };
    if let Err(why) = &trace {
        notes.push(format!(
            "first vCPU entry: only Tandem's own timeline tells it; the tracepoint was not used ({why})"
        ));
    }
    let mut contenders = Vec::new();
    for (name, path, adapter) in vmms {
        let dir = stage.subdirectory(&format!("vmm-{}", contenders.len()))?;
        contenders.push(Contender::new(name, &path, adapter, &guest, &dir));
    }
    let copied =
        |contender: &&Contender| matches!(&contender.launch, Some((program, _)) if program.copied);
    if contenders.iter().find(copied).is_some() {
        notes.push("programs on 9p, and their libraries, were copied to memory first".into());
    }
    if args.rounds < 100 {
        notes.push("p99 of fewer than 100 boots is the slowest one".into());
    }

    let complete = measure(args, seed, &guest, trace.as_ref().ok(), &mut contenders);
    drop(trace);
    let mut vmms: Vec<Results> = contenders
        .into_iter()
        .map(|contender| contender.results)
        .collect();
    vmms.iter_mut().for_each(Results::summarize);
    let report = Report {
        version: report::VERSION,
        benchmark: "boot",
        unix_time: unix_time().as_secs(),
        command: std::env::args().collect(),
        seed,
        rounds: args.rounds as usize,
        warmup: args.warmup as usize,
        interrupted: !complete,
        vcpus: args.vcpus,
        memory_mib: args.memory,
        kernel: FileFacts::of(&args.kernel)?,
        initrd: FileFacts::of(&args.initrd)?,
        environment: Environment::here(),
        notes,
        vmms,
    };
    // Who reads the table may have had enough of it.
    let _ = io::stdout().write_all(report.text().as_bytes());
    if let (Some(mut file), Some(path)) = (json, &args.json) {
        serde_json::to_writer_pretty(&mut file, &report)
            .map_err(io::Error::from)
            .and_then(|()| file.write_all(b"\n"))
            .map_err(|error| Error::file("write", path, &error))?;
    }
    let failed = report.vmms.iter().any(|vmm| !vmm.failures.is_empty());
    Ok(match (complete, failed) {
        (false, _) => ExitCode::from(130),
        (true, true) => ExitCode::FAILURE,
        (true, false) => ExitCode::SUCCESS,
    })
}

/// Boots round by round; false if a signal ended it.
fn measure(
    args: &Args,
    seed: u64,
    guest: &Guest,
    trace: Option<&EntryTrace>,
    contenders: &mut [Contender],
) -> bool {
    let limit = Duration::from_secs(args.time_limit);
    let mut random = Random::new(seed);
    let mut order: Vec<usize> = (0..contenders.len()).collect();
    for round in 0..args.warmup + args.rounds {
        random.shuffle(&mut order);
        for (position, &index) in order.iter().enumerate() {
            let Contender { launch, results } = &mut contenders[index];
            let Some((program, launch)) = launch else {
                continue;
            };
            if results.samples.is_empty() && results.failures.len() >= ATTEMPTS {
                continue;
            }
            let counted = round.checked_sub(args.warmup);
            let outcome = sample::boot(program, launch, guest, trace, limit);
            progress(counted, args.rounds, &results.name, &outcome);
            match (outcome, counted) {
                (Err(Failure::Interrupted), _) => return false,
                (Err(Failure::Boot(why)), _) => results.failures.push(why),
                (Ok(_), None) => {}
                (Ok(mut sample), Some(round)) => {
                    sample.round = Some(round as usize);
                    sample.position = position;
                    results.samples.push(sample);
                }
            }
        }
    }
    if io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
    true
}

/// One line that is overwritten, where somebody watches.
fn progress(
    round: Option<u32>,
    rounds: u32,
    name: &str,
    outcome: &std::result::Result<sample::Sample, Failure>,
) {
    if !io::stderr().is_terminal() {
        return;
    }
    let round = round.map_or("warm-up".into(), |round| format!("{}/{rounds}", round + 1));
    let outcome = match outcome {
        Ok(sample) => format!("{:.3} s", sample.exit_us as f64 / 1e6),
        Err(Failure::Interrupted) => "interrupted".into(),
        Err(Failure::Boot(_)) => "FAILED".into(),
    };
    eprint!("\r\x1b[K[{round}] {name}: {outcome}");
}

impl Contender {
    /// A VMM that cannot be started is one, too: its row says why.
    fn new(
        name: String,
        path: &Path,
        adapter: &'static dyn Adapter,
        guest: &Guest,
        dir: &Path,
    ) -> Self {
        let mut results = Results {
            name,
            kind: adapter.kind(),
            program: None,
            command: Vec::new(),
            library_path: None,
            boot_args: adapter.command_line(guest),
            summary: BTreeMap::new(),
            samples: Vec::new(),
            failures: Vec::new(),
        };
        let mut prepare = || {
            let program = results.program.insert(Program::of(path)?);
            let staged = stage::program(&program.file.path, dir)?;
            let launch = adapter.launch(guest, dir, &program.file.path)?;
            Ok::<_, Error>((staged, launch))
        };
        let launch = match prepare() {
            Ok((staged, launch)) => {
                results.command = [staged.path.clone().into_os_string()]
                    .iter()
                    .chain(&launch.arguments)
                    .map(|argument| argument.to_string_lossy().into_owned())
                    .collect();
                let libraries = staged.libraries.as_ref();
                results.library_path = libraries.map(|path| path.display().to_string());
                Some((staged, launch))
            }
            Err(error) => {
                results.failures.push(error.to_string());
                None
            }
        };
        Self { launch, results }
    }
}

/// Tandem first: it is what the others are compared with.
fn named_vmms(args: &Args) -> Result<Vec<(String, PathBuf, &'static dyn Adapter)>> {
    let mut vmms = vec![(
        "tandem".to_owned(),
        args.tandem.clone(),
        adapters::infer("tandem", &args.tandem)?,
    )];
    for text in &args.vmms {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
            None => {
                let path = PathBuf::from(text);
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (name.into_owned(), path)
            }
        };
        let path = in_path(&path);
        let adapter = adapters::infer(&name, &path)?;
        // One named just "tandem" is to be measured in place of this tree's.
        match vmms.iter_mut().position(|(known, ..)| *known == name) {
            Some(0)
                if args
                    .vmms
                    .iter()
                    .filter(|text| text.starts_with("tandem="))
                    .count()
                    < 2 =>
            {
                vmms[0] = (name, path, adapter);
            }
            Some(_) => {
                return Err(Error::new(format!(
                    "--vmm {text}: the name {name} is taken; give each VMM its own"
                )));
            }
            None => vmms.push((name, path, adapter)),
        }
    }
    Ok(vmms)
}

/// A name without a slash is searched for as a shell would.
fn in_path(path: &Path) -> PathBuf {
    if path.components().count() > 1 || path.exists() {
        return path.to_owned();
    }
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|dir| dir.join(path))
        .find(|file| file.is_file())
        .unwrap_or_else(|| path.to_owned())
}

fn create(path: &Path) -> Result<fs::File> {
    fs::File::create(path).map_err(|error| Error::file("write to", path, &error))
}

fn unix_time() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(vmms: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Wrapper {
            #[command(flatten)]
            args: Args,
        }
        let fixed = [
            "bench",
            "--kernel",
            "k",
            "--initrd",
            "i",
            "--tandem",
            "/t/tandem-vmm",
        ];
        let given = vmms.iter().flat_map(|vmm| ["--vmm", vmm]);
        let wrapper: Wrapper = clap::Parser::parse_from(fixed.into_iter().chain(given));
        wrapper.args
    }

    #[test]
    fn vmms_have_names_paths_and_kinds() {
        let vmms = named_vmms(&args(&["qemu=/q", "/opt/firecracker", "tandem-old=/old"])).unwrap();
        let told: Vec<_> = vmms
            .iter()
            .map(|(name, path, adapter)| (name.as_str(), path.to_str().unwrap(), adapter.kind()))
            .collect();
        assert_eq!(
            told,
            [
                ("tandem", "/t/tandem-vmm", "tandem"),
                ("qemu", "/q", "qemu"),
                ("firecracker", "/opt/firecracker", "firecracker"),
                ("tandem-old", "/old", "tandem"),
            ]
        );
        let replaced = named_vmms(&args(&["tandem=/mine"])).unwrap();
        assert_eq!((replaced.len(), replaced[0].1.to_str()), (1, Some("/mine")));
        assert!(named_vmms(&args(&["qemu=/a", "qemu=/b"])).is_err());
        assert!(named_vmms(&args(&["what=/a"])).is_err());
    }
}
