//! A jail that is there already, with files of the machine's in it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

use crate::attacks::{REFUSED, all_of};
use crate::{GROUP, Place, USER};

impl Place {
    /// Makes the jail as the callers of Firecracker's jailer do: `run` and a file, all of it the machine's user's or root's.
    fn prepare(&self, user: u32, group: u32) {
        let root = self.root();
        fs::create_dir_all(root.join("run")).unwrap();
        fs::write(root.join("disk"), "what is on it").unwrap();
        for path in [root.clone(), root.join("run"), root.join("disk")] {
            chown(&path, Some(user), Some(group)).unwrap();
        }
    }

    /// Prepares the jail anew, has `spoil` change it, and sees it refused and left as it was.
    #[track_caller]
    fn spoiled(&self, spoil: impl Fn(&Self), why: &str) {
        self.prepare(USER, GROUP);
        spoil(self);
        self.nothing_is_made(REFUSED, &[], why);
        fs::remove_dir_all(self.root().parent().unwrap()).unwrap();
    }
}

#[test]
fn what_is_in_it_stays_and_is_seen_in_the_jail() {
    for (user, group) in [(0, 0), (USER, GROUP)] {
        for flags in [&[][..], &["--new-pid-ns", "--daemonize"]] {
            let place = Place::new();
            place.prepare(user, group);
            let inmate = place.start(flags);
            let seen = inmate.said("has");
            for path in ["/disk", "/run", "/tandem-probe", "/dev/kvm", "/dev/net/tun"] {
                assert!(seen.contains(&path), "{path}: {seen:?}");
            }
            let root = place.root();
            assert_eq!(
                fs::read_to_string(root.join("disk")).unwrap(),
                "what is on it"
            );
            for dir in [root.clone(), root.join("run")] {
                let found = fs::metadata(&dir).unwrap();
                assert_eq!((found.uid(), found.gid()), (USER, GROUP));
                assert_eq!(found.mode() & 0o7777, 0o700);
            }
            let program = fs::metadata(root.join("tandem-probe")).unwrap();
            assert_eq!((program.uid(), program.mode() & 0o7777), (0, 0o555));
            drop(inmate);
            // Now it is a used one.
            place.nothing_is_made(REFUSED, &[], "root/tandem-probe; remove it");
        }
    }
}

#[test]
fn it_needs_no_run() {
    let place = Place::new();
    fs::create_dir_all(place.root()).unwrap();
    let inmate = place.start::<&str>(&[]);
    assert!(inmate.said("has").contains(&"/run"));
}

#[test]
fn what_was_there_before_a_failure_is_what_it_was() {
    let place = Place::new();
    fs::write(place.path("file"), "x").unwrap();
    let bind = |target: &str| format!("{}:{target}", place.path("file").display());
    let covering = bind("/disk");
    let deep = bind("/run/a/b");
    for (user, mode) in [(0, 0o755), (USER, 0o750)] {
        place.prepare(user, user);
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(place.root(), mode.clone()).unwrap();
        fs::set_permissions(place.root().join("run"), mode).unwrap();
        for (more, why) in [
            (&["--bind", &covering][..], "give a DEST of its own"),
            (
                &["--bind", &deep, "--cgroup", "pids.max=nonsense"],
                "--cgroup: cannot write nonsense to",
            ),
            (
                &["--resource-limit", "no-file=4000000000"],
                "--resource-limit",
            ),
            (
                &["--resource-limit", "no-file=4000000000", "--new-pid-ns"],
                "--resource-limit",
            ),
        ] {
            let before = all_of(place.dir.path());
            let output = place.run(more);
            let line = String::from_utf8(output.stderr).unwrap();
            assert!(line.contains(why), "{line}");
            assert!(!line.contains("is left"), "{line}");
            assert_eq!(all_of(place.dir.path()), before, "{line}");
        }
    }
}

#[test]
fn what_others_can_change_is_not_prepared() {
    let place = Place::new();
    let own = |place: &Place| place.root().parent().unwrap().to_owned();
    let mode = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    place.spoiled(|p| mode(&own(p), 0o777), "can be written to by others");
    place.spoiled(
        |p| mode(&p.root(), 0o1777),
        "root in it can be written to by others",
    );
    place.spoiled(|p| mode(&p.root(), 0o775), "can be written to by others");
    place.spoiled(
        |p| mode(&p.root().join("run"), 0o770),
        "root/run exists already, and can be written to by others",
    );
    let other = Some(USER + 7);
    place.spoiled(
        |p| chown(own(p), other, None).unwrap(),
        "neither root nor the machine's",
    );
    place.spoiled(
        |p| chown(p.root(), other, None).unwrap(),
        "neither root nor the machine's",
    );
    place.spoiled(
        |p| chown(p.root().join("run"), other, None).unwrap(),
        "neither root nor the machine's",
    );
}

#[test]
fn links_and_what_the_jailer_makes_are_not_prepared() {
    let place = Place::new();
    place.spoiled(
        |p| fs::remove_dir_all(p.root()).unwrap(),
        "root in it is not there",
    );
    place.spoiled(
        |p| {
            fs::rename(p.root(), p.root().with_file_name("real")).unwrap();
            symlink("real", p.root()).unwrap();
        },
        "root in it is not a directory",
    );
    let run = |p: &Place| p.root().join("run");
    place.spoiled(
        |p| {
            fs::remove_dir(run(p)).unwrap();
            symlink("/tmp", run(p)).unwrap();
        },
        "root/run exists already, and is not a directory",
    );
    place.spoiled(
        |p| {
            fs::remove_dir(run(p)).unwrap();
            fs::write(run(p), "").unwrap();
        },
        "root/run exists already, and is not a directory",
    );
    for name in [
        "tandem-probe",
        "dev",
        "tandem-probe.pid",
        ".tandem-probe.pid",
    ] {
        let why = format!("root/{name}; remove it if its machine is over, or give another id");
        place.spoiled(|p| fs::write(p.root().join(name), "").unwrap(), &why);
        place.spoiled(|p| fs::create_dir(p.root().join(name)).unwrap(), &why);
        // Even one that leads nowhere.
        place.spoiled(|p| symlink("/nowhere", p.root().join(name)).unwrap(), &why);
    }
}
