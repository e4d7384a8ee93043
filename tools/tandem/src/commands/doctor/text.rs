//! The report for people, in 80 columns.

use super::report::{Finding, Report, Status};
use crate::output::{Colour, Style, wrap};
use vmm::probe::Verdict;

const WIDTH: usize = 80;
/// "  ok       " and a title of up to 18 characters.
const STATUS_WIDTH: usize = 7;
const TITLE_WIDTH: usize = 18;
const VALUE_COLUMN: usize = 2 + STATUS_WIDTH + 2 + TITLE_WIDTH + 2;

/// Renders the whole report.
pub fn render(report: &Report, style: Style) -> String {
    let mut out = String::new();
    for section in &report.sections {
        out.push_str(&style.paint(Colour::Bold, section.title));
        out.push('\n');
        for finding in &section.findings {
            render_finding(&mut out, finding, style);
        }
        out.push('\n');
    }
    let colour = match report.verdict {
        Verdict::StockKernels => Colour::Green,
        Verdict::SimpleCode => Colour::Yellow,
        Verdict::Unusable => Colour::Red,
    };
    for line in wrap(&report.summary, WIDTH) {
        out.push_str(&style.paint(colour, &line));
        out.push('\n');
    }
    out.push_str(&format!(
        "Problems: {}. Warnings: {}. Exit code: {}.\n",
        report.count(Status::Problem),
        report.count(Status::Warning),
        report.exit_code(),
    ));
    out
}

fn render_finding(out: &mut String, finding: &Finding, style: Style) {
    let (word, colour) = match finding.status {
        Status::Ok => ("ok", Colour::Green),
        Status::Info => ("-", Colour::Dim),
        Status::Warning => ("warning", Colour::Yellow),
        Status::Problem => ("problem", Colour::Red),
    };
    let status = style.paint(colour, &format!("{word:STATUS_WIDTH$}"));
    out.push_str(&format!("  {status}  {:TITLE_WIDTH$}  ", finding.title));
    let indent = " ".repeat(VALUE_COLUMN);
    let mut first = true;
    for line in wrap(&finding.value, WIDTH - VALUE_COLUMN) {
        if !first {
            out.push_str(&indent);
        }
        first = false;
        out.push_str(&line);
        out.push('\n');
    }
    let mut lead = "-> ";
    for line in finding
        .remedy
        .iter()
        .flat_map(|remedy| wrap(remedy, WIDTH - VALUE_COLUMN - 3))
    {
        out.push_str(&format!("{indent}{lead}{line}\n"));
        lead = "   ";
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::Section;
    use super::*;
    use vmm::probe::{DeviceError, Host, Report as Probed};

    fn report() -> Report {
        let device = Err(DeviceError::Missing {
            device: "/dev/kvm".into(),
        });
        let findings = vec![
            Finding::ok("a", "Alpha", "fine"),
            Finding::info("b", "Beta", "so it is ".repeat(20)),
            Finding::warning("c", "Gamma", "slow", "make it fast, ".repeat(10)),
            Finding::problem("d", "Delta", "broken", "mend it").with(42),
        ];
        Report::new(
            Probed {
                device,
                host: Host::detect(),
            },
            vec![Section::new("test", "Test", findings)],
        )
    }

    #[test]
    fn every_line_fits_in_80_columns_and_values_are_aligned() {
        let text = render(&report(), Style::PLAIN);
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
        for (title, value) in [("Alpha", "fine"), ("Gamma", "slow"), ("Delta", "broken")] {
            let line = text.lines().find(|line| line.contains(title)).unwrap();
            assert_eq!(line.find(value), Some(VALUE_COLUMN), "{line}");
        }
    }

    #[test]
    fn text_and_json_say_the_same() {
        let report = report();
        let text = render(&report, Style::PLAIN);
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["schema"], super::super::report::SCHEMA);
        assert_eq!(json["exit_code"], 1);
        assert_eq!(json["verdict"], "unusable");
        assert!(text.contains(json["summary"].as_str().unwrap()));
        let flat = text
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .replace("-> ", "");
        for finding in json["sections"][0]["findings"].as_array().unwrap() {
            for key in ["title", "value", "remedy"] {
                let Some(said) = finding[key].as_str() else {
                    continue;
                };
                let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
                assert!(flat.contains(&said), "{said:?} is missing");
            }
            let worse = ["warning", "problem"].contains(&finding["status"].as_str().unwrap());
            assert_eq!(worse, finding["remedy"].is_string());
        }
        assert_eq!(json["sections"][0]["findings"][3]["details"], 42);
        assert!(text.contains("Problems: 1. Warnings: 1. Exit code: 1."));
    }
}
