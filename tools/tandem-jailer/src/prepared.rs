//! A jail's directory that is there already, with the machine's files in it, as programs written for Firecracker's jailer make it:
//! what it must be, and what it was.
//!
//! It must be real directories that only root or the jail's user can change, and hold nothing that this program makes: so a jail that
//! has been used is none. From the user it is taken before it is looked into, and given back if nothing comes of it.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::rc::Rc;

use crate::sys;

/// A directory that is root's alone for now.
#[derive(Debug)]
pub struct Taken {
    dir: Rc<OwnedFd>,
    owner: (u32, u32),
    mode: u32,
}

impl Taken {
    /// Takes `dir` from whoever has it.
    ///
    /// # Errors
    /// It is not `user`'s or root's, others may write to it, or the host says no: words that follow the directory's name.
    pub fn take(dir: &Rc<OwnedFd>, user: u32) -> Result<Self, String> {
        let found = look(dir, user)?;
        let taken = Self {
            dir: dir.clone(),
            owner: (found.uid(), found.gid()),
            mode: found.mode() & 0o7777,
        };
        // The group does not matter: it has no right to it.
        let take = || {
            sys::set_owner(dir.as_fd(), (sys::effective_user(), u32::MAX))?;
            sys::set_mode(dir.as_fd(), 0o700)
        };
        match take() {
            Ok(()) => Ok(taken),
            Err(error) => {
                let _ = taken.give_back();
                Err(format!("cannot be taken from its owner: {error}"))
            }
        }
    }

    /// Has it be what it was.
    ///
    /// # Errors
    /// The host says no.
    pub fn give_back(&self) -> io::Result<()> {
        sys::set_mode(self.dir.as_fd(), self.mode)?;
        sys::set_owner(self.dir.as_fd(), self.owner)
    }
}

/// Opens a directory that is there.
///
/// # Errors
/// It is none, or not only root and `user` can change it: words that follow its name.
pub fn open(above: &OwnedFd, name: &OsStr, user: u32) -> Result<Rc<OwnedFd>, String> {
    let dir = sys::open_dir(Some(above.as_fd()), Path::new(name)).map_err(|error| {
        match error.raw_os_error() {
            Some(libc::ENOENT) => "is not there".to_owned(),
            // A symbolic link is either, as the kernel looks at the one first or the other.
            Some(libc::ENOTDIR | libc::ELOOP) => "is not a directory".to_owned(),
            _ => format!("cannot be opened: {error}"),
        }
    })?;
    look(&dir, user)?;
    Ok(Rc::new(dir))
}

/// Whether there is anything of that name in `dir`.
///
/// # Errors
/// It is not known.
pub fn has(dir: &OwnedFd, name: &OsStr) -> io::Result<bool> {
    match sys::open(Some(dir.as_fd()), Path::new(name), libc::O_PATH, 0) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => Ok(true),
        Err(error) => Err(error),
    }
}

fn look(dir: &OwnedFd, user: u32) -> Result<Metadata, String> {
    let found = dir
        .try_clone()
        .and_then(|dir| File::from(dir).metadata())
        .map_err(|error| format!("cannot be looked at: {error}"))?;
    if ![0, sys::effective_user(), user].contains(&found.uid()) {
        return Err(format!(
            "belongs to user {}, neither root nor the machine's",
            found.uid()
        ));
    }
    if found.mode() & 0o022 != 0 {
        return Err("can be written to by others".to_owned());
    }
    Ok(found)
}
