//! The socket in the file system.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;

use super::super::socket::{self, BindError, Socket};

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The error, which is one line that names the path.
fn error(path: &Path) -> BindError {
    let error = Socket::bind(path).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()));
    assert!(!text.contains('\n'));
    error
}

#[test]
fn is_its_owners_alone_and_goes_with_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    let socket = Socket::bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    UnixStream::connect(&path).unwrap();
    drop(socket);
    assert!(!path.exists());
}

/// The mode must not depend on the umask, which is the whole process's: each is tried in a process of its own.
#[test]
fn the_umask_does_not_matter() {
    if let Ok(path) = std::env::var("TANDEM_TEST_SOCKET") {
        let _socket = Socket::bind(Path::new(&path)).unwrap();
        assert_eq!(mode(Path::new(&path)), 0o600);
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    for umask in ["000", "022", "077", "777"] {
        let path = directory.path().join(umask);
        let status = Command::new("sh")
            .args(["-c", "umask $0; exec \"$@\"", umask])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "http::tests::socket::the_umask_does_not_matter"])
            .env("TANDEM_TEST_SOCKET", &path)
            .output()
            .unwrap();
        assert!(status.status.success(), "{umask}: {status:?}");
        assert!(String::from_utf8_lossy(&status.stdout).contains("1 passed"));
        assert!(!path.exists());
    }
}

#[test]
fn a_stale_one_is_replaced_and_a_living_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    drop(UnixListener::bind(&path).unwrap());
    let stale = fs::symlink_metadata(&path).unwrap();
    assert!(stale.file_type().is_socket());
    let socket = Socket::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    assert!(matches!(error(&path), BindError::InUse(_)));
    // Still ours, and alive.
    UnixStream::connect(&path).unwrap();
    drop(socket);

    // One that listens but has no more room for those who wait.
    let busy = UnixListener::bind(&path).unwrap();
    // SAFETY: no memory is involved.
    let result = unsafe { libc::listen(busy.as_raw_fd(), 0) };
    assert_eq!(result, 0);
    let _first = UnixStream::connect(&path).unwrap();
    assert!(matches!(error(&path), BindError::InUse(_)));
    drop(busy);
    fs::remove_file(&path).unwrap();

    // Of another type, alive and dead.
    let other = UnixDatagram::bind(&path).unwrap();
    assert!(matches!(error(&path), BindError::InUse(_)));
    drop(other);
    Socket::bind(&path).unwrap();
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let living = directory.path().join("living");
    let _living = UnixListener::bind(&living).unwrap();
    let path = directory.path().join("a");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(error(&path), BindError::NotASocket(_)));
    assert_eq!(fs::read(&path).unwrap(), b"precious");
    fs::remove_file(&path).unwrap();
    for target in ["nowhere", "living"] {
        symlink(directory.path().join(target), &path).unwrap();
        assert!(matches!(error(&path), BindError::NotASocket(_)));
        fs::remove_file(&path).unwrap();
    }
    fs::create_dir(&path).unwrap();
    assert!(matches!(error(&path), BindError::NotASocket(_)));
    assert!(matches!(
        error(&directory.path().join("no/a")),
        BindError::Listen(..)
    ));
}

#[test]
fn somebody_elses_is_not_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    let socket = Socket::bind(&path).unwrap();
    fs::rename(&path, directory.path().join("b")).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    let inode = fs::symlink_metadata(&path).unwrap().ino();
    drop(socket);
    assert_eq!(fs::symlink_metadata(&path).unwrap().ino(), inode);
}

#[test]
fn a_path_fits_or_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let room = 107 - directory.path().as_os_str().len() - 1;
    let path = directory.path().join("x".repeat(room));
    let socket = Socket::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(socket);
    let path = directory.path().join("x".repeat(room + 1));
    assert!(matches!(error(&path), BindError::Length(_)));
    assert!(matches!(
        Socket::bind(Path::new("")),
        Err(BindError::Length(_))
    ));
}

/// Many start at once where a stale socket is: one gets it.
#[test]
fn one_of_many_gets_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    for _ in 0..20 {
        drop(UnixListener::bind(&path).unwrap());
        let start = std::sync::Barrier::new(4);
        let results: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        Socket::bind(&path)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1);
        assert!(
            lost.iter()
                .all(|lost| matches!(lost, Err(BindError::InUse(_))))
        );
        UnixStream::connect(&path).unwrap();
    }
}

/// Clients that come all at once, before any is accepted, and do not wait.
#[test]
fn many_can_wait_to_be_accepted() {
    let most = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let many = most.trim().parse::<usize>().unwrap().min(400);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    let _socket = Socket::bind(&path).unwrap();
    let _clients: Vec<_> = (0..many)
        .map(|_| {
            let client = socket::new_socket(libc::SOCK_STREAM | libc::SOCK_NONBLOCK).unwrap();
            let (address, length) = socket::address(&path);
            // SAFETY: the address is a whole sockaddr_un of which `length` bytes count, and outlives the call.
            let result =
                unsafe { libc::connect(client.as_raw_fd(), (&raw const address).cast(), length) };
            assert_eq!(result, 0);
            client
        })
        .collect();
}
