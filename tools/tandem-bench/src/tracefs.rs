//! Trace instances of our own: they keep out of the way of other users of tracefs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// An instance for one event. It goes with the value.
#[derive(Debug)]
pub struct Instance {
    dir: PathBuf,
    event: &'static str,
}

impl Instance {
    /// Makes one for an event, such as `kvm/kvm_entry`. The error says what is missing.
    pub fn new(name: &str, event: &'static str) -> Result<Self, String> {
        let root = TRACEFS
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("instances").is_dir())
            .ok_or("tracefs is not mounted, or this is not root (mount -t tracefs tracefs /sys/kernel/tracing)")?;
        if !root.join("events").join(event).is_dir() {
            return Err(format!("the kernel has no tracepoint {event}"));
        }
        let pid = std::process::id();
        let dir = root.join(format!("instances/tandem-bench-{name}-{pid}"));
        fs::create_dir(&dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?;
        Ok(Self { dir, event })
    }

    /// Writes one of its files.
    pub fn write(&self, file: &str, text: &str) -> Result<(), String> {
        let path = self.dir.join(file);
        fs::write(&path, text)
            .map_err(|error| format!("cannot write to {}: {error}", path.display()))
    }

    /// Reads one of them.
    pub fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.dir.join(file))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The event is switched off with its instance. Nobody is left to be told if that fails.
        let _ = self.write(&format!("events/{}/enable", self.event), "0");
        let _ = fs::remove_dir(&self.dir);
    }
}
