//! How each VMM is told to boot the same guest.
//!
//! Every adapter gets the same kernel, initrd, command line, memory, vCPUs and, where asked for, one disk and one tap; it
//! connects the guest's first serial port to the process's standard output. It leaves out devices that the guest does
//! not need, and says how the process ends when the guest resets itself.
//!
//! What a VMM can be told besides, such as the engine of its disk, are [`Setting`]s: none given, the VMM's own default
//! is measured, or what its adapter's documentation says.

mod cloud_hypervisor;
mod firecracker;
mod qemu;
mod tandem;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use crate::binary::Program;
use crate::error::{Error, Result};
use cloud_hypervisor::CloudHypervisor;
use firecracker::Firecracker;
use qemu::Qemu;
use tandem::Tandem;

/// In an argument: the time just before the process is started, in microseconds of the monotonic clock.
pub const START_TIME_US: &str = "{start-time-us}";

/// The guest that every VMM boots.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Kernel, an ELF file.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: PathBuf,
    /// Kernel command line, but for how the guest ends.
    pub boot_args: String,
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Its only disk.
    pub disk: Option<Disk>,
    /// Its only network interface.
    pub net: Option<Net>,
}

/// A raw image as a virtio disk, writable, with the guest's flushes carried out.
#[derive(Clone, Debug)]
pub struct Disk {
    /// The image.
    pub path: PathBuf,
    /// Past the host's page cache (`O_DIRECT`).
    pub direct: bool,
}

/// A virtio network interface at a tap that is there already.
#[derive(Clone, Debug)]
pub struct Net {
    /// Name of the tap.
    pub tap: String,
    /// MAC address in the guest.
    pub mac: String,
}

/// What a setting changes: only that needs to be measured again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Concerns {
    /// The disk.
    Disk,
    /// The network.
    Net,
    /// Both.
    All,
}

/// Something that a VMM can be told.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// Its name.
    pub key: &'static str,
    /// What it can be.
    pub values: &'static [&'static str],
    /// What it changes.
    pub concerns: Concerns,
}

const fn setting(
    key: &'static str,
    values: &'static [&'static str],
    concerns: Concerns,
) -> Setting {
    Setting {
        key,
        values,
        concerns,
    }
}

/// The settings that are given: key and value, both checked.
pub type Settings = BTreeMap<&'static str, &'static str>;

/// How to start a VMM.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Arguments; in them, [`START_TIME_US`] stands for that time.
    pub arguments: Vec<OsString>,
    /// Exit codes of a boot that went well.
    pub good_exits: Vec<i32>,
    /// The VMM writes its own timeline there.
    pub timeline: Option<PathBuf>,
}

impl Launch {
    /// The arguments for a process that is started at this time.
    pub fn arguments_at(&self, start_us: &str) -> impl Iterator<Item = OsString> {
        self.arguments.iter().map(move |argument| {
            if argument == START_TIME_US {
                start_us.into()
            } else {
                argument.clone()
            }
        })
    }
}

/// A kind of VMM.
pub trait Adapter: Sync {
    /// Its name.
    fn kind(&self) -> &'static str;

    /// Names that programs of this kind have: a name that starts with one of them is of this kind.
    fn names(&self) -> &'static [&'static str];

    /// What the guest is told to do at the end. A reset by triple fault ends every VMM here that can end by a reset.
    fn ending(&self) -> &'static str {
        "reboot=t tandem.test=reboot"
    }

    /// What it can be told.
    fn settings(&self) -> &'static [Setting] {
        &[]
    }

    /// What these settings change, all together.
    fn concerns(&self, settings: &Settings) -> Concerns {
        let given = |setting: &&Setting| settings.contains_key(setting.key);
        let mut all = self.settings().iter().filter(given);
        let Some(first) = all.next() else {
            return Concerns::All;
        };
        match all.all(|setting| setting.concerns == first.concerns) {
            true => first.concerns,
            false => Concerns::All,
        }
    }

    /// The command to boot `guest`. `dir` is for files that go with it; `program` is the one that was installed.
    fn launch(
        &self,
        guest: &Guest,
        settings: &Settings,
        dir: &Path,
        program: &Program,
    ) -> Result<Launch>;

    /// The whole kernel command line.
    fn command_line(&self, guest: &Guest) -> String {
        format!("{} {}", guest.boot_args, self.ending())
    }
}

const ADAPTERS: [&dyn Adapter; 4] = [&Tandem, &Firecracker, &Qemu, &CloudHypervisor];

/// The adapter for a VMM of this name or, if the name says nothing, of this file.
pub fn infer(name: &str, binary: &Path) -> Result<&'static dyn Adapter> {
    let file = binary.file_name().unwrap_or_default().to_string_lossy();
    [name, &file]
        .iter()
        .find_map(|text| {
            ADAPTERS.into_iter().find(|adapter| {
                let names = adapter.names();
                names.iter().any(|start| text.starts_with(start))
            })
        })
        .ok_or_else(|| {
            let known: Vec<_> = ADAPTERS.iter().map(|adapter| adapter.kind()).collect();
            Error::new(format!(
                "--vmm {name}={}: no kind of VMM is known by that name; let NAME start with one of: {} \
                 (such as {}-{name}={})",
                binary.display(),
                known.join(", "),
                known[0],
                binary.display(),
            ))
        })
}

/// Reads `KEY=VALUE,KEY=VALUE`.
pub fn parse_settings(adapter: &dyn Adapter, text: &str) -> Result<Settings> {
    let mut settings = Settings::new();
    for part in text.split(',') {
        let found = part.split_once('=').and_then(|(key, value)| {
            let known = adapter.settings().iter();
            let setting = known.into_iter().find(|setting| setting.key == key)?;
            let value = setting.values.iter().find(|&&known| known == value)?;
            Some((setting.key, *value))
        });
        let Some((key, value)) = found else {
            let known: Vec<_> = adapter
                .settings()
                .iter()
                .map(|setting| format!("{}={}", setting.key, setting.values.join("|")))
                .collect();
            return Err(Error::new(format!(
                "--variant: {} knows no `{part}`; it knows {}",
                adapter.kind(),
                known.join(", ")
            )));
        };
        settings.insert(key, value);
    }
    Ok(settings)
}

/// Arguments without blanks in them.
fn words(text: &str) -> Vec<OsString> {
    text.split_ascii_whitespace().map(OsString::from).collect()
}

fn write_config(dir: &Path, config: &serde_json::Value) -> Result<PathBuf> {
    let path = dir.join("vm.json");
    fs::write(&path, format!("{config:#}\n"))
        .map_err(|error| Error::file("write", &path, &error))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_come_from_names_first_and_files_second() {
        for (name, file, kind) in [
            ("tandem", "/x/y", "tandem"),
            ("tandem-old", "/x/qemu-system-x86_64", "tandem"),
            ("mine", "/usr/bin/qemu-system-x86_64", "qemu"),
            ("fc", "/x", "firecracker"),
            ("v1", "/opt/firecracker-v1.10", "firecracker"),
            ("x", "/opt/cloud-hypervisor-static", "cloud-hypervisor"),
        ] {
            assert_eq!(infer(name, Path::new(file)).unwrap().kind(), kind, "{name}");
        }
        let error = infer("crosvm", Path::new("/bin/crosvm")).err().unwrap();
        assert!(error.to_string().contains("firecracker"), "{error}");
    }

    #[test]
    fn settings_are_known_ones() {
        let settings = parse_settings(&Qemu, "engine=threads,vhost=on").unwrap();
        assert_eq!(settings["engine"], "threads");
        assert_eq!(settings["vhost"], "on");
        for wrong in ["engine=fast", "speed=1", "engine", ""] {
            let error = parse_settings(&Qemu, wrong).err().unwrap().to_string();
            assert!(error.contains("engine=io_uring|threads"), "{error}");
        }
    }

    #[test]
    fn every_value_of_every_setting_can_be_launched() {
        let program = Program::of(Path::new("/bin/true")).unwrap();
        let guest = Guest {
            kernel: "/k".into(),
            initrd: "/i".into(),
            boot_args: String::new(),
            vcpus: 1,
            memory_mib: 96,
            disk: Some(Disk {
                path: "/d".into(),
                direct: true,
            }),
            net: Some(Net {
                tap: "tap7".into(),
                mac: "02:00:00:00:00:07".into(),
            }),
        };
        let told = |adapter: &dyn Adapter, settings: &Settings| {
            let dir = tempfile::tempdir().unwrap();
            let launch = adapter
                .launch(&guest, settings, dir.path(), &program)
                .ok()?;
            let text = format!("{:?}", launch.arguments);
            let dir_name = dir.path().to_str().unwrap().to_owned();
            let config = fs::read_to_string(dir.path().join("vm.json")).unwrap_or_default();
            Some((text + &config).replace(&dir_name, ""))
        };
        for adapter in ADAPTERS {
            for setting in adapter.settings() {
                // Each value makes another command.
                let mut seen = Vec::new();
                for value in setting.values {
                    let settings = Settings::from([(setting.key, *value)]);
                    let Some(text) = told(adapter, &settings) else {
                        assert!(["qemu", "firecracker"].contains(&adapter.kind()));
                        continue;
                    };
                    assert!(!seen.contains(&text), "{}: {settings:?}", adapter.kind());
                    seen.push(text);
                }
            }
        }
    }

    #[test]
    fn every_vmm_gets_the_same_guest() {
        let dir = tempfile::tempdir().unwrap();
        let guest = Guest {
            kernel: "/k e".into(),
            initrd: "/i".into(),
            boot_args: "console=ttyS0 quiet".into(),
            vcpus: 2,
            memory_mib: 96,
            disk: Some(Disk {
                path: "/d i".into(),
                direct: false,
            }),
            net: Some(Net {
                tap: "tap7".into(),
                mac: "02:00:00:00:00:07".into(),
            }),
        };
        let program = Program::of(Path::new("/bin/true")).unwrap();
        for adapter in ADAPTERS {
            let launched = adapter.launch(&guest, &Settings::new(), dir.path(), &program);
            let Ok(launch) = launched else {
                assert_eq!(adapter.kind(), "qemu", "needs its firmware");
                continue;
            };
            let mut text = format!("{:?}", launch.arguments);
            text += &fs::read_to_string(dir.path().join("vm.json")).unwrap_or_default();
            for part in [
                "/k e",
                "/i",
                "console=ttyS0 quiet",
                "96",
                "2",
                "tandem.test=",
                "/d i",
                "tap7",
                "02:00:00:00:00:07",
            ] {
                assert!(text.contains(part), "{}: {part}", adapter.kind());
            }
        }
    }
}
