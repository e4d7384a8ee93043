//! A CPU template, static or custom, applied to what KVM offers.
//!
//! A template changes what KVM supports, before the machine's own facts (place in the topology, frequencies, hypervisor
//! bit, vendor) are filled in: these win. What a host does not have is an error before there is a guest.

use std::borrow::Cow;

use kvm_bindings::{CpuId, Msrs, kvm_cpuid_entry2, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use super::{msr, static_templates};
use crate::config::{
    ConfigError, CpuConfig, CpuSource, CpuTemplate, CpuidRegister, KvmCapability, VmConfig,
};

/// What is to be changed, and which field asks for it.
#[derive(Debug)]
pub struct Template<'a> {
    /// [`CpuTemplate::None`] where the template is the configuration's own.
    named: CpuTemplate,
    changes: Cow<'a, CpuConfig>,
}

impl<'a> Template<'a> {
    /// The configuration's template. Without one it changes nothing.
    pub fn of(config: &'a VmConfig) -> Self {
        let named = config.machine_config.cpu_template;
        let changes = match (&config.cpu_config, named) {
            (Some(CpuSource::Template(custom)), CpuTemplate::None) => Cow::Borrowed(custom),
            _ => Cow::Owned(static_templates::changes(named)),
        };
        Self { named, changes }
    }

    /// Whether a capability of KVM that is needed otherwise is to be looked for.
    pub fn looks_for(&self, capability: u32) -> bool {
        let removed = KvmCapability::Remove(capability);
        !self.changes.kvm_capabilities.contains(&removed)
    }

    /// Looks for the capabilities that the template adds.
    ///
    /// # Errors
    /// One is not there.
    pub fn check_capabilities(&self, there: impl Fn(u32) -> bool) -> Result<(), ConfigError> {
        for (index, capability) in self.changes.kvm_capabilities.iter().enumerate() {
            if let KvmCapability::Add(number) = *capability
                && !there(number)
            {
                let problem = format!("this host's KVM does not have capability {number}");
                return Err(self.error("kvm_capabilities", index, problem));
            }
        }
        Ok(())
    }

    /// Applies the template to what KVM supports.
    ///
    /// # Errors
    /// The template is for another CPU, or KVM does not have a leaf.
    pub fn change_cpuid(&self, cpuid: &mut CpuId) -> Result<(), ConfigError> {
        self.check_cpu(cpuid)?;
        let entries = cpuid.as_mut_slice();
        let vendor = entries.iter().find(|entry| entry.function == 0).copied();
        for (index, change) in self.changes.cpuid_modifiers.iter().enumerate() {
            let mut found = false;
            for entry in entries
                .iter_mut()
                .filter(|entry| (entry.function, entry.index) == (change.leaf, change.subleaf))
            {
                found = true;
                entry.flags = change.flags;
                for modifier in &change.modifiers {
                    let register = register(entry, modifier.register);
                    // The bitmap has 32 bits.
                    *register = modifier.bitmap.apply((*register).into()) as u32;
                }
            }
            if !found {
                let problem = format!(
                    "this host's KVM has no CPUID leaf {:#x} subleaf {:#x}",
                    change.leaf, change.subleaf
                );
                return Err(self.error("cpuid_modifiers", index, problem));
            }
        }
        // One vendor's CPU cannot be another's: leaves that follow are laid out as the host's.
        if let Some(host) = vendor {
            for entry in entries.iter_mut().filter(|entry| entry.function == 0) {
                (entry.ebx, entry.ecx, entry.edx) = (host.ebx, host.ecx, host.edx);
            }
        }
        Ok(())
    }

    /// Applies the template to the MSRs of a vCPU that has its CPUID.
    ///
    /// # Errors
    /// KVM does not have an MSR, or refuses its value.
    pub fn change_msrs(&self, vcpu: &VcpuFd) -> Result<(), ConfigError> {
        for (index, change) in self.changes.msr_modifiers.iter().enumerate() {
            let address = change.addr;
            let before = get(vcpu, address).ok_or_else(|| {
                let problem = format!("this host's KVM has no MSR {address:#x}");
                self.error("msr_modifiers", index, problem)
            })?;
            let after = change.bitmap.apply(before);
            if !set(vcpu, address, after) {
                let problem = format!("KVM refuses {after:#x} in MSR {address:#x}");
                return Err(self.error("msr_modifiers", index, problem));
            }
        }
        Ok(())
    }

    /// MSRs that the template changes and that are set to something else afterwards.
    pub fn lost_msrs(&self) -> impl Iterator<Item = u32> {
        let changed = self.changes.msr_modifiers.iter();
        changed
            .map(|change| change.addr)
            .filter(|address| msr::OWN.contains(address))
    }

    /// A static template is for some CPUs only.
    fn check_cpu(&self, cpuid: &CpuId) -> Result<(), ConfigError> {
        let known = static_templates::cpus(self.named);
        let mut leaves = cpuid.as_slice().iter();
        let signature = leaves
            .find(|entry| entry.function == 1)
            .map_or(0, |entry| entry.eax);
        if known.is_empty() || known.iter().any(|(cpu, _)| *cpu == signature) {
            return Ok(());
        }
        let names: Vec<_> = known.iter().map(|(_, name)| *name).collect();
        let problem = format!(
            "{:?} is for {}, and this CPU's signature is {signature:#x}",
            self.named,
            names.join(" and ")
        );
        Err(self.error("", 0, problem))
    }

    fn error(&self, list: &str, index: usize, problem: String) -> ConfigError {
        if self.named == CpuTemplate::None {
            ConfigError::new(
                format!("cpu-config.{list}[{index}]"),
                problem,
                "take it out of the template",
            )
        } else {
            ConfigError::new(
                "machine-config.cpu_template",
                problem,
                "give None, or a template for this CPU as cpu-config (resources/cpu-templates has examples)",
            )
        }
    }
}

fn register(entry: &mut kvm_cpuid_entry2, register: CpuidRegister) -> &mut u32 {
    match register {
        CpuidRegister::Eax => &mut entry.eax,
        CpuidRegister::Ebx => &mut entry.ebx,
        CpuidRegister::Ecx => &mut entry.ecx,
        CpuidRegister::Edx => &mut entry.edx,
    }
}

fn one(index: u32, data: u64) -> Option<Msrs> {
    Msrs::from_entries(&[kvm_msr_entry {
        index,
        data,
        ..Default::default()
    }])
    .ok()
}

/// The value of an MSR; nothing where KVM does not have it.
pub(super) fn get(vcpu: &VcpuFd, address: u32) -> Option<u64> {
    let mut msrs = one(address, 0)?;
    match vcpu.get_msrs(&mut msrs) {
        Ok(1) => msrs.as_slice().first().map(|entry| entry.data),
        _ => None,
    }
}

fn set(vcpu: &VcpuFd, address: u32, data: u64) -> bool {
    one(address, data).is_some_and(|msrs| matches!(vcpu.set_msrs(&msrs), Ok(1)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BootSource;

    fn host(signature: u32) -> CpuId {
        let leaf = |function, index, flags, eax| kvm_cpuid_entry2 {
            function,
            index,
            flags,
            eax,
            ebx: 0xffff_ffff,
            ecx: 0xffff_ffff,
            edx: 0xffff_ffff,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0, 0, 0x16),
            leaf(1, 0, 0, signature),
            leaf(7, 0, 1, 1),
            leaf(0xd, 0, 1, 0xffff_ffff),
            leaf(0xd, 1, 1, 0xffff_ffff),
            leaf(0x8000_0001, 0, 0, 0),
            leaf(0x8000_0008, 0, 0, 0),
        ])
        .unwrap()
    }

    fn config(template: &str) -> VmConfig {
        let mut config = VmConfig::new(BootSource::new("/k"));
        let template = serde_json::from_str(template).unwrap();
        config.cpu_config = Some(CpuSource::Template(template));
        config.validate().unwrap();
        config
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut entries = cpuid.as_slice().iter();
        *entries
            .find(|entry| (entry.function, entry.index) == (function, index))
            .unwrap()
    }

    fn same(a: &CpuId, b: &CpuId) -> bool {
        a.as_slice() == b.as_slice()
    }

    #[test]
    fn without_a_template_nothing_changes() {
        let config = VmConfig::new(BootSource::new("/k"));
        let template = Template::of(&config);
        let mut cpuid = host(1);
        template.change_cpuid(&mut cpuid).unwrap();
        assert!(same(&cpuid, &host(1)));
        template.check_capabilities(|_| false).unwrap();
        assert!(template.looks_for(0));
    }

    #[test]
    fn later_changes_win_and_others_stay() {
        let config = config(
            r#"{"cpuid_modifiers": [
                {"leaf": "0xd", "subleaf": "0x1", "flags": 1, "modifiers": [
                    {"register": "eax", "bitmap": "0b0000"}, {"register": "eax", "bitmap": "0b1xx"}]},
                {"leaf": "0xd", "subleaf": "0x1", "flags": 3, "modifiers": [
                    {"register": "eax", "bitmap": "0b1"}, {"register": "edx", "bitmap": "0b0"}]}]}"#,
        );
        let mut cpuid = host(1);
        Template::of(&config).change_cpuid(&mut cpuid).unwrap();
        let changed = find(&cpuid, 0xd, 1);
        assert_eq!(
            (changed.eax, changed.edx, changed.flags),
            (0xffff_fff5, 0xffff_fffe, 3)
        );
        assert_eq!(find(&cpuid, 0xd, 0), find(&host(1), 0xd, 0));
        assert_eq!(changed.ebx, 0xffff_ffff);
    }

    #[test]
    fn the_vendor_stays() {
        let config = config(
            r#"{"cpuid_modifiers": [{"leaf": "0x0", "subleaf": "0x0", "flags": 0, "modifiers": [
                {"register": "eax", "bitmap": "0b00000000000000000000000000000001"},
                {"register": "ebx", "bitmap": "0b0"}, {"register": "edx", "bitmap": "0b0"}]}]}"#,
        );
        let mut cpuid = host(1);
        Template::of(&config).change_cpuid(&mut cpuid).unwrap();
        let leaf = find(&cpuid, 0, 0);
        assert_eq!((leaf.eax, leaf.ebx, leaf.edx), (1, u32::MAX, u32::MAX));
    }

    #[test]
    fn a_leaf_that_is_not_there_is_named() {
        let config = config(
            r#"{"cpuid_modifiers": [
                {"leaf": "0x1", "subleaf": "0x0", "flags": 0, "modifiers": []},
                {"leaf": "0xd", "subleaf": "0x2", "flags": 1, "modifiers": []}]}"#,
        );
        let error = Template::of(&config)
            .change_cpuid(&mut host(1))
            .unwrap_err();
        assert_eq!(error.field, "cpu-config.cpuid_modifiers[1]");
        assert!(error.problem.contains("leaf 0xd subleaf 0x2"), "{error}");
    }

    #[test]
    fn capabilities_are_added_and_removed() {
        let config = config(r#"{"kvm_capabilities": ["!56", "171", "172"]}"#);
        let template = Template::of(&config);
        assert!(!template.looks_for(56) && template.looks_for(55));
        template.check_capabilities(|number| number > 170).unwrap();
        let error = template
            .check_capabilities(|number| number == 171)
            .unwrap_err();
        assert_eq!(error.field, "cpu-config.kvm_capabilities[2]");
        assert!(error.problem.contains("172"), "{error}");
    }

    #[test]
    fn static_templates_are_for_their_cpus() {
        for (template, signature, fits) in [
            (CpuTemplate::T2, 0x5_0654, true),
            (CpuTemplate::T2S, 0x5_0657, true),
            (CpuTemplate::T2S, 0x6_06a6, false),
            (CpuTemplate::T2CL, 0x5_0654, false),
            (CpuTemplate::T2CL, 0x6_06a6, true),
            (CpuTemplate::C3, 0x5_0657, true),
            (CpuTemplate::C3, 0xa0_0f11, false),
            (CpuTemplate::T2A, 0xa0_0f11, true),
            (CpuTemplate::T2A, 0x5_0657, false),
        ] {
            let mut config = VmConfig::new(BootSource::new("/k"));
            config.machine_config.cpu_template = template;
            let mut cpuid = host(signature);
            let result = Template::of(&config).change_cpuid(&mut cpuid);
            assert_eq!(result.is_ok(), fits, "{template:?} {signature:#x}");
            if let Err(error) = result {
                assert_eq!(error.field, "machine-config.cpu_template");
                assert!(error.problem.contains(&format!("{template:?} is for")));
            } else {
                let model = if template == CpuTemplate::C3 {
                    0x3_06e4
                } else {
                    0x3_06f2
                };
                assert_eq!(find(&cpuid, 1, 0).eax, model);
                // AVX-512 is in none of them.
                assert_eq!(find(&cpuid, 7, 0).ebx & 1 << 16, 0);
            }
        }
    }
}
