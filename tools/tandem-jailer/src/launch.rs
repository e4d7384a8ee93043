//! From a jail that is ready to the exec file that runs in it.
//!
//! Without `--new-pid-ns` this process becomes the exec file: number, parent and exit code stay its own. With it, and where a
//! process that leads its group is to start a session, a copy of this process does, and this one ends when that has succeeded:
//!
//! ```text
//! jailer                      copy
//!   writes <exec file>.pid      waits
//!   says go ------------------> limits, control group, session, user
//!   waits                       becomes the exec file, which closes the pipe;
//!   ends with 0 <-------------- or says what went wrong, and ends
//! ```

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use crate::args::Args;
use crate::cgroup::Groups;
use crate::failure::{Context, Failure};
use crate::jail::Jail;
use crate::{limits, privileges, sys};

/// When this program started.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// Microseconds of the monotonic clock.
    wall_us: u64,
    /// Microseconds of CPU time of this process.
    cpu_us: u64,
}

impl Start {
    /// Now.
    pub fn now() -> Self {
        Self {
            wall_us: sys::clock_us(libc::CLOCK_MONOTONIC),
            cpu_us: sys::clock_us(libc::CLOCK_PROCESS_CPUTIME_ID),
        }
    }
}

/// What is to run, and how.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The command line.
    pub args: &'a Args,
    /// Name of the exec file in the jail's root.
    pub program: &'a OsStr,
    /// Control groups to enter.
    pub groups: &'a Groups,
    /// `/dev/null` of the host's, for `--daemonize`.
    pub null: Option<OwnedFd>,
    /// The umask that this program was started with.
    pub umask: libc::mode_t,
    /// When this program started.
    pub start: Start,
}

impl Launch<'_> {
    /// Runs the exec file. Returns when a copy of this process has become it, or not at all.
    ///
    /// # Errors
    /// It does not run.
    pub fn run(&self, jail: &mut Jail) -> Result<(), Failure> {
        let new_pid_ns = self.args.new_pid_ns;
        let copy = new_pid_ns || (self.args.daemonize && sys::leads_a_group());
        if !copy {
            return Err(self.become_it(self.start.cpu_us, 0));
        }
        let pipes = || Ok((sys::pipe()?, sys::pipe()?));
        let ((mut heard, go), (mut report, told)) =
            pipes().doing(|| "cannot make a pipe".to_owned())?;
        let spent = sys::clock_us(libc::CLOCK_PROCESS_CPUTIME_ID) - self.start.cpu_us;
        let namespaces = if new_pid_ns { libc::CLONE_NEWPID } else { 0 };
        let pid =
            sys::fork(namespaces).doing(|| "--new-pid-ns: cannot start a process".to_owned())?;
        if pid == 0 {
            drop((go, report));
            // Nothing comes if the other has given up.
            if heard.read_exact(&mut [0]).is_err() {
                sys::exit_now(1);
            }
            let failure = self.become_it(0, spent);
            self.tell(told, &failure);
        }
        drop((heard, told));
        let result = self.see_off(jail, pid, go, &mut report);
        if result.is_err() {
            sys::reap(pid);
        }
        result
    }

    /// The copy has said nothing and is the exec file, or has said why not.
    fn see_off(
        &self,
        jail: &mut Jail,
        pid: libc::pid_t,
        mut go: File,
        report: &mut File,
    ) -> Result<(), Failure> {
        let mut name = self.program.to_owned();
        name.push(".pid");
        jail.note(&name, pid.to_string().as_bytes())
            .doing(|| format!("--new-pid-ns: cannot write {}", name.to_string_lossy()))?;
        let mut said = Vec::new();
        go.write_all(b"!")
            .and_then(|()| report.read_to_end(&mut said))
            .doing(|| "cannot talk to the process that was started".to_owned())?;
        match said.split_first() {
            None => Ok(()),
            Some((code, text)) => {
                let mut failure = Failure::refused(String::from_utf8_lossy(text));
                failure.code = *code;
                Err(failure)
            }
        }
    }

    fn tell(&self, mut told: File, failure: &Failure) -> ! {
        let mut said = vec![failure.code];
        said.extend_from_slice(failure.to_string().as_bytes());
        // If nobody listens, the exit code says it.
        let _ = told.write_all(&said);
        sys::exit_now(failure.code)
    }

    /// Becomes the exec file, or fails. Two shares of CPU time go with it: what its own clock shows already, and what another process
    /// has used.
    fn become_it(&self, own_us: u64, others_us: u64) -> Failure {
        match self.prepare(own_us, others_us) {
            Err(failure) => failure,
            Ok((path, arguments, stderr)) => {
                let error = sys::exec(&path, &arguments);
                if let Some(stderr) = stderr {
                    // Where messages went before.
                    let _ = sys::redirect(stderr.as_fd(), libc::STDERR_FILENO);
                }
                Failure::host("--exec-file: cannot run it in the jail", &error)
            }
        }
    }

    #[allow(clippy::type_complexity)]
    fn prepare(
        &self,
        own_us: u64,
        others_us: u64,
    ) -> Result<(CString, Vec<CString>, Option<OwnedFd>), Failure> {
        let mut path = OsString::from("/");
        path.push(self.program);
        let arguments = [
            path.clone(),
            "--id".into(),
            (&self.args.id).into(),
            "--start-time-us".into(),
            self.start.wall_us.to_string().into(),
            "--start-time-cpu-us".into(),
            own_us.to_string().into(),
            "--parent-cpu-time-us".into(),
            others_us.to_string().into(),
        ];
        let arguments: io::Result<Vec<CString>> = arguments
            .iter()
            .chain(&self.args.extra)
            .map(sys::name)
            .collect();
        let arguments = arguments.doing(|| "ARGS: cannot be passed on".to_owned())?;
        let path = sys::name(&path).doing(|| "--exec-file: has no usable name".to_owned())?;

        if self.args.daemonize {
            sys::start_session().doing(|| "--daemonize: cannot start a session".to_owned())?;
        }
        let stderr = self
            .null
            .as_ref()
            .map(|_| io::stderr().as_fd().try_clone_to_owned());
        let stderr = stderr.and_then(Result::ok);
        sys::reset_signals().doing(|| "cannot reset signals".to_owned())?;
        sys::set_umask(self.umask);
        // A program that is started has none of this one's descriptors; the standard ones are what they were given to be.
        sys::close_from_3(true).doing(|| "cannot mark descriptors to be closed".to_owned())?;
        limits::apply(&self.args.resource_limits)?;
        self.groups.enter()?;
        privileges::drop_all(self.args.uid, self.args.gid)?;
        if let Some(null) = &self.null {
            for standard in 0..3 {
                sys::redirect(null.as_fd(), standard)
                    .doing(|| "--daemonize: cannot redirect the standard streams".to_owned())?;
            }
        }
        Ok((path, arguments, stderr))
    }
}
