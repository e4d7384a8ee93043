//! Which `tandem-vmm` is tested.

use std::env;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Below a target directory: static release builds first, since those are what is shipped.
const BUILDS: [&str; 2] = [
    "x86_64-unknown-linux-musl/release/tandem-vmm",
    "release/tandem-vmm",
];

/// The program under test: `TANDEM_VMM`, or the one in the target directory that this test was built into.
///
/// # Panics
/// There is none.
pub fn tandem_vmm() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        find().unwrap_or_else(|reason| panic!("{reason}; run tools/test, which builds it"))
    })
}

fn find() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("TANDEM_VMM") {
        let path = PathBuf::from(path);
        return match path.is_file() {
            true => Ok(path),
            false => Err(format!(
                "TANDEM_VMM names {}, which is no file",
                path.display()
            )),
        };
    }
    let this = env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    this.ancestors()
        .flat_map(|target| BUILDS.map(|build| target.join(build)))
        .find(|candidate| candidate.is_file())
        .ok_or_else(|| {
            format!(
                "there is no release build of tandem-vmm above {} and TANDEM_VMM is not set",
                this.display()
            )
        })
}
