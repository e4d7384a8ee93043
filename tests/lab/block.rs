//! Disks: a stock kernel writes, reads, discards and flushes, and what it wrote is in the image.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tests::guest_shell::GuestShell;
use tests::vm::VmBuilder;

use crate::kernels::{Kernel, commands};

const MIB: u64 = 1 << 20;

/// A sparse file in the VM's directory.
fn disk(builder: &VmBuilder, name: &str, bytes: u64) -> PathBuf {
    let path = builder.path(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

/// Runs `qemu-img`. Returns its exit code.
fn qemu_img(args: &[&str], path: &Path) -> i32 {
    let status = Command::new("qemu-img").args(args).arg(path).status();
    let status = status.expect("qemu-img is there: apt-get install qemu-utils");
    status.code().unwrap()
}

/// A drive with flushes.
fn drive(id: &str, path: &Path) -> Value {
    json!({"drive_id": id, "path_on_host": path, "is_root_device": false, "cache_type": "Writeback"})
}

/// A guest with one disk of so many MiB, `/dev/vda`.
fn guest(mib: u64, change: impl FnOnce(&mut Value)) -> (GuestShell, PathBuf) {
    let mut builder = commands(Kernel::CLOUD_6_12);
    let path = disk(&builder, "disk", mib * MIB);
    let mut one = drive("disk", &path);
    change(&mut one);
    builder.config["drives"] = json!([one]);
    (GuestShell::boot(builder), path)
}

/// Bytes of the file that take space.
fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

const FIO: &str = "fio --name=x --filename=/dev/vda --direct=1 --ioengine=libaio --verify=crc32c --verify_fatal=1 \
    --output-format=terse";

/// Each engine carries fio's mix of sizes and depths, verified, on the kernel's own driver.
#[test]
fn fio_finds_what_it_wrote() {
    for (engine, kernel) in [
        ("Async", Kernel::CLOUD_6_12),
        ("Sync", Kernel::GENERIC_6_12),
    ] {
        let mut builder = commands(kernel).vcpus(2);
        let path = disk(&builder, "disk", 64 * MIB);
        let mut one = drive("disk", &path);
        one["io_engine"] = json!(engine);
        builder.config["drives"] = json!([one]);
        let mut shell = GuestShell::boot(builder);
        assert_eq!(
            shell.ok("echo $(ls /sys/block/vda/mq)"),
            "0 1",
            "a queue for each vCPU"
        );
        let limit = Duration::from_secs(600);
        shell.ok_at_most(
            limit,
            &format!("{FIO} --rw=randwrite --bs=4k --iodepth=32 --size=16m --fsync=64"),
        );
        shell.ok_at_most(
            limit,
            &format!("{FIO} --rw=randrw --bsrange=512-128k --iodepth=8 --size=24m --numjobs=2 --offset_increment=24m"),
        );
        shell.power_off();
    }
}

/// A file system is made, filled by pages and by trims, and found whole; so it is in the image.
#[test]
fn a_file_system_is_whole() {
    let (mut shell, path) = guest(96, |_| ());
    shell.ok("mkfs.ext4 -q /dev/vda && mkdir -p /mnt && mount -o discard /dev/vda /mnt");
    shell.ok("for i in 1 2 3 4; do head -c 8000000 /dev/urandom >/mnt/$i; done; rm /mnt/2; cp /mnt/1 /mnt/5");
    let sums = shell.ok("cd /mnt && sync && md5sum 1 3 4 5");
    shell.ok("umount /mnt && e2fsck -f -n /dev/vda");
    shell.ok("mount -o ro /dev/vda /mnt");
    assert_eq!(shell.ok("cd /mnt && md5sum 1 3 4 5"), sums);
    shell.ok("umount /mnt");
    let ended = shell.power_off();
    let mut magic = [0; 2];
    let mut file = File::open(&path).unwrap();
    file.seek(SeekFrom::Start(1024 + 0x38)).unwrap();
    file.read_exact(&mut magic).unwrap();
    assert_eq!(magic, [0x53, 0xef], "ext4's magic number");
    drop(ended);
}

#[test]
fn discards_give_space_back_and_zeroes_are_zeros() {
    let (mut shell, path) = guest(64, |_| ());
    shell.ok("dd if=/dev/urandom of=/dev/vda bs=1M count=64 oflag=direct");
    assert_eq!(allocated(&path), 64 * MIB);
    shell.ok("blkdiscard -o 1M -l 31M /dev/vda");
    assert_eq!(allocated(&path), 33 * MIB);
    shell.ok("blkdiscard -z -o 40M -l 8M /dev/vda && sync");
    let zeros = "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vda bs=1M skip=40 count=8 2>/dev/null | tr -d '\\000' | wc -c";
    assert_eq!(shell.ok(zeros), "0");
    shell.ok("blkdiscard /dev/vda");
    assert_eq!(allocated(&path), 0);
    shell.power_off();
}

/// What was synced is in the image when the process is killed: the same test for each format.
fn synced_survives_a_kill(change: impl Fn(&VmBuilder, &mut Value), check: impl Fn(&Path)) {
    let mut builder = commands(Kernel::CLOUD_6_12);
    let path = builder.path("disk");
    let mut one = drive("disk", &path);
    change(&builder, &mut one);
    builder.config["drives"] = json!([one]);
    let mut shell = GuestShell::boot(builder);
    shell.ok("mkfs.ext4 -q /dev/vda && mkdir -p /mnt && mount /dev/vda /mnt");
    let sum = shell.ok("head -c 5000000 /dev/urandom >/mnt/file && sync && md5sum </mnt/file");
    // More is on its way when it ends.
    let _ = shell.send("head -c 20000000 /dev/urandom >/mnt/other; sync");
    let vm = shell.into_vm();
    vm.signal(libc::SIGKILL);
    let ended = vm.wait();
    assert_eq!(ended.code, 1000 + libc::SIGKILL);
    check(&path);
    let mut builder = commands(Kernel::CLOUD_6_12);
    builder.config["drives"] = json!([one]);
    let mut shell = GuestShell::boot(builder);
    shell.ok("mkdir -p /mnt && mount /dev/vda /mnt");
    assert_eq!(shell.ok("md5sum </mnt/file"), sum);
    shell.ok("umount /mnt && e2fsck -f -n /dev/vda");
    shell.power_off();
    check(&path);
    drop(ended);
}

#[test]
fn what_was_synced_survives_a_kill() {
    synced_survives_a_kill(
        |builder, _| drop(disk(builder, "disk", 32 * MIB)),
        |path| assert_eq!(fs::metadata(path).unwrap().len(), 32 * MIB),
    );
}

/// `qemu-img check` finds nothing but clusters that are not used: 0 or 3.
#[test]
fn what_was_synced_to_an_image_survives_a_kill() {
    synced_survives_a_kill(
        |builder, drive| {
            let path = builder.path("disk");
            let create = ["create", "-q", "-f", "qcow2", "-o", "size=32M"];
            assert_eq!(qemu_img(&create, &path), 0);
            drive["format"] = json!("qcow2");
        },
        |path| {
            let code = qemu_img(&["check", "-q", "-f", "qcow2"], path);
            assert!(code == 0 || code == 3, "{code}");
        },
    );
}

/// An image over a base that stays as it is: found whole by fio, by the guest's file system, and by `qemu-img`.
#[test]
fn an_image_over_a_base() {
    let mut builder = commands(Kernel::CLOUD_6_12);
    let (base, image) = (builder.path("base"), builder.path("disk"));
    fs::write(&base, vec![b'b'; 48 * MIB as usize]).unwrap();
    let below = base.to_str().unwrap();
    let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", below];
    assert_eq!(qemu_img(&create, &image), 0);
    let mut one = drive("disk", &image);
    one["format"] = json!("qcow2");
    builder.config["drives"] = json!([one]);
    // Not without the base's name.
    let ended = builder.run();
    assert_eq!(ended.code, 152);
    let line = ended.one_line();
    assert!(line.contains("drives[0].backing_file"), "{line}");
    let mut builder = commands(Kernel::CLOUD_6_12);
    one["backing_file"] = json!(base);
    builder.config["drives"] = json!([one]);
    let mut shell = GuestShell::boot(builder);
    assert_eq!(shell.ok("tr -d b </dev/vda | wc -c"), "0");
    let limit = Duration::from_secs(600);
    let fio = format!("{FIO} --rw=randwrite --bs=4k --iodepth=32 --size=8m --fsync=64");
    shell.ok_at_most(limit, &fio);
    shell.ok("mkfs.ext4 -q /dev/vda && mkdir -p /mnt && mount -o discard /dev/vda /mnt");
    shell.ok(
        "head -c 9000000 /dev/urandom >/mnt/1; rm /mnt/1; head -c 9000000 /dev/urandom >/mnt/2",
    );
    shell.ok("umount /mnt && e2fsck -f -n /dev/vda");
    shell.power_off();
    assert_eq!(qemu_img(&["check", "-q", "-f", "qcow2"], &image), 0);
    let bytes = fs::read(&base).unwrap();
    assert!(
        bytes.iter().all(|byte| *byte == b'b'),
        "the base has changed"
    );
    drop(ended);
}

/// Two disks, told apart by serial number; one of them read-only; the root device is the first.
#[test]
fn two_disks_one_read_only() {
    let mut builder = commands(Kernel::CLOUD_6_12);
    let (data, tools) = (
        disk(&builder, "data", 8 * MIB),
        disk(&builder, "tools", 4 * MIB + 100),
    );
    fs::write(&tools, vec![b'x'; 4 * MIB as usize + 100]).unwrap();
    let mut read_only = drive("tools_of_a_very_long_name", &tools);
    read_only["is_read_only"] = json!(true);
    read_only["is_root_device"] = json!(true);
    builder.config["drives"] = json!([drive("data_1", &data), read_only]);
    let mut shell = GuestShell::boot(builder);
    assert_eq!(
        shell.ok("cat /sys/block/vda/serial"),
        "tools_of_a_very_long"
    );
    assert_eq!(shell.ok("cat /sys/block/vdb/serial"), "data_1");
    assert_eq!(shell.ok("cat /sys/block/vda/ro /sys/block/vdb/ro"), "1\n0");
    assert_eq!(
        shell.ok("blockdev --getsize64 /dev/vda"),
        (4 * MIB).to_string()
    );
    let line = shell.ok("cat /proc/cmdline");
    assert!(line.ends_with(" root=/dev/vda ro"), "{line}");
    assert_ne!(
        shell
            .run("dd if=/dev/zero of=/dev/vda bs=512 count=1")
            .status,
        0
    );
    shell.ok("dd if=/dev/zero of=/dev/vdb bs=512 count=1 oflag=direct");
    assert_eq!(shell.ok("tr -d x </dev/vda | wc -c"), "0");
    shell.power_off();
}

/// A second VM on a disk that may be written does not start; two that only read do.
#[test]
fn a_writable_disk_has_one_user() {
    let (shell, path) = guest(8, |_| ());
    for read_only in [false, true] {
        let mut builder = commands(Kernel::CLOUD_6_12);
        let mut one = drive("disk", &path);
        one["is_read_only"] = json!(read_only);
        builder.config["drives"] = json!([one]);
        let ended = builder.run();
        let line = ended.one_line();
        assert!(
            line.contains("drives[0].path_on_host") && line.contains("in use"),
            "{line}"
        );
        assert_eq!(ended.code, 152);
    }
    shell.power_off();
}

/// The guest sees a disk that grew, and one that shrank.
#[test]
fn a_disk_changes_its_size() {
    let (mut shell, path) = guest(16, |_| ());
    let sectors = |shell: &mut GuestShell, expected: u64| {
        shell.vm().signal(libc::SIGUSR1);
        let wait = format!("until [ $(cat /sys/block/vda/size) = {expected} ]; do sleep 0.1; done");
        shell.ok(&wait);
    };
    shell.ok("mkfs.ext4 -q /dev/vda && mkdir -p /mnt && mount /dev/vda /mnt");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(48 * MIB)
        .unwrap();
    sectors(&mut shell, 48 * 2048);
    shell.ok("resize2fs /dev/vda && head -c 25000000 /dev/urandom >/mnt/big && sync");
    shell.ok("umount /mnt && e2fsck -f -n /dev/vda");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(10 * MIB)
        .unwrap();
    sectors(&mut shell, 10 * 2048);
    assert_eq!(
        shell.ok("dd if=/dev/vda bs=1M iflag=direct 2>/dev/null | wc -c"),
        (10 * MIB).to_string()
    );
    shell.power_off();
}

/// A block device of the host's is a disk, too: written, cleared, locked.
#[test]
fn a_block_device() {
    let builder = commands(Kernel::CLOUD_6_12);
    let file = disk(&builder, "file", 32 * MIB);
    let losetup = |args: &[&str]| {
        let output = Command::new("losetup").args(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let device = losetup(&["--find", "--show", file.to_str().unwrap()]);
    let mut builder = builder;
    builder.config["drives"] = json!([drive("disk", Path::new(&device))]);
    let mut shell = GuestShell::boot(builder);
    let size = shell.ok("blockdev --getsize64 /dev/vda");
    assert_eq!(size, (32 * MIB).to_string());
    shell.ok("dd if=/dev/urandom of=/dev/vda bs=1M count=32 oflag=direct && sync");
    let sum = shell.ok("dd if=/dev/vda bs=1M count=16 iflag=direct 2>/dev/null | md5sum");
    shell.ok("blkdiscard -o 16M -l 8M /dev/vda && blkdiscard -z -o 24M -l 8M /dev/vda");
    let zeros = "dd if=/dev/vda bs=1M skip=24 iflag=direct 2>/dev/null | tr -d '\\000' | wc -c";
    assert_eq!(shell.ok(zeros), "0");
    let mut second = commands(Kernel::CLOUD_6_12);
    second.config["drives"] = json!([drive("disk", Path::new(&device))]);
    let ended = second.run();
    assert!(ended.one_line().contains("in use"), "{}", ended.stderr);
    assert_eq!(
        shell.ok("dd if=/dev/vda bs=1M count=16 iflag=direct 2>/dev/null | md5sum"),
        sum
    );
    shell.power_off();
    losetup(&["--detach", &device]);
}
