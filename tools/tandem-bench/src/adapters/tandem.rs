//! Tandem's own VM process.

use std::path::Path;

use serde_json::{Value, json};

use super::{
    Adapter, Concerns, Guest, Launch, START_TIME_US, Setting, Settings, setting, words,
    write_config,
};
use crate::binary::Program;
use crate::error::Result;

pub struct Tandem;

impl Adapter for Tandem {
    fn kind(&self) -> &'static str {
        "tandem"
    }

    fn names(&self) -> &'static [&'static str] {
        &["tandem"]
    }

    fn settings(&self) -> &'static [Setting] {
        const SETTINGS: [Setting; 4] = [
            setting("engine", &["Async", "Sync"], Concerns::Disk),
            setting("vhost", &["off", "on"], Concerns::Net),
            setting("thread", &["shared", "own"], Concerns::All),
            setting("transport", &["pci", "mmio"], Concerns::All),
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
        let config = write_config(dir, &self.config(guest, settings))?;
        let timeline = dir.join("timeline.json");
        let mut arguments = words("--no-api --config-file");
        arguments.push(config.into());
        arguments.push("--boot-timeline".into());
        arguments.push(timeline.clone().into());
        // Its timeline then counts from the same moment as every other number here.
        arguments.extend(words(&format!("--start-time-us {START_TIME_US}")));
        Ok(Launch {
            arguments,
            // The guest reset itself, or ended in a triple fault; both are what was asked for.
            good_exits: vec![64, 66],
            timeline: Some(timeline),
        })
    }
}

impl Tandem {
    fn config(&self, guest: &Guest, settings: &Settings) -> Value {
        let mut config = json!({
            "boot-source": {
                "kernel_image_path": guest.kernel,
                "initrd_path": guest.initrd,
                "boot_args": self.command_line(guest),
            },
            "machine-config": { "vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib },
        });
        if let Some(transport) = settings.get("transport") {
            config["machine-config"]["transport"] = json!(transport);
        }
        let own_thread = settings.get("thread") == Some(&"own");
        if let Some(disk) = &guest.disk {
            let mut drive = json!({
                "drive_id": "disk",
                "path_on_host": disk.path,
                "is_root_device": false,
                "is_read_only": false,
                "cache_type": "Writeback",
            });
            if disk.direct {
                drive["direct"] = json!(true);
            }
            if let Some(engine) = settings.get("engine") {
                drive["io_engine"] = json!(engine);
            }
            if own_thread {
                drive["io_thread"] = json!("disk");
            }
            config["drives"] = json!([drive]);
        }
        if let Some(net) = &guest.net {
            let mut interface =
                json!({ "iface_id": "net", "host_dev_name": net.tap, "guest_mac": net.mac });
            if let Some(vhost) = settings.get("vhost") {
                interface["backend"] = json!(if *vhost == "on" { "vhost-net" } else { "tap" });
            }
            if own_thread {
                interface["io_thread"] = json!("net");
            }
            config["network-interfaces"] = json!([interface]);
        }
        config
    }
}
