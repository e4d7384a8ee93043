//! The jail's directory: made anew or found [`prepared`], filled, and emptied again of what was made if nothing comes of it.
//!
//! Everything below the base directory is reached by descriptors of directories that this program has opened or made itself, without
//! following a symbolic link. Until the last step the jail is root's alone (mode 0700), so that nobody can change it meanwhile.
//! The exec file is copied: a hard link would let machines share its pages, and let one of them hold on to a program that the host has
//! replaced.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::elf;
use crate::failure::{Context, Failure};
use crate::prepared::{self, Taken};
use crate::sys;

/// Devices that every jail has: `linux/miscdevice.h` and Documentation/admin-guide/devices.txt of the kernel.
const DEVICES: [(&str, u32, u32); 3] = [("kvm", 10, 232), ("net/tun", 10, 200), ("urandom", 1, 9)];
/// Devices that a jail has if the host has them; their numbers are the host's.
const HOST_DEVICES: [&str; 2] = ["userfaultfd", "vhost-net"];
/// Major number of those (`MISC_MAJOR`).
const MISC_MAJOR: u32 = 10;

/// The exec file, open.
#[derive(Debug)]
pub struct ExecFile {
    file: File,
    /// Its name, on the host and in the jail.
    pub name: OsString,
}

impl ExecFile {
    /// Opens the exec file and sees that it is one.
    ///
    /// # Errors
    /// It is no executable file of one name, or reached through a symbolic link.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let refused =
            |what: &str| Failure::refused(format!("--exec-file: {} {what}", path.display()));
        // Some other kind of file may block, or do something, when it is opened.
        let file = open_existing("--exec-file", path, libc::O_PATH)?;
        let kind = File::from(file)
            .metadata()
            .doing(|| format!("--exec-file: cannot look at {}", path.display()))?;
        if !kind.is_file() {
            return Err(refused("is not a regular file; give the program itself"));
        }
        let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = File::from(open_existing("--exec-file", path, flags)?);
        let found = file
            .metadata()
            .doing(|| format!("--exec-file: cannot look at {}", path.display()))?;
        if !found.is_file() {
            return Err(refused("is not a regular file; give the program itself"));
        }
        if found.nlink() > 1 {
            return Err(refused(&format!(
                "has {} hard links, so that it can be changed under another name; give a copy (install -m 755 makes one)",
                found.nlink()
            )));
        }
        if found.mode() & 0o111 == 0 {
            return Err(refused(
                "is not executable; give a program (chmod a+x makes it one)",
            ));
        }
        let name = path.file_name().unwrap_or_default().to_owned();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.+".contains(byte);
        let bytes = name.as_encoded_bytes();
        let taken = [&b"dev"[..], b"run"].contains(&bytes);
        if !(1..=64).contains(&bytes.len()) || !bytes.iter().all(plain) || taken {
            return Err(refused(
                "has a name that a jail cannot have; give a file of up to 64 letters, digits and -_.+",
            ));
        }
        Ok(Self { file, name })
    }
}

/// Opens something of the host's that a flag names. No symbolic link is followed; what to give instead is in the message.
pub fn open_existing(flag: &str, path: &Path, flags: libc::c_int) -> Result<OwnedFd, Failure> {
    sys::open(None, path, flags, 0).map_err(|error| {
        if error.raw_os_error() == Some(libc::ELOOP) {
            let remedy = match path.canonicalize() {
                Ok(real) => format!("give {}", real.display()),
                Err(_) => "give a path without one".to_owned(),
            };
            return Failure::refused(format!(
                "{flag}: {} has a symbolic link in it; {remedy}",
                path.display()
            ));
        }
        Failure::refused(format!("{flag}: cannot open {}: {error}", path.display()))
    })
}

/// A jail. What was made of it is there until [`remove`](Self::remove).
#[derive(Debug)]
pub struct Jail {
    /// Its directory on the host, for messages.
    pub path: PathBuf,
    /// Its root.
    pub root: Rc<OwnedFd>,
    owner: (u32, u32),
    /// What has been made, in its order: where, under which name, directory or not.
    made: Vec<(Rc<OwnedFd>, OsString, bool)>,
    /// What was there before.
    taken: Vec<Taken>,
}

impl Jail {
    /// Makes the directory, with nothing in it, or takes one that is there for `program`. `owner` is whose it will be.
    ///
    /// # Errors
    /// It exists and is not prepared for this; or the directories above it are not fit for jails.
    pub fn make(
        base: &Path,
        program: &OsStr,
        id: &str,
        owner: (u32, u32),
    ) -> Result<Self, Failure> {
        let dir = open_base(base)?;
        fit(dir.as_fd(), base)?;
        let parent = base.join(program);
        // Kept for the next machine: another jailer may be in there at the same time.
        let dir = match sys::make_dir(dir.as_fd(), program, 0o755) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let opened = sys::open_dir(Some(dir.as_fd()), Path::new(program));
                let opened = opened.map_err(|error| {
                    Failure::refused(format!(
                        "--chroot-base-dir: {} is not a directory ({error}); remove it or give another",
                        parent.display()
                    ))
                })?;
                fit(opened.as_fd(), &parent)?;
                opened
            }
            made => {
                made.doing(|| format!("--chroot-base-dir: cannot make {}", parent.display()))?
            }
        };
        let dir = Rc::new(dir);
        let path = parent.join(id);
        let own = match sys::make_dir(dir.as_fd(), OsStr::new(id), 0o755) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Self::take(&dir, path, OsStr::new(id), program, owner);
            }
            made => made.doing(|| format!("--chroot-base-dir: cannot make {}", path.display()))?,
        };
        let own = Rc::new(own);
        let mut jail = Self {
            path,
            root: own.clone(),
            owner,
            made: vec![(dir, id.into(), true)],
            taken: Vec::new(),
        };
        match jail.dir(&own, OsStr::new("root"), 0o700) {
            Ok(root) => jail.root = root,
            Err(error) => return Err(jail.give_up(error)),
        }
        Ok(jail)
    }

    /// A jail whose root somebody has made, and put files of the machine's into.
    fn take(
        dir: &OwnedFd,
        path: PathBuf,
        id: &OsStr,
        program: &OsStr,
        owner: (u32, u32),
    ) -> Result<Self, Failure> {
        let refused = |what: &str| {
            Failure::refused(format!(
                "--id: {} exists already, and {what}; remove it if its machine is over, or give another id",
                path.display()
            ))
        };
        let own = prepared::open(dir, id, owner.0).map_err(|what| refused(&what))?;
        let inside = |what: String| refused(&format!("root in it {what}"));
        let root = prepared::open(&own, OsStr::new("root"), owner.0).map_err(inside)?;
        mounted_for_jails(root.as_fd(), &path.join("root"))?;
        let taken = Taken::take(&root, owner.0).map_err(inside)?;
        let jail = Self {
            path: path.clone(),
            root,
            owner,
            made: Vec::new(),
            taken: vec![taken],
        };
        let mut names = vec![program.to_owned(), "dev".into()];
        for before in ["", "."] {
            let mut pid = OsString::from(before);
            pid.push(program);
            pid.push(".pid");
            names.push(pid);
        }
        for name in names {
            let there = prepared::has(&jail.root, &name);
            if !matches!(there, Ok(false)) {
                let _ = jail.remove();
                let name = name.to_string_lossy();
                return Err(refused(&match there {
                    Err(error) => format!("root/{name} cannot be looked at: {error}"),
                    Ok(_) => format!("has been used or holds what is made for it: root/{name}"),
                }));
            }
        }
        Ok(jail)
    }

    /// Puts in what every jail has, the exec file first.
    ///
    /// # Errors
    /// There is no room, the exec file is none for a jail, or the host makes no device nodes here.
    pub fn fill(&mut self, exec: &ExecFile) -> Result<(), Failure> {
        let root = self.root.clone();
        let path = self.path.join("root");
        let program = self.file(&root, &exec.name).doing(|| {
            format!(
                "--chroot-base-dir: cannot make the exec file in {}",
                path.display()
            )
        })?;
        io::copy(&mut &exec.file, &mut &program)
            .and_then(|_| sys::set_mode(program.as_fd(), 0o555))
            .doing(|| format!("--exec-file: cannot copy it to {}", path.display()))?;
        elf::check(&program).map_err(|what| {
            Failure::refused(format!(
                "--exec-file: {} {what}",
                exec.name.to_string_lossy()
            ))
        })?;
        let make = |doing: &str| {
            format!(
                "--chroot-base-dir: cannot make {doing} in {}",
                path.display()
            )
        };
        let run = match self.dir(&root, OsStr::new("run"), 0o700) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.take_run(&path)?,
            made => made.doing(|| make("run"))?,
        };
        sys::set_owner(run.as_fd(), self.owner).doing(|| make("run"))?;
        let dev = self
            .dir(&root, OsStr::new("dev"), 0o755)
            .doing(|| make("dev"))?;
        let net = self
            .dir(&dev, OsStr::new("net"), 0o755)
            .doing(|| make("dev/net"))?;
        for (name, major, minor) in DEVICES {
            let (dir, file) = match name.strip_prefix("net/") {
                Some(file) => (&net, file),
                None => (&dev, name),
            };
            self.device(dir, file, libc::makedev(major, minor))
                .doing(|| make(&format!("dev/{name}")))?;
        }
        for name in HOST_DEVICES {
            if let Some(number) = host_device(name) {
                self.device(&dev, name, number)
                    .doing(|| make(&format!("dev/{name}")))?;
            }
        }
        Ok(())
    }

    /// The directory `run` that came with a prepared root: the socket's place.
    fn take_run(&mut self, path: &Path) -> Result<Rc<OwnedFd>, Failure> {
        let take = || {
            let run = prepared::open(&self.root, OsStr::new("run"), self.owner.0)?;
            Ok((Taken::take(&run, self.owner.0)?, run))
        };
        let (taken, run) = take().map_err(|what: String| {
            Failure::refused(format!(
                "--id: {}/run exists already, and {what}; remove it",
                path.display()
            ))
        })?;
        self.taken.push(taken);
        Ok(run)
    }

    /// Makes something to mount over: a directory or an empty file, with the directories above it. `target` is below the root.
    ///
    /// # Errors
    /// It is there already.
    pub fn mount_point(&mut self, target: &Path, directory: bool) -> io::Result<()> {
        let mut dir = self.root.clone();
        let mut parts = target.iter().peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            if last && !directory {
                self.file(&dir, part)?;
                break;
            }
            dir = match self.dir(&dir, part, 0o755) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && !last => {
                    Rc::new(sys::open_dir(Some(dir.as_fd()), Path::new(part))?)
                }
                made => made?,
            };
        }
        Ok(())
    }

    /// A new file in the jail's root, with all of `contents` from the moment that it is there.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn note(&mut self, name: &OsStr, contents: &[u8]) -> io::Result<()> {
        let root = self.root.clone();
        let mut draft = OsString::from(".");
        draft.push(name);
        let file = self.file(&root, &draft)?;
        io::Write::write_all(&mut &file, contents)?;
        sys::set_mode(file.as_fd(), 0o644)?;
        self.made.push((root.clone(), name.to_owned(), false));
        sys::rename(root.as_fd(), &draft, name)
    }

    /// Gives the root to the jail's user: the last thing done to it.
    ///
    /// # Errors
    /// The host does not.
    pub fn hand_over(&self) -> io::Result<()> {
        sys::set_owner(self.root.as_fd(), self.owner)
    }

    /// Removes all that was made, and leaves what was there before as it was. This process must not be in the mount namespace in
    /// which something was mounted over it.
    ///
    /// # Errors
    /// Some of it is still there.
    pub fn remove(&self) -> io::Result<()> {
        let mut result = Ok(());
        for (dir, name, directory) in self.made.iter().rev() {
            let flags = if *directory { libc::AT_REMOVEDIR } else { 0 };
            match sys::unlink(dir.as_fd(), name, flags) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    result = result.and(Err(error));
                }
                _ => (),
            }
        }
        for taken in self.taken.iter().rev() {
            result = result.and(taken.give_back());
        }
        result
    }

    fn give_up(&self, error: io::Error) -> Failure {
        let _ = self.remove();
        Failure::host(
            format!("--chroot-base-dir: cannot make {}", self.path.display()),
            &error,
        )
    }

    fn dir(&mut self, at: &Rc<OwnedFd>, name: &OsStr, mode: u32) -> io::Result<Rc<OwnedFd>> {
        let made = sys::make_dir(at.as_fd(), name, mode)?;
        self.made.push((at.clone(), name.to_owned(), true));
        Ok(Rc::new(made))
    }

    fn file(&mut self, at: &Rc<OwnedFd>, name: &OsStr) -> io::Result<File> {
        let flags = libc::O_RDWR | libc::O_CREAT | libc::O_EXCL;
        let made = sys::open(Some(at.as_fd()), Path::new(name), flags, 0o600)?;
        self.made.push((at.clone(), name.to_owned(), false));
        Ok(made.into())
    }

    fn device(&mut self, at: &Rc<OwnedFd>, name: &str, number: libc::dev_t) -> io::Result<()> {
        // Noted first: the node may be there without its owner.
        self.made.push((at.clone(), name.into(), false));
        sys::make_device(at.as_fd(), OsStr::new(name), number, self.owner)
    }
}

/// Opens the base directory. Its last part is made if it is not there, as `/srv/jailer` is not at first.
fn open_base(base: &Path) -> Result<OwnedFd, Failure> {
    match sys::open_dir(None, base) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) if error.raw_os_error() == Some(libc::ENOTDIR) => {
            return Err(Failure::refused(format!(
                "--chroot-base-dir: {} is not a directory; give one",
                base.display()
            )));
        }
        Err(_) => {
            return open_existing(
                "--chroot-base-dir",
                base,
                libc::O_RDONLY | libc::O_DIRECTORY,
            );
        }
        Ok(dir) => return Ok(dir),
    }
    let (Some(parent), Some(name)) = (base.parent(), base.file_name()) else {
        return Err(Failure::refused(format!(
            "--chroot-base-dir: there is no directory {}; make it",
            base.display()
        )));
    };
    let parent = match parent.as_os_str().is_empty() {
        true => Path::new("."),
        false => parent,
    };
    let above = open_existing(
        "--chroot-base-dir",
        parent,
        libc::O_RDONLY | libc::O_DIRECTORY,
    )?;
    fit(above.as_fd(), parent)?;
    match sys::make_dir(above.as_fd(), name, 0o755) {
        // Another jailer was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            sys::open_dir(Some(above.as_fd()), Path::new(name))
        }
        made => made,
    }
    .doing(|| format!("--chroot-base-dir: cannot make {}", base.display()))
}

/// A directory that jails can be made in: nobody else can change what is in it, and its mount takes devices and programs.
fn fit(dir: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
    let refused =
        |what: &str| Failure::refused(format!("--chroot-base-dir: {} {what}", path.display()));
    let found = dir
        .try_clone_to_owned()
        .and_then(|dir| File::from(dir).metadata())
        .doing(|| format!("--chroot-base-dir: cannot look at {}", path.display()))?;
    if found.uid() != 0 && found.uid() != sys::effective_user() {
        return Err(refused(
            "belongs to another user, who can change what is in it; give a directory of root's",
        ));
    }
    // In a sticky one, as /tmp is, others can add names but not take ours.
    if found.mode() & 0o022 != 0 && found.mode() & libc::S_ISVTX == 0 {
        return Err(refused(
            "can be written to by others; take that from them (chmod go-w) or give another directory",
        ));
    }
    mounted_for_jails(dir, path)
}

/// The directory's mount takes devices and programs.
fn mounted_for_jails(dir: BorrowedFd<'_>, path: &Path) -> Result<(), Failure> {
    let flags = sys::mount_flags(dir)
        .doing(|| format!("--chroot-base-dir: cannot look at {}", path.display()))?;
    for (flag, name) in [
        (libc::ST_RDONLY, "ro"),
        (libc::ST_NODEV, "nodev"),
        (libc::ST_NOEXEC, "noexec"),
    ] {
        if flags & flag != 0 {
            return Err(Failure::refused(format!(
                "--chroot-base-dir: {} is on a file system that is mounted {name}; give a directory on another",
                path.display()
            )));
        }
    }
    Ok(())
}

/// Number of a device of the host's in `/dev`, if it has it.
fn host_device(name: &str) -> Option<libc::dev_t> {
    let found = Path::new("/dev").join(name).symlink_metadata().ok()?;
    let number = found.rdev();
    (found.file_type().is_char_device() && libc::major(number) == MISC_MAJOR).then_some(number)
}
