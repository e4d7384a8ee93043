//! One line that names the field, and an exit code, for all that is not right. Nothing on standard output.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tests::elf::Elf;
use tests::program::tandem_vmm;
use tests::vm::VmBuilder;

use crate::guest::guest;

guest!(good, "power_off");

fn builder() -> VmBuilder {
    VmBuilder::with_code(good())
}

/// The configuration is refused, and the line has all of `words`.
#[track_caller]
fn refused(builder: VmBuilder, words: &[&str]) {
    let what = builder.config.to_string();
    let ended = builder.run();
    assert_eq!(
        (ended.code, ended.text().as_str()),
        (152, ""),
        "{what}\n{}",
        ended.stderr
    );
    let line = ended.one_line();
    assert!(line.starts_with("tandem-vmm: "), "{line}");
    for word in words {
        assert!(line.contains(word), "no {word:?} in: {line}");
    }
    let mut clauses: Vec<_> = line
        .split(": ")
        .filter(|clause| clause.len() > 20)
        .collect();
    let all = clauses.len();
    clauses.sort_unstable();
    clauses.dedup();
    assert_eq!(clauses.len(), all, "says something twice: {line}");
}

fn set(path: &str, value: Value) -> VmBuilder {
    let mut builder = builder();
    let (section, field) = path.split_once('/').unwrap();
    builder.config[section][field] = value;
    builder
}

#[test]
fn more_devices_than_mmio_has_lines() {
    let mut builder = builder();
    builder.config["machine-config"]["transport"] = json!("mmio");
    let disk = builder.path("disk");
    fs::write(&disk, [0; 4096]).unwrap();
    let drive =
        |n: u8| json!({"drive_id": format!("d{n}"), "path_on_host": &disk, "is_read_only": true});
    builder.config["drives"] = (0..17).map(drive).collect();
    let words = [
        "machine-config.transport",
        "16 devices",
        "there are 17",
        "set it to pci",
    ];
    refused(builder, &words);
    refused(
        set("machine-config/transport", json!("isa")),
        &["machine-config.transport", "unknown variant `isa`"],
    );
}

#[test]
fn the_good_one_is_good() {
    builder().run().expect(0, "");
}

#[test]
fn fields() {
    let vcpus = "machine-config.vcpu_count";
    let memory = "machine-config.mem_size_mib";
    for (path, value, word) in [
        ("machine-config/vcpu_count", json!(0), vcpus),
        ("machine-config/vcpu_count", json!(33), vcpus),
        ("machine-config/vcpu_count", json!(256), vcpus),
        ("machine-config/vcpu_count", json!(-1), vcpus),
        ("machine-config/vcpu_count", json!("1"), vcpus),
        ("machine-config/vcpu_count", json!(1.5), vcpus),
        ("machine-config/vcpu_count", Value::Null, vcpus),
        ("machine-config/mem_size_mib", json!(0), memory),
        ("machine-config/mem_size_mib", json!(15), memory),
        ("machine-config/mem_size_mib", json!(1_u64 << 60), memory),
        ("machine-config/mem_size_mib", json!(u64::MAX), memory),
        ("machine-config/mem_size_mib", json!(-16), memory),
        ("machine-config/mem_size_mib", json!("16"), memory),
        (
            "machine-config/huge_pages",
            json!("1G"),
            "machine-config.huge_pages",
        ),
        (
            "machine-config/cpu_template",
            json!("T2"),
            "machine-config.cpu_template",
        ),
        ("machine-config/vcpus", json!(1), "vcpus"),
        ("boot-source/kernel", json!("x"), "kernel"),
        (
            "boot-source/kernel_image_path",
            json!(""),
            "boot-source.kernel_image_path",
        ),
        (
            "boot-source/kernel_image_path",
            json!(1),
            "boot-source.kernel_image_path",
        ),
        (
            "boot-source/boot_args",
            json!("x".repeat(2048)),
            "boot-source.boot_args",
        ),
        (
            "boot-source/boot_args",
            json!("x".repeat(1 << 19)),
            "boot-source.boot_args",
        ),
        (
            "boot-source/boot_args",
            json!("a\u{0}b"),
            "boot-source.boot_args",
        ),
        (
            "boot-source/boot_args",
            json!(["a"]),
            "boot-source.boot_args",
        ),
        (
            "boot-source/bzimage_decompression",
            json!("Maybe"),
            "boot-source.bzimage_decompression",
        ),
        ("serial/serial_out_path", json!(5), "serial.serial_out_path"),
        (
            "serial/serial_out_path",
            json!("/nowhere/console"),
            "serial.serial_out_path",
        ),
        ("serial/out", json!("x"), "out"),
        ("logger/level", json!("Loud"), "logger.level"),
        ("logger/log_path", json!("/nowhere/log"), "logger.log_path"),
    ] {
        refused(set(path, value), &[word]);
    }
}

#[test]
fn sections() {
    for (section, value) in [
        (
            "drives",
            json!([{"drive_id": "root", "is_root_device": true}]),
        ),
        (
            "network-interfaces",
            json!([{"iface_id": "eth0", "host_dev_name": "tap0", "mtu": 9}]),
        ),
        ("vsock", json!({"guest_cid": 3})),
        ("vsock.guest_cid", json!({"guest_cid": 2, "uds_path": "v"})),
        ("vsock.uds_path", json!({"guest_cid": 3, "uds_path": ""})),
        (
            "vsock.uds_path",
            json!({"guest_cid": 3, "uds_path": "/nowhere/v.sock"}),
        ),
        (
            "vsock.uds_path",
            json!({"guest_cid": 3, "uds_path": "/etc/passwd"}),
        ),
        ("balloon", json!({"amount_mib": 1})),
        ("entropy", json!({"rate_limiter": {"ops": {"size": 1}}})),
        ("entropy", json!({"rate": 1})),
        ("nonsense", json!(1)),
    ] {
        let mut builder = builder();
        // A field has a name behind that of its section.
        builder.config[section.split('.').next().unwrap()] = value;
        refused(builder, &[section]);
    }
    let mut builder = builder();
    builder.config["drives"] = json!([]);
    builder.config["vsock"] = Value::Null;
    builder.run().expect(0, "");
}

#[test]
fn documents() {
    for (document, word) in [
        ("", "not valid JSON"),
        ("hello", "not valid JSON"),
        ("{", "not valid JSON"),
        ("\u{feff}{}", "not valid JSON"),
        ("{}", "boot-source"),
        ("[]", "expected"),
        ("null", "expected"),
        (
            r#"{"boot-source":{"kernel_image_path":"k"}} x"#,
            "nothing after it",
        ),
        (
            r#"{"boot-source":{"kernel_image_path":"k"},"boot-source":{"kernel_image_path":"k"}}"#,
            "boot-source",
        ),
        (
            r#"{"boot-source":{"kernel_image_path":"k"},"machine-config":{"vcpu_count":1,"mem_size_mib":18446744073709551616}}"#,
            "machine-config.mem_size_mib",
        ),
    ] {
        refused(builder().document(document), &[word, "vm.json"]);
    }
    refused(builder().document("[".repeat(100_000)), &["vm.json"]);
    refused(builder().document(b"\xff\xfe".to_vec()), &["vm.json"]);
    refused(
        builder().document(" ".repeat(2 << 20)),
        &["--config-file", "1 MiB"],
    );
}

#[test]
fn kernels() {
    let field = "boot-source.kernel_image_path";
    refused(
        VmBuilder::with_kernel("/nowhere/vmlinux"),
        &[field, "/nowhere/vmlinux"],
    );
    refused(VmBuilder::with_kernel("/"), &[field]);
    refused(VmBuilder::with_kernel("/dev/zero"), &[field]);
    let whole = Elf::new(good())
        .segment(0x20_0000, &[1; 10_000], 10_000)
        .to_bytes();
    for (name, bytes) in [
        ("empty", &b""[..]),
        ("text", b"hello, I am no kernel\n"),
        ("magic only", b"\x7fELF"),
        ("header only", &whole[..64]),
        ("half a table", &whole[..100]),
        ("half a segment", &whole[..whole.len() - 8_000]),
    ] {
        let builder = VmBuilder::with_code(good());
        let path = builder.path("vmlinux");
        fs::write(&path, bytes).unwrap();
        println!("{name}");
        refused(builder, &[field, "vmlinux"]);
    }
    let too_big = Elf::new(good()).segment(0x20_0000, &[1; 10], 64 << 20);
    refused(
        VmBuilder::with_elf(&too_big),
        &["machine-config.mem_size_mib", "16"],
    );
    let outside = Elf::new(good()).segment(0xd000_0000, &[1; 10], 10);
    refused(VmBuilder::with_elf(&outside), &["16 MiB"]);
}

#[test]
fn a_fifo_is_no_kernel_and_no_initrd() {
    for field in ["kernel_image_path", "initrd_path"] {
        let builder = builder();
        let path = builder.path("fifo");
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        refused(builder.boot(field, json!(path)), &[field]);
    }
}

#[test]
fn initrds() {
    let field = "boot-source.initrd_path";
    refused(
        builder().initrd(Path::new("/nowhere/initrd")),
        &[field, "/nowhere/initrd"],
    );
    refused(builder().initrd(Path::new("/")), &[field]);
    let with_size = |size| {
        let builder = builder();
        let path = builder.path("initrd");
        File::create(&path).unwrap().set_len(size).unwrap();
        builder.initrd(&path)
    };
    refused(with_size(0), &[field, "empty"]);
    refused(with_size(1 << 30), &["machine-config.mem_size_mib"]);
    with_size(1).run().expect(0, "");
}

#[test]
fn files_for_output() {
    for option in ["--log-path", "--boot-timeline"] {
        for path in ["/nowhere/file", "/"] {
            refused(builder().option(option, path), &[option, path]);
        }
    }
}

fn run(args: &[&str]) -> Output {
    Command::new(tandem_vmm())
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn a_configuration_file_must_be_there() {
    for path in ["/nowhere/vm.json", "/", ""] {
        let output = run(&["--no-api", "--config-file", path]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        // An empty value may be refused as an argument.
        let code = output.status.code();
        assert!(
            code == Some(152) || (path.is_empty() && code == Some(153)),
            "{path:?} {code:?} {stderr}"
        );
        assert!(stderr.contains("--config-file"), "{stderr}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn arguments() {
    let given = ["--no-api", "--config-file", "/nowhere/vm.json"];
    for wrong in [
        &["--nonsense"][..],
        &["--id", ""],
        &["--id", "a b"],
        &["--level", "Loud"],
        &["--stop-timeout", "soon"],
        &["--stop-timeout", "-1"],
        &["--start-time-us", "x"],
        &["--log-path"],
        &["word"],
    ] {
        let output = run(&[&given, wrong].concat());
        assert_eq!(output.status.code(), Some(153), "{wrong:?}");
        assert!(output.stdout.is_empty(), "{wrong:?}");
        assert!(!output.stderr.is_empty(), "{wrong:?}");
    }
    let output = run(&["--no-api"]);
    assert_eq!(output.status.code(), Some(153));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--config-file"));
}

#[test]
fn help_and_version_are_no_errors() {
    for (args, word) in [
        (["--help"], "--config-file"),
        (["-h"], "--config-file"),
        (["--version"], "tandem-vmm "),
    ] {
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(word),
            "{args:?}"
        );
        assert!(output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_link_that_cannot_be_had() {
    let with = |interface: Value| {
        let mut builder = builder();
        builder.config["network-interfaces"] = json!([interface]);
        builder
    };
    let passt = json!({"iface_id": "n", "backend": "passt", "socket_path": "/nowhere/passt"});
    refused(
        with(passt),
        &[
            "network-interfaces[0].socket_path: cannot connect to /nowhere/passt",
            "start passt first",
        ],
    );
    // An interface that every machine has, and that is no tap.
    let lo = json!({"iface_id": "n", "host_dev_name": "lo"});
    refused(
        with(lo),
        &["network-interfaces[0].host_dev_name: cannot use the tap lo"],
    );
}
