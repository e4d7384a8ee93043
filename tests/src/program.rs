//! Which programs are tested.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Below a target directory: static release builds first, since those are what is shipped.
const BUILDS: [&str; 2] = ["x86_64-unknown-linux-musl/release", "release"];

/// The program under test: `TANDEM_VMM`, or the one in the target directory that this test was built into.
///
/// # Panics
/// There is none.
pub fn tandem_vmm() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| program("tandem-vmm", "TANDEM_VMM"))
}

/// The jailer: `TANDEM_JAILER`, or the one in the target directory that this test was built into.
///
/// # Panics
/// There is none.
pub fn tandem_jailer() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| program("tandem-jailer", "TANDEM_JAILER"))
}

/// The command-line program: `TANDEM`, or the one in the target directory that this test was built into.
///
/// # Panics
/// There is none.
pub fn tandem() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| program("tandem", "TANDEM"))
}

fn program(name: &str, variable: &str) -> PathBuf {
    find(name, variable)
        .unwrap_or_else(|reason| panic!("{reason}; run tools/test, which builds it"))
}

fn find(name: &str, variable: &str) -> Result<PathBuf, String> {
    if let Some(path) = env::var_os(variable) {
        let path = PathBuf::from(path);
        return match path.is_file() {
            true => Ok(path),
            false => Err(format!(
                "{variable} names {}, which is no file",
                path.display()
            )),
        };
    }
    let this = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    this.ancestors()
        .flat_map(|target| BUILDS.map(|build| target.join(build).join(name)))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            format!(
                "there is no release build of {name} above {} and {variable} is not set",
                this.display()
            )
        })
}
