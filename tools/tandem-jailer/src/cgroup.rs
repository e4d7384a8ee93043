//! Control groups: where the host has them, a group for the machine, and what is written to it.
//!
//! In version 2 there is one hierarchy. Controllers are enabled from its root down to the group's parent. In version 1 each
//! controller has a hierarchy, alone or with others, and a group is made in each that is asked for; a cpuset has to have CPUs and
//! memory nodes before a process may enter, so that what is empty there gets its parent's.
//!
//! Sources: cgroups(7); Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/cpusets.rst of the kernel.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::failure::{Context, Failure};

/// A version of control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A hierarchy for each controller.
    V1,
    /// One hierarchy.
    V2,
}

/// `FILE=VALUE` from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    file: String,
    value: String,
}

impl FromStr for Setting {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').filter(|(_, value)| !value.is_empty());
        let Some((file, value)) = parts else {
            return Err("give FILE=VALUE, such as memory.max=256M".to_owned());
        };
        // "cgroup.procs" and its like are not limits, but there are those that are: cgroup.max.depth.
        let plain = file
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.');
        let parts = file.split('.').count();
        if !plain || parts < 2 || file.split('.').any(str::is_empty) {
            return Err("give a file of a controller, such as memory.max or cpu.shares".to_owned());
        }
        if value.contains(['\n', '\0']) {
            return Err("give a value of one line".to_owned());
        }
        Ok(Self {
            file: file.to_owned(),
            value: value.to_owned(),
        })
    }
}

impl Setting {
    fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

/// Where the host has a hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    dir: PathBuf,
    /// Mount options: in version 1, its controllers are among them.
    options: Vec<String>,
}

/// The hierarchies that a file like `/proc/mounts` names. What is mounted over another thing comes last and counts.
fn hierarchies(mounts: &[u8]) -> Vec<Hierarchy> {
    mounts
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let mut words = line.split(|byte| *byte == b' ').skip(1);
            let (dir, kind, options) = (words.next()?, words.next()?, words.next()?);
            let version = match kind {
                b"cgroup" => Version::V1,
                b"cgroup2" => Version::V2,
                _ => return None,
            };
            let options = String::from_utf8_lossy(options);
            Some(Hierarchy {
                version,
                dir: unescape(dir),
                options: options.split(',').map(str::to_owned).collect(),
            })
        })
        .collect()
}

/// A path as `/proc/mounts` has it: space, tab, line feed and backslash as three octal digits (`seq_path` in the kernel).
fn unescape(mut text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    while let Some((first, rest)) = text.split_first() {
        let octal = rest
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match octal {
            Some(byte) => {
                path.push(byte);
                text = rest.get(3..).unwrap_or_default();
            }
            None => {
                path.push(*first);
                text = rest;
            }
        }
    }
    OsString::from_vec(path).into()
}

impl Hierarchy {
    fn has(&self, controller: &str) -> bool {
        match self.version {
            Version::V1 => self.options.iter().any(|option| option == controller),
            // What begins with "cgroup." is there in every group.
            Version::V2 => {
                controller == "cgroup" || lists(&self.dir.join("cgroup.controllers"), controller)
            }
        }
    }
}

/// Whether a file with a list has that word.
fn lists(file: &Path, word: &str) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.split_whitespace().any(|found| found == word))
}

/// What is asked for on the command line.
#[derive(Debug)]
pub struct Request<'a> {
    /// Name of the group.
    pub id: &'a str,
    /// `--cgroup`.
    pub settings: &'a [Setting],
    /// `--cgroup-version`.
    pub version: Option<Version>,
    /// `--parent-cgroup`.
    pub parent: Option<&'a Path>,
    /// Where that is not said.
    pub default_parent: &'a Path,
}

/// The groups of a machine, and what has been done for them.
#[derive(Debug, Default)]
pub struct Groups {
    /// Directories made, in their order.
    made: Vec<PathBuf>,
    /// `cgroup.procs` of the groups to enter, open, with their names.
    doors: Vec<(File, PathBuf)>,
    /// `cgroup.procs` of the groups that were left.
    homes: Vec<PathBuf>,
}

impl Groups {
    /// Makes the groups and writes to them. Nothing is in them before [`enter`](Self::enter). What fails is to be followed by
    /// [`undo`](Self::undo).
    ///
    /// # Errors
    /// The host has no such controller, the group is in use, or it does not take a value.
    pub fn make(&mut self, request: &Request<'_>) -> Result<(), Failure> {
        if request.settings.is_empty() && request.parent.is_none() {
            return Ok(());
        }
        let mounts = fs::read("/proc/mounts").doing(|| "cannot read /proc/mounts".to_owned())?;
        let found = hierarchies(&mounts);
        let home = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        for (hierarchy, settings) in choose(&found, request)? {
            let parent = request.parent.unwrap_or(request.default_parent);
            let group = if settings.is_empty() {
                self.existing(&hierarchy.dir.join(parent))?
            } else {
                self.new_group(hierarchy, parent, request.id, &settings)?
            };
            let door = group.join("cgroup.procs");
            let file = File::options().write(true).open(&door);
            let file = file.doing(|| format!("--cgroup: cannot open {}", door.display()))?;
            self.doors.push((file, door));
            self.homes.push(home_of(hierarchy, &home));
        }
        Ok(())
    }

    fn existing(&self, group: &Path) -> Result<PathBuf, Failure> {
        if group.is_dir() {
            Ok(group.to_owned())
        } else {
            Err(Failure::refused(format!(
                "--parent-cgroup: there is no control group {}; make it, or give --cgroup to have one made",
                group.display()
            )))
        }
    }

    fn new_group(
        &mut self,
        hierarchy: &Hierarchy,
        parent: &Path,
        id: &str,
        settings: &[&Setting],
    ) -> Result<PathBuf, Failure> {
        let mut dir = hierarchy.dir.clone();
        for part in parent {
            enable(hierarchy, &dir, settings)?;
            dir.push(part);
            match fs::create_dir(&dir) {
                Ok(()) => self.made.push(dir.clone()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
                Err(error) => return Err(cannot_make("--parent-cgroup", &dir, &error)),
            }
            fill_cpuset(hierarchy, &dir, settings)?;
        }
        enable(hierarchy, &dir, settings)?;
        dir.push(id);
        // Left from a machine that is over: a group with a process in it is not removed.
        if let Err(error) = fs::remove_dir(&dir)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(Failure::refused(format!(
                "--id: the control group {} exists and is in use ({error}); give another id",
                dir.display()
            )));
        }
        fs::create_dir(&dir).map_err(|error| cannot_make("--cgroup", &dir, &error))?;
        self.made.push(dir.clone());
        fill_cpuset(hierarchy, &dir, settings)?;
        for Setting { file, value } in settings {
            write(&dir.join(file), value).doing(|| {
                format!(
                    "--cgroup: cannot write {value} to {}",
                    dir.join(file).display()
                )
            })?;
        }
        Ok(dir)
    }

    /// Puts this process into the groups.
    ///
    /// # Errors
    /// A group does not take it.
    pub fn enter(&self) -> Result<(), Failure> {
        for (file, name) in &self.doors {
            // 0 is whoever writes it, in any PID namespace.
            let entered = (&mut &*file).write_all(b"0");
            entered.doing(|| format!("--cgroup: cannot enter by {}", name.display()))?;
        }
        Ok(())
    }

    /// Puts this process back where it was and removes what was made. What is in use stays.
    pub fn undo(&self) {
        for home in &self.homes {
            // It may never have left.
            let _ = write(home, "0");
        }
        for dir in self.made.iter().rev() {
            let _ = fs::remove_dir(dir);
        }
    }
}

fn cannot_make(flag: &str, dir: &Path, error: &io::Error) -> Failure {
    Failure::host(
        format!("{flag}: cannot make the control group {}", dir.display()),
        error,
    )
}

/// Which hierarchies to make a group in, with what is written there.
fn choose<'h, 's>(
    found: &'h [Hierarchy],
    request: &Request<'s>,
) -> Result<Vec<(&'h Hierarchy, Vec<&'s Setting>)>, Failure> {
    let of = |version, controller: &str| {
        found
            .iter()
            .rev()
            .find(|hierarchy| hierarchy.version == version && hierarchy.has(controller))
    };
    let all_in = |version| {
        request
            .settings
            .iter()
            .all(|setting| of(version, setting.controller()).is_some())
    };
    let version = match request.version {
        Some(version) => version,
        None if !request.settings.is_empty() && all_in(Version::V1) => Version::V1,
        None => Version::V2,
    };
    if request.settings.is_empty() {
        // Firecracker enters the parent itself in version 2, and does nothing in version 1.
        return match of(version, "cgroup").filter(|_| version == Version::V2) {
            Some(hierarchy) => Ok(vec![(hierarchy, Vec::new())]),
            None => Err(Failure::refused(
                "--parent-cgroup: without --cgroup, it needs control groups of version 2; give --cgroup FILE=VALUE",
            )),
        };
    }
    let mut chosen: Vec<(&Hierarchy, Vec<&Setting>)> = Vec::new();
    for setting in request.settings {
        let controller = setting.controller();
        let Some(hierarchy) = of(version, controller) else {
            let (number, other) = match version {
                Version::V1 => (1, Version::V2),
                Version::V2 => (2, Version::V1),
            };
            let remedy = match of(other, controller) {
                Some(_) => "give the other --cgroup-version, or none",
                None => "mount it, or leave it out",
            };
            return Err(Failure::refused(format!(
                "--cgroup: this host has no controller {controller} in control groups of version {number}; {remedy}"
            )));
        };
        match chosen
            .iter_mut()
            .find(|(known, _)| known.dir == hierarchy.dir)
        {
            Some((_, settings)) => settings.push(setting),
            None => chosen.push((hierarchy, vec![setting])),
        }
    }
    Ok(chosen)
}

/// Version 2: has the children of `dir` have the controllers.
fn enable(hierarchy: &Hierarchy, dir: &Path, settings: &[&Setting]) -> Result<(), Failure> {
    if hierarchy.version == Version::V1 {
        return Ok(());
    }
    let file = dir.join("cgroup.subtree_control");
    for controller in settings.iter().map(|setting| setting.controller()) {
        if controller != "cgroup" && !lists(&file, controller) {
            write(&file, &format!("+{controller}")).doing(|| {
                format!(
                    "--cgroup: cannot enable {controller} in {} (a group with processes of its own can have none: give another --parent-cgroup)",
                    file.display()
                )
            })?;
        }
    }
    Ok(())
}

/// Version 1: a new cpuset has the CPUs and memory nodes of its parent.
fn fill_cpuset(hierarchy: &Hierarchy, dir: &Path, settings: &[&Setting]) -> Result<(), Failure> {
    let concerned = settings
        .iter()
        .any(|setting| setting.controller() == "cpuset");
    if hierarchy.version == Version::V2 || !concerned {
        return Ok(());
    }
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = dir.join(name);
        let read = |file: &Path| fs::read_to_string(file).map(|text| text.trim().to_owned());
        let own = read(&file).doing(|| format!("--cgroup: cannot read {}", file.display()))?;
        if own.is_empty() {
            let parents = dir.parent().map(|parent| read(&parent.join(name)));
            let value = parents.and_then(Result::ok).unwrap_or_default();
            write(&file, &value)
                .doing(|| format!("--cgroup: cannot write {value} to {}", file.display()))?;
        }
    }
    Ok(())
}

/// `cgroup.procs` of the group that this process is in, in a hierarchy; `own` is `/proc/self/cgroup`. The hierarchy's root, where that
/// cannot be told.
fn home_of(hierarchy: &Hierarchy, own: &str) -> PathBuf {
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let same = match hierarchy.version {
            Version::V1 => controllers
                .split(',')
                .any(|name| !name.is_empty() && hierarchy.has(name)),
            Version::V2 => controllers.is_empty(),
        };
        same.then(|| path.trim_start_matches('/').to_owned())
    });
    hierarchy
        .dir
        .join(path.unwrap_or_default())
        .join("cgroup.procs")
}

/// Writes a value in one piece to a file that is there.
fn write(file: &Path, value: &str) -> io::Result<()> {
    File::options()
        .write(true)
        .open(file)?
        .write_all(value.as_bytes())
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
