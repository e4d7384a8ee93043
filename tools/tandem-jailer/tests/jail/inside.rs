//! What the process in a jail is, as the kernel tells it.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::{GROUP, Inmate, Place, USER, remove_group};

fn without_privileges(inmate: &Inmate) {
    let same = |number: u32| [number.to_string().as_str(); 4].join(" ");
    assert_eq!(inmate.status("Uid"), same(USER));
    assert_eq!(inmate.status("Gid"), same(GROUP));
    assert_eq!(inmate.status("Groups"), "");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(inmate.status(set), "0000000000000000", "{set}");
    }
    assert_eq!(inmate.status("NoNewPrivs"), "1");
    assert_eq!(inmate.status("SigBlk"), "0000000000000000");
}

/// Descriptors of the process but the standard ones.
fn descriptors(inmate: &Inmate) -> Vec<String> {
    let names = fs::read_dir(inmate.proc("fd")).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["0", "1", "2"].contains(&name.as_str()))
        .collect()
}

fn has(inmate: &Inmate, path: &str) -> bool {
    inmate.said("has").contains(&path)
}

#[test]
fn it_is_a_user_without_privileges_groups_environment_or_descriptors() {
    let place = Place::new();
    let secret = fs::File::open("/etc/passwd").unwrap();
    let number = secret.as_raw_fd();
    let mut command = place.jailer::<&str>(&[]);
    command.env("SECRET", "1").stdout(Stdio::null());
    // SAFETY: async-signal-safe calls, on descriptors and without pointers but to a local.
    unsafe {
        command.pre_exec(move || {
            // Left open on purpose, and a group to lose.
            libc::dup2(number, 77);
            libc::setgroups(1, [4].as_ptr());
            Ok(())
        });
    }
    let inmate = place.inmate(command.spawn().unwrap());
    assert_eq!(
        inmate.pid,
        inmate.child.id(),
        "the jailer becomes the program"
    );
    without_privileges(&inmate);
    assert_eq!(descriptors(&inmate), [""; 0]);
    assert_eq!(fs::read(inmate.proc("environ")).unwrap(), b"");
    assert_eq!(inmate.said("env"), ["0"]);
    assert_eq!(inmate.said("cwd"), ["/"]);
}

#[test]
fn it_gets_what_the_jailer_adds_and_then_its_own_arguments() {
    let place = Place::new();
    let inmate = place.start(&["--", "--config-file", "/vm.json", "--id", "other"]);
    let words: Vec<_> = inmate.said("args")[0].split(' ').collect();
    assert_eq!(words[..3], ["/tandem-probe", "--id", &place.id]);
    assert_eq!(
        [words[3], words[5], words[7]],
        [
            "--start-time-us",
            "--start-time-cpu-us",
            "--parent-cpu-time-us"
        ]
    );
    let started: u64 = words[4].parse().unwrap();
    let uptime = fs::read_to_string("/proc/uptime").unwrap();
    let uptime: f64 = uptime.split(' ').next().unwrap().parse().unwrap();
    // A minute is as long as a test waits.
    let ago = uptime - started as f64 / 1e6;
    assert!((-1.0..120.0).contains(&ago), "{ago} s ago");
    assert_eq!(words[8], "0");
    assert_eq!(words[9..], ["--config-file", "/vm.json", "--id", "other"]);
}

#[test]
fn there_is_nothing_but_the_jail() {
    let place = Place::new();
    let inmate = place.start::<&str>(&[]);
    let expected = [
        "/dev",
        "/dev/kvm",
        "/dev/net",
        "/dev/net/tun",
        "/dev/urandom",
        "/run",
        "/tandem-probe",
    ];
    let more = ["/dev/userfaultfd", "/dev/vhost-net"];
    let found = inmate.said("has");
    for path in expected {
        assert!(found.contains(&path), "{path} is missing: {found:?}");
    }
    for path in &found {
        assert!(expected.contains(path) || more.contains(path), "{path}");
    }
    for path in more {
        let host = Path::new(path);
        assert_eq!(has(&inmate, path), host.exists(), "{path}");
        if let Ok(host) = host.symlink_metadata() {
            let node = place.root().join(&path[1..]).symlink_metadata().unwrap();
            assert_eq!((node.rdev(), node.uid()), (host.rdev(), USER), "{path}");
        }
    }
    for line in inmate.said("out") {
        assert!(line.ends_with(" false"), "{line}");
    }
    // One mount, which is not the host's root, and no set-user-ID bit has a meaning there.
    let mounts = fs::read_to_string(inmate.proc("mountinfo")).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    let jail = format!("/base/tandem-probe/{}/root / rw,nosuid", place.id);
    assert!(mounts.contains(&jail), "{mounts}");
    // On no side do mount events pass.
    assert!(
        !mounts.contains("shared:") && !mounts.contains("master:"),
        "{mounts}"
    );
    // And the host has none of it.
    let host = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!host.contains(place.root().to_str().unwrap()));
}

#[test]
fn devices_are_the_users_and_the_program_is_roots() {
    let place = Place::new();
    let inmate = place.start::<&str>(&[]);
    for (name, major, minor) in [("kvm", 10, 232), ("net/tun", 10, 200), ("urandom", 1, 9)] {
        let node = place
            .root()
            .join("dev")
            .join(name)
            .symlink_metadata()
            .unwrap();
        assert!(node.file_type().is_char_device());
        assert_eq!(node.rdev(), libc::makedev(major, minor), "{name}");
        assert_eq!(
            (node.uid(), node.gid(), node.mode() & 0o7777),
            (USER, GROUP, 0o600)
        );
    }
    for line in inmate.said("open") {
        // tun.ko and KVM may be missing on the host; random bytes are not.
        let device = line.split(' ').next().unwrap();
        assert_eq!(line.ends_with("true"), Path::new(device).exists(), "{line}");
    }
    for (name, owner, mode) in [
        ("", USER, 0o700),
        ("run", USER, 0o700),
        ("dev", 0, 0o755),
        ("dev/net", 0, 0o755),
        ("tandem-probe", 0, 0o555),
    ] {
        let found = place.root().join(name).symlink_metadata().unwrap();
        assert_eq!(
            (found.uid(), found.mode() & 0o7777),
            (owner, mode),
            "{name}"
        );
        assert_eq!(found.nlink() > 1, found.is_dir(), "a copy, not a link");
    }
    assert_eq!(
        fs::read(place.root().join("tandem-probe")).unwrap(),
        crate::probe()
    );
}

/// Modes are as they are said whatever the umask.
#[test]
fn the_umask_does_not_count() {
    let place = Place::new();
    let mut command = place.jailer::<&str>(&[]);
    // SAFETY: umask takes a number.
    unsafe {
        command.pre_exec(|| {
            libc::umask(0o777);
            Ok(())
        });
    }
    let inmate = place.inmate(command.spawn().unwrap());
    assert_eq!(
        inmate.status("Umask"),
        "0777",
        "the program has the caller's"
    );
    let mode = |name: &str| place.root().join(name).symlink_metadata().unwrap().mode() & 0o777;
    assert_eq!(
        [
            mode(""),
            mode("run"),
            mode("dev"),
            mode("dev/kvm"),
            mode("tandem-probe")
        ],
        [0o700, 0o700, 0o755, 0o600, 0o555]
    );
}

#[test]
fn its_exit_code_is_the_jailers() {
    let place = Place::new();
    for code in [0, 7, 66] {
        let output = place.run(&["--", "--probe-exit", &code.to_string()]);
        assert_eq!(output.status.code(), Some(code));
        fs::remove_dir_all(place.root().parent().unwrap()).unwrap();
    }
}

#[test]
fn a_pid_namespace_has_it_as_its_first_process() {
    let place = Place::new();
    let mut inmate = place.start(&["--new-pid-ns"]);
    assert_eq!(inmate.child.wait().unwrap().code(), Some(0));
    assert_eq!(inmate.said("pid"), ["1"]);
    assert_ne!(inmate.pid, inmate.child.id());
    assert_eq!(inmate.status("NSpid"), format!("{} 1", inmate.pid));
    without_privileges(&inmate);
    assert_eq!(descriptors(&inmate), [""; 0]);
    assert_eq!(fs::read(inmate.proc("environ")).unwrap(), b"");
    // The name is Firecracker's, and nothing of the making is left beside it.
    let file = place.root().join("tandem-probe.pid");
    assert_eq!(fs::read_to_string(&file).unwrap(), inmate.pid.to_string());
    assert!(!place.root().join(".tandem-probe.pid").exists());
    // Its own clock has started with it: what the jailer used is said apart.
    let words: Vec<_> = inmate.said("args")[0].split(' ').collect();
    assert_eq!(words[6], "0");
    assert!(words[8].parse::<u64>().unwrap() > 0);
}

#[test]
fn a_daemon_has_its_session_and_no_streams() {
    for flags in [&["--daemonize"][..], &["--daemonize", "--new-pid-ns"]] {
        // As a shell starts it, leading a group of its own; and as a program does.
        for leader in [true, false] {
            let place = Place::new();
            let mut command = place.jailer(flags);
            command.stdout(Stdio::null());
            if leader {
                command.process_group(0);
            }
            let mut inmate = place.inmate(command.spawn().unwrap());
            if leader || flags.len() > 1 {
                assert_eq!(inmate.child.wait().unwrap().code(), Some(0));
                assert_ne!(inmate.pid, inmate.child.id());
            } else {
                assert_eq!(inmate.pid, inmate.child.id());
            }
            // SAFETY: getsid takes a number.
            let session = unsafe { libc::getsid(inmate.pid as libc::pid_t) };
            assert_eq!(session, inmate.pid as libc::pid_t);
            for number in 0..3 {
                let stream = inmate.proc(&format!("fd/{number}")).metadata().unwrap();
                assert_eq!(stream.rdev(), libc::makedev(1, 3), "{number}");
            }
            assert_eq!(descriptors(&inmate), [""; 0]);
        }
    }
}

#[test]
fn limits_are_set() {
    let limits = |flags: &[&str]| {
        let place = Place::new();
        let inmate = place.start(flags);
        let text = fs::read_to_string(inmate.proc("limits")).unwrap();
        let of = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            let mut words = line.split_whitespace();
            (
                words.next().unwrap().to_owned(),
                words.next().unwrap().to_owned(),
            )
        };
        (of("Max open files"), of("Max file size"))
    };
    let both = |text: &str| (text.to_owned(), text.to_owned());
    let (files, size) = limits(&[]);
    assert_eq!(files, both("2048"));
    assert_eq!(size, both("unlimited"));
    let (files, size) = limits(&[
        "--resource-limit",
        "fsize=250000000",
        "--resource-limit",
        "no-file=1024",
        "--new-pid-ns",
    ]);
    assert_eq!(files, both("1024"));
    assert_eq!(size, both("250000000"));
}

#[test]
fn a_network_namespace_is_entered() {
    // The first process of a namespace of its own holds it open; any path to it does.
    let mut holder = Command::new("sleep");
    // SAFETY: unshare takes a number.
    unsafe {
        holder.pre_exec(|| match libc::unshare(libc::CLONE_NEWNET) {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut holder = holder.arg("600").spawn().unwrap();
    let namespace = format!("/proc/{}/ns/net", holder.id());
    let place = Place::new();
    let inmate = place.start(&["--netns", &namespace]);
    let wanted = fs::read_link(&namespace).unwrap();
    let found = fs::read_link(inmate.proc("ns/net")).unwrap();
    let host = fs::read_link("/proc/self/ns/net").unwrap();
    drop(inmate);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(found, wanted);
    assert_ne!(found, host);
}

#[test]
fn files_of_the_hosts_are_shown_where_they_are_bound() {
    let place = Place::new();
    fs::write(place.path("kernel"), "kernel").unwrap();
    fs::create_dir(place.path("disks")).unwrap();
    fs::write(place.path("disks/a.img"), "disk").unwrap();
    let kernel = format!("{}:/images/vmlinux", place.path("kernel").display());
    let disks = format!("{}:/images/disks", place.path("disks").display());
    let inmate = place.start(&["--ro-bind", &kernel, "--bind", &disks, "--new-pid-ns"]);
    assert!(has(&inmate, "/images/vmlinux") && has(&inmate, "/images/disks/a.img"));
    let mounts = fs::read_to_string(inmate.proc("mountinfo")).unwrap();
    let options = |target: &str| {
        let line = mounts
            .lines()
            .find(|line| line.split(' ').nth(4) == Some(target))
            .unwrap();
        line.split(' ').nth(5).unwrap().to_owned()
    };
    assert!(
        options("/images/vmlinux").starts_with("ro,nosuid,noexec"),
        "{mounts}"
    );
    assert!(
        options("/images/disks").starts_with("rw,nosuid,noexec"),
        "{mounts}"
    );
    let seen = fs::read(inmate.proc("root/images/vmlinux")).unwrap();
    assert_eq!(seen, b"kernel");
    // On the host, the jail has the names only.
    assert_eq!(fs::read(place.root().join("images/vmlinux")).unwrap(), b"");
}

/// Where control groups are of version 1 or of version 2, with a controller that either has; the lab has the other.
#[test]
fn it_is_in_a_control_group_of_its_own_with_the_limit() {
    let v1 = Path::new("/sys/fs/cgroup/pids");
    let hierarchy = if v1.is_dir() {
        v1
    } else {
        Path::new("/sys/fs/cgroup")
    };
    for flags in [
        &[][..],
        &["--new-pid-ns", "--parent-cgroup", "tandem-test/nested"],
    ] {
        let place = Place::new();
        let mut words = vec!["--cgroup", "pids.max=123"];
        words.extend_from_slice(flags);
        let inmate = place.start(&words);
        let parent = if flags.is_empty() {
            "tandem-probe"
        } else {
            "tandem-test/nested"
        };
        let group = hierarchy.join(parent).join(&place.id);
        assert_eq!(fs::read_to_string(group.join("pids.max")).unwrap(), "123\n");
        let own = fs::read_to_string(inmate.proc("cgroup")).unwrap();
        assert!(own.contains(&format!("/{parent}/{}\n", place.id)), "{own}");
        // Only the machine is in it.
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap();
        assert_eq!(members, format!("{}\n", inmate.pid));
        drop(inmate);
        remove_group(&group);
    }
}

/// In version 1 nothing can enter a cpuset that has no CPUs or no memory nodes.
#[test]
fn several_controllers_and_an_empty_cpuset() {
    let place = Place::new();
    let inmate = place.start(&["--cgroup", "cpuset.cpus=0", "--cgroup", "pids.max=50"]);
    assert_eq!(inmate.status("Cpus_allowed_list"), "0");
    let own = fs::read_to_string(inmate.proc("cgroup")).unwrap();
    let id = place.id.clone();
    drop(inmate);
    assert!(own.contains(&format!("/tandem-probe/{id}\n")), "{own}");
    for hierarchy in ["", "pids", "cpuset"] {
        let group = Path::new("/sys/fs/cgroup")
            .join(hierarchy)
            .join("tandem-probe")
            .join(&id);
        if group.is_dir() {
            remove_group(&group);
        }
    }
}

/// User 0 is allowed, with a warning, and has no capabilities either.
#[test]
fn root_in_a_jail_has_no_capabilities() {
    let place = Place::new();
    let mut command = place.jailer(&["--uid", "0", "--gid", "0"]);
    command.stderr(Stdio::piped());
    let mut inmate = place.inmate(command.spawn().unwrap());
    for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(inmate.status(set), "0000000000000000", "{set}");
    }
    let stderr = inmate.child.stderr.take().unwrap();
    drop(inmate);
    let text = std::io::read_to_string(stderr).unwrap();
    assert!(
        text.starts_with("tandem-jailer: warning: --uid, --gid: "),
        "{text}"
    );
}

#[test]
fn the_base_directory_is_made_if_only_it_is_missing() {
    let place = Place::new();
    fs::remove_dir(place.base()).unwrap();
    let output = place.run(&["--", "--probe-exit", "3"]);
    assert_eq!(output.status.code(), Some(3));
    let found = place.base().symlink_metadata().unwrap();
    assert_eq!(found.permissions().mode() & 0o7777, 0o755);
}
