//! Seccomp filters as BPF, and what puts them in place.

use std::io;

use vmm::confine::Role;

/// First bytes of a file of filters (`tools/tandem-seccomp`, `compiled`).
const MAGIC: &[u8] = b"tandem-seccomp-1";
/// Instructions of a filter at most (BPF_MAXINSNS, linux/bpf_common.h).
const MAX_INSTRUCTIONS: usize = 4096;
/// Bytes of an instruction.
const INSTRUCTION: usize = size_of::<libc::sock_filter>();

type Program = Vec<libc::sock_filter>;

/// A filter for each kind of thread.
#[derive(Debug)]
pub struct Filters {
    main: Program,
    vcpu: Program,
    io: Program,
    console: Program,
}

impl Filters {
    /// Those that this program was built with.
    pub fn built_in() -> Self {
        let bytes = include_bytes!(concat!(env!("OUT_DIR"), "/seccomp.bpf"));
        // A test reads them. Without filters no call is allowed.
        Self::parse(bytes).unwrap_or_else(|_| Self {
            main: Program::new(),
            vcpu: Program::new(),
            io: Program::new(),
            console: Program::new(),
        })
    }

    /// Reads a file of filters.
    ///
    /// # Errors
    /// What the bytes are, or are not.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut rest = bytes
            .strip_prefix(MAGIC)
            .ok_or("is no file of seccomp filters of this version")?;
        let filters = Self {
            main: program(&mut rest)?,
            vcpu: program(&mut rest)?,
            io: program(&mut rest)?,
            console: program(&mut rest)?,
        };
        match rest {
            [] => Ok(filters),
            _ => Err("has bytes behind its last filter"),
        }
    }

    /// Filters the calling thread's system calls, and those of all threads that it starts, for good.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn install(&self, role: Role) -> io::Result<()> {
        let program = match role {
            Role::Main => &self.main,
            Role::Vcpu => &self.vcpu,
            Role::Io => &self.io,
            Role::Console => &self.console,
        };
        let program = libc::sock_fprog {
            len: program.len() as libc::c_ushort,
            filter: program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel copies `len` instructions, and changes none.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn program(bytes: &mut &[u8]) -> Result<Program, &'static str> {
    const SHORT: &str = "ends in the middle of a filter";
    let (count, rest) = bytes.split_first_chunk::<2>().ok_or(SHORT)?;
    let count = usize::from(u16::from_le_bytes(*count));
    if count == 0 || count > MAX_INSTRUCTIONS {
        return Err("has a filter of no or too many instructions");
    }
    let (instructions, rest) = rest.split_at_checked(count * INSTRUCTION).ok_or(SHORT)?;
    *bytes = rest;
    let (instructions, _) = instructions.as_chunks::<INSTRUCTION>();
    let instruction = |&[c0, c1, jt, jf, k0, k1, k2, k3]: &[u8; INSTRUCTION]| libc::sock_filter {
        code: u16::from_le_bytes([c0, c1]),
        jt,
        jf,
        k: u32::from_le_bytes([k0, k1, k2, k3]),
    };
    Ok(instructions.iter().map(instruction).collect())
}

/// Promises that this process and its children gain no privileges by running programs (PR_SET_NO_NEW_PRIVS), which a filter
/// asks of those without CAP_SYS_ADMIN.
///
/// # Errors
/// The kernel refused.
pub fn promise_no_privileges() -> io::Result<()> {
    // SAFETY: this option takes no pointers.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_in_is_filters() {
        let filters = Filters::built_in();
        for program in [&filters.main, &filters.vcpu, &filters.io, &filters.console] {
            assert!(program.len() > 10);
        }
        assert!(filters.vcpu.len() < filters.main.len());
    }

    #[test]
    fn other_bytes_are_refused() {
        let good = include_bytes!(concat!(env!("OUT_DIR"), "/seccomp.bpf"));
        assert!(Filters::parse(good).is_ok());
        for end in 0..good.len() {
            assert!(Filters::parse(&good[..end]).is_err(), "{end} bytes");
        }
        assert!(Filters::parse(&[good, &b"x"[..]].concat()).is_err());
        assert!(Filters::parse(br#"{"vmm": {}}"#).is_err());
        let empty = [MAGIC, &[0; 8]].concat();
        assert!(Filters::parse(&empty).is_err());
    }
}
