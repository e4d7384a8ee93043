//! Stock kernels by requests on a control socket alone.

use std::fs;

use serde_json::json;
use tests::guest_shell::GuestShell;
use tests::vm::{Vm, VmBuilder};

use crate::kernels::{Kernel, commands};

/// A VM that waits for requests, and was given what `builder` has.
fn waiting(builder: VmBuilder) -> Vm {
    let config = builder.config.clone();
    let vm = builder.by_socket().start();
    let api = vm.api();
    api.put("/boot-source", &config["boot-source"]);
    api.put("/machine-config", &config["machine-config"]);
    vm
}

#[test]
fn a_kernel_that_leaves_pci_alone_finds_its_disk() {
    let vm = waiting(commands(Kernel::CLOUD_6_12).boot(
        "boot_args",
        "console=ttyS0 panic=-1 quiet pci=off tandem.test=commands",
    ));
    let disk = vm.path("disk");
    fs::write(&disk, vec![b'a'; 1 << 20]).unwrap();
    let api = vm.api();
    api.put(
        "/drives/data",
        &json!({"drive_id": "data", "path_on_host": disk, "is_root_device": false}),
    );
    api.action("InstanceStart");
    let mut shell = GuestShell::of(vm);
    assert_eq!(shell.ok("head -c 3 /dev/vda").trim(), "aaa");
    assert_eq!(shell.power_off().code, 0);
}
