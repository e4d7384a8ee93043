//! The emulated machine's initramfs: the agent and the modules it loads, as a newc cpio, cached by what went into it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Context, LabError, Result};

/// What is loaded at boot, with what these depend on. The rest can be loaded by name when it is needed.
const MODULES: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_rng",
    "9pnet_virtio",
    "9p",
    "irqbypass",
    "ccp",
    "kvm",
    "kvm-amd",
    "tun",
    "tap",
    "vhost_net",
    "vsock",
    "vmw_vsock_virtio_transport_common",
    "vhost_vsock",
    "overlay",
    "bridge",
    "veth",
    "loop",
];

/// The path of an initramfs for that kernel, made where it is not there yet.
pub fn prepare(cache: &Path, kernel: &Path, agent: &Path) -> Result<PathBuf> {
    let program = fs::read(agent).during(format!("reading {}", agent.display()))?;
    let identity = format!("{}\n{MODULES:?}\n", kernel.display());
    let path = cache.join(format!(
        "initramfs-{:032x}.cpio",
        fingerprint(&[identity.as_bytes(), &program])
    ));
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(cache).during(format!("making {}", cache.display()))?;
    let bytes = build(kernel, program)?;
    let scratch = cache.join(format!(".initramfs.{}", std::process::id()));
    fs::write(&scratch, bytes).during(format!("writing {}", scratch.display()))?;
    remove_others(cache);
    fs::rename(&scratch, &path).during(format!("writing {}", path.display()))?;
    Ok(path)
}

/// Those of earlier agents and kernels are of no use to anyone, once QEMU has read them.
fn remove_others(cache: &Path) {
    let old = |path: &Path| {
        let age = fs::metadata(path)
            .and_then(|facts| facts.modified())
            .ok()
            .and_then(|time| time.elapsed().ok());
        age.is_some_and(|age| age.as_secs() > 3600)
    };
    for entry in fs::read_dir(cache).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().contains("initramfs") && old(&entry.path()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn build(kernel: &Path, agent: Vec<u8>) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["dev", "proc", "sys", "host", "modules"] {
        archive.add(directory, 0o040_755, &[]);
    }
    archive.add("init", 0o100_755, &agent);
    let mut order = String::new();
    for (number, path) in modules(kernel)?.iter().enumerate() {
        let stem = path.file_name().unwrap_or_default().to_string_lossy();
        let name = format!(
            "{number:02}-{}.ko",
            stem.split('.').next().unwrap_or_default()
        );
        archive.add(&format!("modules/{name}"), 0o100_644, &unpack(path)?);
        order += &name;
        order.push('\n');
    }
    archive.add("modules/order", 0o100_644, order.as_bytes());
    archive.add("TRAILER!!!", 0, &[]);
    Ok(archive.0)
}

/// The modules' files, each after those it depends on.
fn modules(kernel: &Path) -> Result<Vec<PathBuf>> {
    let lib = kernel.join("lib/modules");
    let release = fs::read_dir(&lib)
        .during(lib.display().to_string())?
        .flatten()
        .next();
    let root = release
        .map(|entry| entry.path())
        .ok_or_else(|| LabError::Told(format!("{} is empty", lib.display())))?;
    let index = fs::read_to_string(root.join("modules.dep"))
        .during(format!("{}/modules.dep", root.display()))?;
    let built_in = fs::read_to_string(root.join("modules.builtin")).unwrap_or_default();
    let name_of = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split('.').next().unwrap_or_default().replace('-', "_")
    };
    let known: HashMap<String, (&str, Vec<&str>)> = index
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| {
            (
                name_of(path),
                (path, needs.split_whitespace().rev().collect()),
            )
        })
        .collect();
    let mut wanted: Vec<&str> = vec![];
    for name in MODULES {
        let name = name.replace('-', "_");
        match known.get(&name) {
            Some((path, needs)) => wanted.extend(needs.iter().chain([path])),
            None if built_in.lines().any(|path| name_of(path) == name) => {}
            None => {
                return Err(LabError::Told(format!(
                    "the lab's kernel has no module {name}"
                )));
            }
        }
    }
    let mut seen = std::collections::HashSet::new();
    wanted.retain(|path| seen.insert(*path));
    Ok(wanted.into_iter().map(|path| root.join(path)).collect())
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).during(format!("reading {}", path.display())),
    };
    let output = Command::new(tool)
        .arg("-dc")
        .arg(path)
        .output()
        .during(format!("running {tool}"))?;
    if !output.status.success() {
        return Err(LabError::Told(format!(
            "{tool} cannot unpack {}",
            path.display()
        )));
    }
    Ok(output.stdout)
}

/// FNV-1a: names a cache file after its ingredients, no more.
fn fingerprint(parts: &[&[u8]]) -> u128 {
    parts.iter().flat_map(|part| part.iter()).fold(
        0x6c62_272e_07bb_0142_62b8_2175_6295_c58d,
        |hash, byte| {
            (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        },
    )
}

/// A newc archive: Linux's Documentation/driver-api/early-userspace/buffer-format.rst.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn add(&mut self, name: &str, mode: u32, data: &[u8]) {
        let inode = self.0.len() as u32 + 1;
        self.0.extend(b"070701");
        let fields = [
            inode,
            mode,
            0,
            0,
            1,
            0,
            data.len() as u32,
            0,
            0,
            0,
            0,
            name.len() as u32 + 1,
            0,
        ];
        for field in fields {
            self.0.extend(format!("{field:08x}").as_bytes());
        }
        self.0.extend(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_aligned_and_ends_with_its_trailer() {
        let mut archive = Archive::default();
        archive.add("a", 0o100_644, b"12345");
        archive.add("TRAILER!!!", 0, &[]);
        assert_eq!(archive.0.len() % 4, 0);
        assert_eq!(&archive.0[..6], b"070701");
        // Header 110, name "a\0" to 112, data 5 to 120: the next header.
        assert_eq!(&archive.0[112..117], b"12345");
        assert_eq!(&archive.0[120..126], b"070701");
    }

    #[test]
    fn a_fingerprint_depends_on_every_byte() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"ab", b"d"]));
        assert_eq!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
    }
}
