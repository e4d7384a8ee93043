//! Findings about /dev/kvm: is it there, may we use it, is it complete. `vmm::probe` does the work.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::json;
use vmm::probe::{Backend, Check, Device, DeviceError, Host, Outcome, Report};

use super::report::Finding;

/// All findings; those that need an open device are left out where there is none.
pub fn findings(path: &Path, report: &Report) -> Vec<Finding> {
    let mut findings = vec![
        device(path, report),
        backend(&report.host),
        nested(&report.host),
    ];
    if let Ok(device) = &report.device {
        findings.push(api(device));
        findings.push(needed(device));
        findings.push(optional(device));
        findings.push(stock_kernels(device));
        findings.extend(checks(device));
    }
    findings
}

fn device(path: &Path, report: &Report) -> Finding {
    let (id, title) = ("device", "device");
    match &report.device {
        Ok(_) => Finding::ok(
            id,
            title,
            format!("{} opens for reading and writing", path.display()),
        ),
        Err(error) => {
            let remedy = match error {
                DeviceError::Missing { .. } => remedy_missing(&report.host),
                DeviceError::Denied { .. } => remedy_denied(path),
                DeviceError::Open {
                    errno: libc::ENODEV | libc::ENXIO,
                    ..
                } => remedy_missing(&report.host),
                DeviceError::Open {
                    errno: libc::EBUSY, ..
                } => {
                    "another hypervisor (VirtualBox, VMware) has the CPU's virtualization: stop it"
                        .to_owned()
                }
                DeviceError::Open { .. } | DeviceError::NotKvm { .. } => {
                    "name the KVM device with --kvm, or create it: mknod /dev/kvm c 10 232"
                        .to_owned()
                }
                DeviceError::Version { .. } => "run a Linux kernel newer than 2.6.22".to_owned(),
            };
            Finding::problem(id, title, error.to_string(), remedy).with(error)
        }
    }
}

/// What to do when there is no device: load the module that fits the CPU, or get a CPU that has one.
fn remedy_missing(host: &Host) -> String {
    let flags = host.cpu_flags;
    let container = "in a container, pass the device in (--device /dev/kvm)";
    if flags.vmx {
        format!("modprobe kvm_intel; {container}")
    } else if flags.svm {
        format!("modprobe kvm_amd; {container}")
    } else if host.is_nested() {
        format!(
            "this host is a VM whose CPU offers neither vmx nor svm: turn nested virtualization on \
             in the hypervisor below; {container}"
        )
    } else {
        "the CPU offers neither vmx nor svm: turn virtualization on in the firmware's settings"
            .to_owned()
    }
}

/// What to do when the device may not be opened: join its group, or give it one.
fn remedy_denied(path: &Path) -> String {
    let Ok(meta) = fs::metadata(path) else {
        return "run as root".to_owned();
    };
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let owner = group_name(&groups, meta.gid());
    let group_may = meta.mode() & 0o060 == 0o060;
    match owner {
        Some(group) if group_may && meta.gid() != 0 => format!(
            "the device belongs to group {group}: sudo usermod -aG {group} $USER, then log in again"
        ),
        _ if meta.file_type().is_char_device() => format!(
            "only root may open it: sudo groupadd -f kvm; sudo chgrp kvm {0}; sudo chmod 660 {0}; \
             sudo usermod -aG kvm $USER, then log in again",
            path.display()
        ),
        _ => "run as root".to_owned(),
    }
}

fn group_name(groups: &str, gid: u32) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then_some(name)
    })
}

fn backend(host: &Host) -> Finding {
    let what = match host.backend {
        Backend::KvmIntel => "kvm_intel (VT-x)",
        Backend::KvmAmd => "kvm_amd (SVM)",
        Backend::KvmPvm => "kvm_pvm (software)",
        Backend::Unknown => "unknown",
    };
    Finding::info("backend", "backend", what).with(json!({
        "module": host.backend.name(),
        "cpu_model": host.cpu_model,
        "vmx": host.cpu_flags.vmx,
        "svm": host.cpu_flags.svm,
    }))
}

fn nested(host: &Host) -> Finding {
    let value = match host.hypervisor.as_deref() {
        None => "no: this host is not a VM".to_owned(),
        Some(name) => {
            let below = if name.is_empty() {
                "an unnamed hypervisor"
            } else {
                name
            };
            let how = match host.backend {
                Backend::KvmPvm => "; kvm_pvm runs guests without hardware virtualization",
                _ if host.cpu_flags.vmx => "; it offers VT-x to this host",
                _ if host.cpu_flags.svm => "; it offers SVM to this host",
                _ => "",
            };
            format!("yes: this host is a VM on {below}{how}")
        }
    };
    Finding::info("nested", "nested", value)
        .with(json!({ "nested": host.is_nested(), "hypervisor": host.hypervisor }))
}

fn api(device: &Device) -> Finding {
    Finding::ok("api_version", "API version", device.api_version.to_string())
        .with(json!({ "api_version": device.api_version }))
}

fn needed(device: &Device) -> Finding {
    let (id, title) = ("capabilities", "needed");
    let needed: Vec<_> = device.capabilities.iter().filter(|c| c.needed).collect();
    let missing: Vec<_> = device.missing_capabilities().collect();
    let finding = if missing.is_empty() {
        Finding::ok(id, title, format!("all {} capabilities", needed.len()))
    } else {
        let list: Vec<_> = missing
            .iter()
            .map(|c| format!("{} ({})", c.name, c.purpose))
            .collect();
        Finding::problem(
            id,
            title,
            format!("missing: {}", list.join(", ")),
            "run Linux 4.11 or newer",
        )
    };
    finding.with(needed)
}

fn optional(device: &Device) -> Finding {
    let optional: Vec<_> = device.capabilities.iter().filter(|c| !c.needed).collect();
    let missing: Vec<_> = optional
        .iter()
        .filter(|c| !c.is_present())
        .map(|c| c.name)
        .collect();
    let present = optional.len() - missing.len();
    let mut value = format!("{present} of {} capabilities", optional.len());
    if !missing.is_empty() {
        value.push_str(&format!("; not: {}", missing.join(", ")));
    }
    Finding::info("optional_capabilities", "optional", value).with(optional)
}

fn stock_kernels(device: &Device) -> Finding {
    let (id, title) = ("stock_kernels", "stock kernels");
    let failed: Vec<_> = device
        .failed_checks()
        .map(|result| result.check.name())
        .collect();
    let micros: u64 = device.checks.iter().map(|result| result.micros).sum();
    let (total, took) = (
        device.checks.len(),
        format!("{:.1} ms", micros as f64 / 1000.0),
    );
    if failed.is_empty() {
        return Finding::ok(id, title, format!("can run: probe guest passed in {took}"));
    }
    let value = format!(
        "cannot run: {} of {total} checks of the probe guest failed ({took})",
        failed.len()
    );
    let remedy = "run VMs where KVM is hardware (bare metal, or a VM with nested virtualization); \
        for tests, tools/lab emulates such a machine";
    Finding::problem(id, title, value, remedy)
}

/// One line for each check. The remedy is the same for all of them and stands above.
fn checks(device: &Device) -> impl Iterator<Item = Finding> {
    device.checks.iter().map(|result| {
        let id = match serde_json::to_value(result.check) {
            Ok(serde_json::Value::String(name)) => format!("check_{name}"),
            _ => "check".to_owned(),
        };
        let title = format!("probe: {}", result.check.name());
        let finding = match &result.outcome {
            Outcome::Passed => Finding::ok(&id, &title, "runs"),
            Outcome::Skipped { missing } => Finding::info(
                &id,
                &title,
                format!("not tried: KVM offers guests no {missing}"),
            ),
            Outcome::Failed { text, .. } => {
                let value = format!("{text} ({})", needed_for(result.check));
                Finding::problem(&id, &title, value, "as for stock kernels, above")
            }
        };
        finding.with(result)
    })
}

fn needed_for(check: Check) -> &'static str {
    match check {
        Check::Plain => "needed for anything at all",
        Check::Interrupt => "needed for timers and devices",
        Check::Breakpoint => "kernels patch their own code with it",
        Check::InvalidOpcode => "WARN and BUG in kernels",
        Check::PageFault => "needed for all of user space",
        Check::Syscall => "needed for all of user space",
        Check::Sse => "all 64-bit user programs use it",
        Check::Cmpxchg16b => "the kernel's memory allocator uses it",
        Check::Xsave => "needed for context switches",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm::probe::CpuFlags;

    #[test]
    fn groups_are_found_by_number() {
        let groups = "root:x:0:\nkvm:x:106:alice,bob\nbroken\n";
        assert_eq!(group_name(groups, 106), Some("kvm"));
        assert_eq!(group_name(groups, 0), Some("root"));
        assert_eq!(group_name(groups, 7), None);
    }

    #[test]
    fn the_remedy_for_a_missing_device_fits_the_cpu() {
        let host = |vmx, svm, hypervisor: Option<&str>| Host {
            backend: Backend::Unknown,
            cpu_flags: CpuFlags {
                vmx,
                svm,
                hypervisor: hypervisor.is_some(),
            },
            cpu_model: None,
            hypervisor: hypervisor.map(str::to_owned),
        };
        assert!(remedy_missing(&host(true, false, None)).contains("modprobe kvm_intel"));
        assert!(remedy_missing(&host(false, true, Some("KVM"))).contains("modprobe kvm_amd"));
        assert!(remedy_missing(&host(false, false, Some("KVM"))).contains("nested"));
        assert!(remedy_missing(&host(false, false, None)).contains("firmware"));
    }
}
