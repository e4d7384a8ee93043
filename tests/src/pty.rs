//! A terminal of the test's own.

use std::fs::File;
use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::ptr;

use crate::capture::{Capture, contains};
use crate::patience;

/// A pseudo-terminal: the side of the person who types, and the side of the program.
#[derive(Debug)]
pub struct Pty {
    /// Keys are written here and the screen is read.
    pub master: File,
    /// What the program has as its standard streams.
    pub slave: OwnedFd,
}

impl Pty {
    /// A new one, in the mode that a login shell leaves to its programs.
    ///
    /// # Panics
    /// The system has none left.
    pub fn open() -> Self {
        let (mut master, mut slave) = (-1, -1);
        // SAFETY: openpty writes the two descriptors; name, settings and size may be null.
        let result = unsafe {
            libc::openpty(
                &mut master,
                &mut slave,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null_mut(),
            )
        };
        assert_eq!(result, 0, "openpty: {}", io::Error::last_os_error());
        for fd in [master, slave] {
            // SAFETY: F_SETFD takes no pointer. A copy in a child would keep the terminal from ending.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        // SAFETY: both descriptors were made just now and belong to nobody else.
        unsafe {
            Self {
                master: File::from_raw_fd(master),
                slave: OwnedFd::from_raw_fd(slave),
            }
        }
    }

    /// The terminal's settings, in a form that can be compared: input, output, control, local modes, and the
    /// control characters.
    ///
    /// # Panics
    /// It is gone.
    pub fn settings(&self) -> ([u32; 4], [u8; 32]) {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr writes only to `settings`, and all of it when it succeeds.
        let settings = unsafe {
            assert_eq!(
                libc::tcgetattr(self.slave.as_raw_fd(), settings.as_mut_ptr()),
                0
            );
            settings.assume_init()
        };
        (
            [
                settings.c_iflag,
                settings.c_oflag,
                settings.c_cflag,
                settings.c_lflag,
            ],
            settings.c_cc,
        )
    }

    /// Whether keys reach the program as they are pressed, without echo and without signals.
    pub fn is_raw(&self) -> bool {
        let ([_, _, _, local], _) = self.settings();
        local & (libc::ICANON | libc::ECHO | libc::ISIG) == 0
    }

    /// The program's side once more, for one of its streams.
    ///
    /// # Panics
    /// Out of descriptors.
    pub fn stream(&self) -> OwnedFd {
        self.slave.try_clone().expect("a descriptor")
    }
}

/// A session on a [`Pty`]: a shell that runs one program in the foreground, and stays when it has ended. The kernel
/// resets a terminal whose session leader ends, which would hide what the program left behind.
#[derive(Debug)]
pub struct Session {
    leader: Child,
    screen: Capture,
    keys: File,
}

impl Session {
    /// Starts `program` on `pty`.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(pty: &Pty, program: &Command) -> Self {
        let mut leader = Command::new("sh");
        leader
            .args([
                "-c",
                r#"sh -c 'echo "pid=$$."; exec "$@"' sh "$@"; echo "code=$?."; read -r line"#,
                "sh",
            ])
            .arg(program.get_program())
            .args(program.get_args())
            .stdin(pty.stream())
            .stdout(pty.stream())
            .stderr(pty.stream());
        // SAFETY: the closure makes async-signal-safe calls only; no pointers are passed.
        unsafe {
            leader.pre_exec(|| {
                if libc::setsid() < 0 || libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let leader = leader.spawn().expect("a shell starts");
        Self {
            leader,
            screen: Capture::new(pty.master.try_clone().expect("a descriptor")),
            keys: pty.master.try_clone().expect("a descriptor"),
        }
    }

    /// Types.
    ///
    /// # Panics
    /// The terminal is gone.
    pub fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("the terminal is there");
    }

    /// Waits for `text` on the screen.
    ///
    /// # Panics
    /// It does not come.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let found = |bytes: &[u8]| contains(bytes, text).then_some(());
        if let Err(seen) = self.screen.wait_until(patience(), found) {
            panic!("{text:?} did not come: {seen}");
        }
    }

    /// Number of the program's process.
    #[track_caller]
    pub fn pid(&self) -> libc::pid_t {
        self.number("pid=") as libc::pid_t
    }

    /// Waits for the program's end: its exit code, or 128 plus a signal's number.
    #[track_caller]
    pub fn exit_code(&self) -> i32 {
        self.number("code=")
    }

    #[track_caller]
    fn number(&self, before: &str) -> i32 {
        let find = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let (_, rest) = text.split_once(before)?;
            rest.split_once('.')?.0.parse().ok()
        };
        match self.screen.wait_until(patience(), find) {
            Ok(number) => number,
            Err(seen) => panic!("{before:?} and a number did not come: {seen}"),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The end of the leader hangs the terminal up, and that ends the program. Both fail when it is over already.
        let _ = self.leader.kill();
        let _ = self.leader.wait();
    }
}
