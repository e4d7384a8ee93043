//! The report: findings in sections, and a verdict. Its JSON form is documented in DOCTOR.md;
//! whoever changes it there or here changes [`SCHEMA`] too unless a field is only added.

use serde::Serialize;
use serde_json::Value;
use vmm::probe::{self, Verdict};

/// Name and version of the JSON document.
pub const SCHEMA: &str = "tandem.doctor/1";

/// How a finding is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Neither good nor bad.
    Info,
    /// Works, with something missing or worse than it could be.
    Warning,
    /// Does not work.
    Problem,
}

/// One line of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Stable name, unique in its section.
    pub id: String,
    /// What was looked at, for people.
    pub title: String,
    /// How to take it.
    pub status: Status,
    /// What was found, for people.
    pub value: String,
    /// What to do; always there for a warning or a problem.
    pub remedy: Option<String>,
    /// The same for programs; its fields depend on `id`.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub details: Value,
}

impl Finding {
    fn new(status: Status, id: &str, title: &str, value: impl Into<String>) -> Self {
        let (id, title, value) = (id.to_owned(), title.to_owned(), value.into());
        Self {
            id,
            title,
            status,
            value,
            remedy: None,
            details: Value::Null,
        }
    }

    /// As it should be.
    pub fn ok(id: &str, title: &str, value: impl Into<String>) -> Self {
        Self::new(Status::Ok, id, title, value)
    }

    /// Neither good nor bad.
    pub fn info(id: &str, title: &str, value: impl Into<String>) -> Self {
        Self::new(Status::Info, id, title, value)
    }

    /// Works, but.
    pub fn warning(
        id: &str,
        title: &str,
        value: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..Self::new(Status::Warning, id, title, value)
        }
    }

    /// Does not work.
    pub fn problem(
        id: &str,
        title: &str,
        value: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..Self::new(Status::Problem, id, title, value)
        }
    }

    /// Adds the machine-readable form; what cannot be expressed is left out.
    pub fn with(mut self, details: impl Serialize) -> Self {
        self.details = serde_json::to_value(details).unwrap_or_default();
        self
    }
}

/// Findings about one part of the machine.
#[derive(Debug, Clone, Serialize)]
pub struct Section {
    /// Stable name.
    pub id: &'static str,
    /// Heading.
    pub title: &'static str,
    /// Its lines.
    pub findings: Vec<Finding>,
}

impl Section {
    /// A section of the report.
    pub fn new(id: &'static str, title: &'static str, findings: Vec<Finding>) -> Self {
        Self {
            id,
            title,
            findings,
        }
    }
}

/// Everything that `tandem doctor` says.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    schema: &'static str,
    tandem_version: &'static str,
    /// What can run.
    pub verdict: Verdict,
    can_run_stock_kernels: bool,
    exit_code: u8,
    /// The verdict in a sentence.
    pub summary: String,
    /// The findings.
    pub sections: Vec<Section>,
}

impl Report {
    /// The verdict comes from the probe alone.
    pub fn new(probed: probe::Report, sections: Vec<Section>) -> Self {
        let verdict = probed.verdict();
        Self {
            schema: SCHEMA,
            tandem_version: env!("CARGO_PKG_VERSION"),
            verdict,
            can_run_stock_kernels: probed.can_run_stock_kernels(),
            exit_code: match verdict {
                Verdict::StockKernels => 0,
                Verdict::Unusable => 1,
                Verdict::SimpleCode => 2,
            },
            summary: match verdict {
                Verdict::StockKernels => "VMs with stock kernels can run here.",
                Verdict::SimpleCode => {
                    "KVM is here but incomplete: stock kernels cannot run, only guests of simple code."
                }
                Verdict::Unusable => "VMs cannot run here.",
            }
            .to_owned(),
            sections,
        }
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// The JSON document, with a newline at its end.
    pub fn to_json(&self) -> String {
        // Strings, numbers and maps with string keys always serialise.
        serde_json::to_string_pretty(self).unwrap_or_default() + "\n"
    }

    /// How many findings have the status.
    pub fn count(&self, status: Status) -> usize {
        self.sections
            .iter()
            .flat_map(|s| &s.findings)
            .filter(|f| f.status == status)
            .count()
    }
}
