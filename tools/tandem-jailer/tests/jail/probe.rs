//! What is locked in: it says what it finds, then stays until it is killed. Static, and built by the tests themselves.
//! The argument `--probe-exit N` has it end with N at once.

use std::fmt::Write;
use std::{env, fs, process, thread};

fn main() {
    let arguments: Vec<String> = env::args().collect();
    if let Some(at) = arguments.iter().position(|text| text == "--probe-exit") {
        process::exit(arguments[at + 1].parse().unwrap());
    }
    let mut report = String::new();
    writeln!(report, "args {}", arguments.join(" ")).unwrap();
    writeln!(report, "pid {}", process::id()).unwrap();
    writeln!(report, "env {}", env::vars_os().count()).unwrap();
    writeln!(report, "cwd {}", env::current_dir().unwrap().display()).unwrap();
    list("/", &mut report);
    for way_out in ["..", "../../../..", "/proc/1/root", "/old_root", "/etc"] {
        let same = fs::read_dir(way_out).map(|dir| {
            dir.flatten().any(|entry| entry.file_name() == "etc" || entry.file_name() == "usr")
        });
        writeln!(report, "out {way_out} {}", same.unwrap_or(false)).unwrap();
    }
    for path in ["/dev/kvm", "/dev/net/tun", "/dev/urandom"] {
        let opened = fs::File::options().read(true).write(path != "/dev/urandom").open(path);
        writeln!(report, "open {path} {}", opened.is_ok()).unwrap();
    }
    fs::write("/run/draft", report).unwrap();
    fs::rename("/run/draft", "/run/report").unwrap();
    loop {
        thread::park();
    }
}

fn list(dir: &str, report: &mut String) {
    let mut names: Vec<_> = fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    names.sort();
    for name in names {
        writeln!(report, "has {}", name.display()).unwrap();
        if name.is_dir() {
            list(name.to_str().unwrap(), report);
        }
    }
}
