//! Which file is which, without reading it: what lets a hit skip hashing the kernel.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a file must have been left alone before its identity stands for its contents. Two writes within one tick of
/// the filesystem's clock leave the same times: 10 ms on Linux's own filesystems, up to 2 s on foreign ones.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// Device, inode, size, and times of modification and change of a file.
///
/// As good as a hash of its contents once [`FileId::settled`]: programs cannot set the change time, and every write and
/// every replacement moves it. What remains is a program that keeps on writing through a shared mapping made before the
/// kernel was first started from the file, and writes to the raw disk below.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FileId {
    name: String,
    changed: Duration,
}

impl FileId {
    /// The identity in `meta`.
    pub(super) fn of(meta: &Metadata) -> Self {
        let name = format!(
            "{:x}-{:x}-{:x}-{:x}.{:x}-{:x}.{:x}",
            meta.dev(),
            meta.ino(),
            meta.size(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.ctime(),
            meta.ctime_nsec(),
        );
        let changed = u64::try_from(meta.ctime()).unwrap_or(u64::MAX);
        Self {
            name,
            changed: Duration::from_secs(changed),
        }
    }

    /// As a file name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the last change was long enough before `now`. A change in the future is not.
    pub(super) fn settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        now.checked_sub(self.changed)
            .is_some_and(|age| age >= SETTLED_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_changes_it_and_time_settles_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let id = || FileId::of(&std::fs::metadata(&path).unwrap());
        std::fs::write(&path, "1").unwrap();
        let first = id();
        let now = SystemTime::now();
        assert!(!first.settled(now));
        assert!(first.settled(now + SETTLED_AFTER + Duration::from_secs(1)));
        assert!(!first.settled(now - Duration::from_secs(3600)));
        assert!(!first.settled(UNIX_EPOCH));
        std::thread::sleep(Duration::from_millis(30));
        std::fs::write(&path, "2").unwrap();
        assert_ne!(id(), first);
    }
}
