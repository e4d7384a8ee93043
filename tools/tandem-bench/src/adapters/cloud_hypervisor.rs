//! Cloud Hypervisor. Written from its documentation; a tap that is there keeps its addresses.

use std::path::Path;

use super::{Adapter, Concerns, Guest, Launch, Setting, Settings, setting, words};
use crate::binary::Program;
use crate::error::{Error, Result};

pub struct CloudHypervisor;

/// From this version on an image's format is stated, or its first sector cannot be written.
const IMAGE_TYPE_SINCE: u32 = 51;

impl Adapter for CloudHypervisor {
    fn kind(&self) -> &'static str {
        "cloud-hypervisor"
    }

    fn names(&self) -> &'static [&'static str] {
        &["cloud-hypervisor", "ch"]
    }

    fn settings(&self) -> &'static [Setting] {
        const SETTINGS: [Setting; 1] = [setting(
            "engine",
            &["io_uring", "aio", "sync"],
            Concerns::Disk,
        )];
        &SETTINGS
    }

    /// It starts the guest again after a reset.
    fn ending(&self) -> &'static str {
        "tandem.test=poweroff"
    }

    fn launch(
        &self,
        guest: &Guest,
        settings: &Settings,
        _dir: &Path,
        program: &Program,
    ) -> Result<Launch> {
        let mut arguments = words("--serial tty --console off --rng src=/dev/urandom");
        arguments.extend(words(&format!(
            "--memory size={}M --cpus boot={} --kernel",
            guest.memory_mib, guest.vcpus
        )));
        arguments.push(guest.kernel.clone().into());
        arguments.push("--initramfs".into());
        arguments.push(guest.initrd.clone().into());
        arguments.push("--cmdline".into());
        arguments.push(self.command_line(guest).into());
        if let Some(disk) = &guest.disk {
            let path = disk.path.to_str().filter(|path| !path.contains(','));
            let path = path.ok_or_else(|| {
                Error::new("Cloud Hypervisor takes no comma in the path of a disk; give another --disk-dir")
            })?;
            let direct = if disk.direct { "on" } else { "off" };
            let mut text = format!("path={path},direct={direct}");
            if version(&program.version).is_some_and(|version| version >= IMAGE_TYPE_SINCE) {
                text += ",image_type=raw";
            }
            // It takes io_uring where the kernel has it, then Linux AIO, then plain reads and writes.
            text += match settings.get("engine") {
                Some(&"aio") => ",_disable_io_uring=on",
                Some(&"sync") => ",_disable_io_uring=on,_disable_aio=on",
                _ => "",
            };
            arguments.extend(["--disk".into(), text.into()]);
        }
        if let Some(net) = &guest.net {
            let text = format!("tap={},mac={}", net.tap, net.mac);
            arguments.extend(["--net".into(), text.into()]);
        }
        Ok(Launch {
            arguments,
            good_exits: vec![0],
            timeline: None,
        })
    }
}

/// The number in `cloud-hypervisor v51.0.0`.
fn version(text: &str) -> Option<u32> {
    let (_, number) = text.split_once(" v")?;
    number.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_version_is_a_number() {
        assert_eq!(version("cloud-hypervisor v51.1.0"), Some(51));
        assert_eq!(version("cloud-hypervisor v38.0-12-gabc"), Some(38));
        assert_eq!(version("cloud-hypervisor"), None);
    }
}
