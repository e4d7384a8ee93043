//! The command line. Flags and their meaning are those of Firecracker's jailer, wherever it has them.

use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

use clap::Parser;

use crate::cgroup::{Setting, Version};
use crate::limits::Limit;

/// Locks a VM process into a jail of its own, and becomes it.
#[derive(Debug, Parser)]
#[command(
    name = "tandem-jailer",
    version,
    override_usage = "\
tandem-jailer [OPTIONS] --id <ID> --exec-file <PATH> --uid <NUMBER> --gid <NUMBER>
       [-- <ARGS>...]",
    after_help = "\
The jail is <chroot-base-dir>/<name of the exec file>/<id>/root, made anew; it has
/dev/kvm, /dev/net/tun, /dev/urandom (and userfaultfd and vhost-net, if the host
has them), an empty /run, and the exec file. The exec file gets --id and what it
took to start it, then ARGS. Paths in ARGS are the jail's. When the machine is
over, what is left is yours to remove: rm -r <chroot-base-dir>/<name>/<id>, and
the directory of the control group.

Exit codes, as long as the exec file has not started (after that, they are its
own):
    0  with --new-pid-ns, or with --daemonize from a shell: the exec file runs
    1  the host could not make the jail
  152  what the command line names is refused, such as a directory that exists
       already or a symbolic link
  153  the command line is not valid"
)]
pub struct Args {
    /// Name of the machine: 1 to 64 letters, digits and hyphens
    #[arg(long, value_name = "ID", value_parser = machine_id)]
    pub id: String,

    /// The program to lock in: an executable file, statically linked. A copy of it
    /// is put into the jail
    #[arg(long, value_name = "PATH", verbatim_doc_comment)]
    pub exec_file: PathBuf,

    /// User that it runs as
    #[arg(long, value_name = "NUMBER", value_parser = user_number)]
    pub uid: u32,

    /// Group that it runs as
    #[arg(long, value_name = "NUMBER", value_parser = user_number)]
    pub gid: u32,

    /// Directory that jails are made in; nobody else may write to it
    #[arg(long, value_name = "DIR", default_value = "/srv/jailer")]
    pub chroot_base_dir: PathBuf,

    /// Network namespace to run in, such as /run/netns/NAME
    #[arg(long, value_name = "PATH")]
    pub netns: Option<PathBuf>,

    /// Write VALUE to FILE of a control group of its own, such as memory.max=256M
    /// or cpu.shares=10 (can be repeated)
    #[arg(long = "cgroup", value_name = "FILE=VALUE", value_parser = setting, verbatim_doc_comment)]
    pub cgroups: Vec<Setting>,

    /// Version of control groups, 1 or 2 [default: 1 where the host has all that
    /// --cgroup asks for in hierarchies of version 1, else 2]
    #[arg(long, value_name = "1|2", value_parser = version, verbatim_doc_comment)]
    pub cgroup_version: Option<Version>,

    /// Where the control group is made, below the hierarchy's root [default: the
    /// name of the exec file]. Without --cgroup and in version 2, the group that it
    /// runs in itself
    #[arg(long, value_name = "PATH", value_parser = parent_cgroup, verbatim_doc_comment)]
    pub parent_cgroup: Option<PathBuf>,

    /// Limit of the process: fsize=BYTES (size of a file it makes) or no-file=COUNT
    /// (open files; 2048 if not said) (can be repeated)
    #[arg(long = "resource-limit", value_name = "NAME=NUMBER", value_parser = limit, verbatim_doc_comment)]
    pub resource_limits: Vec<Limit>,

    /// Show the file or directory SRC of the host in the jail as DEST, for reading
    /// (can be repeated)
    #[arg(long = "ro-bind", value_name = "SRC:DEST", value_parser = bind, verbatim_doc_comment)]
    pub read_only_binds: Vec<Bind>,

    /// The same, for reading and writing, as far as user and group may
    #[arg(long = "bind", value_name = "SRC:DEST", value_parser = bind)]
    pub binds: Vec<Bind>,

    /// Run in a session of its own, with all three standard streams on /dev/null
    #[arg(long)]
    pub daemonize: bool,

    /// Run as first process of a PID namespace; its number is in <exec file>.pid in
    /// the jail
    #[arg(long, verbatim_doc_comment)]
    pub new_pid_ns: bool,

    /// Arguments of the exec file
    #[arg(last = true, value_name = "ARGS")]
    pub extra: Vec<OsString>,
}

/// Something of the host's that is to be seen in the jail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub source: PathBuf,
    /// In the jail, below its root: plain names only, at least one.
    pub target: PathBuf,
}

/// What clap found wrong, in one line.
pub fn in_one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    // Usage and hints are paragraphs of their own.
    let first = text.split("\n\n").next().unwrap_or_default();
    let words: Vec<_> = first.split_whitespace().collect();
    let line = words.join(" ");
    let problem = line.strip_prefix("error: ").unwrap_or(&line);
    format!("{problem}; see --help")
}

fn machine_id(text: &str) -> Result<String, &'static str> {
    let fits = (1..=64).contains(&text.len());
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fits && plain {
        Ok(text.to_owned())
    } else {
        Err("give 1 to 64 letters, digits and hyphens")
    }
}

fn user_number(text: &str) -> Result<u32, &'static str> {
    // The last one stands for "no change" in setresuid(2).
    text.parse()
        .ok()
        .filter(|number| *number != u32::MAX)
        .ok_or("give a number from 0 to 4294967294, such as id -u NAME prints")
}

fn version(text: &str) -> Result<Version, &'static str> {
    match text {
        "1" => Ok(Version::V1),
        "2" => Ok(Version::V2),
        _ => Err("give 1 or 2"),
    }
}

fn setting(text: &str) -> Result<Setting, String> {
    text.parse()
}

fn limit(text: &str) -> Result<Limit, String> {
    text.parse()
}

/// Names only, nothing that leads up, around or to the root.
fn plain(path: &Path) -> bool {
    path.components().next().is_some()
        && path
            .components()
            .all(|part| matches!(part, Component::Normal(_)))
        && !path.to_string_lossy().split('/').any(|part| part == ".")
}

fn parent_cgroup(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    if plain(&path) {
        Ok(path)
    } else {
        Err("give a path below the hierarchy's root, such as vms/web, without . and ..")
    }
}

fn bind(text: &str) -> Result<Bind, &'static str> {
    let parts = text
        .rsplit_once(':')
        .filter(|(source, _)| !source.is_empty());
    let Some((source, target)) = parts else {
        return Err("give SRC:DEST, such as /srv/images/vmlinux:/vmlinux");
    };
    match target.strip_prefix('/').map(PathBuf::from) {
        Some(target) if plain(&target) => Ok(Bind {
            source: source.into(),
            target,
        }),
        _ => Err("give DEST as an absolute path in the jail, without . and .."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: [&str; 9] = [
        "tandem-jailer",
        "--id",
        "a",
        "--exec-file",
        "/x",
        "--uid",
        "1",
        "--gid",
        "2",
    ];

    fn parse(more: &[&str]) -> Result<Args, String> {
        Args::try_parse_from([&LEAST, more].concat()).map_err(|error| in_one_line(&error))
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn help_fits_a_terminal() {
        use clap::CommandFactory;
        let help = Args::command().render_long_help().to_string();
        for line in help.lines() {
            assert!(line.len() <= 90, "{line}");
        }
    }

    #[test]
    fn defaults_are_those_of_the_field() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.chroot_base_dir, Path::new("/srv/jailer"));
        assert!(args.extra.is_empty() && !args.daemonize && !args.new_pid_ns);
        assert_eq!(args.cgroup_version, None);
    }

    #[test]
    fn what_follows_two_hyphens_is_passed_on() {
        let args = parse(&["--", "--config-file", "/vm.json", "--id", "b"]).unwrap();
        assert_eq!(args.extra, ["--config-file", "/vm.json", "--id", "b"]);
        assert_eq!(args.id, "a");
    }

    #[test]
    fn identifiers_are_plain() {
        assert!(machine_id("551e7604-e35c-42b3-b825-416853441234").is_ok());
        assert!(machine_id(&"x".repeat(64)).is_ok());
        for bad in [
            "",
            ".",
            "..",
            "../x",
            "a/b",
            "a b",
            "a\n",
            "a_b",
            "ä",
            "a\0",
            &"x".repeat(65),
        ] {
            assert!(machine_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn users_are_numbers_that_mean_one() {
        assert_eq!(user_number("0"), Ok(0));
        assert_eq!(user_number("4294967294"), Ok(u32::MAX - 1));
        for bad in ["4294967295", "4294967296", "-1", "root", "", "1.0"] {
            assert!(user_number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_control_groups_parent_is_below_the_root() {
        assert!(parent_cgroup("vms").is_ok());
        assert!(parent_cgroup("all/vms").is_ok());
        for bad in ["", "/", "/vms", "..", "a/../b", ".", "a/./b", "./a"] {
            assert!(parent_cgroup(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bind_has_a_plain_target() {
        let good = bind("/a:b/c:/d/e").unwrap();
        assert_eq!(good.source, Path::new("/a:b/c"));
        assert_eq!(good.target, Path::new("d/e"));
        for bad in [
            "", "/a", ":/a", "/a:", "/a:b", "/a:/", "/a:/../b", "/a:/b/..", "/a:/./b",
        ] {
            assert!(bind(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn mistakes_are_one_line_that_names_the_flag() {
        for (words, expected) in [
            (
                &["--cgroup-version", "3"][..],
                "invalid value '3' for '--cgroup-version <1|2>': give 1 or 2; see --help",
            ),
            (
                &["--cgroup", "memory.max"],
                "invalid value 'memory.max' for '--cgroup <FILE=VALUE>': give FILE=VALUE, such as memory.max=256M; see --help",
            ),
            (
                &["--resource-limit", "cpu=1"],
                "invalid value 'cpu=1' for '--resource-limit <NAME=NUMBER>': give fsize=BYTES or no-file=COUNT; see --help",
            ),
            (
                &["--nonsense"],
                "unexpected argument '--nonsense' found; see --help",
            ),
        ] {
            assert_eq!(parse(words).unwrap_err(), expected);
        }
    }
}
