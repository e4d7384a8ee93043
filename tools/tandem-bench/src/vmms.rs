//! The VMMs of a command line, ready to be started.

use std::path::{Path, PathBuf};

use crate::adapters::{self, Adapter, Guest, Launch, Settings};
use crate::binary::Program;
use crate::error::{Error, Result};
use crate::stage::{self, StagedProgram};

/// A VMM that was named.
#[derive(Clone)]
pub struct Vmm {
    /// The user's name for it.
    pub name: String,
    /// Its program.
    pub path: PathBuf,
    /// How it is started.
    pub adapter: &'static dyn Adapter,
    /// What it is told besides.
    pub settings: Settings,
}

/// Tandem first: it is what the others are compared with.
pub fn named(tandem: &Path, others: &[String]) -> Result<Vec<Vmm>> {
    let vmm = |name: String, path: PathBuf, adapter| Vmm {
        name,
        path,
        adapter,
        settings: Settings::new(),
    };
    let mut vmms = vec![vmm(
        "tandem".to_owned(),
        tandem.to_owned(),
        adapters::infer("tandem", tandem)?,
    )];
    for text in others {
        let (name, path) = match text.split_once('=') {
            Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
            None => {
                let path = PathBuf::from(text);
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                (name.into_owned(), path)
            }
        };
        let path = in_path(&path);
        let adapter = adapters::infer(&name, &path)?;
        // One named just "tandem" is to be measured in place of this tree's.
        match vmms.iter().position(|known| known.name == name) {
            Some(0)
                if others
                    .iter()
                    .filter(|text| text.starts_with("tandem="))
                    .count()
                    < 2 =>
            {
                vmms[0] = vmm(name, path, adapter);
            }
            Some(_) => {
                return Err(Error::new(format!(
                    "--vmm {text}: the name {name} is taken; give each VMM its own"
                )));
            }
            None => vmms.push(vmm(name, path, adapter)),
        }
    }
    Ok(vmms)
}

/// A name without a slash is searched for as a shell would.
fn in_path(path: &Path) -> PathBuf {
    if path.components().count() > 1 || path.exists() {
        return path.to_owned();
    }
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|dir| dir.join(path))
        .find(|file| file.is_file())
        .unwrap_or_else(|| path.to_owned())
}

/// A VMM that was looked at.
#[derive(Debug)]
pub struct Prepared {
    /// The program; none if it could not even be looked at.
    pub program: Option<Program>,
    /// How to start it; or why it cannot be.
    pub launch: std::result::Result<(StagedProgram, Launch), String>,
    /// Exactly what will be executed.
    pub command: Vec<String>,
    /// Where its libraries are found, if copied.
    pub library_path: Option<String>,
}

impl Vmm {
    /// Looks at the program, copies it to `dir` if it lies on a slow disk, and makes the files that it needs.
    pub fn prepare(&self, guest: &Guest, dir: &Path) -> Prepared {
        let mut prepared = Prepared {
            program: None,
            launch: Err(String::new()),
            command: Vec::new(),
            library_path: None,
        };
        prepared.launch = self
            .stage(guest, dir, &mut prepared.program)
            .map_err(|error| error.to_string());
        if let Ok((staged, launch)) = &prepared.launch {
            prepared.command = [staged.path.clone().into_os_string()]
                .iter()
                .chain(&launch.arguments)
                .map(|argument| argument.to_string_lossy().into_owned())
                .collect();
            let libraries = staged.libraries.as_ref();
            prepared.library_path = libraries.map(|path| path.display().to_string());
        }
        prepared
    }

    fn stage(
        &self,
        guest: &Guest,
        dir: &Path,
        program: &mut Option<Program>,
    ) -> Result<(StagedProgram, Launch)> {
        let program = program.insert(Program::of(&self.path)?);
        let staged = stage::program(&program.file.path, dir)?;
        let launch = self.adapter.launch(guest, &self.settings, dir, program)?;
        Ok((staged, launch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(others: &[&str]) -> Result<Vec<(String, String, &'static str)>> {
        let others: Vec<_> = others.iter().map(|&text| text.to_owned()).collect();
        let vmms = named(Path::new("/t/tandem-vmm"), &others)?;
        Ok(vmms
            .into_iter()
            .map(|vmm| {
                let path = vmm.path.to_str().unwrap().to_owned();
                (vmm.name, path, vmm.adapter.kind())
            })
            .collect())
    }

    #[test]
    fn vmms_have_names_paths_and_kinds() {
        let expected = [
            ("tandem", "/t/tandem-vmm", "tandem"),
            ("qemu", "/q", "qemu"),
            ("firecracker", "/opt/firecracker", "firecracker"),
            ("tandem-old", "/old", "tandem"),
        ]
        .map(|(name, path, kind)| (name.to_owned(), path.to_owned(), kind));
        assert_eq!(
            told(&["qemu=/q", "/opt/firecracker", "tandem-old=/old"]).unwrap(),
            expected
        );
        let replaced = told(&["tandem=/mine"]).unwrap();
        assert_eq!((replaced.len(), replaced[0].1.as_str()), (1, "/mine"));
        assert!(told(&["qemu=/a", "qemu=/b"]).is_err());
        assert!(told(&["what=/a"]).is_err());
    }
}
