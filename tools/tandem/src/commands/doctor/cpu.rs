//! Findings about the CPU: known vulnerabilities, SMT and the frequency governor. They decide how
//! far guests are kept apart, and how far a benchmark's figures can be trusted.

use std::fs;

use serde::Serialize;
use serde_json::json;

use super::report::Finding;

/// All findings.
pub fn findings() -> Vec<Finding> {
    let read = |path: &str| {
        fs::read_to_string(path)
            .ok()
            .map(|text| text.trim().to_owned())
    };
    vec![
        vulnerabilities(&read_vulnerabilities()),
        smt(read("/sys/devices/system/cpu/smt/control").as_deref()),
        governor(read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").as_deref()),
    ]
}

/// How one vulnerability stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Standing {
    NotAffected,
    Mitigated,
    Vulnerable,
    Unknown,
}

#[derive(Debug, Clone, Serialize)]
struct Vulnerability {
    name: String,
    standing: Standing,
    /// The kernel's own words.
    text: String,
}

/// What the kernel says (Documentation/ABI/testing/sysfs-devices-system-cpu).
fn standing(text: &str) -> Standing {
    // "KVM: Mitigation: ..." (itlb_multihit) and "Processor vulnerable" (mmio) are variations.
    let text = text.strip_prefix("KVM: ").unwrap_or(text);
    if text.starts_with("Not affected") {
        Standing::NotAffected
    } else if text.starts_with("Mitigation") {
        Standing::Mitigated
    } else if text.starts_with("Vulnerable") || text.contains("vulnerable") {
        Standing::Vulnerable
    } else {
        Standing::Unknown
    }
}

fn read_vulnerabilities() -> Vec<Vulnerability> {
    let Ok(directory) = fs::read_dir("/sys/devices/system/cpu/vulnerabilities") else {
        return Vec::new();
    };
    let mut found: Vec<_> = directory
        .flatten()
        .filter_map(|entry| {
            let text = fs::read_to_string(entry.path()).ok()?.trim().to_owned();
            let name = entry.file_name().to_string_lossy().into_owned();
            Some(Vulnerability {
                name,
                standing: standing(&text),
                text,
            })
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

fn vulnerabilities(found: &[Vulnerability]) -> Finding {
    let (id, title) = ("vulnerabilities", "vulnerabilities");
    let of = |wanted| found.iter().filter(move |one| one.standing == wanted);
    let open: Vec<_> = of(Standing::Vulnerable)
        .map(|one| one.name.as_str())
        .collect();
    let finding = if found.is_empty() {
        Finding::info(id, title, "the kernel does not say")
    } else {
        let mut value = format!(
            "{} not affected, {} mitigated, {} vulnerable",
            of(Standing::NotAffected).count(),
            of(Standing::Mitigated).count(),
            open.len(),
        );
        let unknown = of(Standing::Unknown).count();
        if unknown > 0 {
            value.push_str(&format!(", {unknown} unknown"));
        }
        if open.is_empty() {
            Finding::ok(id, title, value)
        } else {
            Finding::warning(
                id,
                title,
                format!("{value}: {}", open.join(", ")),
                "update microcode and kernel, and boot without mitigations=off, before guests that \
                 do not trust each other share this host",
            )
        }
    };
    finding.with(found)
}

/// `smt/control` (Documentation/admin-guide/hw-vuln/l1tf.rst).
fn smt(control: Option<&str>) -> Finding {
    let (id, title) = ("smt", "SMT");
    let finding = match control {
        Some("on") => Finding::warning(
            id,
            title,
            "on: two vCPUs can share a core",
            "for guests that do not trust each other or steady benchmarks: echo off > \
             /sys/devices/system/cpu/smt/control",
        ),
        Some("off" | "forceoff") => Finding::ok(id, title, "off"),
        Some("notsupported") => Finding::ok(id, title, "none"),
        Some(other) => Finding::info(id, title, other),
        None => Finding::info(id, title, "the kernel does not say"),
    };
    finding.with(json!({ "control": control }))
}

fn governor(governor: Option<&str>) -> Finding {
    let (id, title) = ("governor", "governor");
    let finding = match governor {
        Some("performance") => Finding::ok(id, title, "performance"),
        Some(other) => Finding::warning(
            id,
            title,
            format!("{other}: the clock changes with the load"),
            "for steady benchmarks: cpupower frequency-set -g performance",
        ),
        None => Finding::info(id, title, "none: the clock is not this kernel's to set"),
    };
    finding.with(json!({ "governor": governor }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::report::Status;

    #[test]
    fn the_kernels_words_are_understood() {
        for (text, expected) in [
            ("Not affected", Standing::NotAffected),
            (
                "Mitigation: Retpolines; STIBP: disabled; RSB filling",
                Standing::Mitigated,
            ),
            ("KVM: Mitigation: VMX disabled", Standing::Mitigated),
            ("KVM: Vulnerable", Standing::Vulnerable),
            ("Vulnerable: Safe RET, no microcode", Standing::Vulnerable),
            ("Vulnerable", Standing::Vulnerable),
            ("Processor vulnerable", Standing::Vulnerable),
            ("Unknown: Dependent on hypervisor status", Standing::Unknown),
            ("", Standing::Unknown),
        ] {
            assert_eq!(standing(text), expected, "{text}");
        }
    }

    #[test]
    fn one_open_vulnerability_is_a_warning_that_names_it() {
        let one = |name: &str, text: &str| Vulnerability {
            name: name.to_owned(),
            standing: standing(text),
            text: text.to_owned(),
        };
        let finding = vulnerabilities(&[one("a", "Not affected"), one("b", "Vulnerable")]);
        assert_eq!(finding.status, Status::Warning);
        assert_eq!(
            finding.value,
            "1 not affected, 0 mitigated, 1 vulnerable: b"
        );
        assert_eq!(
            vulnerabilities(&[one("a", "Not affected")]).status,
            Status::Ok
        );
        assert_eq!(vulnerabilities(&[]).status, Status::Info);
    }
}
