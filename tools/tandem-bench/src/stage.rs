//! Copies of files in memory, so that a benchmark does not measure the disk they come from.
//!
//! Kernel and initrd always come from a tmpfs: every boot reads them. Programs are copied only if they lie on 9p (as all
//! files of the lab do), where opening a file asks the host: a program with its libraries and data files is then staged
//! whole, or one with a hundred libraries would pay for the lab's file system.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};
use crate::sys;

const TMPFS: i64 = 0x0102_1994;
const NINE_P: i64 = 0x0102_1997;

/// A directory that goes when the value does.
#[derive(Debug)]
pub struct Stage {
    dir: PathBuf,
    in_memory: bool,
}

impl Stage {
    /// Makes it, in memory where there is a tmpfs.
    pub fn new() -> Result<Self> {
        let temporary = std::env::temp_dir();
        let places = [Path::new("/dev/shm"), Path::new("/run"), &temporary];
        let is_tmpfs = |place: &Path| sys::filesystem(place).is_ok_and(|kind| kind == TMPFS);
        let name = format!("tandem-bench-{}", std::process::id());
        for place in places.iter().filter(|place| is_tmpfs(place)) {
            let dir = place.join(&name);
            if fs::create_dir(&dir).is_ok() {
                return Ok(Self {
                    dir,
                    in_memory: true,
                });
            }
        }
        let dir = temporary.join(&name);
        fs::create_dir(&dir).map_err(|error| Error::file("make", &dir, &error))?;
        Ok(Self {
            dir,
            in_memory: false,
        })
    }

    /// Is it on a tmpfs?
    pub fn in_memory(&self) -> bool {
        self.in_memory
    }

    /// A directory in it.
    pub fn subdirectory(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir_all(&dir).map_err(|error| Error::file("make", &dir, &error))?;
        Ok(dir)
    }

    /// Copies a file into it and gives the copy's path.
    pub fn copy(&self, from: &Path, name: &str) -> Result<PathBuf> {
        let to = self.dir.join(name);
        copy(from, &to)?;
        Ok(to)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .map(drop)
        .map_err(|error| Error::file("copy", from, &error))
}

/// A program where it is run from.
#[derive(Clone, Debug)]
pub struct StagedProgram {
    /// The file to execute.
    pub path: PathBuf,
    /// Copies of the libraries it needs; for `LD_LIBRARY_PATH`.
    pub libraries: Option<PathBuf>,
    /// Was it copied at all?
    pub copied: bool,
}

/// Copies a program and its libraries to `dir` if they are on 9p.
pub fn program(path: &Path, dir: &Path) -> Result<StagedProgram> {
    if !slow(path) {
        return Ok(StagedProgram {
            path: path.to_owned(),
            libraries: None,
            copied: false,
        });
    }
    let name = path.file_name().unwrap_or_default();
    let copied = dir.join(name);
    copy(path, &copied)?;
    let mut libraries = None;
    for library in shared_libraries(path) {
        let place = dir.join("lib");
        fs::create_dir_all(&place).map_err(|error| Error::file("make", &place, &error))?;
        copy(
            &library,
            &place.join(library.file_name().unwrap_or_default()),
        )?;
        libraries = Some(place);
    }
    Ok(StagedProgram {
        path: copied,
        libraries,
        copied: true,
    })
}

/// Is a file on a file system that asks another machine?
pub fn slow(path: &Path) -> bool {
    sys::filesystem(path).is_ok_and(|kind| kind == NINE_P)
}

/// What `ldd` finds; nothing for a static program.
fn shared_libraries(path: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(path).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    parse_ldd(&String::from_utf8_lossy(&text))
}

/// Lines are `NAME => PATH (ADDRESS)`; the loader itself has no arrow, and stays where it is.
fn parse_ldd(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_once(" => ")?.1.split(" (").next())
        .filter(|path| path.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_of_ldd() {
        let text = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\
                    \tlost.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        assert_eq!(parse_ldd(text), [PathBuf::from("/lib/libc.so.6")]);
        assert!(parse_ldd("\tnot a dynamic executable\n").is_empty());
    }

    #[test]
    fn a_stage_goes_with_its_files() {
        let stage = Stage::new().unwrap();
        let copy = stage.copy(Path::new("/proc/self/cmdline"), "copy").unwrap();
        assert!(copy.exists());
        let dir = stage.dir.clone();
        drop(stage);
        assert!(!dir.exists());
    }
}
