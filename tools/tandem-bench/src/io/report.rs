//! What was measured, as JSON and as a table.

use serde::Serialize;

use super::compare::Comparison;
use super::jobs::{Figure, Job};
use super::sample::{JobSample, Sample};
use crate::binary::{FileFacts, Program};
use crate::environment::Environment;
use crate::stats::{Estimate, Range, Summary};
use crate::table::Table;

/// Version of the JSON document; raised when a field changes its meaning.
pub const VERSION: u32 = 1;

/// Calls of which there are fewer for each operation are not shown.
const RARE: f64 = 0.05;

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
    /// Decides the order of VMMs and jobs.
    pub seed: u64,
    /// Rounds that were asked for.
    pub rounds: usize,
    /// It was stopped before its time.
    pub interrupted: bool,
    /// Seconds for each job.
    pub job_seconds: u64,
    /// vCPUs of each guest.
    pub vcpus: u8,
    /// Memory of each guest in MiB.
    pub memory_mib: u64,
    /// The disk, if it was measured.
    pub disk: Option<DiskFacts>,
    /// Kernel that was booted.
    pub kernel: FileFacts,
    /// Its initial RAM disk, without what the benchmark adds.
    pub initrd: FileFacts,
    /// What it was measured on.
    pub environment: Environment,
    /// What a reader must know to judge the numbers.
    pub notes: Vec<String>,
    /// Tandem's figures by each other VMM's.
    pub comparisons: Vec<Comparison>,
    /// One for each VMM and variant.
    pub vmms: Vec<Results>,
}

/// The disk that all had.
#[derive(Debug, Serialize)]
pub struct DiskFacts {
    /// Its size.
    pub mib: u64,
    /// File system of its image.
    pub filesystem: String,
    /// Past the host's page cache.
    pub direct: bool,
}

/// One VMM's part.
#[derive(Debug, Serialize)]
pub struct Results {
    /// Name given by the user, and the variant.
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
    /// Guests that got to their end.
    pub samples: Vec<Sample>,
    /// One more, whose system calls were counted: its figures are not comparable.
    pub counted: Option<Sample>,
    /// What went wrong with others, and with single jobs.
    pub failures: Vec<String>,
}

impl Results {
    fn values(&self, job: &Job, value: impl Fn(&JobSample) -> Option<f64>) -> Vec<f64> {
        let samples = self.samples.iter();
        samples
            .filter_map(|sample| value(sample.jobs.get(job.key)?))
            .collect()
    }

    /// Its figure in a round.
    pub fn figure(&self, round: usize, job: &Job, figure: &Figure) -> Option<f64> {
        let sample = self
            .samples
            .iter()
            .find(|sample| sample.round == Some(round))?;
        sample.jobs.get(job.key)?.figures.get(figure.key).copied()
    }

    fn clock_sources(&self) -> Vec<&str> {
        let mut all: Vec<_> = self
            .samples
            .iter()
            .map(|sample| sample.clocksource.as_str())
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Guests that do not all have the same clock: reading one can cost more than reading another.
pub fn clock_note(vmms: &[Results]) -> Option<String> {
    let told: Vec<_> = vmms
        .iter()
        .filter(|vmm| !vmm.samples.is_empty())
        .map(|vmm| (vmm, vmm.clock_sources().join(" and ")))
        .collect();
    let (_, first) = told.first()?;
    if told.iter().all(|(_, sources)| sources == first) {
        return None;
    }
    let each: Vec<_> = told
        .iter()
        .map(|(vmm, sources)| format!("{} {sources}", vmm.name))
        .collect();
    Some(format!(
        "the guests' clock sources differ, and so may what reading them costs: {}",
        each.join(", ")
    ))
}

impl Report {
    /// For people.
    pub fn text(&self, jobs: &[&Job]) -> String {
        let mut text = format!(
            "{} rounds, {} s for each job, {} vCPU, {} MiB; VMMs and jobs in random order (seed {})\n",
            self.rounds, self.job_seconds, self.vcpus, self.memory_mib, self.seed
        );
        if self.interrupted {
            let each = self.vmms.iter();
            let each: Vec<_> = each
                .map(|vmm| format!("{} {}", vmm.samples.len(), vmm.name))
                .collect();
            text += &format!("STOPPED before its end: {}\n", each.join(", "));
        }
        text += &format!("Host:   {}\n", self.environment.describe());
        text += &format!("Kernel: {}\n", self.kernel.path.display());
        if let Some(disk) = &self.disk {
            let cache = if disk.direct {
                "O_DIRECT"
            } else {
                "through the host's page cache, which holds all of it"
            };
            text += &format!(
                "Disk:   raw, {} MiB on {}, {cache}\n",
                disk.mib, disk.filesystem
            );
        }
        text.push('\n');
        text += &self.table(jobs).render();
        if let (Some(first), true) = (self.vmms.first(), self.comparisons.len() > 1) {
            text += &format!(
                "\n\"{} is\": its figure by this VMM's in the same round, above 1 where it is the better one; median over the\n\
                 rounds, and {}.\n\
                 CPU and exits per operation: those of the VMM's process, its guest's included, from a job's begin to its end.\n",
                first.name,
                match self
                    .comparisons
                    .first()
                    .map(|comparison| comparison.ahead.range)
                {
                    Some(Range::Bootstrap95) => "95 % bootstrap interval of it",
                    _ => "all that was seen, for there are too few for an interval",
                }
            );
        }
        text += &self.calls(jobs);
        text.push('\n');
        let width = self.vmms.iter().map(|vmm| vmm.name.len()).max();
        let width = width.unwrap_or(0);
        for results in &self.vmms {
            if let Some(program) = &results.program {
                let (facts, version) = (program.describe(), &program.version);
                text += &format!("{:width$}  {facts}; {version}\n", results.name);
            }
        }
        for results in &self.vmms {
            if results.failures.is_empty() {
                continue;
            }
            text += &format!(
                "\nFAILED: {}, {} times beside {} guests that got to their end",
                results.name,
                results.failures.len(),
                results.samples.len()
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

    /// System calls for each operation, the most frequent first.
    fn calls(&self, jobs: &[&Job]) -> String {
        let mut text = String::new();
        let width = self.vmms.iter().map(|vmm| vmm.name.len()).max();
        let width = width.unwrap_or(0);
        for job in jobs {
            let Some(figure) = job.figures.first() else {
                continue;
            };
            let mut lines = String::new();
            for vmm in &self.vmms {
                let counted = vmm.counted.as_ref();
                let Some(sample) = counted.and_then(|sample| sample.jobs.get(job.key)) else {
                    continue;
                };
                let Some(rate) = sample.figures.get(figure.key) else {
                    continue;
                };
                let operations = sample.wall_ms / 1e3 * rate;
                let per = |count: u64| count as f64 / operations;
                let mut calls: Vec<_> = sample.calls.iter().collect();
                calls.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
                let all = per(calls.iter().map(|(_, count)| **count).sum());
                let each: Vec<_> = calls
                    .into_iter()
                    .map(|(name, &count)| (name, per(count)))
                    .filter(|(_, per)| *per >= RARE)
                    .map(|(name, per)| format!("{name} {per:.2}"))
                    .collect();
                lines += &format!("  {:width$}  {all:.2}: {}\n", vmm.name, each.join(", "));
            }
            if !lines.is_empty() {
                let what = figure.operation.unwrap_or("operation");
                text += &format!("{}, by {what}\n{lines}", job.key);
            }
        }
        if !text.is_empty() {
            let title = "\nSystem calls of the VMM's process, counted in one more round\n";
            text.insert_str(0, title);
        }
        text
    }

    fn table(&self, jobs: &[&Job]) -> Table {
        let names = ["median", "min", "max", "CPU us/op", "exits/op"];
        let compared = !self.comparisons.is_empty();
        let mut columns = names.to_vec();
        let is = self.vmms.first().map(|vmm| format!("{} is", vmm.name));
        if let (true, Some(is)) = (compared, &is) {
            columns.extend([is.as_str(), "range"]);
        }
        let mut table = Table::new(&columns);
        for job in jobs {
            for figure in job.figures {
                let lines: Vec<_> = self
                    .vmms
                    .iter()
                    .filter_map(|vmm| Some((vmm.name.as_str(), self.cells(vmm, job, figure)?)))
                    .collect();
                if !lines.is_empty() {
                    table.title(figure.title);
                }
                for (name, cells) in lines {
                    table.line(name, cells);
                }
            }
        }
        table
    }

    fn cells(&self, vmm: &Results, job: &Job, figure: &Figure) -> Option<Vec<String>> {
        let value = |sample: &JobSample| sample.figures.get(figure.key).copied();
        let summary = Summary::of(&vmm.values(job, value))?;
        let mut cells: Vec<String> = [summary.p50, summary.min, summary.max].map(number).into();
        let per = |each: fn(&JobSample, f64) -> Option<f64>| {
            let values = vmm.values(job, |sample| each(sample, value(sample)?));
            let summary = Summary::of(&values).filter(|_| figure.operation.is_some());
            summary.map_or_else(String::new, |summary| number(summary.p50))
        };
        cells.push(per(|sample, rate| Some(sample.cpu_us_per(rate))));
        cells.push(per(JobSample::exits_per));
        let comparison = self.comparisons.iter().find(|comparison| {
            (comparison.job, comparison.figure) == (job.key, figure.key)
                && comparison.with == vmm.name
        });
        if let Some(comparison) = comparison {
            let Estimate {
                median, low, high, ..
            } = comparison.ahead;
            cells.push(format!("{median:.2}x"));
            cells.push(format!("{low:.2}-{high:.2}"));
        }
        Some(cells)
    }
}

/// Three digits that matter, or all before the point.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::compare;
    use super::super::jobs::JOBS;
    use super::*;

    fn sample(round: usize, key: &'static str, figures: &[(&'static str, f64)]) -> Sample {
        let job = JobSample {
            position: 0,
            figures: figures.iter().copied().collect(),
            wall_ms: 2000.0,
            guest_wall_ms: 2000.0,
            cpu_ms: 1000.0,
            kvm: BTreeMap::from([("exits", 4000)]),
            calls: BTreeMap::from([("ioctl".into(), 800), ("read".into(), 6)]),
            output: serde_json::Value::Null,
        };
        Sample {
            round: Some(round),
            position: 0,
            clocksource: "kvm-clock".into(),
            clock_ratio: 1.0,
            jobs: BTreeMap::from([(key, job)]),
            failures: Vec::new(),
        }
    }

    fn results(name: &str, samples: Vec<Sample>) -> Results {
        Results {
            name: name.into(),
            kind: "tandem",
            program: None,
            command: Vec::new(),
            library_path: None,
            boot_args: String::new(),
            counted: samples.first().cloned(),
            samples,
            failures: Vec::new(),
        }
    }

    fn report(vmms: Vec<Results>, jobs: &[&'static Job], rounds: usize) -> Report {
        let file = FileFacts::of(std::path::Path::new("/dev/null")).unwrap();
        Report {
            version: VERSION,
            benchmark: "io",
            unix_time: 0,
            command: Vec::new(),
            seed: 1,
            rounds,
            interrupted: false,
            job_seconds: 2,
            vcpus: 1,
            memory_mib: 256,
            disk: None,
            kernel: file.clone(),
            initrd: file,
            environment: Environment::here(),
            notes: vec!["this".into()],
            comparisons: compare::all(&vmms, jobs, rounds),
            vmms,
        }
    }

    #[test]
    fn ratios_are_of_the_same_round_and_above_one_where_tandem_is_better() {
        let jobs: Vec<_> = JOBS.iter().filter(|job| job.key == "round-trips").collect();
        let figures = |rate, p50| [("per_s", rate), ("p50_us", p50)];
        let one = |round, rate, p50| sample(round, "round-trips", &figures(rate, p50));
        let tandem = results("tandem", vec![one(0, 200.0, 5.0), one(1, 400.0, 2.0)]);
        let mut other = results("other", vec![one(1, 200.0, 3.0), one(2, 999.0, 9.0)]);
        other.failures.push("no such thing".into());
        let report = report(vec![tandem, other, results("broken", Vec::new())], &jobs, 3);
        let told: Vec<_> = report
            .comparisons
            .iter()
            .map(|comparison| {
                let Comparison {
                    figure,
                    with,
                    ahead,
                    rounds,
                    ..
                } = comparison;
                (*figure, with.as_str(), ahead.median, *rounds)
            })
            .collect();
        assert_eq!(
            told,
            [("per_s", "other", 2.0, 1), ("p50_us", "other", 1.5, 1)]
        );
        let mut report = report;
        report.interrupted = true;
        let text = report.text(&jobs);
        assert!(
            text.contains("STOPPED before its end: 2 tandem, 2 other, 0 broken"),
            "{text}"
        );
        // 1000 ms of CPU time in two seconds of 400 operations each.
        assert!(text.contains("1250      5.00"), "{text}");
        assert!(text.contains("2.00x  2.00-2.00"), "{text}");
        assert!(!text.contains("99th percentile"), "nobody has it: {text}");
        assert!(text.contains("FAILED: other, 1 times"), "{text}");
        assert!(text.contains("too few"), "{text}");
        // 806 calls in two seconds of 200 operations each.
        assert!(text.contains("  tandem  2.02: ioctl 2.00\n"), "{text}");
    }

    #[test]
    fn clocks_that_differ_are_told() {
        let one = |source: &str| {
            let mut sample = sample(0, "round-trips", &[]);
            sample.clocksource = source.into();
            results(source, vec![sample])
        };
        assert_eq!(clock_note(&[one("tsc"), one("tsc")]), None);
        let note = clock_note(&[one("tsc"), one("kvm-clock")]).unwrap();
        assert!(note.contains("tsc tsc, kvm-clock kvm-clock"), "{note}");
    }
}
