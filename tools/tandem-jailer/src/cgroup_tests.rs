use super::*;

const HYBRID: &[u8] = b"\
proc /proc proc rw,relatime 0 0
tmpfs /sys/fs/cgroup tmpfs rw,relatime,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,nodev,noexec,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,xattr,name=systemd 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime,nsdelegate 0 0
/dev/vda / ext4 rw 0 0
";

fn request(settings: &[Setting], version: Option<Version>) -> Request<'_> {
    Request {
        id: "a",
        settings,
        version,
        parent: None,
        default_parent: Path::new("tandem-vmm"),
    }
}

fn settings(texts: &[&str]) -> Vec<Setting> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn hierarchies_are_found_in_mounts() {
    let found = hierarchies(HYBRID);
    let dirs: Vec<_> = found
        .iter()
        .map(|hierarchy| (hierarchy.version, hierarchy.dir.to_str().unwrap()))
        .collect();
    assert_eq!(
        dirs,
        [
            (Version::V1, "/sys/fs/cgroup/cpu,cpuacct"),
            (Version::V1, "/sys/fs/cgroup/memory"),
            (Version::V1, "/sys/fs/cgroup/systemd"),
            (Version::V2, "/sys/fs/cgroup/unified"),
        ]
    );
    assert!(found[0].has("cpu") && found[0].has("cpuacct"));
    // No controller is taken for another whose name it begins with.
    assert!(!found[0].has("cpuset") && !found[0].has("cp"));
    assert!(found[1].has("memory") && !found[1].has("cpu"));
}

#[test]
fn lines_that_are_none_are_passed_over() {
    for text in [
        &b""[..],
        b"\n\n",
        b"cgroup",
        b"cgroup /x",
        b"cgroup /x cgroup",
        b"a b c d e f",
        b"\xff \xff cgroup3 \xff",
    ] {
        assert_eq!(hierarchies(text), []);
    }
}

#[test]
fn mount_points_are_unescaped() {
    for (text, expected) in [
        (&b"/a"[..], &b"/a"[..]),
        (br"/a\040b\011c\134d", b"/a b\tc\\d"),
        (br"/a\04", br"/a\04"),
        (br"/a\999", br"/a\999"),
        (br"\", br"\"),
    ] {
        assert_eq!(unescape(text).into_os_string().into_vec(), expected);
    }
}

#[test]
fn version_1_is_chosen_where_it_has_all() {
    let found = hierarchies(HYBRID);
    let wanted = settings(&[
        "memory.limit_in_bytes=1G",
        "cpu.shares=10",
        "cpuacct.usage=0",
    ]);
    let chosen = choose(&found, &request(&wanted, None)).unwrap();
    let chosen: Vec<_> = chosen
        .iter()
        .map(|(hierarchy, settings)| (hierarchy.dir.to_str().unwrap(), settings.len()))
        .collect();
    // Controllers that are mounted together have one group.
    assert_eq!(
        chosen,
        [
            ("/sys/fs/cgroup/memory", 1),
            ("/sys/fs/cgroup/cpu,cpuacct", 2)
        ]
    );
}

#[test]
fn what_the_host_has_not_is_refused_with_a_remedy() {
    let found = hierarchies(HYBRID);
    let wanted = settings(&["memory.max=1G"]);
    // No file is there to say that version 2 has the controller.
    let error = choose(&found, &request(&wanted, Some(Version::V2))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--cgroup: this host has no controller memory in control groups of version 2; give the other --cgroup-version, or none"
    );
    let wanted = settings(&["blkio.weight=100"]);
    let error = choose(&found, &request(&wanted, Some(Version::V1))).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--cgroup: this host has no controller blkio in control groups of version 1; mount it, or leave it out"
    );
    let mut alone = request(&[], Some(Version::V1));
    alone.parent = Some(Path::new("vms"));
    assert!(choose(&found, &alone).is_err());
    assert!(choose(&[], &request(&settings(&["cpu.max=1"]), None)).is_err());
}

#[test]
fn version_2_is_asked_for_its_controllers() {
    let dir = tempfile::TempDir::new().unwrap();
    fs::write(
        dir.path().join("cgroup.controllers"),
        "cpuset cpu io memory\n",
    )
    .unwrap();
    let line = format!("cgroup2 {} cgroup2 rw 0 0\n", dir.path().display());
    let found = hierarchies(line.as_bytes());
    let wanted = settings(&[
        "memory.max=1G",
        "cpu.max=50000 100000",
        "cgroup.max.depth=0",
    ]);
    let chosen = choose(&found, &request(&wanted, None)).unwrap();
    assert_eq!((chosen.len(), chosen[0].1.len()), (1, 3));
    assert!(choose(&found, &request(&settings(&["mem.max=1"]), None)).is_err());
    let mut alone = request(&[], None);
    alone.parent = Some(Path::new("vms"));
    assert_eq!(choose(&found, &alone).unwrap().len(), 1);
}

#[test]
fn settings_are_a_file_and_a_value() {
    let setting: Setting = "io.max=8:16 rbps=1048576".parse().unwrap();
    assert_eq!(
        (setting.file.as_str(), setting.controller()),
        ("io.max", "io")
    );
    assert_eq!(setting.value, "8:16 rbps=1048576");
    assert!("memory.memsw.limit_in_bytes=1".parse::<Setting>().is_ok());
    assert!("hugetlb.2MB.max=1".parse::<Setting>().is_ok());
    for bad in [
        "",
        "memory.max",
        "memory.max=",
        "=1",
        "memory=1",
        "../cpu.max=1",
        "cpu/x.y=1",
        ".max=1",
        "cpu.=1",
        "cpu..max=1",
        "cpu.max=1\n2",
    ] {
        assert!(bad.parse::<Setting>().is_err(), "{bad}");
    }
}

#[test]
fn the_way_home_is_known() {
    let found = hierarchies(HYBRID);
    let own = "4:memory:/user/me\n3:cpu,cpuacct:/\n1:name=systemd:/s\n0::/user.slice/a:b\n";
    let home = |index: usize| home_of(&found[index], own).to_str().unwrap().to_owned();
    assert_eq!(home(0), "/sys/fs/cgroup/cpu,cpuacct/cgroup.procs");
    assert_eq!(home(1), "/sys/fs/cgroup/memory/user/me/cgroup.procs");
    assert_eq!(
        home(3),
        "/sys/fs/cgroup/unified/user.slice/a:b/cgroup.procs"
    );
    assert_eq!(
        home_of(&found[1], "").to_str().unwrap(),
        "/sys/fs/cgroup/memory/cgroup.procs"
    );
}
