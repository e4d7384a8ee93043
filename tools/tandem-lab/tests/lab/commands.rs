//! What a command in the lab gets and gives.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::{Bench, text};

pub fn exit_codes(bench: &Bench) {
    bench.up();
    let code = |arguments: &[&str]| bench.lab(arguments).output().unwrap().status.code();
    assert_eq!(code(&["true"]), Some(0));
    assert_eq!(code(&["sh", "-c", "exit 7"]), Some(7));
    assert_eq!(code(&["--", "sh", "-c", "exit 255"]), Some(255));
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(code(&["sh", "-c", "kill -TERM $$"]), Some(143));
    assert_eq!(code(&["tandem-no-such-program"]), Some(127));
    assert_eq!(code(&["/etc/passwd"]), Some(126));
}

pub fn arguments(bench: &Bench) {
    bench.up();
    let odd = [
        "",
        " ",
        "a b",
        "two\nlines",
        "it's \"quoted\" \\ $HOME `id` *",
        "--name",
        "-",
        "ü",
    ];
    let mut command = bench.lab(&["sh", "-c", r#"printf '%s\0' "$@""#, "sh"]);
    command
        .args(odd)
        .arg(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    let expected: Vec<u8> = odd
        .iter()
        .map(|word| word.as_bytes())
        .chain([&b"\xff\xfe"[..]])
        .flat_map(|word| [word, b"\0"].concat())
        .collect();
    assert_eq!(command.output().unwrap().stdout, expected);
}

pub fn binary_streams(bench: &Bench) {
    bench.up();
    let mut sent = vec![0; 8 << 20];
    fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut sent)
        .unwrap();
    let mut child = bench
        .lab(&["cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy));
    let mut received = vec![];
    child
        .stdout
        .take()
        .unwrap()
        .read_to_end(&mut received)
        .unwrap();
    writer.join().unwrap().unwrap();
    assert!(child.wait().unwrap().success());
    assert!(sent == received, "{} bytes came back", received.len());
    // The end of the input is seen while the output goes on.
    let mut child = bench.lab(&["sh", "-c", "cat >/dev/null; echo end"]);
    let mut child = child
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"x").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap().stdout), "end\n");
}

pub fn standard_error(bench: &Bench) {
    bench.up();
    let output = bench.sh("echo out; echo err >&2; exit 3");
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("out\n".into(), "err\n".into())
    );
    assert_eq!(output.status.code(), Some(3));
}

pub fn environment(bench: &Bench) {
    bench.up();
    let script = "umask; pwd; printf '%s|' \"$ODD\" \"$TMPDIR\" \"$TANDEM_IN_LAB\" \"$DISPLAY\"";
    let mut command = bench.lab(&["sh", "-c", script]);
    let output = command
        .env("ODD", "a\nb=c \"")
        .env("DISPLAY", ":0")
        .env("TMPDIR", "/nowhere")
        .output()
        .unwrap();
    let expected = format!("0022\n{}\na\nb=c \"|/var/tmp|1||", bench.files.display());
    assert_eq!(text(&output.stdout), expected);
    // A place that is not shared is said to be so.
    let unshared = format!("/dev/shm/tandem-lab-test-{}", std::process::id());
    fs::create_dir(&unshared).unwrap();
    let output = bench.lab(&["true"]).current_dir(&unshared).output();
    fs::remove_dir(&unshared).unwrap();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(
        text(&output.stderr).contains("cannot be entered in the lab"),
        "{output:?}"
    );
}

pub fn unread_input(bench: &Bench) {
    bench.up();
    let big = bench.files.join("big");
    fs::write(&big, vec![7; 3 << 20]).unwrap();
    let begin = Instant::now();
    let input = fs::File::open(&big).unwrap();
    assert!(
        bench
            .lab(&["sleep", "0.3"])
            .stdin(input)
            .status()
            .unwrap()
            .success()
    );
    let input = fs::File::open(&big).unwrap();
    let output = bench
        .lab(&["head", "-c", "5"])
        .stdin(input)
        .output()
        .unwrap();
    assert_eq!(output.stdout, [7; 5]);
    // And a signal is not stuck behind it.
    let running = bench.start(&[], "echo ready; sleep 100 & wait");
    running.signal(libc::SIGTERM);
    assert_eq!(running.finish().0, 143);
    assert!(begin.elapsed() < Duration::from_secs(20));
}

pub fn unread_output(bench: &Bench) {
    bench.up();
    let mut child = bench.lab(&["yes"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut few = [0; 6];
    child.stdout.take().unwrap().read_exact(&mut few).unwrap();
    assert_eq!(&few, b"y\ny\ny\n");
    assert_eq!(child.wait().unwrap().code(), Some(128 + libc::SIGPIPE));
}

pub fn host_changes_are_seen(bench: &Bench) {
    bench.up();
    let (file, program) = (bench.files.join("file"), bench.files.join("program"));
    for round in 0..4 {
        fs::write(&file, format!("content {round}{}", "+".repeat(round))).unwrap();
        fs::write(bench.files.join(format!("new-{round}")), "").unwrap();
        // In place and by replacement: both are what build tools do.
        let script = format!("#!/bin/sh\necho program {round}; cat file; ls | grep -c new\n");
        if round % 2 == 0 {
            let _ = fs::remove_file(&program);
        }
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let output = bench.lab(&["./program"]).output().unwrap();
        let expected = format!(
            "program {round}\ncontent {round}{}{}\n",
            "+".repeat(round),
            round + 1
        );
        assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(
        bench.lab(&["cat", "file"]).output().unwrap().status.code(),
        Some(1)
    );
}

pub fn writes_are_seen(bench: &Bench) {
    bench.up();
    let output = bench.sh("head -c 5000000 /dev/zero >out; echo tail >>out; mkdir -p d; echo x >d/e; mv d f; umask 077; :>g");
    assert!(output.status.success());
    let bytes = fs::read(bench.files.join("out")).unwrap();
    assert_eq!(
        (bytes.len(), &bytes[5_000_000..]),
        (5_000_005, &b"tail\n"[..])
    );
    assert_eq!(fs::read(bench.files.join("f/e")).unwrap(), b"x\n");
    assert_eq!(
        fs::metadata(bench.files.join("g"))
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
}

pub fn signals(bench: &Bench) {
    bench.up();
    for (name, number) in [
        ("INT", libc::SIGINT),
        ("TERM", libc::SIGTERM),
        ("HUP", libc::SIGHUP),
        ("QUIT", libc::SIGQUIT),
    ] {
        let script = format!(
            "trap 'echo got {name}; exit 5' {name}; echo ready; while :; do sleep 0.1; done"
        );
        let running = bench.start(&[], &script);
        running.signal(number);
        let (code, output, errors) = running.finish();
        assert_eq!((code, output), (5, format!("got {name}\n")), "{errors}");
    }
    // The whole group gets it: the shell's child too.
    let running = bench.start(&[], "echo ready; sleep 100; echo not reached");
    running.signal(libc::SIGINT);
    assert_eq!(running.finish().0, 130);
}

pub fn timeout(bench: &Bench) {
    bench.up();
    let begin = Instant::now();
    // One that ignores SIGTERM, one in a session of its own: all are ended.
    let script = "trap '' TERM; setsid sleep 7771 & (setsid sleep 7772 &) ; sleep 7773; sleep 7774";
    let output = bench
        .lab(&["--timeout", "1", "sh", "-c", script])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(124));
    assert!(
        text(&output.stderr).contains("longer than 1 s"),
        "{output:?}"
    );
    assert!(begin.elapsed() < Duration::from_secs(15));
    let left =
        bench.sh("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -o 'sleep 777[0-9]'");
    assert_eq!(text(&left.stdout), "");
}

pub fn many_at_once(bench: &Bench) {
    bench.up();
    let children: Vec<_> = (0..20)
        .map(|n| {
            bench
                .lab(&["sh", "-c", "sleep 0.2; echo $0; exit $0", &n.to_string()])
                .stdout(Stdio::piped())
                .spawn()
        })
        .collect();
    for (n, child) in children.into_iter().enumerate() {
        let output = child.unwrap().wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(n as i32), format!("{n}\n"))
        );
    }
}

pub fn background(bench: &Bench) {
    bench.up();
    let begin = Instant::now();
    let output = bench.sh("sleep 8881 & echo $!");
    assert!(begin.elapsed() < Duration::from_secs(10));
    // It lives on in a lab that is up, as it would on the host.
    let pid = text(&output.stdout);
    assert!(bench.sh(&format!("kill {pid}")).status.success());
}

pub fn kvm_is_complete(bench: &Bench) {
    bench.up();
    let output = bench
        .sh("grep -qw svm /proc/cpuinfo && : <>/dev/kvm && test -c /dev/vhost-net && uname -r");
    assert!(output.status.success(), "{output:?}");
    let modules = bench.sh("modprobe nf_tables && modprobe erofs && modprobe squashfs && modprobe fuse && modprobe dm-mod");
    assert!(modules.status.success(), "{modules:?}");
}

pub fn lab_in_lab(bench: &Bench) {
    bench.up();
    let lab = format!("{}/../lab", env!("CARGO_MANIFEST_DIR"));
    let output = bench
        .lab(&[&lab, "sh", "-c", "echo inner; exit 9"])
        .output()
        .unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(9), "inner\n".into()),
        "{output:?}"
    );
}

pub fn own_failures(bench: &Bench) {
    for arguments in [
        &["--nonsense", "true"][..],
        &["--timeout", "x", "true"],
        &["--timeout"],
        &["--name", "../x", "true"],
        &["--name", "other", "--memory", "1", "up"],
        &[],
    ] {
        let output = bench.lab(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        assert!(
            text(&output.stderr).starts_with("tandem-lab: error: "),
            "{output:?}"
        );
    }
    assert!(text(&bench.lab(&["--help"]).output().unwrap().stdout).contains("exit codes"));
}
