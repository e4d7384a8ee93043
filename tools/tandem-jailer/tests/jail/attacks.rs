//! What is refused, and that nothing is followed, changed or left.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Place, USER, remove_group};

pub const REFUSED: i32 = 152;
const BAD_ARGUMENTS: i32 = 153;
const HOST_ERROR: i32 = 1;

/// All below a directory, with owners and modes.
pub fn all_of(dir: &Path) -> String {
    let listed = Command::new("find")
        .arg(dir)
        .args(["-printf", "%p %y %U:%G %m %l\n"])
        .output()
        .unwrap();
    String::from_utf8(listed.stdout).unwrap()
}

impl Place {
    /// The jailer refuses, says why, and the jail is not there; neither is anything else that was not there before.
    #[track_caller]
    pub fn nothing_is_made(&self, code: i32, more: &[&str], why: &str) {
        let _ = fs::create_dir(self.base().join("tandem-probe"));
        let before = all_of(self.dir.path());
        let line = self.refused(code, more);
        assert!(line.contains(why), "{line}");
        assert_eq!(all_of(self.dir.path()), before, "{line}");
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

#[test]
fn names_that_lead_elsewhere_are_no_ids() {
    let place = Place::new();
    for id in [
        "../x",
        "..",
        ".",
        "a/b",
        "/etc",
        "",
        "a_b",
        "a b",
        &"x".repeat(65),
    ] {
        place.nothing_is_made(
            BAD_ARGUMENTS,
            &["--id", id],
            "give 1 to 64 letters, digits and hyphens",
        );
    }
}

#[test]
fn a_jail_that_exists_is_refused_and_left_alone() {
    let place = Place::new();
    let jail = place.base().join("tandem-probe").join(&place.id);
    fs::create_dir_all(jail.join("root/dev")).unwrap();
    fs::write(jail.join("root/disk"), "x").unwrap();
    place.nothing_is_made(
        REFUSED,
        &[],
        "exists already, and has been used or holds what is made for it: root/dev; remove it if its machine is over, or give another id",
    );
    fs::remove_dir_all(&jail).unwrap();
    // Whatever it is.
    fs::write(&jail, "").unwrap();
    place.nothing_is_made(REFUSED, &[], "exists already, and is not a directory");
    fs::remove_file(&jail).unwrap();
    symlink("/nowhere", &jail).unwrap();
    place.nothing_is_made(REFUSED, &[], "exists already, and is not a directory");
}

#[test]
fn symbolic_links_are_not_followed_to_a_jail() {
    let place = Place::new();
    let elsewhere = place.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    // In the place of the jail.
    let programs = place.base().join("tandem-probe");
    fs::create_dir(&programs).unwrap();
    symlink(&elsewhere, programs.join(&place.id)).unwrap();
    place.nothing_is_made(REFUSED, &[], "exists already");
    fs::remove_dir_all(&programs).unwrap();
    // In the place of the directory for the program's jails.
    symlink(&elsewhere, &programs).unwrap();
    place.nothing_is_made(REFUSED, &[], "tandem-probe is not a directory");
    fs::remove_file(&programs).unwrap();
    // In the place of the base, and above it.
    fs::remove_dir(place.base()).unwrap();
    symlink(&elsewhere, place.base()).unwrap();
    let line = place.refused::<&str>(REFUSED, &[]);
    let remedy = format!("has a symbolic link in it; give {}", elsewhere.display());
    assert!(
        line.starts_with("--chroot-base-dir: ") && line.ends_with(&remedy),
        "{line}"
    );
    fs::create_dir(elsewhere.join("deep")).unwrap();
    let base = place.text("base/deep");
    assert!(
        place
            .refused(REFUSED, &["--chroot-base-dir", &base])
            .contains("symbolic link")
    );
    assert_eq!(fs::read_dir(elsewhere.join("deep")).unwrap().count(), 0);
}

#[test]
fn a_base_that_others_can_change_is_refused() {
    let place = Place::new();
    let set = |mode| fs::set_permissions(place.base(), fs::Permissions::from_mode(mode)).unwrap();
    set(0o777);
    place.nothing_is_made(REFUSED, &[], "can be written to by others");
    set(0o775);
    place.nothing_is_made(REFUSED, &[], "can be written to by others");
    set(0o755);
    chown(place.base(), Some(USER), None).unwrap();
    place.nothing_is_made(REFUSED, &[], "belongs to another user");
    chown(place.base(), Some(0), None).unwrap();
    // The same for what somebody has made in a base that they could write to once.
    chown(place.base().join("tandem-probe"), Some(USER), None).unwrap();
    place.nothing_is_made(REFUSED, &[], "tandem-probe belongs to another user");
    fs::remove_dir(place.base().join("tandem-probe")).unwrap();
    fs::remove_dir(place.base()).unwrap();
    fs::write(place.base(), "").unwrap();
    assert!(
        place
            .refused::<&str>(REFUSED, &[])
            .contains("is not a directory")
    );
    assert!(
        place
            .refused(REFUSED, &["--chroot-base-dir", &place.text("none/base")])
            .contains("No such file")
    );
}

#[test]
fn a_file_system_without_devices_or_programs_is_refused() {
    let place = Place::new();
    for option in ["nodev", "noexec", "ro"] {
        // In a mount namespace that goes with the shell.
        let mut command = Command::new("unshare");
        let script = r#"mount -t tmpfs -o "$1",mode=755 none "$2" && shift 2 && exec "$@""#;
        command
            .args(["-m", "sh", "-c", script, "sh", option])
            .arg(place.base());
        let jailer = place.jailer::<&str>(&[]);
        command.arg(jailer.get_program()).args(jailer.get_args());
        let output = command.output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(REFUSED), "{text}");
        let why = format!(
            "base is on a file system that is mounted {option}; give a directory on another\n"
        );
        assert!(text.ends_with(&why), "{text}");
    }
}

#[test]
fn exec_files_that_are_none() {
    let place = Place::new();
    let path = |name: &str| place.text(&format!("bin/{name}"));
    symlink(place.exec(), path("link")).unwrap();
    symlink(place.path("bin"), place.path("link")).unwrap();
    fs::create_dir(path("dir")).unwrap();
    fs::write(path("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(path("script"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(path("secret"), "not a program").unwrap();
    fs::copy(place.exec(), path("run")).unwrap();
    fs::copy(place.exec(), path("a b")).unwrap();
    fs::copy("/proc/self/exe", path("dynamic")).unwrap();
    assert!(
        Command::new("mkfifo")
            .arg(path("fifo"))
            .status()
            .unwrap()
            .success()
    );
    for (name, why) in [
        ("link", "has a symbolic link in it; give "),
        ("../link/tandem-probe", "has a symbolic link in it; give "),
        ("dir", "is not a regular file"),
        ("fifo", "is not a regular file"),
        ("secret", "is not executable"),
        ("none", "No such file"),
        ("run", "has a name that a jail cannot have"),
        ("a b", "has a name that a jail cannot have"),
    ] {
        place.nothing_is_made(REFUSED, &["--exec-file", &path(name)], why);
    }
    // What is found when it has been copied is removed with the copy; the directory for its jails stays.
    for (name, why) in [
        ("script", "is not an executable"),
        ("dynamic", "is linked dynamically"),
    ] {
        fs::create_dir(place.base().join(name)).unwrap();
        place.nothing_is_made(REFUSED, &["--exec-file", &path(name)], why);
    }
}

#[test]
fn a_hard_link_is_no_exec_file() {
    let place = Place::new();
    fs::hard_link(place.exec(), place.path("bin/other")).unwrap();
    place.nothing_is_made(REFUSED, &[], "has 2 hard links");
    fs::remove_file(place.path("bin/other")).unwrap();
    assert_eq!(
        place.run(&["--", "--probe-exit", "5"]).status.code(),
        Some(5)
    );
}

#[test]
fn a_bind_does_not_follow_or_cover() {
    let place = Place::new();
    symlink("/etc/shadow", place.path("link")).unwrap();
    fs::write(place.path("file"), "x").unwrap();
    let bind = |name: &str, target: &str| format!("{}:{target}", place.path(name).display());
    for (source, target, why) in [
        ("link", "/a", "--bind: "),
        ("none", "/a", "No such file"),
        ("file", "/dev/kvm", "give a DEST of its own"),
        ("file", "/tandem-probe", "give a DEST of its own"),
        ("file", "/tandem-probe/x", "give a DEST of its own"),
        ("file", "/run", "give a DEST of its own"),
    ] {
        place.nothing_is_made(REFUSED, &["--bind", &bind(source, target)], why);
    }
    place.nothing_is_made(BAD_ARGUMENTS, &["--bind", &bind("file", "/../x")], "--bind");
    place.nothing_is_made(
        REFUSED,
        &[
            "--ro-bind",
            &bind("file", "/a"),
            "--bind",
            &bind("file", "/a"),
        ],
        "give a DEST of its own",
    );
}

#[test]
fn what_is_no_network_namespace_is_not_entered() {
    let place = Place::new();
    for (path, code, why) in [
        ("/nowhere", REFUSED, "cannot be opened"),
        ("/dev/null", REFUSED, "is not a namespace"),
        ("/proc/self/ns/uts", HOST_ERROR, "--netns: cannot enter"),
    ] {
        place.nothing_is_made(code, &["--netns", path], why);
    }
}

/// Groups of the host's below `tandem-probe`, in whatever hierarchy.
fn groups_of(id: &str) -> Vec<PathBuf> {
    ["", "pids", "memory", "cpuset", "unified"]
        .map(|name| {
            Path::new("/sys/fs/cgroup")
                .join(name)
                .join("tandem-probe")
                .join(id)
        })
        .into_iter()
        .filter(|path| path.exists())
        .collect()
}

/// Each failure comes later than the one before it.
#[test]
fn what_was_made_before_a_failure_is_removed() {
    let place = Place::new();
    fs::write(place.path("file"), "x").unwrap();
    let bind = format!("{}:/a/b/c", place.path("file").display());
    let too_many = ["--resource-limit", "no-file=4000000000"];
    for (more, why) in [
        (
            &["--cgroup", "pids.max=nonsense"][..],
            "--cgroup: cannot write nonsense to",
        ),
        (
            &["--cgroup", "pids.nothing=1"],
            "--cgroup: cannot write 1 to",
        ),
        (
            &[
                "--bind",
                &bind,
                "--cgroup",
                "pids.max=50",
                too_many[0],
                too_many[1],
            ],
            "--resource-limit: cannot set no-file",
        ),
        (
            &[
                "--bind",
                &bind,
                "--cgroup",
                "pids.max=50",
                "--new-pid-ns",
                too_many[0],
                too_many[1],
            ],
            "--resource-limit: cannot set no-file",
        ),
        (
            &[
                "--cgroup",
                "pids.max=0",
                "--new-pid-ns",
                "--daemonize",
                too_many[0],
                too_many[1],
            ],
            "--resource-limit: cannot set no-file",
        ),
    ] {
        place.nothing_is_made(HOST_ERROR, more, why);
        assert_eq!(groups_of(&place.id), [""; 0].map(PathBuf::from), "{why}");
    }
    place.nothing_is_made(
        REFUSED,
        &["--cgroup", "nothing.max=1"],
        "--cgroup: this host has no controller nothing",
    );
    place.nothing_is_made(
        REFUSED,
        &["--cgroup-version", "2", "--parent-cgroup", "tandem-nowhere"],
        "there is no control group",
    );
    // After all that, the same id is free.
    assert_eq!(
        place.run(&["--", "--probe-exit", "5"]).status.code(),
        Some(5)
    );
}

/// A group that a machine of that name has left is used again; one that is in use is not.
#[test]
fn a_control_group_in_use_is_refused() {
    let place = Place::new();
    let group = ["--cgroup", "pids.max=50"];
    let inmate = place.start(&group);
    fs::remove_dir_all(place.root().parent().unwrap()).unwrap();
    let line = place.refused(REFUSED, &group);
    assert!(
        line.starts_with("--id: the control group ") && line.contains("is in use"),
        "{line}"
    );
    assert!(!place.root().exists());
    drop(inmate);
    let code = place
        .run(&[&group[..], &["--", "--probe-exit", "6"]].concat())
        .status
        .code();
    assert_eq!(code, Some(6));
    for group in groups_of(&place.id) {
        remove_group(&group);
    }
}

/// Somebody who swaps names while jailers run never has one write elsewhere.
#[test]
fn names_that_change_meanwhile_lead_nowhere() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let place = Place::new();
    let elsewhere = place.path("elsewhere");
    fs::create_dir_all(elsewhere.join("root/dev")).unwrap();
    let programs = place.base().join("tandem-probe");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // With root's rights, which no attacker has: even the base's contents are swapped.
            while !stop.load(Ordering::Relaxed) {
                let _ = fs::rename(&programs, place.path("aside"));
                let _ = symlink(&elsewhere, &programs);
                let _ = fs::remove_file(&programs);
                let _ = fs::rename(place.path("aside"), &programs);
            }
        });
        let mut made = 0;
        for round in 0..100 {
            let id = format!("r{round}");
            let output = place.run(&["--id", &id, "--", "--probe-exit", "9"]);
            made += i32::from(output.status.code() == Some(9));
        }
        stop.store(true, Ordering::Relaxed);
        assert!(made > 0, "none came through");
    });
    let listed = all_of(&elsewhere);
    assert_eq!(listed.lines().count(), 3, "{listed}");
}
