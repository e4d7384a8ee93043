//! firepilot 1.2.0: hyper 0.14, a process without streams, files copied to a directory per machine.

use std::path::Path;
use std::time::Instant;

use firepilot::builder::drive::DriveBuilder;
use firepilot::builder::executor::FirecrackerExecutorBuilder;
use firepilot::builder::kernel::KernelBuilder;
use firepilot::builder::network_interface::NetworkInterfaceBuilder;
use firepilot::builder::{Builder, Configuration};
use firepilot::machine::Machine;
use tests::patience;
use tests::program::tandem_vmm;

use crate::{Files, Tap, block_on, files, wait_for_guest};

fn text(path: &Path) -> String {
    path.to_str().expect("UTF-8").to_owned()
}

/// A machine of that name with the kernel of `files`, whose own directory is to be in `machines`.
fn configuration(name: &str, machines: &Path, files: &Files) -> Configuration {
    let kernel = KernelBuilder::new()
        .with_kernel_image_path(text(&files.kernel))
        .with_initrd_path(text(&files.initrd))
        .with_boot_args(files.boot_args.clone())
        .try_build()
        .expect("a kernel");
    let executor = FirecrackerExecutorBuilder::new()
        .with_chroot(text(machines))
        .with_exec_binary(tandem_vmm().to_owned())
        .try_build()
        .expect("an executor");
    Configuration::new(name.to_owned())
        .with_kernel(kernel)
        .with_executor(executor)
}

#[test]
fn firepilot_boots_pauses_resumes_and_stops_a_stock_kernel() {
    let directory = tempfile::tempdir().expect("a directory");
    let tap = Tap::new(1);
    let files = files(directory.path(), &tap);
    let drive = DriveBuilder::new()
        .with_drive_id("data".to_owned())
        .with_path_on_host(files.drive.clone())
        .try_build()
        .expect("a drive");
    let interface = NetworkInterfaceBuilder::new()
        .with_iface_id("eth0".to_owned())
        .with_host_dev_name(tap.name.clone())
        .try_build()
        .expect("an interface");
    let machines = directory.path().join("machines");
    let config = configuration("pilot", &machines, &files)
        .with_drive(drive)
        .with_interface(interface);
    let own = machines.join("pilot");
    let socket = own.join("firecracker.socket");

    block_on(async {
        let mut machine = Machine::new();
        machine.create(config).await.expect("created");
        machine.start().await.expect("started");
        wait_for_guest(&own.join("data"));
        tap.wait_until(true);
        machine.pause().await.expect("paused");
        tap.wait_until(false);
        machine.resume().await.expect("resumed");
        tap.wait_until(true);
        machine.start().await.expect_err("it runs already");
        machine.stop().await.expect("asked to stop");
        let start = Instant::now();
        while socket.exists() {
            assert!(start.elapsed() < patience(), "the VM does not stop");
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn firepilot_kills_a_machine() {
    let directory = tempfile::tempdir().expect("a directory");
    let tap = Tap::new(2);
    let files = files(directory.path(), &tap);
    let config = configuration("killed", directory.path(), &files);
    let socket = directory.path().join("killed/firecracker.socket");
    block_on(async {
        let mut machine = Machine::new();
        machine.create(config).await.expect("created");
        machine.start().await.expect("started");
        assert!(socket.exists());
        // It removes the socket itself, and fails where that is not there.
        machine.kill().await.expect("killed");
        assert!(!socket.exists());
    });
}
