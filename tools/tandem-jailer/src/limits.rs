//! Resource limits (`setrlimit(2)`).

use std::str::FromStr;

use crate::failure::{Context, Failure};
use crate::sys;

/// Open files where `--resource-limit no-file=` says nothing; Firecracker's.
const DEFAULT_FILES: u64 = 2048;

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Size of a file that the process makes, in bytes.
    FileSize,
    /// One more than the highest descriptor.
    OpenFiles,
}

/// A limit from the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    resource: Resource,
    value: u64,
}

impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || "give fsize=BYTES or no-file=COUNT".to_owned();
        let (name, value) = text.split_once('=').ok_or_else(unknown)?;
        let resource = match name {
            "fsize" => Resource::FileSize,
            "no-file" => Resource::OpenFiles,
            _ => return Err(unknown()),
        };
        let value = value
            .parse()
            .map_err(|_| format!("give {name} a number without a unit"))?;
        Ok(Self { resource, value })
    }
}

/// Sets the limits, soft and hard; of two for the same resource, the last counts. To be called when this process writes no file any
/// more, since the limits are its own too.
///
/// # Errors
/// The host lets no process go there.
pub fn apply(limits: &[Limit]) -> Result<(), Failure> {
    let last = |resource| {
        limits
            .iter()
            .rev()
            .find(|limit| limit.resource == resource)
            .map(|limit| limit.value)
    };
    if let Some(bytes) = last(Resource::FileSize) {
        sys::set_limit(libc::RLIMIT_FSIZE as _, bytes)
            .doing(|| format!("--resource-limit: cannot set fsize to {bytes}"))?;
    }
    let files = libc::RLIMIT_NOFILE as _;
    let count = match last(Resource::OpenFiles) {
        Some(count) => count,
        // Nobody asked for more than this process has.
        None => sys::hard_limit(files)
            .doing(|| "cannot ask for the limit of open files".to_owned())?
            .min(DEFAULT_FILES),
    };
    sys::set_limit(files, count)
        .doing(|| format!("--resource-limit: cannot set no-file to {count}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_two_names_and_a_number() {
        let limit = |text: &str| text.parse::<Limit>();
        assert_eq!(
            limit("fsize=250000000"),
            Ok(Limit {
                resource: Resource::FileSize,
                value: 250_000_000
            })
        );
        assert_eq!(limit("no-file=1").unwrap().resource, Resource::OpenFiles);
        for bad in [
            "",
            "fsize",
            "fsize=",
            "fsize=1k",
            "fsize=-1",
            "nofile=1",
            "no-file=99999999999999999999",
            "fsize=1=2",
        ] {
            assert!(limit(bad).is_err(), "{bad}");
        }
    }
}
