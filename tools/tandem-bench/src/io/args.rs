//! The command line: what is measured, and on which VMMs.

use std::path::PathBuf;

use super::jobs::{JOBS, Job, Part};
use crate::adapters::{self, Concerns};
use crate::error::{Error, Result};
use crate::vmms::{self, Vmm};

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
The adapters of Firecracker (1.16) and Cloud Hypervisor follow the documentation
alone: neither has been tried yet.

Net needs root, iproute2 and iperf3 on the host; the guest's initrd has to have
fio and iperf3. Exit codes: 0, 1 if something failed, 2 if nothing could be
measured, 130 if interrupted.")]
pub struct Args {
    /// VMs of each VMM
    #[arg(short = 'n', long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Time for each job
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub time: u64,

    /// Only this part
    #[arg(long, value_name = "PART")]
    only: Option<Part>,

    /// Only this job, by its name in the JSON document; can be given again
    #[arg(long = "job", value_name = "NAME")]
    jobs: Vec<String>,

    /// A VMM to compare with; NAME tells its kind, or else the file's name does
    #[arg(long = "vmm", value_name = "NAME=PATH")]
    pub vmms: Vec<String>,

    /// The same VMM again, told something else (below): of the jobs, only those that it concerns
    #[arg(long = "variant", value_name = "NAME:KEY=VALUE,...")]
    pub variants: Vec<String>,

    /// In one more round, count the system calls that each VMM makes
    #[arg(long)]
    pub count_calls: bool,

    /// Tandem's VM process [default: built from this tree]
    #[arg(long, value_name = "PATH")]
    pub tandem: PathBuf,

    /// Where the disk's image is made [default: in memory]
    #[arg(long, value_name = "DIR")]
    pub disk_dir: Option<PathBuf>,

    /// Size of the disk
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(16..10_000_000))]
    pub disk_size: u64,

    /// Past the host's page cache, for VMMs that can
    #[arg(long)]
    pub direct: bool,

    /// Kernel to boot, an ELF file [default: Debian's 6.12 cloud kernel]
    #[arg(long, value_name = "VMLINUX")]
    pub kernel: PathBuf,

    /// Initrd with fio and iperf3 [default: the tests' toolbox]
    #[arg(long, value_name = "FILE")]
    pub initrd: PathBuf,

    /// Kernel command line, but for its init and how the guest ends
    #[arg(
        long,
        default_value = "console=ttyS0 quiet loglevel=1 panic=-1",
        value_name = "TEXT"
    )]
    pub boot_args: String,

    /// vCPUs of each guest
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub vcpus: u8,

    /// Memory of each guest
    #[arg(long, default_value_t = 256, value_name = "MIB", value_parser = clap::value_parser!(u64).range(96..1_000_000))]
    pub memory: u64,

    /// Write all samples, and what they were measured on, to this file
    #[arg(long, visible_alias = "out", value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Decides the order of VMMs and jobs [default: from the clock]
    #[arg(long, value_name = "NUMBER")]
    pub seed: Option<u64>,

    /// Longest time for one VM [default: 120, and for each job its time and 20 more]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub time_limit: Option<u64>,
}

/// The jobs that are asked for.
pub fn chosen(args: &Args) -> Result<Vec<&'static Job>> {
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

/// The VMMs that are named, and their variants.
pub fn contenders(args: &Args) -> Result<Vec<(Vmm, Concerns)>> {
    with_variants(vmms::named(&args.tandem, &args.vmms)?, &args.variants)
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
            contenders(&args(more)).map(|all| {
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
