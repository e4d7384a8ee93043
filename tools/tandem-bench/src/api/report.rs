//! What was measured, as JSON and as a table.

use std::collections::BTreeMap;

use serde::Serialize;

use super::guest::Latencies;
use super::sample::{Load, Start};
use crate::binary::Program;
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
    /// Decides the order of the starts.
    pub seed: u64,
    /// Starts of each VMM.
    pub starts: u32,
    /// Rounds of requests.
    pub rounds: u32,
    /// Requests of each kind in a round.
    pub requests: u32,
    /// Connections at once for the rate.
    pub connections: u32,
    /// With a guest: then there are its latencies and nothing else.
    pub guest: bool,
    /// It was stopped before its time.
    pub interrupted: bool,
    /// What it was measured on.
    pub environment: Environment,
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
    /// Statistics of each measure.
    pub summary: BTreeMap<&'static str, Summary>,
    /// Each start.
    pub starts: Vec<Start>,
    /// Answers.
    pub load: Load,
    /// Answers while there is a guest.
    pub guest: Latencies,
    /// Why there is no more.
    pub failure: Option<String>,
}

/// Something that is compared: key, title, samples.
type Measure = (&'static str, &'static str, fn(&Results) -> Vec<f64>);

/// With a guest.
const WITH_GUEST: [Measure; 4] = [
    (
        "before_us",
        "GET / before the guest is started, us (what the host itself takes)",
        |results| micros(&results.guest.before_ns),
    ),
    (
        "boots_us",
        "GET / while the guest boots, us (aim: p99 below 2000)",
        |results| micros(&results.guest.boots_ns),
    ),
    (
        "disk_us",
        "GET / while the guest reads and writes its disk, us (aim: p99 below 2000)",
        |results| micros(&results.guest.disk_ns),
    ),
    (
        "paused_us",
        "GET / while the guest is paused, us (aim: p99 below 2000)",
        |results| micros(&results.guest.paused_ns),
    ),
];

/// Without one.
const MEASURES: [Measure; 8] = [
    (
        "connected_ms",
        "process start -> socket listens, ms",
        |results| {
            results
                .starts
                .iter()
                .map(|start| start.connected_ns as f64 / 1e6)
                .collect()
        },
    ),
    (
        "answered_ms",
        "process start -> first answer, ms",
        |results| {
            results
                .starts
                .iter()
                .map(|start| start.answered_ns as f64 / 1e6)
                .collect()
        },
    ),
    (
        "start_cpu_ms",
        "CPU time by the first answer, ms",
        |results| {
            results
                .starts
                .iter()
                .map(|start| start.cpu_ns as f64 / 1e6)
                .collect()
        },
    ),
    ("rss_mib", "RSS by the first answer, MiB", |results| {
        results
            .starts
            .iter()
            .map(|start| start.rss_kib as f64 / 1024.0)
            .collect()
    }),
    ("kept_us", "GET / on a kept connection, us", |results| {
        micros(&results.load.kept_ns)
    }),
    (
        "fresh_us",
        "GET / on a new connection each, us",
        |results| micros(&results.load.fresh_ns),
    ),
    (
        "rate",
        "GET / over several connections, requests/s",
        |results| results.load.rates.clone(),
    ),
    (
        "kept_cpu_us",
        "CPU time of the VMM for GET / on a kept connection, us",
        |results| {
            results
                .load
                .kept_cpu_ns
                .iter()
                .map(|time| time / 1e3)
                .collect()
        },
    ),
];

fn micros(times: &[u64]) -> Vec<f64> {
    times.iter().map(|time| *time as f64 / 1e3).collect()
}

impl Results {
    /// Nothing yet.
    pub fn new(
        name: String,
        kind: &'static str,
        program: Option<Program>,
        failure: Option<String>,
    ) -> Self {
        Self {
            name,
            kind,
            program,
            summary: BTreeMap::new(),
            starts: Vec::new(),
            load: Load::default(),
            guest: Latencies::default(),
            failure,
        }
    }

    /// Fills in the statistics.
    pub fn summarize(&mut self) {
        for (key, _, samples) in MEASURES.iter().chain(&WITH_GUEST) {
            if let Some(summary) = Summary::of(&samples(self)) {
                self.summary.insert(key, summary);
            }
        }
    }
}

impl Report {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = match self.guest {
            true => format!(
                "Control socket with a guest: {} guests of each VMM, {} requests in each state, in random order (seed {})\n",
                self.rounds, self.requests, self.seed
            ),
            false => format!(
                "Control socket: {} starts, {} x {} requests of each kind, {} connections, in random order (seed {})\n",
                self.starts, self.rounds, self.requests, self.connections, self.seed
            ),
        };
        text += &format!("Host:   {}\n\n", self.environment.describe());
        text += &self.comparison().render();
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
        for results in &self.vmms {
            if let Some(failure) = &results.failure {
                text += &format!("\nFAILED: {}: {failure}\n", results.name);
            }
        }
        text
    }

    fn comparison(&self) -> Table {
        let ratio = if self.vmms.len() > 1 { "ratio" } else { "" };
        let mut table = Table::new(&["n", "min", "p50", "p90", "p99", "max", ratio]);
        let measures: &[Measure] = if self.guest { &WITH_GUEST } else { &MEASURES };
        for (key, title, _) in measures {
            table.title(*title);
            let baseline = self.vmms.first().and_then(|vmm| vmm.summary.get(key));
            for (index, results) in self.vmms.iter().enumerate() {
                let Some(summary) = results.summary.get(key) else {
                    table.line(&results.name, vec!["-".into(); 7]);
                    continue;
                };
                let ratio = baseline
                    .filter(|_| index > 0)
                    .map_or(String::new(), |baseline| {
                        format!("{:.2}", summary.p50 / baseline.p50)
                    });
                let number = |value: f64| match value {
                    value if value >= 1000.0 => format!("{value:.0}"),
                    value if value >= 10.0 => format!("{value:.1}"),
                    value => format!("{value:.2}"),
                };
                table.line(
                    &results.name,
                    vec![
                        summary.n.to_string(),
                        number(summary.min),
                        number(summary.p50),
                        number(summary.p90),
                        number(summary.p99),
                        number(summary.max),
                        ratio,
                    ],
                );
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(name: &str, answered_ns: u64) -> Results {
        let mut results = Results::new(name.into(), "tandem", None, None);
        results.starts = vec![
            Start {
                connected_ns: 500_000,
                answered_ns,
                cpu_ns: 700_000,
                rss_kib: 1024,
            };
            3
        ];
        results.load.kept_ns = vec![20_000, 30_000, 2_000_000];
        results.summarize();
        results
    }

    #[test]
    fn the_table_compares_with_the_first() {
        let report = Report {
            version: VERSION,
            benchmark: "api",
            unix_time: 0,
            command: Vec::new(),
            seed: 7,
            starts: 3,
            rounds: 1,
            requests: 3,
            connections: 8,
            guest: false,
            interrupted: false,
            environment: Environment::here(),
            vmms: vec![results("tandem", 1_000_000), results("other", 3_000_000)],
        };
        let text = report.text();
        let lines: Vec<_> = text.lines().collect();
        let at = lines
            .iter()
            .position(|line| line.starts_with("process start -> first answer"))
            .unwrap();
        let cells = |line: &str| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            cells(lines[at + 1]),
            ["tandem", "3", "1.00", "1.00", "1.00", "1.00", "1.00"]
        );
        assert_eq!(cells(lines[at + 2]).last().unwrap(), "3.00");
        // Nothing is made up where nothing was measured.
        let at = lines
            .iter()
            .position(|line| line.starts_with("GET / on a new"))
            .unwrap();
        assert_eq!(
            cells(lines[at + 1]),
            ["tandem", "-", "-", "-", "-", "-", "-", "-"]
        );
    }
}
