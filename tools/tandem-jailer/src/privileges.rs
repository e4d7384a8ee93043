//! From root to a user without privileges, for good.
//!
//! The order matters: groups while the right to change them is there, the group before the user, capabilities last. What has been
//! done is then asked for and compared, so that a kernel that pretended ends the program.
//!
//! `PR_SET_NO_NEW_PRIVS` is set: no program that is started from here can gain what has been given up, through a set-user-ID bit or
//! file capabilities. `tandem-vmm` starts no program, so nothing is lost by it; and it needs the bit for its seccomp filters.

use std::io;

use crate::failure::{Context, Failure};
use crate::sys;

/// Capabilities there can be, at most: bits of the two words of `linux/capability.h`.
const CAPABILITIES: u64 = 64;

/// Becomes `uid` and `gid`, without groups or capabilities, and without a way back.
///
/// # Errors
/// The host refuses; or it has not done what it said.
pub fn drop_all(uid: u32, gid: u32) -> Result<(), Failure> {
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1)
        .doing(|| "cannot set PR_SET_NO_NEW_PRIVS".to_owned())?;
    empty_bounding_set().doing(|| "cannot give up capabilities".to_owned())?;
    sys::become_user(uid, gid)
        .doing(|| format!("--uid, --gid: cannot become user {uid} and group {gid}"))?;
    // A change of user clears them, unless user 0 stays user 0 or somebody has set securebits.
    sys::drop_capabilities().doing(|| "cannot give up capabilities".to_owned())?;
    verify(uid, gid).doing(|| "--uid, --gid: privileges are left that were given up".to_owned())
}

/// Even user 0 gets no capability from a program that it starts.
fn empty_bounding_set() -> io::Result<()> {
    for capability in 0..CAPABILITIES {
        match sys::prctl(libc::PR_CAPBSET_READ, capability) {
            Ok(1) => sys::prctl(libc::PR_CAPBSET_DROP, capability).map(drop)?,
            Ok(_) => (),
            // This kernel has no more.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn verify(uid: u32, gid: u32) -> io::Result<()> {
    let (uids, gids, groups) = sys::who_am_i()?;
    let bounded = (0..CAPABILITIES)
        .map_while(|capability| sys::prctl(libc::PR_CAPBSET_READ, capability).ok())
        .all(|held| held == 0);
    if uids == [uid; 3]
        && gids == [gid; 3]
        && groups == 0
        && bounded
        && !sys::has_capabilities()?
        && sys::prctl(libc::PR_GET_NO_NEW_PRIVS, 0)? == 1
    {
        Ok(())
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}
