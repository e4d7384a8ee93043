//! `io`: disk and network of every VMM's guest, interleaved in random order.
//!
//! Each VM is a fresh one and does all [`jobs`], told by its own initramfs ([`overlay`], [`cpio`]) and answering over its
//! console ([`sample`]). [`disk`] makes the image that all have in turn, [`network`] the host's side of the network, and
//! [`peer`] is both ends of the network jobs that iperf3 has no mode for. [`calls`] counts system calls, [`report`] makes the table and the
//! document.

mod calls;
mod cpio;
mod disk;
mod jobs;
mod network;
mod overlay;
pub mod peer;
mod report;
mod sample;

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use self::calls::Calls;
use self::disk::Image;
use self::jobs::{JOBS, Job, Part};
use self::network::Network;
use self::overlay::Overlay;
use self::report::{DiskFacts, Report, Results};
use self::sample::Sample;
use crate::adapters::{self, Concerns, Disk, Guest, Launch};
use crate::binary::FileFacts;
use crate::document::{Document, unix_time};
use crate::environment::Environment;
use crate::error::{Error, Result};
use crate::process::Failure;
use crate::random::Random;
use crate::signals;
use crate::stage::{Stage, StagedProgram};
use crate::vmms::{self, Vmm};

/// A VMM none of whose first guests gets to its end is given up, so that the others' turn comes.
const ATTEMPTS: usize = 2;

/// Disk and network of each VMM's guest, interleaved: throughput, latency, CPU time and exits
#[derive(Debug, clap::Args)]
#[command(after_help = "\
In each round each VMM, in random order, starts one VM of the same kernel,
initrd, command line, vCPUs and memory; its guest does all jobs, in an order
that is random too, but the same for all VMMs of a round.

Block: fio in the guest, libaio with O_DIRECT on a raw image of random bytes,
all of it allocated, which all VMs have one after the other and which is
synced before each. On the host it goes through the page cache and is in it,
for all VMMs alike, or past it for all with --direct. Flushes are on.
Rates and completion latencies are fio's, after a warm-up of 0.5 s.
Net: a tap in a network namespace of its own, without offloading to anything
real. TCP throughput is iperf3's as received, after one second's warm-up. Round
trips are of one byte each way on one TCP connection, after 100 that do not
count. Packets are UDP of 64 bytes one way with at most 128 under way, as
received.
A guest's clock that does not keep up with the host's spoils its figures: they
are left out, and the failure is told.
CPU time is that of the VMM's process, with its guest's and vhost's; exits are
KVM's own count (debugfs). Both are from a job's begin to its end by the host's
clock, divided by the rate times that time.

Kinds of VMM: tandem, firecracker, qemu (microvm), cloud-hypervisor. What can be
varied, the default first (none given: the VMM's own default, or for qemu the
first):
  tandem            engine=Async|Sync vhost=off|on thread=shared|own
                    transport=pci|mmio
  firecracker       engine=Sync|Async transport=mmio|pci
  qemu              engine=io_uring|threads iothread=on|off vhost=off|on
                    transport=pci|mmio machine=microvm|q35
  cloud-hypervisor  engine=io_uring|aio|sync
The adapters of Firecracker and Cloud Hypervisor follow their documentation and
have not been tried with every version.

Net needs root, iproute2 and iperf3 on the host; the guest's initrd has to have
fio and iperf3. Exit codes: 0, 1 if something failed, 2 if nothing could be
measured, 130 if interrupted.")]
pub struct Args {
    /// VMs of each VMM
    #[arg(short = 'n', long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Time for each job
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    time: u64,

    /// Only this part
    #[arg(long, value_name = "PART")]
    only: Option<Part>,

    /// Only this job, by its name in the JSON document; can be given again
    #[arg(long = "job", value_name = "NAME")]
    jobs: Vec<String>,

    /// A VMM to compare with; NAME tells its kind, or else the file's name does
    #[arg(long = "vmm", value_name = "NAME=PATH")]
    vmms: Vec<String>,

    /// The same VMM again, told something else (below): of the jobs, only those that it concerns
    #[arg(long = "variant", value_name = "NAME:KEY=VALUE,...")]
    variants: Vec<String>,

    /// In one more round, count the system calls that each VMM makes
    #[arg(long)]
    count_calls: bool,

    /// Tandem's VM process [default: built from this tree]
    #[arg(long, value_name = "PATH")]
    tandem: PathBuf,

    /// Where the disk's image is made [default: in memory]
    #[arg(long, value_name = "DIR")]
    disk_dir: Option<PathBuf>,

    /// Size of the disk
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..10_000_000))]
    disk_size: u64,

    /// Past the host's page cache, for VMMs that can
    #[arg(long)]
    direct: bool,

    /// Kernel to boot, an ELF file [default: Debian's 6.12 cloud kernel]
    #[arg(long, value_name = "VMLINUX")]
    kernel: PathBuf,

    /// Initrd with fio and iperf3 [default: the tests' toolbox]
    #[arg(long, value_name = "FILE")]
    initrd: PathBuf,

    /// Kernel command line, but for its init and how the guest ends
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
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(96..1_000_000))]
    memory: u64,

    /// Write all samples, and what they were measured on, to this file
    #[arg(long, visible_alias = "out", value_name = "FILE")]
    json: Option<PathBuf>,

    /// Decides the order of VMMs and jobs [default: from the clock]
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,

    /// Longest time for one VM [default: 120, and for each job its time and 20 more]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    time_limit: Option<u64>,
}

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
    let jobs = chosen(args)?;
    let vmms = with_variants(vmms::named(&args.tandem, &args.vmms)?, &args.variants)?;
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
        comparisons: report::compare(&vmms, &jobs, rounds),
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

/// The jobs that are asked for.
fn chosen(args: &Args) -> Result<Vec<&'static Job>> {
    let known = |name: &&String| JOBS.iter().all(|job| job.key != name.as_str());
    if let Some(unknown) = args.jobs.iter().find(known) {
        let all: Vec<_> = JOBS.iter().map(|job| job.key).collect();
        return Err(Error::new(format!(
            "--job {unknown}: there is no such job; there are {}",
            all.join(", ")
        )));
    }
    let jobs: Vec<_> = JOBS
        .iter()
        .filter(|job| args.only.is_none_or(|part| job.part == part))
        .filter(|job| args.jobs.is_empty() || args.jobs.iter().any(|name| name == job.key))
        .collect();
    if jobs.is_empty() {
        return Err(Error::new(
            "--job and --only leave no job; give one of them",
        ));
    }
    Ok(jobs)
}

/// Puts each variant behind the VMM that it is one of.
fn with_variants(vmms: Vec<Vmm>, variants: &[String]) -> Result<Vec<(Vmm, Concerns)>> {
    let mut all: Vec<_> = vmms.into_iter().map(|vmm| (vmm, Concerns::All)).collect();
    for text in variants {
        let found = text.split_once(':').and_then(|(name, settings)| {
            let place = all.iter().rposition(|(vmm, _)| {
                vmm.name == name || vmm.name.starts_with(&format!("{name}:"))
            })?;
            Some((place, name, settings))
        });
        let Some((place, name, settings)) = found else {
            let names: Vec<_> = all.iter().map(|(vmm, _)| vmm.name.as_str()).collect();
            return Err(Error::new(format!(
                "--variant {text}: it begins with no VMM's name; there are {}",
                names.join(", ")
            )));
        };
        if all.iter().any(|(vmm, _)| vmm.name == *text) {
            return Err(Error::new(format!("--variant {text} is given twice")));
        }
        let original = all.iter().find(|(vmm, _)| vmm.name == name);
        let mut vmm = original.map_or_else(|| all[place].0.clone(), |(vmm, _)| vmm.clone());
        vmm.settings = adapters::parse_settings(vmm.adapter, settings)?;
        vmm.name = text.clone();
        let concerns = vmm.adapter.concerns(&vmm.settings);
        all.insert(place + 1, (vmm, concerns));
    }
    Ok(all)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn args(more: &[&str]) -> Args {
        #[derive(clap::Parser)]
        struct Wrapper {
            #[command(flatten)]
            args: Args,
        }
        let fixed = "bench --kernel k --initrd i --tandem /t --vmm qemu=/q".split(' ');
        let wrapper: Wrapper = clap::Parser::parse_from(fixed.chain(more.iter().copied()));
        wrapper.args
    }

    #[test]
    fn jobs_are_chosen_by_part_and_name() {
        let names = |more: &[&str]| -> Vec<_> {
            let jobs = chosen(&args(more)).unwrap();
            jobs.iter().map(|job| job.key).collect()
        };
        assert_eq!(names(&[]).len(), JOBS.len());
        assert_eq!(names(&["--only", "net"]).len(), 5);
        let one = ["--job", "read-32", "--job", "round-trips"];
        assert_eq!(names(&one), ["read-32", "round-trips"]);
        assert!(chosen(&args(&["--job", "sleep"])).is_err());
        assert!(chosen(&args(&["--job", "read-1", "--only", "net"])).is_err());
    }

    #[test]
    fn variants_stand_behind_what_they_vary() {
        let told = |more: &[&str]| {
            let args = args(more);
            let vmms = vmms::named(&args.tandem, &args.vmms).unwrap();
            with_variants(vmms, &args.variants).map(|all| {
                all.into_iter()
                    .map(|(vmm, concerns)| (vmm.name, concerns, vmm.settings.len()))
                    .collect::<Vec<_>>()
            })
        };
        let all = told(&[
            "--variant",
            "tandem:engine=Sync",
            "--variant",
            "tandem:vhost=on,transport=mmio",
            "--variant",
            "qemu:vhost=on",
        ]);
        let expected = [
            ("tandem", Concerns::All, 0),
            ("tandem:engine=Sync", Concerns::Disk, 1),
            ("tandem:vhost=on,transport=mmio", Concerns::All, 2),
            ("qemu", Concerns::All, 0),
            ("qemu:vhost=on", Concerns::Net, 1),
        ]
        .map(|(name, concerns, settings)| (name.to_owned(), concerns, settings));
        assert_eq!(all.unwrap(), expected);
        for wrong in ["qemu", "crosvm:vhost=on", "qemu:speed=high"] {
            assert!(told(&["--variant", wrong]).is_err(), "{wrong}");
        }
        let twice = ["--variant", "qemu:vhost=on", "--variant", "qemu:vhost=on"];
        assert!(told(&twice).is_err());
    }
}
