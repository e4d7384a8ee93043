//! `tandem timeline`: a boot timeline, readable.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use vmm::timeline::{Mark, Report};

use crate::exit;
use crate::output::{Colour, Style, print};

/// Longest bar, in columns.
const BAR: u64 = 24;

/// Show the boot timeline of a VM as a table.
///
/// For each phase: when it was reached, how long it took since the phase before,
/// and the CPU time of the VM process by then. Times are in milliseconds.
///
/// Exit codes: 0 shown, 1 the file is not a boot timeline, 64 usage, 74 output
/// not writable.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub struct Timeline {
    /// What `tandem-vmm --boot-timeline` has written
    file: PathBuf,
}

/// Exit code: the file is not a boot timeline.
const NOT_A_TIMELINE: u8 = 1;

impl Timeline {
    /// Runs it to the exit code.
    pub fn run(self) -> ExitCode {
        let printed = match self.read() {
            Ok(report) => print(&table(&report, Style::of_stdout())),
            Err(problem) => {
                eprintln!("tandem timeline: {}: {problem}", self.file.display());
                return NOT_A_TIMELINE.into();
            }
        };
        match printed {
            Ok(()) => exit::OK.into(),
            Err(error) => {
                eprintln!("tandem timeline: standard output: {error}");
                exit::IO.into()
            }
        }
    }

    fn read(&self) -> Result<Report, String> {
        let text = fs::read(&self.file).map_err(|error| error.to_string())?;
        let report: Report = serde_json::from_slice(&text)
            .map_err(|error| format!("not a boot timeline: {error}"))?;
        if report.version != Report::VERSION {
            return Err(format!(
                "version {} of the document, and this program reads {}",
                report.version,
                Report::VERSION
            ));
        }
        Ok(report)
    }
}

fn table(report: &Report, style: Style) -> String {
    let heading = format!(
        "{:<18} {:>10} {:>10} {:>10}",
        "phase", "at ms", "took ms", "CPU ms"
    );
    let longest = steps(&report.marks)
        .map(|(_, took)| took)
        .max()
        .unwrap_or(0);
    let mut text = style.paint(Colour::Bold, &heading) + "\n";
    for (mark, took) in steps(&report.marks) {
        // A phase that took any time at all shows.
        let width = (took * BAR).div_ceil(longest.max(1));
        let name = match &mark.device {
            Some(device) => format!("{} {device}", mark.phase.name()),
            None => mark.phase.name().to_owned(),
        };
        let row = format!(
            "{name:<18} {:>10} {:>10} {:>10}  {}",
            milliseconds(mark.wall_us),
            milliseconds(took),
            milliseconds(mark.cpu_us),
            style.paint(Colour::Dim, &"#".repeat(width as usize)),
        );
        text += row.trim_end();
        text.push('\n');
    }
    text + &format!(
        "{}: {} (exit code {})\n",
        report.id, report.reason, report.exit_code
    )
}

/// Each mark with the microseconds since the one before.
fn steps(marks: &[Mark]) -> impl Iterator<Item = (&Mark, u64)> {
    let before = std::iter::once(0).chain(marks.iter().map(|mark| mark.wall_us));
    marks
        .iter()
        .zip(before)
        .map(|(mark, before)| (mark, mark.wall_us.saturating_sub(before)))
}

fn milliseconds(microseconds: u64) -> String {
    format!("{}.{:03}", microseconds / 1_000, microseconds % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::timeline::Phase;

    #[test]
    fn the_table_shows_steps_and_bars() {
        let mark = |phase, wall_us, cpu_us| Mark {
            phase,
            device: None,
            wall_us,
            cpu_us,
        };
        let report = Report {
            version: Report::VERSION,
            id: "vm-1".into(),
            exit_code: 0,
            reason: "the guest switched itself off".into(),
            marks: vec![
                mark(Phase::ProcessStart, 12, 800),
                mark(Phase::FirstVcpuEntry, 2_012, 2_500),
                mark(Phase::Shutdown, 26_012, 20_000),
            ],
        };
        let text = table(&report, Style::PLAIN);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "phase                   at ms    took ms     CPU ms"
        );
        assert_eq!(
            lines[1],
            "process_start           0.012      0.012      0.800  #"
        );
        assert_eq!(
            lines[2],
            "first_vcpu_entry        2.012      2.000      2.500  ##"
        );
        assert!(lines[3].ends_with(&"#".repeat(24)), "{}", lines[3]);
        assert_eq!(
            lines[4],
            "vm-1: the guest switched itself off (exit code 0)"
        );
        assert!(lines.iter().all(|line| line.len() <= 80));
    }
}
