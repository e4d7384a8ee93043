//! Opening and locking, on real files.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use tempfile::TempDir;

use super::*;

fn options(path: &Path, read_only: bool) -> DiskOptions {
    DiskOptions {
        path: path.into(),
        read_only,
        direct: false,
        format: Format::Raw,
        backing: None,
        flushes: true,
    }
}

fn file(dir: &TempDir, name: &str, bytes: u64) -> PathBuf {
    let path = dir.path().join(name);
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

fn error(path: &Path, read_only: bool) -> String {
    match open(&options(path, read_only)) {
        Ok(_) => panic!("{} can be opened", path.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_writable_disk_has_one_user_and_a_read_only_one_many() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, "disk", 4096);
    let writer = open(&options(&path, false)).unwrap();
    assert!(error(&path, false).contains("is in use"));
    assert!(error(&path, true).contains("may write"));
    let link = dir.path().join("link");
    symlink(&path, &link).unwrap();
    assert!(error(&link, false).contains("is in use"), "by another name");
    testing::close(writer);
    let reader = open(&options(&path, true)).unwrap();
    let _another = open(&options(&path, true)).unwrap();
    assert!(error(&path, false).contains("is in use"));
    testing::close(reader);
    assert!(error(&path, false).contains("is in use"));
}

#[test]
fn what_is_no_disk_is_refused() {
    let dir = TempDir::new().unwrap();
    assert!(error(&dir.path().join("nothing"), false).contains("No such file"));
    for read_only in [false, true] {
        assert!(error(dir.path(), read_only).contains("neither a regular file"));
        assert!(error(Path::new("/dev/null"), read_only).contains("neither a regular file"));
        let fifo = dir.path().join(format!("fifo{read_only}"));
        assert!(
            Command::new("mkfifo")
                .arg(&fifo)
                .status()
                .unwrap()
                .success()
        );
        assert!(error(&fifo, read_only).contains("neither a regular file"));
    }
}

#[test]
fn sizes_that_are_not_whole_sectors() {
    let dir = TempDir::new().unwrap();
    for (bytes, sectors) in [(0, 0), (1, 0), (511, 0), (512, 1), (1025, 2)] {
        let path = file(&dir, "disk", bytes);
        let disk = open(&options(&path, false)).unwrap();
        assert_eq!(disk.geometry().sectors(), sectors);
        testing::close(disk);
    }
}

#[test]
fn what_cannot_be_written_does_not_discard() {
    let dir = TempDir::new().unwrap();
    let path = file(&dir, "disk", 1 << 20);
    let geometry = |read_only| {
        let disk = open(&options(&path, read_only)).unwrap();
        let geometry = disk.geometry();
        testing::close(disk);
        geometry
    };
    let writable = geometry(false);
    assert!(writable.discard && writable.write_zeroes);
    let read_only = geometry(true);
    assert!(!read_only.discard && !read_only.write_zeroes);
    assert_eq!(fs::metadata(&path).unwrap().len(), 1 << 20);
}

/// A call that does less than it was asked for is made again for the rest.
#[test]
fn what_is_moved_in_parts_is_moved_whole() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("disk");
    fs::write(&path, (0..=255).collect::<Vec<u8>>()).unwrap();
    let disk = File::open(&path).unwrap();
    let mut first = [0_u8; 100];
    let mut second = [0_u8; 60];
    let piece = |bytes: &mut [u8]| {
        IoVec(libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        })
    };
    let mut pieces = [piece(&mut first), piece(&mut []), piece(&mut second)];
    let used = advance(&mut pieces, 100);
    assert_eq!(used, 2, "what has no bytes is done, too");
    assert_eq!(advance(&mut pieces[2..], 10), 0);
    assert_eq!(pieces[2].len(), 50);
    let mut pieces = [piece(&mut first), piece(&mut second)];
    call::transfer_all(false, disk.as_raw_fd(), 10, &mut pieces).unwrap();
    assert_eq!(
        (first[0], first[99], second[0], second[59]),
        (10, 109, 110, 169)
    );
    let mut pieces = [piece(&mut first), piece(&mut second)];
    let error = call::transfer_all(false, disk.as_raw_fd(), 200, &mut pieces).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}
