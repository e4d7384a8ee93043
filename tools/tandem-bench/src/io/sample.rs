//! One VM, from its start to its end, and the jobs that its guest did meanwhile.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::account::{Account, difference};
use super::calls::Calls;
use super::jobs::Job;
use crate::adapters::Launch;
use crate::process::{Failure, Running, Seen};
use crate::stage::StagedProgram;
use crate::sys;

/// A guest's clock that is off by more than this part of the time, and what a mark on its way here may be late at worst,
/// makes its figures worthless.
const CLOCK_TOLERANCE: f64 = 0.02;
const MARK_MS: f64 = 400.0;
/// The longest line that a guest's console is listened to for.
const LONGEST_LINE: usize = 1 << 20;

/// One VM's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// Round in which it was measured; warm-up rounds have none.
    pub round: Option<usize>,
    /// Position within the round.
    pub position: usize,
    /// The guest's clock source.
    pub clocksource: String,
    /// Time by the guest's clock for each unit of the host's, from the first job to the last.
    pub clock_ratio: f64,
    /// By their keys; what failed is missing.
    pub jobs: BTreeMap<&'static str, JobSample>,
    /// Why jobs are missing.
    pub failures: Vec<String>,
}

/// What came of a job.
#[derive(Clone, Debug, Serialize)]
pub struct JobSample {
    /// Place in the order of this VM's jobs.
    pub position: usize,
    /// The figures, by their keys.
    pub figures: BTreeMap<&'static str, f64>,
    /// Milliseconds from the job's begin to its end by the host's clock: its program's start and warm-up are included.
    pub wall_ms: f64,
    /// The same by the guest's.
    pub guest_wall_ms: f64,
    /// CPU time of the VMM's process in that time, its guest's included, in milliseconds.
    pub cpu_ms: f64,
    /// KVM's counters for this VM in that time, where debugfs has them.
    pub kvm: BTreeMap<&'static str, u64>,
    /// System calls of the VMM's threads in that time, where they were counted.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub calls: BTreeMap<String, u64>,
    /// What its program printed.
    pub output: serde_json::Value,
}

impl JobSample {
    /// CPU time in microseconds for each operation, if `rate` were kept up from the job's begin to its end.
    pub fn cpu_us_per(&self, rate: f64) -> f64 {
        self.cpu_ms * 1e3 / (self.wall_ms / 1e3 * rate)
    }

    /// Exits of the guest for each operation, likewise.
    pub fn exits_per(&self, rate: f64) -> Option<f64> {
        Some(*self.kvm.get("exits")? as f64 / (self.wall_ms / 1e3 * rate))
    }
}

/// Runs the VM and takes its figures.
pub fn run(
    program: &StagedProgram,
    launch: &Launch,
    jobs: &[&'static Job],
    calls: Option<&Calls>,
    limit: Duration,
) -> Result<Sample, Failure> {
    let zero_ns = sys::monotonic_ns();
    let start_us = (zero_ns / 1_000).to_string();
    let mut running = Running::start(program, launch.arguments_at(&start_us), zero_ns)?;
    let mut console = Console::new(jobs);
    running.watch(limit, |seen| console.take(seen, calls))?;
    let (status, _) = running.wait()?;
    if let Some(error) = console.error {
        return Err(error.into());
    }
    let good = |code: i32| launch.good_exits.contains(&code);
    if !console.sample.clocksource.is_empty() && !status.code().is_some_and(good) {
        return Err(format!("ended with {status}: {}", running.last_words()).into());
    }
    let told = console.sample.jobs.len() + console.sample.failures.len();
    if told < jobs.len() {
        let (all, why) = (jobs.len(), running.last_words());
        return Err(format!("ended after {told} of {all} jobs, with {status}: {why}").into());
    }
    console.check_clock()?;
    Ok(console.sample)
}

/// The guest's console: see guest-init.sh.
struct Console {
    jobs: Vec<&'static Job>,
    line: Vec<u8>,
    current: Option<Current>,
    first: Option<Mark>,
    last: Option<Mark>,
    sample: Sample,
    error: Option<String>,
}

/// A moment by both clocks: nanoseconds of the host's, seconds of the guest's.
#[derive(Clone, Copy)]
struct Mark {
    at_ns: u64,
    uptime: f64,
}

struct Current {
    name: String,
    uptime: f64,
    begin: Account,
    /// Account and uptime at the end, and the job's status.
    end: Option<(Account, f64, String)>,
    output: String,
}

impl Console {
    fn new(jobs: &[&'static Job]) -> Self {
        Self {
            jobs: jobs.to_vec(),
            line: Vec::new(),
            current: None,
            first: None,
            last: None,
            sample: Sample {
                round: None,
                position: 0,
                clocksource: String::new(),
                clock_ratio: f64::NAN,
                jobs: BTreeMap::new(),
                failures: Vec::new(),
            },
            error: None,
        }
    }

    fn take(&mut self, seen: Seen, calls: Option<&Calls>) -> Result<(), Failure> {
        self.take_with(seen.new, || {
            let mut account = Account::of(seen.pid, seen.at_ns);
            if let Some(calls) = calls {
                account.calls = calls.of(seen.pid)?;
            }
            Ok(account)
        })
    }

    fn take_with(
        &mut self,
        bytes: &[u8],
        mut account: impl FnMut() -> Result<Account, String>,
    ) -> Result<(), Failure> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                if self.line.len() > LONGEST_LINE {
                    return Err(Failure::Vm("a line of its console has no end".into()));
                }
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = String::from_utf8_lossy(&line);
            let (word, rest) = line.trim().split_once(' ').unwrap_or_default();
            match word {
                "TANDEM-GUEST" => {
                    let source = rest
                        .split(' ')
                        .find_map(|word| word.strip_prefix("clocksource="));
                    self.sample.clocksource = source.unwrap_or("unknown").to_owned();
                }
                "TANDEM-JOB" => {
                    let (name, uptime) = rest.split_once(' ').unwrap_or_default();
                    let uptime = uptime.parse().unwrap_or(f64::NAN);
                    let begin = account()?;
                    self.mark(&begin, uptime);
                    self.current = Some(Current {
                        name: name.to_owned(),
                        uptime,
                        begin,
                        end: None,
                        output: String::new(),
                    });
                }
                "TANDEM-DONE" => {
                    let mut words = rest.split(' ').skip(1);
                    let uptime = words.next().and_then(|text| text.parse().ok());
                    let uptime = uptime.unwrap_or(f64::NAN);
                    let status = words.next().unwrap_or_default().to_owned();
                    let end = account()?;
                    self.mark(&end, uptime);
                    if let Some(current) = &mut self.current {
                        current.end = Some((end, uptime, status));
                    }
                }
                "TANDEM-OUT" => {
                    if let Some(current) = &mut self.current {
                        current.output = rest.to_owned();
                    }
                }
                "TANDEM-END" => {
                    if let Some(current) = self.current.take() {
                        let position = self.sample.jobs.len() + self.sample.failures.len();
                        let name = current.name.clone();
                        match self.finish(current, position) {
                            Ok((key, job)) => {
                                self.sample.jobs.insert(key, job);
                            }
                            Err(why) => self.sample.failures.push(format!("{name}: {why}")),
                        }
                    }
                }
                "TANDEM-ERROR" => self.error = Some(rest.to_owned()),
                _ => {}
            }
        }
        Ok(())
    }

    /// From the first mark to the last, did the guest's clock keep up with ours?
    fn check_clock(&mut self) -> Result<(), String> {
        let (Some(first), Some(last)) = (self.first, self.last) else {
            return Ok(());
        };
        let host_ms = (last.at_ns - first.at_ns) as f64 / 1e6;
        let guest_ms = (last.uptime - first.uptime) * 1e3;
        self.sample.clock_ratio = guest_ms / host_ms;
        // Also false if it is not a number.
        let good = (guest_ms - host_ms).abs() <= host_ms * CLOCK_TOLERANCE + MARK_MS;
        if good {
            return Ok(());
        }
        Err(format!(
            "the guest's clock counted {guest_ms:.0} ms while the host's counted {host_ms:.0}: \
             its figures are worth nothing"
        ))
    }

    fn mark(&mut self, account: &Account, uptime: f64) {
        let mark = Mark {
            at_ns: account.at_ns,
            uptime,
        };
        self.first.get_or_insert(mark);
        self.last = Some(mark);
    }

    fn finish(
        &self,
        current: Current,
        position: usize,
    ) -> Result<(&'static str, JobSample), String> {
        let Current {
            name,
            begin,
            end,
            output,
            uptime,
        } = current;
        let job = self.jobs.iter().find(|job| job.key == name);
        let job = job.ok_or("nobody asked for it")?;
        let (end, end_uptime, status) = end.ok_or("it has no end")?;
        if status != "0" {
            return Err(format!("its program ended with {status}: {output}"));
        }
        let wall_ms = (end.at_ns - begin.at_ns) as f64 / 1e6;
        let guest_wall_ms = (end_uptime - uptime) * 1e3;
        let figures = job.parse(&output)?;
        let sample = JobSample {
            position,
            figures: job
                .figures
                .iter()
                .map(|figure| figure.key)
                .zip(figures)
                .collect(),
            wall_ms,
            guest_wall_ms,
            cpu_ms: end.cpu_ms - begin.cpu_ms,
            kvm: difference(end.kvm, &begin.kvm),
            calls: difference(end.calls, &begin.calls),
            output: serde_json::from_str(&output).unwrap_or_default(),
        };
        Ok((job.key, sample))
    }
}

#[cfg(test)]
mod tests {
    use super::super::jobs::JOBS;
    use super::*;

    /// Feeds a console that costs 10 ms of CPU time and 1 s of real time from one mark to the next.
    fn console(text: &str) -> Console {
        let jobs: Vec<_> = JOBS.iter().collect();
        let mut console = Console::new(&jobs);
        let mut time = 0;
        let mut account = || {
            time += 1;
            Ok(Account {
                at_ns: time * 1_000_000_000,
                cpu_ms: time as f64 * 10.0,
                kvm: BTreeMap::from([("exits", time * 1000)]),
                calls: BTreeMap::new(),
            })
        };
        for piece in text.as_bytes().chunks(7) {
            console.take_with(piece, &mut account).unwrap();
        }
        console
    }

    const PACKETS: &str = r#"{"count":500,"seconds":1.0,"p50_us":null,"p99_us":null}"#;

    #[test]
    fn jobs_on_a_console() {
        let console = console(&format!(
            "noise\r\nTANDEM-GUEST clocksource=kvm-clock cpus=1\r\n\
             \nTANDEM-JOB packets-to-host 5.00\n\nTANDEM-DONE packets-to-host 6.01 0\n\
             TANDEM-OUT {PACKETS}\nTANDEM-END packets-to-host\n\
             \nTANDEM-JOB round-trips 7.00\n\nTANDEM-DONE round-trips 8.00 1\n\
             TANDEM-OUT no route to host\nTANDEM-END round-trips\n"
        ));
        let sample = console.sample;
        assert_eq!(sample.clocksource, "kvm-clock");
        assert_eq!(
            sample.failures,
            ["round-trips: its program ended with 1: no route to host"]
        );
        let job = &sample.jobs["packets-to-host"];
        assert_eq!((job.wall_ms, job.cpu_ms), (1000.0, 10.0));
        assert_eq!(job.figures["per_s"], 500.0);
        assert_eq!(job.cpu_us_per(500.0), 20.0);
        assert_eq!(job.exits_per(500.0), Some(2.0));
    }

    #[test]
    fn what_cannot_be_trusted_is_no_figure() {
        let one = |end: &str, output: &str| {
            let text = format!(
                "\nTANDEM-JOB packets-to-host 5.00\n{end}TANDEM-OUT {output}\nTANDEM-END packets-to-host\n"
            );
            let sample = console(&text).sample;
            assert!(sample.jobs.is_empty(), "{sample:?}");
            sample.failures.join("")
        };
        assert!(one("TANDEM-DONE packets-to-host 6.00 0\n", "{}").contains("per_s"));
        assert!(one("", PACKETS).contains("no end"));
        let error = console("TANDEM-ERROR there is no disk in the guest\n").error;
        assert_eq!(error.as_deref(), Some("there is no disk in the guest"));
    }

    #[test]
    fn a_guest_whose_clock_does_not_keep_up_is_no_sample() {
        let clock = |uptimes: [&str; 4]| {
            let mut text = String::new();
            for pair in uptimes.chunks(2) {
                text += &format!(
                    "\nTANDEM-JOB packets-to-host {}\n\nTANDEM-DONE packets-to-host {} 0\n\
                     TANDEM-OUT {PACKETS}\nTANDEM-END packets-to-host\n",
                    pair[0], pair[1]
                );
            }
            console(&text).check_clock()
        };
        // A second passes between two marks on the host.
        assert_eq!(clock(["5.0", "6.0", "7.0", "8.01"]), Ok(()));
        let slow = clock(["5.0", "5.5", "6.0", "6.5"]).unwrap_err();
        assert!(slow.contains("counted 1500 ms"), "{slow}");
        assert!(clock(["5.0", "6.0", "7.0", "9.0"]).is_err());
        assert!(clock(["5.0", "6.0", "7.0", "x"]).is_err());
    }
}
