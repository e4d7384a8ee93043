//! `api`: a VMM's control socket. How soon and at what cost there is a first answer, and how fast are all others?
//!
//! [`sample`] starts one VMM and puts it under load, [`guest`] gives it a guest, [`client`] asks it, [`report`] makes the table and the JSON document.

mod client;
mod guest;
mod report;
mod sample;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use self::guest::Guest;
use self::report::{Report, Results};
use self::sample::Load;
use crate::binary::Program;
use crate::document::{Document, unix_time};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::process::Failure;
use crate::random::Random;
use crate::signals;
use crate::stage::{self, Stage, StagedProgram};
use crate::vmms::{self, Vmm};

/// The control socket of each VMM: time and CPU time to the first answer, latency and rate of GET /
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each VMM is started with --api-sock and --level Error, without a guest. The first answer is
that to GET /, asked as soon as somebody listens; CPU time is that of all its
threads by then. Then one VMM after the other is asked, in rounds: over one
connection; over a new one for each request; and over several at once, each
with one request at a time, by a client of one thread.

With --guest there is none of this, and one guest of one vCPU in each round
instead. GET / is asked over a kept connection, 2 ms after the answer before:
before its start, while it boots, while fio in it reads and writes its disk at
random (depth 32), and while it is paused. tools/bench runs this where /dev/kvm is complete.

Kinds of VMM: tandem, firecracker (others have no API of this kind).

Exit codes: 0, 1 if a VMM failed, 2 if nothing could be measured, 130 if
interrupted.")]
pub struct Args {
    /// Starts of each VMM
    #[arg(short = 'n', long, default_value_t = 50, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    starts: u32,

    /// Rounds of requests
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Requests of each kind in a round
    #[arg(long, default_value_t = 2000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,

    /// Connections at once for the rate (Firecracker has 10)
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    connections: u32,

    /// Ask while there is a guest that boots, uses its disk, and is paused
    #[arg(long)]
    guest: bool,

    /// Kernel of that guest, an ELF file [default: Debian's 6.12 cloud kernel]
    #[arg(long, value_name = "VMLINUX", requires = "guest")]
    kernel: Option<PathBuf>,

    /// Its initrd, with fio [default: the tests' toolbox]
    #[arg(long, value_name = "FILE", requires = "guest")]
    initrd: Option<PathBuf>,

    /// A VMM to compare with; NAME tells its kind, or else the file's name does
    #[arg(long = "vmm", value_name = "NAME=PATH")]
    vmms: Vec<String>,

    /// Tandem's VM process [default: built from this tree]
    #[arg(long, value_name = "PATH")]
    tandem: PathBuf,

    /// Write all samples, and what they were measured on, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Decides the order of the starts [default: from the clock]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
}

/// A VMM that is to be measured.
struct Contender {
    program: Option<StagedProgram>,
    dir: PathBuf,
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
    let stage = Stage::new()?;
    let mut contenders = Vec::new();
    for vmm in vmms {
        let dir = stage.subdirectory(&format!("vmm-{}", contenders.len()))?;
        contenders.push(Contender::new(vmm, dir)?);
    }
    let mut random = Random::new(seed);
    let complete = match args.guest {
        true => {
            let guest = Guest::new(&stage, args.kernel.as_deref(), args.initrd.as_deref())?;
            guests(args, &guest, &mut random, &mut contenders)
        }
        false => {
            starts(args, &mut random, &mut contenders) && loads(args, &mut random, &mut contenders)
        }
    };
    let mut vmms: Vec<Results> = contenders
        .into_iter()
        .map(|contender| contender.results)
        .collect();
    vmms.iter_mut().for_each(Results::summarize);
    let report = Report {
        version: report::VERSION,
        benchmark: "api",
        unix_time: unix_time().as_secs(),
        command: std::env::args().collect(),
        seed,
        starts: args.starts,
        rounds: args.rounds,
        requests: args.requests,
        connections: args.connections,
        guest: args.guest,
        interrupted: !complete,
        environment: Environment::here(),
        vmms,
    };
    // Who reads the table may have had enough of it.
    let _ = io::stdout().write_all(report.text().as_bytes());
    if let Some(json) = json {
        json.write(&report)?;
    }
    let failed = report.vmms.iter().any(|vmm| vmm.failure.is_some());
    Ok(match (complete, failed) {
        (false, _) => ExitCode::from(130),
        (true, true) => ExitCode::FAILURE,
        (true, false) => ExitCode::SUCCESS,
    })
}

impl Contender {
    fn new(vmm: Vmm, dir: PathBuf) -> Result<Self> {
        if !["tandem", "firecracker"].contains(&vmm.adapter.kind()) {
            return Err(Error::new(format!(
                "--vmm {}: has no API of Firecracker's kind; leave it out",
                vmm.name
            )));
        }
        let (program, staged, failure) = match look_at(&vmm.path, &dir) {
            Ok((program, staged)) => (Some(program), Some(staged), None),
            Err(error) => (None, None, Some(error.to_string())),
        };
        Ok(Self {
            program: staged,
            dir,
            results: Results::new(vmm.name, vmm.adapter.kind(), program, failure),
        })
    }

    /// Does it, unless this one has failed before. False: a signal came.
    fn attempt(
        &mut self,
        act: impl FnOnce(&StagedProgram, &Path, &mut Results) -> std::result::Result<(), Failure>,
    ) -> bool {
        let Some(program) = self
            .program
            .as_ref()
            .filter(|_| self.results.failure.is_none())
        else {
            return true;
        };
        match act(program, &self.dir, &mut self.results) {
            Ok(()) => true,
            Err(Failure::Interrupted) => false,
            Err(Failure::Vm(why)) => {
                self.results.failure = Some(why);
                true
            }
        }
    }
}

fn look_at(path: &Path, dir: &Path) -> Result<(Program, StagedProgram)> {
    let program = Program::of(path)?;
    let staged = stage::program(&program.file.path, dir)?;
    Ok((program, staged))
}

/// Starts every VMM again and again; one start of each does not count. False: a signal came.
fn starts(args: &Args, random: &mut Random, contenders: &mut [Contender]) -> bool {
    let mut order: Vec<usize> = (0..contenders.len()).collect();
    for round in 0..=args.starts {
        random.shuffle(&mut order);
        for &index in &order {
            let go_on = contenders[index].attempt(|program, dir, results| {
                let (_, start) = sample::Vmm::start(program, dir)?;
                if round > 0 {
                    results.starts.push(start);
                }
                Ok(())
            });
            if !go_on || signals::stopped() {
                return false;
            }
        }
    }
    true
}

/// Puts every VMM under load, in rounds; a first one does not count. False: a signal came.
fn loads(args: &Args, random: &mut Random, contenders: &mut [Contender]) -> bool {
    let mut order: Vec<usize> = (0..contenders.len()).collect();
    for round in 0..=args.rounds {
        random.shuffle(&mut order);
        for &index in &order {
            let go_on = contenders[index].attempt(|program, dir, results| {
                let (vmm, _) = sample::Vmm::start(program, dir)?;
                if round == 0 {
                    let few = args.requests.min(100);
                    return vmm.load(few, args.connections, &mut Load::default());
                }
                vmm.load(args.requests, args.connections, &mut results.load)
            });
            if !go_on {
                return false;
            }
        }
    }
    true
}

/// Has every VMM run a guest, in rounds. False: a signal came.
fn guests(args: &Args, guest: &Guest, random: &mut Random, contenders: &mut [Contender]) -> bool {
    let mut order: Vec<usize> = (0..contenders.len()).collect();
    for _ in 0..args.rounds {
        random.shuffle(&mut order);
        for &index in &order {
            let go_on = contenders[index].attempt(|program, dir, results| {
                let (mut vmm, _) = sample::Vmm::start(program, dir)?;
                guest.ask(&mut vmm, args.requests, &mut results.guest)
            });
            if !go_on {
                return false;
            }
        }
    }
    true
}
