//! The cache directory: what makes an entry trustworthy, how one is made, and when one goes.
//!
//! For a key K there are up to three files: `K.elf` (the entry), `K.lock` (who is making it) and `K.tmp` (being made).
//! Links `ID.key` remember the key of the kernel file with the identity ID (see `identity`), so that it is hashed once.
//!
//! **Made**: under an exclusive `flock` on `K.lock`, which the kernel releases when its holder dies. `K.tmp` is written,
//! made read-only, synced, then renamed to `K.elf`: a crash at any point leaves no entry or a whole one.
//!
//! **Trusted**: a directory that only its owner can write to, and an entry that is a regular file (no symbolic link),
//! owned by us or root, writable by nobody, and of exactly the length that the bzImage declares. That length is under
//! the content hash in the key, so it cannot drift from the entry's name. Contents are not hashed again on use: it
//! would cost more than all the rest of a start (tens of MB), and who could change them unseen (the owner, root) could
//! change the VMM as well. Anything else under an entry's name is replaced.
//!
//! **Gone**: the entries used longest ago, when a new one is made. Unlinking is safe while VMs run from an entry:
//! the file lives until its last mapping and descriptor are gone.

use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::identity::FileId;

/// How long to wait for another process that makes the same entry. A dead one releases its lock at once; this is for
/// one that is stopped or on a disk that hangs.
const LOCK_PATIENCE: Duration = Duration::from_secs(30);
const LOCK_POLL: Duration = Duration::from_millis(2);

/// A cache directory that was found fit to be trusted.
pub(super) struct Store<'a> {
    dir: &'a Path,
}

/// The right to make one entry; released on drop or death.
pub(super) struct EntryLock {
    _file: File,
}

/// An entry in the making. Dropped before [`NewEntry::publish`], it leaves nothing behind.
pub(super) struct NewEntry {
    pub(super) file: File,
    temporary: PathBuf,
    published: bool,
}

impl<'a> Store<'a> {
    /// The directory as it is, if it exists: enough for a hit.
    pub(super) fn open(dir: &'a Path) -> io::Result<Self> {
        let meta = fs::metadata(dir)?;
        if !meta.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        if !owner_is_trusted(&meta) || meta.mode() & 0o022 != 0 {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "others can write to it: it must be yours (or root's) with mode 0700",
            ));
        }
        Ok(Self { dir })
    }

    /// The same, making the directory and its parents (mode 0700) if need be.
    pub(super) fn create(dir: &'a Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        Self::open(dir)
    }

    fn path(&self, key: &str, kind: &str) -> PathBuf {
        self.dir.join(format!("{key}.{kind}"))
    }

    /// The entry for `key`, open for reading, if there is one that can be trusted and is `len` bytes long.
    pub(super) fn lookup(&self, key: &str, len: u64) -> Option<File> {
        let file = open_no_follow(&self.path(key, "elf")).ok()?;
        let meta = file.metadata().ok()?;
        let trusted = meta.is_file()
            && owner_is_trusted(&meta)
            && meta.permissions().mode() & 0o222 == 0
            && meta.len() == len;
        if !trusted {
            return None;
        }
        // What pruning goes by, whatever the mount says about access times. Not ours to write in a shared cache of
        // root's, and then not ours to prune.
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
        Some(file)
    }

    /// The key of the file that `id` says, if it was remembered.
    pub(super) fn recall(&self, id: &FileId) -> Option<String> {
        let target = fs::read_link(self.path(id.name(), "key")).ok()?;
        target.to_str().filter(|key| is_key(key)).map(str::to_owned)
    }

    /// Remembers that the file `id` has `key`. A symbolic link to nowhere: made at once or not at all, read in one call.
    pub(super) fn remember(&self, id: &FileId, key: &str) -> io::Result<()> {
        let path = self.path(id.name(), "key");
        remove(&path)?;
        symlink(key, path)
    }

    /// Waits for the right to make the entry for `key`.
    ///
    /// # Errors
    /// `TimedOut` if somebody else holds it for too long, or what the directory says.
    pub(super) fn lock(&self, key: &str) -> io::Result<EntryLock> {
        let path = self.path(key, "lock");
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let file = open_lock(&path)?;
            loop {
                match file.try_lock() {
                    Ok(()) => break,
                    Err(TryLockError::Error(e)) => return Err(e),
                    Err(TryLockError::WouldBlock) if Instant::now() > deadline => {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "another process is making the entry and is stuck",
                        ));
                    }
                    Err(TryLockError::WouldBlock) => thread::sleep(LOCK_POLL),
                }
            }
            // Pruning may have removed the name between our open and our lock: then we hold a lock that nobody sees.
            if same_file(&path, &file) {
                return Ok(EntryLock { _file: file });
            }
        }
    }

    /// Starts the entry for `key`. Holding its lock makes the temporary name ours; what a dead maker left is removed.
    pub(super) fn start(&self, key: &str, _lock: &EntryLock) -> io::Result<NewEntry> {
        let temporary = self.path(key, "tmp");
        remove(&temporary)?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        Ok(NewEntry {
            file,
            temporary,
            published: false,
        })
    }

    /// Makes `entry` the entry for `key`, and returns it open for reading.
    pub(super) fn publish(&self, key: &str, mut entry: NewEntry) -> io::Result<File> {
        entry.file.set_permissions(Permissions::from_mode(0o444))?;
        // Before the name: after a crash, a name that is there must mean contents that are there.
        entry.file.sync_all()?;
        // Before the name as well: nobody can prune it from under us.
        let readable = open_no_follow(&entry.temporary)?;
        let target = self.path(key, "elf");
        if fs::symlink_metadata(&target).is_ok_and(|meta| meta.is_dir()) {
            fs::remove_dir_all(&target)?;
        }
        fs::rename(&entry.temporary, &target)?;
        entry.published = true;
        Ok(readable)
    }

    /// Removes all but the `keep` entries used last, never that of `key`, and with them what dead makers left.
    /// Entries in the making are left alone. Errors are not the caller's business: the next miss tries again.
    pub(super) fn prune(&self, key: &str, keep: usize) {
        let Ok(listing) = fs::read_dir(self.dir) else {
            return;
        };
        let (mut entries, mut orphans, mut links) = (Vec::new(), Vec::new(), Vec::new());
        for item in listing.flatten() {
            let name = item.file_name();
            let Some((other, kind)) = name.to_str().and_then(|n| n.rsplit_once('.')) else {
                continue;
            };
            if kind == "key" {
                links.push(item.path());
                continue;
            }
            if other == key || !is_key(other) {
                continue;
            }
            match kind {
                "elf" => {
                    let used = item
                        .metadata()
                        .ok()
                        .map(|m| (m.atime(), m.atime_nsec()).max((m.mtime(), m.mtime_nsec())));
                    entries.push((used, other.to_owned()));
                }
                "tmp" | "lock" => orphans.push(other.to_owned()),
                _ => {}
            }
        }
        entries.sort_by(|a, b| b.cmp(a));
        let kept = keep.saturating_sub(1).min(entries.len());
        let old = entries.split_off(kept);
        orphans.retain(|o| !entries.iter().any(|(_, e)| e == o));
        for other in old.into_iter().map(|(_, other)| other).chain(orphans) {
            self.evict(&other);
        }
        for link in links {
            let alive = fs::read_link(&link)
                .is_ok_and(|to| to.to_str().is_some_and(|k| self.path(k, "elf").exists()));
            if !alive {
                let _ = remove(&link);
            }
        }
    }

    /// Removes all files of `key` unless somebody is making the entry.
    fn evict(&self, key: &str) {
        let path = self.path(key, "lock");
        let Ok(lock) = open_lock(&path) else { return };
        if lock.try_lock().is_ok() && same_file(&path, &lock) {
            // The lock's name goes last: whoever made a new one could be making the entry.
            for kind in ["elf", "tmp", "lock"] {
                let _ = remove(&self.path(key, kind));
            }
        }
    }
}

impl Drop for NewEntry {
    fn drop(&mut self) {
        if !self.published {
            let _ = remove(&self.temporary);
        }
    }
}

/// Keys are hexadecimal, a dash and a version: nothing else in the directory is ours to remove.
fn is_key(name: &str) -> bool {
    name.len() > 64
        && name
            .bytes()
            .all(|b| b.is_ascii_hexdigit() || b == b'-' || b == b'v')
}

fn open_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// `O_NONBLOCK`: a FIFO under an entry's name must not hold up a start.
fn open_no_follow(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
}

fn same_file(path: &Path, file: &File) -> bool {
    match (fs::symlink_metadata(path), file.metadata()) {
        (Ok(a), Ok(b)) => a.dev() == b.dev() && a.ino() == b.ino(),
        _ => false,
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn owner_is_trusted(meta: &fs::Metadata) -> bool {
    // SAFETY: geteuid has no arguments, touches no memory and cannot fail.
    let us = unsafe { libc::geteuid() };
    meta.uid() == us || meta.uid() == 0
}
