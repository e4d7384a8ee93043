//! Which backend serves /dev/kvm, and whether this host is itself a VM: for information only.
//! What KVM can do is decided by running the probe guest, never from here.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// The kernel module behind /dev/kvm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    /// Intel VT-x.
    KvmIntel,
    /// AMD SVM.
    KvmAmd,
    /// Pagetable Virtual Machine: software, for hosts without VT-x and SVM.
    KvmPvm,
    /// None of these was found.
    Unknown,
}

impl Backend {
    /// The module's name, or "unknown".
    pub fn name(self) -> &'static str {
        match self {
            Self::KvmIntel => "kvm_intel",
            Self::KvmAmd => "kvm_amd",
            Self::KvmPvm => "kvm_pvm",
            Self::Unknown => "unknown",
        }
    }
}

/// Virtualization extensions among the CPU's flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct CpuFlags {
    /// Intel VT-x.
    pub vmx: bool,
    /// AMD SVM.
    pub svm: bool,
    /// The CPU says that it is virtual.
    pub hypervisor: bool,
}

/// The host as far as it concerns KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// The module behind /dev/kvm.
    pub backend: Backend,
    /// Of the first CPU in /proc/cpuinfo.
    pub cpu_flags: CpuFlags,
    /// The CPU's model name, if /proc/cpuinfo has one.
    pub cpu_model: Option<String>,
    /// The hypervisor below, from CPUID leaf 0x4000_0000: `Some("")` if it does not say its name.
    pub hypervisor: Option<String>,
}

impl Host {
    /// Looks around; what cannot be read counts as not there.
    pub fn detect() -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu_flags = parse_flags(&cpuinfo);
        Self {
            backend: backend(
                |module| Path::new("/sys/module").join(module).exists(),
                cpu_flags,
            ),
            cpu_flags,
            cpu_model: parse_model(&cpuinfo),
            hypervisor: cpu_flags.hypervisor.then(hypervisor_name),
        }
    }

    /// Whether the host is itself a VM.
    pub fn is_nested(&self) -> bool {
        self.hypervisor.is_some()
    }
}

/// A built-in module without parameters has no directory, hence the guess by the flags. A PVM host
/// may have a (useless) vendor module beside it, so PVM is asked first.
fn backend(loaded: impl Fn(&str) -> bool, flags: CpuFlags) -> Backend {
    if loaded("kvm_pvm") {
        Backend::KvmPvm
    } else if loaded("kvm_intel") || (flags.vmx && loaded("kvm")) {
        Backend::KvmIntel
    } else if loaded("kvm_amd") || (flags.svm && loaded("kvm")) {
        Backend::KvmAmd
    } else {
        Backend::Unknown
    }
}

fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim())
}

fn parse_flags(cpuinfo: &str) -> CpuFlags {
    let mut flags = CpuFlags::default();
    for flag in field(cpuinfo, "flags")
        .unwrap_or_default()
        .split_whitespace()
    {
        match flag {
            "vmx" => flags.vmx = true,
            "svm" => flags.svm = true,
            "hypervisor" => flags.hypervisor = true,
            _ => {}
        }
    }
    flags
}

fn parse_model(cpuinfo: &str) -> Option<String> {
    field(cpuinfo, "model name")
        .filter(|model| !model.is_empty())
        .map(str::to_owned)
}

/// The twelve bytes a hypervisor signs with in CPUID leaf 0x4000_0000, in readable form.
fn hypervisor_name() -> String {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    let bytes = [leaf.ebx, leaf.ecx, leaf.edx]
        .map(u32::to_le_bytes)
        .concat();
    readable_signature(&bytes)
}

fn readable_signature(bytes: &[u8]) -> String {
    let text: String = bytes
        .iter()
        .filter(|b| b.is_ascii_graphic() || **b == b' ')
        .map(|&b| b as char)
        .collect();
    let name = match text.trim() {
        "KVMKVMKVM" => "KVM",
        "Linux KVM Hv" => "KVM with Hyper-V features",
        "TCGTCGTCGTCG" => "QEMU TCG (software emulation)",
        "Microsoft Hv" => "Microsoft Hyper-V",
        "VMwareVMware" => "VMware",
        "XenVMMXenVMM" => "Xen",
        "VBoxVBoxVBox" => "VirtualBox",
        "ACRNACRNACRN" => "ACRN",
        "bhyve bhyve" => "bhyve",
        other => other,
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: AMD EPYC\nbugs\t\t:\n\
        flags\t\t: fpu svm hypervisor\n\nprocessor\t: 1\nflags\t\t: vmx\n";

    #[test]
    fn cpuinfo_is_read_from_its_first_cpu() {
        let flags = parse_flags(CPUINFO);
        assert_eq!(
            flags,
            CpuFlags {
                vmx: false,
                svm: true,
                hypervisor: true
            }
        );
        assert_eq!(parse_model(CPUINFO).as_deref(), Some("AMD EPYC"));
        assert_eq!(parse_flags(""), CpuFlags::default());
        assert_eq!(parse_model("model name\t:\n"), None);
        // A flag is a whole word.
        assert_eq!(parse_flags("flags : nosvm vmxx"), CpuFlags::default());
    }

    #[test]
    fn backend_is_the_loaded_module_or_what_the_flags_allow() {
        let svm = CpuFlags {
            svm: true,
            ..CpuFlags::default()
        };
        let none = CpuFlags::default();
        assert_eq!(backend(|m| m == "kvm_amd", none), Backend::KvmAmd);
        assert_eq!(backend(|m| m == "kvm", svm), Backend::KvmAmd);
        assert_eq!(backend(|m| m == "kvm", none), Backend::Unknown);
        assert_eq!(backend(|m| m.starts_with("kvm"), svm), Backend::KvmPvm);
        assert_eq!(backend(|_| false, svm), Backend::Unknown);
    }

    #[test]
    fn signatures_become_names() {
        assert_eq!(readable_signature(b"KVMKVMKVM\0\0\0"), "KVM");
        assert_eq!(readable_signature(b"SomethingNew"), "SomethingNew");
        assert_eq!(readable_signature(&[0; 12]), "");
    }
}
