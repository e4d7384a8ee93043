//! QEMU as a microVM: machine `microvm` with ACPI, without what a guest does not need. A disk and a network interface are
//! virtio over PCI Express, the disk on an iothread of its own, with io_uring, the network without vhost; `transport=mmio`
//! takes microvm's virtio-mmio instead, and `machine=q35` the usual machine with its firmware.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Adapter, Concerns, Guest, Launch, Setting, Settings, setting, words};
use crate::binary::Program;
use crate::error::{Error, Result};

pub struct Qemu;

impl Qemu {
    /// The firmware that starts an ELF kernel fastest; QEMU's own choice for microvm with ACPI is a full SeaBIOS.
    const FIRMWARE: &str = "qboot.rom";
    const DATA: [&str; 3] = [
        "/usr/share/qemu",
        "/usr/share/seabios",
        "/usr/local/share/qemu",
    ];

    /// Copies of the firmware and option ROMs; QEMU would search its data directories for them.
    fn data(dir: &Path, binary: &Path, roms: &[&str]) -> Result<PathBuf> {
        let beside = binary
            .parent()
            .map(|bin| bin.join("../share/qemu"))
            .unwrap_or_default();
        let to = dir.join("data");
        fs::create_dir_all(&to).map_err(|error| Error::file("make", &to, &error))?;
        for rom in roms {
            let found = [&beside]
                .into_iter()
                .map(PathBuf::as_path)
                .chain(Self::DATA.iter().map(Path::new))
                .map(|place| place.join(rom))
                .find(|file| file.exists())
                .ok_or_else(|| {
                    Error::new(format!(
                        "QEMU's {rom} is not in {}; install Debian's qemu-system-data and seabios",
                        Self::DATA.join(", ")
                    ))
                })?;
            fs::copy(&found, to.join(rom)).map_err(|error| Error::file("copy", &found, &error))?;
        }
        Ok(to)
    }
}

impl Adapter for Qemu {
    fn kind(&self) -> &'static str {
        "qemu"
    }

    fn names(&self) -> &'static [&'static str] {
        &["qemu"]
    }

    fn settings(&self) -> &'static [Setting] {
        const SETTINGS: [Setting; 5] = [
            setting("engine", &["io_uring", "threads"], Concerns::Disk),
            setting("iothread", &["on", "off"], Concerns::Disk),
            setting("vhost", &["off", "on"], Concerns::Net),
            setting("transport", &["pci", "mmio"], Concerns::All),
            setting("machine", &["microvm", "q35"], Concerns::All),
        ];
        &SETTINGS
    }

    fn launch(
        &self,
        guest: &Guest,
        settings: &Settings,
        dir: &Path,
        program: &Program,
    ) -> Result<Launch> {
        let is = |key: &str, value: &str| settings.get(key) == Some(&value);
        let has_devices = guest.disk.is_some() || guest.net.is_some();
        let mmio = is("transport", "mmio");
        let mut arguments;
        let data;
        if is("machine", "q35") {
            if mmio {
                return Err(Error::new(
                    "QEMU's q35 has no virtio-mmio; take machine=microvm",
                ));
            }
            let roms = [
                "bios-256k.bin",
                "linuxboot_dma.bin",
                "kvmvapic.bin",
                "pvh.bin",
            ];
            data = Self::data(dir, &program.file.path, &roms)?;
            arguments = words("-M q35,accel=kvm,usb=off,vmport=off -bios");
            arguments.push(data.join("bios-256k.bin").into());
        } else {
            let roms = [Self::FIRMWARE, "pvh.bin", "linuxboot_dma.bin"];
            data = Self::data(dir, &program.file.path, &roms)?;
            let pcie = if has_devices && !mmio { "on" } else { "off" };
            arguments = words(&format!(
                "-M microvm,accel=kvm,acpi=on,x-option-roms=on,pit=off,pic=off,rtc=off,isa-serial=on,pcie={pcie},\
                 usb=off,auto-kernel-cmdline=off -bios"
            ));
            arguments.push(data.join(Self::FIRMWARE).into());
        }
        arguments.extend(words(
            "-cpu host -nodefaults -no-user-config -no-reboot -display none -monitor none \
             -chardev stdio,id=serial,signal=off -serial chardev:serial -L",
        ));
        arguments.push(data.into());
        arguments.extend(words(&format!(
            "-m {} -smp {} -kernel",
            guest.memory_mib, guest.vcpus
        )));
        arguments.push(guest.kernel.clone().into());
        arguments.push("-initrd".into());
        arguments.push(guest.initrd.clone().into());
        arguments.push("-append".into());
        arguments.push(self.command_line(guest).into());
        let bus = if mmio { "device" } else { "pci" };
        if let Some(disk) = &guest.disk {
            let aio = settings.get("engine").copied().unwrap_or("io_uring");
            // In JSON, for a path may hold anything.
            let blockdev = json!({
                "driver": "raw",
                "node-name": "disk",
                "cache": { "direct": disk.direct, "no-flush": false },
                "file": {
                    "driver": "file",
                    "filename": disk.path,
                    "aio": aio,
                    "cache": { "direct": disk.direct, "no-flush": false },
                },
            });
            arguments.extend(["-blockdev".into(), blockdev.to_string().into()]);
            let mut device = format!("virtio-blk-{bus},drive=disk,write-cache=on");
            if !is("iothread", "off") {
                arguments.extend(words("-object iothread,id=io"));
                device += ",iothread=io";
            }
            arguments.extend(["-device".into(), device.into()]);
        }
        if let Some(net) = &guest.net {
            let vhost = settings.get("vhost").copied().unwrap_or("off");
            // Without romfile= it would look for the ROM that boots from a network.
            let rom = if mmio { "" } else { ",romfile=" };
            arguments.extend(words(&format!(
                "-netdev tap,id=net,ifname={},script=no,downscript=no,vhost={vhost} \
                 -device virtio-net-{bus},netdev=net,mac={}{rom}",
                net.tap, net.mac
            )));
        }
        Ok(Launch {
            arguments,
            good_exits: vec![0],
            timeline: None,
        })
    }
}
