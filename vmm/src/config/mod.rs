//! The configuration of one VM: plain data, the file format of `--config-file` and the body of API requests.
//!
//! Section and field names are Firecracker's wherever Firecracker has them, so that its configuration files
//! work; fields that only Tandem has are optional. A field that is not known is an error, and so is one that
//! this version cannot honour: nothing is silently ignored. [`VmConfig::validate`] checks what types cannot.

mod balloon;
mod bitmap;
mod boot_source;
mod console;
mod cpu_config;
mod drives;
mod entropy;
mod machine_config;
mod mmds;
mod network_interfaces;
mod output;
pub mod patch;
mod unsupported;
mod vsock;

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};

pub use balloon::BalloonConfig;
pub use bitmap::Bitmap;
pub use boot_source::{BootSource, Decompression};
pub use console::ConsoleConfig;
pub use cpu_config::{
    CpuConfig, CpuSource, CpuidModifier, CpuidRegister, KvmCapability, MsrModifier,
    RegisterModifier,
};
pub use drives::DriveConfig;
pub use entropy::EntropyConfig;
pub use machine_config::{
    CpuTemplate, HugePages, MAX_VCPUS, MIN_MEMORY_MIB, MachineConfig, Transport,
};
pub use mmds::MmdsConfig;
pub use network_interfaces::{MacAddress, NetBackend, NetworkInterface};
pub use output::{Level, LoggerConfig, MetricsConfig, SerialConfig};
use unsupported::{Unsupported, absent};
pub use vsock::VsockConfig;

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// What to boot.
    #[serde(rename = "boot-source")]
    pub boot_source: BootSource,
    /// vCPUs and memory.
    #[serde(
        rename = "machine-config",
        default,
        deserialize_with = "null_is_default"
    )]
    pub machine_config: MachineConfig,
    /// Where the serial port's output goes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<SerialConfig>,
    /// Where the log goes and how much of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<LoggerConfig>,
    /// Where counters go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<MetricsConfig>,
    /// A source of random numbers for the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<EntropyConfig>,
    /// A memory balloon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<BalloonConfig>,
    /// Stream sockets between the guest and its host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// Network devices.
    #[serde(
        rename = "network-interfaces",
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub network_interfaces: Vec<NetworkInterface>,
    /// The metadata service.
    #[serde(
        rename = "mmds-config",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub mmds_config: Option<MmdsConfig>,

    /// Disks.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub drives: Vec<DriveConfig>,
    /// A virtio console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsoleConfig>,
    /// What the CPUs are to show instead of what KVM offers.
    #[serde(
        rename = "cpu-config",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub cpu_config: Option<CpuSource>,

    // Sections of Firecracker's that need a device or an ability which is not there yet. Empty ones pass.
    #[serde(default, skip_serializing_if = "absent")]
    pmem: Unsupported,
    #[serde(rename = "memory-hotplug", default, skip_serializing_if = "absent")]
    memory_hotplug: Unsupported,
}

/// Firecracker's optional fields may be `null`.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A value that has the right type and is still impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; {remedy}")]
pub struct ConfigError {
    /// Path of the field, as in the configuration file.
    pub field: String,
    /// What is wrong with its value.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl ConfigError {
    pub(crate) fn new(
        field: impl Into<String>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
            remedy: remedy.into(),
        }
    }
}

impl VmConfig {
    /// A configuration with everything at its default but what to boot.
    pub fn new(boot_source: BootSource) -> Self {
        Self {
            boot_source,
            machine_config: MachineConfig::default(),
            serial: None,
            logger: None,
            metrics: None,
            entropy: None,
            balloon: None,
            vsock: None,
            drives: Vec::new(),
            network_interfaces: Vec::new(),
            console: None,
            pmem: Unsupported,
            memory_hotplug: Unsupported,
            mmds_config: None,
            cpu_config: None,
        }
    }

    /// Takes a custom CPU template, in the place of one that is named.
    pub fn set_cpu_config(&mut self, template: CpuConfig) {
        self.machine_config.cpu_template = CpuTemplate::None;
        self.cpu_config = Some(CpuSource::Template(template));
    }

    /// Takes a machine; if it names a CPU template, in the place of a custom one.
    pub fn set_machine_config(&mut self, machine: MachineConfig) {
        if machine.cpu_template != CpuTemplate::None {
            self.cpu_config = None;
        }
        self.machine_config = machine;
    }

    /// The file that the serial port's output goes to; standard output where there is none.
    pub fn serial_path(&self) -> Option<&Path> {
        self.serial.as_ref()?.serial_out_path.as_deref()
    }

    /// The file that the virtio console's output goes to; standard output where there is none.
    pub fn console_path(&self) -> Option<&Path> {
        self.console.as_ref()?.output_path.as_deref()
    }

    /// Whether standard input is the virtio console's.
    pub fn console_has_input(&self) -> bool {
        self.console.is_some() && self.console_path().is_none()
    }

    /// Whether standard input is the serial port's.
    pub fn serial_has_input(&self) -> bool {
        self.serial_path().is_none() && !self.console_has_input()
    }

    /// Checks every value that its type leaves open, without touching a file.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.boot_source.validate()?;
        self.validate_so_far()?;
        drives::validate(&self.drives, self.machine_config.vcpu_count)?;
        network_interfaces::validate(&self.network_interfaces, self.machine_config.vcpu_count)
    }

    /// The same for a configuration that is being put together: there may be nothing to boot yet, and the number of vCPUs
    /// may still grow.
    pub(crate) fn validate_so_far(&self) -> Result<(), ConfigError> {
        if !self.boot_source.kernel_image_path.as_os_str().is_empty() {
            self.boot_source.validate()?;
        }
        self.machine_config.validate()?;
        if let Some(balloon) = &self.balloon {
            balloon.validate(&self.machine_config)?;
        }
        if let Some(vsock) = &self.vsock {
            vsock.validate()?;
        }
        if let Some(cpu) = &self.cpu_config {
            cpu.validate()?;
            if self.machine_config.cpu_template != CpuTemplate::None {
                return Err(ConfigError::new(
                    "machine-config.cpu_template",
                    format!(
                        "is {:?} beside a cpu-config",
                        self.machine_config.cpu_template
                    ),
                    "remove one of them",
                ));
            }
        }
        drives::validate(&self.drives, MAX_VCPUS)?;
        network_interfaces::validate(&self.network_interfaces, MAX_VCPUS)?;
        if let Some(mmds) = &self.mmds_config {
            mmds.validate(&self.network_interfaces)?;
        }
        boot_source::check_length(&self.command_line())
    }

    /// What the guest finds its virtio devices by. Where nobody has said it, that is PCI, unless the kernel is told to leave
    /// that alone: Firecracker's guests mostly are, and find their devices on MMIO.
    pub fn transport(&self) -> Transport {
        let line = self.boot_source.command_line();
        let without_pci = line.split_whitespace().any(|word| word == "pci=off");
        let usual = if without_pci {
            Transport::Mmio
        } else {
            Transport::Pci
        };
        self.machine_config.transport.unwrap_or(usual)
    }

    /// The command line that the kernel gets: that of `boot-source`, with what says where the root device is.
    pub fn command_line(&self) -> String {
        let given = self.boot_source.command_line();
        let mut roots = self.drives.iter().filter_map(DriveConfig::root_arguments);
        let Some(root) = roots.next() else {
            return given.into();
        };
        // What is behind the dashes is for init.
        match given.split_once(" -- ") {
            Some((kernel, init)) => format!("{kernel} {root} -- {init}"),
            None => format!("{given} {root}"),
        }
    }

    /// The drives in the order in which the guest finds them: the root device first.
    pub fn drives_in_order(&self) -> impl Iterator<Item = (usize, &DriveConfig)> {
        let with = |root| {
            let all = self.drives.iter().enumerate();
            all.filter(move |(_, drive)| drive.is_root_device == root)
        };
        with(true).chain(with(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<VmConfig, serde_json::Error> {
        serde_json::from_str(json)
    }

    #[test]
    fn a_firecracker_file_works() {
        let config = parse(
            r#"{
                "boot-source": {
                    "kernel_image_path": "vmlinux.bin",
                    "boot_args": "console=ttyS0 reboot=k panic=1 pci=off",
                    "initrd_path": null
                },
                "drives": [],
                "machine-config": {
                    "vcpu_count": 2, "mem_size_mib": 1024, "smt": false,
                    "track_dirty_pages": false, "huge_pages": "None"
                },
                "cpu-config": null, "balloon": null, "network-interfaces": [], "vsock": null,
                "logger": {"log_path": "/tmp/log", "level": "Warning", "show_level": true},
                "metrics": null, "mmds-config": null, "entropy": null
            }"#,
        )
        .unwrap();
        config.validate().unwrap();
        assert_eq!(config.machine_config.vcpu_count, 2);
        assert_eq!(config.logger.unwrap().level, Some(Level::Warning));
    }

    #[test]
    fn a_kernel_that_leaves_pci_alone_gets_mmio() {
        let transport = |args: &str, machine: &str| {
            let json = format!(
                r#"{{"boot-source": {{"kernel_image_path": "k", "boot_args": "{args}"}}, "machine-config":
                    {{"vcpu_count": 1, "mem_size_mib": 128{machine}}}}}"#
            );
            parse(&json).unwrap().transport()
        };
        assert_eq!(transport("quiet", ""), Transport::Pci);
        assert_eq!(transport("quiet pci=off", ""), Transport::Mmio);
        assert_eq!(
            transport("pci=off", r#", "transport": "pci""#),
            Transport::Pci
        );
        assert_eq!(
            transport("pci=offset", r#", "transport": "mmio""#),
            Transport::Mmio
        );
    }

    #[test]
    fn nulls_are_defaults() {
        let config = parse(
            r#"{"boot-source": {"kernel_image_path": "k", "boot_args": null, "initrd_path": null},
                "machine-config": null, "logger": null, "serial": null}"#,
        )
        .unwrap();
        assert_eq!(config.machine_config, MachineConfig::default());
        let config = parse(
            r#"{"boot-source": {"kernel_image_path": "k"}, "machine-config": {"vcpu_count": 1,
                "mem_size_mib": 128, "cpu_template": null, "huge_pages": null, "smt": null,
                "track_dirty_pages": null, "transport": null}}"#,
        )
        .unwrap();
        assert_eq!(config.machine_config, MachineConfig::default());
    }

    #[test]
    fn the_smallest_file_gets_the_defaults() {
        let config = parse(r#"{"boot-source": {"kernel_image_path": "k"}}"#).unwrap();
        config.validate().unwrap();
        assert_eq!(config.machine_config, MachineConfig::default());
        assert_eq!(config.machine_config.mem_size_mib, 128);
    }

    #[test]
    fn what_this_version_cannot_do_is_refused_by_name() {
        let json = r#"{"boot-source": {"kernel_image_path": "k"}, "pmem": [{"a": 1}]}"#;
        let error = parse(json).unwrap_err().to_string();
        assert!(error.contains("does not have yet"), "{error}");
        for section in ["memory-hotplug", "pmem"] {
            for value in ["{}", "\"x\"", "1", "true"] {
                let json = format!(
                    r#"{{"boot-source": {{"kernel_image_path": "k"}}, "{section}": {value}}}"#
                );
                assert!(parse(&json).is_err(), "{section} {value}");
            }
        }
    }

    #[test]
    fn of_two_cpu_templates_the_last_counts() {
        let mut config = VmConfig::new(BootSource::new("/k"));
        let t2 = MachineConfig {
            cpu_template: CpuTemplate::T2,
            ..Default::default()
        };
        config.set_machine_config(t2.clone());
        config.set_cpu_config(CpuConfig::default());
        config.validate().unwrap();
        assert_eq!(config.machine_config.cpu_template, CpuTemplate::None);
        config.set_machine_config(MachineConfig::default());
        assert!(config.cpu_config.is_some());
        config.set_machine_config(t2);
        config.validate().unwrap();
        assert_eq!(config.cpu_config, None);
        config.cpu_config = Some(CpuSource::Template(CpuConfig::default()));
        let error = config.validate().unwrap_err();
        assert_eq!(error.field, "machine-config.cpu_template");
    }

    #[test]
    fn an_entropy_device_may_have_limits() {
        let entropy = |value: &str| {
            parse(&format!(
                r#"{{"boot-source": {{"kernel_image_path": "k"}}, "entropy": {value}}}"#
            ))
            .map(|config| config.entropy)
        };
        assert_eq!(entropy("null").unwrap(), None);
        for there in ["{}", r#"{"rate_limiter": null}"#] {
            assert_eq!(entropy(there).unwrap(), Some(EntropyConfig::default()));
        }
        let limit = r#"{"rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100}}}"#;
        let limits = entropy(limit).unwrap().unwrap().rate_limiter.unwrap();
        assert_eq!(limits.bandwidth.map(|bucket| bucket.size), Some(1000));
        assert!(entropy(r#"{"rate_limiter": {"ops": {"size": 1}}}"#).is_err());
        assert!(entropy(r#"{"rate": 1}"#).is_err());
    }

    #[test]
    fn a_balloon_has_firecrackers_fields() {
        let balloon = |value: &str| {
            parse(&format!(
                r#"{{"boot-source": {{"kernel_image_path": "k"}}, "balloon": {value}}}"#
            ))
            .map(|config| config.balloon)
        };
        assert_eq!(balloon("null").unwrap(), None);
        let least = r#"{"amount_mib": 3, "deflate_on_oom": true}"#;
        let found = balloon(least).unwrap().unwrap();
        assert_eq!((found.amount_mib, found.deflate_on_oom), (3, true));
        assert_eq!(found.stats_polling_interval_s, 0);
        let all = r#"{"amount_mib": 3, "deflate_on_oom": true, "stats_polling_interval_s": 7,
            "free_page_hinting": null, "free_page_reporting": true}"#;
        let found = balloon(all).unwrap().unwrap();
        assert_eq!(found.stats_polling_interval_s, 7);
        assert!(found.free_page_reporting && !found.free_page_hinting);
        for bad in ["{}", r#"{"amount_mib": -1, "deflate_on_oom": true}"#] {
            assert!(balloon(bad).is_err(), "{bad}");
        }
        let more = r#"{"boot-source": {"kernel_image_path": "k"},
            "balloon": {"amount_mib": 129, "deflate_on_oom": false}}"#;
        let error = parse(more).unwrap().validate().unwrap_err();
        assert_eq!(error.field, "balloon.amount_mib");
    }

    #[test]
    fn a_vsock_has_firecrackers_fields() {
        let vsock = |value: &str| {
            let json =
                format!(r#"{{"boot-source": {{"kernel_image_path": "k"}}, "vsock": {value}}}"#);
            let config = parse(&json).map_err(|error| error.to_string())?;
            config.validate().map_err(|error| error.to_string())?;
            Ok::<_, String>(config.vsock)
        };
        assert_eq!(vsock("null").unwrap(), None);
        for there in [
            r#"{"guest_cid": 3, "uds_path": "./v.sock"}"#,
            r#"{"guest_cid": 3, "uds_path": "./v.sock", "vsock_id": null, "io_thread": null}"#,
            r#"{"guest_cid": 3, "uds_path": "./v.sock", "vsock_id": "1"}"#,
        ] {
            let found = vsock(there).unwrap().unwrap();
            assert_eq!(found.guest_cid, 3);
            assert_eq!(found.uds_path, std::path::Path::new("./v.sock"));
        }
        for bad in [
            "{}",
            r#"{"guest_cid": 3}"#,
            r#"{"guest_cid": 2, "uds_path": "v"}"#,
            r#"{"guest_cid": 4294967296, "uds_path": "v"}"#,
            r#"{"guest_cid": 3, "uds_path": "v", "port": 1}"#,
        ] {
            assert!(vsock(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_root_device_is_first_and_on_the_command_line() {
        let config = |args: &str, more: &str| {
            let json = format!(
                r#"{{"boot-source": {{"kernel_image_path": "k", "boot_args": "{args}"}}, "drives": [
                    {{"drive_id": "data", "path_on_host": "d", "is_root_device": false}},
                    {{"drive_id": "root", "path_on_host": "r", "is_root_device": true{more}}}]}}"#
            );
            parse(&json).unwrap()
        };
        let plain = config("quiet", "");
        plain.validate().unwrap();
        let order: Vec<_> = plain.drives_in_order().map(|(index, _)| index).collect();
        assert_eq!(order, [1, 0]);
        assert_eq!(plain.command_line(), "quiet root=/dev/vda rw");
        let read_only = config("quiet -- single", r#", "is_read_only": true"#);
        assert_eq!(read_only.command_line(), "quiet root=/dev/vda ro -- single");
        let partition = config("", r#", "partuuid": "0eaa91a0-01""#);
        assert_eq!(partition.command_line(), " root=PARTUUID=0eaa91a0-01 rw");
        // Together with what is appended, too.
        let long = config(&"x".repeat(2040), "");
        assert_eq!(long.validate().unwrap_err().field, "boot-source.boot_args");
    }

    #[test]
    fn a_console_decides_whose_standard_input_is() {
        let config = |text: &str| {
            parse(&format!(
                r#"{{"boot-source": {{"kernel_image_path": "k"}}, {text}}}"#
            ))
            .unwrap()
        };
        let to_file = r#""serial": {"serial_out_path": "s"}"#;
        for (text, console, serial) in [
            (r#""console": null"#, false, true),
            (r#""console": {}"#, true, false),
            (r#""console": {"output_path": "c"}"#, false, true),
            (to_file, false, false),
            (&format!(r#"{to_file}, "console": {{}}"#), true, false),
            (
                &format!(r#"{to_file}, "console": {{"output_path": "c"}}"#),
                false,
                false,
            ),
        ] {
            let config = config(text);
            let found = (config.console_has_input(), config.serial_has_input());
            assert_eq!(found, (console, serial), "{text}");
        }
    }

    #[test]
    fn unknown_fields_are_errors_everywhere() {
        for json in [
            r#"{"boot-source": {"kernel_image_path": "k"}, "machine": {}}"#,
            r#"{"boot-source": {"kernel_image_path": "k", "args": ""}}"#,
            r#"{"boot-source": {"kernel_image_path": "k"}, "machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "ht": 1}}"#,
            r#"{"boot-source": {"kernel_image_path": "k"}, "serial": {"path": "x"}}"#,
            r#"{"boot-source": {"kernel_image_path": "k"}, "logger": {"path": "x"}}"#,
            r#"{"boot-source": {"kernel_image_path": "k"}, "drives": [{"drive_id": "a", "path": "x"}]}"#,
            r#"{"boot-source": {"kernel_image_path": "k"}, "metrics": {"path": "x"}}"#,
        ] {
            let error = parse(json).unwrap_err().to_string();
            assert!(error.contains("unknown field"), "{error}");
        }
    }

    #[test]
    fn what_is_written_reads_back() {
        let mut config = VmConfig::new(BootSource::new("/k"));
        config.machine_config.vcpu_count = 4;
        config.serial = Some(SerialConfig {
            serial_out_path: Some("/tmp/out".into()),
        });
        let json = serde_json::to_string(&config).unwrap();
        assert!(!json.contains("drives"));
        assert_eq!(parse(&json).unwrap(), config);
    }
}
