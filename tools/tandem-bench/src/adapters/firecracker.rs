//! Firecracker. Its files are those of its version 1.16; where a field is left out, its own default is measured.
//! Written from its documentation (`docs/api_requests/block-io-engine.md`, `docs/api_requests/block-caching.md`,
//! `docs/network-setup.md`, `docs/kernel-policy.md`).

use std::path::Path;

use serde_json::json;

use super::{Adapter, Concerns, Guest, Launch, Setting, Settings, setting, words, write_config};
use crate::binary::Program;
use crate::error::{Error, Result};

pub struct Firecracker;

impl Adapter for Firecracker {
    fn kind(&self) -> &'static str {
        "firecracker"
    }

    fn names(&self) -> &'static [&'static str] {
        &["firecracker", "fc"]
    }

    fn settings(&self) -> &'static [Setting] {
        const SETTINGS: [Setting; 2] = [
            setting("engine", &["Sync", "Async"], Concerns::Disk),
            setting("transport", &["mmio", "pci"], Concerns::All),
        ];
        &SETTINGS
    }

    fn launch(
        &self,
        guest: &Guest,
        settings: &Settings,
        dir: &Path,
        _program: &Program,
    ) -> Result<Launch> {
        let mut config = json!({
            "boot-source": {
                "kernel_image_path": guest.kernel,
                "initrd_path": guest.initrd,
                "boot_args": self.command_line(guest),
            },
            // Without this field, its older versions refuse the file.
            "drives": [],
            "machine-config": { "vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib },
        });
        if let Some(disk) = &guest.disk {
            if disk.direct {
                return Err(Error::new(
                    "Firecracker has no O_DIRECT; leave --direct out",
                ));
            }
            let mut drive = json!({
                "drive_id": "disk",
                "path_on_host": disk.path,
                "is_root_device": false,
                "is_read_only": false,
                "cache_type": "Writeback",
            });
            if let Some(engine) = settings.get("engine") {
                drive["io_engine"] = json!(engine);
            }
            config["drives"] = json!([drive]);
        }
        if let Some(net) = &guest.net {
            config["network-interfaces"] = json!([
                { "iface_id": "net", "host_dev_name": net.tap, "guest_mac": net.mac }
            ]);
        }
        let mut arguments = words("--no-api --level Error --config-file");
        arguments.push(write_config(dir, &config)?.into());
        if settings.get("transport") == Some(&"pci") {
            arguments.push("--enable-pci".into());
        }
        Ok(Launch {
            arguments,
            good_exits: vec![0],
            timeline: None,
        })
    }
}
