//! The jailer: locks a VM process into a jail of its own, and becomes it.
//!
//! | file         | what lives there                                                              |
//! |--------------|-------------------------------------------------------------------------------|
//! | `args`       | the command line, which is Firecracker's                                      |
//! | `jail`       | the jail's directory: made, filled, removed                                   |
//! | `prepared`   | the same, where the caller has made it and put files into it                  |
//! | `elf`        | whether the exec file can run without libraries                               |
//! | `cgroup`     | control groups, versions 1 and 2                                              |
//! | `limits`     | resource limits                                                               |
//! | `privileges` | from root to a user without privileges                                        |
//! | `launch`     | from the jail to the exec file that runs in it                                |
//! | `failure`    | why there is no jail                                                          |
//! | `sys`        | system calls; all that is `unsafe`                                            |
//!
//! # What it does, in this order
//! 1. closes all descriptors but the standard ones, and reads the command line;
//! 2. enters a mount namespace of its own, from which no mount event leaves;
//! 3. opens what the command line names, following no symbolic link;
//! 4. makes the jail, or takes one that is prepared, and fills it: exec file, device nodes, `/run`;
//! 5. makes the control group, and joins the network namespace;
//! 6. makes the jail the root of the mount namespace (`pivot_root(2)`) and takes off all that was there before;
//! 7. gives the jail to its user, then in the process to be: limits, control group, session, user, and `execve(2)` without environment.
//!
//! What fails before the last step removes what was made; the base directory and `<base>/<exec file>` stay, and so does all of a
//! prepared jail: `<base>/<exec file>/<id>/root` with files of the machine's, real directories that only root or the machine's user
//! can change, in which there is nothing yet of what the jailer makes (`run` may be there).
//!
//! # What a jail protects from
//! A guest that has taken over its VM process finds itself as a user without capabilities and groups, in a file system that has nothing
//! but the exec file, a few devices and what the operator put there; without a way to gain privileges by starting a program; with the
//! limits of its control group, in its network namespace if it was given one, and with `--new-pid-ns` without a process that it could
//! signal. Other users of the host cannot have the jailer follow, overwrite or give away files of the host's: links are not followed, and
//! of what exists only the directories of a prepared jail are used, taken from the machine's user for the time.
//!
//! # What it does not
//! The host's kernel is one for all: KVM, tun and the system calls that the seccomp filters of the VM process leave are what a bug would
//! be looked for in. Machines that run as one user can signal each other without `--new-pid-ns` and open each other's files if they can
//! name them: give each a user of its own. Without `--netns`, the process has the host's network; without `--cgroup`, its memory and CPU
//! time; fsize does not limit how many files it fills. Files bound into the jail are as safe as their modes. What the operator passes in
//! as standard streams stays open. The jail is the VM process's to write: whoever copies files into or out of it later must expect links.

mod args;
mod cgroup;
mod elf;
mod failure;
mod jail;
mod launch;
mod limits;
mod prepared;
mod privileges;
mod sys;

use std::fmt::Display;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Bind};
use cgroup::Groups;
use failure::{Context, Failure};
use jail::{ExecFile, Jail};
use launch::{Launch, Start};

fn main() -> ExitCode {
    let start = Start::now();
    // Whatever the caller has left open is not the machine's to have.
    if let Err(error) = sys::close_from_3(false) {
        return end(&Failure::host("cannot close inherited descriptors", &error));
    }
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            say(&args::in_one_line(&error));
            return ExitCode::from(failure::BAD_ARGUMENTS);
        }
        Err(help_or_version) => {
            // Standard output may be closed; that changes nothing.
            let _ = help_or_version.print();
            return ExitCode::SUCCESS;
        }
    };
    match lock_in(&args, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => end(&failure),
    }
}

fn end(failure: &Failure) -> ExitCode {
    say(failure);
    ExitCode::from(failure.code)
}

/// Writes one line to standard error, in one piece.
fn say(message: &dyn Display) {
    let line = format!("tandem-jailer: {message}\n");
    // There is nobody to tell when standard error is closed; the exit code still says it.
    let _ = io::stderr().write_all(line.as_bytes());
}

/// Makes a jail and becomes what runs in it; or returns when another process has.
fn lock_in(args: &Args, start: Start) -> Result<(), Failure> {
    if args.uid == 0 || args.gid == 0 {
        say(
            &"warning: --uid, --gid: as user or group 0 the machine can use what is root's on the host; give an ordinary user's numbers",
        );
    }
    // The modes are this program's affair; the exec file has the caller's mask again.
    let umask = sys::set_umask(0o077);
    // The way back, to remove what has been mounted over.
    let host = File::open("/proc/self/ns/mnt")
        .doing(|| "cannot open /proc/self/ns/mnt (is /proc mounted?)".to_owned())?;
    sys::unshare(libc::CLONE_NEWNS)
        .and_then(|()| sys::make_mounts_private())
        .doing(|| "cannot enter a mount namespace".to_owned())?;

    let exec = ExecFile::open(&args.exec_file)?;
    let binds = open_binds(args)?;
    let netns = args.netns.as_deref().map(open_netns).transpose()?;
    let null = args
        .daemonize
        .then(|| jail::open_existing("--daemonize", Path::new("/dev/null"), libc::O_RDWR));
    let null = null.transpose()?;

    let owner = (args.uid, args.gid);
    let mut jail = Jail::make(&args.chroot_base_dir, &exec.name, &args.id, owner)?;
    let mut groups = Groups::default();
    let result = build(args, &exec, &binds, netns, &mut jail, &mut groups).and_then(|()| {
        Launch {
            args,
            program: &exec.name,
            groups: &groups,
            null,
            umask,
            start,
        }
        .run(&mut jail)
    });
    result.map_err(|failure| {
        // All mounts of this program's go with its mount namespace.
        let back = sys::enter(host.as_fd(), libc::CLONE_NEWNS);
        groups.undo();
        match back.and_then(|()| jail.remove()) {
            Ok(()) => failure,
            Err(error) => failure.and(&format!("; {} is left: {error}", jail.path.display())),
        }
    })
}

/// Fills the jail, makes it this process's root, and gives it to its user.
fn build(
    args: &Args,
    exec: &ExecFile,
    binds: &[(&Bind, OwnedFd, bool)],
    netns: Option<OwnedFd>,
    jail: &mut Jail,
    groups: &mut Groups,
) -> Result<(), Failure> {
    jail.fill(exec)?;
    for (bind, _, directory) in binds {
        jail.mount_point(&bind.target, *directory)
            .map_err(|error| {
                Failure::refused(format!(
                    "--bind: cannot make /{} in the jail: {error}; give a DEST of its own",
                    bind.target.display()
                ))
            })?;
    }
    groups.make(&cgroup::Request {
        id: &args.id,
        settings: &args.cgroups,
        version: args.cgroup_version,
        parent: args.parent_cgroup.as_deref(),
        default_parent: Path::new(&exec.name),
    })?;
    if let Some(netns) = netns {
        sys::enter(netns.as_fd(), libc::CLONE_NEWNET)
            .doing(|| "--netns: cannot enter the network namespace".to_owned())?;
    }
    let pivot = || -> io::Result<()> {
        let root = sys::clone_mount(jail.root.as_fd(), sys::MOUNT_ATTR_NOSUID)?;
        sys::attach_mount(root.as_fd(), jail.root.as_fd())?;
        for (bind, source, _) in binds {
            let target = sys::open(Some(root.as_fd()), &bind.target, libc::O_PATH, 0)?;
            sys::attach_mount(source.as_fd(), target.as_fd())?;
        }
        sys::pivot(root.as_fd())
    };
    pivot().doing(|| "cannot make the jail the root directory".to_owned())?;
    jail.hand_over()
        .doing(|| "--uid, --gid: cannot give the jail to its user".to_owned())
}

/// What is to be seen in the jail, as mounts that are attached nowhere yet, and whether each is a directory.
fn open_binds(args: &Args) -> Result<Vec<(&Bind, OwnedFd, bool)>, Failure> {
    let read_only = args.read_only_binds.iter().map(|bind| (bind, true));
    let binds = read_only.chain(args.binds.iter().map(|bind| (bind, false)));
    binds
        .map(|(bind, read_only)| {
            let (mount, directory) = open_bind(bind, read_only)?;
            Ok((bind, mount, directory))
        })
        .collect()
}

fn open_bind(Bind { source, .. }: &Bind, read_only: bool) -> Result<(OwnedFd, bool), Failure> {
    let flag = if read_only { "--ro-bind" } else { "--bind" };
    let doing = || format!("{flag}: cannot mount {}", source.display());
    let file = jail::open_existing(flag, source, libc::O_PATH)?;
    let kind = file
        .try_clone()
        .map(File::from)
        .and_then(|file| file.metadata());
    let directory = kind.doing(doing)?.is_dir();
    let mut attributes = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NOEXEC;
    if read_only {
        attributes |= sys::MOUNT_ATTR_RDONLY;
    }
    let mount = sys::clone_mount(file.as_fd(), attributes).doing(doing)?;
    Ok((mount, directory))
}

/// A network namespace: what is opened is asked what it is, so that any path may lead there.
fn open_netns(path: &Path) -> Result<OwnedFd, Failure> {
    /// `linux/magic.h`.
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    let refused = |what: String| {
        Failure::refused(format!(
            "--netns: {} {what}; give one that ip netns add NAME has made, /run/netns/NAME",
            path.display()
        ))
    };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(|error| refused(format!("cannot be opened: {error}")))?;
    let file = OwnedFd::from(file);
    match sys::file_system(file.as_fd()) {
        Ok(NSFS_MAGIC) => Ok(file),
        _ => Err(refused("is not a namespace".to_owned())),
    }
}
