//! A VM to be, and the process once it runs.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::api::Api;
use crate::capture::{Capture, contains};
use crate::elf::Elf;
use crate::{footprint, patience, program};

/// Name of the control socket in the VM's directory.
const SOCKET: &str = "api.sock";

/// A VM that is not started yet.
#[derive(Debug)]
pub struct VmBuilder {
    /// The configuration document; tests may change anything in it.
    pub config: Value,
    /// Goes with the VM.
    pub dir: TempDir,
    args: Vec<OsString>,
    stdin: Stdio,
    stdout: Option<Stdio>,
    before_exec: Option<fn()>,
    document: Option<Vec<u8>>,
    /// User and group that it runs as.
    user: Option<(u32, u32)>,
    control: Control,
    /// What `tandem-jailer` is told, if it runs in a jail.
    jail: Option<Vec<OsString>>,
}

/// By what the process is told what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    File,
    FileAndSocket,
    Socket,
}

impl VmBuilder {
    /// A VM of one vCPU and 128 MiB that boots the kernel at `kernel`. Its standard input is a pipe that stays open.
    pub fn with_kernel(kernel: impl AsRef<Path>) -> Self {
        let config = json!({
            "boot-source": { "kernel_image_path": kernel.as_ref() },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 128 },
        });
        Self {
            config,
            dir: TempDir::new().expect("a directory for temporary files (TMPDIR)"),
            args: Vec::new(),
            stdin: Stdio::piped(),
            stdout: None,
            before_exec: None,
            document: None,
            user: None,
            control: Control::File,
            jail: None,
        }
    }

    /// Gives it a control socket beside its configuration file: [`Vm::api`].
    #[must_use]
    pub fn with_socket(mut self) -> Self {
        self.control = Control::FileAndSocket;
        self
    }

    /// Gives it a control socket and nothing else to do.
    #[must_use]
    pub fn by_socket(mut self) -> Self {
        self.control = Control::Socket;
        self
    }

    /// A VM of one vCPU and 16 MiB that boots `elf`.
    pub fn with_elf(elf: &Elf) -> Self {
        let mut builder = Self::with_kernel("");
        let kernel = builder.path("vmlinux");
        fs::write(&kernel, elf.to_bytes()).expect("the kernel can be written");
        builder.config["boot-source"]["kernel_image_path"] = json!(kernel);
        builder.memory(16)
    }

    /// A VM whose kernel is `code`, entered in 64-bit mode at 1 MiB.
    pub fn with_code(code: &[u8]) -> Self {
        Self::with_elf(&Elf::new(code))
    }

    /// A file in the VM's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Number of vCPUs.
    #[must_use]
    pub fn vcpus(mut self, count: u8) -> Self {
        self.config["machine-config"]["vcpu_count"] = json!(count);
        self
    }

    /// Memory in MiB.
    #[must_use]
    pub fn memory(mut self, mib: u64) -> Self {
        self.config["machine-config"]["mem_size_mib"] = json!(mib);
        self
    }

    /// A field of the `boot-source` section.
    #[must_use]
    pub fn boot(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.config["boot-source"][field] = value.into();
        self
    }

    /// The initrd.
    #[must_use]
    pub fn initrd(self, path: &Path) -> Self {
        self.boot("initrd_path", json!(path))
    }

    /// An argument of `tandem-vmm`.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// An option and its value.
    #[must_use]
    pub fn option(self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.arg(name).arg(value)
    }

    /// Standard input.
    #[must_use]
    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> Self {
        self.stdin = stdin.into();
        self
    }

    /// Standard input is not open at all.
    #[must_use]
    pub fn without_stdin(self) -> Self {
        self.stdin(Stdio::null()).before_exec(|| {
            // SAFETY: close(2) takes no pointer.
            unsafe { libc::close(libc::STDIN_FILENO) };
        })
    }

    /// Runs `change` in the new process before it becomes `tandem-vmm`: async-signal-safe calls only.
    #[must_use]
    pub fn before_exec(mut self, change: fn()) -> Self {
        self.before_exec = Some(change);
        self
    }

    /// Runs it as an ordinary user, who is given what it needs to read: program, kernel and initrd as copies, and the VM's own
    /// directory. To be called when these are chosen.
    ///
    /// # Panics
    /// Something cannot be copied, or this process may not be another user.
    #[must_use]
    pub fn as_user(mut self, user: u32, group: u32) -> Self {
        let dir = self.dir.path().to_owned();
        std::os::unix::fs::chown(&dir, Some(user), Some(group)).expect("this runs as root");
        for (field, name) in [("kernel_image_path", "kernel"), ("initrd_path", "initrd")] {
            let value = &mut self.config["boot-source"][field];
            let Some(path) = value.as_str() else {
                continue;
            };
            fs::copy(path, dir.join(name)).expect("there is room for a copy");
            *value = json!(dir.join(name));
        }
        fs::copy(program::tandem_vmm(), dir.join("tandem-vmm")).expect("there is room for a copy");
        self.user = Some((user, group));
        self
    }

    /// Runs it in a jail below `base`, as an ordinary user, who is shown configuration, kernel and initrd there; `more` is what
    /// `tandem-jailer` is told besides. To be called when kernel and initrd are chosen; other paths are to be the jail's.
    ///
    /// # Panics
    /// There is no room for a copy of the program.
    #[must_use]
    pub fn jailed<S: AsRef<OsStr>>(mut self, base: &Path, user: u32, more: &[S]) -> Self {
        // What Cargo has built is a hard link, which the jailer refuses.
        let program = self.path("tandem-vmm");
        fs::copy(program::tandem_vmm(), &program).expect("there is room for a copy");
        let user = user.to_string();
        let mut args: Vec<OsString> = ["--id", "vm", "--uid", &user, "--gid", &user]
            .map(OsString::from)
            .to_vec();
        args.extend(["--exec-file".into(), program.into_os_string()]);
        args.extend(["--chroot-base-dir".into(), base.into()]);
        let mut show = |path: &Path, name: &str| {
            let mut bind = path.as_os_str().to_owned();
            bind.push(":");
            bind.push(name);
            args.extend(["--ro-bind".into(), bind]);
        };
        show(&self.path("vm.json"), "/vm.json");
        for (field, name) in [("kernel_image_path", "/kernel"), ("initrd_path", "/initrd")] {
            let value = &mut self.config["boot-source"][field];
            let Some(path) = value.as_str() else {
                continue;
            };
            let real = fs::canonicalize(path).expect("the file is there");
            show(&real, name);
            *value = json!(name);
        }
        args.extend(more.iter().map(|word| word.as_ref().to_owned()));
        self.jail = Some(args);
        self
    }

    /// Standard output; without this it is collected.
    #[must_use]
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// The configuration file, byte for byte; [`config`](Self::config) is not looked at then.
    #[must_use]
    pub fn document(mut self, document: impl Into<Vec<u8>>) -> Self {
        self.document = Some(document.into());
        self
    }

    /// Writes the configuration. What is returned would run `tandem-vmm`, on this process's streams.
    pub fn command(&self) -> Command {
        let config = self.path("vm.json");
        let document = self
            .document
            .clone()
            .unwrap_or_else(|| self.config.to_string().into_bytes());
        fs::write(&config, document).expect("the configuration can be written");
        let (mut command, config) = match (&self.jail, self.user) {
            (Some(jail), _) => {
                let mut command = Command::new(program::tandem_jailer());
                command.args(jail).arg("--");
                (command, PathBuf::from("/vm.json"))
            }
            (None, Some((user, group))) => {
                let mut command = Command::new(self.path("tandem-vmm"));
                command.uid(user).gid(group);
                (command, config)
            }
            (None, None) => (Command::new(program::tandem_vmm()), config),
        };
        match self.control {
            Control::File => command.arg("--no-api"),
            _ => command.arg("--api-sock").arg(self.path(SOCKET)),
        };
        if self.control != Control::Socket {
            command.arg("--config-file").arg(config);
        }
        command.args(&self.args);
        command
    }

    /// Starts `tandem-vmm`.
    pub fn start(self) -> Vm {
        let mut command = self.command();
        command.stdin(self.stdin).stderr(Stdio::piped());
        let collect = self.stdout.is_none();
        command.stdout(self.stdout.unwrap_or_else(Stdio::piped));
        let before_exec = self.before_exec;
        // SAFETY: signal(2) with SIG_DFL takes no pointer, and `before_exec` has promised to make async-signal-safe calls only.
        unsafe {
            command.pre_exec(move || {
                // What runs in a shell's background is started to ignore these, and then so would the VM.
                for signal in [libc::SIGINT, libc::SIGQUIT, libc::SIGHUP] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                if let Some(before_exec) = before_exec {
                    before_exec();
                }
                Ok(())
            });
        }
        let mut child = command.spawn().expect("tandem-vmm starts");
        // This process's copies of the streams go with the command.
        drop(command);
        let stdout = child.stdout.take().filter(|_| collect).map(Capture::new);
        let stderr = child.stderr.take().map(Capture::new);
        Vm {
            stdin: child.stdin.take(),
            child,
            stdout,
            stderr,
            dir: self.dir,
        }
    }

    /// Starts it and waits for its end.
    pub fn run(self) -> Ended {
        self.start().wait()
    }
}

/// A `tandem-vmm` that runs. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Option<Capture>,
    stderr: Option<Capture>,
    dir: TempDir,
}

/// A `tandem-vmm` that is over.
#[derive(Debug)]
pub struct Ended {
    /// Exit code; 1000 plus the signal's number if a signal killed it.
    pub code: i32,
    /// All of standard output, if it was collected.
    pub stdout: Vec<u8>,
    /// All of standard error.
    pub stderr: String,
    /// Its directory.
    pub dir: TempDir,
}

impl Vm {
    /// Number of the process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A file in the VM's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Waits for `text` on standard output.
    ///
    /// # Panics
    /// It does not come.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let found = |bytes: &[u8]| contains(bytes, text).then_some(());
        if let Err(seen) = self.output().wait_until(patience(), found) {
            panic!(
                "{text:?} did not come: {seen}\nstandard error:\n{}",
                self.errors()
            );
        }
    }

    /// What the guest has printed so far.
    pub fn output(&self) -> &Capture {
        self.stdout.as_ref().expect("standard output is collected")
    }

    /// Standard error so far.
    pub fn errors(&self) -> String {
        let bytes = self
            .stderr
            .as_ref()
            .map(Capture::so_far)
            .unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The control socket, if it has one.
    pub fn api(&self) -> Api {
        Api::new(self.path(SOCKET))
    }

    /// Writes to standard input.
    ///
    /// # Panics
    /// It is not a pipe of this test's, or `tandem-vmm` is gone.
    pub fn send(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("standard input is a pipe");
        stdin.write_all(bytes).expect("tandem-vmm takes input");
    }

    /// Takes the sending end of standard input, to write from another thread or to close.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// Sends a signal to the process.
    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: kill takes no pointer; the child has not been waited for, so its number is still its own.
        let result = unsafe { libc::kill(self.child.id() as libc::pid_t, signal) };
        assert_eq!(result, 0, "the process can be signalled");
    }

    /// Has a line of metrics written to the file `metrics` in the VM's directory, which is to be `metrics.metrics_path`.
    ///
    /// # Panics
    /// It does not come.
    #[track_caller]
    pub fn metrics(&self) -> Value {
        let lines = || fs::read_to_string(self.path("metrics")).unwrap_or_default();
        let before = lines().lines().count();
        self.signal(libc::SIGUSR2);
        let deadline = Instant::now() + patience();
        loop {
            let text = lines();
            let last = text.strip_suffix('\n').and_then(|text| text.lines().last());
            if let Some(line) = last.filter(|_| text.lines().count() > before) {
                return serde_json::from_str(line).expect("metrics are JSON");
            }
            assert!(Instant::now() < deadline, "no metrics\n{}", self.errors());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Has `document` read as the configuration from now on, and waits until `answer` is on standard error once more.
    ///
    /// # Panics
    /// It does not come.
    #[track_caller]
    pub fn reload(&self, document: &str, answer: &str) {
        let answers = || self.errors().matches(answer).count();
        let before = answers();
        fs::write(self.path("vm.json"), document).expect("the configuration can be written");
        self.signal(libc::SIGUSR1);
        let deadline = Instant::now() + patience();
        while answers() == before {
            assert!(
                Instant::now() < deadline,
                "no {answer:?}\n{}",
                self.errors()
            );
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Memory of the process outside of the guest's, in KiB.
    pub fn footprint_kib(&self) -> u64 {
        footprint::outside_guest_kib(self.child.id())
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// It does not come.
    #[track_caller]
    pub fn wait(self) -> Ended {
        self.wait_at_most(patience())
    }

    /// Waits for the end, for `limit` at most.
    ///
    /// # Panics
    /// It does not come in that time.
    #[track_caller]
    pub fn wait_at_most(mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                break status;
            }
            if Instant::now() >= deadline {
                let output = self
                    .stdout
                    .as_ref()
                    .map(Capture::so_far)
                    .unwrap_or_default();
                panic!(
                    "still running after {limit:?}; standard error:\n{}\nstandard output:\n{}",
                    self.errors(),
                    String::from_utf8_lossy(&output)
                );
            }
            thread::sleep(Duration::from_millis(2));
        };
        let stdout = self.stdout.take().map(Capture::finish).unwrap_or_default();
        let stderr = self.stderr.take().map(Capture::finish).unwrap_or_default();
        let dir = std::mem::replace(&mut self.dir, TempDir::new().expect("a directory"));
        Ended {
            code: status
                .code()
                .unwrap_or_else(|| 1000 + status.signal().unwrap_or(0)),
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
            dir,
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // Both fail when it is over already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Ended {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// A file in the VM's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A JSON file that the VM process wrote into its directory.
    pub fn json(&self, name: &str) -> Value {
        let file = File::open(self.path(name)).expect("the file was written");
        serde_json::from_reader(file).expect("the file is JSON")
    }

    /// Checks exit code and standard output.
    ///
    /// # Panics
    /// They are others.
    #[track_caller]
    pub fn expect(&self, code: i32, stdout: &str) {
        assert_eq!(
            (self.code, self.text().as_str()),
            (code, stdout),
            "standard error:\n{}",
            self.stderr
        );
    }

    /// The one line on standard error.
    ///
    /// # Panics
    /// There is none, or more than one.
    #[track_caller]
    pub fn one_line(&self) -> &str {
        let line = self.stderr.strip_suffix('\n').unwrap_or_default();
        assert!(
            !line.is_empty() && !line.contains('\n'),
            "not one line (exit code {}): {:?}",
            self.code,
            self.stderr
        );
        line
    }
}
