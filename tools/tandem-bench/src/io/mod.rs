//! `io`: disk and network of every VMM's guest, interleaved in random order.
//!
//! [`args`] is the command line. Each VM is a fresh one and does all [`jobs`], told by its own initramfs ([`overlay`],
//! [`cpio`]) and answering over its console ([`sample`]); [`account`] is what that cost its VMM. [`disk`] makes the image that all have in turn, [`network`] the host's side of the network, and
//! [`peer`] is both ends of the network jobs that iperf3 has no mode for. [`calls`] counts system calls, [`compare`] compares, and [`report`]
//! makes the table and the document.

mod account;
mod args;
mod calls;
mod compare;
pub mod cpio;
pub mod disk;
mod jobs;
mod network;
mod overlay;
pub mod peer;
mod report;
mod sample;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

pub use self::args::Args;
use self::calls::Calls;
use self::disk::Image;
use self::jobs::{Job, Part};
use self::network::Network;
use self::overlay::Overlay;
use self::report::{DiskFacts, Report, Results};
use self::sample::Sample;
use crate::adapters::{Concerns, Disk, Guest, Launch};
use crate::binary::FileFacts;
use crate::document::{Document, unix_time};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::process::Failure;
use crate::random::Random;
use crate::signals;
use crate::stage::{Stage, StagedProgram};
use crate::vmms::Vmm;

/// A VMM none of whose first guests gets to its end is given up, so that the others' turn comes.
const ATTEMPTS: usize = 2;

/// A VMM that is to be measured.
struct Contender {
    /// How to start it; none if it cannot be.
    launch: Option<(StagedProgram, Launch)>,
    jobs: Vec<&'static Job>,
    results: Results,
}

/// What all of them share.
struct Ground {
    image: Option<Image>,
    network: Option<Network>,
    overlay: Overlay,
    time: Duration,
    limit: Duration,
}

/// Measures and reports.
///
/// # Errors
/// What keeps anything from being measured.
pub fn run(args: &Args) -> Result<ExitCode> {
    let jobs = args::chosen(args)?;
    let vmms = args::contenders(args)?;
    let json = args.json.as_deref().map(Document::create).transpose()?;
    let seed = args
        .seed
        .unwrap_or_else(|| unix_time().subsec_nanos().into());
    signals::watch();

    let has = |part| jobs.iter().any(|job| job.part == part);
    // First of all: threads that are there already would stay where they are.
    let network = match has(Part::Net) {
        true => Some(Network::enter().map_err(Error::new)?),
        false => None,
    };
    let mut notes = Vec::new();
    let stage = Stage::new()?;
    if !stage.in_memory() {
        notes.push("there is no tmpfs: kernel and initrd were read from a disk".into());
    }
    let image = match has(Part::Block) {
        true => {
            let dir = args
                .disk_dir
                .clone()
                .map_or_else(|| stage.subdirectory("disk"), Ok)?;
            Some(Image::new(&dir, args.disk_size, args.direct)?)
        }
        false => None,
    };
    let initrd = stage.copy(&args.initrd, "initrd")?;
    let guest = Guest {
        kernel: stage.copy(&args.kernel, "vmlinux")?,
        boot_args: format!("{} {}", args.boot_args, overlay::INIT),
        vcpus: args.vcpus,
        memory_mib: args.memory,
        disk: image.as_ref().map(|image| Disk {
            path: image.path.clone(),
            direct: args.direct,
        }),
        net: network.as_ref().map(|_| Network::interface()),
        initrd: initrd.clone(),
    };
    let disk = image.as_ref().map(|image| DiskFacts {
        mib: args.disk_size,
        filesystem: image.filesystem(),
        direct: args.direct,
    });
    let default_limit = 120 + jobs.len() as u64 * (args.time + 20);
    let ground = Ground {
        image,
        network,
        overlay: Overlay::new(&initrd)?,
        time: Duration::from_secs(args.time),
        limit: Duration::from_secs(args.time_limit.unwrap_or(default_limit)),
    };
    let mut contenders = Vec::new();
    for (vmm, concerns) in vmms {
        let dir = stage.subdirectory(&format!("vmm-{}", contenders.len()))?;
        let mine = jobs.iter().filter(|job| match concerns {
            Concerns::All => true,
            Concerns::Disk => job.part == Part::Block,
            Concerns::Net => job.part == Part::Net,
        });
        contenders.push(Contender::new(vmm, mine.copied().collect(), &guest, &dir));
    }
    let copied =
        |contender: &&Contender| matches!(&contender.launch, Some((program, _)) if program.copied);
    if contenders.iter().find(copied).is_some() {
        notes.push("programs on 9p, and their libraries, were copied to memory first".into());
    }

    let mut complete = measure(args.rounds, seed, &ground, &jobs, &mut contenders);
    if args.count_calls && complete {
        match Calls::new() {
            Ok(calls) => complete = count(&calls, &ground, &mut contenders),
            Err(why) => notes.push(format!("--count-calls: {why}")),
        }
    }
    drop(ground);
    let vmms: Vec<Results> = contenders
        .into_iter()
        .map(|contender| contender.results)
        .collect();
    notes.extend(report::clock_note(&vmms));
    let rounds = args.rounds as usize;
    let report = Report {
        version: report::VERSION,
        benchmark: "io",
        unix_time: unix_time().as_secs(),
        command: std::env::args().collect(),
        seed,
        rounds,
        interrupted: !complete,
        job_seconds: args.time,
        vcpus: args.vcpus,
        memory_mib: args.memory,
        disk,
        kernel: FileFacts::of(&args.kernel)?,
        initrd: FileFacts::of(&args.initrd)?,
        environment: Environment::here(),
        notes,
        comparisons: compare::all(&vmms, &jobs, rounds),
        vmms,
    };
    // Who reads the table may have had enough of it.
    let _ = io::stdout().write_all(report.text(&jobs).as_bytes());
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

/// Round by round; false if a signal ended it.
fn measure(
    rounds: u32,
    seed: u64,
    ground: &Ground,
    jobs: &[&'static Job],
    contenders: &mut [Contender],
) -> bool {
    let mut random = Random::new(seed);
    let mut order: Vec<usize> = (0..contenders.len()).collect();
    let mut job_order = jobs.to_vec();
    for round in 0..rounds {
        random.shuffle(&mut order);
        random.shuffle(&mut job_order);
        for (position, &index) in order.iter().enumerate() {
            let contender = &mut contenders[index];
            let results = &mut contender.results;
            let Some((program, launch)) = &contender.launch else {
                continue;
            };
            if results.samples.is_empty() && results.failures.len() >= ATTEMPTS {
                continue;
            }
            let mut mine = job_order.clone();
            mine.retain(|job| contender.jobs.iter().any(|own| own.key == job.key));
            if mine.is_empty() {
                continue;
            }
            let outcome = ground.one(program, launch, &mine, None);
            progress(round, rounds, &results.name, &outcome);
            match outcome {
                Err(Failure::Interrupted) => return false,
                Err(Failure::Vm(why)) => results.failures.push(why),
                Ok(mut sample) => {
                    results.failures.append(&mut sample.failures.clone());
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

/// The round in which system calls are counted; false if a signal ended it.
fn count(calls: &Calls, ground: &Ground, contenders: &mut [Contender]) -> bool {
    for contender in contenders {
        let results = &mut contender.results;
        let Some((program, launch)) = &contender.launch else {
            continue;
        };
        if results.samples.is_empty() {
            continue;
        }
        match ground.one(program, launch, &contender.jobs, Some(calls)) {
            Err(Failure::Interrupted) => return false,
            Err(Failure::Vm(why)) => results.failures.push(why),
            Ok(sample) => results.counted = Some(sample),
        }
    }
    true
}

/// One line that is overwritten, where somebody watches.
fn progress(round: u32, rounds: u32, name: &str, outcome: &std::result::Result<Sample, Failure>) {
    if !io::stderr().is_terminal() {
        return;
    }
    let outcome = match outcome {
        Ok(sample) => format!(
            "{} jobs, {} failed",
            sample.jobs.len(),
            sample.failures.len()
        ),
        Err(Failure::Interrupted) => "interrupted".into(),
        Err(Failure::Vm(_)) => "FAILED".into(),
    };
    eprint!("\r\x1b[K[{}/{rounds}] {name}: {outcome}", round + 1);
}

impl Ground {
    /// One VM, from the making of its link to the end of it.
    fn one(
        &self,
        program: &StagedProgram,
        launch: &Launch,
        jobs: &[&'static Job],
        calls: Option<&Calls>,
    ) -> std::result::Result<Sample, Failure> {
        if signals::stopped() {
            return Err(Failure::Interrupted);
        }
        self.overlay
            .write(jobs, self.time)
            .map_err(|error| error.to_string())?;
        if let Some(image) = &self.image {
            image
                .settle()
                .map_err(|error| format!("cannot sync the disk's image: {error}"))?;
        }
        // Held until the VM is over.
        let _link = match &self.network {
            Some(network) => Some(network.for_one_vm()?),
            None => None,
        };
        sample::run(program, launch, jobs, calls, self.limit)
    }
}

impl Contender {
    /// A VMM that cannot be started is one, too: its failures say why.
    fn new(vmm: Vmm, jobs: Vec<&'static Job>, guest: &Guest, dir: &std::path::Path) -> Self {
        let prepared = vmm.prepare(guest, dir);
        let mut results = Results {
            name: vmm.name,
            kind: vmm.adapter.kind(),
            program: prepared.program,
            command: prepared.command,
            library_path: prepared.library_path,
            boot_args: vmm.adapter.command_line(guest),
            samples: Vec::new(),
            counted: None,
            failures: Vec::new(),
        };
        let launch = match prepared.launch {
            Ok(launch) => Some(launch),
            Err(why) => {
                results.failures.push(why);
                None
            }
        };
        Self {
            launch,
            jobs,
            results,
        }
    }
}
