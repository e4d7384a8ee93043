//! Which labs there are: for each a directory and, beside it, a lock that its supervisor holds for life.
//!
//! The lock decides, never a process id: whoever gets it finds no lab of that name, and what a killed one left is his to
//! remove. A lock file is removed by its holder only, so a lock counts only while the file is still the one of that name.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::{Context, LabError, Result};
use crate::sys::{self, process};

/// A lab's place, whether or not there is a lab.
#[derive(Clone, Debug)]
pub struct Place {
    base: PathBuf,
    name: String,
}

/// The lock of a lab.
#[derive(Debug)]
pub struct Lock(pub File);

/// The directory of all labs of this user: theirs alone.
fn base() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(directory) if !directory.is_empty() => PathBuf::from(directory).join("tandem-lab"),
        _ => PathBuf::from(format!("/tmp/tandem-lab-{}", process::user_id())),
    };
    let made = DirBuilder::new().mode(0o700).create(&base);
    let facts = match (made, fs::symlink_metadata(&base)) {
        (Err(error), Err(_)) => {
            return Err(LabError::Io(format!("making {}", base.display()), error));
        }
        (_, facts) => facts.during(base.display().to_string())?,
    };
    if !facts.is_dir() || facts.uid() != process::user_id() || facts.mode() & 0o077 != 0 {
        let base = base.display();
        return Err(LabError::Told(format!(
            "{base} is not a directory of yours alone (mode 0700): remove it"
        )));
    }
    Ok(base)
}

impl Place {
    /// The place of the lab of that name.
    pub fn named(name: &str) -> Result<Place> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.len() > 40 || name.starts_with('.') || !name.chars().all(plain) {
            let rule = "a lab's name is 1 to 40 letters, digits, '-', '_' and '.'";
            return Err(LabError::Told(format!("{rule}, not {name:?}")));
        }
        Ok(Place {
            base: base()?,
            name: name.into(),
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its directory.
    pub fn directory(&self) -> PathBuf {
        self.base.join(&self.name)
    }

    /// Where its supervisor listens, once it is up.
    pub fn socket(&self) -> PathBuf {
        self.directory().join("lab.sock")
    }

    /// What its machine said.
    pub fn console(&self) -> PathBuf {
        self.directory().join("console.log")
    }

    fn lock_file(&self) -> PathBuf {
        self.base.join(format!("{}.lock", self.name))
    }

    /// The lock, if no lab has it.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        let path = self.lock_file();
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path);
            let file = file.during(format!("opening {}", path.display()))?;
            if !sys::try_lock(&file).during(format!("locking {}", path.display()))? {
                return Ok(None);
            }
            let ours = file.metadata().during("the lock")?.ino();
            match fs::metadata(&path) {
                Ok(found) if found.ino() == ours => return Ok(Some(Lock(file))),
                // Its last holder removed it while we waited to look.
                _ => continue,
            }
        }
    }

    /// Is there a lab, up or on its way?
    pub fn taken(&self) -> Result<bool> {
        if !self.lock_file().exists() {
            return Ok(false);
        }
        match self.try_lock()? {
            Some(lock) => {
                self.remove(&lock);
                Ok(false)
            }
            None => Ok(true),
        }
    }

    /// Makes the directory anew.
    pub fn prepare(&self, _held: &Lock) -> Result<()> {
        let directory = self.directory();
        let _ = fs::remove_dir_all(&directory);
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .during(format!("making {}", directory.display()))
    }

    /// Removes all there is of a lab.
    pub fn remove(&self, _held: &Lock) {
        let _ = fs::remove_dir_all(self.directory());
        let _ = fs::remove_file(self.lock_file());
        // The last one out; it is not empty as long as there is another.
        let _ = fs::remove_dir(&self.base);
    }

    /// The supervisor's own view of a place that its parent locked.
    pub fn at(base: &Path, name: &str) -> Place {
        Place {
            base: base.into(),
            name: name.into(),
        }
    }

    /// The directory that all labs share.
    pub fn base(&self) -> &Path {
        &self.base
    }
}

/// Removes what killed labs left, and returns the labs that there are.
pub fn sweep() -> Result<Vec<Place>> {
    let base = base()?;
    let mut found = vec![];
    for entry in fs::read_dir(&base)
        .during(format!("reading {}", base.display()))?
        .flatten()
    {
        let file = entry.file_name();
        let Some(name) = file.to_str().and_then(|name| name.strip_suffix(".lock")) else {
            continue;
        };
        let place = Place::at(&base, name);
        if place.taken()? {
            found.push(place);
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}
