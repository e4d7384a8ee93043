//! `boot`: cold boots of every VMM, a fresh process each, interleaved in random order.
//!
//! [`sample`] measures one boot, [`entry`] sees the first vCPU entry, [`report`] makes the table and the JSON document.

mod entry;
mod report;
mod sample;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use self::entry::EntryTrace;
use self::report::{Report, Results};
use crate::adapters::{Guest, Launch};
use crate::binary::FileFacts;
use crate::document::{Document, unix_time};
use crate::environment::Environment;
use crate::error::Result;
use crate::process::Failure;
use crate::random::Random;
use crate::signals;
use crate::stage::{Stage, StagedProgram};
use crate::vmms::{self, Vmm};

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
    let vmms = vmms::named(&args.tandem, &args.vmms)?;
    let json = args.json.as_deref().map(Document::create).transpose()?;
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
        disk: None,
        net: None,
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
    for vmm in vmms {
        let dir = stage.subdirectory(&format!("vmm-{}", contenders.len()))?;
        contenders.push(Contender::new(vmm, &guest, &dir));
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
    if let Some(json) = json {
        json.write(&report)?;
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
                (Err(Failure::Vm(why)), _) => results.failures.push(why),
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
        Err(Failure::Vm(_)) => "FAILED".into(),
    };
    eprint!("\r\x1b[K[{round}] {name}: {outcome}");
}

impl Contender {
    /// A VMM that cannot be started is one, too: its row says why.
    fn new(vmm: Vmm, guest: &Guest, dir: &Path) -> Self {
        let prepared = vmm.prepare(guest, dir);
        let mut results = Results {
            name: vmm.name,
            kind: vmm.adapter.kind(),
            program: prepared.program,
            command: prepared.command,
            library_path: prepared.library_path,
            boot_args: vmm.adapter.command_line(guest),
            summary: BTreeMap::new(),
            samples: Vec::new(),
            failures: Vec::new(),
        };
        let launch = match prepared.launch {
            Ok(launch) => Some(launch),
            Err(why) => {
                results.failures.push(why);
                None
            }
        };
        Self { launch, results }
    }
}
