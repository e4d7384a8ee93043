//! What was measured, as JSON and as a table.

use std::collections::BTreeMap;

use serde::Serialize;

use super::sample::Sample;
use crate::binary::{FileFacts, Program};
use crate::environment::Environment;
use crate::stats::Summary;
use crate::table::Table;

/// Version of the JSON document; raised when a field changes its meaning.
pub const VERSION: u32 = 1;

/// The whole document.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Version of its format.
    pub version: u32,
    /// What it is about.
    pub benchmark: &'static str,
    /// When it was begun, in seconds since 1970.
    pub unix_time: u64,
    /// The command line of the benchmark.
    pub command: Vec<String>,
    /// Decides the order of the boots.
    pub seed: u64,
    /// Rounds that were asked for.
    pub rounds: usize,
    /// Rounds before those that do not count.
    pub warmup: usize,
    /// It was stopped before its time.
    pub interrupted: bool,
    /// vCPUs of each guest.
    pub vcpus: u8,
    /// Memory of each guest in MiB.
    pub memory_mib: u64,
    /// Kernel that was booted.
    pub kernel: FileFacts,
    /// Its initial RAM disk.
    pub initrd: FileFacts,
    /// What it was measured on.
    pub environment: Environment,
    /// What a reader must know to judge the numbers.
    pub notes: Vec<String>,
    /// One for each VMM.
    pub vmms: Vec<Results>,
}

/// One VMM's part.
#[derive(Debug, Serialize)]
pub struct Results {
    /// Name given by the user.
    pub name: String,
    /// Which adapter started it.
    pub kind: &'static str,
    /// The program; none if it could not even be looked at.
    pub program: Option<Program>,
    /// Exactly what was executed; `{start-time-us}` stood for the time of the start.
    pub command: Vec<String>,
    /// Where its libraries were found, if copied.
    pub library_path: Option<String>,
    /// The kernel's command line.
    pub boot_args: String,
    /// Statistics of each measure.
    pub summary: BTreeMap<&'static str, Summary>,
    /// Boots that went well.
    pub samples: Vec<Sample>,
    /// What went wrong with the others.
    pub failures: Vec<String>,
}

/// Something that is compared.
struct Measure {
    key: &'static str,
    title: &'static str,
    value: fn(&Sample) -> Option<f64>,
}

const MEASURES: [Measure; 7] = [
    Measure {
        key: "first_entry_ms",
        title: "process start -> first vCPU entry, ms",
        value: |sample| Some(ms(sample.first_entry_us?)),
    },
    Measure {
        key: "user_space_ms",
        title: "process start -> guest's user space, ms",
        value: |sample| Some(ms(sample.user_space_us)),
    },
    Measure {
        key: "guest_boot_ms",
        title: "  of that: first vCPU entry -> guest's user space, ms",
        value: |sample| {
            Some(ms(sample
                .user_space_us
                .checked_sub(sample.first_entry_us?)?))
        },
    },
    Measure {
        key: "exit_ms",
        title: "process start -> process over, ms",
        value: |sample| Some(ms(sample.exit_us)),
    },
    Measure {
        key: "cpu_ms",
        title: "CPU time of the process, user + system, guest included, ms",
        value: |sample| Some(ms(sample.cpu_user_us + sample.cpu_system_us)),
    },
    Measure {
        key: "own_rss_mib",
        title: "RSS outside guest memory, MiB",
        value: |sample| Some(mib(sample.memory.own_rss_kib)),
    },
    Measure {
        key: "own_pss_mib",
        title: "PSS outside guest memory, MiB",
        value: |sample| Some(mib(sample.memory.own_pss_kib)),
    },
];

fn ms(micros: u64) -> f64 {
    micros as f64 / 1e3
}

fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

impl Results {
    /// Fills in the statistics.
    pub fn summarize(&mut self) {
        for measure in &MEASURES {
            let samples: Vec<f64> = self.samples.iter().filter_map(measure.value).collect();
            if let Some(summary) = Summary::of(&samples) {
                self.summary.insert(measure.key, summary);
            }
        }
    }

    /// Wall and CPU milliseconds of each phase of its own timeline, in the order in which they were reached.
    fn phases(&self) -> Vec<(&str, Summary, Summary)> {
        let timelines = || {
            self.samples
                .iter()
                .filter_map(|sample| sample.timeline.as_ref())
        };
        let Some(longest) = timelines().max_by_key(|marks| marks.len()) else {
            return Vec::new();
        };
        let summary = |phase: &str, value: fn(&super::sample::Mark) -> u64| {
            let samples: Vec<f64> = timelines()
                .flatten()
                .filter(|mark| mark.phase == phase)
                .map(|mark| ms(value(mark)))
                .collect();
            Summary::of(&samples)
        };
        longest
            .iter()
            .filter_map(|mark| {
                let wall = summary(&mark.phase, |mark| mark.wall_us)?;
                let cpu = summary(&mark.phase, |mark| mark.cpu_us)?;
                Some((mark.phase.as_str(), wall, cpu))
            })
            .collect()
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} x cold boot, {} vCPU, {} MiB, interleaved in random order (seed {})\n",
            self.rounds, self.vcpus, self.memory_mib, self.seed
        );
        text += &format!("Host:   {}\n", self.environment.describe());
        text += &format!("Kernel: {}\n", self.kernel.path.display());
        text += &format!("Initrd: {}\n\n", self.initrd.path.display());
        text += &self.comparison().render();
        for results in &self.vmms {
            let phases = results.phases();
            if !phases.is_empty() {
                text += &format!("\nTimeline of {}, ms since process start\n", results.name);
                text += &timeline(&phases).render();
            }
        }
        text.push('\n');
        let width = self
            .vmms
            .iter()
            .map(|vmm| vmm.name.len())
            .max()
            .unwrap_or(0);
        for results in &self.vmms {
            if let Some(program) = &results.program {
                let (facts, version) = (program.describe(), &program.version);
                text += &format!("{:width$}  {facts}; {version}\n", results.name);
            }
        }
        for results in self
            .vmms
            .iter()
            .filter(|results| !results.failures.is_empty())
        {
            let (failed, good) = (results.failures.len(), results.samples.len());
            text += &format!(
                "\nFAILED: {}, {failed} of {} boots",
                results.name,
                failed + good
            );
            let mut told: Vec<&String> = Vec::new();
            for failure in &results.failures {
                if !told.contains(&failure) {
                    told.push(failure);
                    text += &format!("\n  {failure}");
                }
            }
            text.push('\n');
        }
        for note in &self.notes {
            text += &format!("Note: {note}\n");
        }
        text
    }

    fn comparison(&self) -> Table {
        let baseline = self.vmms.first();
        let ratio = if self.vmms.len() > 1 { "ratio" } else { "" };
        let mut table = Table::new(&["p50", "p90", "p99", "min", ratio]);
        for measure in &MEASURES {
            let base = baseline.and_then(|vmm| vmm.summary.get(measure.key));
            if self
                .vmms
                .iter()
                .all(|vmm| !vmm.summary.contains_key(measure.key))
            {
                continue;
            }
            table.title(measure.title);
            for results in &self.vmms {
                let Some(summary) = results.summary.get(measure.key) else {
                    let why = if results.samples.is_empty() {
                        "failed"
                    } else {
                        "unknown"
                    };
                    table.line(&results.name, vec![why.into()]);
                    continue;
                };
                let mut cells: Vec<String> = [summary.p50, summary.p90, summary.p99, summary.min]
                    .map(|value| format!("{value:.2}"))
                    .into();
                if let (Some(base), true) = (base, self.vmms.len() > 1) {
                    cells.push(format!("{:.2}x", summary.p50 / base.p50));
                }
                table.line(&results.name, cells);
            }
        }
        table
    }
}

fn timeline(phases: &[(&str, Summary, Summary)]) -> Table {
    let mut table = Table::new(&["wall p50", "p99", "step p50", "CPU p50", "p99", "step p50"]);
    let (mut last_wall, mut last_cpu) = (0.0, 0.0);
    for (phase, wall, cpu) in phases {
        let cells = [
            wall.p50,
            wall.p99,
            wall.p50 - last_wall,
            cpu.p50,
            cpu.p99,
            cpu.p50 - last_cpu,
        ];
        (last_wall, last_cpu) = (wall.p50, cpu.p50);
        table.line(*phase, cells.map(|value| format!("{value:.2}")).into());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::smaps::Memory;

    fn results(name: &str, exits: &[u64]) -> Results {
        let sample = |&exit_us: &u64| Sample {
            round: Some(0),
            position: 0,
            first_entry_us: None,
            user_space_us: exit_us / 2,
            exit_us,
            stopped_us: 0,
            cpu_user_us: 1,
            cpu_system_us: 1,
            minor_faults: 0,
            memory: Memory::default(),
            timeline: None,
        };
        let mut results = Results {
            name: name.into(),
            kind: "tandem",
            program: None,
            command: Vec::new(),
            library_path: None,
            boot_args: String::new(),
            summary: BTreeMap::new(),
            samples: exits.iter().map(sample).collect(),
            failures: Vec::new(),
        };
        results.summarize();
        results
    }

    #[test]
    fn ratios_and_failures_are_told() {
        let file = FileFacts::of(std::path::Path::new("/dev/null")).unwrap();
        let mut broken = results("broken", &[]);
        broken.failures = vec!["no such thing".into(), "no such thing".into()];
        let report = Report {
            version: VERSION,
            benchmark: "boot",
            unix_time: 0,
            command: Vec::new(),
            seed: 1,
            rounds: 2,
            warmup: 0,
            interrupted: false,
            vcpus: 1,
            memory_mib: 128,
            kernel: file.clone(),
            initrd: file,
            environment: Environment::here(),
            notes: vec!["this".into()],
            vmms: vec![
                results("tandem", &[2000, 1000]),
                results("slow", &[3000, 4000]),
                broken,
            ],
        };
        let text = report.text();
        assert!(text.contains("3.00  4.00  4.00  3.00  3.00x"), "{text}");
        assert!(
            text.contains("FAILED: broken, 2 of 2 boots\n  no such thing\n"),
            "{text}"
        );
        assert!(!text.contains("first vCPU entry"), "nobody has it: {text}");
        assert!(
            serde_json::to_string(&report)
                .unwrap()
                .contains("\"p50\":1.0")
        );
    }
}
