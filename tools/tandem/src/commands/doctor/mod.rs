//! `tandem doctor`: can this machine run VMs, and what to do if not.
//!
//! Each area looks at one part of the machine and returns findings; the report is those findings
//! and a verdict; text and JSON are two renderings of the same report.
//!
//! | module | what |
//! |---|---|
//! | `report` | findings, sections, the report and its JSON form |
//! | `text` | the report for people |
//! | `kvm` | /dev/kvm and the probe guest (the work is `vmm::probe`'s) |
//! | `host` | cgroups, huge pages |
//! | `cpu` | vulnerabilities, SMT, frequency governor |
//! | `network` | tap devices, vhost-net |
//! | `programs` | container engines, other VMMs, helpers |
//! | `exec` | running a program with a time limit |

mod cpu;
mod exec;
mod host;
mod kvm;
mod network;
mod programs;
mod report;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;

use vmm::probe;

use crate::exit;
use crate::output::{Style, print};
use report::{Report, Section};

const HELP: &str = "\
Exit codes:
  0   VMs with stock kernels can run
  1   no VM can run: KVM is missing, not accessible or not usable
  2   KVM is there but incomplete: only guests of simple code can run
  64  the command line was not understood
  74  the report could not be written
Only KVM decides the code; warnings and problems elsewhere do not.

The JSON document is described in tools/tandem/DOCTOR.md; its \"schema\" is
\"tandem.doctor/1\". Colour is used on a terminal unless NO_COLOR is set.";

/// Report whether this machine can run VMs, and what to do if not.
///
/// Looks at KVM, networking, cgroups, memory, the CPU, container engines and other
/// VMMs. Whether stock kernels can run is found out by running a tiny probe guest.
/// Changes nothing: the one tap device it creates is gone before it returns.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, after_help = HELP, after_long_help = HELP)]
pub struct Doctor {
    /// Print one JSON document instead of text.
    #[arg(long)]
    json: bool,
    /// The KVM device.
    #[arg(long, value_name = "PATH", default_value = "/dev/kvm")]
    kvm: PathBuf,
}

impl Doctor {
    /// Examines, prints, and returns the verdict's exit code.
    pub fn run(self) -> ExitCode {
        let report = examine(&self.kvm);
        let text = if self.json {
            report.to_json()
        } else {
            text::render(&report, Style::of_stdout())
        };
        match print(&text) {
            Ok(()) => report.exit_code().into(),
            Err(error) => {
                eprintln!("tandem: cannot write the report: {error}");
                exit::IO.into()
            }
        }
    }
}

/// Looks at everything. Programs are asked on a thread of their own, because some are slow to answer.
fn examine(device: &std::path::Path) -> Report {
    let programs = thread::spawn(programs::sections);
    let options = probe::Options {
        device: device.to_owned(),
        ..probe::Options::default()
    };
    let probed = probe::run(&options);
    let mut sections = vec![
        Section::new("kvm", "KVM", kvm::findings(&options.device, &probed)),
        Section::new("network", "Network", network::findings()),
        Section::new("host", "Host", host::findings()),
        Section::new("cpu", "CPU", cpu::findings()),
    ];
    sections.extend(programs.join().unwrap_or_default());
    Report::new(probed, sections)
}
