//! What a benchmark was run on.

use std::arch::x86_64::__cpuid;
use std::fs;
use std::path::Path;

use serde::Serialize;

/// Facts about the host.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Release and version of the kernel.
    pub kernel: String,
    /// Model of the CPU.
    pub cpu: String,
    /// Number of CPUs.
    pub cpus: usize,
    /// KVM's modules that are loaded or built in.
    pub kvm: Vec<String>,
    /// The hypervisor below, as CPUID names it; none on bare metal.
    pub hypervisor: Option<String>,
    /// The whole host is emulated in software: times are good as ratios of one run only.
    pub emulated: bool,
    /// The host is itself a virtual machine.
    pub nested: bool,
    /// Runs in the machine of tools/lab.
    pub in_lab: bool,
    /// Frequency governor of CPU 0.
    pub governor: Option<String>,
    /// Total memory in KiB.
    pub memory_kib: Option<u64>,
}

impl Environment {
    /// Of the machine that this runs on.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let line = |path: &str| Some(read(path).trim().to_owned()).filter(|text| !text.is_empty());
        let cpuinfo = read("/proc/cpuinfo");
        let cpu = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
            .unwrap_or("unknown");
        let hypervisor = hypervisor();
        Self {
            kernel: [
                line("/proc/sys/kernel/osrelease"),
                line("/proc/sys/kernel/version"),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" "),
            cpu: cpu.trim().to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kvm: ["kvm", "kvm_intel", "kvm_amd", "kvm_pvm"]
                .into_iter()
                .filter(|module| Path::new("/sys/module").join(module).exists())
                .map(str::to_owned)
                .collect(),
            emulated: hypervisor.as_deref() == Some("TCGTCGTCGTCG"),
            nested: hypervisor.is_some(),
            hypervisor,
            in_lab: std::env::var_os("TANDEM_IN_LAB").is_some(),
            governor: line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            memory_kib: read("/proc/meminfo").lines().find_map(|line| {
                let (_, rest) = line.split_once("MemTotal:")?;
                rest.trim().split(' ').next()?.parse().ok()
            }),
        }
    }

    /// In one line.
    pub fn describe(&self) -> String {
        let below = match (&self.hypervisor, self.emulated) {
            (_, true) => "EMULATED in software: compare within this run only".to_owned(),
            (Some(name), _) => format!("nested, in {name}"),
            (None, _) => "bare metal".to_owned(),
        };
        let release = self.kernel.split(' ').next().unwrap_or_default();
        let kvm = self.kvm.last().map_or("no KVM module", String::as_str);
        format!(
            "{} x {}, Linux {release}, {kvm}; {below}",
            self.cpus, self.cpu
        )
    }
}

/// CPUID's name for the hypervisor that this machine runs in.
fn hypervisor() -> Option<String> {
    const PRESENT: u32 = 1 << 31;
    if __cpuid(1).ecx & PRESENT == 0 {
        return None;
    }
    let leaf = __cpuid(0x4000_0000);
    let bytes: Vec<u8> = [leaf.ebx, leaf.ecx, leaf.edx]
        .iter()
        .flat_map(|register| register.to_le_bytes())
        .take_while(|&byte| byte != 0)
        .collect();
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_a_kernel_and_a_cpu() {
        let here = Environment::here();
        assert!(!here.kernel.is_empty());
        assert!(here.cpus >= 1);
        assert!(here.nested || !here.emulated);
        assert!(!here.describe().contains('\n'));
    }
}
